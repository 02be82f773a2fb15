"""Tokens per second of rung 4 in Python, of PyTriton, and of the same pipeline in one model, without an ensemble.

The same prompt and the same tokens everywhere, one stream and sixteen side by side, and one client for all
(`light_client`). Beside the clock stands the processor time that each process used for a token.
"""

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from light_client import Call, stream_together
from pytriton_server import BATCHED, DECODED, GIVEN, PyTriton, start_pytriton
from side_by_side import Row, Spread, in_turns, main, processor_seconds, ratios, spread

from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server
from lab_utils.survey import tokens_of

ROUNDS = 5
TOKENS = 95  # of the reported prompt's continuation, to its end
STREAMS = 16
REPEATS = 3  # texts of a single stream in one measurement
REPOSITORY = Path(__file__).parent / "model_repository"
LAB, LEAN, ONE, NO_STORE = "rung 4", "lean", "one model", "no store"
TITLES = {
    LAB: "rung 4, ensemble in Python",
    LEAN: "the same nodes, an ensemble that hands on text and ids alone",
    ONE: "the same in one Python model, no ensemble",
    DECODED: "PyTriton, a generator for each request",
    BATCHED: "PyTriton, its dynamic batcher",
    GIVEN: "PyTriton, ids given, nothing decoded",
    NO_STORE: "PyTriton with PYTRITON_NO_TENSORSTORE: one stream a generator, more the batcher",
}
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Case:
    """A pipeline to measure: what to ask it for, the output that holds the ids, and its processes by name."""

    call: Call
    output: str
    processes: Mapping[psutil.Process, str]


def numbers(*values: int) -> np.ndarray:
    """An INT32 tensor's array."""
    return np.array(values, dtype=np.int32)


def lab_case(server: TritonServer, model: str) -> Case:
    """A pipeline of the lab: text in, pieces of text and the ids out."""
    inputs = {"PROMPT": np.array([REPORTED_PROMPT.encode()], dtype=np.object_), "MAX_TOKENS": numbers(TOKENS)}
    call = Call(server.grpc_url, model, inputs, ["TEXT", "RECEIVED_IDS", "ERROR"], server.api_key)
    return Case(call, "RECEIVED_IDS", {process: name.partition(" ")[0] for process, name in server.processes.items()})


def pytriton_case(server: PyTriton, model: str, ids: list[int]) -> Case:
    """A model of PyTriton: ids in, ids out."""
    prompt = numbers(*tokens_of(REPORTED_PROMPT))
    inputs = {"PROMPT_IDS": prompt, "MAX_TOKENS": numbers(TOKENS)}
    if model == GIVEN:
        inputs = {"FORCED_IDS": numbers(*ids)}
    if model == BATCHED:
        inputs = {name: values[None, :] for name, values in inputs.items()}
    return Case(Call(server.grpc_url, model, inputs, ["TOKEN_ID"]), "TOKEN_ID", server.processes)


def stream_ids(case: Case, streams: int) -> tuple[list[list[int]], float, float]:
    """The ids of each stream; seconds, and processor seconds of the client."""
    found = stream_together(case.call, streams)
    ids = [[int(token) for message in stream for token in message.ravel()] for stream in found.values(case.output)]
    return ids, found.seconds, found.processor_seconds


def measure_case(case: Case, streams: int, repeats: int, expected: list[int]) -> dict:
    """Tokens per second, and processor seconds by process; every stream must have brought the ids expected."""
    before, seconds, client = used(case), 0.0, 0.0
    for _ in range(repeats):
        ids, took, here = stream_ids(case, streams)
        assert ids == [expected] * streams, f"{case.call.model} did not stream the ids that rung 4 streams"
        seconds, client = seconds + took, client + here
    tokens = TOKENS * streams * repeats
    return {"rate": tokens / seconds, "tokens": tokens, "used": {**(used(case) - before), "client": client}}


def used(case: Case) -> Counter:
    """Processor seconds so far, by the name of the process."""
    total: Counter = Counter()
    for process, name in case.processes.items():
        total[name] += processor_seconds([process])
    return total


