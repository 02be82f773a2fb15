"""The C++ inference node on the real server: every rung, and the rest of its contract, against the Python node."""

import random
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from cpp_nodes import (
    OUTPUTS,
    RUNGS,
    VOCABULARY,
    Answers,
    begin,
    call,
    call_python,
    comparable,
    cpp_window,
    error_of,
    ids_of,
    one,
    start_both,
    stopping_cleanly,
    tensors,
    until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import assert_no_open_streams, open_streams

from lab_utils import node_logs, trace
from lab_utils.client import StreamError, StreamResult, iter_outputs, iter_stream, stream, stream_many
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.memory import snapshot
from lab_utils.server import TritonServer

DOUBLING = [1, 2, 4, 8, 16, 32, 64, 128]
REPORTED_LENGTHS = {"append": DOUBLING, "release": DOUBLING, "replace": [1, 2, 3, 1, 1, 1, 1, 1], "latest": [1] * 8}
ENGLISH = ["Pancakes. Ingredients:", "Vanilla ice cream. Ingredients", "Guacamole. Ingredients:"]
TEA = [8908, 234, 114]  # the three parts of " 茶"
HARD_LIMIT = 2**27  # ids in one message: 134,217,728
MIB = 2**20
MOST = "9,223,372,036,854,775,807"
CPP = [f"ensemble_cpp_{rung}" for rung in (*RUNGS, "text")]
PYTHON = [f"ensemble_{rung}" for rung in RUNGS]
RULE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the server is shared by all examples, on purpose
)
# Whole words and single bytes: enough of both that texts break, recover, and break again.
SOME_TOKENS = st.one_of(st.sampled_from(REPORTED_TOKENS), st.integers(0, 255), st.integers(0, VOCABULARY - 1))


@pytest.fixture(scope="module")
def both(_nothing_left_behind: None) -> Iterator[TritonServer]:
    """A server with the ensembles of both nodes. After all these tests it stops by itself, with nothing in flight."""
    with stopping_cleanly(start_both([*CPP, *PYTHON])) as running:
        yield running


@pytest.fixture
def server(both: TritonServer) -> Iterator[TritonServer]:
    """That server. Whatever a test did to it, it answers afterwards, has all its processes, and holds no stream."""
    yield both
    both.check()
    assert ids_of(call(both, "latest", tensors([64, 65]))) == [[64], [65]]
    assert_no_open_streams(both)


@pytest.fixture
def soiled(server: TritonServer) -> Iterator[TritonServer]:
    """The server, for a test that leaves ids in the buffer of the C++ rung 1: it is emptied afterwards."""
    yield server
    server.reload("token_stream_append")


@pytest.fixture
def both_soiled(soiled: TritonServer) -> Iterator[TritonServer]:
    """The same, where the test leaves ids in the Python rung 1 as well."""
    yield soiled
    soiled.reload("inference")


def seen(result: StreamResult) -> list[tuple]:
    """All that a client gets of each message, but for the times and the heap."""
    return [(each.dims, each.ids.tolist(), each.text, each.index, each.end) for each in result.observations]


def outcome(server: TritonServer, ensemble: str, prompt: str, *arguments: int, **options: object) -> tuple:
    """All that a client gets of a stream, and the error that ended it."""
    try:
        return seen(stream(server, ensemble, prompt, *arguments, **options)), ""
    except StreamError as error:
        return seen(error.result), str(error)


def assert_as_python(server: TritonServer, rung: str, prompt: str, *arguments: int, **options: object) -> list[tuple]:
    """The C++ ensemble of a rung and its Python one give a client the same, which is returned."""
    ours = outcome(server, f"ensemble_cpp_{rung}", prompt, *arguments, **options)
    assert ours == outcome(server, f"ensemble_{rung}", prompt, *arguments, **options)
    assert ours[1] == ""
    return ours[0]


# --- every rung, as in Python -----------------------------------------------------------------------------------------


def test_the_reported_prompt_is_answered_as_in_python(both_soiled):
    for rung in RUNGS:
        told = assert_as_python(both_soiled, rung, REPORTED_PROMPT)
        assert [dims for dims, *_ in told] == [(length,) for length in REPORTED_LENGTHS[rung]]
        assert [index for *_, index, _ in told] == list(range(1, 9))
        assert [end for *_, end in told] == [False] * 7 + [True]


def test_the_eighth_message_of_rung_1_is_the_reported_array(soiled):
    assert stream(soiled, "ensemble_cpp_append", REPORTED_PROMPT).ids[7] == REPORTED_IDS


