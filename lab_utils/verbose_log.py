"""The lines of a tritonserver's verbose log that tell about tensors, read as records.

At verbose level 1 (`NEEDED_LEVEL`) a server writes, among much else:

* for each call of a model, once its request is checked, one line with request id, model, version, every input with
  dtype and shape, and the outputs that are asked for (`Prepared`);
* for each change of a request's state, a line with its request id but no model (`StateChange`);
* for each output tensor of each response, a line with name, dtype and shape but no request and no model (`Added`), and
  then one with its bytes (`Allocated`), which tells a step's response inside an ensemble from one to a client;
* for each last response of a gRPC stream, a line without any name (`StreamEnded`).

`lab_utils.attribution` finds out to which node and request the third kind belongs. Both log formats are read, "default"
and "ISO8601"; times are UTC, and the second format has whole seconds only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache

NEEDED_LEVEL = 1
"""The lowest ``log_verbose_level`` that writes all of these lines."""

NO_ID = "<id_unknown>"

# The frontends and the core write to one file without a common lock: the line break of one record may come after the
# next record. So a record ends with its closing quote, not with its line, and a line can hold several.
RECORD = re.compile(
    r"(?:[IWEF](?P<day>\d{4}) (?P<clock>\d\d:\d\d:\d\d\.\d+)|(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)Z [IWEF])"
    r' \d+ [\w.]+:\d+\] (?:"(?P<text>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<plain>[^"].*))'
)
WANTED = re.compile(
    r"\] prepared: \[|Setting state from|add response output: |Internal response allocation: "
    r"|(?:GRPC|HTTP):? using [\w -]+ for|StreamInferComplete, .*, flags 1|successfully loaded '"
)
PREPARED = re.compile(
    r"\[request id: (?P<id>.*?)\] prepared: \[0x\w+\] request id: (?:(?P=id))?, model: (?P<model>.*?), "
    r"requested version: -?\d+, actual version: (?P<version>\d+), flags: ",
    re.DOTALL,
)
INPUT = re.compile(r"\[0x\w+\] input: (?P<name>.*), type: (?P<dtype>\w+), original shape: \[(?P<dims>[-\d,]*)\]")
STATE = re.compile(r"\[request id: (?P<id>.*)\] Setting state from (?P<old>\w+) to (?P<new>\w+)", re.DOTALL)
ADDED = re.compile(r"add response output: output: (?P<name>.*), type: (?P<dtype>\w+), shape: \[(?P<dims>[-\d,]*)\]")
INTERNAL = re.compile(r"Internal response allocation: (?P<name>.*), size (?P<size>\d+), addr ")
TO_CLIENT = re.compile(r"(?:GRPC|HTTP):? using [\w -]+ for:? '(?P<name>.*)', size: (?P<size>\d+)")
STREAM_ENDED = re.compile(r"StreamInferComplete, .*, flags 1\b")
LOADED = re.compile(r"successfully loaded '(?P<model>.*)'")


@dataclass(frozen=True)
class Tensor:
    """Name, dtype and dims, as one line of the log tells them."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A request to one model is ready to be queued: a client's own, or one that an ensemble makes for a step."""

    seconds: float  # since 1970, UTC
    id: str
    model: str
    version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class StateChange:
    """A request to some model went from one state to another: PENDING, EXECUTING, RELEASED, ….

    The names are those of the server.
    """

    seconds: float
    id: str
    old: str
    new: str


@dataclass(frozen=True)
class Added:
    """Some model put an output into a response."""

    seconds: float
    tensor: Tensor


@dataclass(frozen=True)
class Allocated:
    """Memory for that output, inside an ensemble or towards a client."""

    seconds: float
    name: str
    nbytes: int
    to_client: bool


@dataclass(frozen=True)
class StreamEnded:
    """A gRPC stream was given the last response to some request."""

    seconds: float


@dataclass(frozen=True)
class Loaded:
    """A model was loaded, maybe with another config than before."""

    seconds: float
    model: str


@dataclass(frozen=True)
class Unreadable:
    """A line of the right kind that this version does not understand: another release writes it differently."""

    seconds: float
    text: str


Record = Prepared | StateChange | Added | Allocated | StreamEnded | Loaded | Unreadable


def read_records(lines: Iterable[str], now: datetime | None = None) -> Iterator[Record]:
    """Read the records of whole lines; lines of other kinds and of other programs are passed over.

    Parameters
    ----------
    lines : iterable of str
        In the order of the log.
    now : datetime, optional
        The default log format has no year: the one that brings a line nearest to this moment is taken. By default now.

    Yields
    ------
    Record
        One of the dataclasses of this module, in the order of the log.
    """
    now = now or datetime.now(timezone.utc)
    for line in lines:
        if WANTED.search(line):
            for match in RECORD.finditer(line):
                text = match["plain"] or _unescape(match["text"] or "")
                if WANTED.search(text):
                    yield _record(text, _seconds(match, now))


def _unescape(text: str) -> str:
    """A quoted message as it was before Triton escaped it as JSON does."""
    if "\\" not in text:
        return text
    try:
        return json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text


def _seconds(match: re.Match, now: datetime) -> float:
    try:
        if match["iso"]:
            return datetime.fromisoformat(f"{match['iso']}+00:00").timestamp()
        hours, minutes, seconds = match["clock"].split(":")
        return _midnight(match["day"], now.date()) + 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:  # digits, but no date
        return now.timestamp()


@lru_cache(maxsize=8)
def _midnight(day: str, today: date) -> float:
    """The start of that day of this year; of the year before where that would be more than half a year ahead."""
    month, number = int(day[:2]), int(day[2:])
    moment = datetime(today.year, month, number, tzinfo=timezone.utc)
    if moment.date() - today > timedelta(days=183):
        moment = datetime(today.year - 1, month, number, tzinfo=timezone.utc)
    return moment.timestamp()


def _record(text: str, seconds: float) -> Record:
    if match := PREPARED.match(text):
        return _prepared(match, text[match.end() :], seconds)
    if match := STATE.fullmatch(text):
        return StateChange(seconds, match["id"], match["old"], match["new"])
    if match := ADDED.fullmatch(text):
        return Added(seconds, _tensor(match))
    if match := INTERNAL.match(text) or TO_CLIENT.match(text):
        return Allocated(seconds, match["name"], int(match["size"]), match.re is TO_CLIENT)
    if STREAM_ENDED.search(text):
        return StreamEnded(seconds)
    if match := LOADED.match(text):
        return Loaded(seconds, match["model"])
    return Unreadable(seconds, text)


def _prepared(match: re.Match, rest: str, seconds: float) -> Record:
    before, asked, outputs = rest.partition("\nrequested outputs:\n")
    _, given, inputs = before.partition("\ninputs:\n")  # after those that the client gave and those that override them
    tensors = tuple(_tensor(found) for found in INPUT.finditer(inputs))
    if not asked or not given:
        return Unreadable(seconds, match[0])
    names = tuple(name for name in outputs.split("\n") if name)
    return Prepared(seconds, match["id"], match["model"], int(match["version"]), tensors, names)


def _tensor(match: re.Match) -> Tensor:
    return Tensor(match["name"], match["dtype"], tuple(int(size) for size in match["dims"].split(",") if size))
