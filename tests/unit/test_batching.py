"""Many sequences decoded together: each gets what it gets alone, whoever joins and leaves meanwhile.

Batching changes the order in which floating-point numbers are added, so logits may differ in the last places. A token
may differ only where two logits are that close: the tests ask for equality wherever the top-1 margin is above MARGIN.
"""

import importlib
import importlib.util
import weakref
from pathlib import Path

import numpy as np
import pytest
from batching import Batch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformer import PromptTooLong, Transformer

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "model_repository" / "inference" / "recipes.safetensors"
REFERENCE = load_file(ROOT / "tests" / "data" / "reference_logits.safetensors")
PROMPTS = {name.partition(".")[0]: ids.tolist() for name, ids in REFERENCE.items() if name.endswith(".prompt")}
TOLERANCE = 1e-4
MARGIN = 1e-2
NAMESPACES = ["array_api_compat.numpy", "array_api_strict"]
if importlib.util.find_spec("torch"):
    NAMESPACES.append("array_api_compat.torch")
MODEL = Transformer.load(WEIGHTS)
ALONE = {name: list(MODEL.generate(ids, MODEL.context)) for name, ids in PROMPTS.items()}


@pytest.fixture(scope="module", params=NAMESPACES)
def any_model(request) -> Transformer:
    return Transformer.load(WEIGHTS, xp=importlib.import_module(request.param))


# --- one step ---------------------------------------------------------------------------------------------------------


def prefilled(model: Transformer, ids: list[int]) -> tuple:
    cache = model.new_cache()
    model.forward(model.rows(ids[:-1]), cache, 0)
    return model.rows(ids[-1:]), len(ids) - 1, cache


def test_a_step_is_what_forward_gives_each_sequence_alone(any_model):
    """Sequences of quite different lengths; three steps, so that what a step adds to a cache is read again."""
    texts = {name: [any_model.eos, *ids, *ALONE[name][:3]] for name, ids in PROMPTS.items()}
    begun = [prefilled(any_model, text[:-2]) for text in texts.values()]
    assert len({position for _, position, _ in begun}) > 3
    for back in (2, 1, 0):
        rows = any_model.rows([text[len(text) - 1 - back] for text in texts.values()])
        positions = [len(text) - 1 - back for text in texts.values()]
        logits = np.asarray(any_model.step(rows, positions, [cache for _, _, cache in begun]))
        ends = [len(text) - back for text in texts.values()]
        expected = [
            np.asarray(any_model.forward(any_model.rows(text[:end]), any_model.new_cache(), 0))
            for text, end in zip(texts.values(), ends, strict=True)
        ]
        compare(logits, np.stack(expected))


