"""Verbose log lines to records, records to messages, and the file that they stand in while it is written."""

import json
from datetime import datetime, timezone

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from lab_utils import attribution, log_tail
from lab_utils.attribution import Attribution, Catalogue, Message
from lab_utils.log_tail import LogTail
from lab_utils.verbose_log import Added, Allocated, Prepared, StateChange, StreamEnded, Tensor, Unreadable, read_records

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)

ENSEMBLE = """
name: "chain"
ensemble_scheduling {
  step { model_name: "first" input_map { key: "IN" value: "IN" } output_map { key: "A" value: "A" } }
  step { model_name: "stream" input_map { key: "A" value: "A" } output_map { key: "B" value: "MIDDLE" } }
  step { model_name: "last" input_map { key: "C" value: "MIDDLE" } output_map { key: "OUT" value: "OUT" } }
}
"""
CONFIGS = {
    "chain": ENSEMBLE,
    "first": 'name: "first"',
    "stream": 'name: "stream" model_transaction_policy { decoupled: true }',
    "last": 'name: "last"',
}


def catalogue(**more: str) -> Catalogue:
    texts = CONFIGS | more
    return Catalogue(lambda model: text_format.Parse(texts[model], ModelConfig()) if model in texts else None)


def log_line(place: str, text: str, iso: bool = False) -> str:
    head = "2026-11-23T10:51:20Z I 77" if iso else "I1123 10:51:20.250000 77"
    return f"{head} {place}] {json.dumps(text, ensure_ascii=False)}"


def prepared(id: str, model: str, inputs: dict[str, tuple[str, str]], outputs: list[str], iso: bool = False) -> str:
    rows = "".join(
        f"[0x0x7f{n}] input: {name}, type: {dtype}, original shape: [{dims}], "
        f"batch + shape: [{dims}], shape: [{dims}]\n"
        for n, (name, (dtype, dims)) in enumerate(inputs.items())
    )
    names = "".join(f"{name}\n" for name in outputs)
    text = (
        f"[request id: {id or '<id_unknown>'}] prepared: [0x0x7f] request id: {id}, model: {model}, requested version: "
        "-1, actual version: 3, flags: 0x0, correlation id: 0, batch size: 0, priority: 0, timeout (us): 0\n"
        f"original inputs:\n{rows}override inputs:\ninputs:\n{rows}original requested outputs:\n{names}"
        f"requested outputs:\n{names}"
    )
    return log_line("infer_request.cc:905", text, iso)


def state(id: str, old: str, new: str) -> str:
    return log_line("infer_request.cc:132", f"[request id: {id or '<id_unknown>'}] Setting state from {old} to {new}")


def begun(id: str) -> str:
    return state(id, "PENDING", "EXECUTING")


def released(id: str) -> str:
    return state(id, "EXECUTING", "RELEASED")


def added(name: str, dims: str, dtype: str = "INT32") -> str:
    return log_line("infer_response.cc:174", f"add response output: output: {name}, type: {dtype}, shape: [{dims}]")


def inside(name: str, nbytes: int) -> str:
    text = f"Internal response allocation: {name}, size {nbytes}, addr 0x7f, memory type 0, type id 0"
    return log_line("ensemble_scheduler.cc:569", text)


def to_client(name: str, nbytes: int) -> str:
    return log_line("infer_handler.cc:850", f"GRPC: using buffer for '{name}', size: {nbytes}, addr: 0x55")


STREAM_END = log_line(
    "stream_infer_handler.cc:632",
    "ModelStreamInferHandler::StreamInferComplete, context 0, 0 step ISSUED, callback index 3, flags 1, response is 0",
)


def step(name: str, dims: int) -> list[str]:
    return [added(name, str(dims)), inside(name, 4 * dims)]


def begin_chain(id: str) -> list[str]:
    """A client's request, up to where its decoupled step has begun."""
    return [
        *(prepared(id, "chain", {"IN": ("BYTES", "1")}, ["OUT"]), begun(id)),
        *(prepared(id, "first", {"IN": ("BYTES", "1")}, ["A"]), begun(id), *step("A", 7), released(id)),
        *(prepared(id, "stream", {"A": ("INT32", "7")}, ["B"]), begun(id)),
    ]


def take_in(id: str, dims: int) -> str:
    return prepared(id, "last", {"C": ("INT32", str(dims))}, ["OUT"])


