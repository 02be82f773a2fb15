"""Rung 3, replace: the pending ids are overwritten by the message, not appended to."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # what all versions share lies in the model's folder

from streaming import NO_IDS, StreamingModel


class TritonPythonModel(StreamingModel):
    """Holds ids back until they decode to whole characters."""

    def messages(self, tokens):
        """Every message repeats what is pending, and pending becomes the message."""
        pending = NO_IDS
        for token in tokens:
            message = np.concatenate([pending, token])
            yield message
            clean = self.token_bytes.decodes_cleanly(message)
            pending = NO_IDS if clean else message
