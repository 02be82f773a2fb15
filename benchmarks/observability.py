"""What guards, node logs and the trace cost: the processor time that each adds to a message, as a share of a step.

A step is the time that one token takes in rung 4's Python pipeline: on the clock, one stream, decoded. What is measured
is switched on and off by turns on one server, in short streams of given ids (FORCED_IDS). The clock cannot show a few
microseconds on a machine that does other things as well. The kernel's count of the processor time of each process can:
it does not run while another process does. So that is what is compared, turn by turn; the clock stands beside it.
"""

import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import Row, Spread, main, spread

from lab_utils.client import StreamResult, stream
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.guard_cost import check_seconds
from lab_utils.server import TritonServer, start_server
from lab_utils.trace import server_flags
from lab_utils.watch_costs import tracing

ROUNDS, TURNS = 5, 8  # a round's value is found from its turns
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
SWITCHED_ON = [name for name in CASES if name != OFF]
NODES = ("server", "inference", "postprocess")


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
    """Every case once, forwards or backwards, between two streams off, and a decoded stream, which tells the step."""
    off, added = [_message(server, OFF)], {}
    for name in SWITCHED_ON if turn % 2 == 0 else reversed(SWITCHED_ON):
        found = _message(server, name)
        off.append(_message(server, OFF))
        added[name] = {key: found[key] - (off[-2][key] + off[-1][key]) / 2 for key in found}
    decoded = stream(server, "ensemble_latest", REPORTED_PROMPT, DECODED)
    assert decoded.lengths == [1] * DECODED
    step = decoded.observations[-1].seconds / DECODED * MICROSECONDS
    return {"step": step, "off": statistics.median(one["processor"] for one in off), "added": added}


def _message(server: TritonServer, name: str) -> dict[str, float]:
    """Microseconds for one message with a case switched on: on the "clock", of the "processor", and that by node."""
    ensemble, options = CASES[name]
    with tracing(server, "TIMESTAMPS") if name == TRACE else nullcontext():
        before = _processor(server)
        result = stream(server, ensemble, "-", len(IDS), forced_ids=IDS, **options)
        time.sleep(SETTLE)
        after = _processor(server)
    _check(result)
    used = {node: (after[node] - before[node]) / len(IDS) * MICROSECONDS for node in NODES}
    clock = result.observations[-1].seconds / len(IDS) * MICROSECONDS
    return {"clock": clock, "processor": sum(used.values()), **used}


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
    """Medians over some turns: the step, what a message takes in `OFF`, and what each case adds to that."""
    added = {
        name: {key: statistics.median(turn["added"][name][key] for turn in turns) for key in one}
        for name, one in turns[0]["added"].items()
    }
    return {part: statistics.median(turn[part] for turn in turns) for part in ("step", "off")} | {"added": added}


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
    off, step = (statistics.median(one[part] for one in results["rounds"]) for part in ("off", "step"))
    checks = 2 * results["check"] / step
    return "\n".join(
        [
            f"Microseconds of processor time that a message takes more than without (it takes {off:,.0f} in all): in "
            f"each turn against the streams around it, the median of {results['turns']} turns, then that of "
            f"{len(results['rounds'])} rounds. Shares are percent of a step. A value below 0 is noise: it says how far "
            "the others can be trusted.",
            "",
            "| switched on | server | inference | post-processing | share | on the clock |",
            "|---|---|---|---|---|---|",
            *(_line(results, name) for name in SWITCHED_ON),
            "",
            f"One check by itself takes {results['check']:.1f} µs: the two of a message are {checks:.1%} of a step. "
            f"The trace writes {results['trace_bytes']:,.0f} bytes for a message.",
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
