"""10,000 mutated prompts, configs and traces: each is answered, or refused in words. The seed makes them the same."""

import contextlib
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from trace_writer import decoupled_request, save
from triton_stand_in import Request, initialised, load, standing_in

from lab_utils import trace
from lab_utils.__main__ import main
from lab_utils.client import StreamError, StreamResult, stream
from lab_utils.server import MODEL_REPOSITORY, start_server
from lab_utils.trace_tracks import hops, tracks
from lab_utils.verdict import judge

SEED = 7378
PROMPTS, SERVED, CONFIGS, TRACES = 7_600, 400, 700, 1_300
COMMANDS = 50  # of the traces, through the command line too: it draws a figure
VOCABULARY = 151_936
WORDS = ("<|endoftext|>", "<|im_start|>", "\0", "茶", "�", "é", "👩‍🚀", " ", "\r\n", "a" * 300, "١٢٣", "%s{}$(rm)")
LONGEST = 65_536  # bytes of a prompt


def test_there_are_ten_thousand():
    assert PROMPTS + SERVED + CONFIGS + TRACES == 10_000


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompts(count: int) -> Iterator[str]:
    """Any characters, halves of characters too; words with a meaning to somebody; nothing; and far too much."""
    dice = random.Random(SEED)
    kinds: tuple[Callable[[], str], ...] = (
        lambda: "".join(chr(dice.randrange(0x110000)) for _ in range(dice.randrange(40))),
        lambda: "".join(chr(dice.randrange(0x250)) for _ in range(dice.randrange(40))),
        lambda: "".join(dice.choice(WORDS) for _ in range(dice.randrange(12))),
        lambda: "".join(chr(dice.randrange(0xD7F0, 0xE010)) for _ in range(dice.randrange(8))),
    )
    for number in range(count):
        huge = dice.choice(WORDS) * dice.randrange(2 * LONGEST // 3) if number % 500 == 499 else ""
        yield huge or dice.choice(kinds)()


@pytest.fixture(scope="module")
def preprocess() -> Iterator[object]:
    with standing_in():
        yield initialised(load("preprocess", 1), "preprocess")


def test_every_prompt_becomes_ids_or_is_refused(preprocess):
    """As bytes that a client sends: some are no UTF-8."""
    answers = [
        preprocess.execute([Request(PROMPT=np.array([one.encode("utf-8", "surrogatepass")], dtype=object))])
        for one in prompts(PROMPTS)
    ]
    assert len(answers) == PROMPTS
    refused = 0
    for (answer,) in answers:
        if answer.error:
            refused += 1
            assert answer.error.startswith("PROMPT "), answer.error
        else:
            ids = answer.outputs["PROMPT_IDS"]
            assert (ids.dtype, ids.ndim) == (np.int32, 1)
            assert ids.size
            assert 0 <= ids.min() <= ids.max() < VOCABULARY
    assert 0.1 < refused / PROMPTS < 0.6, "the prompts are all good or all bad"


def test_every_prompt_is_answered_by_a_server_that_goes_on():
    with start_server(["ensemble_latest"]) as server:
        outcomes = [outcome(server, prompt) for prompt in prompts(SERVED)]
        server.check()
        assert stream(server, "ensemble_latest", "Pancakes. Ingredients:").lengths == [1] * 8
    assert len(outcomes) == SERVED
    failed = [str(one) for one in outcomes if not isinstance(one, StreamResult)]
    assert 0.1 < len(failed) / SERVED < 0.9
    assert [words for words in failed if "prompt" not in words.casefold()] == []


def outcome(server: object, prompt: str) -> StreamResult | Exception:
    try:
        return stream(server, "ensemble_latest", prompt, max_tokens=1, deadline=30.0)
    except (StreamError, ValueError) as error:
        return error


# --- mutations of a text ----------------------------------------------------------------------------------------------


def mutated(text: bytes, dice: random.Random, pieces: tuple[bytes, ...]) -> bytes:
    """The text after one to four changes: cut, doubled, moved, replaced, or with a strange piece in it."""
    for _ in range(dice.randrange(1, 5)):
        start, end = sorted(dice.randrange(len(text) + 1) for _ in range(2))
        end = min(end, start + dice.choice((1, 8, 64, len(text))))
        part = text[start:end]
        noise = bytes(dice.randrange(256) for _ in range(dice.randrange(9)))
        new = dice.choice((b"", part * 2, part[::-1], dice.choice(pieces), noise))
        text = text[:start] + new + text[end:]
        text = text[: dice.randrange(len(text) + 1)] if dice.random() < 0.1 else text
    return text


def said(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``python -m lab_utils``."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        return main(arguments), output.getvalue(), error.getvalue()


# --- configs ----------------------------------------------------------------------------------------------------------

MODELS = ("ensemble_append", "preprocess", "inference", "postprocess")
SETTINGS = (
    *(b"{", b"}", b"[", b"]", b":", b'"', b"#", b"\n", b",", b"<", b"\xff\xfe", b"\0", b"-1", b"0"),
    *(b"99999999999999999999", b"1e400", b"nan", b"inf", b"TYPE_STRING", b"TYPE_NONSENSE", b'""', b"ensemble_append"),
    *(b"dims: [ 1, 0 ]", b'platform: "ensemble"', b"max_batch_size: 7", b"ensemble_scheduling {", b"unknown_field: 1 "),
    *(b"unknown { " * 400, b"step [ " * 400, b"sequence_batching { } ", b"dynamic_batching { } ", b'name: "\\377" '),
)


def test_every_config_is_checked_or_its_fault_is_said(tmp_path):
    dice, statuses = random.Random(SEED), []
    sound = {model: (MODEL_REPOSITORY / model / "config.pbtxt").read_bytes() for model in MODELS}
    for model, text in sound.items():
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "config.pbtxt").write_bytes(text)
    for number in range(CONFIGS):
        model = dice.choice(MODELS)
        config = tmp_path / model / "config.pbtxt"
        config.write_bytes(mutated(sound[model], dice, SETTINGS))
        statuses.append(checked(tmp_path, [[], ["--json"], ["--ensemble", "ensemble_append"]][number % 3]))
        config.write_bytes(sound[model])
    assert len(statuses) == CONFIGS
    assert 0.3 < statuses.count(1) / CONFIGS < 0.95


def checked(repository: Path, options: list[str]) -> int:
    status, output, error = said(["contract", str(repository), *options])
    assert "Traceback" not in output + error
    assert status in (0, 1) or (status == 2 and error.startswith("error: ")), error
    assert output or status == 2
    return status


# --- traces -----------------------------------------------------------------------------------------------------------

RECORDS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b",",
        b'"id":',
        b'"id":1',
        b"null",
        b"-1",
        b"99999999999999999999",
        b"1e400",
    ),
    *(b'"data":"', b'"shape":"0"', b'"shape":"-1,x"', b'"shape":"999999999,999999999"', b'"dtype":"BYTES"', b"[" * 500),
    *(
        b'"dtype":"FP64"',
        b'"dtype":"NONE"',
        b"\xff",
        b"\0" * 40,
        b'"parent_id":1',
        b'"timestamps":',
        b'"ns":',
        b"\xe8\x8c",
    ),
    b'{"id":1,"model_name":"x","model_version":1,"parent_id":1}',
)


