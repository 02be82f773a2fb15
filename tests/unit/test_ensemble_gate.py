"""The gate for merges, without a server: what it refuses, and what it will not judge."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from trace_writer import decoupled_request, save

from lab_utils.labbook import Book

ROOT = Path(__file__).parents[2]
HEALTHY, DOUBLING = [1] * 8, [2**n for n in range(8)]


@pytest.fixture
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ensemble_gate", ROOT / "deploy/ci/ensemble_gate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def judged(gate, tmp_path, monkeypatch) -> Callable:
    """Run the gate where the server is a stand-in that leaves a trace with messages of these lengths."""
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "book.sqlite3"))
    seen = SimpleNamespace(grpc_url="127.0.0.1:1", http_url="127.0.0.1:2")

    def run(lengths: list[int], *command: str) -> int:
        @contextlib.contextmanager
        def start_server(models: list[str], *, flags: list[str], **_: object) -> Iterator[SimpleNamespace]:
            path = next(flag for flag in flags if "file=" in flag).partition("file=")[2]
            save(Path(path), decoupled_request(1, lengths) if lengths else [])
            yield seen

        monkeypatch.setattr(gate, "start_server", start_server)
        return gate.main([str(ROOT / "model_repository"), "ensemble_latest", "--", *(command or ["true"])])

    return run


def test_messages_of_one_size_pass(judged, capsys):
    assert judged(HEALTHY) == 0
    assert capsys.readouterr().out.startswith("ensemble_latest passed: 1 request(s) traced.")


def test_messages_that_double_are_refused_with_the_node(judged, capsys, tmp_path):
    assert judged(DOUBLING) == 1
    assert "refused: verdict: producer, at its output IDS" in capsys.readouterr().err
    (written,) = Book(tmp_path / "book.sqlite3").experiments()
    assert written.verdicts[0].startswith("refused: verdict: producer")
    assert written.state == "failed"


def test_a_gate_that_saw_nothing_does_not_open(judged, capsys):
    assert judged([]) == 2
    assert "the trace holds no tensors" in capsys.readouterr().err


def test_a_client_that_fails_is_refused(judged, capsys):
    assert judged(HEALTHY, "sh", "-c", "exit 3") == 1
    assert "ended with status 3: sh -c exit 3" in capsys.readouterr().err


def test_a_client_that_is_not_there_is_a_mistake(judged, capsys):
    assert judged(HEALTHY, "no-such-client") == 2
    assert "no-such-client" in capsys.readouterr().err


def test_a_client_that_never_ends_is_stopped(gate, judged, capsys, monkeypatch):
    monkeypatch.setattr(gate, "SEND_SECONDS", 0.1)
    assert judged(HEALTHY, "sleep", "60") == 2
    assert "timed out" in capsys.readouterr().err


def test_the_client_gets_addresses_but_no_key_of_another_server_and_no_shell_reads_its_arguments(judged, monkeypatch):
    monkeypatch.setenv("TRITON_API_KEY", "KEY=1")
    script = '[ "$TRITON_GRPC_URL $TRITON_HTTP_URL $TRITON_API_KEY $1" = "127.0.0.1:1 127.0.0.1:2  a;b \\$(c)" ]'
    assert judged(HEALTHY, "sh", "-c", script, "client", "a;b $(c)") == 0


def test_a_repository_that_is_not_there_is_a_mistake(gate, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "book.sqlite3"))
    assert gate.main([str(tmp_path / "absent"), "talk", "--", "true"]) == 2
    assert "absent" in capsys.readouterr().err


def test_a_gate_that_breaks_has_not_refused_anything(gate, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "book.sqlite3"))
    monkeypatch.setattr(gate, "read_repository", lambda path: 1 / 0)
    assert gate.main([str(tmp_path), "talk", "--", "true"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err
