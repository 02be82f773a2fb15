"""Tokens per second of the pipeline: nodes in Python, one node in C++, both; and with nothing to decode, the ceiling.

Run it with `make bench`. One stream: the reported prompt, all its 95 tokens. Sixteen streams: the same, side by side.
The ceiling is the all-C++ pipeline again, with the same ids given instead of generated (FORCED_IDS).

Beside the clock stands the processor time for a token, of the server's processes and of this client. The client is
Python with one thread for each stream, and only one of them runs at a time: it is the limit where its part comes near
the time that a token takes.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import psutil
from side_by_side import in_turns, processor_seconds, ratios, save, spread

from lab_utils import custom_backend
from lab_utils.client import StreamResult, stream, stream_many
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
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Measured:
    """Tokens per second, and microseconds of processor time for a token, of the server and of the client."""

    rate: float
    server: float
    client: float


def one_stream(server: TritonServer, ensemble: str, **options: object) -> list[StreamResult]:
    """One stream after another."""
    return [stream(server, ensemble, REPORTED_PROMPT, TOKENS, **options) for _ in range(REPEATS)]


def many_streams(server: TritonServer, ensemble: str, **options: object) -> list[StreamResult]:
    """All streams together."""
    return stream_many(server, ensemble, [REPORTED_PROMPT] * STREAMS, TOKENS, **options)


def measure(server: TritonServer, run: Callable[..., list[StreamResult]], ensemble: str, **options: object) -> Measured:
    """From connecting to the last message: what a client sees, with a new connection for each stream."""
    serving, client = list(server.processes), [psutil.Process()]
    before = processor_seconds(serving), processor_seconds(client)
    began = time.perf_counter()
    results = run(server, ensemble, **options)
    seconds = time.perf_counter() - began
    assert all(len(result.lengths) == TOKENS for result in results)
    tokens = TOKENS * len(results)
    used = processor_seconds(serving) - before[0], processor_seconds(client) - before[1]
    return Measured(tokens / seconds, *(part / tokens * MICROSECONDS for part in used))


def compare(server: TritonServer, run: Callable[..., list[StreamResult]]) -> dict[str, list[Measured]]:
    """The four pipelines in turns."""
    tokens = [ids[0] for ids in stream(server, "ensemble_latest", REPORTED_PROMPT, TOKENS).ids]
    options = {CEILING: {"forced_ids": tokens}}
    cases = {
        name: partial(measure, server, run, ensemble, **options.get(name, {})) for name, ensemble in ENSEMBLES.items()
    }
    return in_turns(cases, ROUNDS)


def report(title: str, found: dict[str, list[Measured]]) -> dict[str, object]:
    """Print what was found, and return it for the results."""
    rates = {name: [one.rate for one in measured] for name, measured in found.items()}
    rows = {}
    print(f"\n{title}: tokens/s, median of {ROUNDS} (least to most); processor time for a token, server + client")
    for name, measured in found.items():
        parts = [spread([getattr(one, part) for one in measured]) for part in ("server", "client")]
        times = ratios(rates, name, PYTHON)
        print(f"  {name:28} {spread(rates[name])!s:30} {times.median:5.2f} times Python  ", end="")
        print(f"{parts[0].median:5,.0f} + {parts[1].median:4,.0f} us")
        rows[name] = {
            "tokens_per_second": asdict(spread(rates[name])),
            "times_python": asdict(times),
            "server_us_per_token": asdict(parts[0]),
            "client_us_per_token": asdict(parts[1]),
        }
    ceiling = ratios(rates, CPP, CEILING)
    print(f"  {CPP!r} is {ceiling.median:.2f} of {CEILING!r} ({ceiling.least:.2f} to {ceiling.most:.2f})")
    return {"pipelines": rows, "of_the_ceiling": asdict(ceiling)}


def markdown(results: dict) -> str:
    """The results as the table in README.md."""
    machine = results["machine"]
    place = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['device']}"
    lines = [
        f"{results['day']}; {place}.",
        "",
        "| streams | pipeline | tokens/s | times Python | server | client |",
        "|---|---|---|---|---|---|",
    ]
    for streams, part in ((1, "one_stream"), (STREAMS, "sixteen_streams")):
        for name, row in results[part]["pipelines"].items():
            values = {key: value["median"] for key, value in row.items()}
            lines.append(
                f"| {streams} | {name} | {values['tokens_per_second']:,.0f} | {values['times_python']:.2f} "
                f"| {values['server_us_per_token']:,.0f} | {values['client_us_per_token']:,.0f} |"
            )
    ceiling = results["one_stream"]["of_the_ceiling"]["median"]
    return "\n".join([*lines, "", f"One stream, all in C++, against the ceiling: {ceiling:.2f}.", ""])


def main() -> None:
    """Build, start, measure, print, save."""
    models, backends = sorted(set(ENSEMBLES.values())), custom_backend.build().folder
    with start_server(models, repository=[MODEL_REPOSITORY, custom_backend.REPOSITORY], backends=backends) as server:
        results = {
            "one_stream": report("one stream", compare(server, one_stream)),
            "sixteen_streams": report(f"{STREAMS} streams", compare(server, many_streams)),
        }
    path = save("custom_backend", rounds=ROUNDS, **results)
    print(f"\nwritten to {path.relative_to(custom_backend.PROJECT)}; as the README has it:\n")
    print(markdown(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
