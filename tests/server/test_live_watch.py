"""The live instrument on a real server: what it sees, when its alarm fires, and that it leaves the log as it was."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import np_to_triton_dtype

from lab_utils import watch as watch_module
from lab_utils.client import stream, stream_many
from lab_utils.errors import ServerError
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import TritonServer, start_server
from lab_utils.watch import watch

ENGLISH = "Pancakes. Ingredients:"
DOUBLING = [(2**n,) for n in range(8)]
CLI = (
    "import argparse, sys; from lab_utils import watch_cli; p = argparse.ArgumentParser(); "
    "watch_cli.add_command(p.add_subparsers()); a = p.parse_args(sys.argv[1:]); sys.exit(a.run(a))"
)


def level(server: TritonServer) -> int:
    with server.client() as client:
        return client.get_log_settings().settings["log_verbose_level"].uint32_param


def set_log(server: TritonServer, **settings: object) -> None:
    with server.client() as client:
        client.update_log_settings(settings)


@pytest.fixture(autouse=True)
def _log_as_before(server: TritonServer) -> Iterator[None]:
    assert level(server) == 0
    yield
    found = level(server)
    set_log(server, log_verbose_level=0)
    assert found == 0, "a watch left the log verbose"


def test_rung_1_raises_the_alarm_at_message_4_and_the_verdict_names_the_node(clean_server):
    events = []
    with watch(clean_server, on_event=events.append) as seen:
        sent = stream(clean_server, "ensemble_append", REPORTED_PROMPT, 8)
    assert seen.dims("inference", "TOKEN_IDS") == DOUBLING == [(n,) for n in sent.lengths]
    assert seen.dims("postprocess", "TOKEN_IDS", side="input") == DOUBLING
    first = seen.alarms[0]
    assert (first.rule, first.node, first.side, first.tensor) == ("dims", "inference", "output", "TOKEN_IDS")
    assert (first.number, first.sizes) == (4, (1, 2, 4, 8))
    assert {alarm.number for alarm in seen.alarms} == {4}
    before = [one for one in events[: events.index(first)] if getattr(one, "tensor", "") == "TOKEN_IDS"]
    assert [one.number for one in before if one.node == "inference"] == [1, 2, 3, 4]  # at once, not at message 5
    verdict = seen.verdict()
    assert (verdict.node, verdict.tensor, verdict.kind) == ("inference", "TOKEN_IDS", "exponential")


@pytest.mark.parametrize(("ensemble", "prompt"), [("ensemble_latest", REPORTED_PROMPT), ("ensemble_append", ENGLISH)])
def test_no_alarm_and_no_verdict_where_nothing_grows(clean_server, ensemble, prompt):
    with watch(clean_server) as seen:
        stream(clean_server, ensemble, prompt, 8)
    assert seen.dims("inference", "TOKEN_IDS") == [(1,)] * 8
    assert not seen.alarms
    assert seen.verdict().node is None


def test_three_tokens_are_too_few_for_an_alarm(server):
    with watch(server) as seen:
        stream(server, "ensemble_release", REPORTED_PROMPT, 3)
    assert seen.dims("inference", "TOKEN_IDS") == DOUBLING[:3]
    assert not seen.alarms


def test_every_message_of_the_block_is_read_and_none_from_before_or_after(server):
    stream(server, "ensemble_latest", ENGLISH, 4, request_id="before")
    for turn in range(5):
        with watch(server) as seen:
            stream(server, "ensemble_latest", ENGLISH, 7, request_id=f"turn {turn}")
        assert seen.requests == [f"turn {turn}"]
        assert len(seen.dims("ensemble_latest", "TEXT")) == 7


@contextmanager
def late_copy(source: Path, target: Path) -> Iterator[None]:
    """A copy of a growing file that is always a fifth of a second behind, as a collector of container logs is."""
    done = threading.Event()

    def copy() -> None:
        with source.open("rb") as old, target.open("ab", buffering=0) as new:
            old.seek(0, os.SEEK_END)
            while not done.is_set():
                piece = old.read()
                done.wait(0.2)
                new.write(piece)

    target.touch()
    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def key_in_environment(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As who watches by address alone gives it."""
    monkeypatch.setenv("TRITON_API_KEY", server.api_key.text)


