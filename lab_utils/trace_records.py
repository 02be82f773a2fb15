"""The records of one Triton trace file, read piece by piece: the layer below `lab_utils.trace`.

Triton writes an array of JSON objects, but it escapes nothing: a request id with a quote, or text with quotes, line
breaks, backslashes or bytes that are not UTF-8 make the file invalid JSON, and a parser that undoes escapes changes
text that Triton never escaped. So records are taken apart as Triton puts them together, on the bytes of the file, with
one expression for all that hold nothing unusual. What it refuses is looked at singly: text of users, where the end of
a record is the first place at which shape, dtype and length of the data agree, and at last any layout that is JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

WINDOW = 1 << 18
OVERLAP = 512  # longer than the end of any tensor record

ITEM_SIZES = dict.fromkeys(("BOOL", "INT8", "UINT8"), 1) | dict.fromkeys(("INT16", "UINT16", "FP16", "BF16"), 2)
ITEM_SIZES |= dict.fromkeys(("INT32", "UINT32", "FP32"), 4) | dict.fromkeys(("INT64", "UINT64", "FP64"), 8)
NOT_WRITTEN = ("FP16", "BF16")
ONE_CHARACTER = ("BOOL", "INT8", "UINT8")  # Triton writes an (U)INT8 as the character with that code

# A plain record and its groups: the whole of it, its id, and what it has of the rest.
_PLAIN = re.compile(
    rb'(\{"id":(\d+),"(?:'
    rb'timestamps":\[\{("name":"[^"]*","ns":\d+(?:\}\]\},\{"id":\2,"timestamps":\[\{"name":"[^"]*","ns":\d+)*)\}\]'
    rb'|activity":"([A-Z_]+","tensor":\{"name":"[^"]*)",'
    rb'"data":"(?:[^"]*|\\"[^"\\]*\\"(?:,\\"[^"\\]*\\")*)","shape":"([\d,]*","dtype":"[A-Z0-9]+)"\}'
    rb'|model_name":"([^"]*)","model_version":(-?\d+)(?:,"request_id":"([^"]*)")?(?:,"parent_id":(\d+))?'
    rb'(?=\},\{"id":\2,"timestamps")'  # what follows a header, unless a request id only looks like its end
    rb")\},?)"
)
STAMP = re.compile(r'"name":"([^"]*)","ns":([0-9]+)')
Row = tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes]
"""Whole, id, times, tensor before and after its data, model, version, request id, parent: empty where it has none.

Times of one call that follow each other are one row: `STAMP` finds them in it.
"""

WITHOUT_DATA = len(b'{"id":,"activity":"","tensor":{"name":"","data":"","shape":"","dtype":""}}')

_KEY = rb'\{\s*"(?:id|model_name|model_version|timestamps|activity)"\s*:'
_NEXT = re.compile(rb"\}\s*,\s*(?=%s)" % _KEY)
_NEXT_ANY = re.compile(rb",\s*(?=%s)" % _KEY)
_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[\s*)?(?=\]|%s|\Z)" % _KEY)
_CUT = b'},{"id":'
_GAP = re.compile(rb"[\s,]*")
_ARRAY_END = re.compile(rb"[\s,]*\](?:\s*\[)?\s*")
_FOLLOWS = re.compile(rb'\s*(?:,\s*(?=\{"id":\d+,"(?:model_name|timestamps|activity)")|(?=\]\s*(?:\Z|\[))|(\Z))')
_HEADER = re.compile(
    rb'\{"id":(\d+),"model_name":"([^"]*)","model_version":(-?\d+)'
    rb'(?:,"request_id":"(.*?)")?(?:,"parent_id":(\d+))?\}(?=,\{"id":\1,"timestamps")',
    re.DOTALL,
)
_TENSOR = re.compile(rb'\{"id":(\d+),"activity":"([A-Z_]+)","tensor":\{"name":"([^"]*)","data":"')
_TAIL_START = b'","shape":"'
_TAIL = re.compile(rb'","shape":"([\d,]*)","dtype":"([A-Z0-9]+)"\}\}')
# What JSON of another kind runs into: infinity as a time, and a depth that no parser follows, too.
_UNFIT = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Problem:
    """Something in a trace file that could not be read, or not be trusted.

    Attributes
    ----------
    path : str
        The file.
    offset : int
        Bytes before it in the file.
    what : str
        What is wrong there, and what was done about it.
    """

    path: str
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset:,}: {self.what}"


@dataclass(frozen=True)
class Plain:
    """Plain records that follow each other without a gap, from `offset` on."""

    offset: int
    rows: list[Row]


@dataclass(frozen=True)
class Single:
    """A record that was taken apart singly.

    Attributes
    ----------
    id : int
        Trace id.
    offset, length : int
        Where it is in the file.
    header : dict
        What it tells of its call: any of model_name, model_version, request_id, parent_id.
    times : bytes
        In the form in which `STAMP` finds name and nanoseconds.
    tensor : tuple or None
        Activity, name, dtype, dims and bytes.
    """

    id: int
    offset: int
    length: int
    header: dict = field(default_factory=dict)
    times: bytes = b""
    tensor: tuple[bytes, str, str, tuple[int, ...], int] | None = None


@lru_cache(maxsize=4096)
def parse_shape(shape: bytes) -> tuple[tuple[int, ...], int]:
    """Dims and number of elements of a shape as Triton writes it: ``1,8``; empty for a scalar."""
    dims = tuple(int(dim) for dim in shape.split(b",") if dim)
    return dims, prod(dims)


@lru_cache(maxsize=4096)
def to_text(name: bytes) -> str:
    """A name as text; what is not UTF-8 is replaced."""
    return name.decode(errors="replace")


@lru_cache(maxsize=4096)
def parse_kind(dtype: bytes, shape: bytes) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, dims, number of elements, and bytes of the data; these are 0 for BYTES, where `text_bytes` tells them."""
    dims, count = parse_shape(shape)
    return to_text(dtype), dims, count, ITEM_SIZES.get(to_text(dtype), 0) * count


