"""Run one tritonserver for another process, its owner, and end it when the owner is gone.

Usage: ``python supervisor.py FD SHM_PREFIX``. The file descriptor leads to the job, as `write_job` writes it:
``{"command": [...], "hidden": [...], "shm_prefix": ["..."], "cleanup": [...], "owner": ["PID"]}``.
Every user of the machine can read a command line, and a job holds a secret. The prefix is for who looks for servers.

The server runs until the owner says a word on standard input or closes it, until the owner's process is gone,
however it ended, or until SIGTERM. Then the server is asked to stop, after a grace period its whole process group is
killed, and the shared-memory files that begin with the prefix are removed. The server runs in a session of its own, so
Ctrl-C in the owner's terminal or *Interrupt kernel* never reaches it.

The pipe alone is not enough: a child that the owner forked holds its other end open. The owner's process alone is not
enough either: an owner lives on when it only drops its server.

This file needs the standard library only: it runs with ``python -I -S``, which starts in a few milliseconds. Every
start of a server waits for it, so it imports little: subprocess, json and glob would double that time.
"""

import ctypes
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping

GRACE_SECONDS = 8.0  # the server gives requests in flight 5 s (--exit-timeout-secs), then needs about 2 s
GROUP_SECONDS = 2.0  # how long to wait for killed processes to be gone
PTRACE_TRACEME, PTRACE_DETACH = 0, 17
HIDDEN = "hidden"
SHARED_MEMORY = "/dev/shm"
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


def write_job(job: Mapping[str, list[str]]) -> bytes:
    """The lists of a job as NAME=VALUE, each ended by a zero byte, which no argument of a program can hold."""
    return b"".join(os.fsencode(f"{name}={value}\0") for name, values in job.items() for value in values)


def read_job(content: bytes) -> dict[str, list[str]]:
    """A job that `write_job` wrote."""
    job: dict[str, list[str]] = {"hidden": [], "cleanup": []}
    for entry in os.fsdecode(content).split("\0")[:-1]:
        name, _, value = entry.partition("=")
        job.setdefault(name, []).append(value)
    return job


def main(job: Mapping[str, list[str]]) -> int:
    """Run the job's command until it ends or has to; returns the command's exit status (128 + n for signal n)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)  # tensors in /dev/shm, traces and logs are this user's alone
    wakeup = signal_pipe()
    owner_id = int(job["owner"][0])
    owner = os.pidfd_open(owner_id)
    if os.getppid() != owner_id:
        return 1  # the owner was gone before its process could be watched
    server = start(job["command"], job["hidden"])
    try:
        wait_for_any(0, owner, wakeup, server.ended)
        status = stop(server)
    finally:
        kill_group(server.pid)
        os.spawnvp(os.P_WAIT, job["cleanup"][0], job["cleanup"]) if job["cleanup"] else None
        remove_shared_memory(job["shm_prefix"][0])
    return status if status >= 0 else 128 - status


class Child:
    """A process that was started here; `ended` is a file descriptor that can be read once it has ended."""

    def __init__(self, pid: int):
        self.pid, self.ended = pid, os.pidfd_open(pid)

    def wait(self, seconds: float | None = None) -> int:
        """Its exit status, or minus the signal that ended it; a `TimeoutError` where it still runs after `seconds`."""
        if not wait_for_any(self.ended, seconds=seconds):
            raise TimeoutError
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start(command: list[str], hidden: list[str]) -> Child:
    """Start the server; the flags that hold a secret come to it in a way that no other user can read."""
    if hidden:
        try:
            return start_hidden(command, dict(flag.split("=", 1) for flag in hidden))
        except (OSError, ValueError) as error:
            print(f"{EXPOSED} ({error})", flush=True)
    return spawn([*command, *hidden], os.environ, keep_tensors_private)


def spawn(command: list[str], environment: Mapping[str, str], prepare: Callable[[], None]) -> Child:
    """Start a process in a session of its own, without input, that calls `prepare` before it becomes the command.

    Raises
    ------
    OSError
        It could not; the process has ended.
    """
    told, tell = os.pipe()  # closed by the kernel when the process becomes the command
    pid = os.fork()
    if pid == 0:
        become(command, environment, prepare, tell)
    os.close(tell)
    with open(told, encoding="utf-8") as file:
        problem = file.read()
    if problem:
        os.waitpid(pid, 0)
        raise OSError(problem)
    return Child(pid)


def become(command: list[str], environment: Mapping[str, str], prepare: Callable[[], None], tell: int) -> None:
    """In the child: become the command, or tell why not, and end."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, which a program would inherit
            signal.signal(ignored, signal.SIG_DFL)
        prepare()
        os.execvpe(command[0], command, environment)
    except BaseException as error:
        os.write(tell, repr(error).encode())
    finally:
        os._exit(127)


def start_hidden(command: list[str], variables: dict[str, str]) -> Child:
    """Start the server with flags that are never on its command line.

    A command line is open to every user of the machine, an environment to its own user alone. So the new process gets a
    placeholder for each hidden flag as an argument, and the flag itself as an environment variable named ``--flag``.
    The kernel stops the process before its first instruction, and the two pointers are swapped.
    """
    arguments = [*command, *(f"{name}={HIDDEN}" for name in variables)]
    server = spawn(arguments, {**os.environ, **variables}, be_traced)
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
        block = bytearray(memory.read((strings - stack) // 8 * 8))  # argc, pointers to arguments and variables, more
        memory.seek(strings)
        text = memory.read(end - strings)
        first, second = (strings + text.index(f"\0{one}\0".encode()) + 1 for one in (argument, variable))
        pointers = memoryview(block).cast("L")
        here, there = map(pointers.tolist().index, (first, second))
        pointers[here], pointers[there] = second, first
        memory.seek(stack)
        memory.write(block)


def signal_pipe() -> int:
    """Make SIGTERM readable: the read end of a pipe that gets a byte for each signal."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return read_end


def wait_for_any(*descriptors: int, seconds: float | None = None) -> bool:
    """Return when one of the file descriptors has data, end of file, or (a pidfd) an ended process; False if none."""
    import select  # a library of its own, and not needed before the server is started

    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def stop(server: Child) -> int:
    """Ask the server to stop, wait for the grace period, then kill it; returns its exit status."""
    os.kill(server.pid, signal.SIGTERM)
    try:
        return server.wait(GRACE_SECONDS)
    except TimeoutError:
        os.kill(server.pid, signal.SIGKILL)
        return server.wait()


def kill_group(group: int) -> None:
    """Kill what is left of the process group, such as stubs orphaned by a stop while models load."""
    deadline = time.monotonic() + GROUP_SECONDS
    try:
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.01)
    except ProcessLookupError:
        return


def remove_shared_memory(prefix: str) -> None:
    """Remove this server's files from /dev/shm."""
    for name in os.listdir(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else []:
        if name.startswith(prefix):
            remove(f"{SHARED_MEMORY}/{name}")


def remove(path: str) -> None:
    """Remove a file that may be gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


if __name__ == "__main__":
    with open(int(sys.argv[1]), "rb") as file:
        given = read_job(file.read())
    sys.exit(main(given))
