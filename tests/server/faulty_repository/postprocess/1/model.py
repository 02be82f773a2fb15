"""The text of each message. With the fault "postprocess" every text begins with all texts of the request before."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self.kept: dict[str, bytes] = defaultdict(bytes)

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        text = bytes(pb_utils.get_input_tensor_by_name(request, "NEWEST").as_numpy().astype(np.uint8))
        if json.loads(request.parameters()).get("fault") == "postprocess":
            text = self.kept[request.request_id()] = self.kept[request.request_id()] + text
        return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", np.array([text], dtype=np.object_))])
