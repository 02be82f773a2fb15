"""The learner's own copy of the lessons: ``python -m lab_utils.workspace {lab,reset}``.

The tracked lessons in ``notebooks/`` never change by being used. Learners work on copies in ``workspace/``, which git
ignores. A copy whose cells were not edited follows the tracked lesson; one that was edited is never overwritten.
``LAB_WORKSPACE=FOLDER`` in the environment puts the copies elsewhere.
``LAB_LANGUAGE=zh`` in the environment chooses the lessons in ``notebooks/zh``; their copies live in ``workspace/zh``.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lab_utils import arguments
from lab_utils.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
START = "00_start_here.ipynb"
STATE = ".lessons.json"
BACKUP = ".backup"
NEWS = "@jupyterlab/apputils-extension:notification"
USAGE = "usage: python -m lab_utils.workspace lab [JUPYTER OPTIONS] | reset LESSON"


class LessonError(Exception):
    """A lesson cannot be copied or brought back; the text says why and what to do."""


@dataclass(frozen=True)
class Room:
    """Where the lessons are.

    Attributes
    ----------
    tracked : pathlib.Path
        The project's lessons; only read.
    own : pathlib.Path
        The learner's copies.
    language : str
        What `LAB_LANGUAGE` says; empty for the English lessons.
    """

    tracked: Path
    own: Path
    language: str = ""

    @property
    def switch(self) -> str:
        """What a `make` command needs at its end to mean this room."""
        return f" LAB_LANGUAGE={self.language}" if self.language else ""

    def translated(self, language: str) -> "Room":
        """Return the room of a language's lessons, a folder deeper; this room for an empty language.

        Raises
        ------
        LessonError
            When there are no lessons in this language; the text lists the languages.
        """
        known = sorted(path.parent.name for path in self.tracked.glob(f"*/{START}"))
        if language not in ("", *known):
            listed = ", ".join(known) or "none"
            raise LessonError(f"LAB_LANGUAGE={language}: no such lessons; leave it out for English, or use: {listed}")
        return Room(self.tracked / language, self.own / language, language)

    def lessons(self) -> list[str]:
        """Return the file names of the tracked lessons and of the pages they link to (*.md), in order.

        Raises
        ------
        LessonError
            When there are none.
        """
        names = sorted(path.name for path in self.tracked.glob("*.ipynb"))
        if not names:
            raise LessonError(f"no lessons in {self.tracked}; expected *.ipynb files: is this a whole checkout?")
        return names + sorted(path.name for path in self.tracked.glob("*.md"))


def chosen_room(environment: Mapping[str, str]) -> Room:
    """Return the project's room; `LAB_WORKSPACE` in the environment names another folder for the copies."""
    return Room(ROOT / "notebooks", Path(environment.get("LAB_WORKSPACE") or ROOT / "workspace").absolute())


ROOM = chosen_room(os.environ)


# Notebooks -------------------------------------------------------------------------------------------------------


def edit_hash(name: str, text: str) -> str | None:
    """Return the hash of what a learner edits: kind, source and attachments of each cell, or a page's whole text.

    Outputs, counts and metadata change by running alone and are left out, and so are empty cells: JupyterLab adds
    one after the last cell. None when `name` says notebook and the text is none.
    """
    if not name.endswith(".ipynb"):
        return _hash(text)
    import nbformat  # only where a notebook is read: it takes longer to import than all the rest of the lab

    try:
        cells = nbformat.reads(text, as_version=4).cells
    except Exception:  # nbformat raises half a dozen unrelated types on a broken file
        return None
    edited = [[cell.cell_type, cell.source, cell.get("attachments")] for cell in cells if cell.source.strip()]
    return _hash(json.dumps(edited, sort_keys=True))


