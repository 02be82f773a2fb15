"""Verbose log lines for as long as somebody needs them, and then the level that was there before.

All watchers of one user share a file for each server address, with the level that the first of them found. Each holds
a lock on it; the last one to leave puts the level back. A watcher that was killed loses its lock, and the next one
finds in the file what has to be put back. Watchers of other users or machines are seen only by what they do: a level
that was lowered meanwhile is raised again, and the lowered one is what is put back in the end.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lab_utils import launch
from lab_utils.verbose_log import NEEDED_LEVEL
from lab_utils.watch_server import Endpoint


class LogLease:
    """A claim on verbose log lines of one server. `release` must be called, whatever happens.

    Attributes
    ----------
    found : int
        The level that is put back in the end.
    """

    def __init__(self, endpoint: Endpoint):
        self.found = 0
        self._endpoint, self._path = endpoint, _path(endpoint.url)
        with _alone(self._path.parent):
            self._file = self._path.open("a+", encoding="utf-8")
            try:
                self._claim()
            except BaseException:
                self._file.close()
                raise

    def _claim(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_SH)  # held to the end: others see by it that somebody watches
        level, left = self._endpoint.verbose_level(), _read(self._file)
        # Something is written there where others watch, or where a watcher was killed.
        self.found = level if left is None else left
        _write(self._file, self.found)
        self.renew(level)

    def renew(self, level: int | None = None) -> bool:
        """Turn the lines on again where somebody turned them off; True if that was so."""
        level = self._endpoint.verbose_level() if level is None else level
        if level >= NEEDED_LEVEL:
            return False
        self.found = level
        _write(self._file, level)
        self._endpoint.set_verbose_level(NEEDED_LEVEL)
        return True

    def release(self) -> bool:
        """Put the level back, unless others of this user still watch; False if they do.

        A level that was high enough before, or that somebody changed meanwhile, is left as it is.

        Raises
        ------
        ServerError
            The server does not answer or refuses; the claim has ended all the same.
        """
        with _alone(self._path.parent), self._file:
            if not _is_last(self._file):
                return False
            found = _read(self._file)
            found = self.found if found is None else found
            if found < NEEDED_LEVEL and self._endpoint.verbose_level() == NEEDED_LEVEL:
                self._endpoint.set_verbose_level(found)
            self._path.unlink(missing_ok=True)  # stays where that failed: the next watch makes it good
            return True


def _path(url: str) -> Path:
    return launch.STATE / "log_levels" / re.sub(r"[^\w.-]", "_", url)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Claims and releases of all watchers of this user, one at a time."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_last(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: TextIO) -> int | None:
    file.seek(0)
    try:
        return int(json.loads(file.read()))
    except (ValueError, TypeError):
        return None


def _write(file: TextIO, level: int) -> None:
    file.seek(0)
    file.truncate(0)
    file.write(json.dumps(level))
    file.flush()
