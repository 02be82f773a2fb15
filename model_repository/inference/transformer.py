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
    """Weights of one decoder layer: float32 arrays, the matrices laid out as (in, out)."""

    attention_norm: Array  # (hidden,)
    query_key_value: Array  # (hidden, 3 * hidden)
    attention_out: Array  # (hidden, hidden)
    mlp_norm: Array  # (hidden,)
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
        The vector of each row; multiplied with the last state, also its logit.
    layers : tuple of Layer
        First to last.
    norm : array, float32, (hidden,)
        Weights of the last normalisation.
    cos, sin : array, float32, (context, head_dim / 2)
        Rotary position table.
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
    layers: tuple[Layer, ...]
    norm: Array
    cos: Array
    sin: Array
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
        shape = (2, self.heads, self.context, 2 * self.cos.shape[1])
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
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = x + self._attention(layer, self._normalise(x, layer.attention_norm), layer_cache, start)
            x = x + self._mlp(layer, self._normalise(x, layer.mlp_norm))
        logits = self._normalise(x[-1, :], self.norm) @ self.embedding.T
        logits[UNKNOWN_ROW] = -self.xp.inf
        return logits

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
            layer_caches = [cache[number] for cache in caches]
            x = x + self._attention_step(layer, self._normalise(x, layer.attention_norm), layer_caches, positions)
            x = x + self._mlp(layer, self._normalise(x, layer.mlp_norm))
        logits = self._normalise(x, self.norm) @ self.embedding.T
        logits[:, UNKNOWN_ROW] = -self.xp.inf
        return logits

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

    def _normalise(self, x: Array, weight: Array) -> Array:
        """Scale each vector to a root mean square of 1, then by the weight."""
        mean_square = self.xp.sum(x * x, axis=-1, keepdims=True) / x.shape[-1]  # NumPy's own mean takes twice as long
        return x / self.xp.sqrt(mean_square + self.eps) * weight

    def _attention(self, layer: Layer, x: Array, cache: Array, start: int) -> Array:
        xp, n = self.xp, x.shape[0]
        end = start + n
        split = xp.reshape(x @ layer.query_key_value, (n, 3, self.heads, -1))
        qkv = xp.permute_dims(split, (1, 2, 0, 3))  # (3, heads, n, head_dim)
        queries_keys = self._rotate(qkv[:2, ...], self.cos[start:end, :], self.sin[start:end, :])
        cache[0, :, start:end, :] = queries_keys[1, ...]
        cache[1, :, start:end, :] = qkv[2, ...]
        keys, values = cache[0, :, :end, :], cache[1, :, :end, :]
        mixed = self._attend(queries_keys[0, ...], keys, values, self.mask[start:end, :end])  # (heads, n, head_dim)
        return xp.reshape(xp.permute_dims(mixed, (1, 0, 2)), (n, -1)) @ layer.attention_out

    def _attention_step(self, layer: Layer, x: Array, caches: list[Array], positions: Sequence[int]) -> Array:
        xp, batch, end = self.xp, x.shape[0], max(positions) + 1
        at = self.place_rows(list(positions))
        qkv = xp.reshape(x @ layer.query_key_value, (batch, 3, self.heads, -1))
        cos, sin = (xp.take(table, at, axis=0)[:, None, None, :] for table in (self.cos, self.sin))
        queries_keys = self._rotate(qkv[:, :2, ...], cos, sin)
        new = xp.stack([queries_keys[:, 1, ...], qkv[:, 2, ...]], axis=1)  # (batch, 2, heads, head_dim)
        for one, cache in enumerate(caches):
            cache[:, :, positions[one], :] = new[one, ...]
        held = xp.stack([cache[:, :, :end, :] for cache in caches], axis=1)  # (2, batch, heads, end, head_dim)
        mask = xp.take(self.mask[:, :end], at, axis=0)[:, None, None, :]
        mixed = self._attend(queries_keys[:, 0, :, None, :], held[0, ...], held[1, ...], mask)
        return xp.reshape(mixed, (batch, -1)) @ layer.attention_out

    def _attend(self, queries: Array, keys: Array, values: Array, mask: Array) -> Array:
        """Mix values by how well their keys fit the queries; the last two axes are positions and head_dim."""
        scores = queries @ self.xp.matrix_transpose(keys) * keys.shape[-1] ** -0.5
        return self._softmax(scores + mask) @ values

    def _rotate(self, x: Array, cos: Array, sin: Array) -> Array:
        """Turn each pair of numbers by its position's angle (rotary embedding)."""
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return self.xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _softmax(self, scores: Array) -> Array:
        weights = self.xp.exp(scores - self.xp.max(scores, axis=-1, keepdims=True))
        return weights / self.xp.sum(weights, axis=-1, keepdims=True)

    def _mlp(self, layer: Layer, x: Array) -> Array:
        inner = x @ layer.gate_up
        width = layer.down.shape[0]
        gate, up = inner[:, :width], inner[:, width:]
        return gate / (1 + self.xp.exp(-gate)) * up @ layer.down


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

    ids = tuple(tensors["ids"].tolist())
    cos, sin = _rotary_table(config)
    return Transformer(
        xp=xp,
        device=device,
        heads=config["num_attention_heads"],
        eps=config["rms_norm_eps"],
        eos=config["eos_token_id"],
        ids=ids,
        row_of={token: row for row, token in enumerate(ids) if row != UNKNOWN_ROW},
        embedding=place(tensors["model.embed_tokens.weight"]),
        layers=tuple(_layer(tensors, i, place) for i in range(config["num_hidden_layers"])),
        norm=place(tensors["model.norm.weight"]),
        cos=place(cos),
        sin=place(sin),
        mask=place(numpy.triu(numpy.full((CONTEXT, CONTEXT), -numpy.inf), k=1)),
    )


def _layer(tensors: Mapping[str, numpy.ndarray], index: int, place: Callable[[numpy.ndarray], Array]) -> Layer:
    """One layer's weights. Matrices that share an input are joined, so that one product does for all."""

    def joined(*names: str) -> Array:
        return place(numpy.concatenate([tensors[f"model.layers.{index}.{name}.weight"] for name in names]).T)

    return Layer(
        attention_norm=joined("input_layernorm"),
        query_key_value=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out=joined("self_attn.o_proj"),
        mlp_norm=joined("post_attention_layernorm"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
        down=joined("mlp.down_proj"),
    )


def _rotary_table(config: Mapping[str, Any]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Cosine and sine of every position's angles, each (context, head_dim / 2)."""
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    angles = numpy.outer(numpy.arange(CONTEXT), config["rope_theta"] ** (-numpy.arange(half) / half))
    return numpy.cos(angles), numpy.sin(angles)