def answer(id: str, dims: int) -> list[str]:
    """The last step runs and answers, and so does the ensemble."""
    sent = [added("OUT", str(dims)), to_client("OUT", 4 * dims)]
    return [begun(id), *step("OUT", dims), *sent, released(id)]


def end_chain(id: str) -> list[str]:
    return [STREAM_END, released(id), released(id)]


def messages(lines: list[str], known: Catalogue | None = None) -> tuple[list[Message], Attribution]:
    attributed = Attribution(known or catalogue())
    return [*attributed.feed(read_records(lines, NOW)), *attributed.finish()], attributed


def sizes(found: list[Message], node: str, side: str, tensor: str, request: str) -> list[tuple[int | None, int]]:
    return [
        (one.number, one.dims[0])
        for one in found
        if (one.node, one.side, one.tensor, one.request) == (node, side, tensor, request)
    ]


# --- lines to records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("iso", "fraction"), [(False, 0.25), (True, 0.0)])
def test_a_prepared_request_in_both_formats(iso, fraction):
    line = prepared("a", "m", {"X": ("INT32", "2,3"), "Y": ("BYTES", "")}, ["P", "Q"], iso)
    moment = datetime(2026, 11, 23, 10, 51, 20, tzinfo=timezone.utc).timestamp() + fraction
    inputs = (Tensor("X", "INT32", (2, 3)), Tensor("Y", "BYTES", ()))
    assert list(read_records([line], NOW)) == [Prepared(moment, "a", "m", 3, inputs, ("P", "Q"))]


@pytest.mark.parametrize("id", ['we"ird], model: x\n[request id: b] ü', "a, model: b", "back\\slash", ""])
def test_request_ids_that_look_like_the_log_itself(id):
    call, change = read_records([prepared(id, "m", {}, ["P"]), state(id, "PENDING", "EXECUTING")], NOW)
    assert call.id == change.id == (id or "<id_unknown>")
    assert (call.model, call.outputs) == ("m", ("P",))


def test_the_other_records():
    lines = [
        *(added("T", "1,4", "FP32"), inside("T", 16), to_client("T", 16), STREAM_END),
        log_line("http_server.cc:1280", "HTTP using buffer for: 'T', size: 16, addr: 0x7f"),
        state("r", "EXECUTING", "RELEASED"),
    ]
    found = list(read_records(lines, NOW))
    assert found[0] == Added(found[0].seconds, Tensor("T", "FP32", (1, 4)))
    assert [(one.nbytes, one.to_client) for one in found if isinstance(one, Allocated)] == [
        *((16, False), (16, True), (16, True))
    ]
    assert isinstance(found[3], StreamEnded)
    assert (found[5].id, found[5].old, found[5].new) == ("r", "EXECUTING", "RELEASED")


def test_a_response_that_is_not_the_last_is_not_the_end():
    assert not list(read_records([STREAM_END.replace("flags 1", "flags 0")], NOW))


def test_two_records_in_one_line_and_text_of_other_programs_in_front():
    line = "print of a model" + added("T", "1") + inside("T", 4)
    assert [type(one) for one in read_records([line, "", "no record", line[:40]], NOW)] == [Added, Allocated]


def test_lines_of_another_release_are_told_not_misread():
    old = "I0923 10:51:20.125392 3790 infer_request.cc:905] [request id: a] prepared: [0x0x7f] request id: a, model: m"
    new = log_line("infer_response.cc:1", "add response output: output: T, kind: INT32")
    assert [type(one) for one in read_records([old, new], NOW)] == [Unreadable, Unreadable]
    _, attributed = messages([old, new])
    (reason,) = attributed.unknown
    assert "another release" in reason


@pytest.mark.parametrize(("now", "year"), [(NOW, 2026), (datetime(2027, 1, 2, tzinfo=timezone.utc), 2026)])
def test_the_year_is_the_nearest(now, year):
    (record,) = read_records([added("T", "1")], now)
    assert datetime.fromtimestamp(record.seconds, timezone.utc).year == year


# --- records to messages ----------------------------------------------------------------------------------------------


def test_one_request_message_by_message():
    lines = [*begin_chain("r")]
    for dims in (1, 2, 4):
        lines += [*step("B", dims), take_in("r", dims), *answer("r", dims)]
    found, attributed = messages([*lines, *end_chain("r")])
    grown = [(1, 1), (2, 2), (3, 4)]
    assert sizes(found, "stream", "output", "B", "r") == grown
    assert sizes(found, "last", "input", "C", "r") == grown
    assert sizes(found, "last", "output", "OUT", "r") == grown
    assert sizes(found, "chain", "output", "OUT", "r") == grown
    assert sizes(found, "first", "output", "A", "r") == [(1, 7)]
    assert not attributed.unknown
    assert attributed.ensembles == {"chain"}
    assert {one.version for one in found} == {3}
    assert [one.nbytes for one in found if one.tensor == "B"] == [4, 8, 16]
    assert [one.nbytes for one in found if one.tensor == "IN"] == [None, None]


