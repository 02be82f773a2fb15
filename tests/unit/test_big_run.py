"""The guarded run: how far it may go, one at a time on a machine, and what it asks of the server."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_utils import big_run as module
from lab_utils.big_run import BigRun, Plan, available_memory, big_run, free_shared_memory, machine_lock, needs, plan

GIB = 2**30
PLENTY = 2**50
SIZES = st.integers(min_value=0, max_value=2**40)
HOLDER = """
import sys
from pathlib import Path
from lab_utils.big_run import machine_lock
with machine_lock(print, Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


# --- how far ------------------------------------------------------------------------------------------------------


def test_the_needs_at_28_are_those_of_the_lesson():
    assert needs(28) == (6 * GIB, 2 * GIB)


@given(st.integers(min_value=20, max_value=27))
def test_the_needs_double_with_each_iteration(n):
    assert needs(n + 1) == tuple(2 * amount for amount in needs(n))


@pytest.mark.parametrize("wanted", [20, 21, 24, 28])
def test_with_room_for_all_it_goes_all_the_way(wanted):
    assert plan(wanted, PLENTY, PLENTY) == Plan(wanted, "")


@pytest.mark.parametrize("n", range(21, 29))
def test_what_just_fits_is_taken_and_one_byte_less_is_not(n):
    memory, shared = needs(n)
    assert plan(28, memory, shared).n == plan(28, memory, PLENTY).n == plan(28, PLENTY, shared).n == n
    assert plan(28, memory - 1, PLENTY).n == plan(28, PLENTY, shared - 1).n == n - 1


def test_the_limit_names_memory():
    assert plan(28, 5 * GIB, PLENTY) == Plan(27, "iteration 28 needs 6.00 GiB of memory; 5.00 GiB are free")


def test_the_limit_names_shared_memory():
    assert plan(28, PLENTY, 64 * 2**20) == Plan(23, "iteration 24 needs 0.12 GiB of /dev/shm; 0.06 GiB are free")


def test_the_limit_names_what_is_short_and_not_what_just_fits():
    memory, _ = needs(28)
    assert "of /dev/shm" in plan(28, memory, 0).limit


def test_with_nothing_at_all_it_still_goes_to_20():
    assert plan(28, 0, 0) == Plan(20, "iteration 21 needs 0.05 GiB of memory; 0.00 GiB are free")


@pytest.mark.parametrize("wanted", [1, 2, 19, 20])
def test_less_than_20_is_never_cut(wanted):
    assert plan(wanted, 0, 0) == Plan(wanted, "")


@given(st.integers(min_value=1, max_value=28), SIZES, SIZES)
def test_a_plan_fits_or_is_small(wanted, memory, shared):
    chosen = plan(wanted, memory, shared)
    needed_memory, needed_shared = needs(chosen.n)
    assert chosen.n <= max(20, wanted)
    assert chosen.n >= min(20, wanted)
    assert chosen.n <= 20 or (needed_memory <= memory and needed_shared <= shared)
    assert bool(chosen.limit) == (chosen.n < wanted)


@given(st.integers(min_value=1, max_value=27), SIZES, SIZES, SIZES, SIZES)
def test_more_room_or_a_higher_wish_never_gives_less(wanted, memory, shared, more_memory, more_shared):
    n = plan(wanted, memory, shared).n
    assert plan(wanted, memory + more_memory, shared + more_shared).n >= n
    assert plan(wanted + 1, memory, shared).n >= n


# --- what is free -------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """A machine with 10 GiB available, whose /proc and /sys lie in a folder."""
    for folder in ("proc/self", "sys/fs/cgroup"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * GIB))
    return tmp_path


def limit(machine: Path, group: str, most: str, current: int) -> None:
    folder = machine / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{current}\n")


def test_without_control_groups_the_machine_counts(machine):
    assert available_memory() == 10 * GIB


def test_a_group_without_limit_changes_nothing(machine):
    limit(machine, "", "max", 3 * GIB)
    assert available_memory() == 10 * GIB


def test_a_containers_limit_counts(machine):
    limit(machine, "", str(4 * GIB), 1 * GIB)
    assert available_memory() == 3 * GIB


def test_a_limit_above_what_the_machine_has_changes_nothing(machine):
    limit(machine, "", str(64 * GIB), 1 * GIB)
    assert available_memory() == 10 * GIB