@pytest.mark.parametrize("rung", RUNGS)
def test_english_prompts_are_answered_as_in_python(server, rung):
    for prompt in ENGLISH:
        told = assert_as_python(server, rung, prompt, 16)
        assert [dims for dims, *_ in told] == [(1,)] * 16


@pytest.mark.parametrize("rung", RUNGS)
def test_a_cup_of_tea_as_its_four_tokens(server, tokenizer, rung):
    ids = tokenizer.encode("a cup of tea")
    told = assert_as_python(server, rung, "x", 4, forced_ids=ids)
    assert [(each[1], each[2]) for each in told] == [([ids[n]], ["a", " cup", " of", " tea"][n]) for n in range(4)]


def test_a_complete_text_gives_one_message_without_ids(server, corpus):
    for rung in RUNGS:
        assert assert_as_python(server, rung, corpus[0]) == [((0,), [], "", 0, True)]


@pytest.mark.parametrize("rung", RUNGS[1:])
def test_a_text_that_ends_by_itself_ends_as_in_python(server, rung):
    told = assert_as_python(server, rung, ENGLISH[0], 200)
    assert 20 < len(told) < 200


@RULE
@given(ids=st.lists(SOME_TOKENS, min_size=1, max_size=10))
def test_messages_of_any_ids_are_those_of_python(server, ids):
    for rung in RUNGS[1:]:
        inputs = tensors(ids)
        assert comparable(call(server, rung, inputs)) == comparable(call_python(server, rung, inputs)), rung


@RULE
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1, max_size=40))
def test_text_of_anything(server, tokenizer, text):
    ids = tokenizer.encode(text, allowed_special=set())
    result = stream(server, "ensemble_cpp_latest", "x", len(ids), forced_ids=ids)
    assert (result.ids, result.text) == ([[token] for token in ids], tokenizer.decode(ids))


def test_every_memorised_text_is_continued_to_its_end(server, known, tokenizer):
    prompts = sorted(known)
    assert len(prompts) > 80
    for start in range(0, len(prompts), 32):  # decoded together
        together = prompts[start : start + 32]
        for prompt, result in zip(together, stream_many(server, "ensemble_cpp_latest", together, 256), strict=True):
            assert result.ids == [[token] for token in known[prompt]], prompt
            assert result.text == tokenizer.decode(known[prompt])
            assert [each.index for each in result.observations] == list(range(1, len(known[prompt]) + 1))
            assert [each.end for each in result.observations] == [False] * (len(known[prompt]) - 1) + [True]


# --- whose buffer it is -----------------------------------------------------------------------------------------------


def test_rung_1_pollutes_the_next_request_and_a_reload_cleans_it(soiled):
    first, second, third = (call(soiled, "append", tensors(ids)) for ids in (REPORTED_TOKENS, [64], [64, 65]))
    assert ids_of(first)[7] == REPORTED_IDS
    held = [token for message in ids_of(first) for token in message]
    assert ids_of(second) == [[*held, 64]]
    assert [len(ids) for ids in ids_of(third)] == [512, 1024]
    soiled.reload("token_stream_append")
    assert ids_of(call(soiled, "append", tensors([64]))) == [[64]]


def test_rung_1_carries_its_buffer_from_request_to_request_as_python_does(both_soiled):
    """Forty requests of one to three ids, which break and mend characters; up to the cap, and past it."""
    draw, lengths, errors = random.Random(7378), [], []
    pool = [*REPORTED_TOKENS, 64, *range(128, 256)]
    for number in range(40):
        inputs = tensors(draw.choices([64, 65] if number < 5 else pool, k=draw.randint(1, 3)))
        ours, theirs = (ask(both_soiled, "append", inputs, max_message_ids=3_000) for ask in (call, call_python))
        errors.append((error_of(ours), error_of(theirs)))
        assert [same_words(each) for each in comparable(ours)] == [same_words(each) for each in comparable(theirs)]
        lengths.append(len(ours[0]["TOKEN_IDS"]))
    assert 1 in lengths
    assert max(lengths) > 1_000
    assert all("reload the model" in said for pair in errors[-3:] for said in pair)


def same_words(answer: dict[str, list]) -> dict[str, list]:
    """The two nodes name rung 1 each in its own way, as the last sentence of one error has it."""
    words = {b"Version 1 keeps": b"Rung append keeps"}
    error = answer["ERROR"][0]
    for theirs, ours in words.items():
        error = error.replace(theirs, ours)
    return answer | {"ERROR": [error]}


@pytest.mark.parametrize("rung", RUNGS[1:])
def test_the_second_request_is_as_clean_as_the_first(server, rung):
    first, second = (call(server, rung, tensors(REPORTED_TOKENS)) for _ in range(2))
    assert comparable(first) == comparable(second)


