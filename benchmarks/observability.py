"""What guards, node logs and the trace cost: the processor time that each adds to a message, as a share of a step.

A step is the time that one token takes in rung 4's Python pipeline: on the clock, one stream, decoded. What is measured
is switched on and off by turns on one server, in short streams of given ids (FORCED_IDS). The clock cannot show a few
microseconds on a machine that does other things as well. The kernel's count of the processor time of each process can:
it does not run while another process does. So that is what is compared, turn by turn; the clock stands beside it.
"""

import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import Row, Spread, main, spread

from lab_utils.client import StreamResult, stream
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.guard_cost import check_seconds
from lab_utils.server import TritonServer, start_server
from lab_utils.trace import server_flags
from lab_utils.watch_costs import tracing

ROUNDS, TURNS = 5, 12  # a round's value is found from its turns
IDS = REPORTED_TOKENS * 20
DECODED = 95  # the whole text
SETTLE = 0.02  # seconds: a trace is written some milliseconds after the last response
MICROSECONDS = 1e6
OFF, BOTH, LOG, TRACE = "off", "both guards", "node logs", "trace, TIMESTAMPS"
CASES = {
    OFF: ("ensemble_latest", {}),
    "guard in inference": ("ensemble_latest", {"guard": True}),
    "guard in post-processing": ("ensemble_guarded", {}),
    BOTH: ("ensemble_guarded", {"guard": True}),
    LOG: ("ensemble_latest", {"log": True}),
    TRACE: ("ensemble_latest", {}),
}
NODES = ("server", "inference", "postprocess")


@dataclass(frozen=True)
class Message:
    """Microseconds for one message of a stream: on the clock, and of the processors, by kind of process."""

    clock: float
    processor: dict[str, float]


def measure() -> dict:
    """Added microseconds of each case, round by round, and the step that they are a share of."""
    with TemporaryDirectory() as folder:
        flags = [*server_flags(f"{folder}/trace.json", tensors=False), "--trace-config=level=OFF"]
        with start_server(["ensemble_latest", "ensemble_guarded"], flags=flags) as server:
            _turn(server, 0)
            rounds = [_round([_turn(server, turn) for turn in range(TURNS)]) for _ in range(ROUNDS)]
        written = sum(file.stat().st_size for file in Path(folder).iterdir())
    assert written > ROUNDS * TURNS * len(IDS) * 100, f"the trace holds {written} bytes only"
    return {
        "rounds": rounds,
        "turns": TURNS,
        "check": check_seconds() * MICROSECONDS,
        "trace_bytes": written / ((ROUNDS * TURNS + 1) * len(IDS)),
    }


def _turn(server: TritonServer, turn: int) -> dict:
    """Every case once, forwards or backwards, and one decoded stream, which tells the step."""
    names = list(CASES) if turn % 2 == 0 else list(reversed(CASES))
    found = {name: asdict(_message(server, name)) for name in names}
    decoded = stream(server, "ensemble_latest", REPORTED_PROMPT, DECODED)
    assert decoded.lengths == [1] * DECODED
    return {"step": decoded.observations[-1].seconds / DECODED * MICROSECONDS, "cases": found}


def _message(server: TritonServer, name: str) -> Message:
    """Stream the ids with one of the cases switched on."""
    ensemble, options = CASES[name]
    with tracing(server, "TIMESTAMPS") if name == TRACE else nullcontext():
        before = _processor(server)
        result = stream(server, ensemble, "-", len(IDS), forced_ids=IDS, **options)
        time.sleep(SETTLE)
        after = _processor(server)
    _check(result)
    used = {node: (after[node] - before[node]) / len(IDS) * MICROSECONDS for node in NODES}
    return Message(result.observations[-1].seconds / len(IDS) * MICROSECONDS, used)


def _check(result: StreamResult) -> None:
    """Every case has to have done the same work."""
    assert [ids for [ids] in result.ids] == IDS
    assert result.observations[-1].end


def _processor(server: TritonServer) -> dict[str, float]:
    """Seconds of processor time that the server, and all nodes of a kind, have used so far, to the nanosecond."""
    used = dict.fromkeys(NODES, 0.0)
    for process, name in server.processes.items():
        node = next((one for one in NODES if name.startswith(one)), None)
        if node:
            used[node] += time.clock_gettime((~process.pid << 3) | 2)  # Linux: the clock of another process
    return used


def _round(turns: list[dict]) -> dict:
    """The step, what a message takes in `OFF`, and what each case adds to that."""
    taken = {name: _taken([turn["cases"][name] for turn in turns]) for name in CASES}
    added = {
        name: {key: value - taken[OFF][key] for key, value in found.items()}
        for name, found in taken.items()
        if name != OFF
    }
    return {
        "step": statistics.median(turn["step"] for turn in turns),
        "off": taken[OFF]["processor"],
        "added": added,
    }


def _taken(messages: list[dict]) -> dict[str, float]:
    """What a message takes: on the clock the median; of the processors the least, because others only ever add to it.

    (Other work costs processor time too, by what it leaves in the caches. The clock's least says nothing: messages that
    a busy client takes late arrive all at once.)
    """
    return {
        "clock": statistics.median(one["clock"] for one in messages),
        "processor": min(sum(one["processor"].values()) for one in messages),
        **{node: min(one["processor"][node] for one in messages) for node in NODES},
    }


def shares(results: dict, name: str, key: str = "processor") -> Spread:
    """What a case adds, as percent of a step, over all rounds."""
    return spread([100 * one["added"][name][key] / one["step"] for one in results["rounds"]])


def rows(results: dict) -> list[Row]:
    """Guards together, node logs, trace: percent of a step."""
    names = {BOTH: ("guards, in both nodes", 2.0), LOG: ("structured node logs", 5.0), TRACE: (TRACE, 10.0)}
    return [_row(results, name, what, bound) for name, (what, bound) in names.items()]


def _row(results: dict, name: str, what: str, bound: float) -> Row:
    added = statistics.median(one["added"][name]["processor"] for one in results["rounds"])
    step = statistics.median(one["step"] for one in results["rounds"])
    return Row(
        f"{what}: share of a step",
        "off",
        f"less than {bound:.0f} %",
        f"{added:.1f} µs of processor time a message; a step is {step:,.0f} µs",
        shares(results, name),
        bound,
    )


def remarks(results: dict) -> str:
    """Where the processor time is added, and the clock beside it."""
    off = statistics.median(one["off"] for one in results["rounds"])
    return "\n".join(
        [
            f"Microseconds of processor time that a message takes more than without (it takes {off:,.0f} in all): the "
            f"least of {results['turns']} turns against the least of as many, then the median of "
            f"{len(results['rounds'])} rounds. Shares are percent of a step. A value below 0 is noise: it says how far "
            "the others can be trusted.",
            "",
            "| switched on | server | inference | post-processing | share | on the clock |",
            "|---|---|---|---|---|---|",
            *(_line(results, name) for name in CASES if name != OFF),
            "",
            f"One check by itself takes {results['check']:.1f} µs. The trace writes {results['trace_bytes']:,.0f} "
            "bytes for a message.",
        ]
    )


def _line(results: dict, name: str) -> str:
    nodes = [statistics.median(one["added"][name][node] for one in results["rounds"]) for node in NODES]
    cells = [f"{value:.1f}" for value in nodes]
    cells += [_percent(shares(results, name, key)) for key in ("processor", "clock")]
    return f"| {name} | {' | '.join(cells)} |"


def _percent(share: Spread) -> str:
    return f"{share.median:.1f} % ({share.least:.1f} to {share.most:.1f})"


if __name__ == "__main__":
    main(__file__)
