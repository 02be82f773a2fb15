"""One decode step of the tiny model in C++ and in NumPy: against what this processor allows, and against torch.

The C++ program (custom_backend/tests/step.cc) is the node's own forward pass. It also measures what bounds a step: how
fast one thread reads as many bytes as a step must read, again and again, and how fast it multiplies and adds.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from math import prod
from pathlib import Path

from safetensors import safe_open
from side_by_side import Row, Spread, in_turns, main, ratios, spread, spreads

from lab_utils import custom_backend
from lab_utils.server import MODEL_REPOSITORY

ROUNDS = 7
POSITION = 64  # of the token that is read: about the middle of the reported prompt and its continuation
STREAMS = (1, 16)
REPEATS = {1: 100, 16: 12}  # steps in one measurement
FLOAT = 4  # bytes: all three compute in float32
DRAM_BYTES = 2**29  # more than any cache
MOST_OVER_BOUND, MOST_OF_TORCH = 2.0, 1.0
HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / "artifacts" / "torch_env"
LOCK = HERE / "torch.lock"
FOLDER = MODEL_REPOSITORY / "inference"
WEIGHTS = FOLDER / "recipes.safetensors"
CPP, NUMPY, NUMPY_DEFAULT = "C++", "NumPy", "NumPy, all threads"
TORCH = {
    "torch, transformer.py": ("array API", 1),
    "torch, by hand": ("plain", 1),
    "torch, by hand, all threads": ("plain", 0),
}
LIMITS = ("read", "read DRAM", "multiply")
Ask = Callable[[str], str]


def torch_python() -> Path:
    """The Python of an environment that has torch; it is made where it is missing, or where the lock has changed."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "lock.sha256"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == digest):
        uv = [sys.executable, str(HERE.parent / "tools" / "setup_env.py"), "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)], check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(LOCK)]
        subprocess.run(install, check=True)
        stamp.write_text(digest)
    return python


@contextmanager
def child(command: list[str | Path], threads: int | None = None) -> Iterator[Ask]:
    """A program that answers each line with a line; `threads` is for NumPy's BLAS, which asks when it is loaded."""
    environment = os.environ | ({"OPENBLAS_NUM_THREADS": str(threads)} if threads else {})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(list(map(str, command)), **pipes) as process:

        def ask(question: str) -> str:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            if not (answer := process.stdout.readline()):
                raise RuntimeError(f"{command[0]} ended at {question!r}; what it said is above")
            return answer

        yield ask
        process.stdin.close()


def model_size() -> tuple[int, int, int]:
    """Numbers that a step reads: all weights (the embedding is the last matrix, too), and a position's keys and values.

    Returns
    -------
    weights, of_a_position : int
        How many numbers.
    multiplied : int
        How many of the weights are multiplied with each token: the matrices.
    """
    with safe_open(WEIGHTS, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if name != "ids"]  # noqa: SIM118
    weights = sum(map(prod, shapes))
    of_a_position = 2 * config["num_hidden_layers"] * config["hidden_size"]
    return weights, of_a_position, sum(prod(shape) for shape in shapes if len(shape) == 2)


def must_do(streams: int) -> tuple[int, int]:
    """Bytes that a step must read, and floating-point operations that it must do."""
    weights, of_a_position, multiplied = model_size()
    cached = of_a_position * (POSITION + 1)
    return (weights + streams * cached) * FLOAT, 2 * streams * (multiplied + cached)


def cpp_step(ask: Ask, streams: int) -> tuple[float, list[int]]:
    """Median seconds of the C++ step, and the row that it chose."""
    seconds, chosen = ask(f"step {streams} {POSITION} {REPEATS[streams]}").split()
    return float(seconds), [int(chosen)] * streams


def array_step(ask: Ask, case: str, threads: int, streams: int) -> tuple[float, list[int]]:
    """Median seconds of a step in a child of decode_step_arrays.py, and the rows that it chose."""
    numbers = {"threads": threads, "streams": streams, "position": POSITION, "repeats": REPEATS[streams]}
    answer = json.loads(ask(json.dumps({"case": case, **numbers})))
    return answer["seconds"], answer["chosen"]


def limit(ask: Ask, question: str) -> tuple[float, list[int]]:
    """A bandwidth or an arithmetic rate, measured in C++; it chooses nothing."""
    return float(ask(question)), []


def compare(asks: dict[str, Ask], streams: int) -> dict[str, list[float]]:
    """All cases in turns; every one must have chosen the same token."""
    steps = {CPP: partial(cpp_step, asks[CPP], streams)}
    for name in (NUMPY, NUMPY_DEFAULT):
        steps[name] = partial(array_step, asks[name], "array API", 0, streams)
    for name, (case, threads) in TORCH.items():
        steps[name] = partial(array_step, asks["torch"], case, threads, streams)
    limits = {"read": f"read {must_do(streams)[0]} 300", "read DRAM": f"read {DRAM_BYTES} 1", "multiply": "multiply 20"}
    found = in_turns(steps | {name: partial(limit, asks[CPP], question) for name, question in limits.items()}, ROUNDS)
    chosen = {tuple(rows) for name in steps for _, rows in found[name]}
    assert len(chosen) == 1, f"the steps chose different tokens: {chosen}"
    return {name: [value for value, _ in values] for name, values in found.items()}


def measured(found: dict[str, list[float]], streams: int) -> dict:
    """What the results hold of one comparison: seconds, rates, bounds and ratios."""
    size, operations = must_do(streams)
    memory, arithmetic = [size / rate for rate in found["read"]], [operations / rate for rate in found["multiply"]]
    bounds = {"memory": memory, "arithmetic": arithmetic}
    applies = max(bounds, key=lambda name: spread(bounds[name]).median)
    fastest = min(TORCH, key=lambda name: spread(found[name]).median)
    series = found | {"bound": bounds[applies]}
    return {
        "bytes": size,
        "operations": operations,
        "found": spreads(found),
        "bounds": spreads(bounds),
        "dram_bound": size / spread(found["read DRAM"]).median,
        "applies": applies,
        "fastest_torch": fastest,
        "over_bound": asdict(ratios(series, CPP, "bound")),
        "of_torch": asdict(ratios(series, NUMPY, fastest)),
    }


def measure() -> dict:
    """Build, start the children, measure one stream and sixteen."""
    place, _ = custom_backend.make("step")
    arrays = [str(HERE / "decode_step_arrays.py"), str(FOLDER)]
    with ExitStack() as children:
        asks = {
            CPP: children.enter_context(child([place / "step", WEIGHTS])),
            NUMPY: children.enter_context(child([sys.executable, *arrays, "numpy"], threads=1)),
            NUMPY_DEFAULT: children.enter_context(child([sys.executable, *arrays, "numpy"])),
            "torch": children.enter_context(child([torch_python(), *arrays, "torch"])),
        }
        versions = {name: json.loads(asks[name]("")) for name in (NUMPY, "torch")}
        results = {str(streams): measured(compare(asks, streams), streams) for streams in STREAMS}
    return {"position": POSITION, "versions": versions, "streams": results}


def micro(seconds: float) -> str:
    """Seconds as microseconds, with three digits."""
    return f"{float(f'{seconds * 1e6:.3g}'):g} µs"


def rows(results: dict) -> list[Row]:
    """C++ against its bound, NumPy against torch: one stream."""
    one = results["streams"]["1"]
    median = {name: micro(values["median"]) for name, values in one["found"].items() if name not in LIMITS}
    bound, fastest = micro(one["bounds"][one["applies"]]["median"]), one["fastest_torch"]
    return [
        Row(
            "a decode step in C++, one stream",
            f"the bound that applies ({one['applies']})",
            f"at most {MOST_OVER_BOUND:g} times",
            f"{median[CPP]}, bound {bound}",
            Spread(**one["over_bound"]),
            MOST_OVER_BOUND,
        ),
        Row(
            "a decode step in NumPy, one stream",
            f"the fastest of {len(TORCH)} ways in torch on CPU",
            "ahead",
            f"{median[NUMPY]}, {fastest} {median[fastest]}",
            Spread(**one["of_torch"]),
            MOST_OF_TORCH,
        ),
    ]


def remarks(results: dict) -> str:
    """Every case's time, and what the bounds are made of."""
    lines = ["| a step of | " + " | ".join((CPP, NUMPY, NUMPY_DEFAULT, *TORCH)) + " |", "|---" * (4 + len(TORCH)) + "|"]
    for streams, one in results["streams"].items():
        cells = [micro(one["found"][name]["median"]) for name in (CPP, NUMPY, NUMPY_DEFAULT, *TORCH)]
        lines.append(f"| {streams} stream{'s' * (streams != '1')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(bounds_of(streams, one) for streams, one in results["streams"].items())])


def bounds_of(streams: str, one: dict) -> str:
    """The bounds of a step, in a sentence for each."""
    rate = {name: one["found"][name]["median"] / 1e9 for name in LIMITS}
    memory, arithmetic = (micro(one["bounds"][name]["median"]) for name in ("memory", "arithmetic"))
    cached = rate["read"] > 1.2 * rate["read DRAM"]
    why = "the caches hold them, so DRAM's bound does not apply" if cached else "that is no faster than from DRAM"
    return (
        f"- Streams: {streams}. A step must read {one['bytes'] / 1e6:.2f} MB. One thread reads as many again and again "
        f"at {rate['read']:.3g} GB/s, from DRAM at {rate['read DRAM']:.3g} GB/s: {memory}, and "
        f"{micro(one['dram_bound'])} from DRAM; {why}. "
        f"Its {one['operations'] / 1e6:.2f} million operations take {arithmetic} at the "
        f"{rate['multiply']:.3g} GFLOP/s measured. The larger bound is {one['applies']}; C++ takes "
        f"{one['over_bound']['median']:.2f} times as long, NumPy {one['of_torch']['median']:.2f} times as long as "
        f"'{one['fastest_torch']}'."
    )


if __name__ == "__main__":
    main(__file__)
