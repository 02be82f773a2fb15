"""Post-processing: token ids to text, incrementally, with one UTF-8 decoder for each stream."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.append(str(Path(__file__).parents[1]))  # what this node shares with others lies in the model's folder

from decoding import DecodingModel, response
from node_log import log_message


class TritonPythonModel(DecodingModel):
    """`TOKEN_IDS` (INT32, [-1]) to `TEXT`, with the ids and the dims as this node received them."""

    def respond(self, request):
        """Text, ids and dims of one message. With the request parameter "dims_only", the dims alone."""
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        ids, stream, last = inputs["TOKEN_IDS"], int(inputs["STREAM_ID"][0]), bool(inputs["END"][0])
        index = inputs.get("INDEX")  # only some variants of this node take it
        further = {} if index is None else {"RECEIVED_INDEX": index}
        dims = np.array(ids.shape, dtype=np.int64)
        options = json.loads(request.parameters() or "{}")
        if options.get("log", False):
            number = None if index is None else int(index[0])
            log_message(self.name, request.request_id(), stream, number, dims.tolist(), last)
        if options.get("dims_only", False):
            return response("", ids[:0], dims, **further)
        try:
            data = self.token_bytes.join(ids)
        except ValueError as error:
            self.streams.drop(stream)  # an error response ends the client's stream, so no end mark will come
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return response(self.streams.take(stream, last).decode(data, final=last), ids, dims, **further)
