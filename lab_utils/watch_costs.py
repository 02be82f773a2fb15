"""What the instruments cost: time and bytes for each message, with one of them switched on at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lab_utils import trace
from lab_utils.client import stream
from lab_utils.log_lease import LogLease
from lab_utils.server import TritonServer
from lab_utils.watch_server import GrpcEndpoint

ENSEMBLE = "ensemble_latest"


@dataclass(frozen=True)
class Cost:
    """Seconds, and bytes in the log and the trace files, for one message."""

    seconds: float
    nbytes: float


@contextmanager
def verbose_log(server: TritonServer) -> Iterator[None]:
    """Switch the verbose log on for the length of a block, and then back to what it was."""
    with closing(GrpcEndpoint(server.grpc_url, server.api_key)) as endpoint:
        lease = LogLease(endpoint)
        try:
            yield
        finally:
            lease.release()


@contextmanager
def tracing(server: TritonServer, *levels: str, count: int = -1) -> Iterator[None]:
    """Switch the trace on for the length of a block, and then off. The server has to have been given a trace file.

    Parameters
    ----------
    server : TritonServer
    *levels : str
        "TIMESTAMPS", "TENSORS". (TENSORS alone writes no names of models.)
    count : int
        Requests to trace; -1 for all.
    """
    with server.client() as client:
        client.update_trace_settings(settings={"trace_level": list(levels), "trace_count": str(count)})
        try:
            yield
        finally:
            client.update_trace_settings(settings={"trace_level": ["OFF"]})


SWITCHES: dict[str, Callable[[TritonServer], AbstractContextManager]] = {
    "nothing": nullcontext,
    "node log": nullcontext,  # it is switched on by each request's own parameter
    "trace, TIMESTAMPS": lambda server: tracing(server, "TIMESTAMPS"),
    "trace, TENSORS": lambda server: tracing(server, "TIMESTAMPS", "TENSORS"),
    "verbose log": verbose_log,
}


def costs(server: TritonServer, trace_file: str, ids: Sequence[int], rounds: int = 3) -> dict[str, Cost]:
    """Stream ids through rung 4 with nothing on, and with each instrument on, by turns: a busy moment hits them all.

    Parameters
    ----------
    server : TritonServer
        A local server with "ensemble_latest" and a trace file; trace and verbose log are off, and are off afterwards.
    trace_file : str
        That file.
    ids : sequence of int
        Token ids, one for each message of a stream.
    rounds : int
        Streams with each instrument. The best time counts, because other work of the machine only ever adds to it.

    Returns
    -------
    dict of str to Cost
        In the order of `SWITCHES`; "nothing" is what to compare with.
    """
    found: dict[str, list[Cost]] = {name: [] for name in SWITCHES}
    for turn in range(rounds):
        for name, switch in SWITCHES.items():
            with switch(server):
                found[name].append(_cost(server, trace_file, ids, f"{name}, round {turn}"))
    return {
        name: Cost(min(one.seconds for one in each), min(one.nbytes for one in each)) for name, each in found.items()
    }


def _cost(server: TritonServer, trace_file: str, ids: Sequence[int], request_id: str) -> Cost:
    options = {"forced_ids": ids, "dims_only": True, "request_id": request_id, "log": request_id.startswith("node log")}
    before = _written(server, trace_file)
    result = stream(server, ENSEMBLE, "-", len(ids), **options)
    if request_id.startswith("trace"):
        trace.wait_for(trace_file, request_id)  # it is written a moment after the last response
    # To the last arrival, since the request was sent: where messages arrive in bunches, the gaps between say nothing.
    return Cost(result.observations[-1].seconds / len(ids), (_written(server, trace_file) - before) / len(ids))


def _written(server: TritonServer, trace_file: str) -> int:
    """Bytes in the server's log and in its trace files, which are numbered."""
    path = Path(trace_file)
    return sum(file.stat().st_size for file in [server.log_path, *path.parent.glob(f"{path.name}*")])
