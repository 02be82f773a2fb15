"""What happens on a small disk, each in a process of its own: ``python scenarios.py NAME FOLDER``; prints JSON.

Each function returns what was said, by the name of the fault, after it has shown that the same work goes well once
there is room again.
"""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nbformat import v4

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "server")]

from leftovers import assert_gone, launch_of  # noqa: E402

from lab_utils import __main__ as command_line  # noqa: E402
from lab_utils import custom_backend, labbook, launch, workspace  # noqa: E402
from lab_utils.client import StreamError, stream  # noqa: E402
from lab_utils.errors import ServerStartError  # noqa: E402
from lab_utils.field_report import REPORTED_PROMPT  # noqa: E402
from lab_utils.server import start_server  # noqa: E402

RIGHT = [1, 2, 4, 8, 16, 32, 64, 128]
SOUND = '{ name: "A" data_type: TYPE_INT32 dims: [ 1 ] }'


@contextlib.contextmanager
def full(folder: Path, but: int = 0) -> Iterator[None]:
    """No byte is free in the folder but for `but`; at the end there is room again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - but)
    yield
    filler.unlink()


def run_all() -> None:
    """A fresh server and the field's prompt, to the last message; nothing is left of it."""
    with start_server(["ensemble_append"]) as server:
        assert stream(server, "ensemble_append", REPORTED_PROMPT).lengths == RIGHT
    assert_gone(launch_of(server))


def state(folder: Path) -> dict[str, str]:
    """The folder of the servers' logs is full, at first before and then after the start."""
    launch.STATE = folder / "triton-ensemble-lab"
    with full(folder), pytest.raises(ServerStartError) as refused:
        start_server(["ensemble_append"])
    assert list((launch.STATE / "servers").iterdir()) == []
    with start_server(["ensemble_append"]) as server:
        with full(folder):
            assert stream(server, "ensemble_append", REPORTED_PROMPT).lengths == RIGHT
            server.reload("inference")
            server.check()
        assert stream(server, "ensemble_append", REPORTED_PROMPT).lengths == RIGHT
    assert_gone(launch_of(server))
    return {"state full": str(refused.value), "state full later": ""}


def shared_memory(folder: Path) -> dict[str, str]:
    """/dev/shm is full, at first before the start and then in the middle of a stream."""
    with full(folder), pytest.raises(ServerStartError) as refused:
        start_server(["postprocess"])
    with start_server(["ensemble_append"]) as server:
        request = server, "ensemble_append", REPORTED_PROMPT, 22
        with pytest.raises(StreamError) as broken:
            stream(*request, dims_only=True, max_message_ids=2**21)
        assert broken.value.result.lengths == [2**n for n in range(len(broken.value.result.lengths))]
        server.check()
    assert_gone(launch_of(server))
    run_all()
    return {"shm full": str(refused.value), "shm full later": str(broken.value)}


def written(folder: Path) -> dict[str, str]:
    """Whatever a learner's commands write: lab book, figure, report, lessons."""
    said = {}
    (folder / "models" / "one").mkdir(parents=True)
    (folder / "models" / "one" / "config.pbtxt").write_text(
        f'backend: "python" max_batch_size: 0 input [ {SOUND} ] output [ {SOUND.replace("A", "B")} ]'
    )
    room = workspace.Room(folder / "lessons", folder / "workspace")
    _lesson(room, "00_start_here.ipynb", "first")
    workspace.ROOM = room
    workspace.open_lab = lambda room, _: print("\n".join(workspace.update(room)))
    assert _said(workspace.main, ["lab"]) == (0, "00_start_here.ipynb: copied\n", "")
    own = (room.own / "00_start_here.ipynb").read_bytes()
    for number in range(1, 9):
        _lesson(room, f"{number:02}_more.ipynb", "x" * 400_000)
    book = labbook.open_book(folder / "book.sqlite3")
    _record(book, [1])
    with full(folder, 300_000):
        status, _, said["workspace full"] = _said(workspace.main, ["lab"])
        assert status == 1
    with full(folder):
        status, _, said["reset full"] = _said(workspace.main, ["reset", "00"])
        assert status == 1
        said["book full"] = _record(book, [1] * 10_000)
        report = ["labbook", "export", "--out", str(folder / "report")]
        status, _, said["report full"] = _said(command_line.main, report)
        assert status == 2
        trace = _trace(folder.parent / "trace.json")
        figure = ["trace", str(trace), "--figure", str(folder / "figure.png")]
        status, _, said["figure full"] = _said(command_line.main, figure)
        assert status == 2
    assert (room.own / "00_start_here.ipynb").read_bytes() == own
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".new") or path.name == "figure.png"]
    assert left == []
    for number in range(4, 9):
        (room.tracked / f"{number:02}_more.ipynb").unlink()
    for command, arguments in (
        (workspace.main, ["lab"]),
        (workspace.main, ["reset", "00"]),
        (command_line.main, report),
        (command_line.main, figure),
    ):
        assert _said(command, arguments)[0] == 0, arguments
    assert _record(book, [1] * 10_000) == ""
    recorded = [one.find("measured") for one in book.experiments()]
    assert [series.sizes for series in recorded if series] == [[1], [1] * 10_000]
    return said


def build(folder: Path) -> dict[str, str]:
    """The folder of the build is full."""
    custom_backend.default_folder = lambda: folder / "build"
    with full(folder), pytest.raises(custom_backend.BuildError) as refused:
        custom_backend.make("backends/token_text/libtriton_token_text.so")
    return {"build full": str(refused.value)}


def _lesson(room: workspace.Room, name: str, text: str) -> None:
    room.tracked.mkdir(exist_ok=True)
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(text, id="a")])
    (room.tracked / name).write_text(json.dumps(notebook))


def _record(book: labbook.Book, sizes: list[int]) -> str:
    """Record an experiment, which goes on whatever happens; what is said on standard error."""
    labbook._warn_once.cache_clear()
    with contextlib.redirect_stderr(io.StringIO()) as error, book.experiment("00", "on a small disk") as entry:
        entry.series("measured", sizes)
    return error.getvalue()


def _said(command: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        return command(arguments), output.getvalue(), error.getvalue()


def _trace(path: Path) -> Path:
    """A trace of one request that has a figure."""
    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    from trace_writer import decoupled_request, save

    return save(path, decoupled_request(1, [1, 2, 4]))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
