"""A docker command that runs the embedded server in place of a container, and notes how it was called.

It stands on PATH as ``docker``; the variable FAKE_DOCKER names its folder, which holds ``settings.json``: the server's
binary, backends and environment, and the commands that shall fail. Calls go to ``calls.jsonl``, a JSON list each.
"""

import itertools
import json
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_DOCKER"])
SETTINGS = json.loads((FOLDER / "settings.json").read_text())


def run(arguments: list[str]) -> None:
    """Start the server with the container's two paths mapped back to this machine's."""
    (volume,) = (value for flag, value in itertools.pairwise(arguments) if flag == "--volume")
    source, target, access = volume.rsplit(":", 2)
    assert (target, access) == ("/models", "ro"), volume
    models = FOLDER / "models"  # as short and without space as in the container: a stub's arguments break at spaces
    models.symlink_to(source)
    mapped = {"--model-repository=/models": f"--model-repository={models}"}
    mapped["--backend-directory=/opt/tritonserver/backends"] = f"--backend-directory={SETTINGS['backends']}"
    flags = arguments[arguments.index("tritonserver") + 1 :]
    command = [SETTINGS["binary"], *(mapped.get(flag, flag) for flag in flags)]
    os.execve(command[0], command, {**os.environ, **SETTINGS["environment"]})


def main(arguments: list[str]) -> int:
    with (FOLDER / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    command = arguments[0]
    if command in SETTINGS["fail"]:
        print(f"fake docker: {command} does not work today", file=sys.stderr)
        return 125
    images = FOLDER / "images.txt"
    if command == "image":  # image inspect TAG
        return 0 if images.exists() and arguments[2] in images.read_text().splitlines() else 1
    if command == "build":  # build --tag TAG -
        (FOLDER / "recipe.txt").write_text(sys.stdin.read())
        images.write_text(f"{arguments[2]}\n")
    if command == "run":
        run(arguments)
    return 0


sys.exit(main(sys.argv[1:]))
