"""The capstone's pipeline in this process, without a server: quick enough to grade every patch of every fault."""

import queue
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from lab_utils.capstone_grading import Answer
from lab_utils.client import Observation, StreamError, StreamResult

SECONDS = {"STEP_SECONDS": 0.0001, "LOOK_UP_SECONDS": 0.002}  # quicker than the shipped ones
DECLARED = {"PROMPT_IDS": np.int32, "TOKEN_IDS": np.int32, "INDEX": np.int32, "STREAM_ID": np.int64, "END": np.bool_}
FINAL = 1
INSTANCES = 4  # of generate
DEADLINE_SECONDS = 3.0


class Tensor:
    """As in Triton's Python backend."""

    def __init__(self, name: str, values: np.ndarray):
        self.name, self._values = name, values

    def as_numpy(self) -> np.ndarray:
        return self._values


class InferenceResponse:
    """As in Triton's Python backend."""

    def __init__(self, output_tensors: Sequence[Tensor]):
        self.tensors = {tensor.name: tensor.as_numpy() for tensor in output_tensors}


@dataclass
class Request:
    """A request to one node; what it sends goes into `sent`, and None when no more comes."""

    inputs: Mapping[str, np.ndarray]
    sent: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    def get_response_sender(self) -> "Request":
        return self

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if response is not None:
            self.sent.put(response.tensors)
        if flags == FINAL:
            self.sent.put(None)


@contextmanager
def backend() -> Iterator[None]:
    """Make Triton's module importable."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse = Tensor, InferenceResponse
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request.inputs[name])
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.modules.pop(module.__name__)
        if before is not None:
            sys.modules[module.__name__] = before


class Pipeline:
    """encode, generate and decode, each from its source."""

    def __init__(self, sources: Mapping[str, str]):
        self.encode, self.decode = self._load(sources["encode"]), self._load(sources["decode"])
        self._lock = threading.Lock()  # decode has one instance: it is given one message at a time
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(INSTANCES):
            self._idle.put(self._load(sources["generate"]))

    def _load(self, source: str) -> object:
        namespace: dict[str, object] = {"__name__": "node"}
        with backend():
            exec(compile(source, "node", "exec"), namespace)
        namespace.update({name: value for name, value in SECONDS.items() if name in namespace})
        model = namespace["TritonPythonModel"]()
        getattr(model, "initialize", lambda _: None)({})
        return model

    def ask(self, requests: Sequence[tuple[str, int]]) -> list[Answer]:
        """As what `capstone_grading.asker` returns."""
        answers: list[Answer | None] = [None] * len(requests)

        def run(n: int) -> None:
            try:
                answers[n] = self._stream(*requests[n])
            except StreamError as error:
                answers[n] = error

        threads = [threading.Thread(target=run, args=(n,)) for n in range(len(requests))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return answers

    def _stream(self, prompt: str, max_tokens: int) -> StreamResult:
        text = np.array([prompt.encode("utf-8")], dtype=np.object_)
        encoded = self.encode.execute([Request({"PROMPT": text})])[0].tensors["PROMPT_IDS"]
        inputs = declared({"PROMPT_IDS": encoded, "MAX_TOKENS": np.array([max_tokens], dtype=np.int32)})
        generated, arrived = Request(inputs), queue.SimpleQueue()
        thread = threading.Thread(target=self._generate, args=(generated,))
        thread.start()
        count = self._decode_all(generated, arrived)
        thread.join()
        return StreamResult(tuple(_observation(arrived, n + 1) for n in range(count)))

    def _generate(self, request: Request) -> None:
        instance = self._idle.get()
        try:
            instance.execute([request])
        finally:
            self._idle.put(instance)

    def _decode_all(self, generated: Request, arrived: queue.SimpleQueue) -> int:
        count = 0
        while (message := _next(generated.sent)) is not None:
            request = Request(declared(message), sent=arrived)
            with self._lock:
                try:
                    self.decode.execute([request])
                except Exception as error:
                    raise StreamError(f"the server ended the stream after {count} responses: {error}") from None
            count += 1
        return count


def declared(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The tensors as a consumer gets them: Triton compares their types with the configuration."""
    for name, values in tensors.items():
        if name in DECLARED and values.dtype != DECLARED[name]:
            raise StreamError(f"inference input {name!r} data-type is {values.dtype}")
    return tensors


def _next(sent: queue.SimpleQueue) -> Mapping[str, np.ndarray] | None:
    try:
        return sent.get(timeout=DEADLINE_SECONDS)
    except queue.Empty:
        raise StreamError("no end of the stream within its deadline") from None


def _observation(arrived: queue.SimpleQueue, iteration: int) -> Observation:
    while (got := _next(arrived)) is None:  # the final flag of the message before
        continue
    if got["RECEIVED_ERROR"][0]:
        raise StreamError(got["RECEIVED_ERROR"][0].decode())
    dims, ids = tuple(got["RECEIVED_DIMS"].tolist()), got["RECEIVED_IDS"]
    text, index, end = got["TEXT"][0].decode(), int(got["RECEIVED_INDEX"][0]), bool(got["RECEIVED_END"][0])
    return Observation(iteration, dims, ids.nbytes, 0.0, ids, text, index, end)