def test_an_output_is_a_message_at_its_own_line_where_only_one_can_have_sent_it():
    attributed = Attribution(catalogue())
    list(attributed.feed(read_records(begin_chain("r"), NOW)))
    (message,) = attributed.feed(read_records(step("B", 5), NOW))
    assert (message.node, message.number, message.dims) == ("stream", 1, (5,))


def test_two_requests_at_the_same_time_are_told_apart_by_the_next_step():
    lines = [
        *(*begin_chain("a"), *begin_chain("b")),
        *(*step("B", 1), *step("B", 9), take_in("b", 9), take_in("a", 1)),
        *(*step("B", 2), take_in("a", 2), *step("B", 1), take_in("b", 1)),
    ]
    found, attributed = messages(lines)
    assert sizes(found, "stream", "output", "B", "a") == [(1, 1), (2, 2)]
    assert sizes(found, "stream", "output", "B", "b") == [(1, 9), (2, 1)]
    assert not attributed.unknown


def test_a_step_that_takes_in_a_known_output_leaves_anothers_draft_alone():
    lines = [*begin_chain("a"), *step("B", 4)]  # certain: only a runs
    lines += [*begin_chain("b"), *step("B", 4), take_in("a", 4), take_in("b", 4)]
    found, _ = messages(lines)
    assert sizes(found, "stream", "output", "B", "a") == [(1, 4)]
    assert sizes(found, "stream", "output", "B", "b") == [(1, 4)]


def test_the_last_step_of_two_requests_is_told_apart_by_who_has_begun():
    lines = [*begin_chain("a"), *begin_chain("b"), *step("B", 1), take_in("a", 1), *step("B", 6), take_in("b", 6)]
    lines += [begun("b"), *step("OUT", 6), released("b"), begun("a"), *step("OUT", 1)]
    found, attributed = messages(lines)
    assert sizes(found, "last", "output", "OUT", "b") == [(1, 6)]
    assert sizes(found, "last", "output", "OUT", "a") == [(1, 1)]
    assert not attributed.unknown


def test_a_call_that_has_not_begun_sends_nothing():
    lines = [*begin_chain("a"), *step("B", 1), take_in("a", 1), *step("B", 2), take_in("a", 2)]
    lines += [*begin_chain("b"), *step("B", 6), take_in("b", 6), begun("a"), *step("OUT", 1), begun("b")]
    found, _ = messages([*lines, *step("OUT", 6)])
    assert sizes(found, "last", "output", "OUT", "a") == [(1, 1)]
    assert sizes(found, "last", "output", "OUT", "b") == [(1, 6)]


def test_a_certain_output_does_not_overtake_one_that_is_undecided():
    lines = [*begin_chain("a"), *begin_chain("b"), *step("B", 5), *[released("b")] * 2]
    found, _ = messages([*lines, *step("B", 6), take_in("a", 5), take_in("a", 6)])
    assert sizes(found, "stream", "output", "B", "a") == [(1, 5), (2, 6)]


def test_outputs_that_nobody_takes_in_are_not_guessed():
    lines = [*begin_chain("a"), *begin_chain("b"), *step("B", 1), take_in("a", 1), *step("B", 6), take_in("b", 6)]
    lines += [begun("b"), begun("a"), *step("OUT", 6)]  # one batch of two, say
    found, attributed = messages(lines)
    (message,) = (one for one in found if one.tensor == "OUT")
    assert (message.request, message.number, message.node) == (None, None, "last")
    assert message.candidates == ("a: last", "b: last")
    (reason,) = attributed.unknown
    assert "at the same time" in reason


@pytest.mark.parametrize("id", ["", "same"])
def test_requests_with_one_id_at_the_same_time_are_not_guessed(id):
    found, attributed = messages([prepared(id, "chain", {}, ["OUT"]), *begin_chain(id), *step("B", 3), take_in(id, 3)])
    calls = [one for one in found if one.tensor in ("A", "B", "C")]
    assert calls
    assert all(one.request is None and one.number is None and len(one.candidates) == 2 for one in calls)
    assert any("same id, or none" in reason for reason in attributed.unknown)


