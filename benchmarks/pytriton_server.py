"""Serve the tiny model's tokens with PyTriton's own API, as its users do: what `throughput` and `first_token` compare.

`start_pytriton` runs this file as a process of its own. It serves until its standard input ends, and leaves nothing.
Every response holds one id (INT32). Three models say where the ids come from:

    given       they come with the request; nothing is decoded
    decoded     a generator for each request decodes them
    batched     PyTriton's dynamic batcher collects requests, and one generator decodes for all of them together
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from lab_utils.sources import stub_environment

MODELS = Path(__file__).parents[1] / "model_repository"
GIVEN, DECODED, BATCHED = "given", "decoded", "batched"
BATCH = 16
GATHER_MICROSECONDS = 20_000  # how long the batcher waits for a full batch, once for all tokens of its requests
END = -1  # what a row of a batch gets when its own text is at its end, and others of the batch are not


@dataclass(frozen=True)
class PyTriton:
    """A running server: where it listens, and its processes, each with a name."""

    grpc_url: str
    processes: dict[psutil.Process, str]


@contextlib.contextmanager
def start_pytriton(**variables: str) -> Iterator[PyTriton]:
    """Start a server with the three models, in a process of its own; it is ready, and ends with the block."""
    with tempfile.TemporaryFile("w+") as log:
        child, url = _launch(log, environment(**variables))
        process = psutil.Process(child.pid)
        try:
            children = {one: one.name() for one in process.children(recursive=True)}
            yield PyTriton(url, {process: "pytriton", **children})
        finally:
            child.communicate()


def environment(**variables: str) -> dict[str, str]:
    """As the lab has it for its own server: the stub's library is found, and NumPy computes in one thread."""
    return {"OMP_NUM_THREADS": "1", **os.environ, **stub_environment(), **variables}


def _launch(log: IO[str], variables: dict[str, str]) -> tuple[subprocess.Popen, str]:
    """The process of the server, which ends when its standard input does, and the URL at which it is ready."""
    reads, writes = os.pipe()
    command = [sys.executable, __file__, str(writes)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[writes], env=variables)
    os.close(writes)
    with os.fdopen(reads) as ready:
        url = ready.readline()
    if not url:
        child.communicate()
        log.seek(0)
        raise RuntimeError(f"PyTriton did not start:\n{log.read()[-2000:]}")
    return child, url


def infer_given(requests):
    """The ids of the request, one by one."""
    for token in requests[0]["FORCED_IDS"]:
        yield [{"TOKEN_ID": token.reshape(1)}]


def infer_decoded(transformer):
    """The inference callable that decodes for one request."""
    import numpy as np

    def infer(requests):
        for token in transformer.generate(requests[0]["PROMPT_IDS"], int(requests[0]["MAX_TOKENS"][0])):
            yield [{"TOKEN_ID": np.array([token], dtype=np.int32)}]

    return infer


def infer_batched(transformer):
    """The inference callable that decodes for a batch of requests together."""
    import numpy as np
    from batching import Batch

    def infer(requests):
        batch = Batch(transformer, BATCH)
        sequences = [batch.join(one["PROMPT_IDS"][0], int(one["MAX_TOKENS"][0, 0])) for one in requests]
        while batch.sequences:
            made = dict.fromkeys(sequences, END)
            while any(made[one] == END for one in batch.sequences):  # prompts may be read in turns
                waiting = [one for one in batch.sequences if made[one] == END]
                made.update({one: token for one, token in batch.iterate(waiting) if token is not None})
            if any(token != END for token in made.values()):
                yield [{"TOKEN_ID": np.array([[made[one]]], dtype=np.int32)} for one in sequences]

    return infer


def bind(triton, models: Sequence[str]) -> None:
    """Bind some of the three models."""
    import numpy as np
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor

    sys.path.append(str(MODELS / "inference"))
    from transformer import Transformer

    transformer = Transformer.load(MODELS / "inference" / "recipes.safetensors")
    number = Tensor(name="MAX_TOKENS", dtype=np.int32, shape=(1,))
    ids = [Tensor(name=name, dtype=np.int32, shape=(-1,)) for name in ("PROMPT_IDS", "FORCED_IDS")]
    single = ModelConfig(batching=False, decoupled=True)
    batcher = DynamicBatcher(max_queue_delay_microseconds=GATHER_MICROSECONDS)
    together = ModelConfig(max_batch_size=BATCH, batcher=batcher, decoupled=True)
    known = {
        GIVEN: (infer_given, ids[1:], single),
        DECODED: (infer_decoded(transformer), [ids[0], number], single),
        BATCHED: (infer_batched(transformer), [ids[0], number], together),
    }
    for model in models:
        infer, inputs, config = known[model]
        triton.bind(model, infer, inputs, [Tensor(name="TOKEN_ID", dtype=np.int32, shape=(1,))], config=config)


@contextlib.contextmanager
def serving(models: Sequence[str]) -> Iterator[str]:
    """Serve these models on loopback, in this process; the URL at which they are ready."""
    from pytriton.triton import Triton, TritonConfig

    http, grpc, metrics = free_ports(3)
    addresses = dict.fromkeys(("http_address", "grpc_address", "metrics_address"), "127.0.0.1")
    config = TritonConfig(http_port=http, grpc_port=grpc, metrics_port=metrics, **addresses)
    with tempfile.TemporaryDirectory() as folder, Triton(config=config, workspace=Path(folder, "workspace")) as triton:
        bind(triton, models)
        yield f"127.0.0.1:{grpc}"


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def main() -> None:
    """Serve all models, write the URL into the file descriptor given, and end with standard input."""
    with serving([GIVEN, DECODED, BATCHED]) as url:
        with os.fdopen(int(sys.argv[1]), "w") as ready:
            ready.write(url)
        sys.stdin.read()


if __name__ == "__main__":
    main()
