"""Time and memory of the lab's trace reader against `json.load`, for one trace file of 100 MB.

A server of this lab writes the trace of three streams. It is repeated with new trace ids and request ids up to 100 MB.
The reader does its whole work with it: every call with its shapes, and the verdict which node makes a tensor grow.
`json.load` only makes objects of the file. Each runs in a process of its own.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from side_by_side import Row, Spread, in_turns, main, ratios, spreads

from lab_utils import trace
from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import start_server

PROJECT = Path(__file__).resolve().parents[1]
ROUNDS = 5
SIZE = 100_000_000
MIB = 2**20
STREAMS = (  # ensemble, prompt, tokens: the last one doubles
    ("ensemble_append", "Pancakes. Ingredients:", 48),
    ("ensemble_replace", REPORTED_PROMPT, 48),
    ("ensemble_append", REPORTED_PROMPT, 10),
)
GUILTY = ["inference", "TOKEN_IDS", "exponential"]
IDS = re.compile(rb'(\{"id":|"parent_id":)(\d+)')
READER, CALLS, JSON = "reader with verdict", "reader without verdict", "json.load"
IMPORTS = {
    READER: "from lab_utils.trace import read, requests\nfrom lab_utils.trace_tracks import tracks\n"
    "from lab_utils.verdict import judge",
    CALLS: "from lab_utils.trace import read, requests",
    JSON: "",
}
WORK = {
    READER: "verdict = judge(tracks(requests(read(path, problems))))\n"
    "answer = [verdict.node, verdict.tensor, verdict.kind]",
    CALLS: "answer = [0, 0]\nfor request in requests(read(path, problems)):\n"
    "    answer[0] += len(request.calls)\n    answer[1] += sum(len(call.tensors) for call in request.calls)",
    JSON: 'answer = len(json.load(open(path, encoding="utf-8")))',
}
PROGRAM = """
import json, pathlib, re, sys, time
path, problems = sys.argv[1], []
{imports}
def peak():  # ru_maxrss begins with that of the process which started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
before, began = peak(), time.perf_counter()
{work}
seconds = time.perf_counter() - began
print(json.dumps({{"seconds": seconds, "peak": peak(), "growth": peak() - before, "answer": answer,
                  "problems": len(problems)}}))