def compare(cases: Mapping[str, Case], streams: int, expected: list[int]) -> dict[str, dict]:
    """All cases in turns: tokens/s, rung 4's as a multiple of them, and microseconds of processor time for a token."""
    repeats = REPEATS if streams == 1 else 1
    found = in_turns(
        {name: partial(measure_case, case, streams, repeats, expected) for name, case in cases.items()}, ROUNDS
    )
    rates = {name: [one["rate"] for one in each] for name, each in found.items()}
    return {
        name: {
            "rate": asdict(spread(rates[name])),
            "times": asdict(ratios(rates, LAB, name)),
            "used": per_token(each),
        }
        for name, each in found.items()
    }


def per_token(measured: list[dict]) -> dict[str, float]:
    """Microseconds of processor time for a token, by process."""
    total = sum((Counter(one["used"]) for one in measured), Counter())
    tokens = sum(one["tokens"] for one in measured)
    return {name: seconds / tokens * MICROSECONDS for name, seconds in total.items()}


@contextlib.contextmanager
def all_servers() -> Iterator[tuple[TritonServer, PyTriton, PyTriton]]:
    """The lab's server, PyTriton, and PyTriton without its tensor store, all at once: idle, they cost nothing."""
    models = ["ensemble_latest", "ensemble_text", "one_model"]
    with (
        start_server(models, repository=[MODEL_REPOSITORY, REPOSITORY], local=True) as lab,
        start_pytriton() as pytriton,
        start_pytriton(PYTRITON_NO_TENSORSTORE="1") as bare,
    ):
        yield lab, pytriton, bare


def measure() -> dict:
    """One stream and sixteen, of every pipeline; and what decoding alone takes."""
    with all_servers() as (lab, pytriton, bare):
        ensemble = lab_case(lab, "ensemble_latest")
        [ids], *_ = stream_ids(ensemble, 1)
        cases = {LAB: ensemble, LEAN: lab_case(lab, "ensemble_text"), ONE: lab_case(lab, "one_model")}
        cases |= {name: pytriton_case(pytriton, name, ids) for name in (DECODED, BATCHED, GIVEN)}
        no_store = {1: pytriton_case(bare, DECODED, ids), STREAMS: pytriton_case(bare, BATCHED, ids)}
        found, hops = {}, {}
        for streams, further in no_store.items():
            before = postprocess_times(lab)
            found[str(streams)] = compare({**cases, NO_STORE: further}, streams, ids)
            hops[str(streams)] = mean_times(before, postprocess_times(lab))
    return {"rounds": ROUNDS, "streams": found, "hops": hops, "decode": {one: decode_alone(int(one)) for one in found}}


def postprocess_times(server: TritonServer) -> dict[str, tuple[int, int]]:
    """What Triton's statistics say of post-processing so far: calls and nanoseconds, in its queue and in its model."""
    with server.client() as client:
        [stats] = client.get_inference_statistics("postprocess").model_stats
    times = stats.inference_stats
    return {"queue": (times.queue.count, times.queue.ns), "model": (times.compute_infer.count, times.compute_infer.ns)}


