"""The client on the real server: errors that leave the server well, deadline, cancellation, many streams, sizes."""

import queue
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient import grpc

from lab_utils import client as client_module
from lab_utils.client import StreamError, infer, iter_outputs, iter_stream, stream, stream_many
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.server import ServerError, TritonServer

MODEL = "ensemble_latest"
PROMPT = "Pancakes. Ingredients:"
RUNGS = ("append", "release", "replace", "latest")
VOCABULARY = 151_643


def tensor(name: str, values: Sequence, dtype: str) -> grpc.InferInput:
    numpy_types = {"BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
    array = np.array(values, dtype=numpy_types[dtype])
    made = grpc.InferInput(name, array.shape, dtype)
    made.set_data_from_numpy(array)
    return made


def raw_stream(server: TritonServer, model: str, inputs: list[grpc.InferInput], **options) -> list[tuple]:
    """All (result, error) pairs of one stream, by tritonclient alone, up to the final response or an error."""
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    pairs = []
    with server.client() as raw:
        raw.start_stream(lambda result, error: arrived.put((result, error)))
        raw.async_stream_infer(model, inputs, enable_empty_final_response=True, **options)
        while True:
            result, error = arrived.get(timeout=60)
            pairs.append((result, error))
            if error is not None or result.get_response().parameters["triton_final_response"].bool_param:
                raw.stop_stream()
                return pairs


# --- errors; the fixture `server` checks after each that all stubs live and the server answers ------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", r"PROMPT is empty; send at least one character"),
        ("word " * 300, r"the prompt has 301 tokens; at most 254 are possible\. Shorten it"),
        ("x" * 65_537, r"PROMPT has 65,537 bytes; at most 65,536 are accepted; shorten it"),
        ("茶" * 21_846, r"PROMPT has 65,538 bytes; at most 65,536 are accepted; shorten it"),
    ],
)
def test_a_bad_prompt_is_explained(server, prompt, words):
    with pytest.raises(StreamError, match=words) as caught:
        stream(server, MODEL, prompt)
    assert caught.value.result.lengths == []


@pytest.mark.parametrize("rung", RUNGS)
def test_a_bad_prompt_is_explained_on_every_rung_and_pollutes_none(server, rung):
    with pytest.raises(StreamError, match="at most 254 are possible"):
        stream(server, f"ensemble_{rung}", "word " * 300)


def test_the_longest_prompt_that_fits_is_taken(server, tokenizer):
    longest = " word" * 254
    assert len(tokenizer.encode(longest)) == 254
    assert stream(server, MODEL, longest).lengths in ([1], [0])  # one position is left; the model may also stop there


def test_a_prompt_of_exactly_the_most_bytes_reaches_the_model(server):
    with pytest.raises(StreamError, match="tokens; at most 254 are possible"):
        stream(server, MODEL, "x" * 65_536)


@pytest.mark.parametrize("value", [b"\xff\xfe", b"abc\xe8\x8c", b"\xed\xa0\x80"])
def test_a_prompt_that_is_not_utf_8_is_explained(server, value):
    inputs = [tensor("PROMPT", [value], "BYTES"), tensor("MAX_TOKENS", [4], "INT32")]
    ((result, error),) = raw_stream(server, MODEL, inputs)
    assert result is None
    assert "PROMPT is not UTF-8 (byte " in error.message()


@pytest.mark.parametrize("max_tokens", [0, -1, -(2**31)])
def test_fewer_than_one_token_is_refused(server, max_tokens):
    words = f"the inference node ended the stream after 0 responses: MAX_TOKENS is {max_tokens}; ask for at least 1"
    with pytest.raises(StreamError, match=words):  # in-band: an error response would leave the request in flight
        stream(server, MODEL, PROMPT, max_tokens)


