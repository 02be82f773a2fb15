"""What a watch saw, as numbers and text: dims of one tensor, tracks for the verdict, the summary table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod

from lab_utils.alarm import Sample
from lab_utils.attribution import LENGTH_PREFIX, Message
from lab_utils.tables import table
from lab_utils.trace_records import ITEM_SIZES
from lab_utils.verdict import INTEGERS, Track, most_alike

SHOWN = 10

Port = tuple[str, str]  # side and tensor, at one node in one request


def dims_of(
    messages: Iterable[Message], node: str, tensor: str, side: str | None, request: str | None
) -> list[tuple[int, ...]]:
    """The dims of one tensor at one node, message by message; see `lab_utils.watch.Watch.dims`."""
    found: dict[tuple[str, str], list[tuple[int, ...]]] = defaultdict(list)
    places = set()
    for message in messages:
        places.add(f"{message.node} {message.side} {message.tensor}")
        if (
            (message.node, message.tensor) == (node, tensor)
            and message.number is not None
            and side in (None, message.side)
            and request in (None, message.request)
        ):
            found[message.request, message.side].append(message.dims)
    if len(found) == 1:
        return found.popitem()[1]
    if not found:
        seen = ", ".join(sorted(places)) or "nothing"
        raise ValueError(f"no message of tensor {tensor!r} at {node!r} is known to be one request's; seen: {seen}")
    which = ", ".join(f"request={label!r} side={where!r}" for label, where in list(found)[:SHOWN])
    raise ValueError(f"tensor {tensor!r} of {node!r} was seen {len(found)} times; name one of: {which}")


def tracks_of(messages: Iterable[Message], ensembles: Iterable[str] = ()) -> list[Track]:
    """The sizes of each tensor, message by message, for `lab_utils.verdict.judge`.

    One track for each tensor of each node in each request, and one over all requests (``request`` is empty) for nodes
    that are called once and answer once in every request. Ensembles themselves are no nodes. Left out is what cannot be
    judged: messages of nobody known, tensors whose bytes are not known, outputs of a node with such an input where that
    input could explain them, and over requests nodes with an input of one whole number: it can be a limit, and its
    value is not in the log.

    Parameters
    ----------
    messages : iterable of Message
        In the order of the log.
    ensembles : iterable of str
        Names of the models that are ensembles.
    """
    outer = set(ensembles)
    calls: dict[tuple[str, str], dict[Port, list[Message]]] = defaultdict(lambda: defaultdict(list))
    for message in messages:
        if message.number is not None and message.node not in outer:
            calls[message.request, message.node][message.side, message.tensor].append(message)
    within = [track for (request, _), tensors in calls.items() for track in _tracks(request, tensors)]
    return within + _over_requests(calls)


def _tracks(request: str, tensors: dict[Port, list[Message]]) -> list[Track]:
    sizes = {key: [_size(message) for message in found] for key, found in tensors.items()}
    # One message cannot grow; several of unknown size can.
    doubtful = any(side == "input" and len(known) > 1 and None in known for (side, _), known in sizes.items())
    return [
        Track(request, found[0].node, side, tensor, tuple(sizes[side, tensor]), unit=_unit(found[0]))
        for (side, tensor), found in tensors.items()
        if None not in sizes[side, tensor] and not (doubtful and side == "output")
    ]


def _over_requests(calls: dict[tuple[str, str], dict[Port, list[Message]]]) -> list[Track]:
    """One track with one message for each request, for nodes that are called once and answer once."""
    nodes: dict[str, list[dict[Port, list[Message]]]] = defaultdict(list)
    for (_, node), tensors in calls.items():
        nodes[node].append(tensors)
    found = []
    for rows in nodes.values():
        if all(len(messages) == 1 for tensors in rows for messages in tensors.values()):
            alike = most_alike(rows)
            if len(alike) > 1 and not any(map(_is_limit, alike[0].items())):
                found += _tracks("", {place: [row[place][0] for row in alike] for place in alike[0]})
    return found


def _is_limit(tensor: tuple[Port, list[Message]]) -> bool:
    """Whether an input may be a limit that the client sets: its value, not in the log, can explain growth."""
    (side, _), (message,) = tensor
    return side == "input" and message.dtype in INTEGERS and prod(message.dims) == 1


def _size(message: Message) -> int | None:
    """Elements; or bytes of the text alone, as in a trace: with the lengths between, text that doubles does not."""
    if message.dtype in ITEM_SIZES:
        return prod(message.dims)
    return None if message.nbytes is None else message.nbytes - LENGTH_PREFIX * prod(message.dims)


def _unit(message: Message) -> str:
    return "elements" if message.dtype in ITEM_SIZES else "bytes"


def summary(messages: Iterable[Message], samples: Iterable[Sample]) -> str:
    """Two tables: the dims of each tensor at each node, and first, last and largest value of each polled quantity."""
    parts = []
    if rows := _tensor_rows(messages):
        parts.append(
            table(["node", "side", "tensor", "requests", "messages", "largest bytes", "dims (last request)"], rows)
        )
    if rows := _sample_rows(samples):
        parts.append(table(["node", "quantity", "first", "last", "largest"], rows))
    return "\n\n".join(parts) or "nothing was seen"


def _tensor_rows(messages: Iterable[Message]) -> list[tuple]:
    places: dict[tuple, list[Message]] = defaultdict(list)
    for message in messages:
        places[message.node or "?", message.side, message.tensor].append(message)
    return [
        (*place, len({one.request for one in found}), len(found), _largest(found), shown_dims(_last_request(found)))
        for place, found in places.items()
    ]


def _last_request(found: Sequence[Message]) -> list[tuple[int, ...]]:
    return [message.dims for message in found if message.request == found[-1].request]


def _largest(found: Sequence[Message]) -> int | None:
    return max((message.nbytes for message in found if message.nbytes is not None), default=None)


def shown_dims(dims: Sequence[tuple[int, ...]]) -> str:
    """The first ten, such as ``[1] [2] [4]``."""
    shown = " ".join(f"[{','.join(map(str, one))}]" for one in dims[:SHOWN])
    return shown + (" ..." if len(dims) > SHOWN else "")


def _sample_rows(samples: Iterable[Sample]) -> list[tuple]:
    places: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in samples:
        places[sample.node, sample.quantity].append(sample.value)
    units = {"backlog": "backlog (requests)", "memory": "memory (bytes)", "executions": "executions"}
    return [
        (node, units.get(quantity, quantity), int(values[0]), int(values[-1]), int(max(values)))
        for (node, quantity), values in sorted(places.items(), key=lambda place: (place[0][1], place[0][0]))
    ]