def compare(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.dtype == np.float32
    assert (logits[:, 0] == -np.inf).all()
    np.testing.assert_allclose(logits[:, 1:], expected[:, 1:], rtol=0, atol=TOLERANCE)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > MARGIN
    assert clear.any()
    assert (logits.argmax(axis=1) == expected.argmax(axis=1))[clear].all()


def test_a_step_of_one_sequence_and_of_the_same_twice(any_model):
    ids = [any_model.eos, *PROMPTS["vanilla"]]
    one, again, alone = (prefilled(any_model, ids) for _ in range(3))
    expected = np.asarray(any_model.forward(alone[0], alone[2], alone[1]))
    logits = np.asarray(any_model.step(any_model.rows([ids[-1]] * 2), [len(ids) - 1] * 2, [one[2], again[2]]))
    compare(logits, np.stack([expected, expected]))
    single = np.asarray(any_model.step(any_model.rows(ids[-1:]), [len(ids) - 1], [one[2]]))
    compare(single, expected[None, :])


@pytest.mark.parametrize("position", [-1, 256, 1_000])
def test_a_position_outside_the_context_is_refused(position):
    with pytest.raises(ValueError, match=rf"positions \[3, {position}\]: the context ends at position 255"):
        MODEL.step(MODEL.rows([1, 2]), [3, position], [MODEL.new_cache(), MODEL.new_cache()])


def test_the_last_position_of_the_context_can_be_read():
    ids = [MODEL.eos, *np.resize(PROMPTS["vanilla"], 255)]
    row, position, cache = prefilled(MODEL, ids)
    assert position == 255
    expected = MODEL.forward(MODEL.rows(ids), MODEL.new_cache(), 0)
    compare(MODEL.step(row, [position], [cache]), expected[None, :])


# --- a batch ----------------------------------------------------------------------------------------------------------


def run(batch: Batch, joins: dict[int, list[tuple[str, int]]], leaves: dict[int, int], iterations: int) -> list:
    """Decode; at each iteration some join, and some leave. Returns (name, most tokens, ids, left early) of each."""
    told: dict[object, tuple[str, int, list[int]]] = {}
    gone = set()
    for now in range(iterations):
        for name, most in joins.get(now, []):
            told[batch.join(PROMPTS[name], most)] = name, most, []
        if now in leaves and batch.sequences:
            leaver = batch.sequences[leaves[now] % len(batch.sequences)]
            batch.leave(leaver)
            gone.add(leaver)
        for sequence, token in batch.iterate(list(batch.sequences)):
            told[sequence][2].extend([] if token is None else [token])
    return [(*each, sequence in gone) for sequence, each in told.items()]


def test_every_prompt_gets_its_own_text_all_together():
    batch = Batch(MODEL, 32)
    assert run(batch, {0: [(name, 300) for name in PROMPTS]}, {}, 300) == [
        (name, 300, ALONE[name], False) for name in PROMPTS
    ]
    assert batch.sequences == []


moments = st.integers(0, 30)
newcomers = st.lists(st.tuples(st.sampled_from(sorted(PROMPTS)), st.integers(1, 20)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(joins=st.dictionaries(moments, newcomers, max_size=6), leaves=st.dictionaries(moments, st.integers(0, 9)))
def test_whoever_joins_and_leaves_each_gets_the_ids_it_gets_alone(joins, leaves):
    """A text that was left early is the beginning of what it would have been. All of the prompts are clear choices."""
    batch = Batch(MODEL, 32)
    for name, most, ids, early in run(batch, joins, leaves, 120):
        expected = ALONE[name][:most]
        assert ids == (expected[: len(ids)] if early else expected)
    assert batch.sequences == []


def test_a_sequence_takes_some_of_the_others_only():
    """Those that are not asked for stand still, and go on where they were."""
    batch = Batch(MODEL, 4)
    one, other = (batch.join(PROMPTS[name], 50) for name in ("vanilla", "english"))
    said = {one: [], other: []}
    turns = [[one], [one, other], [other], [other], [one, other], [one]] * 5
    for turn in turns:
        for sequence, token in batch.iterate(turn):
            said[sequence].append(token)
    assert said[one] == ALONE["vanilla"][: len(said[one])]
    assert said[other] == ALONE["english"][: len(said[other])]
    assert len(said[one]) == len(said[other]) == 20


def test_nobody_asked_for_is_no_work():
    assert Batch(MODEL, 4).iterate([]) == []


def test_a_batch_is_full_at_its_size_and_has_room_again_when_one_leaves():
    batch = Batch(MODEL, 2)
    first = batch.join([1], 5)
    assert not batch.full
    batch.join([1], 5)
    assert batch.full
    batch.leave(first)
    batch.leave(first)  # a second time is no error
    assert not batch.full


@pytest.mark.parametrize("how", ["left", "ended"])
def test_the_cache_of_a_sequence_is_released_when_it_is_gone(how):
    batch = Batch(MODEL, 2)
    sequence = batch.join(PROMPTS["vanilla"], 2)
    layers = [weakref.ref(layer) for layer in sequence.cache]
    batch.iterate([sequence])
    if how == "left":
        batch.leave(sequence)
    else:
        batch.iterate([sequence])
        assert sequence.ended
    assert [layer() for layer in layers] == [None] * len(layers)


@pytest.mark.parametrize(("length", "error"), [(0, ValueError), (255, PromptTooLong)])
def test_a_bad_prompt_takes_no_room(length, error):
    batch = Batch(MODEL, 1)
    with pytest.raises(error):
        batch.join([1] * length, 5)
    assert not batch.full


@pytest.mark.parametrize(("length", "room"), [(250, 5), (254, 1)])
def test_the_context_ends_a_sequence(length, room):
    batch = Batch(MODEL, 1)
    sequence = batch.join(np.resize(PROMPTS["vanilla"], length), 1_000)
    tokens = [batch.iterate([sequence])[0][1] for _ in range(room)]
    assert sequence.ended
    assert None not in tokens


def test_the_end_token_is_no_token():
    batch = Batch(MODEL, 1)
    sequence = batch.join(PROMPTS["vanilla"], 200)
    said = []
    while not sequence.ended:
        said += [token for _, token in batch.iterate([sequence])]
    assert said == [*ALONE["vanilla"], None]


# --- prompts are read a few at a time ---------------------------------------------------------------------------------


def unread(batch: Batch) -> int:
    return sum(sequence.position == 0 for sequence in batch.sequences)


def test_a_crowd_of_long_prompts_holds_nobody_up_for_longer_than_one_prompt():
    batch = Batch(MODEL, 32)
    running = batch.join(PROMPTS["vanilla"], 200)
    batch.iterate([running])
    crowd = [batch.join(np.resize(PROMPTS["vanilla"], 200), 9) for _ in range(4)]
    for reader in crowd:
        moved = [sequence for sequence, _ in batch.iterate(list(batch.sequences))]
        assert moved[0] is reader  # one prompt an iteration, in order of arrival
        assert running in moved  # and who is in the middle of a text goes on in each


def test_short_prompts_are_read_together_up_to_a_context():
    batch, left = Batch(MODEL, 32), []
    for _ in range(9):
        batch.join(np.resize(PROMPTS["vanilla"], 63), 9)  # 64 with the start token: four of them are a context
    for _ in range(3):
        batch.iterate(list(batch.sequences))
        left.append(unread(batch))
    assert left == [5, 1, 0]


def test_the_longest_prompt_is_read():
    batch = Batch(MODEL, 32)
    assert len(batch.iterate([batch.join([1] * 254, 5)])) == 1
