"""What flowed between the nodes of one client request: messages, producers with their consumers, tracks for the judge.

A node is a model that was called by the same caller; its messages are counted over all of these calls. An ensemble
calls its composing models, and a model with business logic others: what these answer is an input of the caller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path

from lab_utils.trace import Call, Request, Side, Tensor, Tensors, raw
from lab_utils.trace_records import NOT_WRITTEN
from lab_utils.verdict import FEWEST_MESSAGES, INTEGERS, VALUE, Track, most_alike

COMPARED_BYTES = 16 << 20  # of data in the file; larger messages are not read again to compare them
COMPARED_MESSAGES = 4

Place = tuple[str, str]  # model and its own tensor name, as in `attribution`
Part = tuple[Sequence[Tensors], Sequence[int]]  # of each of these calls, which all have the same kinds, those indices
Row = dict[tuple[Side, str], Part]  # what one node received and sent in one request
_CALLED = attrgetter("parent", "model")
_KINDS = attrgetter("kinds")


class Messages(Sequence[Tensor]):
    """The messages of a line; a `Tensor` is made only where it is asked for, as most lines are only counted.

    Attributes
    ----------
    parts : sequence of Part
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(calls) * len(indices) for calls, indices in self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        return (call[index] for calls, indices in self.parts for call in calls for index in indices)

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        return list(self)[index]

    @property
    def first(self) -> Part:
        """The first message alone."""
        calls, indices = self.parts[0]
        return calls[:1], indices[:1]

    @property
    def are_text(self) -> bool:
        """Whether any of them has dtype BYTES."""
        return any("BYTES" in [calls[0].kinds[index].dtype for index in indices] for calls, indices in self.parts)

    @property
    def nbytes(self) -> tuple[int, ...]:
        """Bytes of each."""
        return tuple([call.nbytes[index] for calls, indices in self.parts for call in calls for index in indices])

    @property
    def elements(self) -> tuple[int, ...]:
        """Elements of each."""
        found: list[int] = []
        for calls, indices in self.parts:
            found += [calls[0].kinds[index].elements for index in indices] * len(calls)
        return tuple(found)


