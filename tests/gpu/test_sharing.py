"""Eight learners on one card: eight servers side by side, each with the memory pool that the launcher gives it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pynvml
import pytest
from gpu_servers import backend_folder, server_on_gpu
from leftovers import triton_process, until_none

from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.gpu_memory import open_card, snapshot
from lab_utils.launch import CUDA_POOL_BYTES
from lab_utils.server import MODEL_REPOSITORY, TritonServer

LEARNERS = 8
SLACK = 32 * 2**20  # bytes: other users of the card come and go


def used() -> int:
    """Bytes in use on the card."""
    with open_card() as card:
        return pynvml.nvmlDeviceGetMemoryInfo(card).used


def say(server: TritonServer, ensemble: str) -> list[list[int]]:
    assert f"--cuda-memory-pool-byte-size=0:{CUDA_POOL_BYTES}" in triton_process(server).cmdline()
    return stream(server, ensemble, REPORTED_PROMPT).ids


@pytest.mark.parametrize("node", ["python", "cpp"])
def test_eight_servers_share_the_card(node: str, cpp_models: Path, measured: dict):
    on_gpu = {"repository": [MODEL_REPOSITORY, cpp_models], "backends": backend_folder()}
    ensemble, options = ("ensemble_latest", {}) if node == "python" else ("ensemble_cpp_latest", on_gpu)
    before, steps = used(), []
    with ExitStack() as running, ThreadPoolExecutor(LEARNERS) as learners:
        servers = []
        for _ in range(LEARNERS):
            servers.append(running.enter_context(server_on_gpu([ensemble], **options)))
            steps.append(used())
        answers = list(learners.map(lambda server: say(server, ensemble), servers))
        by_process = [dict(snapshot(server).processes) for server in servers]
        busy = used()
    figures = {"before": before, "after each start": steps, "busy": busy, "processes of each": by_process}
    measured[f"eight servers, {node} node, bytes on the card"] = figures
    print(f"{node}: {(busy - before) / LEARNERS / 2**20:,.0f} MiB of the card for each server")
    assert answers == [[[token] for token in REPORTED_TOKENS]] * LEARNERS
    until_none(
        lambda: [f"{used() - before} bytes more than before"] if used() - before > SLACK else [], "eight servers"
    )
