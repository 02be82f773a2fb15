"""The inference node with a fault on purpose: the request parameter "mutation" names it."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # what it shares with `inference` is linked into the model's folder

from mutations import BUFFER, MESSAGES
from streaming import Message, StreamingModel, TokenStream

NONE = "none"


class TritonPythonModel(StreamingModel):
    """Version 4 of `inference`, the newest id in each message, unless a mutation is asked for."""

    def stream_messages(self, request, stream_id):
        """Yield the `Message`s of one request, with the fault that it asks for."""
        name = json.loads(request.parameters() or "{}").get("mutation", NONE)
        if name not in (NONE, *BUFFER, *MESSAGES):
            raise ValueError(
                f'request parameter "mutation" is {name!r}; expected one of {", ".join([NONE, *BUFFER, *MESSAGES])}'
            )
        tokens = TokenStream(self.tokens(request))
        arrays = BUFFER[name](tokens, self.token_bytes.decodes_cleanly) if name in BUFFER else tokens
        messages = (
            Message(ids, index, stream_id, tokens.last, tokens.checksum) for index, ids in enumerate(arrays, start=1)
        )
        return MESSAGES[name](messages) if name in MESSAGES else messages