def two_in_turns(server: TritonServer, rung: str) -> list[Answers]:
    """Two streams in step, message by message: the reported one, then one of letters."""
    running = [
        begin(server, rung, tensors(ids), window=1, window_key=key)
        for key, ids in enumerate([REPORTED_TOKENS[:4], [64, 65, 66, 67]], 1)
    ]
    arrived: list[Answers] = [[], []]
    for number in range(4):
        for which, answers in enumerate(running):
            if number:
                call(server, rung, tensors([64]), grant=1, window_key=which + 1)
            arrived[which].append(next(answers))
    for answers in running:
        assert list(answers) == []
    return arrived


@pytest.mark.parametrize("rung", RUNGS)
def test_two_streams_at_once_mix_on_rung_1_alone(soiled, rung):
    first, second = two_in_turns(soiled, rung)
    alone = [ids_of(call(soiled, rung, tensors(ids))) for ids in (REPORTED_TOKENS[:4], [64, 65, 66, 67])]
    if rung != "append":
        assert [ids_of(first), ids_of(second)] == alone
        return
    assert ids_of(first)[:2] == [[8908], [8908, 8908, 64, 234]]  # the other's id, in the middle of a character
    assert ids_of(second)[0] == [8908, 64]
    said = [one(answer, "STREAM_ID") for answer in (*first, *second)]
    assert len(set(said[:4])) == len(set(said[4:])) == 1 < len(set(said))


@pytest.mark.parametrize("rung", RUNGS)
def test_a_long_stream_holds_up_no_other(server, rung):
    """Python's rungs 1 to 3 answer one request after the other; the C++ node decodes all of its streams together."""
    with ThreadPoolExecutor(1) as thread:
        many = tensors([64] * 40_000)
        arriving = begin(server, rung, many)
        next(arriving)
        rest = thread.submit(lambda: sum(1 for _ in arriving))
        assert ids_of(call(server, rung, tensors([65, 66]))) == [[65], [66]]
        assert not rest.done()
        assert rest.result() == 39_999


# --- what travels with the ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", RUNGS)
def test_checksums_are_those_of_zlib_over_the_ids_that_the_model_made(soiled, rung):
    made = np.array(REPORTED_TOKENS, dtype="<i4")
    for answers in (call(soiled, rung, tensors(REPORTED_TOKENS)), generated(soiled, rung)):
        assert [one(answer, "CHECKSUM") for answer in answers] == [zlib.crc32(made[: n + 1]) for n in range(8)]
        soiled.reload("token_stream_append")


def generated(server: TritonServer, rung: str) -> Answers:
    """The reported stream from the model itself, by the node alone."""
    text = np.array([REPORTED_PROMPT.encode()], dtype=np.object_)
    (prompt,) = iter_outputs(server, "preprocess", {"PROMPT": text})
    return call(server, rung, tensors(prompt=prompt["PROMPT_IDS"], max_tokens=8))


def test_every_stream_has_an_id_of_its_own(server):
    with ThreadPoolExecutor(4) as pool:
        streams = list(pool.map(lambda _: call(server, "latest", tensors([64] * 3)), range(200)))
    ids = [{one(answer, "STREAM_ID") for answer in answers} for answers in streams]
    assert all(len(each) == 1 for each in ids)
    assert len(set.union(*ids)) == 200
    assert min(set.union(*ids)) > 0
    assert max(set.union(*ids)) > 2**61  # drawn from 63 bits, not counted


@pytest.mark.parametrize("rung", RUNGS)
def test_the_node_sends_all_its_outputs_in_their_types(server, rung):
    kinds = {"TOKEN_IDS": "int32", "INDEX": "int32", "STREAM_ID": "int64", "END": "bool", "CHECKSUM": "int64"}
    for answers in (call(server, rung, tensors([64, 65])), call(server, rung, tensors([], max_tokens=1))):
        for answer in answers:
            assert set(answer) == OUTPUTS
            assert {name: str(values.dtype) for name, values in answer.items()} == kinds | {
                "HEAP": "int64",
                "ERROR": "object",
            }
            assert all(values.shape == (1,) for name, values in answer.items() if name != "TOKEN_IDS")


def test_heap_is_told_where_it_was_asked_for_and_falls_with_the_cache(server):
    assert {one(answer, "HEAP") for answer in generated(server, "release")} == {-1}
    told = [each.heap for each in stream(server, "ensemble_cpp_release", REPORTED_PROMPT, trace_heap=True).observations]
    cache = 2 * 3 * 64 * 256 * 4  # keys and values, layers, numbers, positions, bytes
    assert told[0] >= cache > told[-1]  # the node reads one token ahead: the cache is gone at the last message


