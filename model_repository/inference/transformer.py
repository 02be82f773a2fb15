"""The tiny language model: a Llama-style decoder with a KV cache, greedy and deterministic.

Every array operation is in the Python array API standard, so the same code runs on NumPy and, through torch, on a GPU.
Token ids are those of the Qwen vocabulary. Inside, the model works with *rows* of its embedding table: it knows
933 ids, in rows 1 to 933, and reads every other id as row 0, "unknown".
"""

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
from safetensors import SafetensorError, safe_open

Array = Any  # an array of whichever library the model runs on
Cache = tuple[Array, ...]

CONTEXT = 256  # tokens; the model was trained on windows of this length
UNKNOWN_ROW = 0
RESTORE = "Restore the file from the repository, or train it again with tiny_lm/train.py."


class PromptTooLong(ValueError):
    """The prompt leaves no room for a generated token."""


class WeightsError(ValueError):
    """The weights file is there, but it does not hold this model."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Weights of one decoder layer: float32 arrays, the matrices laid out as (in, out).

    What scales a vector before or behind a product is a part of the matrix: the weights of the normalisation before it,
    and in `query_key_value` the factor of the attention scores. So a token takes fewer operations.
    """

    query_key_value: Array  # (hidden, 3 * hidden)
    attention_out: Array  # (hidden, hidden)
    gate_up: Array  # (hidden, 2 * intermediate)
    down: Array  # (intermediate, hidden)


