"""How long the contract check takes for a model repository of 1,000 models, as a user runs it.

The repository is written into a temporary folder: ensembles of one to twelve steps, nested ones among them, over models
for Python and ONNX. Each of its parts has one fault; the check has to find these and nothing else.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

from side_by_side import Row, Spread, in_turns, main, spreads

from lab_utils.contract import read_repository
from lab_utils.findings import check, summary

PROJECT = Path(__file__).resolve().parents[1]
ROUNDS = 5
MODELS = 1_000
MOST_SECONDS = 2.0
PARTS = 23
STEPS = (1, 2, 3, 4, 6, 8, 12)  # of the ensembles in one part
LAST = 10  # steps of one more ensemble: it makes the number of models round
NESTED = 4  # an ensemble of so many steps has the ensemble before it as a further step
COMMAND, START, READ, CHECK = "command", "command --help", "reading", "checking"
PYTHON = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the text of a leaf's or an ensemble's config that is replaced, and what finds it.

    Attributes
    ----------
    rule : str
        The finding that the check must give.
    old, new : str
        Where `old` is empty, the version folder is left out.
    in_leaf, told_of_leaf : bool
        Whether the text is that of the ensemble's first leaf, and whether the finding is at that leaf.
    """

    rule: str
    old: str
    new: str
    in_leaf: bool = False
    told_of_leaf: bool = False


FAULTS = (
    Fault("dtype-mismatch", "TYPE_FP32 dims: [ 16, 4 ]", "TYPE_INT32 dims: [ 16, 4 ]", in_leaf=True),
    Fault("dims-mismatch", "dims: [ 16, 4 ]", "dims: [ 16, 5 ]", in_leaf=True),
    Fault("unmapped-input", "input [", 'input [ { name: "MASK" data_type: TYPE_BOOL dims: [ 1 ] },', in_leaf=True),
    Fault("config-unreadable", "max_batch_size: 8", "max_batch_size 8", in_leaf=True, told_of_leaf=True),
    Fault("model-setting", "[ 4, 8 ]", "[ 4, 9 ]", in_leaf=True, told_of_leaf=True),
    Fault("no-version", "", "", in_leaf=True, told_of_leaf=True),
    Fault("missing-model", "_leaf_1", "_loaf_1"),
    Fault("version-not-served", "model_version: -1", "model_version: 7"),
    Fault("unknown-output", 'key: "OUT"', 'key: "RESULT"'),
)


def ports(kind: str, *tensors: tuple[str, str, str]) -> str:
    """The inputs or outputs of a config."""
    lines = [f'  {{ name: "{name}" data_type: TYPE_{dtype} dims: {dims} }}' for name, dtype, dims in tensors]
    return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"


def leaf_config(name: str, backend: str) -> str:
    """A model with two inputs and two outputs."""
    inputs = ports("input", ("IN", "FP32", "[ 16, 4 ]"), ("LENGTH", "INT64", "[ 1 ]"))
    outputs = ports("output", ("OUT", "FP32", "[ 16, 4 ]"), ("SIZE", "INT64", "[ 1 ]"))
    return (
        f'# Written by benchmarks/contract_check.py\nname: "{name}"\nbackend: "{backend}"\nmax_batch_size: 8\n'
        f"{inputs}{outputs}dynamic_batching {{ preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }}\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        'parameters { key: "threads" value { string_value: "1" } }\n'
    )


def step(model: str, number: int, last: bool) -> str:
    """One step of a chain."""
    after = ("Y", "Y_SIZE") if last else (f"T{number}", f"S{number}")
    before = ("X", "X_SIZE") if number == 1 else (f"T{number - 1}", f"S{number - 1}")
    into, out_of = (("X", "X_SIZE"), ("Y", "Y_SIZE")) if "_leaf_" not in model else (("IN", "LENGTH"), ("OUT", "SIZE"))
    maps = [f'      input_map {{ key: "{key}" value: "{name}" }}' for key, name in zip(into, before, strict=True)]
    maps += [f'      output_map {{ key: "{key}" value: "{name}" }}' for key, name in zip(out_of, after, strict=True)]
    return f'    {{\n      model_name: "{model}"\n      model_version: -1\n' + "\n".join(maps) + "\n    }"


def ensemble_config(name: str, models: list[str]) -> str:
    """A chain of these models."""
    inputs = ports("input", ("X", "FP32", "[ 16, 4 ]"), ("X_SIZE", "INT64", "[ 1 ]"))
    outputs = ports("output", ("Y", "FP32", "[ 16, 4 ]"), ("Y_SIZE", "INT64", "[ 1 ]"))
    steps = ",\n".join(step(model, number, number == len(models)) for number, model in enumerate(models, 1))
    head = f'name: "{name}"\nplatform: "ensemble"\nmax_batch_size: 8\n'
    return f"{head}{inputs}{outputs}ensemble_scheduling {{\n  step [\n{steps}\n  ]\n}}\n"


def chain(name: str, length: int, before: str) -> Iterator[tuple[str, str]]:
    """Names and configs of an ensemble and its own models; the last runs in ONNX, so that its outputs are checked."""
    leaves = [f"{name}_leaf_{number}" for number in range(1, length + 1)]
    steps = [*leaves[:-1], before, leaves[-1]] if length == NESTED else leaves
    yield name, ensemble_config(name, steps)
    for number, leaf in enumerate(leaves, 1):
        yield leaf, leaf_config(leaf, "python" if number % 2 and number < length else "onnxruntime")