def test_every_trace_is_read_as_far_as_it_goes(tmp_path):
    dice, path = random.Random(SEED), tmp_path / "t.json"
    requests = [*decoupled_request(1, [1, 2, 4, 8], "first"), *decoupled_request(20, [1, 1, 1], "second")]
    sound, calls, told = save(path, requests).read_bytes(), 0, 0
    for number in range(TRACES):
        path.write_bytes(mutated(sound, dice, RECORDS))
        found, problems = read(path)
        calls, told = calls + found, told + bool(problems)
        if number % (TRACES // COMMANDS) == 0:
            shown(path, dice.choice(([], ["--json"], ["--hops"], ["--values", "1"], ["--perfetto", f"{path}.out"])))
    assert number + 1 == TRACES
    assert calls > 5 * TRACES, "most of the calls should have survived"
    assert told > TRACES / 4


def read(path: Path) -> tuple[int, list[trace.Problem]]:
    """Read all, judge all, and look at each value; how many calls there were, and what could not be read."""
    problems: list[trace.Problem] = []
    requests = list(trace.requests(trace.read(path, problems)))
    str(judge(tracks(requests)))
    for request in requests:
        list(hops(request))
        for tensor in (tensor for call in request.calls for tensor in call.tensors):
            with contextlib.suppress(ValueError):
                trace.values(tensor)
    return sum(len(request.calls) for request in requests), problems


def shown(path: Path, options: list[str]) -> None:
    figure = ["--figure", str(path.with_name("figure.png"))]
    status, output, error = said(["trace", str(path), *figure, *options])
    assert "Traceback" not in output + error
    assert (status == 0 and output) or status == 2, error
    assert not error or error.startswith("error: ")