def test_requests_with_one_id_one_after_the_other():
    lines = [*begin_chain(""), *end_chain("")]
    found, attributed = messages(lines + lines)
    assert [one.request for one in found if one.node == "chain"] == ["#1", "#2"]
    assert not attributed.unknown
    found, _ = messages([*begin_chain("x"), *end_chain("x")] * 2)
    assert [one.request for one in found if one.node == "chain"] == ["x", "x (2)"]


def test_two_nodes_with_an_output_of_the_same_name():
    known = catalogue(chain=ENSEMBLE.replace('"A" value: "A" }', '"B" value: "A" }', 1).replace('key: "A"', 'key: "B"'))
    lines = [prepared("r", "chain", {}, ["OUT"]), begun("r")]
    lines += [prepared("r", "first", {}, ["B"]), begun("r"), *step("B", 7)]  # not decoupled: it has answered now
    lines += [prepared("r", "stream", {}, ["B"]), begun("r"), *step("B", 1), *step("B", 2)]
    found, attributed = messages(lines, known)
    assert sizes(found, "first", "output", "B", "r") == [(1, 7)]
    assert sizes(found, "stream", "output", "B", "r") == [(1, 1), (2, 2)]
    found, attributed = messages([*lines, prepared("r", "first", {}, ["B"]), begun("r"), *step("B", 3)], known)
    assert found[-1].node is None
    assert found[-1].candidates == ("r: first", "r: stream")
    assert any("several nodes" in reason for reason in attributed.unknown)


SAME_NAME = {"chain": ENSEMBLE.replace('"OUT" value: "OUT"', '"B" value: "OUT"')}


def test_a_stream_whose_output_has_the_name_of_the_last_steps():
    lines = begin_chain("r")
    for dims in (1, 2, 4, 8):  # the last step lags behind, so that both may send
        lines += [*step("B", dims), prepared("r", "last", {"C": ("INT32", str(dims))}, ["B"]), begun("r")]
    lines += [line for dims in (1, 2, 4, 8) for line in step("B", dims)]
    found, _ = messages([*lines, *end_chain("r")], catalogue(**SAME_NAME))
    assert sizes(found, "stream", "output", "B", "r") == [(1, 1), (2, 2), (3, 4), (4, 8)]
    left = [one for one in found if one.node is None]
    assert [one.dims for one in left] == [(1,), (2,), (4,), (8,)]
    assert {one.candidates for one in left} == {("r: stream", "r: last")}


def test_after_an_output_of_somebody_there_are_no_numbers():
    lines = [*begin_chain("r"), *step("B", 1), prepared("r", "last", {"C": ("INT32", "1")}, ["B"]), begun("r")]
    other = [*begin_chain("s"), *step("B", 5), *step("B", 6), released("s"), released("s"), released("s")]
    found, _ = messages([*lines, *other, *end_chain("r")], catalogue(**SAME_NAME))
    assert sizes(found, "stream", "output", "B", "r") == [(1, 1)]
    assert not [one for one in found if one.number and one.dims in ((5,), (6,))]


def test_numbers_end_where_a_message_may_have_been_lost(monkeypatch):
    monkeypatch.setattr(attribution, "MOST_OPEN", 1)
    lines = [*begin_chain("a"), *step("B", 1), *begin_chain("b"), *step("B", 2), *step("B", 3), *step("B", 4)]
    found, _ = messages([*lines, take_in("b", 4), take_in("a", 1), *end_chain("b"), released("b"), *step("B", 9)])
    assert sizes(found, "stream", "output", "B", "b") == [(None, 4)]
    assert sizes(found, "stream", "output", "B", "a") == [(1, 1), (None, 9)]


def test_a_model_that_is_two_steps_gets_no_message_numbers():
    twice = ENSEMBLE.removesuffix("}\n") + 'step { model_name: "last" input_map { key: "C" value: "A" } } }'
    found, attributed = messages([*begin_chain("r"), *step("B", 1), take_in("r", 1)], catalogue(chain=twice))
    assert {one.number for one in found if one.node == "last"} == {None}
    assert sizes(found, "stream", "output", "B", "r") == [(1, 1)]
    assert any("more than one step" in reason for reason in attributed.unknown)


