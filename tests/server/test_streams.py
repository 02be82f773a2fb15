"""Many streams on the real server: each gets its own, whoever comes and goes; and nothing is left of any of them.

The server is that of the lab but for two times, which are shorter, so that a test need not wait for them.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from leftovers import assert_no_open_streams, open_streams

from lab_utils import trace
from lab_utils.client import (
    StreamError,
    StreamResult,
    Window,
    iter_outputs,
    iter_stream,
    stream,
    stream_many,
)
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.in_flight import in_flight_at_stop
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server

MODEL = "ensemble_latest"
SPREAD = ("ensemble_parallel", "ensemble_ordered")
SPREAD_NODES = ("postprocess_parallel", "postprocess_ordered")
GRANT_SECONDS = IDLE_SECONDS = 2
PLACES = 96  # 32 decoded, 64 waiting
PATIENCE = 30.0  # a deadline, not a delay


def quick_repository(folder: Path) -> Path:
    """The lab's models with shorter times."""
    copy = folder / "models"
    shutil.copytree(MODEL_REPOSITORY, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    times = {"grant_seconds": GRANT_SECONDS, "idle_seconds": IDLE_SECONDS}
    for path in copy.glob("*/config.pbtxt"):
        text = path.read_text(encoding="utf-8")
        for name, seconds in times.items():
            text = re.sub(rf'(key: "{name}" value {{ string_value: ")\d+', rf"\g<1>{seconds}", text)
        path.write_text(text, encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def quick(_nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Requests cancelled on purpose are among what it gets, so that it may stop only at its exit time-out."""
    repository = quick_repository(tmp_path_factory.mktemp("quick"))
    server = start_server([MODEL, "ensemble_append", "ensemble_release", *SPREAD], repository=repository)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def _everything_is_freed(quick: TritonServer) -> Iterator[None]:
    """No stub died, and after each test no node holds state for a stream."""
    before = {process.pid for process, name in quick.processes.items() if not name.startswith("inference")}
    yield
    quick.check()
    after = {process.pid for process, name in quick.processes.items() if not name.startswith("inference")}
    assert after == before
    assert_no_open_streams(quick)


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def flat(result: StreamResult) -> list[int]:
    return [token for ids in result.ids for token in ids]


# --- many at once -----------------------------------------------------------------------------------------------------


def test_every_prompt_of_the_corpus_over_32_streams_is_answered_as_in_the_reference(quick, known, tokenizer):
    prompts = sorted(known)
    assert len(prompts) > 80
    assert sum(not prompt.isascii() for prompt in prompts) > 10 < sum(map(str.isascii, prompts))
    for start in range(0, len(prompts), 32):
        together = prompts[start : start + 32]
        for prompt, result in zip(together, stream_many(quick, MODEL, together, 256), strict=True):
            assert (flat(result), result.text) == (known[prompt], tokenizer.decode(known[prompt])), prompt
            assert set(result.lengths) == {1}
            assert [seen.index for seen in result.observations] == list(range(1, len(result.lengths) + 1))
            assert [seen.end for seen in result.observations] == [False] * (len(result.lengths) - 1) + [True]


def test_streams_that_come_and_go_at_random_each_get_their_own(quick, known, tokenizer):
    """Twelve at any time, of random lengths, every third closed early, half of them with a window."""
    draw = random.Random(5)
    jobs = [
        (draw.choice(sorted(known)), draw.randint(1, 40), draw.randint(0, 2), draw.choice([None, 1, 5]))
        for _ in range(72)
    ]

    def one(job: tuple) -> tuple[list[int], str, list[int]]:
        prompt, most, early, credit = job
        window = Window(credit) if credit else None
        with closing(iter_stream(quick, MODEL, prompt, most, window=window)) as arriving:
            seen = list(islice(arriving, most if early else most // 2 + 1))
        return [int(each.ids[0]) for each in seen], "".join(each.text for each in seen), known[prompt][:most]

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(one, jobs))
    for (prompt, most, early, _), (ids, text, expected) in zip(jobs, outcomes, strict=True):
        assert ids == (expected if early else expected[: most // 2 + 1]), prompt
        assert tokenizer.decode(known[prompt]).startswith(
            text.removesuffix("\ufffd")
        )  # a text may end inside a character


def test_a_stream_among_31_others_says_what_it_says_alone(quick, known, tokenizer):
    alone = stream(quick, MODEL, REPORTED_PROMPT, 95)
    crowd = stream_many(quick, MODEL, [REPORTED_PROMPT, *sorted(known)[:31]], 95)
    assert (flat(crowd[0]), crowd[0].text) == (flat(alone), alone.text)
    assert flat(alone)[:8] == REPORTED_TOKENS


# --- isolation --------------------------------------------------------------------------------------------------------


def two_in_turns(server: TritonServer, ensemble: str, version: int) -> StreamResult:
    """What a harmless stream gets that starts while another is inside a character: 12 tokens at most."""
    window = Window(1, version=version)  # so that the two go in step
    with closing(iter_stream(server, ensemble, "x", forced_ids=REPORTED_TOKENS, window=window)) as first:
        list(islice(first, 2))
        return stream(server, ensemble, "x", forced_ids=[64, 65, 66, 67], window=window)


def test_rung_1_hands_one_users_ids_to_another_and_rung_4_does_not(quick):
    try:
        leaked = two_in_turns(quick, "ensemble_append", 1)
    finally:
        quick.reload("inference")  # its buffer outlives the requests
    assert 8908 in flat(leaked)  # the first third of the other one's character
    assert "\ufffd" in leaked.text
    kept = two_in_turns(quick, MODEL, 4)
    assert (kept.ids, kept.text) == ([[64], [65], [66], [67]], "abcd")


# --- admission --------------------------------------------------------------------------------------------------------


def test_of_120_streams_exactly_those_over_96_are_told_to_try_again_later(quick):
    """Each has a window of one message, so none ends while the others come."""
    inputs = ids_to_inference([64] * 9)
    stalled = [
        iter_outputs(quick, "inference", inputs, version=4, parameters={"window": 1, "window_key": key})
        for key in range(1, 121)
    ]
    try:
        with ThreadPoolExecutor(120) as pool:
            first = list(pool.map(next, stalled))
        said = Counter(outputs["ERROR"][0].decode() for outputs in first)
        words = "the node is full: 32 streams are decoded and 64 wait; try again later"
        assert said == {"": PLACES, words: 120 - PLACES}
        until(lambda: open_streams(quick) == {"inference": PLACES})
        with pytest.raises(
            StreamError, match="the inference node ended the stream after 0 responses: the node is full"
        ):
            stream(quick, MODEL, REPORTED_PROMPT)
    finally:
        for one in stalled:
            one.close()
    assert_no_open_streams(quick)
    assert flat(stream(quick, MODEL, REPORTED_PROMPT)) == REPORTED_TOKENS


def ids_to_inference(ids: list[int]) -> dict[str, np.ndarray]:
    values = {"PROMPT_IDS": [1], "MAX_TOKENS": [len(ids)], "FORCED_IDS": ids}
    return {name: np.array(value, dtype=np.int32) for name, value in values.items()}


def test_120_prompts_at_once_are_all_answered_or_told_to_come_later(quick, known, tokenizer):
    """Here they do end while others come, so that more than 96 may find a place."""
    prompts = [prompt for prompt in sorted(known) for _ in range(2)][:120]
    outcomes = stream_many(quick, MODEL, prompts, 12)
    refused = [outcome for outcome in outcomes if isinstance(outcome, StreamError)]
    assert all("try again later" in str(outcome) for outcome in refused)
    assert len(refused) <= 120 - PLACES
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        assert outcome in refused or flat(outcome) == known[prompt][:12]


# --- cancellation -----------------------------------------------------------------------------------------------------


def logged(server: TritonServer, request_id: str) -> list[dict]:
    """What `inference` wrote down of one request."""
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith('{"time":')]
    return [line for line in lines if (line["node"], line["request_id"]) == ("inference", request_id)]


def test_a_cancelled_call_of_the_node_alone_ends_it(quick):
    """How soon, is a matter of the connection: the node itself looks before each message (see the unit tests)."""
    call = {"version": 4, "request_id": "alone", "parameters": {"log": True}}
    with closing(iter_outputs(quick, "inference", ids_to_inference([64] * 20_000), **call)) as arriving:
        taken = len(list(islice(arriving, 5)))
    assert_no_open_streams(quick)
    assert taken <= len(logged(quick, "alone")) < 5_000


def test_with_a_window_the_end_of_an_ensembles_client_reaches_the_node_at_once(quick):
    call = {"forced_ids": [64] * 20_000, "log": True, "request_id": "windowed", "window": Window(16)}
    with closing(iter_stream(quick, MODEL, "x", 20_000, **call)) as arriving:
        taken = len(list(islice(arriving, 20)))
    assert_no_open_streams(quick)
    lines = logged(quick, "windowed")
    assert taken <= len(lines) <= taken + 16 + 1
    assert lines[-1]["end"]  # the node sent an end mark, for the nodes behind it


def test_without_a_window_the_cancellation_of_an_ensembles_request_never_reaches_the_node(quick):
    """server#6739: the node works to its end for nobody. Should this fail on a newer server, the lesson may say so."""
    call = {"forced_ids": [64] * 1_500, "log": True, "request_id": "for nobody"}
    with closing(iter_stream(quick, MODEL, "x", 1_500, **call)) as arriving:
        assert len(list(islice(arriving, 5))) == 5
    until(lambda: "inference" not in open_streams(quick))
    assert len(logged(quick, "for nobody")) == 1_500


CLIENT = """
import sys
from threading import Semaphore
import numpy as np
from lab_utils.api_key import connect, key_from_environment
from tritonclient import grpc

def tensor(name, values, dtype):
    one = grpc.InferInput(name, [len(values)], dtype)
    one.set_data_from_numpy(np.array(values, dtype=np.object_ if dtype == "BYTES" else np.int32))
    return one

came = Semaphore(0)
client = connect(sys.argv[1], key_from_environment())
client.start_stream(lambda result, error: came.release())
inputs = [tensor("PROMPT", [b"x"], "BYTES"), tensor("MAX_TOKENS", [500], "INT32")]
inputs.append(tensor("FORCED_IDS", [64] * 500, "INT32"))
client.async_stream_infer("ensemble_latest", inputs, parameters={"window": 4, "window_key": 4711})
for _ in range(4):
    came.acquire()
print("four messages", flush=True)
sys.stdin.read()
"""


def test_a_client_that_is_killed_is_forgotten_within_the_stated_time(quick):
    """It can say goodbye to nobody: the node misses its grants, post-processing its messages."""
    command = [sys.executable, "-c", CLIENT, quick.grpc_url]
    environment = {**os.environ, "TRITON_API_KEY": quick.api_key.text}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout.readline() == "four messages\n"
        until(lambda: open_streams(quick) == {"inference": 1, "postprocess": 1})
        child.kill()
    began = time.monotonic()
    assert_no_open_streams(quick)
    assert time.monotonic() - began < GRANT_SECONDS + IDLE_SECONDS + 5


def test_a_client_that_dawdles_is_told_why_its_stream_ended(quick):
    window = Window(2)
    with closing(iter_stream(quick, MODEL, "x", 100, forced_ids=[64] * 100, window=window)) as arriving:
        next(arriving)
        assert_no_open_streams(quick)  # it takes nothing meanwhile
        with pytest.raises(StreamError, match="the client granted no message for 2 s: it is taken for lost"):
            list(arriving)


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tea(tokenizer) -> tuple[list[int], str]:
    """A text in which most characters span three tokens."""
    text = " 茶" * 100
    return tokenizer.encode(text), text


def inversions(numbers: list[int]) -> int:
    return sum(before > after for before, after in combinations(numbers, 2))


def test_two_instances_lose_the_order_which_the_index_restores_but_the_text_stays_broken(quick, tea):
    ids, text = tea
    result = stream(quick, "ensemble_parallel", "x", len(ids), forced_ids=ids)
    numbers = [seen.index for seen in result.observations]
    assert sorted(numbers) == list(range(1, len(ids) + 1))
    assert inversions(numbers) > 0
    ordered = sorted(result.observations, key=lambda seen: seen.index)
    assert [int(seen.ids[0]) for seen in ordered] == ids
    assert flat(result) != ids
    joined = "".join(seen.text for seen in ordered)
    assert "\ufffd" in joined  # a character's bytes went to different processes
    assert joined != text


def test_preserve_ordering_keeps_the_order_but_not_the_text(quick, tea):
    ids, text = tea
    result = stream(quick, "ensemble_ordered", "x", len(ids), forced_ids=ids)
    assert [seen.index for seen in result.observations] == list(range(1, len(ids) + 1))
    assert flat(result) == ids
    assert "\ufffd" in result.text
    assert stream(quick, MODEL, "x", len(ids), forced_ids=ids).text == text


# --- the state of post-processing -------------------------------------------------------------------------------------


def half_a_character(server: TritonServer, ensemble: str, **options: object) -> Iterator:
    """A stream that stands still in the middle of a character, with a decoder in post-processing."""
    arriving = iter_stream(server, ensemble, "x", 9, forced_ids=[8908, 234, 114] * 3, **options)
    list(islice(arriving, 2))
    until(lambda: open_streams(server).get("postprocess") == 1)
    return arriving


def test_an_end_mark_frees_the_decoder(quick):
    arriving = half_a_character(quick, MODEL, window=Window(1))
    assert "".join(seen.text for seen in arriving) == "茶 茶 茶"
    assert_no_open_streams(quick)


def test_an_error_of_the_node_frees_the_decoder(quick):
    """It comes in-band with an end mark, and after what came before it."""
    arriving = half_a_character(quick, "ensemble_release", window=Window(1, version=2), max_message_ids=2)
    with pytest.raises(StreamError, match="message 3 would hold 4 ids; at most 2"):
        list(arriving)
    assert_no_open_streams(quick)


def test_a_cancellation_frees_the_decoder_in_time(quick):
    """Without a window nothing more is heard of the stream: it is dropped when it has been idle."""
    with closing(iter_stream(quick, MODEL, "x", 3_000, forced_ids=[8908] * 3_000)) as arriving:
        list(islice(arriving, 5))
    assert_no_open_streams(quick)


def test_a_stream_unloaded_under_its_feet_is_finished_first(quick):
    """Triton waits with the unloading until no request is in flight."""
    results: list[StreamResult] = []
    thread = threading.Thread(target=lambda: results.append(stream(quick, MODEL, "x", 400, forced_ids=[64] * 400)))
    thread.start()
    until(lambda: open_streams(quick).get("inference") == 1)
    quick.reload("inference")
    thread.join()
    assert results[0].lengths == [1] * 400


# --- what Triton's trace shows ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_nothing_left_behind")
def test_the_trace_has_what_is_sent_before_execute_returns(tmp_path):
    """Rung 1 answers while `execute` runs. Rung 4 answers later: what of it is traced is a matter of chance."""
    path = tmp_path / "trace.json"
    with start_server(["ensemble_append", MODEL], flags=trace.server_flags(path, log_frequency=0)) as server:
        for ensemble in ("ensemble_append", MODEL):
            for number in range(3):
                result = stream(server, ensemble, "Pancakes. Ingredients:", 6, request_id=f"{ensemble} {number}")
                assert len(result.lengths) == 6
    traced = {}
    for request in trace.requests(trace.read(path, [])):
        (call,) = [call for call in request.calls if call.model == "inference"]
        traced[request.request_id] = sum(
            (tensor.side, tensor.name) == ("output", "TOKEN_IDS") for tensor in call.tensors
        )
    assert [traced[f"ensemble_append {number}"] for number in range(3)] == [6, 6, 6]
    assert all(traced[f"{MODEL} {number}"] <= 6 for number in range(3))


# --- any text, any cancellation ---------------------------------------------------------------------------------------

ZWJ = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👩🏽‍🚀", "❤️‍🔥", "🧑‍🤝‍🧑", "🇺🇦", "1️⃣"]


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of code points drawn from all planes, of whole scripts, and emoji sequences; normalised as tokens are."""
    draw = random.Random(seed)

    def character() -> str:
        pools = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x1FFF), (0x3000, 0xD7FF), (0xE000, 0xFFFC), (0x10000, 0x10FFFF)]
        return draw.choice([*ZWJ, *(chr(draw.randint(*draw.choice(pools))) for _ in range(8))])

    texts = ["".join(character() for _ in range(draw.randint(1, 5))) for _ in range(count)]
    return [unicodedata.normalize("NFC", text) for text in texts]


def stops_cleanly(server: TritonServer) -> bool:
    """Stop it; whether it ended by itself, with nothing left that it had to wait for."""
    with open(server.log_path, encoding="utf-8") as log:  # stopping removes the file, not what is open
        left = in_flight_at_stop(server)
        return left == {} and "Exit timeout expired" not in log.read()


@pytest.mark.usefixtures("_nothing_left_behind")
def test_1000_random_texts_join_to_themselves_among_200_random_cancellations(tokenizer):
    """On a server of its own, which stops cleanly: the streams that are closed early have a window."""
    draw = random.Random(7378)
    texts = random_texts(1_000, 7383)
    assert not any("\ufffd" in text for text in texts)
    jobs = [(text, None) for text in texts] + [(" 茶" * 10, draw.randint(1, 12)) for _ in range(200)]
    draw.shuffle(jobs)

    def one(job: tuple[str, int | None]) -> str:
        text, closed_after = job
        ids = tokenizer.encode(text, allowed_special=set())
        window = None if closed_after is None else Window(1 + closed_after % 8)
        with closing(iter_stream(server, MODEL, text, len(ids), forced_ids=ids, window=window)) as arriving:
            return "".join(seen.text for seen in islice(arriving, closed_after))

    with start_server([MODEL]) as server:
        with ThreadPoolExecutor(24) as pool:
            said = list(pool.map(one, jobs))
        assert_no_open_streams(server)
        assert stops_cleanly(server)
    assert [answer for (_, closed), answer in zip(jobs, said, strict=True) if closed is None] == [
        text for text, closed in jobs if closed is None
    ]
    assert all(
        (" 茶" * 10).startswith(answer) for (_, closed), answer in zip(jobs, said, strict=True) if closed is not None
    )


def test_emoji_sequences_arrive_whole(quick, tokenizer):
    for text in ZWJ:
        ids = tokenizer.encode(text)
        assert stream(quick, MODEL, text, len(ids), forced_ids=ids).text == text
