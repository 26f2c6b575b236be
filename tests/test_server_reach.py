"""Who reaches the server, how much they may send, and where its webhooks may lead."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest
from serving import serving, spin

from notebook_ext.errors import ConfigurationError, InputError
from notebook_ext.server import EmbeddedServer, addresses
from notebook_ext.server.addresses import WebhookRules, allowed_hosts
from notebook_ext.server.head import HEAD_LIMIT


async def status(server: EmbeddedServer, host: str, address: str = "127.0.0.1") -> int:
    headers = {"Authorization": server.token, "Host": host}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as http:
        return (await http.get(f"http://{address}:{server.port}/v2/demo/health")).status_code


def test_it_listens_for_others_only_where_it_is_told_to() -> None:
    async def scenario() -> None:
        closed, more = (
            EmbeddedServer(),
            EmbeddedServer(bind="127.0.0.9", allow_hosts=["Worker.example", "proxy:80"]),
        )
        for server in (closed, more):
            await server.start()
            server.serve("demo", "echo")
        try:
            with pytest.raises(httpx.ConnectError):
                await status(closed, f"127.0.0.9:{closed.port}", "127.0.0.9")
            port = more.port
            for host in (f"127.0.0.1:{port}", f"127.0.0.9:{port}", f"worker.example:{port}", "proxy:80"):
                assert await status(more, host, "127.0.0.9") == 200
                assert await status(more, host) == 200
            for host in ("worker.example", f"proxy:{port}", f"other.example:{port}", f"127.0.0.8:{port}"):
                assert await status(more, host) == 421
            assert more.base_url == f"http://127.0.0.1:{port}/v2"
            assert closed.outside_url is None
            assert more.outside_url is None  # that address is this machine's alone
        finally:
            await closed.stop()
            await more.stop()

    asyncio.run(scenario())


def test_a_machine_that_vanishes_is_noticed() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            await api.get("/demo/health")
            (connection,) = api.server._uvicorn.server_state.connections
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("bind", "hosts", "outside"),
    [
        ("0.0.0.0", [], None),
        ("0.0.0.0", ["host.docker.internal"], "http://host.docker.internal:0/v2"),
        ("172.17.0.1", [], "http://172.17.0.1:0/v2"),
        ("172.17.0.1", ["proxy:8080"], "http://proxy:8080/v2"),
        ("fd00::1", [], "http://[fd00::1]:0/v2"),
        ("127.0.0.1", ["host.docker.internal"], None),
    ],
)
def test_workers_outside_are_given_a_name_that_reaches_it(
    bind: str, hosts: list[str], outside: str | None
) -> None:
    assert EmbeddedServer(bind=bind, allow_hosts=hosts).outside_url == outside


@pytest.mark.parametrize("wrong", ["", "a/b", "a b", "http://a", "a:b", "ä.example", "a:123456", "[::1", "*"])
def test_what_is_no_host_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="no host name"):
        allowed_hosts(80, [wrong])
    with pytest.raises(ConfigurationError, match="no address to listen on"):
        EmbeddedServer(bind=wrong)


def test_hosts_are_compared_with_their_port() -> None:
    assert allowed_hosts(8080, ["A.b", "[fd00::1]", "c:90"]) == {
        "127.0.0.1:8080",
        "localhost:8080",
        "[::1]:8080",
        "a.b:8080",
        "[fd00::1]:8080",
        "c:90",
    }


# ---------------------------------------------------------------------------------- limits


def test_the_usual_ports_may_be_left_out() -> None:
    assert {"localhost", "localhost:80", "127.0.0.1", "[::1]"} <= allowed_hosts(80, ())
    hosts = allowed_hosts(8000, ["worker.example:443", "[fe80::1]:80", "other.example"])
    assert {"worker.example", "[fe80::1]", "other.example:8000"} <= hosts
    assert not {"localhost", "other.example", ""} & hosts


def test_urls_and_headers_over_the_limit_are_refused_but_not_before_the_token() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            long, wide = {"x": "y" * 17_000}, {"X-Large": "y" * 33_000}
            assert (await api.http.get("/demo/health", params=long)).status_code == 414
            assert (await api.http.get("/demo/health", headers=wide)).status_code == 431
            assert "KB" in (await api.http.get("/demo/health", headers=wide)).json()["error"]
            api.http.headers["Authorization"] = "wrong"
            assert (await api.http.get("/demo/health", params=long, headers=wide)).status_code == 401

    asyncio.run(scenario())


@pytest.mark.parametrize("head", [b"GET /" + b"x" * 300_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000])
def test_a_head_without_an_end_is_not_kept(head: bytes) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            sent = 0
            try:
                for start in range(0, len(head), 4096):
                    writer.write(head[start : start + 4096])
                    await writer.drain()
                    sent += 4096
                    await asyncio.sleep(0)
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 431 ")
            except ConnectionError:
                assert sent > HEAD_LIMIT
            writer.close()
            assert (await api.result("demo", "x" * 200_000))["output"] == "x" * 200_000  # a body may be long

    asyncio.run(scenario())


def test_no_more_requests_are_held_than_it_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notebook_ext.server.gate.MOST_OPEN", 3)

    async def holds(job: Any) -> None:
        await asyncio.sleep(60)

    async def scenario() -> None:
        async with serving(demo=holds) as api:
            job = await api.run("demo")
            polls = [asyncio.create_task(api.http.get(f"/demo/stream/{job}")) for _ in range(3)]
            await spin(lambda: len(api.record("demo", job).bells) == 3)
            answer = await api.http.get("/demo/health")
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
            for poll in polls:
                poll.cancel()
            await spin(lambda: not api.record("demo", job).bells)
            assert (await api.http.get("/demo/health")).status_code == 200

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- webhooks

PRIVATE = [
    "http://10.0.0.1/x",
    "http://192.168.1.1",
    "http://172.17.0.1",
    "http://169.254.169.254/latest",
    "http://[fd00::1]/",
    "http://[fe80::1]/",
    "http://0.0.0.0:80",
    "http://100.64.0.1",
    "http://224.0.0.1",
    "http://[::ffff:10.0.0.1]/",
]
LOOPBACK = [
    "http://127.0.0.1:1/x",
    "http://127.9.9.9",
    "http://localhost/x",
    "http://LOCALHOST",
    "http://[::1]:8/",
    "http://[::ffff:127.0.0.1]/",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_webhooks_lead_to_no_private_address_unless_allowed(url: str) -> None:
    with pytest.raises(InputError, match="private address"):
        WebhookRules().check(url)
    WebhookRules(private=True).check(url)


@pytest.mark.parametrize("url", LOOPBACK)
def test_webhooks_lead_to_this_machine_only_where_nobody_else_reaches_the_server(url: str) -> None:
    WebhookRules().check(url)
    with pytest.raises(InputError, match="this machine"):
        WebhookRules(loopback=False).check(url)


@pytest.mark.parametrize(
    "url", ["https://8.8.8.8/x", "https://example.com:8443/x", "http://[2606:4700::1111]/"]
)
def test_public_addresses_and_names_pass(url: str) -> None:
    WebhookRules(loopback=False).check(url)


def test_a_name_that_leads_inside_is_refused_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"inside.example": "10.0.0.1", "here.example": "127.0.0.1", "outside.example": "8.8.8.8"}
    monkeypatch.setattr(addresses, "getproxies", dict)

    async def scenario() -> None:
        async def lookup(host: str, port: Any, **_: Any) -> Any:
            if host not in found:
                raise OSError("not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found[host], 80))]

        asyncio.get_running_loop().getaddrinfo = lookup  # type: ignore[method-assign]
        rules = WebhookRules(loopback=False)
        assert await rules.resolve("https://outside.example/x") == "8.8.8.8"
        for host, words in [("inside", "private"), ("here", "this machine"), ("nowhere", "no such host")]:
            with pytest.raises(InputError, match=words):
                await rules.resolve(f"https://{host}.example/x")
        monkeypatch.setattr(addresses, "getproxies", lambda: {"https": "http://proxy:3128"})
        monkeypatch.setattr(addresses, "proxy_bypass", lambda host: False)
        assert await rules.resolve("https://inside.example/x") is None  # the proxy looks it up

    asyncio.run(scenario())


def test_a_refused_webhook_makes_no_job() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            answer = await api.http.post("/demo/run", json={"input": 1, "webhook": "http://192.168.0.1/x"})
            assert (answer.status_code, api.server.endpoints["demo"].records) == (400, {})
            assert answer.json() == {"error": "'webhook' must not lead to a private address (192.168.0.1)"}
        server = EmbeddedServer(bind="0.0.0.0", allow_hosts=["worker.example"])
        assert not server._webhooks.rules.loopback
        assert EmbeddedServer(private_webhooks=True)._webhooks.rules.private

    asyncio.run(scenario())


def test_a_webhook_by_name_is_called_at_the_address_that_was_checked() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def scenario() -> None:
        listener = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener, serving(demo="echo") as api:
            await api.result("demo", 1, webhook=f"http://localhost:{port}/hook")
            await spin(lambda: heads)
        assert b"POST /hook HTTP/1.1\r\n" in heads[0]
        assert f"Host: localhost:{port}\r\n".encode().lower() in heads[0].lower()

    asyncio.run(scenario())
