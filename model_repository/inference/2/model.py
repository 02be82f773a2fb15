"""Rung 2, release: the buffer belongs to one request and is released with it."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # what all versions share lies in the model's folder

from streaming import NO_IDS, StreamingModel


class TritonPythonModel(StreamingModel):
    """Holds ids back until they decode to whole characters, or so it was meant."""

    def messages(self, tokens):
        """Every message repeats what is pending, and pending takes in the whole message."""
        pending = NO_IDS
        for token in tokens:
            message = np.concatenate([pending, token])
            yield message
            clean = self.token_bytes.decodes_cleanly(message)
            pending = NO_IDS if clean else np.concatenate([pending, message])
