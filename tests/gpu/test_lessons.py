"""The lessons on a machine with a GPU: run again, their outputs are those that were stored without one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_servers import ROOT

LESSONS = sorted(path.relative_to(ROOT) for path in (ROOT / "notebooks").glob("0[09]_*.ipynb"))
OPTIONS = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=120"]  # as in the Makefile
OPTIONS += ["--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "-p", "no:cacheprovider", "--timeout", "280"]


@pytest.mark.parametrize("lesson", LESSONS, ids=[path.stem for path in LESSONS])
def test_stored_outputs_hold(lesson: Path, tmp_path: Path):
    assert importlib.util.find_spec("matplotlib"), "the lessons need matplotlib; this Python has none"
    environment = {
        **os.environ,
        "LAB_BOOK": str(tmp_path / "lab_book.sqlite3"),
        "MPLCONFIGDIR": str(tmp_path),
        "IPYTHONDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", *OPTIONS, str(lesson)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
