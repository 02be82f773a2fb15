"""The lab book: every experiment is recorded, and nothing is ever overwritten.

``with experiment("02 the doubling bug", "the reported sentence", server=server, ensemble="...") as e:`` records what
is done in the block: ``e.stream(result)`` or ``e.series("measured", sizes)``, and ``e.verdict(...)``, ``e.figure(...)``
and more, in the block or after it. ``open_book().experiments()`` reads it back.

A book that cannot be written never stops an experiment: that is said once, in one line, and the experiment goes on.
"""

import contextlib
import functools
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import platformdirs

from lab_utils.labbook_compare import Comparison, compare_runs
from lab_utils.labbook_entries import MEASURED, Experiment, read_experiments
from lab_utils.labbook_schema import BookError, insert, transaction
from lab_utils.labbook_text import cut
from lab_utils.labbook_values import as_json, as_row, clean, finite, free_label, is_unanswered, listed, png_of
from lab_utils.workshop_share import refresh

__all__ = ["Book", "BookError", "Recorder", "experiment", "open_book"]

if TYPE_CHECKING:
    from lab_utils.client import StreamResult

ROOT = Path(__file__).resolve().parents[1]
FILE_NAME = "lab_book.sqlite3"
ARRIVED = "arrived before the failure"
HEAP, TIME_PER_TOKEN, TEXT_NOTE = "heap", "time per token", "text: "  # what `Recorder.stream` calls its entries
NOTED_TEXT = 400  # characters; the text of a doubling stream can be megabytes

Response = TypeVar("Response")


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Book:
    """A lab book in the file `path`, which is made when the first experiment is recorded."""

    path: Path

    def experiment(
        self,
        lesson: str,
        title: str,
        *,
        server: object = None,
        predicted: object = None,
        **configuration: object,
    ) -> "Recorder":
        """Record an experiment in this book; see `experiment`."""
        return Recorder(self, lesson, title, server, predicted, configuration)

    def experiments(
        self,
        lesson: str = "",
        ensemble: str = "",
        since: str | date | None = None,
        text: str = "",
    ) -> list[Experiment]:
        """Return the recorded experiments that meet all conditions, first to last.

        Parameters
        ----------
        lesson : str
            How the lesson's name begins, such as "02".
        ensemble : str
            Value of `ensemble` in the configuration.
        since : str, date or datetime, optional
            Earliest start, in UTC: "2026-11-23" or "2026-11-23T14:30".
        text : str
            Words that stand in the title, the lesson, the configuration, a verdict, a note or a failure; upper and
            lower case are the same.

        Raises
        ------
        BookError
            The file cannot be read.
        ValueError
            `since` is not a date.
        """
        start = _moment(since)
        return [
            one
            for one in self._read()
            if one.lesson.casefold().startswith(lesson.casefold())
            and (not ensemble or one.configuration.get("ensemble") == ensemble)
            and (start is None or one.started >= start)
            and text.casefold() in one.words.casefold()
        ]

    def get(self, number: int) -> Experiment:
        """Return the experiment with this number.

        Raises
        ------
        ValueError
            There is no such experiment.
        BookError
            The file cannot be read.
        """
        known = {one.id: one for one in self._read()}
        if number not in list(known):
            there = f"it has {min(known)} to {max(known)}" if known else "it is empty: run a lesson first"
            raise ValueError(f"the lab book has no experiment {number!r}; {there}")
        return known[number]

    def compare(self, before: int | Experiment, after: int | Experiment, label: str = "") -> Comparison:
        """Put two experiments side by side, iteration by iteration.

        Parameters
        ----------
        before, after : int or Experiment
            The experiments or their numbers.
        label : str
            The series to compare; by default "measured", or else the first that both have.

        Raises
        ------
        ValueError
            There is no such experiment, or they have no such series in common.
        """
        first, second = (one if isinstance(one, Experiment) else self.get(one) for one in (before, after))
        return compare_runs(first, second, label)

    def png(self, figure: int) -> bytes:
        """Return the PNG of a figure, by the number that `Experiment.figures` gives.

        Raises
        ------
        ValueError
            There is no such figure.
        """
        with transaction(self.path) as connection:
            row = connection.execute("SELECT png FROM figure WHERE id = ?", [figure]).fetchone()
        if row is None:
            raise ValueError(f"the lab book has no figure {figure!r}")
        return row["png"]

    def _read(self) -> list[Experiment]:
        if not self.path.exists():
            return []
        with transaction(self.path) as connection:
            return read_experiments(connection)