def configs() -> dict[str, str]:
    """The configs of the repository, by model."""
    found: dict[str, str] = {}
    for part in range(PARTS):
        names = [f"part_{part:02}_{length:02}_steps" for length in STEPS]
        for name, length, before in zip(names, STEPS, ["", *names], strict=False):
            found |= chain(name, length, before)
    return found | dict(chain("last", LAST, ""))


def break_some(found: dict[str, str]) -> tuple[set[tuple[str, str]], set[str]]:
    """Put one fault into each part; rule and config of the findings to come, and models without a version."""
    expected, without = set(), set()
    for part, fault in zip(range(PARTS), cycle(FAULTS), strict=False):
        ensemble = f"part_{part:02}_06_steps"
        leaf = f"{ensemble}_leaf_1"
        model = leaf if fault.in_leaf else ensemble
        assert fault.old in found[model]
        found[model] = found[model].replace(fault.old, fault.new, 1) if fault.old else found[model]
        without |= set() if fault.old else {model}
        expected.add((fault.rule, f"{leaf if fault.told_of_leaf else ensemble}/config.pbtxt"))
    return expected, without


def write(repository: Path) -> set[tuple[str, str]]:
    """Write the repository; rule and config of each fault in it."""
    found = configs()
    assert len(found) == MODELS
    expected, without = break_some(found)
    for name, config in found.items():
        version = repository / name / "1"
        (version.parent if name in without else version).mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
        if version.is_dir() and "backend" in config:
            python = 'backend: "python"' in config
            (version / ("model.py" if python else "model.onnx")).write_text(PYTHON if python else "", encoding="utf-8")
    return expected


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The check as a user runs it, in a process of its own."""
    command = [sys.executable, "-m", "lab_utils", "contract", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=300)


def timed_command(*arguments: str, last_line: str = "") -> dict[str, float]:
    """Seconds of the command, from its start to its end."""
    began = time.perf_counter()
    done = run_command(*arguments)
    seconds = time.perf_counter() - began
    assert done.returncode == bool(last_line), done.stderr
    assert done.stdout.strip().endswith(last_line)
    return {"seconds": seconds}


def inside(repository: Path, expected: set[tuple[str, str]]) -> dict[str, float]:
    """Seconds of reading and of checking, in this process."""
    began = time.perf_counter()
    read = read_repository(repository)
    middle = time.perf_counter()
    found = check(read)
    end = time.perf_counter()
    assert sorted((one.rule, one.place.file) for one in found) == sorted(expected)
    return {READ: middle - began, CHECK: end - middle}


def assert_command_finds(repository: Path, expected: set[tuple[str, str]]) -> dict[str, int]:
    """Assert that the command finds the faults and nothing else; what the repository holds."""
    document = json.loads(run_command(str(repository), "--json").stdout)
    found = sorted((one["rule"], one["place"]["file"]) for one in document["findings"])
    assert found == sorted(expected), set(found) ^ expected
    steps = sum(len(one["nodes"]) for one in document["ensembles"])
    edges = sum(len(one["edges"]) for one in document["ensembles"])
    counts = {"models": document["models"], "ensembles": len(document["ensembles"]), "steps": steps, "edges": edges}
    return {**counts, "faults": len(found)}


def measure() -> dict:
    """The command, its start alone, and both parts of its work, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        expected = write(repository)
        holds = assert_command_finds(repository, expected)
        last_line = summary(check(read_repository(repository)))
        cases: Mapping[str, Callable[[], dict[str, float]]] = {
            COMMAND: partial(timed_command, folder, last_line=last_line),
            START: partial(timed_command, "--help"),
            "inside": partial(inside, repository, expected),
        }
        found = in_turns(cases, ROUNDS)
    times = {name: [one["seconds"] for one in found[name]] for name in (COMMAND, START)}
    times |= {name: [one[name] for one in found["inside"]] for name in (READ, CHECK)}
    return {
        "repository": holds,
        "rounds": ROUNDS,
        "times": spreads(times),
    }


def rows(results: dict) -> list[Row]:
    """The one line of the table."""
    took = Spread(**results["times"][COMMAND])
    models = results["repository"]["models"]
    measured = f"{took.median:.2f} s"
    reach = f"at most {MOST_SECONDS:g} s"
    return [Row("contract check", f"a repository of {models:,} models, generated", reach, measured, took, MOST_SECONDS)]


def remarks(results: dict) -> str:
    """What the repository holds, and where the seconds of the command go."""
    holds, seconds = results["repository"], {name: one["median"] for name, one in results["times"].items()}
    return (
        f"The repository has {holds['models']:,} models; {holds['ensembles']} of them are ensembles, with "
        f"{holds['steps']:,} steps and {holds['edges']:,} edges. {holds['faults']} faults are in it, and the check "
        f"found each of them and nothing else. The start of Python and the import of the lab take {seconds[START]:.2f} "
        f"s of the command's {seconds[COMMAND]:.2f} s (measured with `--help`). In a process that has it imported, "
        f"reading the configs takes {seconds[READ]:.2f} s and checking them {seconds[CHECK]:.2f} s."
    )


if __name__ == "__main__":
    main(__file__)
