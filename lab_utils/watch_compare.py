"""What each instrument showed of one request: everything it put out, as rows, searched for facts known from elsewhere.

::

    with side_by_side(server, trace_file, "some id") as shown:
        result = stream(server, ..., log=True, request_id="some id")
    print(comparison(shown, result, "some id"))
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families

from lab_utils import node_logs, trace, watch_server
from lab_utils.client import StreamResult
from lab_utils.errors import ServerError
from lab_utils.server import TritonServer
from lab_utils.tables import table
from lab_utils.watch import watch
from lab_utils.watch_costs import tracing

READ_FROM = {
    "statistics": "the network",
    "metrics": "the network",
    "verbose log": "the server's log",
    "trace": "the trace file",
    "node log": "the server's log",
}
"""Instruments, and what has to be read for each: only the network reaches a server elsewhere without further ado."""

Row = Mapping[str, object]
Shown = dict[str, list[Row]]


@contextmanager
def side_by_side(server: TritonServer, trace_file: str, request_id: str) -> Iterator[Shown]:
    """Use all instruments for the length of a block with one request, which has this id and the parameter "log".

    Parameters
    ----------
    server : TritonServer
        A local server that was given a trace file. Trace and verbose log are switched on for the block.
    trace_file : str
        That file.
    request_id : str
        Of the one request that is sent in the block.

    Yields
    ------
    dict
        Filled when the block ends: instrument to its rows, each a mapping of column to value.
    """
    shown: Shown = {}
    before, start = _counts(server), server.log_path.stat().st_size
    with tracing(server, "TIMESTAMPS", "TENSORS"), watch(server) as seen:
        yield shown
    after = _counts(server)
    for instrument, rows in after.items():
        shown[instrument] = [_increase(row, old) for row, old in zip(rows, before[instrument], strict=True)]
    shown["verbose log"] = [
        # Not the number: the watch counts the lines, the log itself has no such thing.
        {name: value for name, value in asdict(message).items() if name not in ("number", "candidates")}
        for message in seen.messages
    ]
    shown["trace"] = list(_trace_rows(trace.wait_for(trace_file, request_id)))
    shown["node log"] = [asdict(line) for line in node_logs.read_log(server.log_path, start)]


def metrics_page(server: TritonServer) -> str:
    """The page that Prometheus would read from the server's metrics port.

    Raises
    ------
    lab_utils.errors.ServerError
        It cannot be read.
    """
    if not server.metrics_url:
        raise ServerError("the metrics of this server cannot be read from here: it is stopped, or run by somebody else")
    return watch_server.metrics_page(server.metrics_url)


def facts(rows: Sequence[Row], result: StreamResult, request_id: str) -> dict[str, bool]:
    """Which facts about a request some column of the rows has.

    Rows with the same words (such as node and tensor) belong together; each other column of them is a sequence. A fact
    is there when a sequence equals what the client received.
    """
    sequences = _sequences(rows)
    wanted = {
        "count": len(result.lengths),
        "sizes": result.lengths,
        "values": result.ids,
        "order": [one.index for one in result.observations],
    }
    words = {word for row in rows for word in _words(row).values()} | {name for row in rows for name in row}
    found = {fact: any(_holds(sequence, value) for sequence in sequences) for fact, value in wanted.items()}
    return found | {
        "request id": request_id in words,
        "backlog": any("pending" in word for word in words),
        "memory": any("memory" in word for word in words),
    }


def counted(shown: Shown, model: str) -> dict[str, int]:
    """What the metrics of one model grew by, over all its versions; times and what did not grow left out."""
    found: Counter[str] = Counter()
    for row in shown["metrics"]:
        name = row["metric"].removesuffix("_total")
        if row.get("model") == model and not name.endswith("_us"):
            found[name] += int(row["value"])
    return {name: value for name, value in sorted(found.items()) if value}


def comparison(shown: Shown, result: StreamResult, request_id: str) -> str:
    """A table: one line for each instrument, one column for each fact, and what it is read from."""
    found = {name: facts(shown[name], result, request_id) for name in READ_FROM}
    names = list(found["trace"])
    rows = [
        (name, *("yes" if found[name][fact] else None for fact in names), source) for name, source in READ_FROM.items()
    ]
    return table(["instrument", *names, "read from"], rows)


# --- rows ---------------------------------------------------------------------------------------------------------


def _counts(server: TritonServer) -> dict[str, list[Row]]:
    """Statistics and metrics: rows that go on for as long as the models stay loaded."""
    with server.client() as client:
        models = client.get_inference_statistics().model_stats
    statistics = [dict(_flat(json_format.MessageToDict(one, preserving_proto_field_name=True))) for one in models]
    families = text_string_to_metric_families(metrics_page(server))
    metrics = [{"metric": one.name, **one.labels, "value": one.value} for family in families for one in family.samples]
    return {"statistics": sorted(statistics, key=_identity), "metrics": sorted(metrics, key=_identity)}


def _identity(row: Row) -> list:
    """What stays the same in a row while its numbers grow."""
    return sorted(_words(row).items())


def _flat(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, int(value) if str(value).isdigit() and name != "version" else value


def _increase(row: Row, old: Row) -> Row:
    """The same row with what its numbers have grown by."""
    return {name: value - old.get(name, 0) if isinstance(value, int | float) else value for name, value in row.items()}


def _trace_rows(request: trace.Request) -> Iterator[Row]:
    for call in request.calls:
        for hop in call.tensors:
            values = trace.values(hop).ravel().tolist()
            yield {
                "request": request.request_id,
                "node": call.model,
                "side": hop.side,
                "tensor": hop.name,
                "dims": hop.dims,
                "values": values,
            }


# --- facts --------------------------------------------------------------------------------------------------------


def _words(row: Row) -> dict[str, str]:
    return {name: value for name, value in row.items() if isinstance(value, str)}


def _sequences(rows: Sequence[Row]) -> list[list]:
    groups: dict[tuple, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        words = _words(row)
        for name, value in row.items():
            if name not in words:
                groups[tuple(words.items())][name].append(value)
    return [sequence for columns in groups.values() for sequence in columns.values()]


def _holds(sequence: list, wanted: object) -> bool:
    """Whether a sequence equals a list, or tells a count: by its length, or as its only number."""
    if isinstance(wanted, int):
        return len(sequence) == wanted or sequence == [wanted]
    return sequence == wanted or [_single(value) for value in sequence] == wanted


def _single(value: object) -> object:
    """The value in an array of one."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
