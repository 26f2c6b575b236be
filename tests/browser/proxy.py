"""A proxy between a client and a server that counts what is asked."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def counting_proxy(base_url: str) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """A way to a server: the base URL through it, and what lists the lines of the requests so far."""
    there = re.search(r"[\d.]+:\d+", base_url)[0]
    sent: list[bytearray] = []
    ends: list[socket.socket] = []

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            kept = bytearray()
            sent.append(kept)
            host, port = there.split(":")
            with socket.create_connection((host, int(port))) as server:
                ends.extend((self.request, server))
                back = threading.Thread(target=_copy, args=(server, self.request))
                back.start()
                _copy(
                    self.request, server, lambda data: kept.extend(data) or data.replace(here, there.encode())
                )
                back.join()

    def requests() -> list[str]:
        lines = re.findall(rb"^(?:GET|POST) \S+ HTTP/1\.1\r$", b"\r\n".join(sent), re.MULTILINE)
        return [line.decode() for line in lines]

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as proxy:
        address = "{}:{}".format(*proxy.server_address)
        here = address.encode()  # the server answers for its own Host only
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}).start()
        try:
            yield f"http://{address}/v2", requests
        finally:
            proxy.shutdown()
            for end in ends:
                with contextlib.suppress(OSError):  # it is closed
                    end.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes] = bytes) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_WR)
