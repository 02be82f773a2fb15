"""Cost as work grows: time and memory of a stream against its tokens, on all four rungs, and against streams at once.

The reported sentence, repeated, is given instead of generated (FORCED_IDS): so a stream may have any number of tokens,
and attention, whose cost grows with the position in a text, has no part in it. Time is from sending the request to the
arrival of the last message; memory is the most that the server's processes and their shared memory held meanwhile.

Rungs 3 and 4 get a fresh server in each round, and the numbers of tokens rise in it: what a process takes once and
keeps shows where it is taken first. Rungs 1 and 2 share one server for all rounds, then go to their cap once.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from side_by_side import Row, Spread, main, spread

from lab_utils.big_run import available_memory, free_shared_memory, machine_lock, plan
from lab_utils.client import StreamResult, Window, stream, stream_many
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.memory import snapshot
from lab_utils.plots import OKABE_ITO
from lab_utils.server import TritonServer, start_server

ROUNDS = 5
CAP = 28  # 2^27 ids in the last message: as many as a request may ask for
DOUBLING = (16, 20, 22, 24)
DOUBLES_FROM = 22  # below, a stream's fixed cost hides the doubling
STEADY = (128, 256, 512, 1024, 2048, 4096)
SHORTER = STEADY[:4]
WINDOW = Window(64)
STREAMS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = 24  # of each of them
LOOK_SECONDS = 0.05
MEBIBYTE = 2**20
LABELS = {
    "append": "rung 1, append",
    "release": "rung 2, release",
    "replace": "rung 3, replace",
    "latest": "rung 4, latest",
}
SLOPE, FLAT = 0.05, 1.05


@dataclass(frozen=True)
class Point:
    """One stream of `n` tokens, or `n` streams at once: seconds, the most bytes held, seconds to the first message.

    `nodes` is the part of `held` that the nodes' processes and /dev/shm hold; the rest is the server's own process. Of
    several streams `first` is the slowest one's, and `token` the median of their seconds for a token.
    """

    n: int
    seconds: float
    held: int
    nodes: int
    first: float
    token: float


def measure() -> dict:
    """All series: for each number of tokens or streams, one value a round."""
    steady = [_steady_round() for _ in range(ROUNDS)]
    series = {name: _by_n([found[name] for found in steady]) for name in steady[0]}
    streams = series.pop("streams")
    doubling, limit = _doubling()
    return {"rounds": ROUNDS, "tokens": doubling | series, "streams": streams, "limit": limit}


def _steady_round() -> dict[str, list[Point]]:
    """Rungs 3 and 4, and many streams, on one fresh server."""
    with start_server(["ensemble_latest", "ensemble_replace"]) as server:
        for ensemble in ("ensemble_latest", "ensemble_replace"):
            _one(server, ensemble, SHORTER[0], window=None)
        stream_many(server, "ensemble_latest", [REPORTED_PROMPT] * 2, TOKENS)
        return {
            "latest": [_one(server, "ensemble_latest", n, window=WINDOW) for n in STEADY],
            "replace": [_one(server, "ensemble_replace", n) for n in SHORTER],
            "streams": [_many(server, count) for count in STREAMS],
        }


def _doubling() -> tuple[dict[str, list[dict]], str]:
    """Rungs 1 and 2: in rounds, then once to the cap, or as far as this machine goes; and why not further."""
    with start_server(["ensemble_append", "ensemble_release"]) as server:
        cases = {"append": partial(_append, server), "release": partial(_one, server, "ensemble_release")}
        _each(cases, DOUBLING[:1])
        rounds = [_each(cases, DOUBLING) for _ in range(ROUNDS)]
        with machine_lock(print):
            chosen = plan(CAP, available_memory(), free_shared_memory())
            last = _each(cases, [chosen.n])
    series = {name: _by_n([found[name] for found in rounds]) + _by_n([last[name]]) for name in cases}
    return series, chosen.limit


def _each(cases: dict[str, Callable[[int], Point]], numbers: Sequence[int]) -> dict[str, list[Point]]:
    return {name: [case(n) for n in numbers] for name, case in cases.items()}


def _append(server: TritonServer, n: int) -> Point:
    """Rung 1 keeps its buffer: the next request needs it empty."""
    point = _one(server, "ensemble_append", n)
    server.reload("inference")
    return point


def _one(server: TritonServer, ensemble: str, n: int, **options: object) -> Point:
    ids = (REPORTED_TOKENS * math.ceil(n / len(REPORTED_TOKENS)))[:n]
    options |= {"forced_ids": ids, "dims_only": True, "deadline": 300.0}
    if n <= CAP:
        options["max_message_ids"] = 2 ** (n - 1)
    with _most_held(server) as held:
        result = stream(server, ensemble, "-", n, **options)
    assert result.lengths == _expected(ensemble, n), f"{ensemble}: {result.lengths[:12]} … of {n} messages"
    last, first = result.observations[-1].seconds, result.observations[0].seconds
    return Point(n, last, *map(max, zip(*held, strict=True)), first, result.token_seconds)


def _expected(ensemble: str, n: int) -> list[int]:
    """The law of each rung, for the reported sentence over and over."""
    if ensemble == "ensemble_latest":
        return [1] * n
    if ensemble == "ensemble_replace":
        return ([1, 2, 3, 1, 1, 1, 1, 1] * math.ceil(n / len(REPORTED_TOKENS)))[:n]
    return [2**k for k in range(n)]


def _many(server: TritonServer, count: int) -> Point:
    """So many streams at once, decoded, each over a connection of its own."""
    with _most_held(server) as held:
        began = time.perf_counter()
        results = stream_many(server, "ensemble_latest", [REPORTED_PROMPT] * count, TOKENS)
        seconds = time.perf_counter() - began
    assert all(isinstance(one, StreamResult) and one.lengths == [1] * TOKENS for one in results)
    assert len({one.text for one in results}) == 1
    first = max(one.observations[0].seconds for one in results)
    token = statistics.median(one.token_seconds for one in results)
    return Point(count, seconds, *map(max, zip(*held, strict=True)), first, token)


@contextmanager
def _most_held(server: TritonServer) -> Iterator[list[tuple[int, int]]]:
    """What the server holds, looked at before, after and every `LOOK_SECONDS` in between."""
    held, over = [_held(server)], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            held.append(_held(server))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()
    held.append(_held(server))


def _held(server: TritonServer) -> tuple[int, int]:
    """Bytes that all hold together, and those without the server's own process."""
    memory = snapshot(server)
    nodes = sum(memory.stubs.values()) + memory.shm
    return memory.server + nodes, nodes


