"""Which guard catches which fault, at which message; what a refusal leaves behind; what the node's heap tells."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from leftovers import attach_to
from mutants_caught import BY_THE_CONSUMER, BY_THE_NODE

from lab_utils import launch
from lab_utils.client import StreamError, StreamResult, iter_outputs, stream
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server

NODE, CONSUMER, STRICT = "ensemble_mutant with guard", "ensemble_mutant_guarded", "ensemble_mutant_strict"
WHOLE_TEXT = (MODEL_REPOSITORY.parent / "tiny_lm" / "corpus.txt").read_text(encoding="utf-8").splitlines()[0]
LENGTHENED = ("extend", "stale_length", "missing_clear", "late_clear")
# As measured, on the reported prompt with 8 tokens: the message that is refused, and the rule, or what Triton says.
# Message 9 is after the last one; None: not caught.
CAUGHT = {
    NODE: BY_THE_NODE,
    CONSUMER: BY_THE_CONSUMER | {"lost_end": None, **dict.fromkeys(["wrong_dtype", "wrong_rank"], (1, "Triton"))},
    STRICT: {
        **dict.fromkeys(LENGTHENED, (2, "Triton")),
        **dict.fromkeys(["wrong_dtype", "wrong_rank"], (1, "Triton")),
        "end_token": (9, "Triton"),  # the consumer's own error response, from its table of tokens
        **dict.fromkeys(["alias", "late_id", "lost_end", "early_end", "stale_index", "swapped_stream"]),
    },
}
IN_BAND = [
    (guard, mutation)
    for guard, caught in CAUGHT.items()
    for mutation, seen in caught.items()
    if seen is None or seen[1] != "Triton"
]
REFUSED = [(guard, mutation) for guard in CAUGHT for mutation in CAUGHT[guard] if (guard, mutation) not in IN_BAND]
# A message without ids is how a node says that it has nothing to say, or why it failed.
WITHOUT_IDS = {"nothing to say": {"prompt": WHOLE_TEXT}, "failure": {"max_tokens": 0}}


def ask(server: TritonServer, guard: str, mutation: str, **change: object) -> StreamResult | StreamError:
    """The reported prompt with one fault, under one guard."""
    request = {"prompt": REPORTED_PROMPT, "max_tokens": 8, "mutation": mutation, "guard": guard == NODE}
    try:
        return stream(server, guard.partition(" ")[0], **(request | change))
    except StreamError as error:
        return error


def found(outcome: StreamResult | StreamError) -> tuple[int, str] | None:
    """Message and rule, as in the table."""
    if isinstance(outcome, StreamResult):
        return None
    rules = re.search(r"\((\w{2,})\)", str(outcome)) if "the server ended" not in str(outcome) else None
    return len(outcome.result.lengths) + 1, rules[1] if rules else "Triton"


def stopped(server: TritonServer) -> tuple[dict[str, int], int]:
    """Stop the server: the inferences in flight when it last looked, by model, and its exit status."""
    supervisor = server._supervisor
    with server.log_path.open(encoding="utf-8") as log:
        server.stop()
        last_look = log.read().rpartition("model versions that have in-flight inferences")[2]
    lines = re.findall(r"Model '(\w+)' \(version \d+\) has (\d+) in-flight inferences", last_look)
    return {model: int(count) for model, count in lines}, supervisor.returncode


@pytest.fixture(scope="module")
def guards(_nothing_left_behind: None) -> Iterator[TritonServer]:
    """A server for what fails in-band, or not at all."""
    models = ["ensemble_mutant", CONSUMER, STRICT, "ensemble_guarded", "ensemble_append", "ensemble_release"]
    with start_server(models) as running:
        yield running
        running.check()


@pytest.fixture(scope="module")
def refusals(_nothing_left_behind: None) -> tuple[dict, dict[str, int], int]:
    """Everything that Triton refuses, on a server of its own: the outcomes, what it left in flight, the exit status."""
    with start_server(["ensemble_mutant", CONSUMER, STRICT]) as running:
        outcomes = {case: ask(running, *case) for case in REFUSED}
        outcomes |= {(STRICT, name): ask(running, STRICT, "none", **case) for name, case in WITHOUT_IDS.items()}
        return outcomes, *stopped(running)


# --- which guard catches which fault ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("guard", "mutation"), IN_BAND)
def test_a_fault_is_caught_in_band_at_its_message(guards, guard, mutation):
    assert found(ask(guards, guard, mutation)) == CAUGHT[guard][mutation]


@pytest.mark.parametrize(("guard", "mutation"), REFUSED)
def test_a_fault_is_refused_by_triton_at_its_message(refusals, guard, mutation):
    """The refusal may overtake messages before it that post-processing is still at: the client may see fewer."""
    at, by = found(refusals[0][guard, mutation])
    assert at <= CAUGHT[guard][mutation][0]
    assert by == CAUGHT[guard][mutation][1]


def test_every_mutation_that_there_is_is_caught_by_a_guard(guards):
    said = str(ask(guards, NODE, "?")).partition("expected one of ")[2].split(", ")
    assert said == ["none", *CAUGHT[NODE]]
    assert all(any(caught[mutation] for caught in CAUGHT.values()) for mutation in said[1:])


def test_what_triton_says(refusals):
    shape = (
        "[request id: <id_unknown>] unexpected shape for input 'TOKEN_IDS' for model '{}'. Expected [{}], got [{}]. "
    )
    dtype = (
        "[request id: <id_unknown>] inference input 'TOKEN_IDS' data-type is 'INT64', but model '{}' expects 'INT32'"
    )
    strict, guarded = "postprocess_strict", "postprocess_guarded"
    expected = {(STRICT, name): shape.format(strict, 1, 2) for name in LENGTHENED}
    expected |= {(STRICT, name): shape.format(strict, 1, 0) for name in WITHOUT_IDS}
    expected |= {
        (STRICT, "wrong_rank"): shape.format(strict, 1, "1,1"),
        (STRICT, "wrong_dtype"): dtype.format(strict),
        (STRICT, "end_token"): "token id 151643 at position 0 is not in the vocabulary (0 to 151,642)",
        (CONSUMER, "wrong_rank"): shape.format(guarded, -1, "1,1"),
        (CONSUMER, "wrong_dtype"): dtype.format(guarded),
    }
    said = {case: str(outcome).partition("responses: in ensemble ")[2] for case, outcome in refusals[0].items()}
    assert said == {case: f"'{case[0]}', {words}" for case, words in expected.items()}


def test_what_the_guards_say(guards):
    kept = "1 message(s) of the stream kept the contract"
    words = f"{kept}; the next one does not (length): TOKEN_IDS holds 2 ids; expected 1"
    heads = {NODE: "the inference node", CONSUMER: "the guard in post-processing"}
    for guard, who in heads.items():
        outcome = ask(guards, guard, "extend")
        assert str(outcome) == f"{who} ended the stream after 1 responses: {words}"
        assert outcome.result.ids == [REPORTED_TOKENS[:1]]


@pytest.mark.parametrize("mutation", ["alias", "late_id"])
def test_lengths_can_be_right_and_ids_wrong(guards, mutation):
    result = stream(guards, "ensemble_mutant", REPORTED_PROMPT, 8, mutation=mutation)
    assert result.lengths == [1] * 8
    assert result.ids != [[token] for token in REPORTED_TOKENS]


# --- healthy streams pass ---------------------------------------------------------------------------------------------

HEALTHY = [("ensemble_guarded", None), (NODE, "none"), (CONSUMER, "none"), (STRICT, "none")]


@pytest.mark.parametrize(("ensemble", "mutation"), HEALTHY)
def test_a_healthy_stream_passes_every_guard(guards, tokenizer, corpus, ensemble, mutation):
    options = {"guard": ensemble == NODE, "mutation": mutation}
    ensemble = ensemble.partition(" ")[0]
    for line in (corpus[0], corpus[1], *corpus[-2:]):
        result = stream(guards, ensemble, tokenizer.decode(tokenizer.encode(line)[:9]), 95, **options)
        assert set(result.lengths) == {1}
    assert len(stream(guards, ensemble, REPORTED_PROMPT, 95, **options).lengths) == 95
    for text in ("👩🏽‍🚀🏳️‍🌈 🇨🇳", " 茶" * 40, "\x00\u200b\U0010ffff", "नमस्ते שלום"):
        ids = tokenizer.encode(text)
        assert stream(guards, ensemble, "x", len(ids), forced_ids=ids, **options).text == text


@pytest.mark.parametrize(("ensemble", "mutation"), HEALTHY[:-1])
def test_to_have_nothing_to_say_is_no_fault(guards, ensemble, mutation):
    """A strict consumer refuses that, too, and with it the words of a node that fails: `WITHOUT_IDS`."""
    options = {"guard": ensemble == NODE, "mutation": mutation}
    assert stream(guards, ensemble.partition(" ")[0], WHOLE_TEXT, **options).lengths == [0]
    with pytest.raises(StreamError, match="the inference node ended the stream after 0 responses: MAX_TOKENS is 0"):
        stream(guards, ensemble.partition(" ")[0], WHOLE_TEXT, 0, **options)


# --- what a refusal leaves behind -------------------------------------------------------------------------------------


def test_what_triton_refuses_stays_in_flight_for_good(refusals):
    _, in_flight, status = refusals
    kept = in_flight.pop(STRICT) - len(WITHOUT_IDS)
    assert in_flight == {CONSUMER: 2}
    assert kept in (6, 7)  # end_token came with the stream's last message: whether it stays is a race inside Triton
    assert status == 1


def test_what_fails_in_band_leaves_nothing_in_flight():
    with start_server(["ensemble_mutant", CONSUMER, "ensemble_append"]) as running:
        cases = [case for case in IN_BAND if CAUGHT[case[0]][case[1]]] * 3
        assert all(isinstance(ask(running, *case), StreamError) for case in cases)
        assert len(cases) > 60
        words = "ended the stream after 4 responses: message 5 would hold 16 ids; at most 10"
        with pytest.raises(StreamError, match=words):
            stream(running, "ensemble_append", REPORTED_PROMPT, max_message_ids=10, trace_heap=True)
        assert stopped(running) == ({}, 0)


# --- the heap of the node ---------------------------------------------------------------------------------------------


def small_request(server: TritonServer, ensemble: str) -> int:
    """The heap that the node reports for a request of one id."""
    options = {"forced_ids": [64], "dims_only": True, "trace_heap": True}
    return stream(server, ensemble, "x", 1, **options).observations[-1].heap


def growth_by(server: TritonServer, ensemble: str) -> int:
    """How much more the node holds after a request whose buffer grew to 65,535 ids, in bytes."""
    small_request(server, ensemble)  # a first one, so that what is made once is there
    before = small_request(server, ensemble)
    grown = stream(server, ensemble, "x", 16, forced_ids=[8908] * 16, dims_only=True)
    assert grown.lengths[-1] == 2**15
    return small_request(server, ensemble) - before


def test_rung_1_holds_its_buffer_until_it_is_loaded_anew_and_rung_2_does_not(guards):
    guards.reload("inference")
    buffer_bytes = 4 * (2**16 - 1)
    assert growth_by(guards, "ensemble_append") >= buffer_bytes > growth_by(guards, "ensemble_release")
    untold = {"forced_ids": [64], "dims_only": True}
    assert stream(guards, "ensemble_append", "x", 1, **untold).observations[0].heap >= buffer_bytes  # tracing goes on
    guards.reload("inference")
    assert stream(guards, "ensemble_append", "x", 1, **untold).observations[0].heap is None
    assert small_request(guards, "ensemble_append") < buffer_bytes


def test_a_traced_stub_survives_many_requests(guards):
    """A tensor that nobody asked for, CHECKSUM here, once ended it: dropped without Python's lock, while traced."""
    processes = {name: process.pid for process, name in guards._stubs.items() if name.startswith("inference_mutant")}
    assert len(processes) == 1
    for _ in range(200):
        assert stream(guards, "ensemble_mutant", "x", 2, forced_ids=[64, 65], trace_heap=True).lengths == [1, 1]
    guards.check()
    assert processes.items() <= {name: process.pid for process, name in guards._stubs.items()}.items()


