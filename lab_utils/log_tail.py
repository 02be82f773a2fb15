"""Follow a log file while it is written: whole lines, a bounded piece at a time, through rotation and truncation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
LONGEST_LINE = 1 << 20


class LogTail:
    """The lines that are added to a file.

    Parameters
    ----------
    path : path
        The file. It may be replaced by a new one of that name (log rotation) or truncated while it is read.
    from_start : bool
        Whether to begin with the first line of the file; by default with the first line that is added.

    Attributes
    ----------
    notes : list of str
        What happened to the file, and what was lost by it.

    Raises
    ------
    OSError
        The file cannot be read.
    """

    def __init__(self, path: str | Path, from_start: bool = False):
        self.path = Path(path)
        self.notes: list[str] = []
        self._file: BinaryIO = self.path.open("rb")
        self._partial = b""
        self._skipping = not from_start  # the file may end in the middle of a line, which is not for us
        if not from_start:
            self._skipping = self._file.seek(0, os.SEEK_END) > 0 and not self._ends_with_line()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def lines(self) -> Iterator[str]:
        """Yield every whole line that was added since the last call, without its line break."""
        while True:
            replaced = self._is_replaced()  # looked at first: whatever the old file still gets, is in it by now
            yield from self._read_to_end()
            if not replaced:
                return
            self._reopen()

    def _ends_with_line(self) -> bool:
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"

    def _is_replaced(self) -> bool:
        try:
            there = os.stat(self.path)
        except OSError:  # between two steps of a rotation, or gone for good
            return False
        here = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def _reopen(self) -> None:
        file = self.path.open("rb")
        self._file.close()
        self._file, self._partial, self._skipping = file, b"", False
        self.notes.append(f"{self.path.name} was replaced by a new file; both were read")

    def _read_to_end(self) -> Iterator[str]:
        if self._file.tell() > os.fstat(self._file.fileno()).st_size:
            self._file.seek(0)
            self._partial, self._skipping = b"", False
            self.notes.append(f"{self.path.name} was truncated; lines that were not read before that are lost")
        while chunk := self._file.read(CHUNK):
            *whole, self._partial = (self._partial + chunk).split(b"\n")
            for line in whole:
                if not self._skipping:
                    yield line.decode("utf-8", "replace")
                self._skipping = False
            if len(self._partial) > LONGEST_LINE:
                self._partial, self._skipping = b"", True
                self.notes.append(
                    f"a line of {self.path.name} is longer than {LONGEST_LINE:,} bytes; it was passed over"
                )
