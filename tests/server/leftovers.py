"""What a server can leave behind: processes, shared memory, ports, open streams. Found, waited for and asserted."""

import errno
import os
import socket
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab_utils import launch, stale
from lab_utils.launch import Launch
from lab_utils.server import TritonServer

RUN_MARK = "TRITON_LAB_TEST_RUN"  # an environment variable that all processes of one test run inherit
SHARED_MEMORY = Path("/dev/shm")
SECONDS = 45.0  # a deadline, not a delay: a stop takes 2 s here, more on a busy machine


def until_none(look: Callable[[], list[str]], what: str, seconds: float = SECONDS) -> None:
    """Wait until `look` returns an empty list; fails with what it still returns when that did not come in time."""
    deadline = time.monotonic() + seconds
    while left := look():
        assert time.monotonic() < deadline, f"left of {what} after {seconds:g} s: {[line[:300] for line in left]}"
        time.sleep(0.05)


@contextmanager
def nothing_left_behind(state: Path, what: str) -> Iterator[None]:
    """Give a run's processes a mark, and `state` for their state and lab book; at the end, none of them may be left."""
    began, mark = time.time(), uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRITON_GRPC_URL", "TRITON_API_KEY", "TRITON_SOURCE", "TRITONSERVER_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv(RUN_MARK, mark)
        patch.setenv("XDG_STATE_HOME", str(state))
        patch.setenv("LAB_BOOK", str(state / "book.sqlite3"))
        patch.setattr(launch, "STATE", state / "triton-ensemble-lab")
        yield
    until_none(lambda: marked_processes(RUN_MARK, mark), what)
    until_none(lambda: ownerless(began), f"{what}, in /dev/shm")


def ownerless(began: float) -> list[str]:
    """Files of this user's lab in /dev/shm, made since `began`, of servers that no process belongs to."""
    owned = {server.id for server in stale.lab_servers()}
    found = []
    for path in SHARED_MEMORY.glob(f"{launch.SHM_PREFIX}*"):
        match = stale.SERVER_ID.match(path.name)
        if match and match[1] not in owned and path.exists() and path.stat().st_ctime >= began:
            found.append(path.name)
    return found


def launch_of(server: TritonServer) -> Launch:
    """Id, ports and folder of a started server; they stay readable after it was stopped."""
    assert server._launch is not None
    return server._launch


def attach_to(server: TritonServer, patch: pytest.MonkeyPatch) -> str:
    """Name this server as one that somebody else runs, with its key; its address."""
    patch.setenv("TRITON_GRPC_URL", server.grpc_url)
    patch.setenv("TRITON_API_KEY", server.api_key.text)
    return server.grpc_url


def header_of(server: TritonServer) -> dict[str, str]:
    """What an HTTP request to it has to bring along."""
    return {server.api_key.header: server.api_key.value}


def triton_process(server: TritonServer) -> psutil.Process:
    """The tritonserver process itself, the supervisor's only child."""
    (child,) = psutil.Process(server._supervisor.pid).children()
    return child


def command_lines(text: str) -> list[str]:
    """Every process that has `text` on its command line, but for this one: "pid command", for a failure's message."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if text in command and process.pid != os.getpid():
            found.append(f"{process.pid} {command}")
    return found


def marked_processes(mark: str, value: str) -> list[str]:
    """Every process whose environment holds `mark` with `value`, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(mark) == value:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


def shm_files(prefix: str) -> list[str]:
    """Files in /dev/shm that begin with `prefix`."""
    return sorted(path.name for path in SHARED_MEMORY.glob(f"{prefix}*"))


def port_is_free(port: int) -> bool:
    """Whether nothing listens on the port or holds it. SO_REUSEADDR only lets connections that ended not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def left_of(launch: Launch, but: int = 0) -> list[str]:
    """What is left of a server, in words; empty when it is gone. The port `but` was never its own."""
    ports = {launch.ports.http, launch.ports.grpc, launch.ports.metrics} - {but}
    taken = [f"port {port}" for port in ports if not port_is_free(port)]
    return [*command_lines(launch.shm_prefix), *shm_files(launch.shm_prefix), *taken]


def assert_gone(launch: Launch, seconds: float = SECONDS, but: int = 0) -> None:
    """No process, no file in /dev/shm and no port of this server is left, or it goes away in time."""
    until_none(lambda: left_of(launch, but), f"server {launch.id}", seconds)


def open_streams(server: TritonServer) -> dict[str, int]:
    """How many streams each node holds state for; nodes without any are left out. Post-processing tells it late."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=SECONDS) as page:
        families = text_string_to_metric_families(page.read().decode())
    held: Counter = Counter()
    for family in families:
        for sample in family.samples if family.name == "lab_open_streams" else ():
            held[sample.labels["model"]] += int(sample.value)
    return dict(+held)


def assert_no_open_streams(server: TritonServer) -> None:
    """No node holds state for a stream, or it lets go of it in time."""
    until_none(lambda: [f"{model}: {held}" for model, held in open_streams(server).items()], "open streams")
