"""Triton's trace files: who called which model when, and which tensors went in and came out.

    problems = []
    for request in requests(read("trace.json", problems)):
        for call in request.calls:
            ...

A *call* is one trace id: one request to one model. A client's request to an ensemble is a call too, and the parent of
the calls to its composing models. Data stays in the file until `values` is asked for it.

Triton escapes nothing. Text from users can therefore look like records of the trace. It is told apart by the shape that
Triton gives its records; what cannot be told apart is text that holds the end of its own record, letter by letter, and
after it further records: those count as records. Where their ids do not fit, that is a `Problem`.
"""

from __future__ import annotations

import glob
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, compress, groupby
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lab_utils import arguments
from lab_utils.trace_records import (
    NOT_WRITTEN,
    STAMP,
    WITHOUT_DATA,
    Plain,
    Problem,
    Row,
    Single,
    parse_kind,
    pieces,
    raw_data,
    text_bytes,
    to_text,
)

__all__ = [
    "Call",
    "Kind",
    "Problem",
    "Request",
    "Tensor",
    "Tensors",
    "files",
    "raw",
    "read",
    "requests",
    "server_flags",
    "values",
    "wait_for",
]

Side = Literal["input", "backend input", "output"]
SIDES: dict[bytes, Side] = {
    b"TENSOR_QUEUE_INPUT": "input",
    b"TENSOR_BACKEND_INPUT": "backend input",
    b"TENSOR_BACKEND_OUTPUT": "output",
}
POLL_SECONDS = 0.01
PENDING = 64  # client requests kept open, in case that a call of theirs comes late
NUMPY_DTYPES = {"BOOL": "uint8", "FP32": "float32", "FP64": "float64"}
NUMPY_DTYPES |= {name: name.lower() for name in ("INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64")}


# A trace has hundreds of thousands of tensors and calls, and a dataclass takes four times as long to make.
class Tensor(NamedTuple):
    """One tensor of one message, without its data.

    Attributes
    ----------
    side : {"input", "backend input", "output"}
        What the model was sent, what its backend got (after batching), or what it answered.
    name : str
        The model's own name for it.
    dtype : str
        Such as "INT32".
    dims : tuple of int
        Its shape; empty for a scalar.
    nbytes : int
        Bytes of its data; for dtype BYTES those of the text alone, without the four bytes of length for each element.
    iteration : int
        1 for the first tensor of this name at this side of the call, 2 for the one in the second response, ….
    path : str
        The file that has its data, from `offset` on, in a record of `length` bytes.
    """

    side: Side
    name: str
    dtype: str
    dims: tuple[int, ...]
    nbytes: int
    iteration: int
    path: str
    offset: int
    length: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.dims)


class Kind(NamedTuple):
    """What all tensors with the same words around their data have in common.

    Attributes
    ----------
    place : tuple of str
        Side and name, as for `Tensor`.
    dtype, dims, elements
        As for `Tensor`.
    nbytes : int
        As for `Tensor`; 0 for BYTES, where only the data tells it.
    around : int
        Bytes of such a record without its data and its id.
    """

    place: tuple[Side, str]
    dtype: str
    dims: tuple[int, ...]
    elements: int
    nbytes: int
    around: int


class Tensors(Sequence[Tensor]):
    """The tensors of one call. Columns are kept, and a `Tensor` is made where it is asked for: a trace has millions.

    Attributes
    ----------
    kinds : list of Kind
    nbytes, offsets, lengths : list of int
        As for `Tensor`.
    path : str
        The file they are in.
    """

    __slots__ = ("_made", "kinds", "lengths", "nbytes", "offsets", "path")

    def __init__(self, path: str):
        self.path = path
        self.kinds: list[Kind] = []
        self.nbytes: list[int] = []
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self._made: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, Tensors) else other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> tuple[Tensor, ...]:
        if len(self._made) != len(self.kinds):
            counts: Counter[tuple[Side, str]] = Counter()
            made = []
            for kind, *place in zip(self.kinds, self.nbytes, self.offsets, self.lengths, strict=True):
                counts[kind.place] += 1
                nbytes, offset, length = place
                where = nbytes, counts[kind.place], self.path, offset, length
                made.append(Tensor(*kind.place, kind.dtype, kind.dims, *where))
            self._made = tuple(made)
        return self._made