@pytest.mark.parametrize("max_tokens", [2**31, 2**32 + 1, 1.5])
def test_a_number_of_tokens_that_is_no_int32_is_refused_in_its_own_words(server, max_tokens):
    """It must neither wrap around nor be cut off on its way into the tensor."""
    with pytest.raises((ValueError, TypeError, OverflowError), match="max_tokens"):
        stream(server, MODEL, PROMPT, max_tokens)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "FORCED_IDS is empty; send at least one id, or leave the input out"),
        ([-1], r"token id -1 at position 0 is not in the vocabulary \(0 to 151,642\)"),
        ([64, VOCABULARY, 64], r"token id 151643 at position 1 is not in the vocabulary \(0 to 151,642\)"),
        ([2**31 - 1], "token id 2147483647 at position 0 is not in the vocabulary"),
    ],
)
def test_forced_ids_out_of_range_are_refused(server, ids, words):
    with pytest.raises(StreamError, match=words) as caught:
        stream(server, MODEL, PROMPT, forced_ids=ids)
    assert caught.value.result.lengths == []


@pytest.mark.parametrize("ids", [[2**32 + 64], [2**31], [64.5]])
def test_forced_ids_that_are_no_int32_are_refused_in_their_own_words(server, ids):
    """2**32 + 64 must not become 64, nor 64.5."""
    with pytest.raises((ValueError, TypeError, OverflowError), match="forced_ids"):
        stream(server, MODEL, PROMPT, forced_ids=ids)


def test_the_last_id_of_the_vocabulary_is_taken(server):
    assert stream(server, MODEL, PROMPT, forced_ids=[0, VOCABULARY - 1]).ids == [[0], [VOCABULARY - 1]]


def test_forced_ids_stop_at_max_tokens(server):
    result = stream(server, MODEL, PROMPT, max_tokens=2, forced_ids=[64, 65, 66])
    assert result.ids == [[64], [65]]
    assert [seen.end for seen in result.observations] == [False, True]


@pytest.mark.parametrize("limit", ["5", 1.5, 0, -1, 2**27 + 1, True, ""])
def test_a_bad_max_message_ids_is_refused(server, limit):
    with pytest.raises(
        StreamError, match=r'request parameter "max_message_ids" is .*; expected a whole number from 1 to'
    ):
        stream(server, MODEL, PROMPT, max_message_ids=limit)


def test_an_unknown_model_is_named(server):
    with pytest.raises(StreamError, match="unknown model: 'ensemble_latset'"):
        stream(server, "ensemble_latset", PROMPT)


def test_a_model_with_other_inputs_is_explained(server):
    with pytest.raises(StreamError, match=r"MAX_TOKENS.*preprocess|preprocess.*MAX_TOKENS"):
        stream(server, "preprocess", PROMPT)


def test_a_prompt_that_is_no_text_is_refused_before_it_is_sent(server):
    with pytest.raises(TypeError, match="prompt is bytes; expected str"):
        stream(server, MODEL, b"Pancakes")


def test_special_tokens_typed_by_a_user_stay_text(server, tokenizer):
    ids = infer(server, "preprocess", {"PROMPT": np.array([b"<|endoftext|>"], dtype=np.object_)})["PROMPT_IDS"]
    assert len(ids) > 1
    assert tokenizer.decode(ids.tolist()) == "<|endoftext|>"


def test_a_stopped_server_is_named():
    stopped = object.__new__(TritonServer)
    stopped.grpc_url = ""
    with pytest.raises(ServerError, match="this server is stopped; start one"):
        stream(stopped, MODEL, PROMPT)


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_an_observation_says_what_arrived_and_when(server):
    seen = stream(server, "ensemble_replace", REPORTED_PROMPT).observations
    assert [o.nbytes for o in seen] == [4, 8, 12, 4, 4, 4, 4, 4]
    assert [o.dims for o in seen] == [(n,) for n in (1, 2, 3, 1, 1, 1, 1, 1)]
    assert all(o.ids.dtype == np.int32 for o in seen)
    assert seen[2].ids.tolist() == REPORTED_TOKENS[:3]
    times = [o.seconds for o in seen]
    assert times == sorted(times)
    assert times[0] > 0


def test_the_generator_yields_while_the_stream_goes_on(server):
    """A stream far longer than this test's patience: the first responses must not wait for the last."""
    arriving = iter_stream(server, MODEL, PROMPT, 3_000, forced_ids=[64] * 3_000)
    first = list(islice(arriving, 5))
    arriving.close()
    assert [seen.iteration for seen in first] == [1, 2, 3, 4, 5]
    assert not any(seen.end for seen in first)


