"""A disk of a few MiB in a folder, for one process: a mount that nobody else on this machine sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCENARIOS = Path(__file__).with_name("scenarios.py")
SECONDS = 120


def run_on_a_small_disk(folder: Path | str, size: str, scenario: str, *arguments: object) -> dict[str, str]:
    """Run a function of `scenarios.py` in a process that has a file system of `size` in `folder`; what it returns.

    An ordinary user may mount in a user namespace of his own; root needs none.
    """
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    shell = 'mount -t tmpfs -o size="$2" tmpfs "$1" && shift 2 && exec "$@"'
    command = [sys.executable, str(SCENARIOS), scenario, *map(str, arguments)]
    done = subprocess.run(
        [*namespace, "sh", "-c", shell, "sh", str(folder), size, *command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(namespace)}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
