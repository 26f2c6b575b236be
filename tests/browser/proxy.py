"""A proxy between a client and a server that counts what is asked."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def counting_proxy(base_url: str) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """A way to a server: the base URL through it, and what lists the lines of the requests so far."""
    there = re.search(r"[\d.]+:\d+", base_url)[0].encode()
    sent: list[bytearray] = []

    async def copy(reader, writer, change=bytes):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(change(data))
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        kept = bytearray()
        sent.append(kept)
        here = f"127.0.0.1:{port}".encode()

        def pass_on(data: bytes) -> bytes:
            kept.extend(data)
            return data.replace(here, there)  # the server answers for its own Host only

        host, server_port = there.decode().split(":")
        server_reader, server_writer = await asyncio.open_connection(host, int(server_port))
        await asyncio.gather(copy(reader, server_writer, pass_on), copy(server_reader, writer))

    def requests() -> list[str]:
        lines = re.findall(rb"^(?:GET|POST) \S+ HTTP/1\.1\r$", b"\r\n".join(sent), re.MULTILINE)
        return [line.decode() for line in lines]

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0), loop).result()
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v2", requests
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