def test_the_text_of_a_message_is_what_post_processing_made_of_it(server):
    message = {"TOKEN_IDS": REPORTED_TOKENS[:3], "STREAM_ID": [7], "END": [True]}
    types = {"TOKEN_IDS": np.int32, "STREAM_ID": np.int64, "END": np.bool_}
    out = infer(server, "postprocess", {name: np.array(values, types[name]) for name, values in message.items()})
    assert set(out) == {"TEXT", "RECEIVED_IDS", "RECEIVED_DIMS"}
    assert out["TEXT"][0].decode() == " 茶"
    assert out["RECEIVED_IDS"].tolist() == REPORTED_TOKENS[:3]
    assert out["RECEIVED_DIMS"].tolist() == [3]


def test_infer_text_to_ids(server, tokenizer):
    ids = infer(server, "preprocess", {"PROMPT": np.array([REPORTED_PROMPT.encode()], dtype=np.object_)})["PROMPT_IDS"]
    assert ids.tolist() == tokenizer.encode(REPORTED_PROMPT)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        ("preprocess", {"PROMPT": np.array([b""], np.object_)}, "'preprocess' answered with an error: PROMPT is empty"),
        ("preprocess", {"TEXT": np.array([b"x"], np.object_)}, "unexpected inference input 'TEXT'"),
        (
            "preprocess",
            {"PROMPT": np.array([5], np.int32)},
            "data-type is 'INT32', but model 'preprocess' expects 'BYTES'",
        ),
        ("preprocess", {"PROMPT": np.array([b"a", b"b"], np.object_)}, "unexpected shape for input 'PROMPT'"),
        ("inference", {"PROMPT_IDS": np.array([5], np.int32), "MAX_TOKENS": np.array([5], np.int32)}, "decoupled"),
        ("nothing", {}, "unknown model: 'nothing'"),
    ],
)
def test_infer_says_what_was_wrong(server, model, inputs, words):
    with pytest.raises(StreamError, match=words):
        infer(server, model, inputs)


def test_a_repr_stays_short_even_for_megabytes(server):
    ids = (REPORTED_TOKENS[:3] * 7)[:20]
    result = stream(server, "ensemble_release", PROMPT, max_tokens=20, forced_ids=ids)
    assert result.lengths[-1] == 2**19
    assert result.observations[-1].nbytes == 4 * 2**19
    assert len(result.observations[-1].text) > 100_000
    assert len(repr(result.observations[-1])) < 200
    assert len(repr(result)) < 200 * 20
    with pytest.raises(StreamError) as caught:
        stream(server, "ensemble_release", PROMPT, max_tokens=20, forced_ids=ids, max_message_ids=2**18)
    assert len(repr(caught.value)) < 1000


