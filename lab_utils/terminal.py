"""Output that cannot steer a terminal: names and texts of traces, configs, logs and users may hold anything."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

from lab_utils.labbook_text import visible


class _Harmless:
    """A text stream in front of another one: control characters are replaced, all else is passed on."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def harmless_output() -> Iterator[None]:
    """Let everything that is printed in the block be harmless to a terminal."""
    with contextlib.redirect_stdout(_Harmless(sys.stdout)), contextlib.redirect_stderr(_Harmless(sys.stderr)):
        yield