def test_text_that_a_step_takes_in_has_the_bytes_that_were_sent():
    lines = [*begin_chain("r")]
    for nbytes in (9, 14):
        lines += [added("B", "1", "BYTES"), inside("B", nbytes), prepared("r", "last", {"C": ("BYTES", "1")}, ["OUT"])]
    found, _ = messages(lines)
    assert [one.nbytes for one in found if one.tensor == "B"] == [9, 14]
    assert [one.nbytes for one in found if one.tensor == "C"] == [9, 14]


def test_lines_of_several_threads_are_put_together_by_size():
    found, _ = messages([*begin_chain("r"), added("B", "3"), added("B", "5"), inside("B", 20), inside("B", 12)])
    assert sizes(found, "stream", "output", "B", "r") == [(1, 5), (2, 3)]


def test_shapes_of_equal_size_at_the_same_time_are_not_guessed():
    lines = [added("B", "2,3"), added("B", "3,2"), inside("B", 24), inside("B", 24)]
    found, attributed = messages([*begin_chain("r"), *lines])
    assert not [one for one in found if one.tensor == "B"]
    assert any("told apart" in reason for reason in attributed.unknown)


@pytest.mark.parametrize("when", ["early", "late", "after the next request"])
def test_a_decoupled_model_called_alone_is_released_at_any_time(when):
    def call(id: str) -> list[str]:
        answers = [line for n in (1, 2) for line in (added("B", str(n)), to_client("B", 4 * n))]
        ends = {"early": [released(id), *answers, STREAM_END], "late": [*answers, STREAM_END, released(id)]}
        begin = [prepared(id, "stream", {"A": ("INT32", "2")}, ["B"]), begun(id)]
        return begin + ends.get(when, [*answers, STREAM_END])

    late = [released("b"), released("a")] if when == "after the next request" else []
    found, attributed = messages([*call("a"), *call("b"), *late])
    assert sizes(found, "stream", "output", "B", "a") == [(1, 1), (2, 2)]
    assert sizes(found, "stream", "output", "B", "b") == [(1, 1), (2, 2)]
    assert not attributed.unknown


def test_a_model_that_is_no_step_has_a_request_of_its_own():
    lines = [*begin_chain(""), prepared("", "other", {"X": ("INT32", "1")}, ["Y"]), *step("B", 2)]
    found, _ = messages(lines, catalogue(other='name: "other"'))
    assert sizes(found, "other", "input", "X", "#2") == [(1, 1)]
    assert sizes(found, "stream", "output", "B", "#1") == [(1, 2)]


def test_steps_that_wait_at_the_same_time():
    lines = [prepared("r", "chain", {}, ["OUT"]), begun("r")]
    lines += [prepared("r", "first", {}, ["A"]), prepared("r", "stream", {}, ["B"]), begun("r")]
    found, attributed = messages([*lines, *step("B", 3), begun("r"), *step("A", 4)])
    assert sizes(found, "stream", "output", "B", "r") == [(1, 3)]
    assert sizes(found, "first", "output", "A", "r") == [(1, 4)]
    assert not attributed.unknown


def test_requests_from_before_the_watch_are_told():
    found, attributed = messages([*step("B", 8), released("old"), *begin_chain("new"), *step("B", 1)])
    assert sizes(found, "stream", "output", "B", "new") == [(1, 1)]
    assert any("before the watch" in reason for reason in attributed.unknown)


def test_calls_from_before_the_watch_that_are_released_late_do_not_end_its_first_request():
    whole = list(begin_chain(""))
    for dims in (1, 2, 4):
        whole += [*step("B", dims), take_in("", dims), *answer("", dims)]
    whole += end_chain("")
    grown = [(1, 1), (2, 2), (3, 4)]
    for place in range(len(whole) - 2):
        lines = [*whole[:place], released(""), released(""), *whole[place:], *whole]
        found, attributed = messages(lines)
        for request in ("#1", "#2"):
            assert sizes(found, "stream", "output", "B", request) == grown, place
            assert sizes(found, "chain", "output", "OUT", request) == grown, place
        assert not attributed.unknown


def test_a_call_that_failed_to_be_queued_is_closed():
    lines = [prepared("r", "first", {}, ["A"]), state("r", "PENDING", "FAILED_ENQUEUE")]
    lines += [prepared("r", "first", {}, ["A"]), begun("r"), *step("A", 1)[:1], to_client("A", 4)]
    found, attributed = messages(lines)
    assert sizes(found, "first", "output", "A", "r (2)") == [(1, 1)]
    assert not attributed.unknown


