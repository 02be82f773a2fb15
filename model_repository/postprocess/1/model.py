"""Post-processing: token ids to text, incrementally, with one UTF-8 decoder for each stream."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.append(str(Path(__file__).parents[1]))  # decoding and token_bytes lie in the model's folder

from decoding import Decoders, response
from token_bytes import TokenBytes


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
