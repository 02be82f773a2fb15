"""Traces of a real server: this lab's ensembles, hostile text, HTTP, and levels that are not both on."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from leftovers import header_of

from lab_utils import perfetto, trace
from lab_utils.client import infer, stream
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server
from lab_utils.trace_tracks import Pair, pairs, tracks
from lab_utils.verdict import judge

HOSTILE = 'say "hi" \\ \\n\n},{"id":9,"model_name":"evil"} ","shape":"1","dtype":"BYTES"}}'
HOSTILE_ID = 'x","parent_id":3,"z":"b'


def requests_of(path: Path) -> dict[str, trace.Request]:
    """The requests of a trace without a fault, by the client's id."""
    problems: list[trace.Problem] = []
    found = {request.request_id: request for request in trace.requests(trace.read(path, problems))}
    assert problems == []
    return found


def post(server: TritonServer, model: str, text: str, request_id: str) -> None:
    tensor = {"name": "PROMPT", "shape": [1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"id": request_id, "inputs": [tensor]}).encode()
    url = f"http://{server.http_url}/v2/models/{model}/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body, header_of(server))) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def path(_nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of both ensembles and of one model called over HTTP, in one file."""
    found = tmp_path_factory.mktemp("trace") / "trace.json"
    flags = trace.server_flags(found, log_frequency=0)
    with start_server(["ensemble_append", "ensemble_replace"], flags=flags) as server:
        stream(server, "ensemble_append", "Pancakes. Ingredients:", 6, request_id="healthy")
        stream(server, "ensemble_append", REPORTED_PROMPT, 8, request_id="field")
        stream(server, "ensemble_replace", REPORTED_PROMPT, 8, request_id="replace")
        stream(server, "ensemble_append", HOSTILE, 2, request_id=HOSTILE_ID)
        post(server, "preprocess", HOSTILE, "http")
    return found


@pytest.fixture(scope="module")
def requests(path: Path) -> dict[str, trace.Request]:
    return requests_of(path)


def only(found: list[Pair], output: str, consumer: str) -> Pair:
    (pair,) = [each for each in found if (each.output, each.consumer) == (output, consumer)]
    return pair


def test_every_call_of_every_request_is_there(requests):
    calls = {name: [call.model for call in request.calls] for name, request in requests.items()}
    front = ["preprocess", "inference"]
    assert calls == {
        "healthy": ["ensemble_append", *front, *["postprocess"] * 6],
        "field": ["ensemble_append", *front, *["postprocess"] * 8],
        "replace": ["ensemble_replace", *front, *["postprocess"] * 8],
        HOSTILE_ID: ["ensemble_append", *front, *["postprocess"] * 2],
        "http": ["preprocess"],
    }
    versions = {call.version for call in requests["replace"].calls if call.model == "inference"}
    assert versions == {3}


def test_producer_and_consumer_stand_side_by_side(requests):
    found = pairs(requests["field"])
    ids = only(found, "TOKEN_IDS", "postprocess")
    assert (ids.producer, ids.input, ids.by) == ("inference", "TOKEN_IDS", "name and values")
    assert [tensor.dims for tensor in ids.sent] == [(2**n,) for n in range(8)]
    assert [tensor.dims for tensor in ids.received] == [(2**n,) for n in range(8)]
    assert [tensor.nbytes for tensor in ids.sent] == [4 * 2**n for n in range(8)]
    assert trace.values(ids.sent[-1]).tolist() == REPORTED_IDS


def test_values_and_configs_tell_the_same_wiring(requests):
    for name in ("field", "replace"):
        by_values = {(p.producer, p.output, p.consumer, p.input) for p in pairs(requests[name])}
        by_config = {(p.producer, p.output, p.consumer, p.input) for p in pairs(requests[name], MODEL_REPOSITORY)}
        assert by_values == by_config
        assert ("inference", "TOKEN_IDS", "postprocess", "TOKEN_IDS") in by_config


def test_the_verdict_names_inference_and_says_that_it_is_only_sometimes(requests):
    verdict = judge(tracks([requests["healthy"], requests["field"]]))
    assert (verdict.node, verdict.tensor, verdict.kind, verdict.first) == ("inference", "TOKEN_IDS", "exponential", 2)
    assert verdict.others == ()
    assert "each of these messages holds the whole message before it" in verdict.evidence
    assert "it grows in 1 of the 2 requests with more than one message" in verdict.evidence


@pytest.mark.parametrize("name", ["healthy", "replace"])
def test_a_healthy_request_has_no_verdict(requests, name):
    assert judge(tracks([requests[name]])).node is None


def test_hostile_text_comes_back_exactly(requests):
    for name, model in ((HOSTILE_ID, "preprocess"), ("http", "preprocess")):
        (call,) = [call for call in requests[name].calls if call.model == model]
        (prompt,) = [tensor for tensor in call.tensors if tensor.name == "PROMPT"]
        assert trace.values(prompt).tolist() == [HOSTILE.encode()]
        assert prompt.nbytes == len(HOSTILE.encode())


def test_times_are_in_order_and_inside_the_request(requests):
    for request in requests.values():
        for call in request.calls:
            assert request.root.start_ns <= call.start_ns <= call.end_ns
            assert call.model.startswith("ensemble") or (call.queue_ns >= 0 and call.compute_ns > 0)


def test_the_file_for_perfetto_has_every_call_and_arrow(requests, tmp_path):
    perfetto.write(requests.values(), tmp_path / "out.json")
    events = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["traceEvents"]
    calls = [event for event in events if event.get("cat") == "call"]
    assert len(calls) == sum(len(request.calls) for request in requests.values())
    # preprocess to inference once for each stream, inference to postprocess once for each message
    assert sum(event["ph"] == "s" for event in events) == 4 + 6 + 8 + 8 + 2


def test_numbered_files_and_a_server_that_started_again(tmp_path):
    """Two servers leave numbered files under one name; their ids both begin with 1."""
    for number in range(2):
        with start_server(["preprocess"], flags=trace.server_flags(tmp_path / f"{number}.json")) as server:
            for name in ("a", "b"):
                post(server, "preprocess", "hello", f"{name}{number}")
    for place, name in enumerate(["0.json.0", "0.json.1", "1.json.0", "1.json.1"]):
        (tmp_path / name).rename(tmp_path / f"all.json.{place}")
    found = list(trace.requests(trace.read(tmp_path / "all.json")))
    assert [(each.run, each.request_id) for each in found] == [(1, "a0"), (1, "b0"), (2, "a1"), (2, "b1")]


def test_times_alone_and_tensors_alone(tmp_path):
    times, tensors = tmp_path / "times.json", tmp_path / "tensors.json"
    prompt = {"PROMPT": np.array([b"hello"], dtype=np.object_)}
    with start_server(["preprocess"], flags=trace.server_flags(times, tensors=False)) as server:
        infer(server, "preprocess", prompt)
    with start_server(
        ["preprocess"], flags=[flag for flag in trace.server_flags(tensors) if "TIMESTAMPS" not in flag]
    ) as server:
        infer(server, "preprocess", prompt)
    (call,) = trace.read(times)
    assert (call.model, call.tensors, call.messages) == ("preprocess", (), 0)
    assert call.compute_ns > 0
    (call,) = trace.read(tensors)
    assert (call.model, call.times) == ("", ())
    assert {tensor.name for tensor in call.tensors} == {"PROMPT", "PROMPT_IDS"}
