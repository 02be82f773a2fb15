"""encode: text to ids. The ids are the bytes of the text in UTF-8."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`PROMPT` (STRING, [1]) to `PROMPT_IDS` (INT32, [-1])."""

    def execute(self, requests):
        """One response for each request."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """The response to one request."""
        prompt = pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0].decode("utf-8")
        return pb_utils.InferenceResponse([pb_utils.Tensor("PROMPT_IDS", self.ids(prompt))])

    def ids(self, prompt):
        """The ids of a text."""
        data = prompt.encode("utf-8")
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32)
