"""Read the structured logs of nodes: JSON lines, one for each message, among whatever else a server's log holds.

A node writes such a line where it sends or receives a message, with the keys time, node, request_id, stream_id, index,
dims and end; other keys are passed over. The nodes and the server write into one file without a common lock. So a line
of a node may stand behind the first half of a line of the server: it is found wherever it begins.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab_utils.alarm import MOST_TRACKED, Alarm, AlarmState, Rules
from lab_utils.attribution import Message

MARK = '"stream_id"'  # what a line has to hold to be looked at
MOST_MISSES = 100  # in one line: one full of brackets would hold up whoever follows the log
DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class NodeLine:
    """What one node wrote down about one message.

    Attributes
    ----------
    seconds : float
        When: since 1970, UTC, by the node's clock.
    node : str
        The model that wrote the line.
    request_id : str
        As the client gave it; may be empty, and two requests may share one.
    stream_id : int
        The node's own id of the stream, the same at all nodes.
    index : int or None
        Number of the message, from 1, where the node knows it.
    dims : tuple of int
        Shape of the message.
    end : bool
        Whether it carries the end mark.
    """

    seconds: float
    node: str
    request_id: str
    stream_id: int
    index: int | None
    dims: tuple[int, ...]
    end: bool


def read(lines: Iterable[str], unreadable: list[str] | None = None) -> Iterator[NodeLine]:
    """Yield the lines of nodes, in order, as they come; everything else is passed over.

    Parameters
    ----------
    lines : iterable of str
        Lines of a log, such as an open file, or `lab_utils.log_tail.LogTail.lines`.
    unreadable : list, optional
        Takes the lines that seem to be a node's and cannot be read: cut short, or with values of another kind.
    """
    for line in lines:
        if MARK not in line:
            continue
        found = [one for one in map(_node_line, _objects(line)) if one]
        yield from found
        if not found and unreadable is not None:
            unreadable.append(line)


def read_log(path: str | Path, start: int = 0) -> list[NodeLine]:
    """All lines of nodes in a log file.

    Parameters
    ----------
    path : path
        The file that takes the server's standard error.
    start : int
        Byte to begin with, such as the size that the file had before a request.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(start)
        return list(read(line.decode("utf-8", "replace") for line in file))


def dims(lines: Iterable[NodeLine], node: str, request_id: str | None = None) -> list[tuple[int, ...]]:
    """The dims that one node wrote down, message by message.

    Raises
    ------
    ValueError
        There is no line of this node and request, or they belong to several streams, which no list can keep apart.
    """
    found = [one for one in lines if one.node == node and request_id in (None, one.request_id)]
    streams = len({one.stream_id for one in found})
    if streams == 1:
        return [one.dims for one in found]
    of = "" if request_id is None else f" of request {request_id!r}"
    advice = "name a request, or filter by stream_id" if streams else 'was it sent with the request parameter "log"?'
    raise ValueError(f"{streams} streams at node {node!r}{of}; expected one: {advice}")


def messages(lines: Iterable[NodeLine]) -> Iterator[Message]:
    """The same as messages that `lab_utils.alarm.AlarmState` understands, numbered by stream and node."""
    counts: OrderedDict[tuple[str, int], int] = OrderedDict()
    for line in lines:
        key = line.node, line.stream_id
        counts[key] = number = counts.pop(key, 0) + 1
        if len(counts) > MOST_TRACKED:
            counts.popitem(last=False)
        request = f"{line.request_id or 'without an id'} (stream {line.stream_id})"
        yield Message(line.seconds, request, line.node, None, "logged", "message", "", line.dims, None, number)


def alarms(lines: Iterable[NodeLine], rules: Rules | None = None) -> Iterator[Alarm]:
    """Yield the alarms that the lines raise, each as soon as the line that completes it has been read."""
    state = AlarmState(rules)
    for message in messages(lines):
        yield from state.message(message)


def _objects(line: str) -> Iterator[object]:
    """Every JSON object that stands whole in a line; brackets that open none are tried only so often."""
    at, misses = line.find("{"), 0
    while at >= 0 and misses < MOST_MISSES:
        try:
            found, end = DECODER.raw_decode(line, at)
            yield found
        except (ValueError, RecursionError):
            end, misses = at + 1, misses + 1
        at = line.find("{", end)


def _node_line(found: dict) -> NodeLine | None:
    """The line, if it has all that one needs, of the right kind."""
    try:
        seconds, stream, index = found["time"], found["stream_id"], found["index"]
        names, size, end = (found["node"], found["request_id"]), found["dims"], found["end"]
    except KeyError:
        return None
    whole = [stream, *([] if index is None else [index]), *(size if isinstance(size, list) else [None])]
    right = (
        type(seconds) in (int, float)
        and all(isinstance(name, str) for name in names)
        and all(type(number) is int for number in whole)
        and isinstance(end, bool)
    )
    return NodeLine(float(seconds), *names, stream, index, tuple(size), end) if right else None