class Call(NamedTuple):
    """One request to one model: all records of one trace id.

    Attributes
    ----------
    run : int
        1 for the first server; one more where ids start again because the server did, or the files are another's.
    id : int
        The trace id; with `run` it names the call.
    parent : int or None
        Id of the call it was made for; None for a client's own.
    request_id : str
        The id that the client gave; often empty.
    model : str
        Empty where the trace does not say: with level TENSORS alone, or where its beginning is lost.
    version : int
    stamps : bytes
        Its timestamps as the file has them; `times` reads them.
    tensors : Tensors
        In the order of the file: outputs of a decoupled call lie there message by message.
    path, offset
        Where the call begins.
    """

    run: int
    id: int
    parent: int | None
    request_id: str
    model: str
    version: int
    stamps: bytes
    tensors: Tensors
    path: str
    offset: int

    @property
    def times(self) -> tuple[tuple[str, int], ...]:
        """Name and nanoseconds of each timestamp, in the order of the file.

        Which clock is the server's secret: only differences mean something.
        """
        return _times(self.stamps)

    def time(self, name: str) -> int | None:
        """Nanoseconds of the first timestamp of that name; None if there is none."""
        return next((ns for known, ns in self.times if known == name), None)

    def spans(self, start: str, end: str) -> list[tuple[int, int]]:
        """Nanoseconds from each timestamp `start` to the `end` that belongs to it; several if it was rescheduled."""
        begins = [ns for known, ns in self.times if known == start]
        return list(zip(begins, (ns for known, ns in self.times if known == end), strict=False))

    @property
    def start_ns(self) -> int | None:
        """When it arrived at the model: REQUEST_START, or the earliest time there is."""
        begin = self.time("REQUEST_START")
        return begin if begin is not None else min((ns for _, ns in self.times), default=None)

    @property
    def end_ns(self) -> int | None:
        """REQUEST_END, or the latest time there is."""
        end = self.time("REQUEST_END")
        return end if end is not None else max((ns for _, ns in self.times), default=None)

    @property
    def has_end(self) -> bool:
        """Whether there is a REQUEST_END to its REQUEST_START."""
        return (self.time("REQUEST_START") is None) == (self.time("REQUEST_END") is None)

    @property
    def queue_ns(self) -> int | None:
        """Nanoseconds in the queue. None for an ensemble: it has no queue of its own."""
        return _total(self.spans("QUEUE_START", "COMPUTE_START"))

    @property
    def compute_ns(self) -> int | None:
        """Nanoseconds in the backend, copies of inputs and outputs included."""
        return _total(self.spans("COMPUTE_START", "COMPUTE_END"))

    @property
    def messages(self) -> int:
        """How many responses with tensors it sent; 0 where level TENSORS was off."""
        sent = Counter(kind.place for kind in self.tensors.kinds if kind.place[0] == "output")
        return max(sent.values(), default=0)


@lru_cache(maxsize=64)  # read when asked for: that takes a quarter of the time that all the rest of a call takes
def _times(stamps: bytes) -> tuple[tuple[str, int], ...]:
    return tuple((name, int(ns)) for name, ns in STAMP.findall(stamps.decode(errors="replace")))


def _total(spans: list[tuple[int, int]]) -> int | None:
    return sum(end - start for start, end in spans) if spans else None


@dataclass(frozen=True)
class Request:
    """A client's request: the call that it made, and all calls that followed from it.

    Attributes
    ----------
    calls : tuple of Call
        In the order of their ids, which is the order in which they were made.
    """

    calls: tuple[Call, ...]

    @property
    def root(self) -> Call | None:
        """The client's own call; None if the file does not hold it."""
        return next((call for call in self.calls if call.parent is None), None)

    @property
    def id(self) -> int:
        """Trace id of the client's own call."""
        return self.root.id if self.root else min(call.parent for call in self.calls)

    @property
    def whole(self) -> bool:
        """Whether the trace tells the beginning and the end of all of its calls, where it has times at all."""
        return self.root is not None and all(call.model and call.has_end for call in self.calls)

    @property
    def run(self) -> int:
        """As for `Call`."""
        return self.calls[0].run

    @property
    def request_id(self) -> str:
        """The id that the client gave; often empty."""
        return self.calls[0].request_id

    @property
    def label(self) -> str:
        """Trace id of the client's call, its server run if that is not the first, and the client's own id."""
        run = f"run {self.run}, " if self.run > 1 else ""
        return f"{run}{self.id}" + (f" ({self.request_id})" if self.request_id else "")