def test_a_nested_ensemble_is_a_step_of_the_outer_one():
    outer = 'name: "outer" ensemble_scheduling { step { model_name: "chain" input_map { key: "IN" value: "IN" } } }'
    lines = [prepared("r", "outer", {}, ["OUT"]), begun("r"), *begin_chain("r"), *step("B", 1), take_in("r", 1)]
    found, attributed = messages(lines, catalogue(outer=outer))
    assert {one.request for one in found} == {"r"}
    assert sizes(found, "stream", "output", "B", "r") == [(1, 1)]
    assert attributed.ensembles == {"outer", "chain"}


def test_without_configs_a_log_alone_is_read_as_far_as_it_goes():
    found, attributed = messages([*begin_chain("r"), *step("B", 1), *step("B", 2), *end_chain("r")], Catalogue())
    assert sizes(found, "stream", "output", "B", "r") == [(1, 1), (2, 2)]
    assert attributed.ensembles == {"chain"}


def test_a_model_that_was_loaded_again_is_read_again():
    asked = []
    attributed = Attribution(Catalogue(lambda model: asked.append(model)))
    loaded = log_line("model_lifecycle.cc:839", "successfully loaded 'm'")
    calls = [prepared("r", "m", {}, []), released("r")]
    list(attributed.feed(read_records([*calls, *calls, loaded, *calls], NOW)))
    assert asked == ["m", "m"]


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(attribution, "MOST_OPEN", 5)
    monkeypatch.setattr(attribution, "MOST_LABELS", 5)
    attributed = Attribution(catalogue())
    lines = [added("X", "1")] * 20
    for number in range(20):
        lines += [*begin_chain(f"r{number}"), *end_chain(f"r{number}")]
        lines += [prepared(f"s{number}", "stream", {}, ["B"]), released(f"s{number}")]
    lines += [*begin_chain("a"), *begin_chain("b"), *(line for n in range(20) for line in step("B", n + 1))]
    list(attributed.feed(read_records(lines, NOW)))
    assert len(attributed._added) <= 5
    assert len(attributed._drafts) <= 5
    assert len(attributed._lingering) <= 5
    assert len(attributed._labels) <= 6
    assert set(attributed._groups) == {"a", "b"}
    assert sum(attributed.unknown.values()) >= 30


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "server.log"
    path.write_text("old\n")
    return path


def append(path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_lines_that_are_added_and_whole(log):
    tail = LogTail(log)
    append(log, "one\ntw")
    assert list(tail.lines()) == ["one"]
    append(log, "o\n")
    assert list(tail.lines()) == ["two"]
    assert list(tail.lines()) == []
    tail.close()


def test_the_rest_of_a_line_that_was_there_before_is_not_a_line(log):
    append(log, "begun before ")
    tail = LogTail(log)
    append(log, "and ended after\nwhole\n")
    assert list(tail.lines()) == ["whole"]


def test_from_the_start(log):
    assert list(LogTail(log, from_start=True).lines()) == ["old"]


def test_rotation_loses_nothing(log):
    tail = LogTail(log)
    append(log, "one\n")
    log.rename(log.with_suffix(".1"))
    append(log.with_suffix(".1"), "two\n")
    assert list(tail.lines()) == ["one", "two"]  # there is no new file yet
    append(log.with_suffix(".1"), "three\n")
    log.write_text("four\n")
    assert list(tail.lines()) == ["three", "four"]
    assert any("replaced" in note for note in tail.notes)


def test_truncation_is_told(log):
    append(log, "more\n")
    tail = LogTail(log)
    log.write_text("new\n")
    assert list(tail.lines()) == ["new"]
    assert any("truncated" in note for note in tail.notes)


def test_a_huge_file_and_a_huge_line_are_read_in_pieces(log, monkeypatch):
    monkeypatch.setattr(log_tail, "CHUNK", 64)
    monkeypatch.setattr(log_tail, "LONGEST_LINE", 200)
    tail = LogTail(log)
    append(log, "a\n" + 1000 * "x" + "\nb\n" + 500 * "c\n")
    assert list(tail.lines()) == ["a", "b", *["c"] * 500]
    assert len(tail.notes) == 1 or all("longer than" in note for note in tail.notes)


def test_bytes_that_are_no_text(log):
    tail = LogTail(log)
    with log.open("ab") as file:
        file.write(b"\xff\xfe ok\n")
    assert list(tail.lines()) == ["\ufffd\ufffd ok"]


def test_a_state_change_names_no_model():
    (change,) = read_records([state("r", "PENDING", "EXECUTING")], NOW)
    assert change == StateChange(change.seconds, "r", "PENDING", "EXECUTING")
