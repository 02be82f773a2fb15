"""The first step of a learner's server: it makes her own copy of the lessons and becomes the server.

It runs as the learner, so nothing in her folder is ever touched with another's rights.
"""

import os
import sys
from pathlib import Path

from lab_utils import workspace


def keep_private(folder: Path) -> None:
    """Close a learner's folder, and all that her server makes from now on, to other users of the machine."""
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def prepare(room: workspace.Room, environment: dict[str, str]) -> dict[str, str]:
    """Bring the lessons up to date, leave a notice where there is one, and return the environment for the server."""
    print("\n".join(workspace.update(room)) or "lessons: up to date", flush=True)
    note = room.own / "NOTICE.md"
    note.unlink(missing_ok=True)
    if said := environment.get("LAB_NOTICE"):
        note.write_text(f"# Notice\n\n{said}\n", encoding="utf-8")
    return workspace.lab_environment(room, environment)


def main(arguments: list[str]) -> None:
    """Turn this process into the learner's server."""
    keep_private(Path(os.environ["LAB_LEARNER"]))
    room = workspace.ROOM.translated(os.environ.get("LAB_LANGUAGE", ""))  # LAB_WORKSPACE says where it is
    environment = prepare(room, dict(os.environ))
    command = [sys.executable, "-m", "jupyterhub.singleuser", f"--ServerApp.root_dir={room.own}", *arguments]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
