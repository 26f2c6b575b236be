"""Where webhooks may go, and what the server answers to: rules about addresses, without any request."""

from __future__ import annotations

import asyncio
import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from notebook_ext.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WebhookRules", "allowed_hosts", "is_loopback_host"]

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]{0,252}))(:[0-9]{1,5})?\Z")


def is_loopback_host(host: str) -> bool:
    """Whether this name or address is this machine's own, which no other can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def allowed_hosts(port: int, more: Iterable[str]) -> set[str]:
    """The values of `Host` that are answered: this machine's own names, and those that were allowed.

    Raises:
        ConfigurationError: One of them is no host name.
    """
    found = {f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}
    for host in more:
        if not _HOST.match(host):
            raise ConfigurationError(f"{host[:80]!r} is no host name; NAME or NAME:PORT is expected")
        has_port = re.search(r":[0-9]+\Z", host) and not host.endswith("]")
        found.add(host.lower() if has_port else f"{host.lower()}:{port}")
    # Clients leave the usual ports out, also those of a proxy in front that speaks https.
    return found | {host.rpartition(":")[0] for host in found if host.endswith((":80", ":443"))}


class WebhookRules:
    """Which addresses a job's webhook may have.

    A public server that called any address for anybody would open the private network around it.

    Args:
        loopback: Whether this machine itself may be called: it may while only it can reach the server.
        private: Whether other addresses that are not public may be called.
    """

    def __init__(self, *, loopback: bool = True, private: bool = False) -> None:
        self.loopback = loopback
        self.private = private

    def check(self, url: str) -> None:
        """Refuse an address that is written out; a name is looked up when it is called.

        Raises:
            InputError: It may not be called.
        """
        host = urlsplit(url).hostname or ""
        if is_loopback_host(host):
            self._check(ip_address("127.0.0.1"), host)
        else:
            try:
                address = ip_address(host)
            except ValueError:
                return
            self._check(address, host)

    async def resolve(self, url: str) -> str | None:
        """The address to call, looked up once so that no second look-up leads elsewhere.

        None where a proxy does that, and is the one who decides.

        Raises:
            InputError: It may not be called, or is not found.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not is_loopback_host(host) and getproxies().get(parts.scheme) and not proxy_bypass(host):
            return None
        try:
            rows = await asyncio.get_running_loop().getaddrinfo(
                host, parts.port or parts.scheme, type=socket.SOCK_STREAM
            )
        except OSError:
            raise InputError("there is no such host") from None
        for row in rows:
            self._check(ip_address(str(row[4][0]).partition("%")[0]), host)
        return str(rows[0][4][0])

    def _check(self, address: IPv4Address | IPv6Address, host: str) -> None:
        inner = getattr(address, "ipv4_mapped", None) or address
        if inner.is_loopback:
            if not (self.loopback or self.private):
                raise InputError(f"'webhook' must not lead to this machine ({host})")
        elif (not inner.is_global or inner.is_multicast) and not self.private:
            raise InputError(f"'webhook' must not lead to a private address ({host})")
