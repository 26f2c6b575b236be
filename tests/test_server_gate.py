"""Who gets in, and how much they may bring."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from serving import serving

from notebook_ext.server.app import RUN_BODY_LIMIT, RUNSYNC_BODY_LIMIT


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "{}"])
def test_the_token_comes_with_or_without_bearer(form: str) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            answer = await api.http.get(
                "/demo/health", headers={"Authorization": form.format(api.server.token)}
            )
            assert answer.status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer wrong", "wrong", "Basic {}", "Bearer {}x", "x{}"])
def test_without_the_token_nothing_is_told(sent: str) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            headers = {"Authorization": sent.format(api.server.token)}
            for path in ("/demo/health", "/nope/health", "/demo/run", "/"):
                answer = await api.http.get(path, headers=headers)
                assert answer.status_code == 401
                assert list(answer.json()) == ["error"]
                assert api.server.token not in answer.text
            del api.http.headers["Authorization"]
            assert (await api.http.get("/demo/health")).status_code == 401

    asyncio.run(scenario())


def test_the_token_is_not_shown() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            assert api.server.token not in repr(api.server)
            assert len(api.server.token) >= 32

    asyncio.run(scenario())


def test_the_host_must_be_ours() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            port = api.server.port
            for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LocalHost:{port}", f"[::1]:{port}"):
                assert (await api.http.get("/demo/health", headers={"Host": host})).status_code == 200
            for host in (
                f"evil.example:{port}",
                "127.0.0.1",
                f"127.0.0.1:{port + 1}",
                f"127.0.0.1.evil:{port}",
                "",
            ):
                answer = await api.http.get("/demo/health", headers={"Host": host})
                assert answer.status_code == 421
                assert list(answer.json()) == ["error"]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"GET /v2/demo/health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n"
                f"Authorization: {api.server.token}\r\n\r\n".encode()
            )
            status = (await reader.readline()).split()[1]
            writer.close()
            assert status in (b"400", b"421")

    asyncio.run(scenario())


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:8888", ""])
def test_web_pages_are_refused_even_with_the_token(origin: str) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            answer = await api.http.post("/demo/run", json={"input": 1}, headers={"Origin": origin})
            assert (answer.status_code, list(answer.json())) == (403, ["error"])
            answer = await api.http.options("/demo/run", headers={"Origin": origin})
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert api.server.endpoints["demo"].records == {}

    asyncio.run(scenario())


@pytest.mark.parametrize(("operation", "limit"), [("run", RUN_BODY_LIMIT), ("runsync", RUNSYNC_BODY_LIMIT)])
def test_bodies_over_the_limit_are_refused(operation: str, limit: int) -> None:
    frame = len(b'{"input": ""}')

    def body(size: int) -> bytes:
        return b'{"input": "' + b"x" * (size - frame) + b'"}'

    async def scenario() -> None:
        async with serving(demo=lambda job: len(job["input"])) as api:
            answer = await api.http.post(f"/demo/{operation}", content=body(limit))
            assert answer.status_code == 200
            answer = await api.http.post(f"/demo/{operation}", content=body(limit + 1))
            assert answer.status_code == 413
            assert f"{limit // 1024**2} MB" in answer.json()["error"]
            assert (await api.get("/demo/health"))["jobs"]["failed"] == 0

    asyncio.run(scenario())


def test_an_endless_body_is_neither_kept_nor_read_to_its_end() -> None:
    sent = 0
    piece = b"x" * 65536

    async def scenario() -> None:
        nonlocal sent
        async with serving(demo="echo") as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            writer.write(
                f"POST /v2/demo/run HTTP/1.1\r\nHost: 127.0.0.1:{api.server.port}\r\n"
                f"Authorization: {api.server.token}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            tracemalloc.start()
            try:
                while sent < 100 * RUN_BODY_LIMIT:
                    writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
                    await writer.drain()
                    sent += len(piece)
            except ConnectionError:
                pass
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            writer.close()
            assert sent < 4 * RUN_BODY_LIMIT
            assert peak < 3 * RUN_BODY_LIMIT
            assert (await api.result("demo", 1))["output"] == 1
            del reader

    asyncio.run(scenario())


def test_a_body_that_breaks_off_makes_no_job() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            writer.write(
                f"POST /v2/demo/run HTTP/1.1\r\nHost: 127.0.0.1:{api.server.port}\r\n"
                f"Authorization: {api.server.token}\r\nContent-Length: 100\r\n\r\n".encode()
                + b'{"input": 1}'
            )
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            await api.result("demo", 1)
            assert len(api.server.endpoints["demo"].records) == 1

    asyncio.run(scenario())
