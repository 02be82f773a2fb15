"""What the tests of the two C++ nodes share: a server with both repositories, and calls of a node alone."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lab_utils import custom_backend
from lab_utils.client import Window, iter_outputs
from lab_utils.in_flight import in_flight_at_stop
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server

RUNGS = ("append", "release", "replace", "latest")
VERSIONS = {rung: version for version, rung in enumerate(RUNGS, 1)}  # of the Python node
OUTPUTS = {"TOKEN_IDS", "INDEX", "STREAM_ID", "END", "CHECKSUM", "HEAP", "ERROR"}
VOCABULARY = 151_643
PATIENCE = 30.0  # a deadline, not a delay

Answers = list[dict[str, np.ndarray]]


def start_both(models: Sequence[str], **options: object) -> TritonServer:
    """A server that finds the models of both repositories, with the backends as the sources have them now."""
    repositories = [MODEL_REPOSITORY, custom_backend.REPOSITORY]
    return start_server(models, **{"repository": repositories, "backends": custom_backend.build().folder, **options})


def copied_repositories(folder: Path, **parameters: int) -> list[Path]:
    """Both repositories in another folder, some model parameters changed in all models that have them."""
    copies = []
    for original in (MODEL_REPOSITORY, custom_backend.REPOSITORY):
        copy = folder / original.relative_to(MODEL_REPOSITORY.parent)  # the links between the two stay right
        shutil.copytree(original, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        copies.append(copy)
    for path in (path for copy in copies for path in copy.glob("*/config.pbtxt")):
        text = path.read_text(encoding="utf-8")
        for name, value in parameters.items():
            text = re.sub(rf'(key: "{name}" value {{ string_value: ")\d+', rf"\g<1>{value}", text)
        path.write_text(text, encoding="utf-8")
    return copies


def tensors(
    forced: Sequence[int] | None = None, prompt: Sequence[int] = (1,), max_tokens: int | None = None
) -> dict[str, np.ndarray]:
    """Inputs of the inference node: to stream given ids, all of them, or to continue a prompt."""
    count = len(forced or ()) if max_tokens is None else max_tokens
    given = {"PROMPT_IDS": prompt, "MAX_TOKENS": [count]} | ({} if forced is None else {"FORCED_IDS": forced})
    return {name: np.array(values, dtype=np.int32) for name, values in given.items()}


def begin(server: TritonServer, rung: str, inputs: Mapping[str, np.ndarray], **parameters: object) -> Iterator[dict]:
    """Call the C++ node alone; the responses, as they come. Closing it cancels the request."""
    return iter_outputs(server, f"token_stream_{rung}", inputs, parameters=parameters)


def call(server: TritonServer, rung: str, inputs: Mapping[str, np.ndarray], **parameters: object) -> Answers:
    """Call the C++ node alone; all responses."""
    return list(begin(server, rung, inputs, **parameters))


def call_python(server: TritonServer, rung: str, inputs: Mapping[str, np.ndarray], **parameters: object) -> Answers:
    """Call the same rung of the Python node alone; all responses."""
    return list(iter_outputs(server, "inference", inputs, version=VERSIONS[rung], parameters=parameters))


def one(answer: Mapping[str, np.ndarray], name: str) -> object:
    """The value of an output that has one element; text as str."""
    (value,) = answer[name].tolist()
    return value.decode("utf-8") if isinstance(value, bytes) else value


def ids_of(answers: Answers) -> list[list[int]]:
    """The ids of each message."""
    return [answer["TOKEN_IDS"].tolist() for answer in answers]


def error_of(answers: Answers) -> str:
    """What the last response says went wrong; empty where nothing did."""
    return one(answers[-1], "ERROR")


def comparable(answers: Answers) -> list[dict[str, list]]:
    """All that two nodes must agree in: everything but the stream id, which is each stream's own."""
    return [{name: answer[name].tolist() for name in answer if name != "STREAM_ID"} for answer in answers]


def cpp_window(rung: str, messages: int = 1) -> Window:
    """A client's window on a C++ node."""
    return Window(messages, node=f"token_stream_{rung}", version=1)


def until(look: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until something has come about; it is an error where it does not in time."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@contextmanager
def stopping_cleanly(server: TritonServer) -> Iterator[TritonServer]:
    """The server, which must stop by itself at the end of the block, with nothing in flight; it is stopped anyway."""
    try:
        yield server
        assert stops_cleanly(server)
    finally:
        server.stop()


def stops_cleanly(server: TritonServer) -> bool:
    """Stop a server; whether it ended by itself, with nothing left that it had to wait for."""
    supervisor = server._supervisor
    with open(server.log_path, encoding="utf-8", errors="replace") as log:  # what is open outlives its name
        left = in_flight_at_stop(server)
        return left == {} and supervisor.returncode == 0 and "Exit timeout expired" not in log.read()