def _by_n(rounds: list[list[Point]]) -> list[dict]:
    """For each number of tokens or streams, the values of all rounds."""
    points = [[asdict(point) for point in same] for same in zip(*rounds, strict=True)]
    return [{"n": same[0]["n"]} | {key: [one[key] for one in same] for key in same[0] if key != "n"} for same in points]


def slopes(series: list[dict]) -> list[float]:
    """Slope of time against tokens in log-log, of each round: 1 is time in proportion to tokens."""
    tokens = np.log([point["n"] for point in series])
    rounds = zip(*(point["seconds"] for point in series), strict=True)
    return [float(np.polyfit(tokens, np.log(seconds), 1)[0]) for seconds in rounds]


def factor(series: list[dict], key: str) -> float:
    """By what one more token multiplies time ("seconds") or memory ("held"), where they are large.

    Of the memory, what the processes hold anyway is taken off: that of the shortest stream.
    """
    points = [point for point in series if point["n"] >= DOUBLES_FROM]
    anyway = _value(series[0], key) if key == "held" else 0
    values = [_value(point, key) - anyway for point in points]
    return 2 ** float(np.polyfit([point["n"] for point in points], np.log2(values), 1)[0])


def _value(point: dict, key: str) -> float:
    """Median of the rounds; of memory the least, because rungs 1 and 2 keep what an earlier round has taken."""
    return min(point[key]) if key == "held" else statistics.median(point[key])


def growths(first: dict, last: dict, key: str = "held") -> Spread:
    """How many times the memory of one stream another took, over all rounds."""
    return spread([one / other for one, other in zip(last[key], first[key], strict=True)])


def kept(series: list[dict]) -> float:
    """Bytes that the server's own process takes for each further message, median of the rounds."""
    first, last = series[0], series[-1]
    server = [[held - nodes for held, nodes in zip(p["held"], p["nodes"], strict=True)] for p in (first, last)]
    taken = [after - before for before, after in zip(*server, strict=True)]
    return statistics.median(taken) / (last["n"] - first["n"])


def rows(results: dict) -> list[Row]:
    """Rung 4: time in proportion to tokens, and memory flat."""
    series = results["tokens"]["latest"]
    slope = spread(slopes(series))
    off = spread([abs(one - 1) for one in slopes(series)])
    first, last = series[0], series[-1]
    span = f"{first['n']:,} to {last['n']:,} tokens"
    times = f"{_value(first, 'seconds'):.3f} s to {_value(last, 'seconds'):.2f} s"
    held = [statistics.median(point["held"]) / MEBIBYTE for point in (first, last)]
    return [
        Row(
            f"rung 4: total time, {span}",
            "linear",
            "slope 1.00 ± 0.05 in log-log",
            f"{times}; slope {_slope(slope)}; the figure is its distance from 1",
            off,
            SLOPE,
        ),
        Row(
            f"rung 4: memory, {span}",
            "flat",
            "at most 1.05 times",
            f"{held[0]:.1f} MiB, then {held[1]:.1f} MiB",
            growths(first, last),
            FLAT,
        ),
    ]


