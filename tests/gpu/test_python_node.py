"""The Python node on a GPU: where it runs, and that it says what it says on the CPU."""

import pytest
from gpu_servers import PROMPTS, ROOT, RUNGS, TOKENS, messages, signs_of_gpu
from safetensors.numpy import load_file

from lab_utils.client import stream, stream_many
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.gpu_memory import snapshot

NODES = [f"inference version {version}" for version in range(1, 5)]


def test_the_node_runs_on_the_gpu(python_node, measured):
    processes = {name: process for process, name in python_node.processes.items()}
    stream(python_node, "ensemble_latest", REPORTED_PROMPT)
    signs = {node: signs_of_gpu(processes[node]) for node in NODES}
    assert all(signs.values()), signs
    assert "no torch with CUDA in this Python environment" not in python_node.log
    assert python_node.log.count("inference_0_0 (GPU device 0)") == len(NODES)
    memory = snapshot(python_node)
    assert memory.used > 0
    measured["python node, bytes on the card"] = dict(memory.processes)


@pytest.mark.parametrize("rung", RUNGS)
def test_ids_equal_those_of_the_cpu(on_cpu, python_node, rung):
    for server in (on_cpu, python_node):
        server.reload("inference")
    assert messages(python_node, f"ensemble_{rung}") == messages(on_cpu, f"ensemble_{rung}")


def test_the_whole_text_equals_the_reference(python_node):
    expected = load_file(ROOT / "tests" / "data" / "reference_logits.safetensors")["vanilla.greedy"].tolist()
    assert stream(python_node, "ensemble_latest", REPORTED_PROMPT, 200).ids == [[token] for token in expected]


def test_many_streams_at_once_say_what_each_says_alone(on_cpu, python_node):
    together = stream_many(python_node, "ensemble_latest", PROMPTS * 4, TOKENS)
    assert [result.ids for result in together] == messages(on_cpu, "ensemble_latest") * 4
