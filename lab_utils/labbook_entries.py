"""What the lab book holds, as plain data."""

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

MEASURED = "measured"
"""Label of the series that a prediction is compared with."""


@dataclass(frozen=True)
class Point:
    """One iteration: the dims of the tensor, its bytes and its arrival in seconds; None where that was not measured."""

    iteration: int
    dims: tuple[int, ...]
    nbytes: int | None = None
    seconds: float | None = None

    @property
    def size(self) -> int:
        """Number of elements: the product of the dims."""
        return math.prod(self.dims)


@dataclass(frozen=True)
class Series:
    """The iterations that were measured under one label; `unit` is what a size counts."""

    label: str
    unit: str
    points: tuple[Point, ...]

    @property
    def sizes(self) -> list[int]:
        """The size of each iteration, first to last."""
        return [point.size for point in self.points]


@dataclass(frozen=True)
class Number:
    """A number with its name and unit."""

    name: str
    value: int | float
    unit: str


@dataclass(frozen=True)
class Picture:
    """A figure's number (for `Book.png`), name, and description in words."""

    id: int
    name: str
    alt: str


@dataclass(frozen=True)
class Outcome:
    """Whether a prediction came true, and in a sentence how."""

    came_true: bool
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Experiment:
    """One experiment as the book has it. Times are UTC.

    Attributes
    ----------
    predicted
        Value from JSON: a list of sizes, a number, a text, or None where nothing was predicted.
    configuration : mapping
        Names and values from JSON.
    server, source, device, lab_commit : str or None
        Server version, where the server comes from, what it runs on, and the lab's git commit; None where not known.
    ended, seconds
        End, and duration by a clock that cannot be set; None while it runs, and for ever if its process was killed.
    failure : str or None
        The error that ended it.
    """

    id: int
    lesson: str
    title: str
    started: datetime
    predicted: object = field(hash=False)
    configuration: Mapping[str, object] = field(hash=False)
    server: str | None = None
    source: str | None = None
    device: str | None = None
    lab_commit: str | None = None
    ended: datetime | None = None
    seconds: float | None = None
    failure: str | None = None
    series: tuple[Series, ...] = ()
    verdicts: tuple[str, ...] = ()
    figures: tuple[Picture, ...] = ()
    numbers: tuple[Number, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """One of "finished", "failed", and "unfinished": it still runs, or its process was killed."""
        if self.ended is None:
            return "unfinished"
        return "finished" if self.failure is None else "failed"

    @property
    def outcome(self) -> Outcome | None:
        """Whether the predicted sizes were measured; None if it predicted no list of sizes, or measured nothing."""
        measured = self.find(MEASURED)
        if measured is None or not _are_sizes(self.predicted):
            return None
        return _judge(self.predicted, measured.sizes)

    @property
    def words(self) -> str:
        """All its text, for a search."""
        configured = [f"{name} {value}" for name, value in self.configuration.items()]
        return "\n".join([self.lesson, self.title, *configured, *self.verdicts, *self.notes, self.failure or ""])

    def find(self, label: str) -> Series | None:
        """Return the series with this label, or None."""
        return next((one for one in self.series if one.label == label), None)


def read_experiments(connection: sqlite3.Connection) -> list[Experiment]:
    """Return all experiments of a book, in the order of their numbers."""
    rows = connection.execute("SELECT * FROM experiment ORDER BY id")
    entries = {
        "ending": _by_experiment(connection, "ending", "experiment, ended, failure, seconds"),
        "verdict": _by_experiment(connection, "verdict", "experiment, text"),
        "number": _by_experiment(connection, "number", "experiment, name, value, unit"),
        "note": _by_experiment(connection, "note", "experiment, text"),
        "figure": _by_experiment(connection, "figure", "experiment, id, name, alt"),
        "series": _series(connection),
    }
    return [_experiment(row, {table: found[row["id"]] for table, found in entries.items()}) for row in rows]


def _experiment(row: sqlite3.Row, entries: Mapping[str, list]) -> Experiment:
    ending = dict(entries["ending"][0]) if entries["ending"] else {"ended": None, "failure": None, "seconds": None}
    start = {name: row[name] for name in ("id", "lesson", "title", "server", "source", "device", "lab_commit")}
    return Experiment(
        **start,
        started=datetime.fromisoformat(row["started"]),
        predicted=json.loads(row["predicted"] or "null"),
        configuration=json.loads(row["configuration"]),
        ended=ending["ended"] and datetime.fromisoformat(ending["ended"]),
        seconds=ending["seconds"],
        failure=ending["failure"],
        series=tuple(entries["series"]),
        verdicts=tuple(each["text"] for each in entries["verdict"]),
        figures=tuple(Picture(each["id"], each["name"], each["alt"]) for each in entries["figure"]),
        numbers=tuple(Number(each["name"], each["value"], each["unit"]) for each in entries["number"]),
        notes=tuple(each["text"] for each in entries["note"]),
    )


def _series(connection: sqlite3.Connection) -> dict[int, list[Series]]:
    rows = connection.execute(
        """SELECT series.id, experiment, label, unit, iteration, dims, bytes, seconds FROM series
        LEFT JOIN observation ON observation.series = series.id ORDER BY series.id, iteration"""
    )
    points: dict[tuple[int, int, str, str], list[Point]] = defaultdict(list)
    for row in rows:
        found = points[row["experiment"], row["id"], row["label"], row["unit"]]
        if row["iteration"] is not None:  # a series may have no iterations
            found.append(Point(row["iteration"], tuple(json.loads(row["dims"])), row["bytes"], row["seconds"]))
    series: dict[int, list[Series]] = defaultdict(list)
    for (number, _, label, unit), measured in points.items():
        series[number].append(Series(label, unit, tuple(measured)))
    return series


def _by_experiment(connection: sqlite3.Connection, table: str, columns: str) -> dict[int, list[sqlite3.Row]]:
    found: dict[int, list[sqlite3.Row]] = defaultdict(list)
    for row in connection.execute(f"SELECT {columns} FROM {table} ORDER BY rowid"):
        found[row["experiment"]].append(row)
    return found


def _are_sizes(predicted: object) -> bool:
    whole = isinstance(predicted, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in predicted)
    return whole and bool(predicted)


def _judge(predicted: Sequence[int], measured: Sequence[int]) -> Outcome:
    pairs = enumerate(zip(predicted, measured, strict=False), 1)
    wrong = next(((n, expected, found) for n, (expected, found) in pairs if expected != found), None)
    if wrong:
        n, expected, found = wrong
        return Outcome(False, f"no: at iteration {n}, {expected:,} was predicted and {found:,} measured")
    if len(predicted) != len(measured):
        return Outcome(False, f"no: {len(predicted):,} iterations were predicted and {len(measured):,} measured")
    return Outcome(True, f"yes, at all {len(measured):,} iterations")