def _slope(slope: Spread) -> str:
    return f"{slope.median:.3f} ({slope.least:.3f} to {slope.most:.3f})"


def remarks(results: dict) -> str:
    """The other rungs, rung 4 without a window, and many streams."""
    return "\n".join([*_rung_remarks(results), "", *_stream_table(results["streams"])])


def _rung_remarks(results: dict) -> list[str]:
    tokens = results["tokens"]
    lines = [_doubling_remark(LABELS[name], tokens[name]) for name in ("append", "release")]
    if results["limit"]:
        lines.append(f"- The cap is n = {CAP}; this machine stopped before: {results['limit']}.")
    replace, latest = tokens["replace"], tokens["latest"]
    return [
        *lines,
        f"- Rung 3, {replace[0]['n']:,} to {replace[-1]['n']:,} tokens: slope {_slope(spread(slopes(replace)))}, "
        f"memory {growths(replace[0], replace[-1]).median:.2f} times.",
        f"- Rung 4 runs with a window of {WINDOW.messages} messages. From {latest[0]['n']:,} to {latest[-1]['n']:,} "
        f"tokens its nodes and /dev/shm grew {growths(latest[0], latest[-1], 'nodes').median:.3f} times; the server's "
        f"own process took {kept(latest) / 1024:.1f} KiB for each message.",
    ]


def _doubling_remark(label: str, series: list[dict]) -> str:
    last = series[-1]
    return (
        f"- {label.capitalize()}: from n = {DOUBLES_FROM} to {last['n']} each further token multiplies the time by "
        f"{factor(series, 'seconds'):.2f}, and the memory beyond that of the idle processes by "
        f"{factor(series, 'held'):.2f}. "
        f"n = {last['n']}, {2 ** (last['n'] - 1):,} ids in the last message: {_value(last, 'seconds'):.1f} s, "
        f"{_value(last, 'held') / 2**30:.2f} GiB, measured once."
    )


def _stream_table(streams: list[dict]) -> list[str]:
    lines = [
        f"Streams at once, rung 4, decoded, {TOKENS} tokens each. Total time over as many times that of one stream: 1 "
        "would be no gain from decoding together. The node decodes 32 together, the others wait.",
        "",
        "| streams | tokens/s | time for a token of a stream | slowest first token | over linear | memory |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [_stream_line(point, streams[0]) for point in streams]


def _stream_line(point: dict, one: dict) -> str:
    count = point["n"]
    linear = spread([mine / (count * other) for mine, other in zip(point["seconds"], one["seconds"], strict=True)])
    rate = statistics.median(count * TOKENS / seconds for seconds in point["seconds"])
    times = [1_000 * statistics.median(point[key]) for key in ("token", "first")]
    held = statistics.median(point["held"]) / MEBIBYTE
    return (
        f"| {count} | {rate:,.0f} | {times[0]:.2f} ms | {times[1]:.0f} ms "
        f"| {linear.median:.2f} ({linear.least:.2f} to {linear.most:.2f}) | {held:.0f} MiB |"
    )


def draw(results: dict, axes: Sequence[Axes]) -> None:
    """Draw time and memory against tokens, both in log-log, into two axes.

    Parameters
    ----------
    results : dict
        What ``results/growth.json`` holds.
    axes : sequence of Axes
        Two: the first takes time, the second memory.
    """
    kinds = ("seconds", 1.0, "total time (s)"), ("held", MEBIBYTE, "memory (MiB)")
    for panel, (key, unit, label) in zip(axes, kinds, strict=True):
        for number, name in enumerate(("append", "release", "replace", "latest")):
            _line(panel, results["tokens"][name], key, unit, number, LABELS[name])
        panel.set(xscale="log", yscale="log", xlabel="tokens n", ylabel=label)
        panel.set_xlim(right=panel.get_xlim()[1] * 4)  # room for the labels
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#DDDDDD", linewidth=0.6)


def _line(panel: Axes, series: list[dict], key: str, unit: float, number: int, label: str) -> None:
    """One rung, with its name beside its last value. Rungs 1 and 2 lie on each other: the first is drawn wider."""
    color, marker = list(OKABE_ITO.values())[number], "PvDs"[number]
    tokens, values = [point["n"] for point in series], [_value(point, key) / unit for point in series]
    size = 9 - 1.5 * number
    panel.plot(tokens, values, color=color, marker=marker, markersize=size, linewidth=3 - 0.6 * number)
    shift = (8, 4 if number % 2 == 0 else -10)
    panel.annotate(label, (tokens[-1], values[-1]), shift, textcoords="offset points", color=color)


if __name__ == "__main__":
    main(__file__)