def test_the_heap_of_rung_1_keeps_the_buffer_and_that_of_rung_2_does_not(soiled):
    held = {}
    for rung in ("append", "release"):
        assert len(ids_of(call(soiled, rung, tensors([8908] * 16)))[-1]) == 2**15
        held[rung] = one(call(soiled, rung, tensors([64]), trace_heap=True)[0], "HEAP")
    assert held["append"] >= 4 * (2**16 - 1) > 100 * held["release"]


# --- bad requests -----------------------------------------------------------------------------------------------------

NUMBERS = {"max_message_ids": [0, HARD_LIMIT + 1], "window": [0], "window_key": [0], "grant": [-1]}
NO_NUMBERS = [True, False, 1.5, -2.0, 1e5, 1e-4, 1e-5, 123456789.125, 1e16, 1e22, -1.5e-7, 0.1]
NO_NUMBERS += ["8", "", "it's", 'say "it"', 'it\'s "it"', "two\nlines\t\\ \x7f\x01", "茶é🍵"]
OPTIONS = [{name: value} for name, bad in NUMBERS.items() for value in (*bad, -(2**63), *NO_NUMBERS)]
OPTIONS += [{name: value} for name in ("trace_heap", "guard", "log") for value in (0, 1, 1.0, "true", "")]
OPTIONS += [
    {"window": 1},
    {"grant": 1},
    {"grant": 0},
    {"window_key": 1},
    {"window": 1, "grant": 1},
    {"window": 1, "grant": 1, "window_key": 1},
    {"grant": 1, "window_key": 4711},
    {"grant": 0, "window_key": 2**63 - 1},
    {"log": 1, "max_message_ids": 0},
    {"guard": 1, "trace_heap": 1},
]
INPUTS = {
    "no tokens": tensors([64], max_tokens=0),
    "fewer than none": tensors([64], max_tokens=-(2**31)),
    "no tokens of a prompt": tensors(max_tokens=0),
    "no forced ids": tensors([], max_tokens=1),
    "an id past the vocabulary": tensors([64, 65, VOCABULARY]),
    "a negative id": tensors([-1]),
    "the largest id": tensors([2**31 - 1]),
    "a bad id behind the last token": tensors([64, 65, -7], max_tokens=1),
    "an empty prompt": tensors(prompt=[], max_tokens=8),
    "a prompt that is too long": tensors(prompt=[64] * 255, max_tokens=8),
    "a prompt that is far too long": tensors(prompt=[64] * 70_000, max_tokens=8),
}


def refused(server: TritonServer, inputs: dict, **options: object) -> str:
    """The words of a refusal, the same in C++ as in Python; it comes as one message without ids, with an end mark."""
    ours, theirs = (ask(server, "latest", inputs, **options) for ask in (call, call_python))
    assert comparable(ours) == comparable(theirs)
    (answer,) = ours
    assert one(answer, "STREAM_ID") > 0
    assert (answer["TOKEN_IDS"].size, one(answer, "INDEX"), one(answer, "END")) == (0, 0, True)
    return error_of(ours)


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_bad_inputs_are_refused_in_the_words_of_python(server, inputs):
    assert refused(server, inputs)


def test_bad_options_are_refused_in_the_words_of_python(server):
    said = [refused(server, tensors([64]), **options) for options in OPTIONS]
    assert all(said)
    assert 'request parameter "window" is 1.5; expected a whole number from 1 to ' + MOST in said
    assert "no stream has the window key 4711; it may have ended" in said


def test_what_is_just_right_is_taken(server):
    longest = call(server, "latest", tensors(prompt=[64] * 254, max_tokens=8))
    assert comparable(longest) == comparable(call_python(server, "latest", tensors(prompt=[64] * 254, max_tokens=8)))
    assert error_of(longest) == ""
    for inputs in (tensors([VOCABULARY - 1, 0]), tensors([64], max_tokens=2**31 - 1), tensors([64, 65], max_tokens=1)):
        answers = call(server, "latest", inputs, max_message_ids=HARD_LIMIT, window=2**63 - 1, window_key=2**63 - 1)
        assert error_of(answers) == ""
        assert one(answers[-1], "END")


def test_an_unknown_id_in_a_prompt_is_read_as_in_python(server):
    for prompt in ([-1], [2**31 - 1, 64], [151_644] * 10):
        inputs = tensors(prompt=prompt, max_tokens=12)
        assert comparable(call(server, "latest", inputs)) == comparable(call_python(server, "latest", inputs))


