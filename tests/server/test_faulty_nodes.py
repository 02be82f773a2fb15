"""The verdict on a real pipeline with a fault in one of its nodes, from the trace of a real server."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lab_utils import trace
from lab_utils.client import iter_outputs
from lab_utils.server import start_server
from lab_utils.trace_tracks import tracks
from lab_utils.verdict import Verdict, judge

REPOSITORY = Path(__file__).parent / "faulty_repository"
FAULTS = ("healthy", "doubling", "resend", "noise", "preprocess", "postprocess")
REQUESTS = 5
PROMPTS = (
    "tea for two ab",
    "pancakes with a lot of syrup",
    "香草冰淇淋",
    "one cup of sugar",
    "a pinch of salt, please",
)


@pytest.fixture(scope="module")
def requests(_nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[trace.Request]]:
    """The traces of a few requests with each fault; their request ids begin with its name."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with start_server(["pipeline"], repository=REPOSITORY, flags=trace.server_flags(path)) as server:
        for fault in FAULTS:
            for number in range(REQUESTS):
                prompt = PROMPTS[number] if fault == "healthy" else PROMPTS[0]
                inputs = {"PROMPT": np.array([prompt.encode()], dtype=np.object_)}
                call = {"parameters": {"fault": fault}, "request_id": f"{fault} {number}"}
                assert list(iter_outputs(server, "pipeline", inputs, **call))
    problems: list[trace.Problem] = []
    found = list(trace.requests(trace.read(path, problems)))
    assert problems == []
    assert len(found) == len(FAULTS) * REQUESTS
    return found


def verdict_on(requests: list[trace.Request], fault: str) -> Verdict:
    chosen = [request for request in requests if request.request_id.startswith(fault)]
    assert len(chosen) == REQUESTS
    return judge(tracks(chosen))


@pytest.mark.parametrize(
    ("fault", "node", "tensor", "kind"),
    [
        ("doubling", "inference", "TOKENS", "exponential"),
        ("resend", "inference", "TOKENS", "linear"),
        ("preprocess", "preprocess", "IDS", "linear"),
        ("postprocess", "postprocess", "TEXT", "linear"),
    ],
)
def test_the_guilty_node_is_named(requests, fault, node, tensor, kind):
    verdict = verdict_on(requests, fault)
    assert (verdict.node, verdict.tensor, verdict.kind) == (node, tensor, kind)
    assert verdict.first == 2
    assert verdict.others == ()
    assert "each of these messages holds the whole message before it" in verdict.evidence


@pytest.mark.parametrize("fault", ["healthy", "noise"])
def test_nobody_is_named_without_growth(requests, fault):
    verdict = verdict_on(requests, fault)
    assert (verdict.node, verdict.kind) == (None, "none")


def test_noise_is_told_from_health(requests):
    assert "not constant" in str(verdict_on(requests, "noise"))
    assert "not constant" not in str(verdict_on(requests, "healthy"))


def test_one_faulty_request_among_healthy_ones_is_enough(requests):
    chosen = [request for request in requests if request.request_id in ("healthy 0", "healthy 1", "doubling 3")]
    verdict = judge(tracks(chosen))
    assert verdict.node == "inference"
    assert "it grows in 1 of the 3 requests with more than one message" in verdict.evidence