def open_book(path: str | Path | None = None) -> Book:
    """Return the lab book in `path`, by default that of the environment variable LAB_BOOK, or the learner's own."""
    named = path or os.environ.get("LAB_BOOK") or _default_path()
    return Book(Path(os.path.expanduser(named)))  # Path.expanduser fails for a user who is not there


def experiment(
    lesson: str, title: str, *, server: object = None, predicted: object = None, **configuration: object
) -> "Recorder":
    """Record an experiment in the default book: use it as ``with experiment(...) as e:``.

    Parameters
    ----------
    lesson : str
        Number and name of the lesson, such as "02 the doubling bug"; or whatever the experiments belong to.
    title : str
        What is asked, in a few words.
    server : TritonServer, optional
        Its version, kind and device are recorded.
    predicted : list of int, number or str, optional
        What was expected. A list of sizes is compared with the series "measured". An unanswered ``...`` is none.
    **configuration
        Whatever describes the run: ensemble, prompt, max_tokens, ….
    """
    return open_book().experiment(lesson, title, server=server, predicted=predicted, **configuration)


def _default_path() -> Path:
    in_checkout = (ROOT / "pyproject.toml").exists()
    return (ROOT / "workspace" if in_checkout else platformdirs.user_data_path("triton-ensemble-lab")) / FILE_NAME


def _moment(since: str | date | None) -> datetime | None:
    if since is None or since == "":
        return None
    try:
        text = since if isinstance(since, str) else since.isoformat()
        moment = datetime.fromisoformat(text.removesuffix("Z"))
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"since is {since!r}; expected a date such as 2026-11-23 or 2026-11-23T14:30, in UTC"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


# --- recording --------------------------------------------------------------------------------------------------------