def text_bytes(count: int, length: int) -> int:
    """Bytes of the text in a BYTES tensor of `count` elements whose data takes `length` bytes of the file."""
    return max(0, length - 5 * count + 1) if count else 0  # two escaped quotes each, and commas between them


def pieces(path: str, problems: list[Problem]) -> Iterator[Plain | Single]:
    """Read a trace file from begin to end, never more than a few windows of it at once.

    Parameters
    ----------
    path : str
        The file.
    problems : list of Problem
        What could not be read is added here.

    Yields
    ------
    Plain or Single
        In the order of the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        problems.append(Problem(path, 0, f"cannot be opened: {error.strerror}"))
        return
    try:
        yield from _Reader(path, descriptor, problems).pieces()
    except OSError as error:
        problems.append(Problem(path, 0, f"cannot be read: {error.strerror}"))
    finally:
        os.close(descriptor)


def raw_data(path: str, offset: int, length: int) -> bytes:
    """The data of the tensor record at `offset`, exactly as the file has it.

    Raises
    ------
    ValueError
        There is no tensor record at that place (any more).
    OSError
        The file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)  # a file object takes longer to make than a record to read
    try:
        record = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    head, tail = _TENSOR.match(record), record.rfind(_TAIL_START)
    if head and tail >= head.end():
        return record[head.end() : tail]
    try:  # laid out by something other than Triton
        return json.loads(record.rstrip(b"], \r\n\t"))["tensor"]["data"].replace('"', '\\"').encode()
    except _UNFIT:
        raise ValueError(f"{path} changed: no tensor at byte {offset} any more; read it again") from None