@dataclass(frozen=True, eq=False)
class Transformer:
    """A loaded model. What belongs to a request is in its cache, never here, so one model serves any number of them.

    Attributes
    ----------
    xp : module
        Array namespace to compute with.
    device : str or None
        Where the arrays are; None is the namespace's default device.
    heads : int
        Attention heads in each layer.
    eps : float
        Added to the mean square in every normalisation.
    eos : int
        Id of the token that ends a text. Every sequence starts with it, too.
    ids : tuple of int
        Row -> token id. Row 0, "unknown", stands for no id: -1.
    row_of : mapping
        Token id -> row.
    embedding : array, float32, (vocabulary, hidden)
        The vector of each row.
    unembedding : array, float32, (hidden, vocabulary)
        The same, as the matrix that makes logits of the last state, with the last normalisation's weights in it.
    layers : tuple of Layer
        First to last.
    rotation : array, float32, (context, head_dim, head_dim)
        Rotary position table: the matrix that turns a query or a key of each position.
    mask : array, float32, (context, context)
        Added to attention scores: -inf for the positions that come later than the row's own, otherwise 0.
    """

    xp: ModuleType
    device: str | None
    heads: int
    eps: float
    eos: int
    ids: tuple[int, ...]
    row_of: Mapping[int, int]
    embedding: Array
    unembedding: Array
    layers: tuple[Layer, ...]
    rotation: Array
    mask: Array

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", xp: ModuleType | None = None) -> "Transformer":
        """Read the weights and place them on a device, as float32.

        Parameters
        ----------
        path : str or Path
            A safetensors file: tensors under the names of a Hugging Face Llama model, the tensor "ids" (row -> token
            id), and the configuration as JSON in the metadata entry "config".
        device : str
            "cpu" computes with NumPy, "cuda:N" with torch on that GPU.
        xp : module, optional
            Another array API namespace to compute with, on its default device if `device` is "cpu".

        Raises
        ------
        FileNotFoundError
            There is no file at `path`.
        WeightsError
            It is not a safetensors file, or a tensor or a setting is missing or does not fit the others.
        ValueError
            The device is neither "cpu" nor "cuda:N".
        RuntimeError
            The device is a GPU, and torch or its CUDA support is missing.
        """
        xp = xp or _namespace(device)
        try:
            return _build(*_read(Path(path)), xp, None if device == "cpu" else device)
        except KeyError as error:
            raise WeightsError(f"weights file {path}: {error} is missing. {RESTORE}") from error
        except (SafetensorError, ValueError) as error:
            raise WeightsError(f"weights file {path}: {error}. {RESTORE}") from error

    @property
    def context(self) -> int:
        """Longest sequence in tokens: start token, prompt and generated tokens together."""
        return self.mask.shape[0]

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding table: the tokens that the model knows, and "unknown"."""
        return len(self.ids)

    def rows(self, token_ids: Sequence[int]) -> Array:
        """Rows of token ids, int64, (len(token_ids),); an id that the model does not know is row 0."""
        return self.place_rows([self.row_of.get(int(token), UNKNOWN_ROW) for token in token_ids])

    def new_cache(self) -> Cache:
        """Empty KV cache of one request: for each layer float32, (2, heads, context, head_dim), keys before values."""
        shape = (2, self.heads, self.context, self.rotation.shape[-1])
        return tuple(self.xp.zeros(shape, dtype=self.xp.float32, device=self.device) for _ in self.layers)

    def forward(self, rows: Array, cache: Cache, start: int) -> Array:
        """Run rows through the model and return the logits after the last of them.

        Parameters
        ----------
        rows : array, int64, (n,)
            Rows of the tokens at the positions start, ..., start + n - 1. n is 1 or more.
        cache : Cache
            Keys and values of the positions before `start`; those of these n are added to it.
        start : int
            Position of the first of the rows.

        Returns
        -------
        array, float32, (vocabulary,)
            A logit for each row; that of row 0 is -inf, since "unknown" is no token to say.

        Raises
        ------
        ValueError
            The rows reach past the context.
        """
        end = start + rows.shape[0]
        if end > self.context:
            raise ValueError(f"positions {start} to {end - 1}: the context ends at position {self.context - 1}")
        x = self.xp.take(self.embedding, rows, axis=0)
        attention = self._attention
        if rows.shape[0] == 1:  # as in most calls: a vector takes fewer operations than a matrix of one row
            x, attention = x[0, :], self._attention_of_one
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = x + attention(layer, x, layer_cache, start)
            x = x + self._mlp(layer, x)
        return self._logits(x if x.ndim == 1 else x[-1, :])

    def step(self, rows: Array, positions: Sequence[int], caches: Sequence[Cache]) -> Array:
        """Run one token of each of several sequences through the model, and return the logits after each.

        Parameters
        ----------
        rows : array, int64, (batch,)
            The row of each sequence's newest token.
        positions : sequence of int
            Where that token stands in its sequence, from 0.
        caches : sequence of Cache
            The KV cache of each sequence; the token's keys and values are added to it.

        Returns
        -------
        array, float32, (batch, vocabulary)
            As `forward` gives for each sequence alone, up to the order in which floating-point numbers are added.

        Raises
        ------
        ValueError
            A position is outside the context.
        """
        if not 0 <= min(positions) <= max(positions) < self.context:
            raise ValueError(f"positions {list(positions)}: the context ends at position {self.context - 1}")
        x = self.xp.take(self.embedding, rows, axis=0)
        for number, layer in enumerate(self.layers):
            x = x + self._attention_step(layer, x, [cache[number] for cache in caches], positions)
            x = x + self._mlp(layer, x)
        return self._logits(x)

    def prompt_rows(self, prompt_ids: Sequence[int]) -> Array:
        """Rows of the start token and a prompt, int64, (1 + len(prompt_ids),).

        Raises
        ------
        PromptTooLong
            Start token and prompt fill the context.
        ValueError
            The prompt is empty.
        """
        length = len(prompt_ids)
        if length == 0:
            raise ValueError("the prompt is empty: it has no token ids. Send at least one token")
        if length + 1 >= self.context:
            raise PromptTooLong(f"the prompt has {length} tokens; at most {self.context - 2} are possible. Shorten it")
        return self.rows([self.eos, *prompt_ids])

    def generate(self, prompt_ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Continue a prompt, taking the most likely token each time.

        Parameters
        ----------
        prompt_ids : sequence of int
            Token ids of the prompt, without a start token.
        max_tokens : int
            Most tokens to generate.

        Returns
        -------
        iterator of int
            Token ids. It ends before the model's end token, after `max_tokens`, or where the context is full.

        Raises
        ------
        PromptTooLong
            Start token and prompt fill the context.
        ValueError
            The prompt is empty.
        """
        rows = self.prompt_rows(prompt_ids)
        return self._continue(rows, min(max_tokens, self.context - rows.shape[0]))

    def _continue(self, rows: Array, tokens: int) -> Iterator[int]:
        cache, start = self.new_cache(), 0
        for _ in range(tokens):
            row = int(self.xp.argmax(self.forward(rows, cache, start)))
            if self.ids[row] == self.eos:
                return
            yield self.ids[row]
            start += rows.shape[0]
            rows = self.place_rows([row])

    def place_rows(self, rows: list[int]) -> Array:
        """The rows as an array on the model's device, int64, (len(rows),)."""
        return self.xp.asarray(rows, dtype=self.xp.int64, device=self.device)

    def _normalise(self, x: Array) -> Array:
        """Scale each vector to a length of 1; to a root mean square of 1, with what `_joined` does to the matrices."""
        squares = x @ x if x.ndim == 1 else self.xp.sum(x * x, axis=-1, keepdims=True)
        return x / self.xp.sqrt(squares + self.eps * x.shape[-1])

    def _project(self, layer: Layer, x: Array, rotation: Array) -> tuple[Array, Array, Array]:
        """Queries and keys, turned to their positions, and values: each (..., heads, head_dim)."""
        qkv = self.xp.reshape(self._normalise(x) @ layer.query_key_value, (*x.shape[:-1], 3 * self.heads, -1))
        turned = qkv[..., : 2 * self.heads, :] @ rotation
        return turned[..., : self.heads, :], turned[..., self.heads :, :], qkv[..., 2 * self.heads :, :]

    def _attention(self, layer: Layer, x: Array, cache: Array, start: int) -> Array:
        xp, end = self.xp, start + x.shape[0]
        projected = self._project(layer, x, self.rotation[start:end, :, :])
        queries, keys, values = (xp.permute_dims(one, (1, 0, 2)) for one in projected)  # (heads, n, head_dim)
        cache[0, :, start:end, :] = keys
        cache[1, :, start:end, :] = values
        mixed = self._attend(queries, cache[0, :, :end, :], cache[1, :, :end, :], self.mask[start:end, :end])
        return xp.reshape(xp.permute_dims(mixed, (1, 0, 2)), x.shape) @ layer.attention_out

    def _attention_of_one(self, layer: Layer, x: Array, cache: Array, position: int) -> Array:
        end = position + 1
        queries, keys, values = self._project(layer, x, self.rotation[position, :, :])
        cache[0, :, position, :] = keys
        cache[1, :, position, :] = values
        mixed = self._attend(queries[:, None, :], cache[0, :, :end, :], cache[1, :, :end, :])  # (heads, 1, head_dim)
        return self.xp.reshape(mixed, x.shape) @ layer.attention_out

    def _attention_step(self, layer: Layer, x: Array, caches: list[Array], positions: Sequence[int]) -> Array:
        xp, end = self.xp, max(positions) + 1
        at = self.place_rows(list(positions))
        queries, keys, values = self._project(layer, x, xp.take(self.rotation, at, axis=0))
        new = xp.stack([keys, values], axis=1)  # (batch, 2, heads, head_dim)
        for one, cache in enumerate(caches):
            cache[:, :, positions[one], :] = new[one, ...]
        held = xp.stack([cache[:, :, :end, :] for cache in caches], axis=1)  # (2, batch, heads, end, head_dim)
        mask = xp.take(self.mask[:, :end], at, axis=0)[:, None, None, :]
        mixed = self._attend(queries[:, :, None, :], held[0, ...], held[1, ...], mask)
        return xp.reshape(mixed, x.shape) @ layer.attention_out

    def _attend(self, queries: Array, keys: Array, values: Array, mask: Array | None = None) -> Array:
        """Mix values by how well their keys fit the queries; the last two axes are positions and head_dim."""
        xp = self.xp
        scores = queries @ xp.matrix_transpose(keys)
        if mask is not None:
            scores = scores + mask
        weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        return weights @ values / xp.sum(weights, axis=-1, keepdims=True)

    def _mlp(self, layer: Layer, x: Array) -> Array:
        inner = self._normalise(x) @ layer.gate_up
        width = layer.down.shape[0]
        gate, up = inner[..., :width], inner[..., width:]
        return gate / (1 + self.xp.exp(-gate)) * up @ layer.down

    def _logits(self, x: Array) -> Array:
        logits = self._normalise(x) @ self.unembedding
        logits[..., UNKNOWN_ROW] = -self.xp.inf
        return logits