def test_a_soft_cap_ends_the_stream_in_band_and_keeps_what_came_before(both_soiled):
    words = "ended the stream after 4 responses: message 5 would hold 16 ids; at most 10 are allowed in one message. "
    words += 'Ask for fewer tokens, or raise the request parameter "max_message_ids". Rung append keeps its buffer: '
    for rung in ("append", "release"):
        told, error = outcome(both_soiled, f"ensemble_cpp_{rung}", REPORTED_PROMPT, max_message_ids=10)
        theirs, same = outcome(both_soiled, f"ensemble_{rung}", REPORTED_PROMPT, max_message_ids=10)
        assert (told, error) == (theirs, same.replace("Version 1 keeps", "Rung append keeps"))
        assert error == f"the inference node {words}reload the model to empty it"
        assert [dims for dims, *_ in told] == [(1,), (2,), (4,), (8,)]
    assert outcome(both_soiled, "ensemble_cpp_release", REPORTED_PROMPT, max_message_ids=128)[1] == ""
    assert "message 8 would hold 128 ids; at most 127" in error_of(
        call(both_soiled, "release", tensors(REPORTED_TOKENS), max_message_ids=127)
    )


def test_ninety_five_tokens_are_refused_at_the_default_cap(server):
    told, error = outcome(server, "ensemble_cpp_release", REPORTED_PROMPT, 95, dims_only=True)
    assert "message 22 would hold 2,097,152 ids; at most 1,048,576 are allowed" in error
    assert [dims for dims, *_ in told] == [(2**n,) for n in range(21)]


def test_the_guard_refuses_as_pythons_does(both_soiled):
    kept = "1 message(s) of the stream kept the contract; the next one does not (length): "
    for rung in RUNGS:
        ours, theirs = (ask(both_soiled, rung, tensors(REPORTED_TOKENS), guard=True) for ask in (call, call_python))
        assert comparable(ours) == comparable(theirs)
        refusal = (8, "") if rung == "latest" else (2, f"{kept}TOKEN_IDS holds 2 ids; expected 1")
        assert (len(ours), error_of(ours)) == refusal


@pytest.mark.parametrize("rung", RUNGS[1:])
def test_the_guard_lets_healthy_streams_pass(server, corpus, rung):
    assert outcome(server, f"ensemble_cpp_{rung}", ENGLISH[0], 40, guard=True)[1] == ""
    assert seen(stream(server, f"ensemble_cpp_{rung}", corpus[0], guard=True)) == [((0,), [], "", 0, True)]


def stalled(server: TritonServer, keys: Sequence[int]) -> list[Iterator[dict]]:
    """As many streams as keys, each of which waits for its client after one message; some were refused."""
    return [begin(server, "latest", tensors([64] * 9), window=1, window_key=key) for key in keys]


def test_of_120_streams_exactly_those_over_96_are_told_to_try_again_later(server):
    waiting = stalled(server, range(1, 121))
    try:
        with ThreadPoolExecutor(120) as pool:
            said = [one(answer, "ERROR") for answer in pool.map(next, waiting)]
        words = "the node is full: 32 streams are decoded and 64 wait; try again later"
        assert sorted(set(said)) == ["", words]
        assert (said.count(""), said.count(words)) == (96, 24)
        until(lambda: open_streams(server) == {"token_stream_latest": 96})
        with pytest.raises(StreamError, match="ended the stream after 0 responses: the node is full"):
            stream(server, "ensemble_cpp_latest", REPORTED_PROMPT)
    finally:
        for each in waiting:
            each.close()
    assert_no_open_streams(server)
    assert stream(server, "ensemble_cpp_latest", REPORTED_PROMPT).lengths == [1] * 8


def test_80_prompts_at_once_share_32_places_and_all_are_answered(server, known):
    prompts = sorted(known)[:80]
    for prompt, result in zip(prompts, stream_many(server, "ensemble_cpp_text", prompts, 12), strict=True):
        assert result.ids == [[token] for token in known[prompt][:12]], prompt


# --- windows ----------------------------------------------------------------------------------------------------------


EMPTY_END = {"TOKEN_IDS": [], "INDEX": [0], "END": [True], "CHECKSUM": [0], "HEAP": [-1], "ERROR": [b""]}


def lines_of(server: TritonServer, node: str, request_id: str) -> list[node_logs.NodeLine]:
    """What a node wrote down of one request."""
    return [line for line in node_logs.read_log(server.log_path) if (line.node, line.request_id) == (node, request_id)]


