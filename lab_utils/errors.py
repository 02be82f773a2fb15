"""What can go wrong with a server, and how a notebook shows it."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

HERE = str(Path(__file__).parent)


class ToldShortly:
    """For an error whose message says all: a notebook shows the learner's own lines and the message, no others.

    IPython asks an exception for `_render_traceback_`. Elsewhere the traceback is whole, and so it is in a notebook
    with ``traceback.print_exception(sys.last_value)`` in the next cell.
    """

    def _render_traceback_(self) -> list[str]:
        lines = [f"{type(self).__name__}: {self}"]
        if own := _own_lines(self.__traceback__):
            lines += ["", "It happened here:", *own]
        return lines


def _own_lines(trace: TracebackType | None) -> list[str]:
    """The lines that led to an error and are neither the lab's nor a package's."""
    elsewhere = (HERE, sys.prefix, sys.base_prefix)
    frames = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith(elsewhere)]
    return [f"    {frame.line}" for frame in frames if frame.line]


class ServerError(ToldShortly, RuntimeError):
    """A tritonserver did not do what it should; the message says what, why, and what to do next."""


class ServerStartError(ServerError):
    """A tritonserver did not become ready. `models` names the models that failed to load, if that was the reason."""

    def __init__(self, message: str, models: Sequence[str] = ()):
        super().__init__(message)
        self.models = tuple(models)


class ServerDiedError(ServerError):
    """A tritonserver, or the process of one of its models, ended although nobody stopped it."""
