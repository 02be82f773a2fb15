"""A client that costs as little as a client in Python can: all streams in one thread, over one connection.

It takes the responses' bytes off the wire, and reads them only when the clock has stopped.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import psutil
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from lab_utils.api_key import GRPC_PREFIX, ApiKey

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
FINAL = b"triton_final_response\x12\x02\x08\x01"  # the parameter as it stands in a response's bytes, where it is true
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Call:
    """What every stream of a measurement asks for: a decoupled model, its inputs, and the outputs wanted."""

    url: str
    model: str
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[str]
    key: ApiKey | None = None


@dataclass(frozen=True)
class Streams:
    """The responses of all streams, in the order of arrival, and what they took: seconds, processor seconds here."""

    responses: list[bytes]
    seconds: float
    processor_seconds: float

    def values(self, output: str) -> list[list[np.ndarray]]:
        """The arrays or bytes of one output, stream by stream."""
        found: dict[str, list] = defaultdict(list)
        for raw in self.responses:
            message = service_pb2.ModelStreamInferResponse.FromString(raw)
            if message.error_message:
                raise RuntimeError(f"the server ended a stream: {message.error_message}")
            found[message.infer_response.id] += _values(message.infer_response, output)
        return list(found.values())


def stream_together(call: Call, streams: int) -> Streams:
    """Run that many streams side by side, and return when all have ended."""
    requests = [_request(call, str(number)) for number in range(streams)]
    metadata = [(f"{GRPC_PREFIX}{call.key.header}", call.key.value)] if call.key else None
    process, over = psutil.Process(), threading.Event()
    with grpc.insecure_channel(call.url) as channel:
        grpc.channel_ready_future(channel).result(DEADLINE_SECONDS)
        before, began = _used(process), time.perf_counter()
        responses = channel.stream_stream(METHOD)(_held_open(requests, over), DEADLINE_SECONDS, metadata)
        found = _until_final(responses, streams, over)
        return Streams(found, time.perf_counter() - began, _used(process) - before)


def _until_final(responses: Iterator[bytes], streams: int, over: threading.Event) -> list[bytes]:
    found = []
    for raw in responses:
        found.append(raw)
        if FINAL in raw:
            streams -= 1
            if not streams:
                over.set()  # nothing more will be asked: the server ends the stream
    return found


def _held_open(requests: list[bytes], over: threading.Event) -> Iterator[bytes]:
    yield from requests
    over.wait(DEADLINE_SECONDS)


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _request(call: Call, name: str) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=call.model, id=name)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for tensor, values in call.inputs.items():
        request.inputs.add(name=tensor, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
        data = serialize_byte_tensor(values).item() if values.dtype == np.object_ else values.tobytes()
        request.raw_input_contents.append(data)
    for output in call.outputs:
        request.outputs.add(name=output)
    return request.SerializeToString()


def _values(response: service_pb2.ModelInferResponse, output: str) -> list:
    """The output's content: bytes for a text, an array for numbers; none in a response without it."""
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if tensor.name == output:
            return [raw[4:] if tensor.datatype == "BYTES" else np.frombuffer(raw, dtype=np.int32)]
    return []
