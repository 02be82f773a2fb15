"""What the assertion in a node costs: the time of one check, beside the time of one token."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab_utils.client import StreamResult
from lab_utils.model_files import load_model_file

VOCABULARY = 151_643
MESSAGES, REPEATS = 200, 50  # short rounds: some of them run undisturbed, however busy the machine is


@dataclass(frozen=True)
class GuardCost:
    """Seconds for one check of one message, and for one token of a stream."""

    check_seconds: float
    token_seconds: float

    @property
    def share(self) -> float:
        """The check as a part of the token's time: 0.01 is 1 %."""
        return self.check_seconds / self.token_seconds


def guard_cost(result: StreamResult) -> GuardCost:
    """What checking each message of a stream would add to it.

    Parameters
    ----------
    result : StreamResult
        A healthy stream of at least 3 messages, run without the guard.

    Raises
    ------
    ValueError
        The stream has fewer messages.
    """
    return GuardCost(check_seconds(), token_seconds(result))


def token_seconds(result: StreamResult) -> float:
    """`StreamResult.token_seconds` of a stream that is long enough to be timed."""
    if len(result.observations) < 3:
        raise ValueError(f"the stream has {len(result.observations)} messages; expected at least 3 to time the steps")
    return result.token_seconds


def check_seconds() -> float:
    """Time of one `StreamGuard.check` of a healthy message, in seconds: the best of several rounds over a long stream.

    The best, because other work of the machine only ever adds to it.
    """
    guard_module, messages = load_model_file("inference", "guard"), _healthy_messages(MESSAGES)
    return min(_round_seconds(guard_module.StreamGuard(VOCABULARY), messages) for _ in range(REPEATS)) / MESSAGES


def _round_seconds(guard: object, messages: Sequence[tuple]) -> float:
    began = time.perf_counter()
    for message in messages:
        guard.check(*message)
    return time.perf_counter() - began


def _healthy_messages(count: int) -> list[tuple]:
    """Arguments of `StreamGuard.check`, for each message of a stream that keeps the contract."""
    messages, checksum = [], 0
    for index in range(1, count + 1):
        ids = np.array([index], dtype=np.int32)
        checksum = zlib.crc32(ids, checksum)
        messages.append((ids, index, 1, index == count, checksum))
    return messages