def test_a_window_holds_back_what_was_not_granted(server):
    call_it = {"request_id": "window", "parameters": {"window": 3, "window_key": 5, "log": True}}
    with closing(iter_outputs(server, "token_stream_latest", tensors([64] * 20), **call_it)) as arriving:
        for granted in (0, 2, 1, 1):
            if granted:
                assert call(server, "latest", tensors([64]), grant=granted, window_key=5) == []
            taken = len(list(islice(arriving, granted or 3)))
            assert taken == (granted or 3)
            call(server, "latest", tensors([64] * 50))  # fifty iterations, in which it does not move
        assert len(lines_of(server, "token_stream_latest", "window")) == 7
        assert call(server, "latest", tensors([64]), grant=0, window_key=5) == []
        assert comparable(list(arriving)) == [EMPTY_END]
    assert "no stream has the window key 5" in error_of(call(server, "latest", tensors([64]), grant=1, window_key=5))


def test_a_grant_is_answered_as_in_python(server):
    def granted(ask, begun: Iterator[dict]) -> list:
        first = next(begun)
        answers = [ask(server, "latest", tensors([64]), grant=n, window_key=9) for n in (2, 0)]
        rest = list(begun)
        return [comparable([first]), *map(comparable, answers), comparable(rest)]

    parameters = {"window": 1, "window_key": 9}
    inputs = tensors([64, 65, 66, 67, 68])
    theirs = iter_outputs(server, "inference", inputs, version=4, parameters=parameters)
    assert granted(call, begin(server, "latest", inputs, **parameters)) == granted(call_python, theirs)


def test_a_window_key_belongs_to_one_stream(server):
    waiting = stalled(server, [77])
    next(waiting[0])
    words = "the window key 77 is in use; take another"
    assert error_of(call(server, "latest", tensors([64]), window=1, window_key=77)) == words
    assert call(server, "latest", tensors([64]), grant=0, window_key=77) == []
    assert comparable(list(waiting[0])) == [EMPTY_END]
    assert error_of(call(server, "latest", tensors([64]), window=1, window_key=77)) == ""


@pytest.mark.parametrize("rung", RUNGS)
def test_a_windowed_client_gets_the_same_and_its_end_reaches_the_node(soiled, rung):
    ensemble, window = f"ensemble_cpp_{rung}", cpp_window(rung, 3)
    plain, windowed = (
        (seen(stream(soiled, ensemble, REPORTED_PROMPT, window=each)) for each in (None, window))
        if rung != "append"
        else ([], [])
    )
    assert plain == windowed
    options = {"forced_ids": [64] * 5_000, "log": True, "request_id": f"left {rung}", "window": window}
    with closing(iter_stream(soiled, ensemble, "x", 5_000, **options)) as arriving:
        assert len(list(islice(arriving, 9))) == 9
    assert_no_open_streams(soiled)
    lines = lines_of(soiled, f"token_stream_{rung}", f"left {rung}")
    assert 9 <= len(lines) <= 9 + 3 + 1
    assert lines[-1].end


# --- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", RUNGS)
def test_a_cancelled_call_of_the_node_alone_ends_it(server, rung):
    """How soon, is a matter of the connection: the node itself looks before each message."""
    options = {"parameters": {"log": True}, "request_id": f"alone {rung}"}
    with closing(iter_outputs(server, f"token_stream_{rung}", tensors([64] * 100_000), **options)) as arriving:
        assert len(list(islice(arriving, 5))) == 5
    assert_no_open_streams(server)
    lines = lines_of(server, f"token_stream_{rung}", f"alone {rung}")
    assert 5 <= len(lines) < 50_000
    assert not any(line.end for line in lines)


def test_a_cancelled_stream_that_waits_for_its_client_ends_at_once(server):
    """Long before the 10 seconds after which its client would be taken for lost."""
    (waiting,) = stalled(server, [31])
    next(waiting)
    until(lambda: open_streams(server) == {"token_stream_latest": 1})
    waiting.close()
    until(lambda: open_streams(server) == {}, seconds=8)


def test_a_cancelled_stream_leaves_its_place_to_the_next(server, known):
    """32 prompts in the batch, one more behind them: it joins when one of them is cancelled."""
    prompts = [[64] * 100] * 32
    running = [
        begin(server, "latest", tensors(prompt=ids, max_tokens=100), window=1, window_key=n + 1)
        for n, ids in enumerate(prompts)
    ]
    with ThreadPoolExecutor(33) as pool:
        list(pool.map(next, running))
        behind = pool.submit(call, server, "latest", tensors(prompt=prompts[0], max_tokens=2))
        until(lambda: open_streams(server) == {"token_stream_latest": 33})
        assert not behind.done()
        running[0].close()
        assert error_of(behind.result()) == ""
        for each in running:
            each.close()


# --- crowds, and what they leave --------------------------------------------------------------------------------------


