"""What needs an NVIDIA GPU, with torch for the Python node: the servers, and the file with what was measured.

`pytest tests` does not come here; `make test-gpu` does. Where there is no GPU, nothing is run and the exit status is
`NOTHING_TO_TEST`: neither "passed" nor "a test failed".
"""

import importlib.util
import json
import platform
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pynvml
import pytest
from gpu_servers import CPP_MODELS, ROOT, RUNGS, backend_folder, server_on_gpu

from lab_utils.backends import on_device
from lab_utils.device import first_device
from lab_utils.gpu_memory import open_card
from lab_utils.launch import CUDA_POOL_BYTES
from lab_utils.server import MODEL_REPOSITORY, TritonServer

NOTHING_TO_TEST = 77  # as GNU's test programs say "skipped"; pytest's own statuses end at 5
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
MEASURED = pytest.StashKey[dict]()
FAILED: list[str] = []  # the hook that learns of them is told no config


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Where there is nothing to test, say so in one line instead of running."""
    reason = why_not()
    if reason is None:
        config.stash[MEASURED] = {}
        return None  # pytest goes on
    print(f"{reason}: nothing to test here; the tests in tests/gpu were not run")
    return NOTHING_TO_TEST


def why_not() -> str | None:
    """What is missing on this machine, or None where these tests can run."""
    if first_device().kind != "GPU":
        return "no NVIDIA GPU"
    if importlib.util.find_spec("torch") is None:
        return "an NVIDIA GPU, but no torch in this Python environment"
    import torch  # only where there is a GPU: it is slow to import

    return None if torch.cuda.is_available() else f"an NVIDIA GPU, but torch {torch.__version__} cannot use it"


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _own_servers() -> Iterator[None]:
    """Never a server that somebody's shell names."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRITON_GRPC_URL", "TRITON_SOURCE", "TRITONSERVER_HOME"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The Python node with all rungs, on the CPU: what everything else is compared with."""
    models = on_device(MODEL_REPOSITORY, tmp_path_factory.mktemp("cpu") / "models", "CPU", ["inference"])
    with server_on_gpu([f"ensemble_{rung}" for rung in RUNGS], repository=models) as server:
        yield server


@pytest.fixture(scope="session")
def python_node() -> Iterator[TritonServer]:
    """The Python node as it is shipped: its KIND_AUTO means the GPU here."""
    with server_on_gpu([f"ensemble_{rung}" for rung in RUNGS]) as server:
        yield server


@pytest.fixture(scope="session")
def cpp_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the C++ node, with its models on the GPU."""
    nodes = [f"token_stream_{rung}" for rung in RUNGS]
    return on_device(CPP_MODELS, tmp_path_factory.mktemp("gpu") / "models", "GPU", nodes)


@pytest.fixture(scope="session")
def cpp_node(cpp_models: Path) -> Iterator[TritonServer]:
    """The C++ node with all rungs, on the GPU."""
    ensembles = [f"ensemble_cpp_{rung}" for rung in RUNGS]
    repositories = [MODEL_REPOSITORY, cpp_models]
    with server_on_gpu(ensembles, repository=repositories, backends=backend_folder()) as server:
        yield server


# --- what was measured ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> dict:
    """What this run has measured so far; a test adds its figures under a name of its own."""
    return pytestconfig.stash[MEASURED]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember which tests failed: figures of a run that failed must not pass for good ones."""
    if report.failed:
        FAILED.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write down what was measured, on what, and what failed; nothing where nothing was measured."""
    figures = session.config.stash.get(MEASURED, {})
    if figures:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        content = {**machine(), "failed": FAILED, "measured": figures}
        RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nwritten: {RESULTS.relative_to(ROOT)}")


def machine() -> dict:
    """On what it was measured."""
    import numpy
    import torch

    with open_card():
        driver, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "gpu": str(first_device()),
        "driver": f"{driver}, CUDA {cuda // 1000}.{cuda % 1000 // 10}",
        "processors": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cuda_pool_bytes": CUDA_POOL_BYTES,
    }
