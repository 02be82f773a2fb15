"""Rung 1, append: the bug as in the field. The buffer lives on the instance and is appended to."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # what all versions share lies in the model's folder

from streaming import NO_IDS, StreamingModel


class TritonPythonModel(StreamingModel):
    """Holds ids back until they decode to whole characters, or so it was meant."""

    pending = NO_IDS

    def messages(self, tokens):
        """Every message repeats what is pending, and pending takes in the whole message."""
        for token in tokens:
            message = np.concatenate([self.pending, token])
            yield message
            clean = self.token_bytes.decodes_cleanly(message)
            self.pending = NO_IDS if clean else np.concatenate([self.pending, message])
