"""The tiny model in NumPy or torch, and what a decode step takes with it: a child process of decode_step.py.

    python decode_step_arrays.py MODEL_FOLDER numpy|torch

Each line of its input is a question, a JSON object with "case", "threads" (of torch; 0: its own number), "streams",
"position" and "repeats". Each line of its output is the answer, an object with "seconds" (the median) and "chosen" (the
rows). An empty line asks for the library's version.
"""

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

FOLDER, LIBRARY = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(FOLDER))
from transformer import Transformer  # noqa: E402 (it lies in the folder that was given)

if LIBRARY == "torch":
    import torch
    from torch.nn import functional

    DEFAULT_THREADS = torch.get_num_threads()

Array = Any
Step = Callable[[], Array]


class Plain:
    """The same model, as one who knows torch writes it for one token of each of several streams at one position.

    Fused operations where torch has them (rms_norm, linear, attention, silu), a cache of all the streams in one array,
    and weights as torch wants them: (out, in).
    """

    def __init__(self, model: Transformer) -> None:
        self.heads, self.eps = model.heads, model.eps
        root = model.embedding.shape[-1] ** 0.5  # transformer.py normalises to a length of 1, rms_norm to its root
        self.embedding, self.rotation = model.embedding, model.rotation
        self.unembedding = (model.unembedding / root).T.contiguous()
        self.layers = [
            (
                (layer.query_key_value / root).T.contiguous(),
                layer.attention_out.T.contiguous(),
                (layer.gate_up / root).T.contiguous(),
                layer.down.T.contiguous(),
            )
            for layer in model.layers
        ]

    def step(self, rows: Array, keys: list[Array], values: list[Array], position: int) -> Array:
        """The likeliest next rows; keys and values are, for each layer, (streams, heads, context, head_dim)."""
        x, streams, turn = self.embedding[rows], rows.shape[0], self.rotation[position]
        size, end = x.shape[-1:], position + 1
        for (query_key_value, out, gate_up, down), k, v in zip(self.layers, keys, values, strict=True):
            projected = functional.linear(functional.rms_norm(x, size, None, self.eps), query_key_value)
            qkv = projected.view(streams, 3, self.heads, -1)
            turned = qkv[:, :2] @ turn
            k[:, :, position], v[:, :, position] = turned[:, 1], qkv[:, 2]
            # The factor of the scores is in the weights of the queries.
            query, keys_so_far, values_so_far = turned[:, 0, :, None], k[:, :, :end], v[:, :, :end]
            mixed = functional.scaled_dot_product_attention(query, keys_so_far, values_so_far, scale=1.0)
            x = x + functional.linear(mixed.view(streams, -1), out)
            gate, up = functional.linear(functional.rms_norm(x, size, None, self.eps), gate_up).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, down)
        logits = functional.linear(functional.rms_norm(x, size, None, self.eps), self.unembedding)
        return logits[:, 1:].argmax(dim=-1) + 1  # row 0, "unknown", is never said


def prompt(model: Transformer, position: int) -> tuple[Array, ...]:
    """A cache that has read rows 1, 2, ... up to the position."""
    cache = model.new_cache()
    model.forward(model.place_rows(list(range(1, position + 1))), cache, 0)
    return cache


def array_api(model: Transformer, streams: int, position: int) -> Step:
    """transformer.py, as the node runs it."""
    caches = [prompt(model, position) for _ in range(streams)]
    rows = model.place_rows([position + 1] * streams)
    if streams == 1:
        return lambda: model.xp.argmax(model.forward(rows, caches[0], position))
    return lambda: model.xp.argmax(model.step(rows, [position] * streams, caches), axis=-1)


def plain(model: Transformer, streams: int, position: int) -> Step:
    """`Plain`: no graph and no gradients, like all here."""
    cache = prompt(model, position)
    keys, values = ([layer[part].expand(streams, -1, -1, -1).contiguous() for layer in cache] for part in (0, 1))
    rows, step = model.place_rows([position + 1] * streams), Plain(model).step
    return lambda: step(rows, keys, values, position)


CASES = {"array API": array_api, "plain": plain}


def timed(step: Step, repeats: int) -> dict[str, Any]:
    """Median seconds of a step, and the rows that it chose."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        chosen = step().tolist()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "chosen": chosen if isinstance(chosen, list) else [chosen]}


def main() -> None:
    """Answer until the input ends."""
    xp = importlib.import_module(f"array_api_compat.{LIBRARY}")
    model = Transformer.load(FOLDER / "recipes.safetensors", xp=xp)
    steps: dict[tuple[str, int, int], Step] = {}
    for line in sys.stdin:
        asked = json.loads(line) if line.strip() else None
        if not asked:
            print(json.dumps(importlib.import_module(LIBRARY).__version__), flush=True)
            continue
        if LIBRARY == "torch":
            torch.set_num_threads(asked["threads"] or DEFAULT_THREADS)
        key = asked["case"], asked["streams"], asked["position"]
        if key not in steps:
            steps[key] = CASES[asked["case"]](model, *key[1:])
        print(json.dumps(timed(steps[key], asked["repeats"])), flush=True)


if __name__ == "__main__":
    with torch.inference_mode() if LIBRARY == "torch" else nullcontext():
        main()