class Recorder:
    """One experiment that is being recorded; `experiment` makes one.

    Each method writes at once, so that what was recorded outlives a crash of this process. After the block everything
    but the end can still be added.

    Attributes
    ----------
    id : int or None
        Number in the book; None before the block, and where the book cannot be written.
    """

    def __init__(
        self,
        book: Book,
        lesson: str,
        title: str,
        server: object,
        predicted: object,
        configuration: Mapping[str, object],
    ):
        self.id: int | None = None
        self._book, self._server = book, server
        self._began = 0.0
        self._recording: bool | None = None  # True from the block on, False once the book proves unusable
        self._row = {
            "lesson": clean(lesson),
            "title": clean(title),
            "predicted": None if is_unanswered(predicted) else as_json(predicted),
            "configuration": as_json(configuration),
        }

    def __repr__(self) -> str:
        return f"<experiment {self.id}>" if self.id else "<experiment, not recorded>"

    def __enter__(self) -> "Recorder":
        row = self._row | {**_place(self._server), "lab_commit": _lab_commit(), "started": _now()}
        self._recording = True
        self.id = self._write(lambda connection: insert(connection, "experiment", row))
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        arrived = getattr(getattr(error, "result", None), "observations", ())
        if arrived:  # a stream that broke off keeps what had arrived
            self.series(ARRIVED, arrived)
        failure = None if kind is None else clean(f"{kind.__name__}: {error}".removesuffix(": "))
        seconds = time.monotonic() - self._began
        ending = {"experiment": self.id, "ended": _now(), "failure": failure, "seconds": seconds}
        self._write(lambda connection: insert(connection, "ending", ending))
        if self._recording:
            refresh(self._book.path)  # the instructor's view of a learner who agreed to one

    def series(self, label: str, observations: object, unit: str = "elements") -> None:
        """Record what was measured in each iteration.

        Parameters
        ----------
        label : str
            "measured" for the series that was predicted. A label that is taken gets a number: nothing is replaced.
        observations : StreamResult, or sequence of Observation, int or dims
            One for each iteration. From an object, `dims`, `nbytes` and `seconds` are taken.
        unit : str
            What the sizes count: elements of a tensor, or bytes, say.

        Raises
        ------
        ValueError
            It is none of these.
        """
        rows = [as_row(n, one) for n, one in enumerate(listed(observations), 1)]
        self._write(lambda connection: self._insert_series(connection, label, unit, rows))

    def stream(self, result: "StreamResult") -> None:
        """Record all that a stream measured, so that it can be compared with other streams.

        Recorded are the series "measured" (dims, bytes, arrival), the series "heap" in bytes where the node reported it
        with every message, the number "time per token" (from the first arrival to the last, over the number of gaps, in
        seconds; not for a single message), and the joined text as a note, cut to 400 characters.

        Parameters
        ----------
        result : lab_utils.client.StreamResult
            What `lab_utils.client.stream` returned; or the `result` of a StreamError.
        """
        observations = result.observations
        self.series(MEASURED, observations)
        heap = [one.heap for one in observations]
        if heap and None not in heap:
            self.series(HEAP, heap, unit="bytes")
        if result.token_seconds is not None:
            self.number(TIME_PER_TOKEN, result.token_seconds, "s")
        if result.text:
            self.note(TEXT_NOTE + cut(result.text, NOTED_TEXT))

    def follow(self, label: str, observations: Iterable[Response], unit: str = "elements") -> Iterator[Response]:
        """Record each response as it arrives: ``for message in e.follow("measured", iter_stream(...)):``.

        Parameters are those of `series`. What had arrived before this process was killed stays in the book.
        """
        number = self._write(lambda connection: self._insert_series(connection, label, unit, []))
        for iteration, one in enumerate(observations, 1):
            row = as_row(iteration, one) | {"series": number}
            self._write(functools.partial(insert, table="observation", columns=row))
            yield one

    def verdict(self, text: object) -> None:
        """Record what the experiment says, in a sentence."""
        self._entry("verdict", text=clean(text))

    def note(self, text: object) -> None:
        """Record a remark."""
        self._entry("note", text=clean(text))

    def number(self, name: str, value: float, unit: str = "") -> None:
        """Record one number, such as ``e.number("peak memory", 5.2, "GiB")``.

        Raises
        ------
        ValueError
            `value` is not a finite number.
        """
        self._entry("number", name=clean(name), value=finite(name, value), unit=clean(unit))

    def figure(self, name: str, figure: object, alt: str = "") -> object:
        """Record a figure, and return it, so that a notebook shows it in the same line.

        Parameters
        ----------
        name : str
            What it shows.
        figure : matplotlib Figure, or bytes or path of a PNG
            The figure.
        alt : str
            The figure in words, for those who cannot see it.

        Raises
        ------
        ValueError
            It is not a figure or PNG.
        """
        self._entry("figure", name=clean(name), alt=clean(alt), png=png_of(figure))
        return figure

    def _entry(self, table: str, **columns: object) -> None:
        """Add an entry, unless the same one is there: a notebook's cell may run twice."""

        def write(connection: sqlite3.Connection) -> None:
            owned = {"experiment": self.id, **columns}
            same = " AND ".join(f"{name} = ?" for name in owned)
            if not connection.execute(f"SELECT 1 FROM {table} WHERE {same}", list(owned.values())).fetchone():
                insert(connection, table, {"recorded": _now(), **owned})

        self._write(write)

    def _insert_series(
        self, connection: sqlite3.Connection, label: str, unit: str, rows: list[dict[str, object]]
    ) -> int:
        known = connection.execute("SELECT label FROM series WHERE experiment = ?", [self.id])
        label = free_label(clean(label), {row["label"] for row in known})
        columns = {"experiment": self.id, "recorded": _now(), "label": label, "unit": clean(unit)}
        number = insert(connection, "series", columns)
        for row in rows:
            insert(connection, "observation", row | {"series": number})
        return number

    def _write(self, write: Callable[[sqlite3.Connection], int | None]) -> int | None:
        """Make one transaction. A book that cannot be written is given up; the experiment is not."""
        if self._recording is None:
            raise ValueError("this experiment has not begun; use it as: with experiment(...) as e:")
        if not self._recording:
            return None
        try:
            with transaction(self._book.path, write=True) as connection:
                return write(connection)
        except BookError as error:
            self._recording = False
            _warn_once(str(error))
            return None


@functools.cache
def _warn_once(problem: str) -> None:
    print(f"not recorded: {problem}. The experiment goes on.", file=sys.stderr, flush=True)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _place(server: object) -> dict[str, str | None]:
    """Version, kind and device of a server; None for what it does not tell, or cannot any more."""
    asks: dict[str, Callable[[], object]] = {
        "server": lambda: server.metadata["version"],
        "source": lambda: server.source.kind,
        "device": lambda: server.device,
    }
    place = dict.fromkeys(asks)
    for name, ask in asks.items():
        with contextlib.suppress(Exception):  # whatever a server does, the experiment itself will show it better
            place[name] = clean(ask()) if server is not None else None
    return place


@functools.cache
def _lab_commit() -> str | None:
    """The checkout's commit, with "-dirty" after it when tracked files were changed; None without git."""
    if not (ROOT / ".git").exists():  # or it would be the commit of a repository around this one
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip() or None
    return None
