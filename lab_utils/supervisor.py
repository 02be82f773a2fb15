"""Run one tritonserver for another process, its owner, and end it when the owner is gone.

Usage: ``python supervisor.py '{"command": [...], "shm_prefix": "...", "cleanup": [...], "owner": PID}'``

The server runs until the owner says a word on standard input or closes it, until the owner's process is gone,
however it ended, or until SIGTERM. Then the server is asked to stop, after a grace period its whole process group is
killed, and the shared-memory files that begin with the prefix are removed. The server runs in a session of its own, so
Ctrl-C in the owner's terminal or *Interrupt kernel* never reaches it.

The pipe alone is not enough: a child that the owner forked holds its other end open. The owner's process alone is not
enough either: an owner lives on when it only drops its server.

This file needs the standard library only: it runs with ``python -I -S``, which starts in a few milliseconds.
"""

import contextlib
import glob
import json
import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 8.0  # the server gives requests in flight 5 s (--exit-timeout-secs), then needs about 2 s
GROUP_SECONDS = 2.0  # how long to wait for killed processes to be gone


def main(job: dict) -> int:
    """Run the job's command until it ends or has to; returns the command's exit status (128 + n for signal n)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakeup = signal_pipe()
    owner = os.pidfd_open(job["owner"])
    if os.getppid() != job["owner"]:
        return 1  # the owner was gone before its process could be watched
    server = subprocess.Popen(job["command"], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for_any(0, owner, wakeup, os.pidfd_open(server.pid))
        status = stop(server)
    finally:
        kill_group(server.pid)
        subprocess.run(job["cleanup"], check=False) if job["cleanup"] else None
        remove_shared_memory(job["shm_prefix"])
    return status if status >= 0 else 128 - status


def signal_pipe() -> int:
    """Make SIGTERM readable: the read end of a pipe that gets a byte for each signal."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return read_end


def wait_for_any(*descriptors: int) -> None:
    """Return when one of the file descriptors has data, end of file, or (a pidfd) an ended process."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    poll.poll()


def stop(server: subprocess.Popen) -> int:
    """Ask the server to stop, wait for the grace period, then kill it; returns its exit status."""
    server.terminate()
    try:
        return server.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def kill_group(group: int) -> None:
    """Kill what is left of the process group, such as stubs orphaned by a stop while models load."""
    deadline = time.monotonic() + GROUP_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.01)


def remove_shared_memory(prefix: str) -> None:
    """Remove this server's files from /dev/shm."""
    for path in glob.glob(f"/dev/shm/{glob.escape(prefix)}*"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
