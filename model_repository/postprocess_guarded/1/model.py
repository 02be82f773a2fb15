"""Post-processing that checks every message against the contract before it decodes it."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # what this node shares with others lies in the model's folder

from decoding import DecodingModel, response, string
from guard import StreamGuard

NO_IDS = np.empty(0, dtype=np.int32)


class TritonPythonModel(DecodingModel):
    """One id to `TEXT`, and to `STATUS`, which is empty as long as the stream keeps its contract.

    A broken contract travels in-band. An error response would end the client's stream, and leave the ensemble's
    request in flight for good.
    """

    def new_stream(self):
        """A guard and a decoder."""
        return StreamGuard(len(self.token_bytes)), super().new_stream()

    def respond(self, request):
        """Text, ids and dims of one message; no text and no ids once the contract is broken."""
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        ids, index, checksum = inputs["TOKEN_IDS"], int(inputs["INDEX"][0]), int(inputs["CHECKSUM"][0])
        stream, last = int(inputs["STREAM_ID"][0]), bool(inputs["END"][0])
        dims = np.array(ids.shape, dtype=np.int64)
        guard, decoder = self.streams.take(stream, last)
        try:
            if index or len(ids):  # neither: inference has nothing to say, or failed and says so in ERROR
                guard.check(ids, index, stream, last, checksum)
        except ValueError as error:
            return response("", NO_IDS, dims, STATUS=string(str(error)))
        return response(decoder.decode(self.token_bytes.join(ids), final=last), ids, dims, STATUS=string(""))
