"""Ending stale servers: real processes that look like a server's, with a prefix that no real server has.

Each process is a shell or a Python that waits for the end of its input, so none outlives the test that started it.
"""

import contextlib
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from lab_utils import stale

WAIT = "read line"  # ends when standard input does
DEAF = "trap '' TERM; echo deaf; read line"
SUPERVISOR = "import sys; sys.stdin.read()"
ORDERLY = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
time.sleep(0.2)  # ending a server takes a while
open(sys.argv[2], "w").close()
"""


class Processes:
    """Starts processes and ends what is left of them."""

    def __init__(self, prefix: str, shared_memory: Path):
        self.prefix, self.shared_memory = prefix, shared_memory
        self._started: list[subprocess.Popen] = []

    def start(self, command: Sequence[str], executable: str = "/bin/sh", **options) -> subprocess.Popen:
        process = subprocess.Popen(command, executable=executable, stdin=subprocess.PIPE, **options)
        self._started.append(process)
        # The kernel lets Popen go on a moment before it shows the new command line.
        while process.poll() is None and not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass
        return process

    def server(self, server_id: str, script: str = WAIT, **options) -> subprocess.Popen:
        """A tritonserver as its command line looks: the prefix stands in the middle of a flag."""
        flag = f"--backend-config=python,shm-region-prefix-name={self.prefix}{server_id}_"
        return self.start(["/opt/bin/tritonserver", "-c", script, flag, "--http-thread-count=2"], **options)

    def stub(self, server_id: str, script: str = WAIT) -> subprocess.Popen:
        """A Python stub: the prefix starts an argument, and goes on."""
        name = "/opt/backends/python/triton_python_backend_stub"
        return self.start(
            [name, "-c", script, "/models/preprocess/1/model.py", f"{self.prefix}{server_id}_{uuid.uuid4()}"]
        )

    def supervisor(self, server_id: str, script: str = SUPERVISOR, *more: str, **options) -> subprocess.Popen:
        job = f'{{"command": ["tritonserver"], "shm_prefix": "{self.prefix}{server_id}_", "cleanup": []}}'
        file = self.shared_memory.parent / "supervisor.py"
        file.write_text(script)
        return self.start([sys.executable, "-I", "-S", str(file), job, *more], executable=sys.executable, **options)

    def file(self, name: str) -> Path:
        path = self.shared_memory / name
        path.write_bytes(b"shared")
        return path

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.stdin.close()
            process.wait()


@pytest.fixture
def processes(tmp_path, monkeypatch) -> Iterator[Processes]:
    prefix = f"triton_lab_test_{uuid.uuid4().hex[:8]}_"
    shared_memory = tmp_path / "shm"
    shared_memory.mkdir()
    monkeypatch.setattr(stale, "SHM_PREFIX", prefix)
    monkeypatch.setattr(stale, "SERVER_ID", re.compile(re.escape(prefix) + r"([0-9a-f]{12})_"))
    monkeypatch.setattr(stale, "SHARED_MEMORY", shared_memory)
    processes = Processes(prefix, shared_memory)
    yield processes
    processes.end()


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def alive(process: subprocess.Popen) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_the_real_prefix_holds_the_user_and_finds_a_servers_id():
    assert f"triton_lab_{os.getuid()}_" == stale.SHM_PREFIX
    assert Path("/dev/shm") == stale.SHARED_MEMORY
    assert stale.SERVER_ID.search(f"x={stale.SHM_PREFIX}0123456789ab_cd")[1] == "0123456789ab"
    assert stale.SERVER_ID.search(f"triton_lab_{os.getuid() + 1}_0123456789ab_") is None


def test_with_nothing_there_nothing_is_done(processes):
    assert stale.lab_servers() == []
    assert stale.stop_servers() == stale.Stopped([], [], 0)


def test_the_processes_of_a_server_are_found_together(processes):
    one, other = new_id(), new_id()
    supervisor, server, stub = processes.supervisor(one), processes.server(one), processes.stub(one)
    alone = processes.stub(other)
    found = {server.id: server for server in stale.lab_servers()}
    assert found.keys() == {one, other}
    assert found[one].supervisor.pid == supervisor.pid
    assert {process.pid for process in found[one].others} == {server.pid, stub.pid}
    assert found[other].supervisor is None
    assert [process.pid for process in found[other].others] == [alone.pid]


def test_a_stale_server_is_ended_and_its_files_are_removed(processes):
    gone = new_id()
    members = [processes.server(gone), processes.stub(gone)]
    files = [processes.file(f"{processes.prefix}{gone}_{i}") for i in range(3)]
    assert stale.stop_servers() == stale.Stopped([gone], [], 3)
    assert not any(map(alive, members))
    assert not any(file.exists() for file in files)


def test_a_server_in_use_is_left_alone_and_keeps_its_files(processes):
    used = new_id()
    members = [processes.supervisor(used), processes.server(used), processes.stub(used)]
    file = processes.file(f"{processes.prefix}{used}_a")
    assert stale.stop_servers() == stale.Stopped([], [used], 0)
    assert all(map(alive, members))
    assert file.exists()


def test_one_stale_and_one_in_use(processes):
    gone, used = new_id(), new_id()
    stays, goes = [processes.supervisor(used), processes.server(used)], processes.server(gone)
    keeps, loses = processes.file(f"{processes.prefix}{used}_a"), processes.file(f"{processes.prefix}{gone}_a")
    assert stale.stop_servers() == stale.Stopped([gone], [used], 1)
    assert [alive(goes), *map(alive, stays)] == [False, True, True]
    assert (loses.exists(), keeps.exists()) == (False, True)


def test_everything_means_those_in_use_too(processes):
    gone, used = new_id(), new_id()
    members = [processes.supervisor(used), processes.server(used), processes.stub(used), processes.server(gone)]
    file = processes.file(f"{processes.prefix}{used}_a")
    done = stale.stop_servers(everything=True)
    assert (set(done.ended), done.in_use, done.files) == ({gone, used}, [], 1)
    assert not any(map(alive, members))
    assert not file.exists()


def test_the_supervisor_is_asked_first_and_may_end_the_rest_itself(processes, monkeypatch):
    used = new_id()
    supervisor, server = processes.supervisor(used), processes.server(used)
    signals, send = [], stale._signal
    monkeypatch.setattr(
        stale, "_signal", lambda them, number: (signals.append(([p.pid for p in them], number)), send(them, number))
    )
    stale.stop_servers(everything=True)
    assert signals[0] == ([supervisor.pid], stale.signal.SIGTERM)
    assert ([supervisor.pid, server.pid], stale.signal.SIGKILL) in signals


def test_the_supervisor_is_given_time_to_end_its_server_in_order(processes, tmp_path):
    """Killed at once, it would leave what it was about to clean up."""
    cleaned = tmp_path / "cleaned"
    supervisor = processes.supervisor(new_id(), ORDERLY, str(cleaned), stdout=subprocess.PIPE)
    assert supervisor.stdout.readline() == b"ready\n"
    stale.stop_servers(everything=True)
    assert cleaned.exists()


def test_who_does_not_listen_is_killed(processes, monkeypatch):
    monkeypatch.setattr(stale, "END_SECONDS", 0.2)
    gone = new_id()
    deaf = processes.server(gone, DEAF, stdout=subprocess.PIPE)
    assert deaf.stdout.readline() == b"deaf\n"
    assert stale.stop_servers().ended == [gone]
    assert not alive(deaf)


def test_files_that_nobody_owns_any_more_are_removed(processes):
    """A server that was killed with all its processes leaves its files."""
    processes.file(f"{processes.prefix}{new_id()}_a")
    assert stale.stop_servers() == stale.Stopped([], [], 1)
    assert list(processes.shared_memory.iterdir()) == []


def test_files_of_others_stay(processes):
    names = [
        "triton_python_backend_shm_region_1",
        "triton_lab_other_0123456789ab_x",
        f"{processes.prefix}not_an_id_x",
        f"{processes.prefix}0123456789ab",
        f"x{processes.prefix}0123456789ab_x",
        "sem.unrelated",
    ]
    files = [processes.file(name) for name in names]
    assert stale.stop_servers().files == 0
    assert all(file.exists() for file in files)


def test_a_file_that_goes_by_itself_meanwhile_is_no_error(processes, monkeypatch):
    path = processes.file(f"{processes.prefix}{new_id()}_a")
    unlink = Path.unlink

    def late(self, missing_ok=False):
        unlink(path, missing_ok=True)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", late)
    stale.stop_servers()
    assert not path.exists()


def test_a_server_that_starts_meanwhile_keeps_its_files(processes, monkeypatch):
    """Ending a stale server can take many seconds: time enough for another notebook to start one."""
    gone, new = new_id(), new_id()
    processes.server(gone)
    end, files = stale._end, []

    def slow_end(server):
        end(server)
        processes.supervisor(new)
        processes.server(new)
        files.append(processes.file(f"{processes.prefix}{new}_a"))

    monkeypatch.setattr(stale, "_end", slow_end)
    stale.stop_servers()
    assert files[0].exists()


DECOYS = {
    "another lab": [
        "tritonserver",
        "-c",
        WAIT,
        "--backend-config=python,shm-region-prefix-name=triton_lab_x_0123456789ab_",
    ],
    "no prefix of its own": ["tritonserver", "-c", WAIT, "--model-repository=/models"],
    "an id too short": ["tritonserver", "-c", WAIT, "PREFIX0123456789_"],
    "an id that is none": ["tritonserver", "-c", WAIT, "PREFIXzzzzzzzzzzzz_"],
    "somebody who looks at the files": ["sh", "-c", f"{WAIT} # ls -l /dev/shm/PREFIX0123456789ab_*"],
    "somebody who searches for the name": ["grep", "-c", WAIT, "PREFIX0123456789ab_", "notes.txt"],
}


@pytest.mark.parametrize("decoy", DECOYS)
def test_other_processes_are_left_alone(processes, decoy):
    process = processes.start([part.replace("PREFIX", processes.prefix) for part in DECOYS[decoy]])
    assert stale.stop_servers(everything=True) == stale.Stopped([], [], 0)
    assert alive(process)


def test_servers_of_other_users_are_left_alone(processes, monkeypatch):
    theirs = processes.server(new_id())
    monkeypatch.setattr(stale.os, "getuid", lambda: os.geteuid() + 1)
    assert stale.stop_servers(everything=True).ended == []
    assert alive(theirs)


def test_this_very_process_is_never_ended(processes, monkeypatch):
    """`python -m lab_utils stop` must survive a prefix on its own command line."""
    own = [sys.executable, "supervisor.py", f"{processes.prefix}{new_id()}_"]
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: own if self.pid == os.getpid() else [])
    assert stale.lab_servers() == []


def test_a_process_that_ends_while_it_is_looked_at_is_no_error(processes, monkeypatch):
    processes.server(new_id())

    def gone(self):
        raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", gone)
    assert stale.stop_servers() == stale.Stopped([], [], 0)
