"""The forward pass on "cuda:0" against the reference logits, alone and batched."""

from itertools import pairwise

import numpy as np
import pytest
from batching import Batch
from gpu_servers import ROOT
from safetensors.numpy import load_file
from transformer import Transformer

WEIGHTS = ROOT / "model_repository" / "inference" / "recipes.safetensors"
REFERENCE = load_file(ROOT / "tests" / "data" / "reference_logits.safetensors")
TOLERANCE = 1e-4  # as on the CPU (tests/unit/test_transformer.py): a thousandth of the smallest top-1 margin
PROMPTS = ["vanilla", "english", "emoji", "not_in_corpus", "question", "long"]


@pytest.fixture(scope="module")
def model() -> Transformer:
    """The model on the first GPU."""
    return Transformer.load(WEIGHTS, device="cuda:0")


def text_ids(model: Transformer, prompt: str) -> list[int]:
    return [model.eos, *REFERENCE[f"{prompt}.prompt"].tolist(), *REFERENCE[f"{prompt}.greedy"].tolist()]


def logits_of(model: Transformer, prompt: str, chunk: int) -> np.ndarray:
    """The prompt in chunks, then one token at a time: the logits that the reference has, (n, vocabulary)."""
    prefill = 1 + len(REFERENCE[f"{prompt}.prompt"])
    ids = text_ids(model, prompt)[: prefill + len(REFERENCE[f"{prompt}.logits"]) - 1]
    cuts, cache = [*range(0, prefill, chunk), *range(prefill, len(ids) + 1)], model.new_cache()
    logits = [model.forward(model.rows(ids[a:b]), cache, a) for a, b in pairwise(cuts)]
    return np.stack([on_host(one) for one in logits[-1 - len(ids) + prefill :]])


def on_host(array) -> np.ndarray:
    return array.cpu().numpy()


def worst(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; the unknown row is masked."""
    return float(np.abs(logits[:, 1:] - expected[:, 1:]).max())


def test_everything_is_on_the_gpu(model):
    arrays = [model.embedding, model.unembedding, model.rotation, model.mask, *model.new_cache(), model.rows([8908])]
    arrays += [array for layer in model.layers for array in vars(layer).values()]
    assert {str(array.device) for array in arrays} == {"cuda:0"}
    assert str(model.forward(model.rows([model.eos, 8908]), model.new_cache(), 0).device) == "cuda:0"


@pytest.mark.parametrize("chunk", [1, 7, 256], ids=["one_by_one", "in_chunks", "prompt_at_once"])
def test_logits(model, measured, chunk):
    differences = {prompt: worst(logits_of(model, prompt, chunk), REFERENCE[f"{prompt}.logits"]) for prompt in PROMPTS}
    measured[f"worst difference of a logit, prompt in chunks of {chunk}"] = differences
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_ids(model, prompt):
    assert list(model.generate(REFERENCE[f"{prompt}.prompt"], model.context)) == REFERENCE[f"{prompt}.greedy"].tolist()


def test_a_batched_step_gives_the_logits_of_each_alone(model, measured):
    alone, caches, positions, rows = {}, [], [], []
    for prompt in PROMPTS:
        ids = text_ids(model, prompt)[: 1 + len(REFERENCE[f"{prompt}.prompt"])]
        for caches_of_one in (alone.setdefault(prompt, model.new_cache()), model.new_cache()):
            model.forward(model.rows(ids[:-1]), caches_of_one, 0)
        caches.append(caches_of_one)
        positions.append(len(ids) - 1)
        rows.append(ids[-1])
    together = on_host(model.step(model.rows(rows), positions, caches))
    single = [
        on_host(model.forward(model.rows([row]), alone[prompt], position))
        for prompt, row, position in zip(PROMPTS, rows, positions, strict=True)
    ]
    measured["worst difference of a logit, batched against alone"] = worst(together, np.stack(single))
    assert worst(together, np.stack(single)) < TOLERANCE


def test_a_batch_that_streams_join_and_leave(model):
    batch, said = Batch(model, size=4), {prompt: [] for prompt in PROMPTS}
    waiting, running = list(PROMPTS), {}
    while waiting or running:
        while waiting and not batch.full:
            prompt = waiting.pop(0)
            running[batch.join(REFERENCE[f"{prompt}.prompt"], model.context)] = prompt
        for sequence, token in batch.iterate(list(running)):
            said[running[sequence]] += [] if token is None else [token]
            if sequence.ended:
                del running[sequence]
    assert said == {prompt: REFERENCE[f"{prompt}.greedy"].tolist() for prompt in PROMPTS}