@dataclass(frozen=True)
class Line:
    """The messages of one tensor at one side of one node, in one client request.

    Attributes
    ----------
    node : str
        Name of the model.
    side : {"input", "output"}
    tensor : str
        The model's own name for it; "MODEL.TENSOR" for what a model that the node called answered.
    messages : Messages
        Each a Tensor; in the order of the calls, and inside a call in the order of the responses.
    returned : bool
        Whether a model that the node called answered it.
    """

    node: str
    side: Side
    tensor: str
    messages: Messages
    returned: bool = False

    @cached_property
    def unit(self) -> str:
        """What `sizes` counts."""
        return "bytes" if self.messages.are_text else "elements"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each message, or bytes where it is text."""
        return self.messages.nbytes if self.unit == "bytes" else self.messages.elements


@dataclass(frozen=True)
class Pair:
    """A tensor on its way from a producer to a consumer, iteration by iteration.

    Attributes
    ----------
    producer, output : str
        Model and its own tensor name. The caller itself is the producer of what it was sent.
    consumer, input : str
        Model and its own tensor name. The caller itself is the consumer of what it answers.
    sent, received : tuple of Tensor
        Item i is iteration i + 1.
    by : str
        How they were found to belong together.
    """

    producer: str
    output: str
    consumer: str
    input: str
    sent: tuple[Tensor, ...]
    received: tuple[Tensor, ...]
    by: str


@dataclass(frozen=True)
class Hop:
    """One tensor of one message, with the call it belongs to; plain values, for tables and JSON."""

    request: str
    call: int
    parent: int | None
    request_id: str
    model: str
    version: int
    side: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    iteration: int
    start_ns: int | None
    queue_ns: int | None
    compute_ns: int | None


def hops(request: Request) -> Iterator[Hop]:
    """All hops of a client request, in the order of the calls, and inside a call in the order of the file.

    `Hop.iteration` counts the messages of a node over its calls: the third call of a consumer is iteration 3.
    """
    counts: dict[tuple, int] = defaultdict(int)
    for call in request.calls:
        for tensor in call.tensors:
            key = call.parent, call.model, tensor.side, tensor.name
            counts[key] += 1
            yield Hop(
                request.label, call.id, call.parent, call.request_id, call.model, call.version,
                tensor.side, tensor.name, tensor.dtype, tensor.dims, tensor.nbytes, counts[key],
                call.start_ns, call.queue_ns, call.compute_ns,
            )  # fmt: skip


def lines(request: Request) -> list[Line]:
    """All lines of messages of a client request.

    Parameters
    ----------
    request : Request
        From `lab_utils.trace.requests`.

    Returns
    -------
    list of Line
        Those of one node stand together. Calls of which the trace does not tell the model are left out.
    """
    found: dict[tuple, list[Part]] = defaultdict(list)
    by_id = {call.id: call for call in request.calls}
    for (parent, model), calls in groupby(request.calls, _CALLED):
        for _, alike in groupby([call.tensors for call in calls if model], _KINDS):
            _add_parts(found, parent, model, by_id.get(parent), list(alike))
    return [
        Line(node, side, name, Messages(parts), returned) for (_, node, (side, name), returned), parts in found.items()
    ]


def _add_parts(
    found: dict[tuple, list[Part]], parent: int | None, model: str, caller: Call | None, alike: list[Tensors]
) -> None:
    places: dict[tuple[Side, str], list[int]] = defaultdict(list)
    for index, kind in enumerate(alike[0].kinds):
        places[kind.place].append(index)
    for (side, name), indices in places.items():
        if side == "backend input":
            continue
        found[parent, model, (side, name), False].append((alike, indices))
        if caller and caller.model and side == "output":
            found[caller.parent, caller.model, ("input", f"{model}.{name}"), True].append((alike, indices))


def tracks(requests: Iterable[Request]) -> Iterator[Track]:
    """Tracks for `lab_utils.verdict.judge`: of every request, and over all requests of nodes that answer once in each.

    Parameters
    ----------
    requests : iterable of Request
        From `lab_utils.trace.requests`; read once, and not kept.

    Yields
    ------
    Track
        Requests in which nothing has a second message count only over all requests.
    """
    singles = _Singles()
    for request in requests:
        found = lines(request)
        singles.add(request, found)
        if any(len(line.messages) > 1 for line in found):
            label = request.label
            yield from (_track(label, line) for line in found)
    yield from singles.tracks()


class _Singles:
    """Nodes that are called once and answer at most once in each request."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[tuple, Row]]] = defaultdict(list)
        self._often: set[str] = set()

    def add(self, request: Request, found: Sequence[Line]) -> None:
        order = (request.run, request.calls[0].start_ns or 0, request.id)
        rows: dict[str, Row] = defaultdict(dict)
        for line in found:
            rows[line.node][line.side, line.tensor] = line.messages.first
            if len(line.messages) > 1:
                self._often.add(line.node)
                self._found.pop(line.node, None)
        for node, row in rows.items():
            if node not in self._often:
                self._found[node].append((order, row))

    def tracks(self) -> Iterator[Track]:
        for node, found in self._found.items():
            rows = most_alike([row for _, row in sorted(found, key=itemgetter(0))])
            if len(rows) > 1:
                yield from _over_requests(node, rows)


def _over_requests(node: str, rows: Sequence[Row]) -> Iterator[Track]:
    """A track of each tensor, and of the values of single numbers where an output grows: a limit may explain it."""
    found = [Line(node, side, name, Messages([row[side, name] for row in rows])) for side, name in rows[0]]
    yield from (_track("", line) for line in found)
    if any(line.side == "output" and _grows_long_enough(line.sizes) for line in found):
        yield from (_value_track(line) for line in found if line.side == "input" and _is_number(line))


def _is_number(line: Line) -> bool:
    return all(one.dtype in INTEGERS and one.elements == 1 for one in line.messages)


def _value_track(line: Line) -> Track:
    return Track("", line.node, "input", line.tensor, tuple(int(raw(one)) for one in line.messages), unit=VALUE)


def _track(request: str, line: Line) -> Track:
    sizes = line.sizes
    held = _held(line, sizes) if _grows_long_enough(sizes) else ()
    return Track(
        request, line.node, "output" if line.side == "output" else "input", line.tensor, sizes, held, line.unit
    )


def _grows_long_enough(sizes: Sequence[int]) -> bool:
    """Whether any values need to be compared: a node is judged by at least four messages that grow."""
    if len(set(sizes)) < FEWEST_MESSAGES:  # most lines: all of one size
        return False
    run = 1
    for before, size in pairwise(sizes):
        run = run + 1 if size > before else 1
        if run >= FEWEST_MESSAGES:
            return True
    return False


def _held(line: Line, sizes: Sequence[int]) -> tuple[bool, ...]:
    """For each message after the first, whether it holds the one before it; empty if that cannot be known."""
    if any(tensor.dtype in NOT_WRITTEN or tensor.length > COMPARED_BYTES for tensor in line.messages):
        return ()
    data = map(_values, line.messages)
    longer = [after > before for before, after in pairwise(sizes)]
    found = zip(longer, pairwise(data), strict=True)
    dtype = line.messages[0].dtype
    return tuple(grows and _holds(after, before, dtype) for grows, (before, after) in found)