@pytest.mark.parametrize(("inner", "outer", "expected"), [(5, 3, 3), (3, 5, 3), (3, None, 3), (None, 3, 3)])
def test_the_tightest_group_on_the_way_up_counts(machine, inner, outer, expected):
    (machine / "proc/self/cgroup").write_text("0::/user.slice/lab.scope\n")
    limit(machine, "user.slice/lab.scope", str((inner + 1) * GIB) if inner else "max", GIB)
    limit(machine, "user.slice", str((outer + 1) * GIB) if outer else "max", GIB)
    assert available_memory() == expected * GIB


def test_a_group_beyond_its_limit_leaves_nothing(machine):
    limit(machine, "", str(2 * GIB), 3 * GIB)
    assert available_memory() == 0


@pytest.mark.parametrize(
    "groups", ["", "12:memory:/docker/abc\n1:name=systemd:/docker/abc\n", "1:name=systemd:/\n0::/\n"]
)
def test_other_ways_to_list_groups_are_no_error(machine, groups):
    (machine / "proc/self/cgroup").write_text(groups)
    assert available_memory() == 10 * GIB


def test_without_proc_the_machine_counts(machine):
    """macOS has no /proc: the lab runs there against a remote server."""
    shutil.rmtree(machine / "proc")
    assert available_memory() == 10 * GIB


def test_this_machine_has_memory():
    assert 0 < available_memory() <= module.psutil.virtual_memory().total
    assert 0 <= free_shared_memory() <= module.psutil.disk_usage("/dev/shm").total


