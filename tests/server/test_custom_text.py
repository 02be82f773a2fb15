"""The C++ post-processing node on the real server: any bytes, split anyhow, become the text that Python makes of them.

Below, the times of the models are shorter than the lab's, so that a test need not wait for them.
"""

import codecs
import json
import random
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from cpp_nodes import (
    VOCABULARY,
    begin,
    copied_repositories,
    cpp_window,
    error_of,
    one,
    start_both,
    stopping_cleanly,
    stops_cleanly,
    tensors,
    until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import assert_no_open_streams, open_streams
from prometheus_client.parser import text_string_to_metric_families
from token_bytes import TokenBytes
from tritonclient import grpc

from lab_utils import node_logs
from lab_utils.client import StreamError, infer, iter_outputs, iter_stream, stream
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.server import MODEL_REPOSITORY, TritonServer

NODES = ("postprocess_cpp", "postprocess")
SECONDS = 2  # both times
MOST_STREAMS = 1_024
TEA = [8908, 234, 114]  # the three parts of " 茶"
TABLE = TokenBytes.load(MODEL_REPOSITORY / "postprocess" / "token_bytes.safetensors")
TOKEN_OF = {TABLE[token][0]: token for token in range(VOCABULARY) if len(TABLE[token]) == 1}  # of each single byte
# Around every bound of UTF-8: the first and the last of each kind of byte, and what is none.
EDGES = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF]
EDGES += [0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF7, 0xF8, 0xFF]
RULE = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the server is shared by all examples, on purpose
)
SOME_TOKENS = st.one_of(
    st.sampled_from([TOKEN_OF[byte] for byte in EDGES]),
    st.sampled_from(REPORTED_TOKENS),
    st.integers(0, VOCABULARY - 1),
)
MESSAGES = st.lists(st.lists(SOME_TOKENS, max_size=6), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def quick(_nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repositories = copied_repositories(tmp_path_factory.mktemp("quick"), grant_seconds=SECONDS, idle_seconds=SECONDS)
    models = ["ensemble_cpp_text", "ensemble_cpp_release", "ensemble_latest"]
    with stopping_cleanly(start_both(models, repository=repositories)) as running:
        yield running


@pytest.fixture
def server(quick: TritonServer) -> Iterator[TritonServer]:
    """Both nodes with short times. After each test they hold no stream."""
    yield quick
    quick.check()
    assert_no_open_streams(quick)


def message(stream_id: int, ids: Sequence[int], end: bool = False) -> dict[str, np.ndarray]:
    return {
        "TOKEN_IDS": np.array(ids, dtype=np.int32),
        "STREAM_ID": np.array([stream_id], dtype=np.int64),
        "END": np.array([end]),
    }


def text_of(server: TritonServer, node: str, stream_id: int, ids: Sequence[int], end: bool = False) -> str:
    return one(infer(server, node, message(stream_id, ids, end)), "TEXT")


def answers(server: TritonServer, node: str, messages: Sequence[Sequence[int]]) -> list[dict[str, list]]:
    """All outputs of a node for the messages of one stream, of which the last has the end mark."""
    stream_id = random.getrandbits(62)
    told = [
        infer(server, node, message(stream_id, ids, number == len(messages))) for number, ids in enumerate(messages, 1)
    ]
    return [{name: values.tolist() for name, values in answer.items()} for answer in told]


def decoded(messages: Sequence[Sequence[int]]) -> list[str]:
    """The same by Python's own decoder, without any node."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts = [b"".join(TABLE[token] for token in ids) for ids in messages]
    return [decoder.decode(part, final=number == len(parts)) for number, part in enumerate(parts, 1)]


# --- any bytes --------------------------------------------------------------------------------------------------------


@RULE
@given(messages=MESSAGES)
def test_text_ids_and_dims_of_any_messages_are_those_of_python(server, messages):
    ours, theirs = (answers(server, node, messages) for node in NODES)
    assert ours == theirs
    assert [answer["TEXT"] for answer in ours] == [[text.encode()] for text in decoded(messages)]
    assert [answer["RECEIVED_IDS"] for answer in ours] == [list(ids) for ids in messages]
    assert [answer["RECEIVED_DIMS"] for answer in ours] == [[len(ids)] for ids in messages]


def test_200_000_bytes_from_the_edges_of_utf_8(server):
    """Every sequence of three such bytes is among them, whole and cut at any place."""
    draw = random.Random(3629)
    data = [draw.choice(EDGES) for _ in range(200_000)]
    assert len(set(zip(data, data[1:], data[2:], strict=False))) == len(EDGES) ** 3
    messages, at = [], 0
    while at < len(data):
        size = draw.choice([1, 2, 3, 5_000])
        messages.append([TOKEN_OF[byte] for byte in data[at : at + size]])
        at += size
    texts = [answer["TEXT"][0].decode() for answer in answers(server, "postprocess_cpp", messages)]
    assert texts == decoded(messages)
    assert "".join(texts) == bytes(data).decode("utf-8", "replace")


def test_a_token_of_every_length_and_every_token_is_decoded(server):
    for start in range(0, VOCABULARY, 30_000):
        ids = list(range(start, min(start + 30_000, VOCABULARY)))
        assert [each["TEXT"][0].decode() for each in answers(server, "postprocess_cpp", [ids])] == decoded([ids])


def test_a_character_is_held_back_until_it_is_whole_or_said_at_the_end(server):
    assert [text_of(server, NODES[0], 1, [token], token == 114) for token in TEA] == [" ", "", "茶"]
    assert [text_of(server, NODES[0], 2, [token], token == 234) for token in TEA[:2]] == [" ", "\ufffd"]
    assert text_of(server, NODES[0], 2, [], True) == ""  # nothing of it is left


def test_streams_in_turns_have_a_decoder_each(server):
    """Of both signs and the largest: the node takes any id for what it is."""
    streams = [0, 1, -1, 2**63 - 1, -(2**63), 7]
    texts = dict.fromkeys(streams, "")
    for number in range(len(TEA) * 3):
        for which, one_id in enumerate(streams):
            token, end = TEA[(number + which) % 3], number == 8
            texts[one_id] += text_of(server, NODES[0], one_id, [token], end)
    turned = [(TEA[which % 3 :] + TEA * 3)[:9] for which in range(len(streams))]
    assert list(texts.values()) == ["".join(decoded([[token] for token in ids])) for ids in turned]


def test_many_clients_at_once(server, tokenizer):
    text = "茶匙 👩🏽‍🚀 नमस्ते " * 5
    messages = [[token] for token in tokenizer.encode(text)]
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: answers(server, "postprocess_cpp", messages), range(16)))
    assert ["".join(each["TEXT"][0].decode() for each in one_stream) for one_stream in said] == [text] * 16


# --- options and errors -----------------------------------------------------------------------------------------------


def with_options(server: TritonServer, node: str, given: dict[str, np.ndarray], **options: object) -> dict:
    (answer,) = iter_outputs(server, node, given, parameters=options, request_id="an id")
    return {name: values.tolist() for name, values in answer.items()}


def test_dims_only_says_the_dims_and_opens_no_stream(server):
    for ids in ([], TEA[:2], [64] * 5_000, [VOCABULARY]):  # an id that there is not is not looked at, as in Python
        ours, theirs = (with_options(server, node, message(9, ids), dims_only=True) for node in NODES)
        assert ours == theirs == {"TEXT": [b""], "RECEIVED_IDS": [], "RECEIVED_DIMS": [len(ids)]}
    assert text_of(server, NODES[0], 9, TEA[2:], True) == "\ufffd"  # nothing was held back
    ours, theirs = (with_options(server, node, message(9, [64], True), dims_only=False) for node in NODES)
    assert ours == theirs == {"TEXT": [b"a"], "RECEIVED_IDS": [64], "RECEIVED_DIMS": [1]}


def test_only_what_was_asked_for_is_sent(server):
    with server.client() as client:
        inputs = []
        for name, dtype in (("TOKEN_IDS", "INT32"), ("STREAM_ID", "INT64"), ("END", "BOOL")):
            values = message(3, [64], True)[name]
            inputs.append(grpc.InferInput(name, values.shape, dtype))
            inputs[-1].set_data_from_numpy(values)
        result = client.infer("postprocess_cpp", inputs, outputs=[grpc.InferRequestedOutput("RECEIVED_DIMS")])
    assert [output.name for output in result.get_response().outputs] == ["RECEIVED_DIMS"]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([VOCABULARY], "token id 151643 at position 0 is not in the vocabulary (0 to 151,642)"),
        ([64, 65, -1], "token id -1 at position 2 is not in the vocabulary (0 to 151,642)"),
        ([64, 2**31 - 1, -5], "token id 2147483647 at position 1 is not in the vocabulary (0 to 151,642)"),
        ([-(2**31)], "token id -2147483648 at position 0 is not in the vocabulary (0 to 151,642)"),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused_in_the_words_of_python_and_its_stream_is_dropped(server, ids, words):
    for node in NODES:
        assert text_of(server, node, 5, TEA[:2]) == " "
        with pytest.raises(StreamError) as caught:
            text_of(server, node, 5, ids)
        assert str(caught.value) == f"model {node!r} answered with an error: {words}"
        assert text_of(server, node, 5, TEA[2:], True) == "\ufffd"  # not 茶: what was held back is gone


def test_a_line_is_logged_for_each_message_that_asked(server):
    start = server.log_path.stat().st_size
    for node in NODES:
        with_options(server, node, message(6, TEA), log=True)
        with_options(server, node, message(6, [], True), log=True)
        with_options(server, node, message(6, [], True), log=False)
    lines = node_logs.read_log(server.log_path, start)
    for node in NODES:
        told = [
            (line.request_id, line.stream_id, line.index, line.dims, line.end) for line in lines if line.node == node
        ]
        assert told == [("an id", 6, None, (3,), False), ("an id", 6, None, (0,), True)]


def test_statistics_count_what_was_answered_and_what_was_refused(server):
    server.reload("postprocess_cpp")
    for _ in range(3):
        text_of(server, "postprocess_cpp", 1, [64], True)
    with pytest.raises(StreamError):
        text_of(server, "postprocess_cpp", 1, [-1], True)
    with server.client() as client:
        until(lambda: told(client)[2] == 4)
        assert told(client) == (3, 1, 4)


def told(client: object) -> tuple[int, int, int]:
    """Successes, failures, executions."""
    entry = client.get_inference_statistics("postprocess_cpp", as_json=True)["model_stats"][0]
    each = [entry["inference_stats"][kind].get("count", 0) for kind in ("success", "fail")]
    return int(each[0]), int(each[1]), int(entry.get("execution_count", 0))


# --- the table of open streams ----------------------------------------------------------------------------------------


def test_the_gauge_counts_open_streams_and_idle_ones_are_dropped(server):
    for stream_id in range(40):
        text_of(server, "postprocess_cpp", stream_id, TEA[:2])
    until(lambda: open_streams(server) == {"postprocess_cpp": 40})
    assert_no_open_streams(server)  # no call arrives meanwhile: a thread of the node sweeps
    assert text_of(server, "postprocess_cpp", 0, TEA[2:], True) == "\ufffd"


def test_a_stream_in_use_is_not_dropped(server):
    """It is used for longer than the time after which an idle one goes."""
    text_of(server, "postprocess_cpp", 1, TEA[:1])
    text_of(server, "postprocess_cpp", 2, TEA[:2])
    until(lambda: text_of(server, "postprocess_cpp", 1, []) + str(open_streams(server)) == "{'postprocess_cpp': 1}")
    assert text_of(server, "postprocess_cpp", 1, TEA[1:], True) == "茶"


@pytest.mark.usefixtures("_nothing_left_behind")
def test_the_table_is_bounded_and_the_stream_used_least_lately_goes_first():
    with start_both(["postprocess_cpp"]) as server:
        order = [
            *range(MOST_STREAMS),
            0,
            MOST_STREAMS,
        ]  # 0 is used once more, so 1 is the oldest when one too many comes
        for number, stream_id in enumerate(order):
            text_of(server, "postprocess_cpp", stream_id, TEA[:1] if number < MOST_STREAMS else TEA[1:2])
        until(lambda: open_streams(server) == {"postprocess_cpp": MOST_STREAMS})
        assert text_of(server, "postprocess_cpp", 0, TEA[2:], True) == "茶"
        assert text_of(server, "postprocess_cpp", 1, TEA[1:], True) == "\ufffd" * 2
        assert text_of(server, "postprocess_cpp", 2, TEA[1:], True) == "茶"
        assert stops_cleanly(server)


# --- in the ensemble --------------------------------------------------------------------------------------------------


def as_python(server: TritonServer, prompt: str, max_tokens: int, **options: object) -> str:
    """The text of a stream, of which a client gets the same from the C++ ensemble and the Python one."""
    ours, theirs = (
        stream(server, ensemble, prompt, max_tokens, **options) for ensemble in ("ensemble_cpp_text", "ensemble_latest")
    )
    for one_message, other in zip(ours.observations, theirs.observations, strict=True):
        for name in ("dims", "nbytes", "text", "index", "end", "heap"):
            assert getattr(one_message, name) == getattr(other, name)
    assert ours.ids == theirs.ids
    return ours.text


def test_the_cpp_pipeline_tells_the_memorised_text(server, corpus):
    assert REPORTED_PROMPT + as_python(server, REPORTED_PROMPT, 200) == corpus[0]


def test_every_line_of_the_corpus_as_forced_ids(server, tokenizer, corpus):
    for line in corpus[::3]:
        ids = tokenizer.encode(line)
        assert as_python(server, "x", len(ids), forced_ids=ids) == line


@pytest.mark.parametrize(
    "text", ["👩‍👩‍👧‍👦 🇨🇳🇩🇪", "e\u0301 ñ ﷽ 𝔘𝔫𝔦", "नमस्ते สวัสดี שלום", "\x00\u200b\U0010ffff", "𠜎𠜱 茶"]
)
def test_hard_characters(server, tokenizer, text):
    ids = tokenizer.encode(text)
    assert as_python(server, "x", len(ids), forced_ids=ids) == tokenizer.decode(ids)


@RULE
@given(ids=st.lists(SOME_TOKENS, min_size=1, max_size=30))
def test_any_ids_through_the_ensemble(server, ids):
    ours = stream(server, "ensemble_cpp_text", "x", len(ids), forced_ids=ids)
    assert [seen.text for seen in ours.observations] == decoded([[token] for token in ids])


def test_dims_only_and_log_reach_both_nodes(server):
    start = server.log_path.stat().st_size
    assert as_python(server, REPORTED_PROMPT, 8, dims_only=True, log=True, request_id="one") == ""
    lines = node_logs.read_log(server.log_path, start)
    for node in ("token_stream_latest", "postprocess_cpp", "inference", "postprocess"):
        assert node_logs.dims(lines, node) == [(1,)] * 8


# --- what the times are for -------------------------------------------------------------------------------------------


def test_a_client_that_dawdles_is_told_why_its_stream_ended(server):
    with closing(begin(server, "latest", tensors([64] * 9), window=2, window_key=1)) as arriving:
        assert len(list(islice(arriving, 2))) == 2
        assert_no_open_streams(server)  # it grants nothing meanwhile
        rest = list(arriving)
    assert error_of(rest) == f"the client granted no message for {SECONDS} s: it is taken for lost"
    assert one(rest[-1], "END")


def test_both_nodes_forget_a_stream_whose_window_was_left(server):
    options = {"forced_ids": TEA * 100, "window": cpp_window("latest", 2)}
    with closing(iter_stream(server, "ensemble_cpp_text", "x", 300, **options)) as arriving:
        assert len(list(islice(arriving, 5))) == 5
        until(lambda: open_streams(server) == {"token_stream_latest": 1, "postprocess_cpp": 1})
    assert_no_open_streams(server)


def test_an_error_of_the_node_frees_the_decoder(server):
    words = "ended the stream after 2 responses: message 3 would hold 4 ids; at most 2"
    with pytest.raises(StreamError, match=words):
        stream(server, "ensemble_cpp_release", "x", 9, forced_ids=TEA * 3, max_message_ids=2)
    with pytest.raises(StreamError, match="ended the stream after 0 responses: MAX_TOKENS is 0; ask for at least 1"):
        stream(server, "ensemble_cpp_text", "x", 0)


def test_the_page_of_metrics_stays_readable(server):
    """Every node has its gauge, each with labels of its own."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
        families = {each.name: each for each in text_string_to_metric_families(page.read().decode())}
    labels = [json.dumps(sample.labels, sort_keys=True) for sample in families["lab_open_streams"].samples]
    models = {json.loads(each)["model"] for each in labels}
    assert {"token_stream_latest", "token_stream_release", "postprocess_cpp", "postprocess", "inference"} <= models
    assert len(labels) == len(set(labels))