def read(paths: str | Path | Iterable[str | Path], problems: list[Problem] | None = None) -> Iterator[Call]:
    """Read trace files call by call, in the order of the file; memory holds one call at a time.

    Parameters
    ----------
    paths : str, Path or iterable of these
        One file or several, such as the numbered ones of ``log-frequency``; see `files`.
    problems : list of Problem, optional
        What could not be read is added here. Nothing that a file holds raises an error.

    Yields
    ------
    Call
        Calls that were made for another call usually come before it, the last one first.
    """
    problems = [] if problems is None else problems
    run, stem, seen = 0, None, set()
    for path in files(paths):
        if _stem(path) != stem:
            run, stem, seen = run + 1, _stem(path), set()
        for found in _calls(path, problems):
            if found.id in seen and not found.model:
                problems.append(Problem(path, found.offset, _GOES_ON.format(found.id)))
            elif found.id in seen:
                run, seen = run + 1, set()
            seen.add(found.id)
            yield found.call(run)


_GOES_ON = (
    "call {} goes on after another one began: either text that looks like records lies between them, or the file is"
    " broken here; the calls between, and this part without a model name, are not to be trusted"
)


def server_flags(path: str | Path, *, tensors: bool = True, log_frequency: int = 1) -> list[str]:
    """Flags of tritonserver that make it trace every request.

    Parameters
    ----------
    path : str or Path
        The trace file. `read` takes it for its numbered files too.
    tensors : bool
        Whether to write shapes and values too, and not just times.
    log_frequency : int
        Requests after which a numbered file is written (``path.0``, ``path.1``, ...); 0 for one file that is whole when
        the server has stopped.

    Returns
    -------
    list of str
    """
    # TENSORS alone would leave out which model a call belongs to.
    levels = ["level=TIMESTAMPS", "level=TENSORS"] if tensors else ["level=TIMESTAMPS"]
    frequency = [f"triton,log-frequency={log_frequency}"] if log_frequency else []
    return [f"--trace-config={setting}" for setting in (*levels, "rate=1", f"triton,file={path}", *frequency)]


