"""A bound for what a connection may send before its headers are complete, which uvicorn does not have."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedHead"]

HEAD_LIMIT = 128 * 1024
"""Bytes. Above what the gate answers in words: this is for a head that never ends."""
_REFUSAL = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHead(HttpToolsProtocol):
    """Hangs up on a request whose head is too long to be one."""

    _is_in_head = False
    _size = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._size = True, 0

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head:
            self._size += len(data)
            if self._size > HEAD_LIMIT and not self.transport.is_closing():
                self.transport.write(_REFUSAL)
                self.transport.close()
