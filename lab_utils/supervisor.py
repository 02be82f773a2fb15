"""Run one tritonserver for another process, its owner, and end it when the owner is gone.

Usage: ``python supervisor.py FD SHM_PREFIX``. The file descriptor leads to the job:
``{"command": [...], "hidden": [...], "shm_prefix": "...", "cleanup": [...], "owner": PID}``.
Every user of the machine can read a command line, and a job holds a secret. The prefix is for who looks for servers.

The server runs until the owner says a word on standard input or closes it, until the owner's process is gone,
however it ended, or until SIGTERM. Then the server is asked to stop, after a grace period its whole process group is
killed, and the shared-memory files that begin with the prefix are removed. The server runs in a session of its own, so
Ctrl-C in the owner's terminal or *Interrupt kernel* never reaches it.

The pipe alone is not enough: a child that the owner forked holds its other end open. The owner's process alone is not
enough either: an owner lives on when it only drops its server.

This file needs the standard library only: it runs with ``python -I -S``, which starts in a few milliseconds.
"""

import array
import contextlib
import ctypes
import glob
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time

GRACE_SECONDS = 8.0  # the server gives requests in flight 5 s (--exit-timeout-secs), then needs about 2 s
GROUP_SECONDS = 2.0  # how long to wait for killed processes to be gone
PTRACE_TRACEME, PTRACE_DETACH = 0, 17
HIDDEN = "hidden"
PR_SET_NO_NEW_PRIVS = 38
SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 317, 1, 4  # the first number is x86-64's
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
NO_FCHMOD_0644 = [  # (operation, instructions to skip if so, if not, operand), over struct seccomp_data
    (LOAD, 0, 0, 4),  # architecture
    (EQUAL, 0, 5, 0xC000003E),  # x86-64
    (LOAD, 0, 0, 0),  # system call
    (EQUAL, 0, 3, 91),  # fchmod
    (LOAD, 0, 0, 24),  # its second argument
    (EQUAL, 0, 1, 0o644),
    (RETURN, 0, 0, 0x00050001),  # EPERM
    (RETURN, 0, 0, 0x7FFF0000),  # go on
]
EXPOSED = "lab: the key of this server stands on its command line, for other users of this machine to read"


def main(job: dict) -> int:
    """Run the job's command until it ends or has to; returns the command's exit status (128 + n for signal n)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)  # tensors in /dev/shm, traces and logs are this user's alone
    wakeup = signal_pipe()
    owner = os.pidfd_open(job["owner"])
    if os.getppid() != job["owner"]:
        return 1  # the owner was gone before its process could be watched
    server = start(job["command"], job["hidden"])
    try:
        wait_for_any(0, owner, wakeup, os.pidfd_open(server.pid))
        status = stop(server)
    finally:
        kill_group(server.pid)
        subprocess.run(job["cleanup"], check=False) if job["cleanup"] else None
        remove_shared_memory(job["shm_prefix"])
    return status if status >= 0 else 128 - status


def start(command: list[str], hidden: list[str]) -> subprocess.Popen:
    """Start the server; the flags that hold a secret come to it in a way that no other user can read."""
    if hidden:
        try:
            return start_hidden(command, dict(flag.split("=", 1) for flag in hidden))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"{EXPOSED} ({error})", flush=True)
    options = {"stdin": subprocess.DEVNULL, "start_new_session": True}
    return subprocess.Popen([*command, *hidden], preexec_fn=keep_tensors_private, **options)


def start_hidden(command: list[str], variables: dict[str, str]) -> subprocess.Popen:
    """Start the server with flags that are never on its command line.

    A command line is open to every user of the machine, an environment to its own user alone. So the new process gets a
    placeholder for each hidden flag as an argument, and the flag itself as an environment variable named ``--flag``.
    The kernel stops the process before its first instruction, and the two pointers are swapped.
    """
    server = subprocess.Popen(
        [*command, *(f"{name}={HIDDEN}" for name in variables)],
        env={**os.environ, **variables},
        preexec_fn=be_traced,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await_stop(server.pid)
        for name, value in variables.items():
            swap(server.pid, f"{name}={HIDDEN}", f"{name}={value}")
    except BaseException:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        raise
    libc().ptrace(PTRACE_DETACH, server.pid, None, None)
    return server


def libc() -> ctypes.CDLL:
    """The C library, with the arguments of ptrace declared."""
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    return library


def keep_tensors_private() -> None:
    """In the child: let its files in /dev/shm keep the mode 0600 that the umask gives them.

    The Python backend opens them to all: the library that it uses calls fchmod with 0644 on each. A seccomp filter
    refuses exactly this call, which the library does not mind. Where no filter is permitted, the files stay readable.
    """
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in NO_FCHMOD_0644)
    held = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(NO_FCHMOD_0644), ctypes.addressof(held))
    libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc().syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, program)


def be_traced() -> None:
    """In the child: have the kernel stop it at the start of the server, besides."""
    keep_tensors_private()
    if libc().ptrace(PTRACE_TRACEME, 0, None, None) != 0:
        raise PermissionError(ctypes.get_errno(), "ptrace is not permitted")


def await_stop(pid: int) -> None:
    """Wait for the stop that `be_traced` asked for; a process that ended instead is left for its parent to reap."""
    if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code == os.CLD_TRAPPED:
        os.waitid(os.P_PID, pid, os.WSTOPPED)


def swap(pid: int, argument: str, variable: str) -> None:
    """Have the argument's pointer lead to the environment variable, and the variable's pointer to the argument."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = [0, 0, 0, *file.read().rpartition(") ")[2].split()]  # numbered as in proc(5)
    stack, strings, end = int(fields[28]), int(fields[48]), int(fields[51])
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(stack)
        pointers = array.array("L", memory.read((strings - stack) // 8 * 8))  # argc, arguments, variables, and more
        memory.seek(strings)
        text = memory.read(end - strings)
        first, second = (strings + text.index(f"\0{one}\0".encode()) + 1 for one in (argument, variable))
        here, there = pointers.index(first), pointers.index(second)
        pointers[here], pointers[there] = second, first
        memory.seek(stack)
        memory.write(pointers)


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
    with open(int(sys.argv[1]), encoding="utf-8") as file:
        given = json.load(file)
    sys.exit(main(given))