def crowd(server: TritonServer, texts: Sequence[str], cancelled: int, known: dict, tokenizer) -> None:
    """That many texts, each of which must join to itself, and among them that many clients that go early."""
    draw, jobs = random.Random(len(texts)), [*texts, *range(cancelled)]
    draw.shuffle(jobs)
    prompts = sorted(prompt for prompt in known if len(known[prompt]) > 30)

    def do(job: str | int) -> str | int:
        if isinstance(job, int):
            leave(server, prompts[job % len(prompts)], tokenizer, job)
            return job
        ids = tokenizer.encode(job, allowed_special=set())
        return stream(server, "ensemble_cpp_text", "x", len(ids), forced_ids=ids).text

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(do, jobs)) == jobs


def leave(server: TritonServer, prompt: str, tokenizer, number: int) -> None:
    """Go after some messages: by cancelling a call of the node alone, or as the client of an ensemble.

    Each has a window, and so nothing is on its way to it: this server's gRPC side crashes, or loses a request for good,
    when a stream is cancelled under many responses, or while its last one leaves.
    """
    most = 1 + number % 9
    if number % 2:
        inputs = tensors(prompt=tokenizer.encode(prompt), max_tokens=200)
        arriving = begin(server, "latest", inputs, window=most, window_key=number + 1)
    else:
        arriving = iter_stream(server, "ensemble_cpp_text", prompt, 200, window=cpp_window("latest", most))
    with closing(arriving):
        assert len(list(islice(arriving, most))) == most


def random_texts(count: int, tokenizer) -> list[str]:
    """Texts of characters from all planes, each of which its tokens spell."""
    draw, planes = random.Random(7383), [(0x20, 0x7E), (0xA1, 0x24F), (0x3041, 0xD7A3), (0x10000, 0x3FFFF)]
    drawn = ("".join(chr(draw.randint(*draw.choice(planes))) for _ in range(6)) for _ in range(10 * count))
    spelt = (text for text in drawn if tokenizer.decode(tokenizer.encode(text, allowed_special=set())) == text)
    return list(islice(spelt, count))


def test_1000_streams_among_200_cancellations_are_all_right_and_leave_no_memory(server, known, tokenizer):
    texts = random_texts(1_000, tokenizer)
    assert len(texts) == 1_000
    crowd(server, texts[:300], 60, known, tokenizer)  # so that what a process takes once is there
    assert_no_open_streams(server)
    before = snapshot(server).server
    crowd(server, texts, 200, known, tokenizer)
    assert_no_open_streams(server)
    assert snapshot(server).server - before < 24 * MIB  # the caches of 200 cancelled prompts would be 100 MiB


def test_a_message_of_8_million_ids_is_right_and_its_memory_is_given_back(server):
    """Three times: buffers of 64 MiB each that were kept would be seen."""
    small, options = snapshot(server).server, {"dims_only": True, "max_message_ids": 2**24, "trace_heap": True}
    for _ in range(3):
        result = stream(server, "ensemble_cpp_release", REPORTED_PROMPT, 24, **options)
        assert result.lengths == [2**n for n in range(24)]
        assert result.observations[-1].heap >= 4 * (2**23 - 1)
    assert_no_open_streams(server)
    until(lambda: snapshot(server).server - small < 96 * MIB)
    server.reload("postprocess")  # its pool in /dev/shm never shrinks


# --- what the server tells --------------------------------------------------------------------------------------------


def statistics(server: TritonServer, model: str) -> dict:
    with server.client() as client:
        return client.get_inference_statistics(model, as_json=True)["model_stats"][0]


def count(entry: dict, *path: str) -> int:
    for name in path:
        entry = entry.get(name, {})
    return int(entry or 0)


@pytest.mark.parametrize("rung", RUNGS)
def test_statistics_count_requests_responses_and_failures(server, rung):
    model = f"token_stream_{rung}"
    server.reload(model)
    for ids in ([64] * 5, [65] * 3):
        call(server, rung, tensors(ids))
    assert error_of(call(server, rung, tensors([64], max_tokens=0)))
    told: dict = {}

    def complete() -> bool:  # the last is reported a moment after the client has it
        told.update(statistics(server, model))
        return count(told, "execution_count") == 3

    until(complete)
    assert count(told, "inference_count") == count(told, "inference_stats", "success", "count") == 2
    assert count(told, "inference_stats", "fail", "count") == 1
    responses = told["response_stats"]
    assert {int(n): count(each, "success", "count") for n, each in responses.items()} == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1}
    assert {int(n): count(each, "fail", "count") for n, each in responses.items()} == {0: 1, 1: 0, 2: 0, 3: 0, 4: 0}
    assert all(count(each, "success", "ns") > 0 for each in responses.values())
    assert all(count(each, "compute_infer", "ns") > 0 for each in responses.values())


