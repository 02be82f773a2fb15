"""A stand-in for the module that Triton's stub provides, and the models of the repository on it, without a server."""

import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from lab_utils.contract import read_config
from lab_utils.server import MODEL_REPOSITORY

PATIENCE = 30.0  # a deadline, not a delay
OUTPUTS = ("TOKEN_IDS", "INDEX", "STREAM_ID", "END", "CHECKSUM", "HEAP", "ERROR")
OWN_MODULES = {path.stem for path in MODEL_REPOSITORY.glob("*/*.py")}


class Tensor:
    def __init__(self, name: str, values: np.ndarray):
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError(Exception):
    pass


class InferenceResponse:
    def __init__(self, output_tensors: Iterable[Tensor] = (), error: TritonError | None = None):
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = "" if error is None else str(error)


class Sender:
    """Takes responses; `closed` is set with the final flag."""

    def __init__(self, cancelled_after: int = 10**9):
        self.responses, self.finals, self.cancelled_after = [], 0, cancelled_after
        self.closed = Event()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.finals, "nothing may follow the final flag"
        if response is not None:  # as Triton does: what the node does to its arrays afterwards is not seen any more
            response.outputs = {name: values.copy() for name, values in response.outputs.items()}
        self.responses += [] if response is None else [response]
        self.finals += flags
        if flags:
            self.closed.set()

    def is_cancelled(self) -> bool:
        return len(self.responses) >= self.cancelled_after


class Request:
    def __init__(
        self,
        parameters: str = "",
        cancelled_after: int = 10**9,
        wanted: Iterable[str] = OUTPUTS,
        **inputs: object,
    ):
        self.arrays = {name: as_array(value) for name, value in inputs.items()}
        self._parameters, self._wanted, self.sender = parameters, list(wanted), Sender(cancelled_after)

    def again(self) -> "Request":
        """The same request, not yet answered."""
        return Request(self._parameters, wanted=self._wanted, **self.arrays)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, values) for name, values in self.arrays.items()]

    def requested_output_names(self) -> list[str]:
        return self._wanted

    def parameters(self) -> str:
        return self._parameters

    def request_id(self) -> str:
        return "from a test"

    def get_response_sender(self) -> Sender:
        return self.sender


def as_array(value: object) -> np.ndarray:
    if isinstance(value, bytes):
        return np.array([value], dtype=np.object_)
    return np.asarray(value, dtype=np.int32) if not isinstance(value, np.ndarray) else value


def input_tensor(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


class MetricFamily:
    GAUGE = "gauge"

    def __init__(self, name: str, description: str, kind: str):
        assert (kind, bool(name), bool(description)) == (self.GAUGE, True, True)

    def Metric(self, labels: dict[str, str]) -> SimpleNamespace:
        values: list[float] = []
        return SimpleNamespace(labels=labels, values=values, set=values.append)


def stand_in() -> ModuleType:
    module = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, InferenceResponse, TritonError
    module.MetricFamily = MetricFamily
    module.get_input_tensor_by_name = input_tensor
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.warnings, module.errors = [], []
    module.Logger = SimpleNamespace(log_warn=module.warnings.append, log_error=module.errors.append)
    module.started = []  # model instances, to be ended with the stand-in
    return module


@contextmanager
def standing_in() -> Iterator[ModuleType]:
    """The stand-in, in the place of Triton's module; import paths and modules are as before afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        module = stand_in()
        patch.setitem(sys.modules, "triton_python_backend_utils", module)
        patch.setattr(sys, "path", [*sys.path])
        try:
            yield module
        finally:
            for instance in module.started:
                instance.finalize()
            for name in OWN_MODULES - {"transformer", "token_bytes", "batching"}:  # these import nothing of Triton's
                sys.modules.pop(name, None)


def load(model: str, version: int) -> ModuleType:
    path = MODEL_REPOSITORY / model / str(version) / "model.py"
    spec = importlib.util.spec_from_file_location(f"{model}_{version}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def initialised(module: ModuleType, model: str, kind: str = "CPU", **changed: object):
    """An instance as Triton initialises it; `changed` are parameters of its config."""
    values = {key: parameter.string_value for key, parameter in read_config(model).parameters.items()} | changed
    parameters = {key: {"string_value": str(value)} for key, value in values.items()}
    instance = module.TritonPythonModel()
    instance.initialize(
        {
            "model_name": model,
            "model_version": "1",
            "model_instance_name": f"{model}_0",
            "model_repository": str(MODEL_REPOSITORY / model),
            "model_config": json.dumps({"parameters": parameters}),
            "model_instance_kind": kind,
            "model_instance_device_id": "0",
        }
    )
    if hasattr(instance, "finalize"):
        sys.modules["triton_python_backend_utils"].started.append(instance)
    return instance


def serve(instance, *requests: Request) -> list[list[dict]]:
    """Hand requests to a decoupled model together, and wait until all of them have ended."""
    instance.execute(requests)
    for request in requests:
        assert request.sender.closed.wait(PATIENCE), "a stream was not closed"
    assert [request.sender.finals for request in requests] == [1] * len(requests)
    return [[response.outputs for response in request.sender.responses] for request in requests]


def errors(sent: list[dict]) -> list[str]:
    return [outputs["ERROR"][0].decode() for outputs in sent]


def ids_of(sent: list[dict]) -> list[list[int]]:
    return [outputs["TOKEN_IDS"].tolist() for outputs in sent]