def stripped(name: str, text: str) -> str:
    """Return a notebook's text without outputs, execution counts and widget state; a page's as it is."""
    if not name.endswith(".ipynb"):
        return text
    import nbformat  # as above

    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nbformat.writes(notebook) + "\n"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Files -----------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it meanwhile sees the old or the new one, whole."""
    write_whole(path, text.encode())


def read_state(room: Room) -> dict[str, dict[str, str]]:
    """Return for each copied lesson the hashes `lesson` and `edits` at the time of the copy."""
    try:
        state = json.loads((room.own / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def back_up(room: Room, name: str) -> Path:
    """Copy the learner's version of a lesson into the backup folder and return the copy's path."""
    stem, now = Path(name).stem, datetime.now()
    backup = room.own / BACKUP / f"{stem}.{now:%Y%m%d-%H%M%S-%f}{Path(name).suffix}"
    write_whole(backup, (room.own / name).read_bytes())
    return backup


# Copying ---------------------------------------------------------------------------------------------------------


def read_lesson(room: Room, name: str) -> str:
    """Return the text of a tracked lesson, stripped.

    Raises
    ------
    LessonError
        When the file is no notebook.
    """
    text = (room.tracked / name).read_text(encoding="utf-8")
    if edit_hash(name, text) is None:
        raise LessonError(f"{room.tracked / name} is no notebook; expected JSON of nbformat 4. See `git status`")
    return stripped(name, text)


def copy_lesson(room: Room, name: str) -> dict[str, str]:
    """Write a tracked lesson, stripped, into the workspace and return its entry for the state."""
    text = read_lesson(room, name)
    write_text(room.own / name, text)
    return {"lesson": _hash(text), "edits": edit_hash(name, text)}


def update(room: Room) -> list[str]:
    """Bring the workspace up to date without touching a lesson that the learner edited.

    Returns
    -------
    list of str
        One line for each lesson that was copied or refreshed, or has a newer version that was not taken.
    """
    state, lines = read_state(room), []
    for name in room.lessons():
        line = _update_lesson(room, name, state)
        lines += [line] if line else []
    write_text(room.own / STATE, json.dumps(state, indent=1) + "\n")
    return lines


def _update_lesson(room: Room, name: str, state: dict[str, dict[str, str]]) -> str:
    own, known = room.own / name, state.get(name, {})
    if not own.exists():
        state[name] = copy_lesson(room, name)
        return f"{name}: copied"
    lesson = read_lesson(room, name)
    if _hash(lesson) == known.get("lesson"):
        return ""
    edits = edit_hash(name, own.read_text(encoding="utf-8", errors="replace"))
    if edits in (known.get("edits", ""), edit_hash(name, lesson)):
        state[name] = copy_lesson(room, name)
        return f"{name}: refreshed, the lesson is newer"
    return f"{name}: yours is kept. A newer lesson exists; `make reset LESSON={_number(name)}{room.switch}` takes it"


def _number(name: str) -> str:
    head = name.partition("_")[0]
    return head if head.isdigit() else Path(name).stem


def find_lesson(lessons: Iterable[str], wanted: str) -> str:
    """Return the file name of a lesson.

    Parameters
    ----------
    lessons : iterable of str
        The file names to choose from.
    wanted : str
        A number such as "02" or "2", or a file name with or without ".ipynb".

    Raises
    ------
    LessonError
        When no lesson or more than one fits; the text lists the lessons.
    """
    names = list(lessons)
    number = wanted.zfill(2) if arguments.text("the lesson", wanted, "02").isdigit() else None
    found = [name for name in names if number == _number(name) or wanted in (name, Path(name).stem)]
    if len(found) != 1:
        listed = "\n".join(f"  {_number(name)}  {name}" for name in names)
        raise LessonError(f"lesson {wanted!r} names {len(found)} lessons, expected one of:\n{listed}")
    return found[0]


def reset(room: Room, wanted: str) -> list[str]:
    """Bring a lesson back to the tracked one; the learner's version goes into the backup folder.

    Returns
    -------
    list of str
        What was done, in lines.

    Raises
    ------
    LessonError
        When there is no such lesson.
    """
    name = find_lesson(room.lessons(), wanted)
    lines = []
    if (room.own / name).exists():
        folder = room.own.parents[bool(room.language)]
        lines.append(f"{name}: yours is kept as {back_up(room, name).relative_to(folder)}")
    state = read_state(room)
    state[name] = copy_lesson(room, name)
    write_text(room.own / STATE, json.dumps(state, indent=1) + "\n")
    return [*lines, f"{name}: reset. If it is open in JupyterLab: File > Reload Notebook from Disk"]


# JupyterLab ------------------------------------------------------------------------------------------------------


def lab_arguments(room: Room, extra: list[str]) -> list[str]:
    """Return the command line that opens JupyterLab on the workspace.

    Loopback only; the token stays as Jupyter makes it. The user's options come last, so that they win.
    """
    arguments = [
        *[sys.executable, "-m", "jupyterlab"],
        f"--ServerApp.root_dir={room.own}",
        f"--LabApp.default_url=/lab/tree/{START}",
        "--ServerApp.ip=127.0.0.1",
    ]
    return [*arguments, *(["--allow-root"] if os.geteuid() == 0 else []), *extra]


def lab_environment(room: Room, environment: dict[str, str]) -> dict[str, str]:
    """Return the environment for JupyterLab: its own kernel and tools first, no question about news.

    The question is turned off by an additional folder on Jupyter's config path; the user's settings stay as they are
    and win. MPLBACKEND would keep figures out of the notebooks.
    """
    config = room.own / ".jupyter"
    overrides = {NEWS: {"fetchNews": "false", "checkForUpdates": False}}
    write_text(config / "labconfig/default_setting_overrides.json", json.dumps(overrides, indent=1) + "\n")
    paths = {"JUPYTER_CONFIG_PATH": str(config), "PATH": str(Path(sys.executable).parent)}
    joined = {name: os.pathsep.join(filter(None, [path, environment.get(name)])) for name, path in paths.items()}
    kept = {name: value for name, value in environment.items() if name != "MPLBACKEND"}
    return {**kept, **joined, "JUPYTER_PREFER_ENV_PATH": "1"}


def open_lab(room: Room, extra: list[str]) -> None:
    """Bring the workspace up to date and turn this process into JupyterLab, so that signals go straight to it."""
    print("\n".join(update(room)) or "workspace: up to date", flush=True)
    os.execve(sys.executable, lab_arguments(room, extra), lab_environment(room, dict(os.environ)))


def main(arguments: list[str]) -> int:
    """Run one command; return the exit status."""
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        room = ROOM.translated(os.environ.get("LAB_LANGUAGE", ""))
        if command == "lab":
            open_lab(room, rest)
        elif command == "reset" and len(rest) == 1:
            print("\n".join(reset(room, rest[0])))
        else:
            print(USAGE, file=sys.stderr)
            return 2
    except (LessonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
