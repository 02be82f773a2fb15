"""The README's "five minutes to your own ensemble", on a server that knows nothing of this lab's launcher settings."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from leftovers import header_of

from lab_utils import trace
from lab_utils.client import stream
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server

MODEL = "ensemble_append"


def lab(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lab_utils", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def set_trace(server: TritonServer, levels: list[str], **more: str) -> None:
    """Change the trace setting as a user does, over HTTP."""
    body = json.dumps({"trace_level": levels, **more}).encode()
    request = urllib.request.Request(f"http://{server.http_url}/v2/trace/setting", body, header_of(server))
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["trace_level"] == levels


def test_contract_of_a_repository():
    done = lab("contract", str(MODEL_REPOSITORY))
    assert done.returncode == 0
    assert "open-decoupled-edge" in done.stdout
    assert "TOKEN_IDS" in done.stdout


@pytest.mark.usefixtures("_nothing_left_behind")
def test_tracing_is_switched_on_and_off_while_the_server_runs(tmp_path):
    path, figure, timeline = tmp_path / "trace.json", tmp_path / "edges.png", tmp_path / "timeline.json"
    flags = ["--trace-config=level=OFF", f"--trace-config=triton,file={path}"]
    with start_server([MODEL], flags=flags) as server:
        stream(server, MODEL, "Pancakes. Ingredients:", request_id="before")
        set_trace(server, ["TIMESTAMPS", "TENSORS"], trace_rate="1", log_frequency="1")
        stream(server, MODEL, REPORTED_PROMPT, request_id="traced")
        set_trace(server, ["OFF"])
        stream(server, MODEL, "Pancakes. Ingredients:", max_tokens=2, request_id="after")
    done = lab("trace", str(path), "--figure", str(figure), "--perfetto", str(timeline))
    assert done.returncode == 0, done.stderr
    assert "verdict: inference, at its output TOKEN_IDS" in done.stdout
    assert [request.request_id for request in trace.requests(trace.read(path))] == ["traced"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert json.loads(timeline.read_text(encoding="utf-8"))["traceEvents"]


@pytest.mark.usefixtures("_nothing_left_behind")
def test_a_trace_is_waited_for_while_the_server_runs(tmp_path):
    path = tmp_path / "trace.json"
    with start_server([MODEL], flags=trace.server_flags(path)) as server:
        stream(server, MODEL, REPORTED_PROMPT, max_tokens=8, request_id="one")
        request = trace.wait_for(path, "one")
        (sent,) = (call for call in request.calls if call.model == "inference")
        ids = [trace.values(hop).tolist() for hop in sent.tensors if (hop.side, hop.name) == ("output", "TOKEN_IDS")]
        assert ids[-1] == REPORTED_IDS
        with pytest.raises(ValueError, match=r"no trace of a request with id 'other' within 0\.1 s"):
            trace.wait_for(path, "other", seconds=0.1)


def test_a_trace_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="no trace of a request with id 'one'"):
        trace.wait_for(Path(tmp_path / "absent.json"), "one", seconds=0.05)
