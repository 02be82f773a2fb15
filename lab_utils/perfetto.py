"""Write a trace as a file that Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

The form is the JSON of the Trace Event Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
A model is a process. Its calls are slices ("X") that hold slices for queue and compute; slices of one thread must nest,
so calls that overlap get threads of their own. Client requests are async slices ("b", "e"). Arrows ("s", "f") go from
the call that sent a tensor to the call that received it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lab_utils.files import writing
from lab_utils.trace import Call, Request, Tensor
from lab_utils.trace_tracks import Wires, pairs

CLIENT = "client requests"
PHASES = (
    ("queue", "QUEUE_START", "COMPUTE_START"),
    ("compute", "COMPUTE_START", "COMPUTE_END"),
    ("input", "COMPUTE_START", "COMPUTE_INPUT_END"),
    ("output", "COMPUTE_OUTPUT_START", "COMPUTE_END"),
)
SHOWN_MESSAGES = 12

Event = dict[str, object]


@dataclass(frozen=True)
class Written:
    """What came into the file.

    Attributes
    ----------
    events : int
        Number of events.
    left_out : int
        Calls without times, or with an end before the start: they have no place on a time line.
    """

    events: int
    left_out: int


def write(requests: Iterable[Request], path: str | Path, repository: str | Path | None = None) -> Written:
    """Write client requests to a JSON file, one after the other, without keeping them.

    Parameters
    ----------
    requests : iterable of Request
        From `lab_utils.trace.requests`.
    path : str or Path
        The file; what is there is replaced.
    repository : str or Path, optional
        As for `lab_utils.trace_tracks.pairs`.

    Returns
    -------
    Written

    Raises
    ------
    OSError
        The file cannot be written.
    """
    layout = _Layout(repository)
    written = 0
    with writing(Path(path)) as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
        for request in requests:
            for event in layout.events(request):
                file.write(((",\n" if written else "\n") + json.dumps(event, ensure_ascii=False)).encode())
                written += 1
        file.write(b"\n]}\n")
    return Written(written, layout.left_out)


class _Layout:
    """Which process and thread everything belongs to."""

    def __init__(self, repository: str | Path | None):
        self.left_out = 0
        self._repository = repository
        self._processes: dict[tuple[int, str], int] = {}
        self._free: dict[int, list[int]] = {}  # for each process, when each of its threads becomes free
        self._flows = count(1)
        self._wires: dict[int, dict[str, Wires]] = {}

    def events(self, request: Request) -> Iterator[Event]:
        placed = {}
        for call in request.calls:
            if call.start_ns is None or call.end_ns < call.start_ns:
                self.left_out += 1
                continue
            process, new = self._process(request.run, call.model or "unknown model")
            yield from new
            placed[call.id] = process, self._thread(process, call.start_ns, call.end_ns)
            yield from _slices(call, request.label, *placed[call.id])
        yield from self._client(request)
        yield from self._arrows(request, placed)

    def _process(self, run: int, name: str) -> tuple[int, list[Event]]:
        key = run, name
        if key in self._processes:
            return self._processes[key], []
        process = self._processes[key] = len(self._processes) + 1
        shown = name if run == 1 else f"{name} (run {run})"
        return process, [{"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": shown}}]

    def _thread(self, process: int, start: int, end: int) -> int:
        """The first thread of the process on which nothing ends later than `start`; counted from 1."""
        free = self._free.setdefault(process, [])
        place = next((place for place, time in enumerate(free) if time <= start), len(free))
        free[place : place + 1] = [end]
        return place + 1

    def _client(self, request: Request) -> Iterator[Event]:
        root = request.root
        times = [ns for _, ns in root.times] if root else []
        if not times:
            return
        process, new = self._process(request.run, CLIENT)
        yield from new
        same = {"cat": "request", "name": f"request {request.label}", "id": request.id, "pid": process, "tid": 0}
        yield {"ph": "b", "ts": min(times) / 1000, **same, "args": {"model": root.model}}
        yield {"ph": "e", "ts": max(times) / 1000, **same}

    def _arrows(self, request: Request, placed: dict[int, tuple[int, int]]) -> Iterator[Event]:
        owners = {(tensor.path, tensor.offset): call for call in request.calls for tensor in call.tensors}
        names: dict[tuple[int, int], list[str]] = {}
        calls = {call.id: call for call in request.calls}
        for pair in pairs(request, self._repository, self._wires.setdefault(request.run, {})):
            for sent, received in zip(pair.sent, pair.received, strict=False):
                ends = owners[sent.path, sent.offset].id, owners[received.path, received.offset].id
                names.setdefault(ends, []).append(pair.input)
        for (source, sink), tensors in names.items():
            # What a caller is sent and what it answers has no slice of its own to point to.
            if source in placed and sink in placed and calls[source].parent == calls[sink].parent:
                yield from self._arrow(calls[source], calls[sink], placed, ", ".join(tensors))

    def _arrow(self, source: Call, sink: Call, placed: dict[int, tuple[int, int]], name: str) -> Iterator[Event]:
        # When a message was sent is not in a trace: the arrow leaves when the consumer is called, if its producer
        # still runs, and at the producer's end if not.
        leaves = max(source.start_ns, min(sink.start_ns, source.end_ns - 1))
        same = {"cat": "tensor", "name": name, "id": next(self._flows)}
        yield {"ph": "s", "ts": leaves / 1000, "pid": placed[source.id][0], "tid": placed[source.id][1], **same}
        arrives = {"ts": max(leaves, sink.start_ns) / 1000, "pid": placed[sink.id][0], "tid": placed[sink.id][1]}
        yield {"ph": "f", "bp": "e", **arrives, **same}


def _slices(call: Call, label: str, process: int, thread: int) -> Iterator[Event]:
    place = {"pid": process, "tid": thread}
    args = {"request": label, "trace id": call.id, "version": call.version, **_tensors(call)}
    yield {
        "name": call.model or "unknown model",
        "cat": "call",
        **_span(call.start_ns, call.end_ns),
        **place,
        "args": args,
    }
    for name, first, last in PHASES:
        for start, end in call.spans(first, last):
            if call.start_ns <= start <= end <= call.end_ns:
                yield {"name": name, "cat": "phase", **_span(start, end), **place}


def _span(start: int, end: int) -> Event:
    return {"ph": "X", "ts": start / 1000, "dur": (end - start) / 1000}  # microseconds


def _tensors(call: Call) -> dict[str, str]:
    found: dict[str, list[Tensor]] = {}
    for tensor in call.tensors:
        found.setdefault(f"{tensor.side} {tensor.name}", []).append(tensor)
    return {name: _shapes(messages) for name, messages in found.items()}


def _shapes(messages: list[Tensor]) -> str:
    shown = " ".join(str(list(tensor.dims)) for tensor in messages[:SHOWN_MESSAGES])
    more = f" and {len(messages) - SHOWN_MESSAGES} more" if len(messages) > SHOWN_MESSAGES else ""
    return f"{messages[0].dtype} {shown}{more}"