class _Reader:
    """One open trace file."""

    def __init__(self, path: str, descriptor: int, problems: list[Problem]):
        self._path, self._descriptor, self._problems = path, descriptor, problems
        self._size = os.fstat(descriptor).st_size

    def _raw(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def _say(self, offset: int, what: str) -> None:
        self._problems.append(Problem(self._path, offset, what))

    def pieces(self) -> Iterator[Plain | Single]:
        head = self._raw(0, 4096)
        if wrong := _not_a_trace(head):
            self._say(0, wrong)
            return
        position = _BEGIN.match(head).end()
        while position < self._size:
            window = self._raw(position, WINDOW)
            last = position + len(window) >= self._size
            end = position
            for piece, stop in _window(window, position, last):
                yield piece
                end = position + stop
            if end == position:  # nothing that ends in this window
                piece, end = self._one(position, window, last)
                if piece:
                    yield piece
            position = end
        if not self._closed:
            self._say(self._size, "no closing bracket: the server was ended, or is still running")

    _closed = False

    def _one(self, position: int, window: bytes, last: bool) -> tuple[Single | None, int]:
        """The record at `position`, however long, or what else is there; and where the next one begins."""
        if end := _ARRAY_END.match(window):
            self._closed = position + end.end() >= self._size
            return None, self._array_end(position + end.end(), window[end.end() :])
        found = self._long_tensor(position, window) if _TENSOR.match(window) else None
        return (found, found.offset + found.length) if found else (None, self._skip(position))

    def _array_end(self, position: int, rest: bytes) -> int:
        if position >= self._size or _BEGIN.match(rest):
            return position
        self._closed = True
        self._say(position, "text after the closing bracket; passed over")
        return self._size

    def _long_tensor(self, position: int, window: bytes) -> Single | None:
        """A tensor record that does not end in the window."""
        head = _TENSOR.match(window)
        data = at = position + head.end()
        text = window[head.end() :]
        while len(text) > OVERLAP or at + len(text) >= self._size:
            tail, after = _tail(text, 0, at + len(text) >= self._size, self._ends(data, at), head[1])
            if tail:
                return _tensor(head, tail, position, at + tail.start() - data, at + after - position)
            if after:  # cut short
                return None
            if at + len(text) >= self._size:
                return None
            at += len(text) - OVERLAP
            text = self._raw(at, WINDOW)
        return None

    def _ends(self, data: int, at: int) -> Callable[[int], tuple[bytes, bytes, int]]:
        """First and last two bytes, and the length, of data from `data` to `stop` in a text that begins at `at`."""

        def ends(stop: int) -> tuple[bytes, bytes, int]:
            length = at + stop - data
            few = min(2, length)
            return self._raw(data, few), self._raw(at + stop - few, few), length

        return ends

    def _skip(self, position: int) -> int:
        """Where the next record begins after a broken one."""
        at = position + 1
        while at < self._size:
            if found := _NEXT_ANY.search(self._raw(at, WINDOW + OVERLAP)):
                passed = at + found.end() - position
                self._say(position, f"not a whole record of a trace; {passed:,} bytes passed over")
                return at + found.end()
            at += WINDOW
        self._closed = True
        self._say(position, "no whole record from here to the end: the server was ended, or is still running")
        return self._size


def _not_a_trace(head: bytes) -> str:
    """What is wrong with a file that begins like this; empty if nothing is."""
    if not head.strip():
        return "empty: Triton writes a trace when it stops, or after log-frequency requests"
    if head.startswith(b"\x1f\x8b"):
        return "compressed with gzip: unpack it first (gunzip -k)"
    if _BEGIN.match(head):
        return ""
    if b'"resourceSpans"' in head:
        return "an OpenTelemetry export, no trace file of Triton: start the server with --trace-config=mode=triton"
    return 'no trace file of Triton: expected [ and then records such as {"id":1,"timestamps":...'


def _window(window: bytes, position: int, last: bool) -> Iterator[tuple[Plain | Single, int]]:
    """The records that end in a window, and where each piece of them ends in it."""
    begin = _GAP.match(window).end()
    # Without a place to cut, the first record is longer than the window, and the expression would try in vain.
    cut = len(window) if last else window.rfind(_CUT) + 2 if _CUT in window else 0
    rows = _PLAIN.findall(window, begin, cut)
    whole = b"".join([row[0] for row in rows])
    if rows and window.startswith(whole, begin):
        yield Plain(position + begin, rows), begin + len(whole)
    elif cut or _NEXT.search(window):
        yield from _mixed(window, begin, cut or len(window), position, last)


def _mixed(window: bytes, at: int, cut: int, position: int, last: bool) -> Iterator[tuple[Plain | Single, int]]:
    """The same where not all records are plain."""
    start, rows, matches = at, [], _PLAIN.finditer(window, at, cut)
    match = next(matches, None)
    while at < cut:
        while match and match.start() < at:  # inside a text of users
            match = next(matches, None)
        if match and match.start() == at:
            rows.append(match.groups(b""))
            at = match.end()
            continue
        if rows:
            yield Plain(position + start, rows), at
        found = _single(window, at, position, last)
        if not found:
            return
        start, rows = found.offset + found.length - position, []
        at = start
        yield found, at
    if rows:
        yield Plain(position + start, rows), at


def _single(text: bytes, at: int, position: int, last: bool) -> Single | None:
    """The record at a place, if it ends in this text."""
    if head := _TENSOR.match(text, at):
        data = head.end()
        tail, after = _tail(text, data, last, lambda stop: _ends(text[data:stop]), head[1])
        return _tensor(head, tail, position + at, tail.start() - data, after - at) if tail else None
    if found := _HEADER.match(text, at):
        after = _after(text, found.end(), last)
        return after and Single(int(found[1]), position + at, after - at, header=_header(found))
    return _any_layout(text, at, position, last)


def _ends(data: bytes) -> tuple[bytes, bytes, int]:
    return data[:2], data[-2:], len(data)


def _header(found: re.Match) -> dict:
    header = {"model_name": to_text(found[2]), "model_version": int(found[3])}
    if found[4] is not None:
        header["request_id"] = to_text(found[4])
    if found[5] is not None:
        header["parent_id"] = int(found[5])
    return header


def _tensor(head: re.Match, tail: re.Match, offset: int, data_length: int, length: int) -> Single:
    dtype, dims, count, nbytes = parse_kind(tail[2], tail[1])
    nbytes = text_bytes(count, data_length) if dtype == "BYTES" else nbytes
    return Single(int(head[1]), offset, length, tensor=(head[2], to_text(head[3]), dtype, dims, nbytes))


def _after(text: bytes, end: int, last: bool) -> int | None:
    """Where the next record begins if the one before it ends at `end`; None if nothing that fits follows."""
    found = _FOLLOWS.match(text, end)
    return None if not found or (found[1] is not None and not last) else found.end()


def _tail(
    text: bytes, start: int, last: bool, ends: Callable[[int], tuple[bytes, bytes, int]], identity: bytes
) -> tuple[re.Match | None, int]:
    """The end of a tensor record, and where the next one begins; (None, 1) if it was cut short, else (None, 0)."""
    at = start - 1
    while (at := text.find(_TAIL_START, at + 1)) >= 0:
        tail = _TAIL.match(text, at)
        after = _after(text, tail.end(), last) if tail else None
        if after is not None and _plausible(tail[1], to_text(tail[2]), *ends(at)):
            return (None, 1) if _is_cut_short(text, start, at, identity) else (tail, after)
    return None, int(_is_cut_short(text, start, len(text), identity))


def _is_cut_short(text: bytes, start: int, stop: int, identity: bytes) -> bool:
    """Whether the call's next record begins before the data's end: Triton gives up on malformed BYTES."""
    at, following = start, b'{"id":%s,"' % identity
    while (at := text.find(following, at + 1, stop)) >= 0:
        if text[start:at] == b"," or text[at - 4 : at] == b'\\",,':
            return True
    return False


def _plausible(shape: bytes, dtype: str, first: bytes, final: bytes, length: int) -> bool:
    """Whether data with these ends and this length can belong to that shape and dtype."""
    count = parse_shape(shape)[1]
    if not count or dtype in NOT_WRITTEN:
        return length == 0
    if dtype == "BYTES":
        return first == final == b'\\"' and length >= 5 * count - 1
    if dtype in ONE_CHARACTER:
        return length == 2 * count - 1
    return length >= 2 * count - 1 and b'"' not in first + final


def _any_layout(text: bytes, at: int, position: int, last: bool) -> Single | None:
    """A record of valid JSON, however it is laid out: written by an older Triton, or by another program."""
    following = _NEXT.search(text, at)
    if not following and not last:
        return None
    end = following.end() if following else len(text.rstrip().removesuffix(b"]"))
    try:
        return _from_json(json.loads(text[at:end].rstrip(b", \r\n\t")), position + at, end - at)
    except _UNFIT:
        return None


def _from_json(record: dict, offset: int, length: int) -> Single:
    header = {key: record[key] for key in ("model_name", "model_version", "request_id", "parent_id") if key in record}
    times = b",".join(_stamp(time["name"], time["ns"]) for time in record.get("timestamps", ()))
    tensor = _json_tensor(record) if "tensor" in record else None
    if not (header or times or tensor):
        raise ValueError("not a record that Triton writes")
    return Single(int(record["id"]), offset, length, header, times, tensor)


def _stamp(name: str, ns: int) -> bytes:
    return b'"name":"%s","ns":%d' % (name.replace('"', "'").encode(), int(ns))


def _json_tensor(record: dict) -> tuple[bytes, str, str, tuple[int, ...], int]:
    tensor = record["tensor"]
    data = tensor["data"]
    shape = tensor.get("shape", str(data.count(",") + 1 if data else 0))  # Triton wrote none until 2022
    dtype, dims, count, nbytes = parse_kind(tensor["dtype"].encode(), shape.encode())
    nbytes = text_bytes(count, len(data.encode()) + 2 * count) if dtype == "BYTES" else nbytes
    return record["activity"].encode(), tensor["name"], dtype, dims, nbytes
