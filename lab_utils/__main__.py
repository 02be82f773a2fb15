"""The lab without a notebook: ``python -m lab_utils COMMAND``; ``--help`` lists the commands.

`contract`, `trace` and `watch` work on any model repository, trace file and server; `labbook` reads the lab book, and
`workshop` is for instructors.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from lab_utils import doctor, stale
from lab_utils.client import Observation, StreamError, iter_stream, stream
from lab_utils.errors import ServerError
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT
from lab_utils.files import save_figure
from lab_utils.growth import fit
from lab_utils.server import start_server
from lab_utils.sources import ServerNotFoundError
from lab_utils.tables import table
from lab_utils.terminal import harmless_output

SHOWN_IDS = 8
MODULES = ("contract", "trace", "watch", "labbook", "workshop")  # commands with a module of their own


def parser(command: str = "") -> argparse.ArgumentParser:
    """The command line; of `MODULES` only the command asked for, if it is one of them: others take long to import."""
    root = argparse.ArgumentParser(prog="python -m lab_utils", description=__doc__.partition("\n")[0])
    commands = root.add_subparsers(dest="command", required=True)
    one = commands.add_parser("reproduce", help="run rung 1, compare with the field's array, save the growth figure")
    one.add_argument("--figure", type=Path, default=Path("artifacts/growth.png"), help="where to save it (PNG)")
    one.set_defaults(run=reproduce)
    one = commands.add_parser("stream", help="stream one prompt through an ensemble, one line for each response")
    one.add_argument("ensemble", help="such as ensemble_append")
    one.add_argument("prompt")
    one.add_argument("--max-tokens", type=int, default=8, metavar="N")
    one.add_argument("--repeat", type=int, default=1, metavar="K", help="send the prompt K times, one after the other")
    one.add_argument("--json", action="store_true", help="JSON lines with all ids")
    one.set_defaults(run=stream_prompt)
    one = commands.add_parser("stop", help="end stale servers of this user's lab and remove their shared memory")
    one.add_argument("--all", action="store_true", help="end servers that are in use too")
    one.set_defaults(run=stop)
    one = commands.add_parser("doctor", help="what this machine has and lacks, and what to do about it")
    one.set_defaults(run=examine)
    for name in [command] if command in MODULES else MODULES:
        importlib.import_module(f"lab_utils.{name}_cli").add_command(commands)
    return root


def reproduce(arguments: argparse.Namespace) -> int:
    """Exit status 0 if the eighth message equals the field's array, 1 if not."""
    from lab_utils.plots import growth_figure  # matplotlib takes long to import

    with start_server(["ensemble_append"], report=_say) as server:
        if server.attached:
            server.reload("inference")  # rung 1 keeps the ids of everybody who was there before
        result = stream(server, "ensemble_append", REPORTED_PROMPT, max_tokens=8)
    law = fit(result.lengths)
    same = result.ids[-1] == REPORTED_IDS
    rows = [(o.iteration, str(list(o.dims)), o.nbytes) for o in result.observations]
    print(table(["iteration", "dims", "bytes"], rows))
    print(f"law: {law}")
    print(f"message 8 {'equals' if same else 'DIFFERS FROM'} the {len(REPORTED_IDS)} ids of the field report")
    save_figure(growth_figure({"measured": result.lengths}, predicted=law), arguments.figure)
    print(f"figure: {arguments.figure}")
    return 0 if same else 1


def stream_prompt(arguments: argparse.Namespace) -> int:
    """One line for each response; a line of its own for each repetition after the first."""
    if arguments.repeat < 1:
        raise ValueError(f"--repeat is {arguments.repeat}; expected 1 or more")
    with start_server([arguments.ensemble], report=_say) as server:
        for request in range(1, arguments.repeat + 1):
            for observation in iter_stream(server, arguments.ensemble, arguments.prompt, arguments.max_tokens):
                print(_json_line(request, observation) if arguments.json else _line(request, observation), flush=True)
    return 0


def _line(request: int, seen: Observation) -> str:
    shown = " ".join(map(str, seen.ids[:SHOWN_IDS])) + (" ..." if len(seen.ids) > SHOWN_IDS else "")
    return f"request {request}  iteration {seen.iteration}  dims {list(seen.dims)}  ids {shown}  text {seen.text!r}"


def _json_line(request: int, seen: Observation) -> str:
    record = {
        "request": request,
        "iteration": seen.iteration,
        "dims": seen.dims,
        "bytes": seen.nbytes,
        "seconds": round(seen.seconds, 6),
        "ids": seen.ids.tolist(),
        "text": seen.text,
        "index": seen.index,
        "end": seen.end,
    }
    return json.dumps(record, ensure_ascii=False)


def stop(arguments: argparse.Namespace) -> int:
    """Say what was ended and what was left alone."""
    done = stale.stop_servers(everything=arguments.all)
    print(f"ended {len(done.ended)} server(s), removed {done.files} file(s) from /dev/shm")
    if done.in_use:
        print(f"{len(done.in_use)} server(s) in use were left alone; `stop --all` ends them too")
    return 0


def examine(_: argparse.Namespace) -> int:
    """Exit status 1 if something keeps the lab from running."""
    findings = doctor.examine()
    print("\n".join(map(str, findings)))
    return 1 if any(finding.level == doctor.PROBLEM for finding in findings) else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are said in a line, without a traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    parsed = parser(given[0] if given else "").parse_args(given)
    with harmless_output():
        return _run(parsed)


def _run(parsed: argparse.Namespace) -> int:
    try:
        return parsed.run(parsed)
    except (ServerError, ServerNotFoundError, StreamError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
