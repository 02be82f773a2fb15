"""``python -m lab_utils watch``: the live instrument on the command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lab_utils.alarm import MEBIBYTE, Alarm, Rules, Sample
from lab_utils.attribution import Message
from lab_utils.files import save_figure
from lab_utils.watch import INTERVAL, Event, Watch, watch


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``watch`` to a command line."""
    one = commands.add_parser("watch", help="dims, bytes, backlog and memory of a running server; alarms on growth")
    one.add_argument("--grpc", default="", metavar="HOST:PORT", help="the server's gRPC address")
    one.add_argument("--http", default="", metavar="HOST:PORT", help="its HTTP address, where gRPC cannot be reached")
    one.add_argument("--metrics", default="", metavar="HOST:PORT", help="its metrics address: backlog, memory counters")
    one.add_argument("--log", type=Path, metavar="FILE", help="the file that takes its log: dims, bytes")
    one.add_argument("--seconds", type=float, metavar="S", help="how long; by default until Ctrl-C")
    one.add_argument("--interval", type=float, default=INTERVAL, metavar="S", help=f"between two polls ({INTERVAL:g})")
    one.add_argument(
        "--factor", type=float, default=Rules.factor, metavar="F", help="alarm: least growth of a dimension"
    )
    one.add_argument("--times", type=int, default=Rules.times, metavar="K", help="alarm: steps in a row")
    one.add_argument("--memory-mib", type=float, default=Rules.memory_bytes / MEBIBYTE, metavar="X", help="alarm: rise")
    one.add_argument("--figure", type=Path, metavar="FILE.png", help="where to save the figure")
    one.add_argument("--json", action="store_true", help="JSON lines")
    one.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each message and each polled value that changed; exit status 1 if an alarm was raised, else 0.

    Raises
    ------
    ValueError, OSError, lab_utils.errors.ServerError
        An argument is wrong, the log cannot be read, or the server does not answer.
    """
    if arguments.seconds is not None and not arguments.seconds > 0:
        raise ValueError(f"--seconds is {arguments.seconds}; expected a number above 0")
    seen = watch(
        grpc_url=arguments.grpc,
        http_url=arguments.http,
        metrics_url=arguments.metrics,
        log=arguments.log,
        interval=arguments.interval,
        rules=Rules(arguments.factor, arguments.times, arguments.memory_mib * MEBIBYTE),
        on_event=Printer(as_json=arguments.json),
    )
    with _ends_on_signals(), seen:
        seen.wait(arguments.seconds)
    _conclude(seen, arguments)
    return 1 if seen.alarms else 2 if seen.ended else 0


@contextmanager
def _ends_on_signals() -> Iterator[None]:
    """Make SIGTERM, a closed terminal and Ctrl-C end the block in order: the log level is put back."""

    def end(*_: object) -> None:
        for number in old:
            signal.signal(number, signal.SIG_IGN)  # a second one must not end the clean-up
        raise KeyboardInterrupt

    old = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _conclude(seen: Watch, arguments: argparse.Namespace) -> None:
    if arguments.figure:
        save_figure(seen.figure(), arguments.figure)
    if arguments.json:
        verdict = asdict(seen.verdict())
        last = {"event": "end", "alarms": len(seen.alarms), "verdict": verdict, "cannot_show": seen.cannot_show}
        print(json.dumps(last | {"notes": seen.notes, "ended": seen.ended}, ensure_ascii=False))
        return
    print(f"\n{seen}")
    if arguments.figure:
        print(f"figure: {arguments.figure}")
    if seen.ended:
        print(f"error: {seen.ended}", file=sys.stderr)


class Printer:
    """Prints each event as one line, at once; polled values only where they changed, memory by 1 MiB or more."""

    def __init__(self, as_json: bool):
        self._as_json = as_json
        self._last: dict[tuple[str, str], float] = {}

    def __call__(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, Sample):
            key = (event.quantity, event.node)
            least = MEBIBYTE if event.quantity == "memory" else 1
            if key in self._last and abs(event.value - self._last[key]) < least:
                return
            self._last[key] = event.value
        print(_json_line(event) if self._as_json else line(event), flush=True)


def _json_line(event: Event) -> str:
    fields = {"text": event} if isinstance(event, str) else asdict(event)
    kind = "note" if isinstance(event, str) else type(event).__name__.lower()
    return json.dumps({"event": kind, **fields}, ensure_ascii=False)


def line(event: Event) -> str:
    """One event as a line for a person."""
    match event:
        case Alarm():
            return str(event)
        case Sample():
            return f"{event.quantity:10} {event.node}  {event.value:,.0f}"
        case Message():
            whose = f"{event.request}: {event.node}" if event.number else f"one of {', '.join(event.candidates)}"
            number = f"  message {event.number}" if event.number else ""
            size = "" if event.nbytes is None else f"  {event.nbytes:,} bytes"
            return f"{whose}  {event.side} {event.tensor}  {event.dtype} {list(event.dims)}{size}{number}"
    return f"note: {event}"