def test_the_node_alone_sends_all_its_outputs(guards):
    inputs = {"PROMPT_IDS": [1], "MAX_TOKENS": [2], "FORCED_IDS": [64, 65]}
    tensors = {name: np.array(values, dtype=np.int32) for name, values in inputs.items()}
    answers = list(iter_outputs(guards, "inference", tensors, version=4))
    names = {"TOKEN_IDS", "INDEX", "STREAM_ID", "END", "CHECKSUM", "HEAP", "ERROR"}
    assert [set(answer) for answer in answers] == [names] * 2


# --- a server as it comes ---------------------------------------------------------------------------------------------


def test_a_stock_server_loads_the_whole_repository(monkeypatch):
    """All models at once, with their configs completed by Triton: as when the folder is mounted into a container."""
    flags, ours = launch.server_flags, ("--disable-auto-complete", "--model-control", "--load-model")
    monkeypatch.setattr(launch, "server_flags", lambda *given: [f for f in flags(*given) if not f.startswith(ours)])
    present = sorted(path.parent.name for path in Path(MODEL_REPOSITORY).glob("*/config.pbtxt"))
    with start_server(["ensemble_latest"]) as stock:
        assert stock.models == {name: [1, 2, 3, 4] if name == "inference" else [1] for name in present}
        attach_to(stock, monkeypatch)
        with start_server(present) as attached:
            assert attached.attached
            for ensemble in (name for name in present if name.startswith("ensemble")):
                seen = stream(attached, ensemble, "Pancakes. Ingredients:").observations
                in_order = sorted(seen, key=lambda one: one.index)  # ensemble_parallel loses the order
                assert "".join(one.text for one in in_order) == " 1 cup flour, 1 cup"
