"""Large values beside the journal: files by their content's hash, so that the database stays small."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from typing import TYPE_CHECKING

from notebook_ext.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

__all__ = ["LARGE", "Reference", "Values"]

Reference = str | bytes
"""What stands for a text in a column: the text itself, or the hash of its file."""

LARGE = 64 * 1024
"""Characters from which on a value is kept in a file of its own."""


class Values:
    """Texts by reference: a small one is its own reference, a large one is in a file.

    Args:
        folder: Where the files are; None keeps every text as it is.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def put(self, text: str) -> Reference:
        """Keep a text, and return what stands for it in a column.

        Raises:
            JournalError: It could not be written.
        """
        if self._folder is None or len(text) < LARGE:
            return text
        content = text.encode()
        digest = hashlib.sha256(content).digest()
        try:
            self._write(self._file(digest), content)
        except OSError as error:
            raise JournalError(
                f"a value of {len(content) / 1e6:.1f} MB could not be kept: {error}"
            ) from error
        return digest

    def _write(self, file: Path, content: bytes) -> None:
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{uuid.uuid4().hex}")  # never seen half written
        try:
            with unfinished.open("xb") as writer:
                writer.write(content)
                writer.flush()
                os.fsync(writer.fileno())  # as safe as the row that refers to it
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    def get(self, reference: Reference) -> str:
        """The text that was put.

        Raises:
            OSError: Its file is gone.
        """
        return reference if isinstance(reference, str) else self._file(reference).read_text()

    def sweep(self, kept: Container[bytes]) -> int:
        """Remove the files that nothing refers to, and return their bytes."""
        freed = 0
        for file in self._folder.glob("*.json") if self._folder else ():
            if bytes.fromhex(file.stem) not in kept:
                with contextlib.suppress(OSError):
                    freed += file.stat().st_size
                    file.unlink()
        return freed

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self._folder.glob("*.json")) if self._folder else 0

    def _file(self, digest: bytes) -> Path:
        assert self._folder is not None
        return self._folder / f"{digest.hex()}.json"
