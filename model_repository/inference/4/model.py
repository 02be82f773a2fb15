"""Rung 4, latest: a message is the newest id, nothing else. Post-processing holds incomplete characters back."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # what all versions share lies in the model's folder

from streaming import StreamingModel


class TritonPythonModel(StreamingModel):
    """Keeps no ids between messages."""

    together = True  # nothing is kept on the instance either, so that streams cannot mix

    def messages(self, tokens):
        """Every message holds one id."""
        yield from tokens