def _namespace(device: str) -> ModuleType:
    """Return the array namespace that computes on a device. Only a GPU imports torch."""
    if device == "cpu":
        return importlib.import_module("array_api_compat.numpy")
    if not re.fullmatch(r"cuda:\d+", device):
        raise ValueError(f'device is {device!r}; expected "cpu" or "cuda:" and the number of a GPU')
    try:
        xp = importlib.import_module("array_api_compat.torch")
    except ModuleNotFoundError as error:
        raise RuntimeError(f'device {device!r} needs torch, which is not installed here. Use device "cpu"') from error
    if int(device[5:]) >= xp.cuda.device_count():
        raise RuntimeError(f'device is {device!r}; torch sees {xp.cuda.device_count()} GPUs here. Use device "cpu"')
    return xp


def _read(path: Path) -> tuple[dict[str, Any], dict[str, numpy.ndarray]]:
    """Read configuration and tensors, and check that the tensors have the shapes that the configuration says."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}. {RESTORE}")
    with safe_open(path, framework="numpy") as file:
        config = json.loads((file.metadata() or {})["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
    for name, shape in _shapes(config, vocabulary=len(tensors["ids"])).items():
        if tensors[name].shape != shape:
            raise ValueError(f"tensor {name!r} has shape {tensors[name].shape}, expected {shape}")
    return config, tensors


def _shapes(config: Mapping[str, Any], vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's tensors."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, hidden),
        "self_attn.v_proj": (hidden, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in layers for name, shape in layer.items()}
    return shapes | {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}


def _build(
    config: Mapping[str, Any], tensors: Mapping[str, numpy.ndarray], xp: ModuleType, device: str | None
) -> Transformer:
    """Make the model, with its arrays in the namespace and on the device."""

    def place(array: numpy.ndarray) -> Array:
        return xp.asarray(numpy.asarray(array, dtype=numpy.float32, order="C"), device=device)

    embedding = tensors["model.embed_tokens.weight"]
    ids = tuple(tensors["ids"].tolist())
    return Transformer(
        xp=xp,
        device=device,
        heads=config["num_attention_heads"],
        eps=config["rms_norm_eps"],
        eos=config["eos_token_id"],
        ids=ids,
        row_of={token: row for row, token in enumerate(ids) if row != UNKNOWN_ROW},
        embedding=place(embedding),
        unembedding=place(_joined([embedding], tensors["model.norm.weight"])),
        layers=tuple(_layer(config, tensors, i, place) for i in range(config["num_hidden_layers"])),
        rotation=place(_rotation(config)),
        mask=place(numpy.triu(numpy.full((CONTEXT, CONTEXT), -numpy.inf), k=1)),
    )


def _layer(
    config: Mapping[str, Any], tensors: Mapping[str, numpy.ndarray], index: int, place: Callable[[numpy.ndarray], Array]
) -> Layer:
    def weight(name: str) -> numpy.ndarray:
        return tensors[f"model.layers.{index}.{name}.weight"].astype(numpy.float64)

    queries = weight("self_attn.q_proj") * (config["hidden_size"] // config["num_attention_heads"]) ** -0.5
    keys, values = weight("self_attn.k_proj"), weight("self_attn.v_proj")
    gate, up = weight("mlp.gate_proj"), weight("mlp.up_proj")
    return Layer(
        query_key_value=place(_joined([queries, keys, values], weight("input_layernorm"))),
        attention_out=place(weight("self_attn.o_proj").T),
        gate_up=place(_joined([gate, up], weight("post_attention_layernorm"))),
        down=place(weight("mlp.down_proj").T),
    )


def _joined(matrices: Sequence[numpy.ndarray], norm: numpy.ndarray) -> numpy.ndarray:
    """Matrices that share an input as one, (in, out), for vectors that are normalised to a length of 1.

    One product does for all of them. The root mean square of such a vector is the square root of its size, inverted.
    """
    scale = norm.astype(numpy.float64) * norm.size**0.5
    return numpy.concatenate(matrices).T * scale[:, None]


def _rotation(config: Mapping[str, Any]) -> numpy.ndarray:
    """For every position the matrix that turns a row vector, (context, head_dim, head_dim).

    It turns each pair of numbers, one of the first half of the vector and one of the second, by an angle of its own.
    """
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    angles = numpy.outer(numpy.arange(CONTEXT), config["rope_theta"] ** (-numpy.arange(half) / half))
    cos, sin = (numpy.eye(half) * table[:, :, None] for table in (numpy.cos(angles), numpy.sin(angles)))
    return numpy.block([[cos, sin], [-sin, cos]])
