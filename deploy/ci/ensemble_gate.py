#!/usr/bin/env python3
"""A gate for a merge: does this ensemble keep its contract, and does no node's output grow although its inputs do not.

    python deploy/ci/ensemble_gate.py MODEL_REPOSITORY ENSEMBLE -- COMMAND [ARGUMENT...]

It checks the configs, starts a server with the ensemble, runs COMMAND, which sends requests of yours to it, and reads
the trace of what they caused. COMMAND finds the server's addresses in TRITON_GRPC_URL and TRITON_HTTP_URL and ends with
status 0. Every run goes into the lab book (LAB_BOOK says where): keep that file with the build.

Exit status: 0 passed, 1 refused, 2 the gate itself could not do its work.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lab_utils import trace
from lab_utils.contract import read_repository
from lab_utils.findings import ERROR, check
from lab_utils.labbook import Recorder, experiment
from lab_utils.server import TritonServer, start_server
from lab_utils.trace_tracks import tracks
from lab_utils.verdict import judge

SEND_SECONDS = 600.0


class RefusedError(Exception):
    """The ensemble does not pass; the text says why."""


class GateError(Exception):
    """The gate cannot judge; the text says why and what to do."""


def check_contract(repository: Path, ensemble: str) -> None:
    """Stop at an error that Triton would find when it loads the ensemble.

    Raises
    ------
    RefusedError
        There is one.
    """
    errors = [str(finding) for finding in check(read_repository(repository), ensemble) if finding.severity == ERROR]
    if errors:
        raise RefusedError("\n".join(errors))


def send(server: TritonServer, command: list[str]) -> None:
    """Run the team's own client.

    Raises
    ------
    RefusedError
        It failed: a request got an error, or its own assertions did not hold.
    """
    address = {"TRITON_GRPC_URL": server.grpc_url, "TRITON_HTTP_URL": server.http_url}
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_API_KEY"}  # another server's
    done = subprocess.run(command, env={**kept, **address}, timeout=SEND_SECONDS, check=False)
    if done.returncode != 0:
        raise RefusedError(f"the command that sends requests ended with status {done.returncode}: {' '.join(command)}")


def check_growth(file: Path) -> str:
    """Judge a trace; returns the verdict in words.

    Raises
    ------
    RefusedError
        A node's output grows although its inputs do not.
    GateError
        The trace shows nothing to judge: a gate that saw nothing must not open.
    """
    found = list(trace.requests(trace.read(file)))
    if not any(call.tensors for request in found for call in request.calls):
        raise GateError("the trace holds no tensors: did COMMAND send its requests to TRITON_GRPC_URL?")
    verdict = judge(tracks(found))
    if verdict.node:
        raise RefusedError(str(verdict))
    return f"{len(found)} request(s) traced. {verdict}"


def run_gate(repository: Path, ensemble: str, command: list[str], entry: Recorder) -> None:
    """Do all three steps, and write down what came out."""
    try:
        check_contract(repository, ensemble)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "trace.json")
            flags = trace.server_flags(file, log_frequency=0)
            with start_server([ensemble], repository=repository, flags=flags, local=True, with_key=False) as server:
                send(server, command)
            words = check_growth(file)
    except RefusedError as error:
        entry.verdict(f"refused: {error}")
        raise
    entry.verdict(f"passed: {words}")
    print(f"{ensemble} passed: {words}")


def main(arguments: list[str]) -> int:
    """Judge one ensemble; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("ensemble")
    parser.add_argument("command", nargs="+", help="what sends the requests, after --")
    chosen = parser.parse_args(arguments)
    try:
        with experiment("CI", "gate", ensemble=chosen.ensemble) as entry:
            run_gate(chosen.repository, chosen.ensemble, chosen.command, entry)
    except RefusedError as error:
        print(f"{chosen.ensemble} refused: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # whatever it is: Python's own status would be 1, and that means refused
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