def files(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """Trace files in the order in which Triton wrote them.

    Parameters
    ----------
    paths : str, Path or iterable of these
        A name that does not exist stands for its numbered files: ``trace.json`` for ``trace.json.0`` and so on.

    Returns
    -------
    list of str
        Numbered files of one name by their number, not by the alphabet.
    """
    names = [str(path) for path in arguments.paths("paths", paths)]
    found = [numbered for name in names for numbered in (_numbered(name) if not Path(name).exists() else [name])]
    return sorted(dict.fromkeys(found), key=lambda name: (_place(names, name), _stem(name), _number(name)))


def _place(names: list[str], name: str) -> int:
    """Place of the first given name with the same stem: files of one server stay together, in the order given."""
    return min((place for place, given in enumerate(names) if _stem(given) == _stem(name)), default=len(names))


def _numbered(name: str) -> list[str]:
    found = [path for path in glob.glob(glob.escape(name) + ".*") if _stem(path) == name]
    return found or [name]


def _stem(path: str) -> str:
    return re.sub(r"\.\d+\Z", "", path)


def _number(path: str) -> int:
    found = re.search(r"\.(\d+)\Z", path)
    return int(found[1]) if found else -1


def raw(tensor: Tensor) -> bytes:
    r"""The data of a tensor as the file has it: numbers with commas, text between ``\"``.

    Raises
    ------
    ValueError
        The file changed since it was read.
    OSError
        The file cannot be read any more.
    """
    return raw_data(tensor.path, tensor.offset, tensor.length)


def values(tensor: Tensor) -> np.ndarray:
    """The values of a tensor, read from its file.

    Returns
    -------
    numpy.ndarray
        Of the tensor's dims and dtype; dtype object, holding bytes, for BYTES. FP32 and FP64 have the six digits that
        Triton writes.

    Raises
    ------
    ValueError
        Triton does not write values of this dtype, the elements cannot be told apart, or the file changed.
    OSError
        The file cannot be read any more.
    """
    if tensor.dtype in NOT_WRITTEN:
        raise ValueError(f"{tensor.name} is {tensor.dtype}: Triton writes no values of this dtype, only the shape")
    data = raw(tensor)
    if tensor.dtype == "BYTES":
        return _texts(data, tensor)
    if tensor.dtype in ("INT8", "UINT8"):
        return np.frombuffer(data[::2], dtype=tensor.dtype.lower()).reshape(tensor.dims)
    if tensor.dtype not in NUMPY_DTYPES:
        raise ValueError(f"{tensor.name} has dtype {tensor.dtype!r}, which is none of Triton's")
    numbers = np.array(data.split(b",") if data else [], dtype=NUMPY_DTYPES[tensor.dtype])
    return numbers.astype(bool if tensor.dtype == "BOOL" else numbers.dtype).reshape(tensor.dims)


def _texts(data: bytes, tensor: Tensor) -> np.ndarray:
    count = tensor.elements
    texts = data[2:-2].split(b'\\",\\"') if count > 1 else [data[2:-2]] if count else []
    if len(texts) != count:
        raise ValueError(
            f"{tensor.name} has {count} elements, and one of them holds the marks that Triton puts between elements:"
            " they cannot be told apart; `raw` gives them as they are"
        )
    array = np.empty(count, dtype=object)
    array[:] = texts
    return array.reshape(tensor.dims)


# In a Row. Each runs a million times for 100 MB, so what is done to all rows is done by `map` and `filter`.
_WHOLE, _IDENTITY, _TIMES, _BEFORE, _AFTER, _MODEL = map(itemgetter, range(6))


class _Found:
    """A call while its records come in."""

    def __init__(self, identity: int, path: str, offset: int):
        self.id, self.path, self.offset = identity, path, offset
        self.model, self.version, self.request_id, self.parent = "", -1, "", None
        self.stamps: list[bytes] = []
        self.tensors = Tensors(path)

    def take_plain(self, rows: Sequence[Row], offsets: Iterable[int]) -> None:
        """Take plain records in, each with where it is in the file."""
        self.stamps += filter(None, map(_TIMES, rows))
        for row in filter(_MODEL, rows):
            self.model, self.version, self.request_id = to_text(row[5]), int(row[6]), to_text(row[7])
            self.parent = int(row[8]) if row[8] else None
        if found := list(filter(_BEFORE, rows)):
            self._tensors(found, compress(offsets, map(_BEFORE, rows)))

    def _tensors(self, rows: Sequence[Row], offsets: Iterable[int]) -> None:
        kinds, lengths = list(map(_kind, map(_BEFORE, rows), map(_AFTER, rows))), list(map(len, map(_WHOLE, rows)))
        self.tensors.kinds += kinds
        self.tensors.offsets += offsets
        self.tensors.lengths += lengths
        self.tensors.nbytes += [
            kind.nbytes if kind.dtype != "BYTES" else _text_bytes(kind, row, length)
            for kind, row, length in zip(kinds, rows, lengths, strict=True)
        ]

    def take_single(self, record: Single) -> None:
        """Take a record in that was taken apart singly."""
        self.stamps += filter(None, [record.times])
        if record.header:
            self.model, self.version = record.header.get("model_name", ""), record.header.get("model_version", -1)
            self.request_id, self.parent = record.header.get("request_id", ""), record.header.get("parent_id")
        if record.tensor:
            activity, name, dtype, dims, nbytes = record.tensor
            self.tensors.kinds.append(Kind((SIDES.get(activity, "output"), name), dtype, dims, prod(dims), nbytes, 0))
            self.tensors.nbytes.append(nbytes)
            self.tensors.offsets.append(record.offset)
            self.tensors.lengths.append(record.length)

    def call(self, run: int) -> Call:
        return Call(
            run, self.id, self.parent, self.request_id, self.model, self.version,
            b",".join(self.stamps), self.tensors, self.path, self.offset,
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _kind(before: bytes, after: bytes) -> Kind:
    """What the words before and after the data of a plain tensor mean."""
    activity, name = before.split(b'","tensor":{"name":"', 1)
    shape, dtype = after.split(b'","dtype":"')
    words, dims, count, nbytes = parse_kind(dtype, shape)
    around = WITHOUT_DATA + len(activity) + len(name) + len(shape) + len(dtype)
    return Kind((SIDES.get(activity, "output"), to_text(name)), words, dims, count, nbytes, around)


def _text_bytes(kind: Kind, row: Row, length: int) -> int:
    return text_bytes(kind.elements, length - kind.around - len(row[1]) - row[0].endswith(b","))


def _calls(path: str, problems: list[Problem]) -> Iterator[_Found]:
    current = None
    for identity, offsets, is_head, part in _parts(pieces(path, problems)):
        if current is None or identity != current.id or (is_head and current.model):
            if current:
                yield current
            current = _Found(identity, path, offsets[0])
        if isinstance(part, Single):
            current.take_single(part)
        else:
            current.take_plain(part, offsets)
    if current:
        yield current


def _parts(found: Iterable[Plain | Single]) -> Iterator[tuple[int, list[int], bool, Single | list[Row]]]:
    """Id, offsets and records, one id at a time, and whether the first is the header that comes but once."""
    for piece in found:
        if isinstance(piece, Single):
            yield piece.id, [piece.offset], bool(piece.header) and not (piece.times or piece.tensor), piece
            continue
        offset = piece.offset
        for identity, group in groupby(piece.rows, _IDENTITY):
            rows = list(group)
            offsets = list(accumulate(map(len, map(_WHOLE, rows)), initial=offset))
            yield int(identity), offsets, bool(_MODEL(rows[0])), rows
            offset = offsets[-1]


def requests(calls: Iterable[Call]) -> Iterator[Request]:
    """Put calls together that one client request led to.

    Parameters
    ----------
    calls : iterable of Call
        From `read`. Triton writes the calls of a request next to each other, in any order.

    Yields
    ------
    Request
        Each as soon as it is whole and `PENDING` more have begun. Those whose own call is missing come last.
    """
    pending = _Pending(0)
    for call in calls:
        if call.run != pending.run:
            yield from pending.rest()
            pending = _Pending(call.run)
        pending.put(call)
        yield from pending.oldest()
    yield from pending.rest()


def wait_for(paths: str | Path | Iterable[str | Path], request_id: str, seconds: float = 10.0) -> Request:
    """The newest request with this client's id. A server writes it some milliseconds after its last response.

    Parameters
    ----------
    paths : str, Path or iterable of these
        As for `read`, of a server that runs with `server_flags`.
    request_id : str
        The id that the client gave.
    seconds : float
        How long to wait for it.

    Raises
    ------
    ValueError
        It did not come.
    """
    deadline = time.monotonic() + seconds
    while True:
        problems: list[Problem] = []
        found = [each for each in requests(read(paths, problems)) if each.root and each.request_id == request_id]
        if found and not problems:
            return found[-1]
        if time.monotonic() > deadline:
            where = "; ".join(map(str, problems)) or f"{paths} holds other requests only"
            raise ValueError(f"no trace of a request with id {request_id!r} within {seconds:g} s ({where})")
        time.sleep(POLL_SECONDS)


class _Pending:
    """Client requests of which a call may still come. A request is a list of calls until it is whole."""

    def __init__(self, run: int):
        self.run = run
        self._by_id: dict[int, list[Call]] = {}
        self._waiting: deque[list[Call]] = deque()
        self._late: list[list[Call]] = []

    def put(self, call: Call) -> None:
        names = [call.id] if call.parent is None else [call.id, call.parent]
        known = {id(group): group for name in names if (group := self._by_id.get(name)) is not None}
        group, *others = known.values() if known else [self._new()]
        for other in others:  # the call connects them
            self._by_id.update(dict.fromkeys(_names(other), group))
            group += other
            other.clear()
        group.append(call)
        self._by_id.update(dict.fromkeys(names, group))

    def _new(self) -> list[Call]:
        self._waiting.append([])
        return self._waiting[-1]

    def oldest(self) -> Iterator[Request]:
        """The request that has waited longest, if many wait and it is whole."""
        if len(self._waiting) <= PENDING:
            return
        group = self._waiting.popleft()
        if not _is_whole(group):
            self._late.append(group)
        elif group:
            for name in _names(group):
                del self._by_id[name]
            yield _request(group)

    def rest(self) -> Iterator[Request]:
        """All that are left; those without a call of the client last."""
        groups = [group for group in (*self._waiting, *self._late) if group]
        yield from map(_request, sorted(groups, key=lambda group: not _is_whole(group)))


def _names(group: list[Call]) -> set[int]:
    return {call.id for call in group} | {call.parent for call in group if call.parent is not None}


def _is_whole(group: list[Call]) -> bool:
    ids = {call.id for call in group}
    return all(call.parent is None or call.parent in ids for call in group)


def _request(group: list[Call]) -> Request:
    return Request(tuple(sorted(group, key=lambda call: call.id)))
