"""decode: ids to text. A character is sent with the message that brings its last byte."""

import codecs
import time

import numpy as np
import triton_python_backend_utils as pb_utils

LOOK_UP_SECONDS = 0.005  # what looking up a character outside ASCII takes


def new_decoder():
    """A decoder that keeps the bytes of an incomplete character."""
    return codecs.getincrementaldecoder("utf-8")("replace")


class TritonPythonModel:
    """`TOKEN_IDS` to `TEXT`, with the ids, dims, index and end mark as this node received them."""

    def initialize(self, args):
        """No stream is open yet."""
        self.decoders = {}

    def execute(self, requests):
        """Messages are answered one after the other."""
        for request in requests:
            self.answer(request)

    def answer(self, request):
        """Decode one message, and send its response."""
        ids, index, stream_id, end, error = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("TOKEN_IDS", "INDEX", "STREAM_ID", "END", "ERROR")
        )
        text = self.text(int(stream_id[0]), ids.tolist(), bool(end[0]))
        self.send(request.get_response_sender(), response(text, ids, index, end, error), text)

    def text(self, stream_id, ids, end):
        """The text that a message completes; at the end mark, the stream is forgotten."""
        decoder = self.decoders.setdefault(stream_id, new_decoder())
        text = decoder.decode(bytes(ids), final=end)
        if end:
            del self.decoders[stream_id]
        return text

    def send(self, sender, message, text):
        """Look the text up, and send it."""
        time.sleep(0 if text.isascii() else LOOK_UP_SECONDS)
        sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def response(text, ids, index, end, error):
    """One response."""
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("TEXT", np.array([text.encode("utf-8")], dtype=np.object_)),
            pb_utils.Tensor("RECEIVED_IDS", ids),
            pb_utils.Tensor("RECEIVED_DIMS", np.array(ids.shape, dtype=np.int64)),
            pb_utils.Tensor("RECEIVED_INDEX", index),
            pb_utils.Tensor("RECEIVED_END", end),
            pb_utils.Tensor("RECEIVED_ERROR", error),
        ]
    )