"""


def record(path: Path) -> None:
    """Let a server write the trace of a few streams."""
    ensembles = sorted({ensemble for ensemble, _, _ in STREAMS})
    with start_server(ensembles, flags=trace.server_flags(path, log_frequency=0)) as server:
        for number, (ensemble, prompt, tokens) in enumerate(STREAMS):
            stream(server, ensemble, prompt, tokens, request_id=f"copy-0-{number}")


def repeat(recorded: Path, path: Path) -> int:
    """Write the recorded trace again and again, each time with new ids; how many times."""
    text = recorded.read_bytes().strip()
    records = text.removeprefix(b"[").removesuffix(b"]")
    assert len(records) == len(text) - 2
    most = max(int(found[2]) for found in IDS.finditer(records))
    copies = -(-SIZE // len(records))
    with path.open("wb") as file:
        for copy in range(copies):
            file.write(b"," if copy else b"[")
            renamed = records.replace(b'"copy-0-', b'"copy-%d-' % copy)
            file.write(IDS.sub(partial(_moved, copy * most), renamed))
        file.write(b"]")
    return copies


def _moved(by: int, found: re.Match) -> bytes:
    return b"%s%d" % (found[1], int(found[2]) + by)


def calls_in(records: Iterable[dict]) -> dict[int, list]:
    """What the objects of `json.load` tell of each call: model, parent, number of times, tensors with their values."""
    found: dict[int, list] = {}
    for one in records:
        call = found.setdefault(one["id"], ["", None, 0, []])
        call[0] = one.get("model_name", call[0])
        call[1] = one.get("parent_id", call[1])
        call[2] += len(one.get("timestamps", ()))
        if "tensor" in one:
            tensor = one["tensor"]
            dims = tuple(int(size) for size in tensor["shape"].split(",") if size)
            call[3].append((one["activity"], tensor["name"], tensor["dtype"], dims, tensor["data"]))
    return found


def assert_same(recorded: Path) -> tuple[int, int]:
    """Assert that the reader finds in the recorded trace what its JSON holds; how many calls and tensors that are."""
    activities = {side: activity.decode() for activity, side in trace.SIDES.items()}
    problems: list[trace.Problem] = []
    found = {
        call.id: [
            *(call.model, call.parent, len(call.times)),
            [
                (activities[one.side], one.name, one.dtype, one.dims, trace.raw(one).decode().replace('\\"', '"'))
                for one in call.tensors
            ],
        ]
        for call in trace.read(recorded, problems)
    }
    expected = calls_in(json.loads(recorded.read_text(encoding="utf-8")))
    assert not problems
    assert found == expected
    return len(expected), sum(len(call[3]) for call in expected.values())


def assert_doubles(recorded: Path) -> None:
    """Assert that in the recorded trace a tensor doubles where the verdict is to find it, by its JSON alone."""
    calls = calls_in(json.loads(recorded.read_text(encoding="utf-8"))).values()
    sizes = [
        [dims[0] for activity, name, _, dims, _ in tensors if activity.endswith("OUTPUT") and name == GUILTY[1]]
        for model, _, _, tensors in calls
        if model == GUILTY[0]
    ]
    assert Counter(map(tuple, sizes))[tuple(2**n for n in range(STREAMS[-1][2]))] == 1, sizes


def alone(side: str, path: Path, expected: object) -> dict[str, float]:
    """Seconds of the call and of its whole process, and bytes of memory at most, with and without the imports."""
    program = PROGRAM.format(imports=IMPORTS[side], work=WORK[side])
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, cwd=PROJECT)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["answer"], told["problems"]) == (expected, 0), told
    return {name: told[name] for name in ("seconds", "peak", "growth")} | {"process": seconds}


def measure() -> dict:
    """Record, repeat, and read in turns."""
    with tempfile.TemporaryDirectory() as folder:
        recorded, path = Path(folder, "recorded.json"), Path(folder, "trace.json")
        record(recorded)
        calls, tensors = assert_same(recorded)
        assert_doubles(recorded)
        copies = repeat(recorded, path)
        records = len(json.loads(recorded.read_text(encoding="utf-8")))
        expected = {READER: GUILTY, CALLS: [calls * copies, tensors * copies], JSON: records * copies}
        found = in_turns({side: partial(alone, side, path, expected[side]) for side in WORK}, ROUNDS)
        size = path.stat().st_size
    kinds = ("seconds", "process", "peak", "growth")
    by_kind = {kind: {side: [one[kind] for one in ones] for side, ones in found.items()} for kind in kinds}
    return {
        "rounds": ROUNDS,
        "file": {"bytes": size, "calls": calls * copies, "tensors": tensors * copies, "recorded_bytes": size // copies},
        "measured": {kind: spreads(by_kind[kind]) for kind in kinds},
        "ratios": {kind: {side: asdict(ratios(by_kind[kind], side, JSON)) for side in WORK} for kind in kinds},
    }


def rows(results: dict) -> list[Row]:
    """Time and memory."""
    middle = {kind: {side: one["median"] for side, one in of.items()} for kind, of in results["measured"].items()}
    figures = {kind: {side: Spread(**one) for side, one in of.items()} for kind, of in results["ratios"].items()}
    against = f"`json.load` of the same file, {results['file']['bytes'] / 1e6:.0f} MB"
    seconds, peak = middle["seconds"], middle["peak"]
    times = f"{seconds[CALLS]:.2f} s, `json.load` {seconds[JSON]:.2f} s"
    memory = f"{peak[READER] / MIB:.0f} MiB, `json.load` {peak[JSON] / MIB:.0f} MiB"
    return [
        Row("trace reader: calls and shapes", against, "at most 1 times", times, figures["seconds"][CALLS], 1.0),
        Row("trace reader: peak memory", against, "at most a quarter", memory, figures["peak"][READER], 0.25),
    ]


def remarks(results: dict) -> str:
    """What the file holds, whole processes, and where the reader's seconds go."""
    file = results["file"]
    middle = {kind: {side: one["median"] for side, one in of.items()} for kind, of in results["measured"].items()}
    seconds, process, growth = middle["seconds"], middle["process"], middle["growth"]
    share, times = seconds[CALLS] / seconds[READER], Spread(**results["ratios"]["seconds"][READER])
    return (
        f"The file has {file['calls']:,} calls with {file['tensors']:,} tensors. With the verdict, for which "
        f"`json.load` has no counterpart, the reader takes {seconds[READER]:.2f} s, {times} times as long as "
        f"`json.load`; calls and shapes are {share:.0%} of that. Peak memory is that with the verdict. "
        "With the start of Python and all imports the reader's process takes "
        f"{process[READER]:.2f} s, that of `json.load` {process[JSON]:.2f} s. Memory grows by "
        f"{growth[READER] / MIB:.0f} MiB after the imports, with `json.load` by {growth[JSON] / MIB:.0f} MiB."
    )


if __name__ == "__main__":
    main(__file__)