def _values(tensor: Tensor) -> bytes:
    """The data in a form in which one message can be looked for in another."""
    data = raw(tensor)
    return data[2:-2] if tensor.dtype == "BYTES" else b",%s," % data if data else b""


def _holds(data: bytes, before: bytes, dtype: str) -> bool:
    """Whether a message holds another whole one, and not just because both repeat a single value."""
    if not before or before not in data:
        return False
    first = data[:1] if dtype == "BYTES" else data[1 : data.index(b",", 1) + 1]
    return bool(data.replace(first, b"").strip(b","))


Wires = dict[Place, Place]
"""From consumer to producer."""


def pairs(request: Request, repository: str | Path | None = None, known: dict[str, Wires] | None = None) -> list[Pair]:
    """Put the producers and consumers of a client request together, iteration by iteration.

    Parameters
    ----------
    request : Request
        From `lab_utils.trace.requests`.
    repository : str or Path, optional
        Model repository: its ensemble configs then tell what belongs together. Without it, equal values and equal names
        do: two tensors with the same values cannot be told apart then.
    known : dict, optional
        What was found for callers of earlier requests, by model. It is used, and what is found is added, so that only
        the first request of each caller is compared value by value.

    Returns
    -------
    list of Pair
        In the order of the consumers' calls; an input whose producer is not in the trace is left out.

    Raises
    ------
    ValueError
        A config of the repository cannot be read.
    """
    known = {} if known is None else known
    children: dict[int, list[Call]] = defaultdict(list)
    for call in request.calls:
        if call.parent is not None:
            children[call.parent].append(call)
    found = []
    for caller in request.calls:
        if not caller.model or caller.id not in children:
            continue
        if repository and caller.model not in known:
            from lab_utils.attribution import wiring  # only here: configs take longer to import than a trace to read
            from lab_utils.contract import read_config

            known[caller.model] = wiring(read_config(caller.model, repository), caller.model)
        new = _pairs_of(caller, children[caller.id], known.get(caller.model, {}))
        known.setdefault(caller.model, {}).update({(p.consumer, p.input): (p.producer, p.output) for p in new})
        found += new
    return found


@dataclass(frozen=True)
class _End:
    """A tensor of a node where a pair begins or ends."""

    place: Place
    first: int  # id of the first call
    messages: tuple[Tensor, ...]


def _pairs_of(caller: Call, children: Sequence[Call], wires: Wires) -> list[Pair]:
    sources = [*_ends([caller], "input"), *_ends(children, "output")]
    sinks = [*_ends(children, "input"), *_ends([caller], "output", after=children[-1].id)]
    found = []
    for sink in sinks:
        before = [source for source in sources if source.first < sink.first]
        match = _wired(before, wires[sink.place]) if sink.place in wires else _best(before, sink)
        if match:
            source, by = match
            found.append(Pair(*source.place, *sink.place, source.messages, sink.messages, by))
    return found


def _ends(calls: Iterable[Call], side: Side, after: int | None = None) -> list[_End]:
    messages: dict[Place, list[Tensor]] = defaultdict(list)
    first: dict[Place, int] = {}
    for call in calls:
        for tensor in call.tensors:
            if call.model and tensor.side == side:
                messages[call.model, tensor.name].append(tensor)
                first.setdefault((call.model, tensor.name), call.id if after is None else after + 1)
    return [_End(place, first[place], tuple(found)) for place, found in messages.items()]


def _wired(sources: Iterable[_End], place: Place) -> tuple[_End, str] | None:
    return next(((source, "wiring") for source in sources if source.place == place), None)


def _best(sources: Sequence[_End], sink: _End) -> tuple[_End, str] | None:
    """The source with the same values, and of several the one with the same name; or the same name alone."""
    alike = [source for source in sources if _alike(source, sink)]
    named = [source for source in alike if source.place[1] == sink.place[1]]
    if named:
        return named[-1], "name and values"
    if alike:
        others = "" if len(alike) == 1 else f" (the same in {len(alike) - 1} more)"
        return alike[-1], f"values{others}"
    named = [source for source in sources if source.place[1] == sink.place[1]]
    return (named[-1], "name") if named else None


def _alike(source: _End, sink: _End) -> bool:
    compared = list(zip(source.messages, sink.messages, strict=False))[:COMPARED_MESSAGES]
    return len(source.messages) == len(sink.messages) and all(_same(sent, received) for sent, received in compared)


def _same(sent: Tensor, received: Tensor) -> bool:
    if (sent.dtype, sent.nbytes) != (received.dtype, received.nbytes) or sent.dtype in NOT_WRITTEN:
        return False
    return sent.length <= COMPARED_BYTES and raw(sent) == raw(received)
