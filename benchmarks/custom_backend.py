"""Tokens per second of the pipeline: nodes in Python, one node in C++, both; and with nothing to decode, the ceiling.

Run it with `make bench`. One stream: the reported prompt, all its 95 tokens. Sixteen streams: the same, side by side.
The ceiling is the all-C++ pipeline again, with the same ids given instead of generated (FORCED_IDS).
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from side_by_side import Spread, in_turns, ratios, save, spread

from lab_utils import custom_backend
from lab_utils.client import stream, stream_many
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server

ROUNDS = 9
REPEATS = 4  # texts of one stream in one measurement
TOKENS = 95  # of the reported prompt's continuation, to its end
STREAMS = 16
PYTHON, MIXED, CPP, CEILING = "Python", "inference in C++", "all in C++", "all in C++, nothing decoded"
ENSEMBLES = {
    PYTHON: "ensemble_latest",
    MIXED: "ensemble_cpp_latest",
    CPP: "ensemble_cpp_text",
    CEILING: "ensemble_cpp_text",
}


def one_stream(server: TritonServer, ensemble: str, **options: object) -> float:
    """Tokens per second of one stream after another, from sending a request to its last message.

    From the first message on it would be too fast on a busy machine: messages wait there until the client comes to run.
    """
    results = [stream(server, ensemble, REPORTED_PROMPT, TOKENS, **options) for _ in range(REPEATS)]
    assert all(len(result.lengths) == TOKENS for result in results)
    return REPEATS * TOKENS / sum(result.observations[-1].seconds for result in results)


def many_streams(server: TritonServer, ensemble: str, **options: object) -> float:
    """Tokens per second of all streams together, from sending the first request to the last message."""
    began = time.perf_counter()
    results = stream_many(server, ensemble, [REPORTED_PROMPT] * STREAMS, TOKENS, **options)
    seconds = time.perf_counter() - began
    assert all(len(result.lengths) == TOKENS for result in results)
    return STREAMS * TOKENS / seconds


def compare(server: TritonServer, measure: Callable[..., float]) -> dict[str, list[float]]:
    """The four pipelines in turns."""
    tokens = [ids[0] for ids in stream(server, "ensemble_latest", REPORTED_PROMPT, TOKENS).ids]
    options = {CEILING: {"forced_ids": tokens}}
    cases = {name: partial(measure, server, ensemble, **options.get(name, {})) for name, ensemble in ENSEMBLES.items()}
    return in_turns(cases, ROUNDS)


def report(title: str, found: dict[str, list[float]]) -> dict[str, dict[str, object]]:
    """Print what was found, and return it for the results."""
    against_python: dict[str, Spread] = {name: ratios(found, name, PYTHON) for name in found}
    print(f"\n{title}: tokens/s, median of {ROUNDS} (least to most)")
    for name, values in found.items():
        print(f"  {name:28} {spread(values)!s:32} {against_python[name].median:5.2f} times Python")
    ceiling = ratios(found, CPP, CEILING)
    print(f"  {CPP!r} is {ceiling.median:.2f} of {CEILING!r} ({ceiling.least:.2f} to {ceiling.most:.2f})")
    return {
        "tokens_per_second": {name: asdict(spread(values)) for name, values in found.items()},
        "times_python": {name: asdict(value) for name, value in against_python.items()},
        "of_the_ceiling": asdict(ceiling),
    }


def main() -> None:
    """Build, start, measure, print, save."""
    built = custom_backend.build()
    models = sorted(set(ENSEMBLES.values()))
    with start_server(
        models, repository=[MODEL_REPOSITORY, custom_backend.REPOSITORY], backends=built.folder
    ) as server:
        results = {
            "one_stream": report("one stream", compare(server, one_stream)),
            "sixteen_streams": report(f"{STREAMS} streams", compare(server, many_streams)),
        }
    print(f"\nwritten to {save('custom_backend', rounds=ROUNDS, **results).relative_to(custom_backend.PROJECT)}")


if __name__ == "__main__":
    main()
