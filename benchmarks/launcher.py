"""From starting a server to its being ready: the lab's launcher, and the same binary started by hand.

By hand means: the same tritonserver, repository, models and the flags that matter for speed, as a careful person would
type them; no supervisor, no key, no names for the shared memory; its readiness is asked for as often as the launcher
looks. A third case leaves the flags out that make a start fast. The server's log says when it began and when it opened
its port, which splits every start into three parts.
"""

import contextlib
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from side_by_side import Row, Spread, in_turns, main, ratios, spreads

from lab_utils.launch import THREADS, Ports, reserved_ports
from lab_utils.server import MODEL_REPOSITORY, POLL_SECONDS, START_SECONDS, start_server
from lab_utils.sources import Source, find_source

ROUNDS = 5
MODELS = ["ensemble_latest"]
LAUNCHER, BARE, DEFAULT = "launcher", "bare binary", "bare binary, default flags"
PARTS = ("before the server's first word", "the server itself", "until ready is seen")
FAST = [
    "--disable-auto-complete-config",
    "--metrics-interval-ms=100",
    "--http-thread-count=2",
    f"--model-load-thread-count={THREADS}",
    f"--backend-config=python,thread-pool-size={THREADS}",
    "--pinned-memory-pool-byte-size=0",
    "--exit-timeout-secs=5",
]
STAMP = re.compile(r"^[IWE]\d{4} (\d\d):(\d\d):(\d\d\.\d+) ", re.MULTILINE)
QUARTER = 900  # seconds: all time zones differ by whole quarters of an hour


@dataclass(frozen=True)
class Start:
    """Seconds from the start to ready, those of its three parts, and seconds from asking it to stop to its end."""

    ready: float
    parts: tuple[float, float, float]
    stop: float


def parts_of(log: str, began: float, ready: float) -> tuple[float, float, float]:
    """Split a start by the times in the server's log: its first line, and the one that says that HTTP is served."""
    first = _since(began, STAMP.search(log))
    serving = _since(began, STAMP.match(log, log.rindex("\n", 0, log.index('"Started HTTPService')) + 1))
    return first, serving - first, ready - began - serving


def _since(began: float, stamp: re.Match) -> float:
    hours, minutes, seconds = map(float, stamp.groups())
    return (hours * 3600 + minutes * 60 + seconds - began + QUARTER / 2) % QUARTER - QUARTER / 2


def launched() -> Start:
    """One start with the lab's launcher, as the lessons make it."""
    began = time.time()
    server = start_server(MODELS, local=True)
    ready = time.time()
    parts, served = parts_of(server.log, began, ready), set(server.models)
    assert served >= set(MODELS), f"asked for {MODELS}, got {served}"
    server.stop()
    return Start(ready - began, parts, time.time() - ready)


def by_hand(source: Source, where: tuple[str, str], flags: Sequence[str]) -> Start:
    """One start of the bare binary; ready when it says so over HTTP."""
    with reserved_ports() as ports, tempfile.TemporaryFile("w+") as log:
        command = [source.binary, *typed_flags(ports, *where), *flags]
        environment = {**os.environ, **source.environment, "OMP_NUM_THREADS": "1"}
        began = time.time()
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            _wait_until_ready(server, ports.http)
            ready = time.time()
            log.seek(0)
            parts = parts_of(log.read(), began, ready)
        finally:
            stopping = time.time()
            server.terminate()
            server.wait()
        return Start(ready - began, parts, time.time() - stopping)


def typed_flags(ports: Ports, repository: str, backends: str) -> list[str]:
    """What no start can do without: where everything is, the models, and listeners on loopback only."""
    return [
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in MODELS),
        *("--http-address=127.0.0.1", f"--http-port={ports.http}", "--reuse-http-port=true"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={ports.grpc}", "--reuse-grpc-port=true"),
        f"--metrics-port={ports.metrics}",
    ]


def _wait_until_ready(server: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"tritonserver, started by hand, did not become ready (status {server.returncode})")
        time.sleep(POLL_SECONDS)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    return False


@contextlib.contextmanager
def places(source: Source) -> Iterator[tuple[str, str]]:
    """The repository and the backends, with the stub of this Python beside them: made once, before anything is timed.

    The repository is a link to it, since its own path may hold white space, at which the stub's arguments break.
    """
    with tempfile.TemporaryDirectory(prefix="triton-lab-bench-") as folder:
        repository, python = Path(folder, "models"), Path(folder, "backends", "python")
        repository.symlink_to(MODEL_REPOSITORY)
        if not source.stub:
            yield str(repository), source.backends
            return
        python.mkdir(parents=True)
        for file in [*Path(source.backends, "python").iterdir(), Path(source.stub)]:
            (python / file.name).symlink_to(file)
        yield str(repository), str(python.parent)


def summary(found: dict[str, list[Start]]) -> dict[str, object]:
    """Spreads of all that was measured, and the launcher's ratio to the bare binary."""
    ready = {name: [one.ready for one in starts] for name, starts in found.items()}
    return {
        "ready": spreads(ready),
        "stop": spreads({name: [one.stop for one in starts] for name, starts in found.items()}),
        "parts": {name: median_parts(starts) for name, starts in found.items()},
        "times_bare": asdict(ratios(ready, LAUNCHER, BARE)),
    }


def median_parts(starts: Sequence[Start]) -> list[float]:
    """The median of each of the three parts."""
    return [statistics.median(part) for part in zip(*(one.parts for one in starts), strict=True)]


def measure() -> dict:
    """The launcher, the bare binary, and the same with its default flags, in turns."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # not before the servers have ended
    source = find_source()
    with places(source) as where:
        cases = {LAUNCHER: launched, BARE: partial(by_hand, source, where, FAST)}
        cases[DEFAULT] = partial(by_hand, source, where, ())
        return {"source": source.kind, "rounds": ROUNDS, **summary(in_turns(cases, ROUNDS))}


def rows(results: dict) -> list[Row]:
    """The launcher against the bare binary."""
    mine, bare = (results["ready"][case]["median"] for case in (LAUNCHER, BARE))
    against = "the bare binary on the same repository, by hand"
    measured, times = f"{mine:.2f} s, bare binary {bare:.2f} s", Spread(**results["times_bare"])
    return [Row("launcher: start to ready", against, "at most 1.1 times", measured, times, 1.1)]


def remarks(results: dict) -> str:
    """Where the time goes, how long stopping takes, and what the default flags cost."""
    mine, bare = results["parts"][LAUNCHER], results["parts"][BARE]
    parts = [f"{part} {a * 1e3:.0f} and {b * 1e3:.0f} ms" for part, a, b in zip(PARTS, mine, bare, strict=True)]
    stop = [results["stop"][case]["median"] for case in (LAUNCHER, BARE)]
    return (
        f"- Launcher and bare binary, medians of each part: {'; '.join(parts)}. Stopping takes {stop[0]:.1f} and "
        f"{stop[1]:.1f} s.\n"
        f"- The bare binary with its default flags: {results['ready'][DEFAULT]['median']:.2f} s."
    )


if __name__ == "__main__":
    main(__file__)
