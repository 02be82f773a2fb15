"""The lessons against a server of somebody else: those that say Yes run there, the others refuse at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from leftovers import RUN_MARK, marked_processes, shm_files, until_none
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from remote_team import Remote, remote_server

from lab_utils.client import stream
from lab_utils.errors import ServerError
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import TritonServer, start_server

ROOT = Path(__file__).parents[2]
LESSONS = sorted(ROOT.glob("notebooks/*.ipynb"))
REFUSED = "is run by somebody else: the lab cannot"
WAY_OUT = 'del os.environ["TRITON_GRPC_URL"]'


def says(path: Path) -> str:
    """What the lesson's opening says about a remote server: Yes or No."""
    first = nbformat.read(path, as_version=4).cells[0].source
    return re.search(r"^\*\*Remote server\.\*\* (Yes|No)\b", first, flags=re.M)[1]


REMOTE = [path for path in LESSONS if says(path) == "Yes"]
LOCAL = [path for path in LESSONS if says(path) == "No"]


@pytest.fixture(scope="module")
def run_mark() -> str:
    """A value that the processes of these lessons carry in their environment."""
    return f"remote-{os.getpid()}"


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    with remote_server(tmp_path_factory.mktemp("remote")) as remote:
        yield remote
    assert remote.process.returncode == 0, "requests were still in flight when the server was told to stop"
    assert shm_files(remote.shm_prefix) == []


@pytest.fixture
def learner(remote: Remote, run_mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a learner who was given the address; returns the folder that holds all that the lab writes."""
    for name in ("TRITON_SOURCE", "TRITONSERVER_HOME", "PYTEST_ADDOPTS", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    own = {
        "LAB_BOOK": str(tmp_path / "lab_book.sqlite3"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        RUN_MARK: run_mark,
    }
    for name, value in {**own, **remote.environment}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def untouched(remote: Remote, learner: Path, run_mark: str):
    """After the test the remote server is the same and answers, and the lab has started none and left nothing."""
    before = psutil.Process(remote.process.pid).create_time()
    yield
    assert psutil.Process(remote.process.pid).create_time() == before
    assert remote.process.poll() is None
    until_none(lambda: marked_processes(RUN_MARK, run_mark), "the lessons")
    assert list(learner.glob("state/triton-ensemble-lab/servers/*")) == []


def attached() -> TritonServer:
    server = start_server(["ensemble_append"])
    assert server.attached
    return server


def in_a_copy(lesson: Path, folder: Path) -> Path:
    """A copy whose stored outputs are those of a remote server: the lab's `stop` leaves it running."""
    copy = folder / lesson.name
    copy.write_text(lesson.read_text(encoding="utf-8").replace("running: False", "running: True"), encoding="utf-8")
    return copy


def test_the_lessons_that_run_remotely():
    assert [path.stem[:2] for path in REMOTE] == ["00", "01", "02", "05", "la"]
    assert [path.stem[:2] for path in LOCAL] == ["03", "04", "06", "07", "08", "09", "10"]


@pytest.mark.usefixtures("untouched")
def test_the_lessons_give_their_stored_outputs_on_a_remote_server(learner, tmp_path):
    """Also on one whose version 1 still holds what others said."""
    assert len(stream(attached(), "ensemble_append", REPORTED_PROMPT, max_tokens=8).ids[-1]) >= 128
    copies = [in_a_copy(path, tmp_path) for path in REMOTE]
    sanitize = f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"
    nbval = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=120", sanitize]
    quiet = ["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    command = [sys.executable, "-m", "pytest", *quiet, *nbval, *copies]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    cells = [cell for path in REMOTE for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert f"{len(cells)} passed" in done.stdout
    assert attached().running


@pytest.mark.parametrize("lesson", LOCAL, ids=lambda path: path.stem)
@pytest.mark.usefixtures("untouched")
def test_the_other_lessons_say_so_at_their_first_step(lesson):
    served = attached().models
    notebook = nbformat.read(lesson, as_version=4)
    where = {"metadata": {"path": lesson.parent}}
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where)
    with pytest.raises(CellExecutionError, match=REFUSED) as refused:
        client.execute()
    assert WAY_OUT in str(refused.value)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (failed,) = [cell for cell in code if any(output.output_type == "error" for output in cell.outputs)]
    first = next(cell for cell in code if re.search(r"start_server\(|open_case\(", cell.source))
    assert failed.id == first.id
    assert attached().models == served


@pytest.mark.usefixtures("untouched")
def test_the_way_out_that_the_refusal_names():
    with pytest.raises(ServerError, match=REFUSED) as refused:
        start_server(["postprocess"], local=True)
    (statements,) = re.findall(r"`(.*?)`", str(refused.value))
    exec(statements)
    assert "TRITON_GRPC_URL" not in os.environ
    with start_server(["postprocess"], local=True) as server:
        assert not server.attached
