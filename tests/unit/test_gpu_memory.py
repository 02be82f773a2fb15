"""The GPU memory instrument against a card that is made up: what it reads, what it refuses, and when bytes double."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest

from lab_utils import gpu_memory
from lab_utils.client import Observation
from lab_utils.errors import ServerError
from lab_utils.gpu_memory import (
    GRANULARITY,
    GpuMemory,
    NoGpuError,
    by_message,
    doubles,
    factors,
    follow,
    snapshot,
    told_by_message,
)

MIB = 2**20
PAGE = """# HELP nv_gpu_memory_used_bytes GPU used memory
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-other"} 1.0
nv_gpu_memory_used_bytes{gpu_uuid="GPU-0"} 3145728.000000
"""
NO_METRIC = "# TYPE nv_inference_count counter\nnv_inference_count 3\n"


@dataclass
class Cards:
    """A driver that shows as many cards as `used` has readings, and remembers whether it was left open."""

    used: list[int]
    holders: dict[int, int | None] = field(default_factory=dict)
    open: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        answers = {
            "Init": lambda: self.count(1),
            "Shutdown": lambda: self.count(-1),
            "DeviceGetCount": lambda: len(self.used),
            "DeviceGetHandleByIndex": lambda number: number,
            "DeviceGetUUID": lambda card: f"GPU-{card}",
            "DeviceGetMemoryInfo": lambda card: SimpleNamespace(used=self.used[card]),
            "DeviceGetComputeRunningProcesses": lambda _: [
                SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.holders.items()
            ],
        }
        for name, answer in answers.items():
            patch.setattr(pynvml, f"nvml{name}", answer)

    def count(self, change: int) -> None:
        self.open += change
        assert self.open >= 0


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    """One card with 5 MiB in use: 3 by the server (process 10), 1 by a stub (11), 1 by a stranger (99)."""
    found = Cards([5 * MIB], {10: 3 * MIB, 11: MIB, 99: MIB})
    found.install(monkeypatch)
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A server with two stubs, of which one holds nothing on the card, and a page of metrics."""
    monkeypatch.setattr(gpu_memory, "metrics_page", lambda url: PAGE if url == "here:1" else NO_METRIC)
    names = {10: "server", 11: "inference version 1", 12: "preprocess version 1"}
    processes = {Process(pid): name for pid, name in names.items()}
    return SimpleNamespace(processes=processes, metrics_url="here:1")


@dataclass(frozen=True)
class Process:
    """As much of psutil's as is asked for."""

    pid: int


def observation(iteration: int) -> Observation:
    return Observation(iteration, (4,), 16, 0.0, np.empty(0, np.int32), "", iteration, False)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_names_the_processes_of_the_server_alone(cards, server):
    found = snapshot(server)
    assert found == GpuMemory(5 * MIB, {"server": 3 * MIB, "inference version 1": MIB}, 3 * MIB)
    assert found.server == 4 * MIB
    assert cards.open == 0


def test_a_page_without_the_metric_gives_none(cards, server):
    server.metrics_url = "elsewhere:1"
    assert snapshot(server).metric is None


def test_a_driver_that_does_not_tell_how_much_a_process_holds(cards, server):
    cards.holders[11] = None
    assert snapshot(server).processes == {"server": 3 * MIB, "inference version 1": 0}


def test_the_second_card(cards, server):
    cards.used.append(7 * MIB)
    assert (snapshot(server, gpu=1).used, snapshot(server, gpu=1).metric) == (7 * MIB, None)


@pytest.mark.parametrize("gpu", [1, -1])
def test_a_card_that_is_not_there(cards, server, gpu):
    with pytest.raises(NoGpuError, match=f"GPU {gpu} was asked for; the NVIDIA driver shows 1, counted from 0"):
        snapshot(server, gpu)
    assert cards.open == 0


def test_without_a_driver(cards, server, monkeypatch):
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    with pytest.raises(NoGpuError, match="GPU 0 was asked for, but no NVIDIA driver answers: NVML Shared Library"):
        snapshot(server)


def test_a_server_without_metrics(cards, server):
    server.metrics_url = ""
    with pytest.raises(ServerError, match="metrics cannot be read"):
        snapshot(server)


def test_a_name_in_bytes(cards, server, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda _: b"GPU-0")
    assert snapshot(server).metric == 3 * MIB


# --- a series ---------------------------------------------------------------------------------------------------------


def test_each_response_comes_with_a_snapshot_taken_after_it_has_settled(cards, server):
    responses = (observation(n) for n in (1, 2, 3))
    grown = iter([10 * MIB, 20 * MIB, 40 * MIB])

    def settle() -> None:
        cards.used[0] = next(grown)

    pairs = list(follow(server, responses, settle=settle))
    assert [(seen.iteration, memory.used // MIB) for seen, memory in pairs] == [(1, 10), (2, 20), (3, 40)]
    assert cards.open == 0
    assert by_message(pairs) == {
        "message": [16, 16, 16],
        "card": [10 * MIB, 20 * MIB, 40 * MIB],
        "metric": [3 * MIB] * 3,
        "server": [3 * MIB] * 3,
    }
    assert by_message(pairs, "postprocess version 1")["postprocess version 1"] == [None] * 3


def test_each_message_is_told_with_what_the_card_holds(cards, server):
    messages = (replace(observation(n), nbytes=n * MIB // 2) for n in (1, 2))
    told = told_by_message(server, messages)
    assert told.splitlines() == [f"    {sent} MiB sent, 5 MiB in use on the card" for sent in ("0.500", "1.000")]


def test_without_a_card_it_is_told_that_there_is_none(server, monkeypatch):
    Cards([]).install(monkeypatch)
    asked = []
    told = told_by_message(server, (asked.append(n) for n in (1, 2)))
    assert told == "GPU 0 was asked for; the NVIDIA driver shows 0, counted from 0"
    assert not asked, "the stream was begun"


def test_a_series_that_is_left_early_lets_go_of_the_driver(cards, server):
    series = follow(server, (observation(n) for n in (1, 2, 3)))
    next(series)
    assert cards.open == 1
    series.close()
    assert cards.open == 0


# --- the doubling -----------------------------------------------------------------------------------------------------


def counted(held: int, first: int = 0) -> int:
    """What NVML shows of bytes that begin `first` bytes into a step of 2 MiB."""
    return -(-(held + first) // GRANULARITY) * GRANULARITY


@pytest.mark.parametrize("first", [0, 4, GRANULARITY // 2, GRANULARITY - 4])
def test_pending_ids_double_as_nvml_counts_them(first):
    held = [counted(4 * (2**n - 1), first) for n in range(1, 27)]
    assert doubles(held)
    assert len(factors(held)) >= 4
    assert all(1.4 <= factor <= 2.6 for factor in factors(held))


@pytest.mark.parametrize("factor", [1.0, 1.5, 1.8, 2.2, 3.0])
def test_other_growth_does_not_double(factor):
    assert not doubles([counted(int(12 * MIB * factor**n)) for n in range(8)])


def test_a_series_that_doubles_but_once_does_not_double():
    held = [16 * MIB, 32 * MIB, 64 * MIB, 64 * MIB, 128 * MIB]
    assert not doubles(held)
    assert factors(held) == [2.0, 2.0, 1.0, 2.0]


def test_a_series_that_is_too_small_to_tell_is_refused():
    with pytest.raises(ValueError, match="no two neighbouring readings are larger than 8388608 bytes"):
        doubles([2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB])
    assert factors([2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB]) == []
