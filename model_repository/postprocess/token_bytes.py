"""The bytes of every token of the Qwen vocabulary, and what can be done with them."""

import codecs
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file


@dataclass(frozen=True)
class TokenBytes:
    """A table of token bytes: token `i` is `data[ends[i - 1]:ends[i]]`."""

    data: bytes
    ends: np.ndarray

    @classmethod
    def load(cls, path):
        """Read the table; the file holds all bytes in a row, and the length of each token."""
        arrays = load_file(path)
        ends = np.concatenate([[0], np.cumsum(arrays["lengths"], dtype=np.int64)])
        return cls(arrays["data"].tobytes(), ends)

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, token_id):
        return self.data[self.ends[token_id] : self.ends[token_id + 1]]

    def check(self, ids):
        """Raise a ValueError for the first id that is not in the vocabulary."""
        if len(ids) and not 0 <= min(ids) <= max(ids) < len(self):
            at = next(place for place, token_id in enumerate(ids) if not 0 <= token_id < len(self))
            raise ValueError(f"token id {ids[at]} at position {at} is not in the vocabulary (0 to {len(self) - 1:,})")

    def join(self, ids):
        """The bytes of the ids, one after the other. An id outside the vocabulary is a ValueError."""
        token_ids = ids.tolist()  # plain numbers: one message holds one id, and an array's own functions take longer
        self.check(token_ids)
        return b"".join([self[token_id] for token_id in token_ids])

    def decodes_cleanly(self, ids):
        """Whether the ids are whole characters: no U+FFFD would be in their text. Stops at the first invalid byte."""
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        try:
            for token_id in ids:
                decoder.decode(self[token_id])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
        return True
