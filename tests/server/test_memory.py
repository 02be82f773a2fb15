"""The memory instrument on a live server: what it reads, and that it tells rung 1 from rung 2."""

from dataclasses import dataclass
from itertools import pairwise

import psutil
import pytest
from leftovers import SHARED_MEMORY, launch_of, triton_process

from lab_utils.client import Observation, iter_stream, stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.memory import Memory, by_message, follow, leaks, snapshot
from lab_utils.server import TritonServer
from lab_utils.survey import tokens_of

PANCAKES = "Pancakes. Ingredients:"
TOKENS = 22
MIB = 2**20
STUBS = {"append": "inference version 1", "release": "inference version 2"}
OPTIONS = {"trace_heap": True, "dims_only": True, "max_message_ids": 2**TOKENS}


@dataclass(frozen=True)
class Measured:
    """Both rungs, each after a request that takes what a process takes once, and what is left of it.

    `held` has what `follow` gave for each rung, `next_heap` the heap at the first message of the next request. `fresh`
    and `fresh_heap` are taken when the model has been loaded anew.
    """

    empty: Memory
    held: dict[str, list[tuple[Observation, Memory]]]
    after: Memory
    next_heap: dict[str, int]
    fresh: Memory
    fresh_heap: int


@pytest.fixture(scope="module")
def measured(shared_server: TritonServer) -> Measured:
    """The reported stream to a message of 8 MiB, on a model that was just loaded."""
    shared_server.reload("inference")
    empty = snapshot(shared_server)
    held = {rung: followed(shared_server, rung) for rung in STUBS}
    after = snapshot(shared_server)
    next_heap = {rung: one_more(shared_server, rung) for rung in STUBS}
    shared_server.reload("inference")
    fresh = snapshot(shared_server)
    return Measured(empty, held, after, next_heap, fresh, one_more(shared_server, "append"))


def followed(server: TritonServer, rung: str) -> list[tuple[Observation, Memory]]:
    stream(server, f"ensemble_{rung}", PANCAKES, 1, trace_heap=True)
    return list(follow(server, iter_stream(server, f"ensemble_{rung}", REPORTED_PROMPT, TOKENS, **OPTIONS)))


def one_more(server: TritonServer, rung: str) -> int:
    return stream(server, f"ensemble_{rung}", PANCAKES, 1, **OPTIONS).observations[0].heap


def anonymous(process: psutil.Process) -> int:
    """Anonymous memory as the kernel adds it up, page by page."""
    return sum(mapping.anonymous for mapping in process.memory_maps())


def test_a_snapshot_is_what_the_system_says(server):
    seen, stubs = snapshot(server), {name: process for process, name in server._stubs.items()}
    assert set(seen.stubs) == set(seen.pools) == set(stubs)
    assert {"preprocess version 1", "postprocess version 1", *STUBS.values()} < set(stubs)
    for name, process in stubs.items():
        assert seen.stubs[name] == pytest.approx(anonymous(process), abs=2 * MIB)
    assert seen.server == pytest.approx(anonymous(triton_process(server)), abs=4 * MIB)
    files = list(SHARED_MEMORY.glob(f"{launch_of(server).shm_prefix}*"))
    assert len(files) == len(stubs)
    assert seen.shm == sum(file.stat().st_blocks * 512 for file in files)


def test_an_unloaded_model_holds_nothing(server):
    before = snapshot(server)
    server.unload("inference")
    without = snapshot(server)
    server.load("inference")
    gone = {name for name in before.stubs if name.startswith("inference ")}
    assert set(before.stubs) - set(without.stubs) == set(before.pools) - set(without.pools) == gone
    assert without.shm < before.shm
    assert set(snapshot(server).stubs) == set(before.stubs)


@pytest.mark.parametrize("rung", STUBS)
def test_within_a_request_both_rungs_hold_twice_the_message(measured, rung):
    held = measured.held[rung]
    assert [observation.iteration for observation, _ in held] == list(range(1, TOKENS + 1))
    sizes = by_message(held, STUBS[rung])
    heap = sizes["Python heap"]
    assert sizes["message"] == [4 * 2 ** (n - 1) for n in range(1, TOKENS + 1)]
    assert heap[20] - heap[0] == pytest.approx(2 * sizes["message"][20], rel=0.1)
    assert all(earlier < later for earlier, later in pairwise(heap[14:]))


@pytest.mark.parametrize("rung", STUBS)
def test_a_pool_takes_the_message_and_never_shrinks(measured, rung):
    sizes = by_message(measured.held[rung], STUBS[rung])
    pool = sizes["pool"]
    assert all(message <= size for message, size in zip(sizes["message"], pool, strict=True))
    assert all(earlier <= later for earlier, later in pairwise(pool))
    assert measured.after.pools[STUBS[rung]] == pool[-1] > 2 * measured.empty.pools[STUBS[rung]]


def test_after_the_request_the_heap_of_rung_2_goes_back_and_that_of_rung_1_grows(measured):
    heap = {rung: [observation.heap for observation, _ in held] for rung, held in measured.held.items()}
    assert measured.next_heap["append"] > max(heap["append"])
    assert measured.next_heap["release"] <= heap["release"][0]


def test_a_reload_gives_back_heap_and_pool(measured):
    for stub in STUBS.values():
        assert measured.fresh.pools[stub] == measured.empty.pools[stub] < measured.after.pools[stub]
    assert measured.fresh.pools["postprocess version 1"] >= measured.after.pools["postprocess version 1"]
    assert measured.fresh_heap < measured.held["append"][0][0].heap


def test_the_leak_check_fails_on_rung_1_and_holds_on_rung_2(clean_server):
    request = {"forced_ids": tokens_of(" 茶"), **OPTIONS}
    heap = {}
    for rung in STUBS:
        runs = [stream(clean_server, f"ensemble_{rung}", PANCAKES, 3, **request) for _ in range(7)]
        heap[rung] = [run.observations[-1].heap for run in runs]
    clean_server.reload("inference")
    assert leaks(heap["append"])
    assert not leaks(heap["release"])
