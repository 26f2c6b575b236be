"""Bounds for a request's head, in bytes and in seconds, which uvicorn does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["BoundedHead"]

HEAD_LIMIT = 128 * 1024
"""Bytes. Above what the gate answers in words: this is for a head that never ends."""
HEAD_TIMEOUT = 30.0
"""Seconds from the connection, or from a later request's first byte, to the end of its head."""
_REFUSAL = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHead(HttpToolsProtocol):
    """Hangs up on a request whose head is too long to be one, or does not come."""

    _is_in_head = False
    _size = 0
    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._size = True, 0
        if self._overdue is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head:
            self._size += len(data)
            if self._size > HEAD_LIMIT and not self.transport.is_closing():
                self.transport.write(_REFUSAL)
                self.transport.close()

    def _await_head(self) -> None:
        self._overdue = self.loop.call_later(HEAD_TIMEOUT, self.transport.close)

    def _stop_clock(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