@pytest.mark.usefixtures("key_in_environment")
def test_a_log_that_comes_late_is_waited_for(server, tmp_path):
    late = tmp_path / "late.log"
    with late_copy(server.log_path, late):
        with watch(grpc_url=server.grpc_url, log=late) as seen:
            stream(server, "ensemble_latest", ENGLISH, 5)
        assert len(seen.dims("ensemble_latest", "TEXT")) == 5
        assert seen.notes == []


@pytest.mark.usefixtures("key_in_environment")
def test_over_http_alone_and_in_the_other_log_format(server):
    set_log(server, log_format="ISO8601")
    try:
        with watch(http_url=server.http_url, log=server.log_path) as seen:
            stream(server, "ensemble_release", REPORTED_PROMPT, 8)
    finally:
        set_log(server, log_format="default")
    assert seen.dims("inference", "TOKEN_IDS") == DOUBLING
    assert seen.alarms[0].number == 4
    assert abs(seen.messages[-1].seconds - time.time()) < 60  # UTC is read as UTC
    assert {sample.node for sample in seen.samples if sample.quantity == "executions"} >= {"inference", "postprocess"}


def test_concurrent_requests_with_ids_are_told_apart(server):
    with watch(server) as seen:
        stream_many_with_ids(server, "ensemble_release", REPORTED_PROMPT, ["A", "B", "C"])
    for label in "ABC":
        assert seen.dims("postprocess", "TOKEN_IDS", request=label, side="input") == DOUBLING
        assert seen.dims("inference", "TOKEN_IDS", request=label) == DOUBLING
    fired = [alarm for alarm in seen.alarms if (alarm.node, alarm.side) == ("inference", "output")]
    assert sorted(alarm.request for alarm in fired) == ["A", "B", "C"]
    assert {alarm.number for alarm in fired} == {4}


def stream_many_with_ids(server: TritonServer, ensemble: str, prompt: str, ids: list[str]) -> None:
    threads = [
        threading.Thread(target=stream, args=(server, ensemble, prompt, 8), kwargs={"request_id": one}) for one in ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_concurrent_requests_without_ids_are_never_guessed(server):
    with watch(server) as seen:
        stream_many(server, "ensemble_latest", [ENGLISH] * 4, 6)
    alone = {message.request for message in seen.messages if message.number}
    mixed = [message for message in seen.messages if message.number is None]
    if mixed:  # they did run at the same time
        assert all(message.candidates for message in mixed)
        assert any("same id, or none" in line for line in seen.cannot_show)
    sizes = [message.dims for message in seen.messages if message.tensor == "TOKEN_IDS" and message.side == "input"]
    assert sizes == [(1,)] * 24
    assert not seen.alarms
    assert alone  # the first one was alone when it began


def test_a_decoupled_model_called_alone_one_request_after_the_other(server):
    with watch(server) as seen:
        for label in ("first", "second"):
            call_inference(server, label, tokens=5)
    for label in ("first", "second"):
        assert seen.dims("inference", "TOKEN_IDS", request=label) == [(1,)] * 5
    assert not any("several" in line or "before the watch" in line for line in seen.cannot_show)


def call_inference(server: TritonServer, request_id: str, tokens: int) -> None:
    inputs = []
    for name, values in (("PROMPT_IDS", [100, 101]), ("MAX_TOKENS", [tokens]), ("FORCED_IDS", [264] * tokens)):
        array = np.array(values, np.int32)
        inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    answers = queue.Queue()
    with server.client() as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(
            "inference", inputs, model_version="4", request_id=request_id, enable_empty_final_response=True
        )
        while True:
            result, error = answers.get(timeout=30)
            assert error is None
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
        client.stop_stream(cancel_requests=False)


def test_samples_of_backlog_calls_and_memory(server):
    with watch(server, interval=0.02) as seen:
        stream(server, "ensemble_latest", ENGLISH, 8)
    quantities = {(sample.quantity, sample.node) for sample in seen.samples}
    assert {("backlog", "postprocess"), ("memory", "(server)"), ("memory", "inference")} <= quantities
    calls = [one.value for one in seen.samples if (one.quantity, one.node) == ("executions", "postprocess")]
    assert calls[-1] - calls[0] == 8
    memory = [one.value for one in seen.samples if (one.quantity, one.node) == ("memory", "inference")]
    assert min(memory) > 10e6


@pytest.mark.usefixtures("key_in_environment")
def test_a_remote_server_shows_no_dims_and_says_so(server):
    with watch(grpc_url=server.grpc_url) as seen:
        stream(server, "ensemble_latest", ENGLISH, 2)
        assert level(server) == 0  # nobody could read the lines
    assert not seen.messages
    assert any(line.startswith("dims and bytes") and "log" in line for line in seen.cannot_show)
    assert any(line.startswith("backlog") for line in seen.cannot_show)
    assert {sample.quantity for sample in seen.samples} == {"executions", "memory"}


@pytest.mark.usefixtures("key_in_environment")
def test_the_log_of_another_server_is_found_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "MARK_SECONDS", 0.3)
    other = tmp_path / "other.log"
    other.write_text("something\n")
    with watch(grpc_url=server.grpc_url, log=other) as seen:
        pass
    assert any("does not get what the server" in line and str(other) in line for line in seen.cannot_show)


