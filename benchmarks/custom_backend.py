"""Tokens per second of the pipeline: nodes in Python, one node in C++, both; and with nothing to decode, the ceiling.

One stream: the reported prompt, all its 95 tokens. Sixteen streams: the same, side by side.
The ceiling is the all-C++ pipeline again, with the same ids given instead of generated (FORCED_IDS).

Beside the clock stands the processor time for a token, of the server's processes and of this client. The client is
Python with one thread for each stream, and only one of them runs at a time: it is the limit where its part comes near
the time that a token takes.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import psutil
from side_by_side import Row, Spread, in_turns, main, processor_seconds, ratios, spread

from lab_utils import custom_backend
from lab_utils.client import StreamResult, stream, stream_many
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server

ROUNDS = 11
REPEATS = 6  # texts of one stream in one measurement
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


def timed(server: TritonServer, run: Callable[..., list[StreamResult]], ensemble: str, **options: object) -> Measured:
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
    cases = {name: partial(timed, server, run, one, **options.get(name, {})) for name, one in ENSEMBLES.items()}
    return in_turns(cases, ROUNDS)


LOADS = {"one stream": one_stream, f"{STREAMS} streams": many_streams}


def summary(found: dict[str, list[Measured]]) -> dict[str, object]:
    """What is kept of one comparison."""
    rates = {name: [one.rate for one in measured] for name, measured in found.items()}
    pipelines = {
        name: {
            "tokens_per_second": asdict(spread(rates[name])),
            "times_python": asdict(ratios(rates, name, PYTHON)),
            "server_us_per_token": asdict(spread([one.server for one in measured])),
            "client_us_per_token": asdict(spread([one.client for one in measured])),
        }
        for name, measured in found.items()
    }
    return {"pipelines": pipelines, "of_the_ceiling": asdict(ratios(rates, CPP, CEILING))}


def measure() -> dict:
    """Build the backends, start a server with all pipelines, and compare them."""
    models, backends = sorted(set(ENSEMBLES.values())), custom_backend.build().folder
    with start_server(models, repository=[MODEL_REPOSITORY, custom_backend.REPOSITORY], backends=backends) as server:
        found = {name: summary(compare(server, run)) for name, run in LOADS.items()}
    return {"rounds": ROUNDS, **found}


def rows(results: dict) -> list[Row]:
    """One stream of the all-C++ pipeline against its ceiling."""
    found = results["one stream"]
    rate, ceiling = (found["pipelines"][name]["tokens_per_second"]["median"] for name in (CPP, CEILING))
    return [
        Row(
            what="tokens/s, all nodes in C++, one stream",
            against="the same pipeline with nothing to decode, the ceiling",
            reach="at least 0.8 times",
            measured=f"{rate:,.0f}, the ceiling {ceiling:,.0f}",
            figure=Spread(**found["of_the_ceiling"]),
            bound=0.8,
            least=True,
        )
    ]


def remarks(results: dict) -> str:
    """All pipelines: tokens per second, times Python, and the processor time for a token."""
    lines = []
    for load in LOADS:
        for name, row in results[load]["pipelines"].items():
            rate, times, server, client = (row[key]["median"] for key in row)
            lines.append(
                f"- {load}, {name}: {rate:,.0f} tokens/s, {times:.2f} times Python; processor time for a token "
                f"{server:,.0f} µs in the server's processes, {client:,.0f} µs in the client"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main(__file__)
