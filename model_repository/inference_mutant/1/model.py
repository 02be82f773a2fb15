"""The inference node with a fault on purpose: the request parameter "mutation" names it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # what it shares with `inference` is linked into the model's folder

from mutations import BUFFER, MESSAGES
from streaming import StreamingModel, numbered

NONE = "none"


class TritonPythonModel(StreamingModel):
    """Version 4 of `inference`, the newest id in each message, unless a mutation is asked for."""

    together = True

    def stream_messages(self, stream, options):
        """The `Message`s of one stream, with the fault that its request asks for."""
        name = NONE if options.mutation is None else options.mutation
        if name not in (NONE, *BUFFER, *MESSAGES):
            raise ValueError(
                f'request parameter "mutation" is {name!r}; expected one of {", ".join([NONE, *BUFFER, *MESSAGES])}'
            )
        tokens = stream.tokens
        arrays = BUFFER[name](tokens, self.token_bytes.decodes_cleanly) if name in BUFFER else tokens
        messages = numbered(arrays, stream)
        return MESSAGES[name](messages) if name in MESSAGES else messages