# --- one at a time ------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock on `tmp_path` until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def can_lock(path: Path) -> bool:
    """Whether the lock is free now: one try, and no waiting."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return module._try_lock(descriptor)
    finally:
        os.close(descriptor)


def test_the_lock_is_held_inside_the_block_and_free_after_it(tmp_path):
    said = []
    with machine_lock(said.append, tmp_path):
        assert not can_lock(tmp_path)
    assert can_lock(tmp_path)
    assert said == []


def test_where_there_is_no_shared_memory_there_is_nothing_to_lock(tmp_path):
    said = []
    with machine_lock(said.append, tmp_path / "absent"):
        said.append("inside")
    assert said == ["inside"]


def test_an_error_in_the_block_frees_the_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), machine_lock(print, tmp_path):
        raise KeyboardInterrupt
    assert can_lock(tmp_path)


def test_a_process_started_in_the_block_does_not_keep_the_lock(tmp_path):
    """The server is such a process, and may outlive the run by a moment."""
    with machine_lock(print, tmp_path):
        child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        assert can_lock(tmp_path)
        child.kill()


def test_another_process_keeps_it_out_and_the_error_says_what_to_do(tmp_path, holder, clock, monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 3.0)
    said = []
    words = f"another big run held the lock on {tmp_path} for 3 s; try again later"
    with pytest.raises(TimeoutError, match=words), machine_lock(said.append, tmp_path):
        pytest.fail("the lock was given out twice")
    assert clock.now > 3.0
    assert "another learner's big run" in said[0]


def test_waiting_is_said_once(tmp_path, holder, clock):
    """Ten minutes of waiting must not be six hundred lines in a cell."""
    said = []
    with pytest.raises(TimeoutError), machine_lock(said.append, tmp_path):
        pytest.fail("the lock was given out twice")
    assert len(said) == 1


def test_who_waits_gets_the_lock_when_the_holder_ends(tmp_path, holder, clock, monkeypatch):
    def sleep(seconds: float) -> None:
        holder.stdin.close()
        holder.wait()

    monkeypatch.setattr(clock, "sleep", sleep)
    said = []
    with machine_lock(said.append, tmp_path):
        assert not can_lock(tmp_path)
    assert len(said) == 1
    assert holder.returncode == 0


def test_a_killed_holder_frees_the_lock(tmp_path, holder):
    assert not can_lock(tmp_path)
    holder.kill()
    holder.wait()
    assert can_lock(tmp_path)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Not root: root may write everywhere."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)


def test_the_lock_needs_no_right_to_write():
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        with without_privileges():
            with pytest.raises(PermissionError):
                (folder / "file").touch()
            with machine_lock(print, folder):
                assert not can_lock(folder)
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()


# --- the run ------------------------------------------------------------------------------------------------------


class Machine:
    """Stands in for lock, server and stream, and notes what is done to them, in order."""

    def __init__(self, attached: bool):
        self.attached, self.events, self.asked = attached, [], {}

    @contextlib.contextmanager
    def lock(self, report):
        self.events.append("lock")
        yield
        self.events.append("unlock")

    def reload(self, model: str) -> None:
        self.events.append(f"reload {model}")

    @contextlib.contextmanager
    def start(self, models, **_):
        self.events.append(f"start {models}")
        yield self
        self.events.append("stop")

    def stream(self, server, model, prompt, **options):
        self.events.append(f"stream {model}")
        self.asked = options
        lengths = [2**i for i in range(options["max_tokens"])]
        return SimpleNamespace(lengths=lengths, observations=[SimpleNamespace(seconds=1.5)])

    def memory(self) -> int:
        self.events.append("look at memory")
        return 1 * GIB


@pytest.fixture(params=[False])
def fake(request, monkeypatch) -> Machine:
    fake = Machine(attached=request.param)
    monkeypatch.delenv("TRITON_SOURCE", raising=False)
    monkeypatch.delenv("TRITON_GRPC_URL", raising=False)
    if fake.attached:
        monkeypatch.setenv("TRITON_GRPC_URL", "127.0.0.1:8001")
    monkeypatch.setattr(module, "machine_lock", fake.lock)
    monkeypatch.setattr(module, "start_server", fake.start)
    monkeypatch.setattr(module, "stream", fake.stream)
    monkeypatch.setattr(module, "available_memory", fake.memory)
    monkeypatch.setattr(module, "free_shared_memory", lambda: PLENTY)
    return fake


def test_memory_is_looked_at_under_the_lock_and_everything_ends_in_order(fake):
    assert big_run(28, report=lambda _: None) == BigRun(
        [2**i for i in range(25)], 1.5, "iteration 26 needs 1.50 GiB of memory; 1.00 GiB are free"
    )
    assert fake.events.index("lock") < fake.events.index("look at memory") < fake.events.index("stream ensemble_append")
    assert "start ['ensemble_append']" in fake.events
    # Unlocked before the server has given its memory back, the next run would be planned too small, or run out of it.
    assert fake.events[-2:] == ["stop", "unlock"]


def test_only_dims_travel_and_the_last_message_is_allowed_to_be_as_long_as_it_gets(fake):
    run = big_run(24, report=lambda _: None)
    assert (run.n, run.limit) == (24, "")
    assert fake.asked["dims_only"] is True
    assert (fake.asked["max_tokens"], fake.asked["max_message_ids"]) == (24, run.lengths[-1])


def test_without_a_wish_it_goes_to_28_where_there_is_room(fake, monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: PLENTY)
    assert big_run(report=lambda _: None).lengths[-1] == 134_217_728


def test_the_learner_is_told_how_far_it_goes_and_why(fake):
    said = []
    big_run(28, report=said.append)
    assert said == ["running to iteration 25 (iteration 26 needs 1.50 GiB of memory; 1.00 GiB are free)"]


@pytest.mark.parametrize("fake", [True], indirect=True)
def test_on_a_remote_server_it_stays_small_and_starts_from_nothing_kept(fake):
    run = big_run(28, report=lambda _: None)
    assert (run.n, run.limit) == (20, "the memory of a remote server cannot be checked from here")
    assert fake.events.index("reload inference") < fake.events.index("stream ensemble_append")
    assert big_run(5, report=lambda _: None).n == 5


@pytest.mark.parametrize("fake", [True], indirect=True)
def test_a_remote_run_works_where_there_is_no_shared_memory_to_look_at(fake, monkeypatch):
    """macOS has no /dev/shm."""

    def absent() -> int:
        raise FileNotFoundError("/dev/shm")

    monkeypatch.setattr(module, "free_shared_memory", absent)
    assert big_run(28, report=lambda _: None).n == 20


@pytest.mark.parametrize("wanted", [0, -1, 29, 1000])
def test_a_wish_out_of_range_is_refused_before_anything_starts(fake, wanted):
    with pytest.raises(ValueError, match=f"wanted is {wanted}; expected 1 to 28"):
        big_run(wanted)
    assert fake.events == []
