"""Streams the ids that it gets back, one a message. The faults "doubling", "resend" and "noise" are its own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
MESSAGES = 12


class TritonPythonModel:
    def execute(self, requests: list) -> None:
        for request in requests:
            self._stream(request)

    def _stream(self, request: pb_utils.InferenceRequest) -> None:
        ids = pb_utils.get_input_tensor_by_name(request, "IDS").as_numpy()[:MESSAGES].tolist()
        messages = MESSAGE_RULES.get(json.loads(request.parameters()).get("fault"), newest)
        sender = request.get_response_sender()
        for message in messages(ids):
            tensor = pb_utils.Tensor("TOKENS", np.array(message, dtype=np.int32))
            sender.send(pb_utils.InferenceResponse([tensor]))
        sender.send(flags=FINAL)


def newest(ids: list[int]) -> Iterator[list[int]]:
    yield from ([token] for token in ids)


def doubling(ids: list[int]) -> Iterator[list[int]]:
    """Appends to what it sent before, in place of overwriting it."""
    pending: list[int] = []
    for token in ids:
        message = [*pending, token]
        yield message
        pending += message


def resend(ids: list[int]) -> Iterator[list[int]]:
    """Sends the whole history each time."""
    yield from (ids[:length] for length in range(1, len(ids) + 1))


def noise(ids: list[int]) -> Iterator[list[int]]:
    """Sends any number of ids."""
    draw = random.Random(len(ids))
    yield from ([draw.randrange(256) for _ in range(draw.randint(1, 9))] for _ in range(24))


MESSAGE_RULES = {"doubling": doubling, "resend": resend, "noise": noise}