def test_dims_only_moves_no_ids(server):
    inputs = [tensor("PROMPT", [REPORTED_PROMPT.encode()], "BYTES"), tensor("MAX_TOKENS", [20], "INT32")]
    inputs.append(tensor("FORCED_IDS", (REPORTED_TOKENS[:3] * 7)[:20], "INT32"))
    pairs = raw_stream(server, "ensemble_release", inputs, parameters={"dims_only": True})
    answers = [result.get_response() for result, error in pairs if error is None and result.get_response().outputs]
    assert [client_module._observation(result, 1, 0.0).dims for result, _ in pairs[:20]] == [(2**n,) for n in range(20)]
    assert len(answers) == 20
    for answer in answers:
        sizes = {output.name: len(raw) for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
        assert (sizes["RECEIVED_IDS"], sizes["TEXT"], sizes["RECEIVED_DIMS"]) == (
            0,
            4,
            8,
        )  # a text of 0 bytes: its length
        assert answer.ByteSize() < 400


def test_dims_only_says_the_same_dims(server):
    whole, dims = (stream(server, "ensemble_release", REPORTED_PROMPT, dims_only=only) for only in (False, True))
    assert dims.lengths == whole.lengths
    assert [o.nbytes for o in dims.observations] == [o.nbytes for o in whole.observations]
    assert (dims.text, dims.ids) == ("", [[]] * 8)


@pytest.mark.parametrize(("told", "heap"), [(None, None), ([-1], None), ([0], 0), ([2**40], 2**40)])
def test_a_heap_that_is_not_told_is_none(told, heap):
    """An ensemble of somebody else's, or an older one of ours, has no such output."""
    outputs = {"HEAP": told, "RECEIVED_DIMS": [1], "RECEIVED_IDS": [64], "INDEX": [1], "END": [True]}
    values = {name: np.array(value) for name, value in outputs.items() if value is not None}
    values["TEXT"] = np.array([b"a"], dtype=np.object_)
    assert client_module._observation(SimpleNamespace(as_numpy=values.get), 1, 0.0).heap == heap


def test_the_heap_is_told_from_the_first_request_that_asks_for_it(clean_server):
    plain, traced, after = (stream(clean_server, MODEL, PROMPT, trace_heap=on) for on in (False, True, False))
    assert {seen.heap for seen in plain.observations} == {None}
    assert all(seen.heap > 0 for seen in (*traced.observations, *after.observations))
    assert plain.text == traced.text == after.text


def test_a_guard_changes_nothing_as_long_as_the_contract_is_kept(clean_server):
    for rung in RUNGS:
        plain, guarded = (stream(clean_server, f"ensemble_{rung}", PROMPT, guard=on) for on in (False, True))
        assert (guarded.ids, guarded.text) == (plain.ids, plain.text)


def test_a_guarded_rung_that_breaks_the_contract_says_so_and_keeps_what_came_before(clean_server):
    words = r"ended the stream after 1 responses: 1 message\(s\) .*\(length\): TOKEN_IDS holds 2 ids; expected 1"
    for rung in RUNGS[:3]:
        with pytest.raises(StreamError, match=words) as caught:
            stream(clean_server, f"ensemble_{rung}", REPORTED_PROMPT, guard=True)
        assert caught.value.result.ids == [REPORTED_TOKENS[:1]]


@pytest.mark.parametrize(("option", "value"), [("trace_heap", "yes"), ("trace_heap", 1), ("guard", "no"), ("guard", 0)])
def test_a_switch_that_is_neither_on_nor_off_is_refused(server, option, value):
    words = f'request parameter "{option}" is {value!r}; expected true or false'
    with pytest.raises(StreamError, match=words):
        stream(server, MODEL, PROMPT, **{option: value})


# --- deadline and cancellation ----------------------------------------------------------------------------------------


def test_a_deadline_ends_the_stream_and_keeps_what_came_before(server):
    with pytest.raises(StreamError, match=r"no end of the stream within its deadline of 0\.3 s") as caught:
        stream(server, MODEL, PROMPT, 3_000, forced_ids=[64] * 3_000, deadline=0.3)
    kept = caught.value.result
    assert 0 < len(kept.lengths) < 3_000
    assert set(kept.lengths) == {1}
    assert stream(server, MODEL, PROMPT).text == " 1 cup flour, 1 cup"


def test_a_deadline_of_nothing_is_over_at_once(server):
    with pytest.raises(StreamError, match="deadline of 0 s") as caught:
        stream(server, MODEL, PROMPT, deadline=0)
    assert caught.value.result.lengths == []


def test_closing_the_generator_early_leaves_the_server_serving(server):
    for count in (1, 2, 7):
        arriving = iter_stream(server, MODEL, REPORTED_PROMPT, 95)
        assert [seen.iteration for seen in islice(arriving, count)] == list(range(1, count + 1))
        arriving.close()
        assert stream(server, MODEL, REPORTED_PROMPT).ids == [[token] for token in REPORTED_TOKENS]


def test_closing_the_generator_cancels_the_request_and_a_finished_stream_is_not_cancelled(server, monkeypatch):
    cancelled: list[bool] = []
    stop_stream = grpc.InferenceServerClient.stop_stream

    def watched(self, cancel_requests=False):
        cancelled.append(cancel_requests)
        stop_stream(self, cancel_requests)

    monkeypatch.setattr(grpc.InferenceServerClient, "stop_stream", watched)
    stream(server, MODEL, REPORTED_PROMPT)
    assert True not in cancelled  # cancelled after the final response, some servers failed to stop
    arriving = iter_stream(server, MODEL, REPORTED_PROMPT, 95)
    next(arriving)
    arriving.close()
    assert cancelled.count(True) == 1


def test_an_unstarted_generator_costs_nothing(server):
    iter_stream(server, "no such model", PROMPT).close()


# --- many at once -----------------------------------------------------------------------------------------------------


def test_sixteen_streams_at_once_each_as_if_alone(server, corpus, tokenizer):
    prompts = [tokenizer.decode(tokenizer.encode(line)[:9]) for line in corpus[:16]]
    assert len(set(prompts)) == 16
    alone = [stream(server, MODEL, prompt, 60) for prompt in prompts]
    together = stream_many(server, MODEL, prompts, 60)
    assert [result.text for result in together] == [result.text for result in alone]
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert len({result.text for result in together}) == 16


def test_held_back_characters_of_many_streams_do_not_mix(server, tokenizer):
    """Every stream is in the middle of a three-token character most of the time."""
    ids = [tokenizer.encode(" 茶" * 20)] * 8
    assert len(ids[0]) == 60
    arriving = [iter_stream(server, MODEL, "x", 60, forced_ids=stream_ids) for stream_ids in ids]
    texts = ["" for _ in ids]
    for round_ in zip(*arriving, strict=True):
        texts = [text + seen.text for text, seen in zip(texts, round_, strict=True)]
    assert texts == [" 茶" * 20] * 8


def test_many_streams_give_an_outcome_each_in_order(server):
    good, bad, last = stream_many(server, MODEL, [PROMPT, "", REPORTED_PROMPT])
    assert good.text == " 1 cup flour, 1 cup"
    assert isinstance(bad, StreamError)
    assert "PROMPT is empty" in str(bad)
    assert last.ids == [[token] for token in REPORTED_TOKENS]
    assert stream_many(server, MODEL, []) == []


def test_many_streams_on_rung_2_stay_apart(server):
    for result in stream_many(server, "ensemble_release", [REPORTED_PROMPT] * 6):
        assert result.ids[7] == REPORTED_IDS


def test_request_ids_may_be_equal(server):
    results = stream_many(server, MODEL, [PROMPT, REPORTED_PROMPT], 20, request_id="the same")
    assert results[0].text == stream(server, MODEL, PROMPT, 20).text
    assert results[1].ids[:8] == [[token] for token in REPORTED_TOKENS]


PROMPT_IDS = {"PROMPT_IDS": np.array([8908, 234, 114], dtype=np.int32), "MAX_TOKENS": np.array([4], dtype=np.int32)}


@pytest.mark.parametrize(("version", "lengths"), [(3, [1, 2, 3, 1]), (4, [1, 1, 1, 1]), (None, [1, 1, 1, 1])])
def test_outputs_of_a_decoupled_model_called_alone(server, version, lengths):
    """Three parts of one character and a plain token; a call without a version gets the newest."""
    inputs = PROMPT_IDS | {"FORCED_IDS": np.array([8908, 234, 114, 64], dtype=np.int32)}
    outputs = list(iter_outputs(server, "inference", inputs, version=version, request_id="alone"))
    assert [len(each["TOKEN_IDS"]) for each in outputs] == lengths
    assert [each["INDEX"].tolist() for each in outputs] == [[1], [2], [3], [4]]


def test_outputs_of_a_model_that_answers_once(server):
    inputs = {"PROMPT": np.array([b" \xe8\x8c\xb6"], dtype=np.object_)}
    (outputs,) = iter_outputs(server, "preprocess", inputs)
    assert outputs["PROMPT_IDS"].tolist() == [8908, 234, 114]


def test_outputs_with_request_parameters(server):
    inputs = {"PROMPT": np.array([b"Pancakes."], dtype=np.object_), "MAX_TOKENS": np.array([2], dtype=np.int32)}
    outputs = list(iter_outputs(server, MODEL, inputs, parameters={"dims_only": True}))
    assert [each["RECEIVED_IDS"].tolist() for each in outputs] == [[], []]
    assert [each["RECEIVED_DIMS"].tolist() for each in outputs] == [[1], [1]]


def test_outputs_of_a_version_that_is_not_there(server):
    with pytest.raises(StreamError, match="99"):
        list(iter_outputs(server, "inference", PROMPT_IDS, version=99))
