"""The supervisor's own ways to read its job and to start a process: without json and subprocess, it starts sooner."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from lab_utils import supervisor


def nothing() -> None:
    pass


def test_a_job_comes_back_as_it_was_written():
    job = {
        "command": ["/opt/triton server", "--flag=a=b", "", "line\nbreak", "茶", "\udcff"],
        "hidden": [],
        "cleanup": ["docker", "rm"],
        "shm_prefix": ["triton_lab_0_"],
        "owner": ["4711"],
    }
    assert supervisor.read_job(supervisor.write_job(job)) == job


def test_a_program_that_is_not_there_is_told_and_leaves_no_process():
    before = set(psutil.Process().children())
    with pytest.raises(OSError, match="No such file or directory"):
        supervisor.spawn(["/nowhere/tritonserver"], os.environ, nothing)
    assert set(psutil.Process().children()) <= before


def test_what_is_done_before_the_program_may_fail():
    def refused() -> None:
        raise PermissionError("not permitted")

    with pytest.raises(OSError, match="not permitted"):
        supervisor.spawn(["/bin/true"], os.environ, refused)


def test_a_process_gets_a_session_of_its_own_no_input_and_the_usual_signals(capfd):
    says = "import os, sys; print(os.getsid(0) == os.getpid(), sys.stdin.read() == '')"
    child = supervisor.spawn([sys.executable, "-c", says], os.environ, nothing)
    assert child.wait(30) == 0
    assert capfd.readouterr().out == "True True\n"
    child = supervisor.spawn(["/bin/sh", "-c", "kill -PIPE $$; exit 0"], os.environ, nothing)
    assert child.wait(30) == -signal.SIGPIPE


def test_waiting_ends_in_time_and_tells_the_signal():
    child = supervisor.spawn(["/bin/sleep", "60"], os.environ, nothing)
    with pytest.raises(TimeoutError):
        child.wait(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL


def test_it_starts_without_the_slow_modules():
    """Each of them would take longer than all that it imports."""
    read = f"exec(compile(open({supervisor.__file__!r}).read(), 'supervisor', 'exec'), {{'__name__': 'supervisor'}})"
    code = f"{read}; import sys; print(*{{'subprocess', 'json', 'glob', 're', 'threading'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