def fail_while_watching(server: TritonServer, error: type[BaseException]) -> None:
    with watch(server):
        assert level(server) == 1
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_log_level_is_put_back_when_the_block_fails(server, error):
    with pytest.raises(error):
        fail_while_watching(server, error)
    assert level(server) == 0


def test_a_level_that_was_higher_stays(server):
    set_log(server, log_verbose_level=2)
    with watch(server) as seen:
        assert level(server) == 2
        stream(server, "ensemble_latest", ENGLISH, 2)
    assert level(server) == 2
    assert len(seen.dims("inference", "TOKEN_IDS")) == 2
    set_log(server, log_verbose_level=0)


def test_two_watches_that_overlap(server):
    one, two = watch(server), watch(server)
    with one:
        two.__enter__()
    try:
        assert level(server) == 1
        assert any("stays verbose" in note for note in one.notes)
        stream(server, "ensemble_latest", ENGLISH, 3)
    finally:
        two.__exit__(None, None, None)
    assert level(server) == 0
    assert len(two.dims("inference", "TOKEN_IDS")) == 3


def test_lines_that_somebody_turned_off_are_turned_on_again(server):
    with watch(server, interval=0.02) as seen:
        set_log(server, log_verbose_level=0)
        deadline = time.monotonic() + 20
        while level(server) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stream(server, "ensemble_latest", ENGLISH, 2)
    assert any("turned the verbose lines off" in note for note in seen.notes)
    assert len(seen.dims("inference", "TOKEN_IDS")) == 2


def start_cli(server: TritonServer, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CLI, "watch", "--grpc", server.grpc_url, "--log", str(server.log_path), *arguments]
    environment = {**os.environ, "TRITON_API_KEY": server.api_key.text}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_command_line_ends_in_order_on_a_signal(server, number, tmp_path):
    figure = tmp_path / "figures" / "watch.png"
    process = start_cli(server, "--figure", str(figure))
    for line in process.stdout:  # the first poll: it watches
        if line.startswith("executions"):
            break
    stream(server, "ensemble_release", REPORTED_PROMPT, 8, request_id="req")
    for line in process.stdout:  # before the end: lines come at once
        if line.startswith("ALARM"):
            break
    assert line == "ALARM dims: inference, output TOKEN_IDS, dimension 0, message 4 of request req: 1 2 4 8\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")
    assert "verdict: inference, at its output TOKEN_IDS" in out
    assert level(server) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_command_line_without_an_alarm_in_json(server):
    process = start_cli(server, "--seconds", "0.3", "--json", "--metrics", server.metrics_url)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["event"] == "end"
    assert events[-1]["alarms"] == 0
    assert {"backlog", "executions"} <= {event.get("quantity") for event in events}


def test_a_server_that_dies_while_it_is_watched():
    with start_server(["ensemble_latest"]) as doomed, watch(doomed, interval=0.05) as seen:
        stream(doomed, "ensemble_latest", ENGLISH, 2)
        os.kill(doomed._process.pid, signal.SIGKILL)
        seen.wait(60)
        assert "does not answer" in seen.ended
    assert len(seen.dims("inference", "TOKEN_IDS")) == 2
    assert any("could not be put back" in note for note in seen.notes)


def test_a_server_that_is_not_there():
    with pytest.raises(ServerError, match="does not answer"), watch(grpc_url="127.0.0.1:1"):
        pass
