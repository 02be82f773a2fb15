"""The memory instrument without a server: the leak check, the pools' files, the series and the figure."""

import os
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from lab_utils import memory
from lab_utils.client import Observation
from lab_utils.errors import ServerError
from lab_utils.memory import BLOCK, SLACK, Memory, by_message, leaks, snapshot
from lab_utils.memory_figure import memory_figure
from lab_utils.server import TritonServer
from lab_utils.sources import Source

WARM_UP, LEVEL = 9_000, 2_500_000


# --- leaks ------------------------------------------------------------------------------------------------------------


def readings(step: int, count: int = 8) -> list[int]:
    """A low first reading, and `count` more that rise by `step` bytes."""
    return [WARM_UP, *(LEVEL + step * n for n in range(count))]


@pytest.mark.parametrize(
    "heap",
    [
        pytest.param(readings(0), id="level"),
        pytest.param(readings(-100_000), id="falling"),
        pytest.param(readings(1_000), id="some kilobytes"),
        pytest.param([*readings(0), 9 * LEVEL, LEVEL], id="one high reading"),
        pytest.param([*readings(0), 9 * LEVEL], id="a high reading at the end"),
        pytest.param([LEVEL * 9, *readings(0)], id="a high reading at the start"),
        pytest.param(readings(0, count=4), id="fewest readings"),
    ],
)
def test_what_is_no_leak(heap):
    assert not leaks(heap)


@pytest.mark.parametrize(
    "heap",
    [
        pytest.param([LEVEL * 2**n for n in range(6)], id="doubling"),
        pytest.param(readings(20_000), id="slow"),
        pytest.param([value - 9_000 * (n % 2) for n, value in enumerate(readings(20_000))], id="slow and uneven"),
        pytest.param([9 * LEVEL, *readings(20_000)[1:]], id="slow, after a high first reading"),
        pytest.param([400 * LEVEL + 30_000 * n for n in range(9)], id="small beside a large heap"),
    ],
)
def test_what_is_a_leak(heap):
    assert leaks(heap)


def test_growth_is_held_against_the_slack():
    heap = [WARM_UP, LEVEL, LEVEL, LEVEL + SLACK, LEVEL + SLACK]
    assert not leaks(heap)
    assert leaks([*heap[:3], *(value + 1 for value in heap[3:])])
    assert leaks(heap, slack=SLACK - 1)


def test_a_leak_too_slow_for_few_requests_is_seen_with_more():
    assert not leaks(readings(5_000, count=6))
    assert leaks(readings(5_000, count=30))


@pytest.mark.parametrize("heap", [[], [1] * 4, [None] * 7, [1, 2, 3, None, 5, 6]])
def test_readings_that_are_missing_are_said(heap):
    with pytest.raises(ValueError, match="expected 5 or more readings, all of them with trace_heap=True"):
        leaks(heap)


# --- snapshot ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeProcess:
    """A process with this much resident and shared memory, that may end before it is looked at."""

    rss: int
    shared: int
    command: tuple[str, ...] = ()
    ended: bool = False

    def memory_info(self) -> SimpleNamespace:
        if self.ended:
            raise psutil.NoSuchProcess(1)
        return SimpleNamespace(rss=self.rss, shared=self.shared)

    def cmdline(self) -> list[str]:
        return list(self.command)


@pytest.fixture
def fake_server(tmp_path, monkeypatch):
    """A server with two instances of one version, and a process that ends meanwhile."""
    monkeypatch.setattr(memory, "SHARED_MEMORY", tmp_path)
    checks = []
    processes = {
        FakeProcess(100, 30): "server",
        FakeProcess(50, 20, ("stub", "a/1/model.py", "own_1")): "a version 1",
        FakeProcess(60, 20, ("stub", "a/1/model.py", "own_2")): "a version 1",
        FakeProcess(0, 0, ended=True): "b version 1",
    }
    return SimpleNamespace(processes=processes, shm_prefix="own_", check=lambda: checks.append(1), checks=checks)


def test_instances_of_one_version_are_added_up(fake_server, tmp_path):
    for name in ("own_1", "own_2", "own_3", "other_4"):
        (tmp_path / name).write_bytes(b"x" * 5_000)
    one = (tmp_path / "own_1").stat().st_blocks * BLOCK
    seen = snapshot(fake_server)
    assert seen == Memory(70, {"a version 1": 70}, {"a version 1": 2 * one, "own_3": one})
    assert seen.shm == 3 * one > 3 * 5_000


