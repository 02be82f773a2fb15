"""Post-processing: token ids to text, incrementally, with one UTF-8 decoder for each stream."""

import codecs
import json
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.append(str(Path(__file__).parents[1]))  # token_bytes lies in the model's folder

from token_bytes import TokenBytes

MAX_STREAMS = 1_024
IDLE_SECONDS = 60.0  # no call arrives here after a cancellation: a decoder that is idle this long is dropped


class Decoders:
    """One incremental UTF-8 decoder for each stream, in a bounded table, oldest use first."""

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._table = OrderedDict()

    def decode(self, stream_id, data, end):
        """Text that is complete after `data`; the start of an unfinished character is held back until `end`."""
        decoder, _ = self._table.pop(stream_id, None) or (codecs.getincrementaldecoder("utf-8")("replace"), None)
        if not end:
            self._table[stream_id] = decoder, self._clock()
        self._drop_old()
        return decoder.decode(data, final=end)

    def _drop_old(self):
        oldest_allowed = self._clock() - IDLE_SECONDS
        while self._table:
            stream_id, (_, last_use) = next(iter(self._table.items()))
            if len(self._table) <= MAX_STREAMS and last_use >= oldest_allowed:
                return
            del self._table[stream_id]

    def __len__(self):
        return len(self._table)


class TritonPythonModel:
    """`TOKEN_IDS` (INT32, [-1]) to `TEXT`, with the ids and the dims as this node received them."""

    def initialize(self, args):
        """Load the token table; no stream is open yet."""
        self.token_bytes = TokenBytes.load(Path(args["model_repository"]) / "token_bytes.safetensors")
        self.decoders = Decoders()

    def execute(self, requests):
        """One response for each request, in order."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Text, ids and dims of one message. With the request parameter "dims_only", the dims alone."""
        ids, stream_id, end = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("TOKEN_IDS", "STREAM_ID", "END")
        )
        dims = np.array(ids.shape, dtype=np.int64)
        if json.loads(request.parameters() or "{}").get("dims_only", False):
            return response("", ids[:0], dims)
        try:
            text = self.decoders.decode(int(stream_id[0]), self.token_bytes.join(ids), bool(end[0]))
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return response(text, ids, dims)


def response(text, ids, dims):
    """One response: TEXT (STRING, [1]), RECEIVED_IDS (INT32, [-1]), RECEIVED_DIMS (INT64, [rank])."""
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("TEXT", np.array([text.encode("utf-8")], dtype=np.object_)),
            pb_utils.Tensor("RECEIVED_IDS", ids),
            pb_utils.Tensor("RECEIVED_DIMS", dims),
        ]
    )