def mean_times(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Microseconds for a call, between two looks at the statistics."""
    return {name: (after[name][1] - ns) / (after[name][0] - count) / 1000 for name, (count, ns) in before.items()}


def decode_alone(streams: int) -> float:
    """Microseconds for a token of the tiny model by itself, in a process that computes in one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(decode, streams).result()


def decode(streams: int) -> float:
    """Decode the reported text for that many streams together; microseconds of processor time for a token."""
    sys.path.append(str(MODEL_REPOSITORY / "inference"))
    from batching import Batch
    from transformer import Transformer

    prompt = tokens_of(REPORTED_PROMPT)
    batch = Batch(Transformer.load(MODEL_REPOSITORY / "inference" / "recipes.safetensors"), streams)
    for repeat in range(REPEATS + 1):
        if repeat == 1:  # the first one warms up
            began = time.process_time()
        for _ in range(streams):
            batch.join(prompt, TOKENS)
        while batch.sequences:
            batch.iterate(list(batch.sequences))
    return (time.process_time() - began) / (REPEATS * streams * TOKENS) * MICROSECONDS


def of(results: dict, streams: int, name: str, part: str) -> Spread:
    """What was found for a pipeline: its "rate", or "times", rung 4's as a multiple of it."""
    return Spread(**results["streams"][str(streams)][name][part])


def sum_used(results: dict, streams: int, name: str) -> float:
    """Microseconds of processor time for a token, in all processes."""
    return sum(results["streams"][str(streams)][name]["used"].values())


def rows(results: dict) -> list[Row]:
    """Rung 4 against PyTriton, with one stream and with sixteen."""
    return [row(results, 1, DECODED, 1.5), row(results, STREAMS, DECODED, 4.0), row(results, STREAMS, BATCHED, 4.0)]


def row(results: dict, streams: int, name: str, bound: float) -> Row:
    """Rung 4 against one of PyTriton's forms."""
    mine, other = (of(results, streams, one, "rate").median for one in (LAB, name))
    return Row(
        what=f"tokens/s, {count(streams).lower()}, rung 4 in Python beside PyTriton's {name} form",
        against=f"{TITLES[name]}, the same ids",
        reach=f"at least {bound:g} times",
        measured=f"{mine:,.0f}/s, PyTriton {other:,.0f}/s",
        figure=of(results, streams, name, "times"),
        bound=bound,
        least=True,
    )


def remarks(results: dict) -> str:
    """Every pipeline's rate; what the ensemble costs; where the processor time goes."""
    costs = [cost(results, int(streams)) for streams in results["decode"]]
    return "\n\n".join([rate_table(results), cost_table(results), "\n".join([*costs, limit(results)])])


def rate_table(results: dict) -> str:
    """Tokens per second of all pipelines, and the processor time for a token."""
    head = ["pipeline", "one stream", f"{STREAMS} streams", f"µs of processor time a token, {STREAMS} streams"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|"]
    for name, title in TITLES.items():
        rates = [str(of(results, streams, name, "rate")) for streams in (1, STREAMS)]
        lines.append(f"| {title} | {' | '.join(rates)} | {sum_used(results, STREAMS, name):,.0f} |")
    return "\n".join(["Tokens/s, median (least to most):", "", *lines])


def cost_table(results: dict) -> str:
    """Microseconds of processor time a token, by process, of the ensemble and of the one model."""
    lines = ["| microseconds a token, in | ensemble, one stream | one model | ensemble, 16 streams | one model |"]
    lines.append("|---|---|---|---|---|")
    columns = [results["streams"][streams][case]["used"] for streams in ("1", str(STREAMS)) for case in (LAB, ONE)]
    for title, names in PARTS.items():
        values = [f"{sum(column.get(name, 0.0) for name in names):,.0f}" for column in columns]
        lines.append(f"| {title} | {' | '.join(values)} |")
    lines.append(f"| sum | {' | '.join(f'{sum(column.values()):,.0f}' for column in columns)} |")
    return "\n".join(lines)


PARTS = {
    "the server itself": ["server"],
    "preprocess": ["preprocess"],
    "inference, or the one model": ["inference", "one_model"],
    "postprocess": ["postprocess"],
    "the client": ["client"],
}


def cost(results: dict, streams: int) -> str:
    """What the ensemble costs, with one stream or with many."""
    more = sum_used(results, streams, LAB) - sum_used(results, streams, ONE)
    hop, decoding = results["hops"][str(streams)], results["decode"][str(streams)]
    return (
        f"- {count(streams)}: for a token the ensemble uses {more:,.0f} µs of processor time more than the one model, "
        f"and it streams {of(results, streams, ONE, 'times')} times as many tokens/s. Decoding by itself takes "
        f"{decoding:,.0f} µs. A message waits {hop['queue']:,.0f} µs in the queue of `postprocess`, and "
        f"{hop['model']:,.0f} µs for its answer (Triton's statistics)."
    )


def count(streams: int) -> str:
    """One stream, or how many there are."""
    return "One stream" if streams == 1 else f"{streams} streams"


def limit(results: dict) -> str:
    """What the cores would allow with many streams if nothing ever waited, and how many of them were busy."""
    cores, parts = results["machine"]["cores"], []
    for name in (LAB, ONE, BATCHED):
        microseconds = sum_used(results, STREAMS, name)
        busy = of(results, STREAMS, name, "rate").median * microseconds / MICROSECONDS
        parts.append(f"{TITLES[name]} {cores * MICROSECONDS / microseconds:,.0f} ({busy:.1f} cores were busy)")
    return f"- {STREAMS} streams, tokens/s if {cores} cores did nothing else and never waited: {'; '.join(parts)}."


if __name__ == "__main__":
    main(__file__)
