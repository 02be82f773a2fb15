"""The C++ node on a GPU: its ids, where its output buffers lie, and the doubling in GPU memory."""

import json
import time
import uuid
from dataclasses import dataclass

import numpy as np
import pytest
from gpu_servers import PROMPTS, RUNGS, TOKENS, messages, signs_of_gpu
from leftovers import until_none
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from lab_utils.big_run import available_memory, free_shared_memory, plan
from lab_utils.client import Observation, Window, iter_outputs, iter_stream, stream, stream_many
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.gpu_memory import GRANULARITY, GpuMemory, by_message, doubles, factors, follow, snapshot
from lab_utils.server import TritonServer

RELEASE = "token_stream_release"
LAST = 26  # message 25 leaves 128 MiB of pending ids behind; after the last one the stream ends and releases them
NEAR = 4 * GRANULARITY
METRICS_SECONDS = 0.3  # the launcher has the server look at the card every 0.1 s


def memory_lines(server: TritonServer, request_id: str, count: int) -> list[str]:
    """Where Triton put the ids of each message of a stream, by the node's own log."""

    def lines() -> list[dict]:
        logged = [json.loads(line) for line in server.log.splitlines() if line.startswith('{"time"')]
        return [line for line in logged if line["request_id"] == request_id and "memory" in line]

    until_none(lambda: [] if len(lines()) == count else [f"{len(lines())} of {count} lines"], "log lines to come")
    return [line["memory"] for line in lines()]


def inputs(tokens: list[int]) -> dict[str, np.ndarray]:
    """A request to the node itself: these ids in place of generated ones."""
    forced = np.array(tokens, dtype=np.int32)
    return {"PROMPT_IDS": forced, "MAX_TOKENS": np.array([len(tokens)], np.int32), "FORCED_IDS": forced}


def test_the_node_runs_on_the_gpu(cpp_node, measured):
    (process,) = [process for process, name in cpp_node.processes.items() if name == "server"]
    with cpp_node.client() as client:
        configs = [client.get_model_config(f"token_stream_{rung}").config for rung in RUNGS]
    assert {group.kind for config in configs for group in config.instance_group} == {ModelInstanceGroup.KIND_GPU}
    assert signs_of_gpu(process)
    measured["C++ node, bytes on the card"] = dict(snapshot(cpp_node).processes)


@pytest.mark.parametrize("rung", RUNGS)
def test_ids_equal_those_of_the_python_node_on_the_cpu(on_cpu, cpp_node, rung):
    on_cpu.reload("inference")
    cpp_node.reload(f"token_stream_{rung}")
    assert messages(cpp_node, f"ensemble_cpp_{rung}") == messages(on_cpu, f"ensemble_{rung}")


def test_many_streams_at_once_say_what_each_says_alone(cpp_node):
    together = stream_many(cpp_node, "ensemble_cpp_latest", PROMPTS * 4, TOKENS)
    assert [result.ids for result in together] == messages(cpp_node, "ensemble_cpp_latest") * 4


@pytest.mark.parametrize("rung", RUNGS)
def test_in_an_ensemble_the_ids_are_handed_over_in_gpu_memory(cpp_node, rung):
    name = uuid.uuid4().hex
    result = stream(cpp_node, f"ensemble_cpp_{rung}", REPORTED_PROMPT, log=True, request_id=name)
    assert memory_lines(cpp_node, name, len(result.lengths)) == ["GPU"] * 8


def test_to_a_client_triton_hands_them_over_in_main_memory(cpp_node):
    name = uuid.uuid4().hex
    asked = {"parameters": {"log": True}, "request_id": name}
    answers = list(iter_outputs(cpp_node, RELEASE, inputs(REPORTED_TOKENS), **asked))
    assert [len(answer["TOKEN_IDS"]) for answer in answers] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert memory_lines(cpp_node, name, 8) == ["CPU"] * 8


# --- the doubling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """The card before a growing stream, at each of its messages, and after it."""

    before: GpuMemory
    held: list[tuple[Observation, GpuMemory]]
    after: GpuMemory

    def above(self) -> list[int]:
        """Bytes more than before, at each message: the server's where NVML tells them, otherwise the whole card's."""
        memories = [self.before, *(memory for _, memory in self.held)]
        told = all(memory.server for memory in memories)
        base, *others = [memory.server if told else memory.used for memory in memories]
        return [value - base for value in others]


def settle(server: TritonServer) -> None:
    """Return when the node is done with all that it was asked before: one thread answers everything."""
    list(iter_outputs(server, RELEASE, inputs(REPORTED_TOKENS[-1:])))
    time.sleep(METRICS_SECONDS)  # for Triton's metrics alone, which are that much late; NVML needs no time


@pytest.fixture(scope="module")
def growth(cpp_node: TritonServer, measured: dict) -> Growth:
    """Rung 2 with a window of one message: the node waits at each message until it has been measured."""
    chosen = plan(LAST, available_memory(), free_shared_memory())
    assert chosen.n == LAST, chosen.limit
    options = {"dims_only": True, "max_message_ids": 2**LAST, "window": Window(1, RELEASE, 1), "deadline": 240.0}
    settle(cpp_node)
    before = snapshot(cpp_node)
    responses = iter_stream(cpp_node, "ensemble_cpp_release", REPORTED_PROMPT, LAST, **options)
    held = list(follow(cpp_node, responses, settle=lambda: settle(cpp_node)))
    settle(cpp_node)
    found = Growth(before, held, snapshot(cpp_node))
    measured["doubling, bytes at each message"] = {"before": before.used, **by_message(held), "after": found.after.used}
    return found


def test_what_is_held_in_gpu_memory_doubles_with_each_message(growth, measured):
    above = growth.above()[:-1]  # the last message ends the stream, and nothing is held any more
    measured["doubling, factors by NVML"] = factors(above)
    print("factors by NVML:", " ".join(f"{factor:.2f}" for factor in factors(above)))
    assert [observation.nbytes for observation, _ in growth.held] == [4 * 2**n for n in range(LAST)]
    assert doubles(above)
    assert abs(above[-1] - 4 * 2 ** (LAST - 1)) <= NEAR  # all ids that were sent so far are pending


def test_rung_2_releases_it_with_its_stream(growth):
    assert abs(growth.above()[-1]) <= NEAR
    assert abs(growth.after.used - growth.before.used) <= NEAR


def test_tritons_metrics_show_the_same_growth(growth, measured):
    """Triton asks NVIDIA's DCGM, of which its wheel has only a part: where that does not start, there is no metric."""
    metric = [memory.metric for _, memory in growth.held]
    measured["nv_gpu_memory_used_bytes"] = "on the metrics page" if metric[0] else "not on the metrics page"
    if metric[0]:
        assert doubles([value - growth.before.metric for value in metric[:-1]])
    else:
        assert set(metric) == {None}
