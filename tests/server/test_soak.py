"""Many rounds of 32 streams through rung 4: every text right, nothing held afterwards, memory and pace flat.

Here the run is short; `SOAK_TOKENS=100000` makes it the long one, of whole texts. Print its readings with `-rP`.

Memory counts as flat when a straight line through the readings of the second half rises by less than the readings
scatter around it (three standard deviations), or by less than SLACK: a process takes memory by whole arenas, so one
step of that size may come at any time. For comparison: a KV cache is 393 kB, so one kept for each request would be
13 MB a round.

Pace is processor time of the server's processes for a token: unlike the clock it hardly tells what else the machine
does. It counts as flat when the median of the last third is below PACE times that of the first; work that grows with
what went before would multiply it.
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from leftovers import assert_no_open_streams

from lab_utils.client import StreamResult, stream_many
from lab_utils.in_flight import in_flight_at_stop
from lab_utils.memory import snapshot
from lab_utils.server import TritonServer, start_server

MODEL = "ensemble_latest"
STREAMS = 32
TOKENS = int(os.environ.get("SOAK_TOKENS", "10000"))
LONG = TOKENS >= 100_000
MOST = 256 if LONG else 24  # tokens of a text
SLACK = 3 * 2**20
PACE = 1.5


@dataclass(frozen=True)
class Round:
    """What was read after a round: tokens of the round, seconds on the clock and of the processors, bytes held."""

    tokens: int
    seconds: float
    cpu: float
    held: dict[str, int]


@dataclass(frozen=True)
class Soak:
    """All rounds, the texts that were not as in the reference, and what was left at the end."""

    rounds: list[Round]
    wrong: list[str]
    same_processes: bool
    in_flight: dict[str, int]


@pytest.fixture(scope="module")
def soak(_nothing_left_behind: None, known, tokenizer) -> Iterator[Soak]:
    """Run until there were enough tokens. The first two rounds, when processes take things once, do not count."""
    texts = {prompt: tokenizer.decode(ids[:MOST]) for prompt, ids in known.items()}
    with start_server([MODEL]) as server:
        before = set(server.processes)
        wrong: list[str] = []
        for number in range(2):
            one_round(server, texts, number, wrong)
        rounds: list[Round] = []
        while sum(each.tokens for each in rounds) < TOKENS:
            rounds.append(one_round(server, texts, len(rounds), wrong))
        assert_no_open_streams(server)
        same = set(server.processes) == before
        yield Soak(rounds, wrong, same, in_flight_at_stop(server))


def one_round(server: TritonServer, texts: dict[str, str], number: int, wrong: list[str]) -> Round:
    """32 texts, other ones in each round."""
    prompts = sorted(texts)
    prompts = [prompts[(number * STREAMS + n) % len(prompts)] for n in range(STREAMS)]
    began, cpu = time.perf_counter(), cpu_seconds(server)
    results = stream_many(server, MODEL, prompts, MOST)
    seconds, cpu = time.perf_counter() - began, cpu_seconds(server) - cpu
    wrong += [
        f"round {number}: {prompt!r} -> {result if isinstance(result, Exception) else result.text!r}"
        for prompt, result in zip(prompts, results, strict=True)
        if not (isinstance(result, StreamResult) and result.text == texts[prompt])
    ]
    tokens = sum(len(result.lengths) for result in results if isinstance(result, StreamResult))
    memory = snapshot(server)
    return Round(tokens, seconds, cpu, {"server": memory.server, "pools": memory.shm, **memory.stubs})


def cpu_seconds(server: TritonServer) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in server.processes)


def growth(readings: Sequence[float]) -> tuple[float, float]:
    """How far a straight line through the second half of the readings rises, and how far they scatter around it."""
    half = np.asarray(readings[len(readings) // 2 :], dtype=float)
    at = np.arange(len(half))
    slope, start = np.polyfit(at, half, 1)
    return slope * (len(half) - 1), 3 * float(np.std(half - (start + slope * at), ddof=2))


def test_every_text_of_every_round_is_that_of_the_reference(soak):
    assert len(soak.rounds) * STREAMS >= (20 if LONG else 10) * STREAMS
    assert soak.wrong == []


def test_no_process_died_and_nothing_is_left(soak):
    assert soak.same_processes
    assert soak.in_flight == {}


def test_memory_is_flat(soak):
    risen = {}
    for name in soak.rounds[0].held:
        rise, scatter = growth([each.held[name] for each in soak.rounds])
        print(f"{name}: {soak.rounds[-1].held[name]:,} bytes, rise {rise:,.0f}, scatter {scatter:,.0f}")
        if rise > max(scatter, SLACK):
            risen[name] = rise
    assert risen == {}


def test_the_pace_is_flat(soak):
    pace = [1_000 * each.cpu / each.tokens for each in soak.rounds]
    third = len(pace) // 3
    first, last = statistics.median(pace[:third]), statistics.median(pace[-third:])
    tokens, seconds = sum(each.tokens for each in soak.rounds), sum(each.seconds for each in soak.rounds)
    print(f"{tokens:,} tokens in {seconds:.1f} s; processor time for a token: {first:.2f} ms, then {last:.2f} ms")
    assert last < PACE * first


@pytest.mark.parametrize(
    ("readings", "flat"),
    [
        ([50e6] * 20, True),
        ([50e6 + 1e5 * (n % 3) for n in range(20)], True),
        ([40e6] * 10 + [50e6] * 10, True),  # taken once, early
        ([50e6 + 2e5 * n for n in range(20)], True),  # 2 MB: one arena
        ([50e6 + 13e6 * n for n in range(20)], False),
        ([50e6 + 1e6 * n + 2e5 * (n % 3) for n in range(20)], False),
    ],
)
def test_what_counts_as_flat(readings, flat):
    rise, scatter = growth(readings)
    assert bool(rise <= max(scatter, SLACK)) == flat
