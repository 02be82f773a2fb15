"""The ids of a prompt: its bytes. With the fault "preprocess" it forgets to clear what earlier prompts left."""

from __future__ import annotations

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self.kept = b""

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        prompt = pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0]
        faulty = json.loads(request.parameters()).get("fault") == "preprocess"
        self.kept = self.kept + prompt if faulty else prompt
        ids = np.frombuffer(self.kept, dtype=np.uint8).astype(np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("IDS", ids)])
