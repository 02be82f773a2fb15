"""``python -m lab_utils trace FILE...``: the hops of a Triton trace, and the node that makes a tensor grow."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab_utils import perfetto
from lab_utils.attribution import Place
from lab_utils.files import save_figure
from lab_utils.tables import table
from lab_utils.trace import Call, Problem, Request, Tensor, files, read, requests, values
from lab_utils.trace_figure import pair_figure, pair_table, repeated
from lab_utils.trace_tracks import Hop, Line, hops, lines, pairs, tracks
from lab_utils.verdict import Verdict, judge

FIGURE = Path("artifacts/trace.png")
SHOWN_ROWS, SHOWN_PROBLEMS, SHOWN_VALUES, SHOWN_SHAPES = 40, 5, 12, 10
UNKNOWN = "(unknown)"
NO_TENSORS = (
    "the trace has times but no tensors, so it shows no shapes: start the server with --trace-config=level=TENSORS as"
    ' well, or post {"trace_level":["TIMESTAMPS","TENSORS"]} to /v2/trace/setting'
)
TORN = (
    "{:,} client request(s) are not whole in the file: a call has no beginning, no end or no caller there. Growth in"
    " them may be missed, and a sender may be missing; wait until the server has written all, or trace once more"
)
NO_TIMES = "the trace does not tell models and callers: level TENSORS alone; turn on level TIMESTAMPS as well"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``trace`` to the command line."""
    one = commands.add_parser("trace", help="read Triton trace files: hops, and which node makes a tensor grow")
    one.add_argument("files", nargs="+", type=Path, metavar="FILE", help="one trace, or the numbered files of one")
    one.add_argument("--figure", type=Path, default=FIGURE, metavar="FILE.png", help=f"where to save it ({FIGURE})")
    one.add_argument("--perfetto", type=Path, metavar="OUT.json", help="write a file for ui.perfetto.dev")
    one.add_argument("--values", metavar="REQUEST", help="print the values of this request's tensors too")
    one.add_argument("--request", metavar="ID", help="show this one: its trace id, or the id that the client gave")
    one.add_argument("--hops", action="store_true", help="one row for each message, with times")
    one.add_argument("--repository", type=Path, metavar="PATH", help="model repository, to tell who feeds whom")
    one.add_argument(
        "--rows", type=int, default=SHOWN_ROWS, metavar="N", help=f"rows a table has at most ({SHOWN_ROWS})"
    )
    one.add_argument("--json", action="store_true", help="everything of the shown request, as JSON")
    one.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0; 2 if no file holds a call."""
    if arguments.rows < 1:
        raise ValueError(f"--rows is {arguments.rows}; expected 1 or more")
    problems: list[Problem] = []
    summary = _Summary()
    verdict = judge(tracks(summary.watch(requests(read(arguments.files, problems)))))
    shown = _shown(arguments, verdict.request or summary.largest[1]) if summary.calls else None
    if arguments.json:
        print(json.dumps(_report(arguments, summary, verdict, shown, problems), ensure_ascii=False))
    for line in _lines(arguments, summary, verdict, shown, problems):
        if not arguments.json:  # the lines that save a file do that all the same
            print(line)
    return 0 if summary.calls else 2


@dataclass
class _Model:
    """What one model did in all of the trace."""

    calls: int = 0
    messages: int = 0
    queue: list[int] = field(default_factory=lambda: [0, 0])  # sum in ns, and how many
    compute: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, call: Call) -> None:
        self.calls += 1
        self.messages += call.messages
        for total, ns in ((self.queue, call.queue_ns), (self.compute, call.compute_ns)):
            if ns is not None:
                total[0] += ns
                total[1] += 1


@dataclass
class _Summary:
    """What goes by while a trace is read once."""

    requests: int = 0
    torn: int = 0  # requests that are not whole
    calls: int = 0
    tensors: int = 0
    times: int = 0
    models: dict[str, _Model] = field(default_factory=lambda: defaultdict(_Model))
    largest: tuple[int, str] = (0, "")  # most tensors in a request, and its label

    def watch(self, found: Iterable[Request]) -> Iterator[Request]:
        for request in found:
            self.requests += 1
            self.torn += not request.whole
            count = sum(len(call.tensors) for call in request.calls)
            if count > self.largest[0] or not self.largest[1]:
                self.largest = count, request.label
            for call in request.calls:
                self.calls += 1
                self.tensors += len(call.tensors)
                self.times += len(call.times)
                self.models[call.model or UNKNOWN].add(call)
            yield request


def _shown(arguments: argparse.Namespace, default: str) -> Request:
    """The request that is asked for, or the one with the default label."""
    wanted = arguments.request or arguments.values
    for request in requests(read(arguments.files)):
        names = (str(request.id), request.request_id, request.label) if wanted else (request.label,)
        if (wanted or default) in names:
            return request
    raise ValueError(
        f"no request {wanted!r} in the trace; expected a trace id of a client's call, or a client's own id"
    )


def _lines(
    arguments: argparse.Namespace, summary: _Summary, verdict: Verdict, shown: Request | None, problems: list[Problem]
) -> Iterator[str]:
    yield from _problem_lines(problems)
    if shown is None:
        yield f"no call could be read from {', '.join(map(str, arguments.files))}"
        return
    yield f"{len(files(arguments.files))} file(s): {summary.requests:,} client request(s), {summary.calls:,} calls"
    yield _model_table(summary)
    yield from _notes(summary)
    if summary.tensors:
        yield f"\nrequest {shown.label}, hop by hop"
        yield from (_hop_lines if arguments.hops or not summary.times else _line_rows)(arguments, shown)
    if arguments.values:
        yield from ("", *_value_lines(arguments, shown))
    yield f"\n{verdict}"
    yield from _pair_lines(arguments, shown, verdict)
    yield from _perfetto_lines(arguments)


def _problem_lines(problems: list[Problem]) -> Iterator[str]:
    yield from (f"problem: {problem}" for problem in problems[:SHOWN_PROBLEMS])
    if len(problems) > SHOWN_PROBLEMS:
        yield f"and {len(problems) - SHOWN_PROBLEMS:,} more problems"


def _model_table(summary: _Summary) -> str:
    rows = [
        (name, model.calls, model.messages or None, _mean(model.queue), _mean(model.compute))
        for name, model in summary.models.items()
    ]
    return table(["model", "calls", "responses", "mean queue, ms", "mean compute, ms"], rows)


def _mean(total: list[int]) -> float | None:
    return total[0] / total[1] / 1e6 if total[1] else None


def _notes(summary: _Summary) -> Iterator[str]:
    if not summary.tensors:
        yield f"note: {NO_TENSORS}"
    elif not summary.times:
        yield f"note: {NO_TIMES}"
    elif summary.torn:
        yield f"note: {TORN.format(summary.torn)}"


def _line_rows(arguments: argparse.Namespace, shown: Request) -> Iterator[str]:
    found = lines(shown)
    rows = [
        (line.node, line.side, line.tensor, line.messages[0].dtype, len(line.messages), _shapes(line), _nbytes(line))
        for line in found
        if not line.returned
    ]
    yield table(["model", "side", "tensor", "dtype", "messages", "shapes", "bytes"], rows[: arguments.rows])
    yield from _left_out(len(rows), arguments.rows, "tensors of this request")


def _shapes(line: Line) -> str:
    shown = " ".join(str(list(message.dims)) for message in line.messages[:SHOWN_SHAPES])
    return shown + (" ..." if len(line.messages) > SHOWN_SHAPES else "")


def _nbytes(line: Line) -> int:
    return sum(message.nbytes for message in line.messages)


def _left_out(count: int, rows: int, what: str) -> Iterator[str]:
    if count > rows:
        yield f"{count - rows:,} more {what} left out; --rows {count} shows them"


def _hop_lines(arguments: argparse.Namespace, shown: Request) -> Iterator[str]:
    found = list(hops(shown))
    headers = ["call", "parent", "model", "version", "side", "tensor", "iteration", "dtype", "shape", "bytes"]
    rows = [_hop_row(hop) for hop in found[: arguments.rows]]
    yield table([*headers, "queue, ms", "compute, ms"], rows)
    yield from _left_out(len(found), arguments.rows, "hops of this request")


def _hop_row(hop: Hop) -> tuple[object, ...]:
    place = str(hop.call), hop.parent and str(hop.parent), hop.model or UNKNOWN, str(hop.version), hop.side, hop.tensor
    times = _ms(hop.queue_ns), _ms(hop.compute_ns)
    return *place, hop.iteration, hop.dtype, str(list(hop.shape)), hop.nbytes, *times


def _value_lines(arguments: argparse.Namespace, shown: Request) -> Iterator[str]:
    found = list(hops(shown))
    tensors = [tensor for call in shown.calls for tensor in call.tensors]
    for hop, tensor in list(zip(found, tensors, strict=True))[: arguments.rows]:
        yield f"{hop.model} {hop.side} {hop.tensor} {hop.iteration}: {_value(tensor)}"
    yield from _left_out(len(found), arguments.rows, "hops of this request")


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6


def _value(tensor: Tensor) -> str:
    try:
        flat = values(tensor).ravel()
    except ValueError as error:
        return f"not shown: {error}"
    shown = " ".join(str(one) for one in flat[:SHOWN_VALUES])
    return shown + (f" ... ({flat.size:,} in all)" if flat.size > SHOWN_VALUES else "")


def _focus(verdict: Verdict) -> Place | None:
    return (verdict.node, verdict.tensor) if verdict.node else None


def _pair_lines(arguments: argparse.Namespace, shown: Request, verdict: Verdict) -> Iterator[str]:
    found = pairs(shown, arguments.repository)
    if not repeated(found):
        yield "\nno figure: in this request no tensor has more than one message"
        return
    yield f"\n{pair_table(found, arguments.rows, _focus(verdict))}"
    save_figure(pair_figure(found, f"request {shown.label}", _focus(verdict)), arguments.figure)
    yield f"figure: {arguments.figure}"


def _perfetto_lines(arguments: argparse.Namespace) -> Iterator[str]:
    if not arguments.perfetto:
        return
    arguments.perfetto.parent.mkdir(parents=True, exist_ok=True)
    written = perfetto.write(requests(read(arguments.files)), arguments.perfetto, arguments.repository)
    left = f"; {written.left_out:,} calls have no times and are left out" if written.left_out else ""
    yield f"perfetto: {arguments.perfetto}, {written.events:,} events{left}; open it at https://ui.perfetto.dev"


def _report(
    arguments: argparse.Namespace, summary: _Summary, verdict: Verdict, shown: Request | None, problems: list[Problem]
) -> dict[str, object]:
    return {
        "files": files(arguments.files),
        "problems": [asdict(problem) for problem in problems],
        "requests": summary.requests,
        "not_whole": summary.torn,
        "calls": summary.calls,
        "models": {name: {"calls": model.calls, "responses": model.messages} for name, model in summary.models.items()},
        "verdict": asdict(verdict),
        "request": shown.label if shown else None,
        "hops": [asdict(hop) for hop in hops(shown)] if shown else [],
    }