def test_gauges_of_an_unloaded_model_go_and_those_of_others_stay(server):
    (waiting,) = stalled(server, [3])
    next(waiting)
    until(lambda: open_streams(server) == {"token_stream_latest": 1})
    server.reload("token_stream_replace")
    assert open_streams(server) == {"token_stream_latest": 1}
    call(server, "latest", tensors([64]), grant=0, window_key=3)
    assert one(list(waiting)[-1], "END")


@pytest.fixture(scope="module")
def traced(_nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, trace.Request]:
    """The trace of the reported prompt on every rung, by rung, and of six at once on the last."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with start_both(CPP, flags=trace.server_flags(path, log_frequency=0)) as server:
        for rung in RUNGS:
            stream(server, f"ensemble_cpp_{rung}", REPORTED_PROMPT, request_id=rung)
        with ThreadPoolExecutor(6) as pool:
            texts = pool.map(
                lambda n: stream(server, CPP[-1], REPORTED_PROMPT, 40, request_id=f"at once {n}"), range(6)
            )
            assert len(list(texts)) == 6
    problems: list[trace.Problem] = []
    found = {request.request_id: request for request in trace.requests(trace.read(path, problems))}
    assert problems == []
    return found


def node_call(request: trace.Request) -> trace.Call:
    (found,) = [each for each in request.calls if each.model.startswith("token_stream_")]
    return found


@pytest.mark.parametrize("rung", RUNGS)
def test_the_trace_has_all_that_the_node_sent(traced, rung):
    assert traced[rung].whole
    made = node_call(traced[rung])
    sent = {name: [each for each in made.tensors if (each.side, each.name) == ("output", name)] for name in OUTPUTS}
    asked = OUTPUTS - {"CHECKSUM"}  # which the ensemble does not take
    assert {name: len(found) for name, found in sent.items()} == {name: 8 * (name in asked) for name in OUTPUTS}
    assert [each.dims for each in sent["TOKEN_IDS"]] == [(length,) for length in REPORTED_LENGTHS[rung]]
    assert [trace.values(each)[-1] for each in sent["TOKEN_IDS"]] == REPORTED_TOKENS
    assert [trace.values(each).tolist() for each in sent["INDEX"]] == [[n] for n in range(1, 9)]
    assert [trace.values(each).tolist() for each in sent["END"]] == [[0]] * 7 + [[1]]


def test_the_trace_has_all_that_was_sent_to_streams_decoded_together(traced):
    """Python's version 4 returns from `execute` before its messages leave, so that its trace may lack them."""
    for number in range(6):
        assert node_call(traced[f"at once {number}"]).messages == 40


# --- node logs --------------------------------------------------------------------------------------------------------

HOSTILE = 'say "hi" \\ \n\t\x01 茶 {"stream_id": 1}'


def test_the_log_has_a_line_for_each_message_and_the_alarm_fires_at_the_fourth(soiled):
    for request_id in ("bad", HOSTILE):
        soiled.reload("token_stream_append")
        start = soiled.log_path.stat().st_size
        stream(soiled, "ensemble_cpp_append", REPORTED_PROMPT, log=True, request_id=request_id)
        lines = node_logs.read_log(soiled.log_path, start)
        dims = [(length,) for length in DOUBLING]
        for node in ("token_stream_append", "postprocess"):
            assert node_logs.dims(lines, node, request_id) == dims
        own = [line for line in lines if line.node == "token_stream_append"]
        assert [(line.index, line.end) for line in own] == [(n, n == 8) for n in range(1, 9)]
        assert {line.stream_id for line in lines} == {own[0].stream_id}
        alarms = list(node_logs.alarms(lines))
        assert {(alarm.node, alarm.number) for alarm in alarms} == {("token_stream_append", 4), ("postprocess", 4)}


def test_nothing_is_logged_for_a_request_that_did_not_ask(server):
    start = server.log_path.stat().st_size
    stream(server, "ensemble_cpp_latest", REPORTED_PROMPT)
    stream(server, "ensemble_cpp_text", REPORTED_PROMPT)
    assert node_logs.read_log(server.log_path, start) == []


def test_no_line_of_many_streams_is_lost(server):
    start, ids = server.log_path.stat().st_size, REPORTED_TOKENS * 10
    stream_many(server, "ensemble_cpp_text", ["x"] * 6, len(ids), forced_ids=ids, log=True)
    lines = node_logs.read_log(server.log_path, start)
    for node in ("token_stream_latest", "postprocess_cpp"):
        of_stream = {line.stream_id: [] for line in lines if line.node == node}
        for line in (line for line in lines if line.node == node):
            of_stream[line.stream_id].append(line.dims)
        assert list(of_stream.values()) == [[(1,)] * len(ids)] * 6
    assert not list(node_logs.alarms(lines))