def test_a_process_that_ended_makes_the_server_be_checked(fake_server):
    snapshot(fake_server)
    assert fake_server.checks == [1]


def test_a_file_counts_with_what_it_takes_up(fake_server, tmp_path):
    """A file may be longer than what was ever written to it."""
    with (tmp_path / "own_1").open("wb") as file:
        file.truncate(10 * 2**20)
    assert os.stat(tmp_path / "own_1").st_size == 10 * 2**20
    assert snapshot(fake_server).shm < 2**20


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source("attach", "", grpc_url="far:8001"), "run by somebody else: the lab cannot look at its processes"),
        (Source("docker", ""), "in a container"),
        (Source("wheel", ""), "this server is stopped"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_server_whose_processes_cannot_be_read_is_refused(source, words, tmp_path):
    with pytest.raises(ServerError, match=words):
        snapshot(TritonServer(source, [tmp_path], [], [], print))


# --- series and figure ------------------------------------------------------------------------------------------------


def observation(iteration: int, heap: int | None) -> Observation:
    return Observation(iteration, (iteration,), 4 * iteration, 0.0, np.empty(0, np.int32), "", iteration, False, heap)


def test_by_message():
    held = ((observation(n, 100 * n), Memory(6 + n, {"a": 10 * n, "b": 1}, {"a": n, "b": 1})) for n in (1, 2, 3))
    assert by_message(held, "a") == {
        "message": [4, 8, 12],
        "Python heap": [100, 200, 300],
        "pool": [1, 2, 3],
        "private, stub": [10, 20, 30],
        "private, server": [7, 8, 9],
    }


PANELS = {"version 1": {"message": [4, 8, 16], "heap": [100, 200, 300]}, "version 2": {"heap": [100, 900, 100]}}


def drawn(axes) -> dict[str, list]:
    """Label to the points of all its lines."""
    found: dict[str, list] = {}
    for line in axes.get_lines():
        found.setdefault(line.get_label(), []).extend(line.get_xydata().tolist())
    return found


@pytest.mark.parametrize("log", [False, True])
def test_every_value_is_drawn_once(log):
    figure = memory_figure(PANELS, log=log)
    for axes, quantities in zip(figure.axes, PANELS.values(), strict=True):
        expected = {label: [[n, value] for n, value in enumerate(series, 1)] for label, series in quantities.items()}
        assert drawn(axes) == expected
        low, high = axes.get_ylim()
        assert low < 4
        assert high > 900
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(PANELS)
    assert figure.axes[0].get_yscale() == ("log" if log else "linear")


def test_a_label_looks_the_same_in_all_panels_and_stands_in_the_legend_once():
    figure = memory_figure(PANELS)
    looks = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.get_lines()} for axes in figure.axes
    ]
    assert looks[0]["heap"] == looks[1]["heap"] != looks[0]["message"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["message", "heap"]


def test_a_line_ends_with_its_request():
    axes = memory_figure({"one": {"heap": [1, 2, 3, 4, 5]}}, requests=[2, 3]).axes[0]
    heap = [line.get_xdata().tolist() for line in axes.get_lines() if line.get_label() == "heap"]
    assert heap == [[1, 2], [3, 4, 5]]
    (mark,) = [line for line in axes.get_lines() if line.get_label() != "heap"]
    assert mark.get_xdata() == [2.5, 2.5]
    assert [text.get_text() for text in axes.texts] == ["request 1", "request 2"]


def test_a_linear_axis_has_binary_units():
    axes = memory_figure({"one": {"heap": [1, 50 * 2**20]}}).axes[0]
    axes.figure.draw_without_rendering()
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert "16 MiB" in shown
    assert "48 MiB" in shown


@pytest.mark.parametrize(
    ("panels", "words"),
    [
        ({}, "expected 1 to 6 labels"),
        ({"one": {"heap": []}}, "0 values"),
        ({"one": {str(n): [1] for n in range(7)}}, "7 labels"),
        ({"one": {"heap": [1, 0]}}, "below 1 byte"),
        ({"one": {"heap": [1, None]}}, "were the readings taken"),
    ],
)
def test_what_cannot_be_drawn_is_said(panels, words):
    with pytest.raises(ValueError, match=words):
        memory_figure(panels)
