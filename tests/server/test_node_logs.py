"""On a server: node logs, the alarm on them, the instruments side by side, the metrics that the alert rules name."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab_utils import node_logs, trace
from lab_utils.client import stream, stream_many
from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.server import TritonServer, start_server
from lab_utils.watch_compare import counted, facts, metrics_page, side_by_side
from lab_utils.watch_costs import costs, tracing, verbose_log

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "triton_ensemble_rules.yml"
DOUBLING = [(2**n,) for n in range(8)]


def logged(server: TritonServer, ensemble: str, *, together: int = 1, **options: object) -> list[node_logs.NodeLine]:
    start = server.log_path.stat().st_size
    results = stream_many(server, ensemble, [REPORTED_PROMPT] * together, log=True, **options)
    assert all(hasattr(result, "lengths") for result in results)
    return node_logs.read_log(server.log_path, start)


def test_both_nodes_write_a_line_for_each_message_and_the_alarm_fires_at_the_fourth(clean_server):
    lines = logged(clean_server, "ensemble_append", max_tokens=8, request_id="bad")
    assert node_logs.dims(lines, "inference", "bad") == node_logs.dims(lines, "postprocess", "bad") == DOUBLING
    assert [line.index for line in lines if line.node == "inference"] == list(range(1, 9))
    assert [line.end for line in lines if line.node == "postprocess"] == [False] * 7 + [True]
    alarms = list(node_logs.alarms(lines))
    assert sorted((alarm.node, alarm.number) for alarm in alarms) == [("inference", 4), ("postprocess", 4)]
    assert all(alarm.sizes == (1, 2, 4, 8) for alarm in alarms)


def test_nothing_is_written_for_a_request_that_did_not_ask(server):
    start = server.log_path.stat().st_size
    stream(server, "ensemble_latest", REPORTED_PROMPT)
    assert node_logs.read_log(server.log_path, start) == []


def test_no_line_is_lost_among_verbose_lines_and_many_streams(server):
    ids = REPORTED_TOKENS * 10
    with verbose_log(server):
        lines = logged(server, "ensemble_latest", together=6, max_tokens=len(ids), forced_ids=ids)
    for node in ("inference", "postprocess"):
        streams = {line.stream_id for line in lines if line.node == node}
        assert len(streams) == 6
        for one in streams:
            assert [line.dims for line in lines if (line.node, line.stream_id) == (node, one)] == [(1,)] * len(ids)
    assert not list(node_logs.alarms(lines))


def test_the_alarm_is_silent_on_rung_4_over_a_long_run(server):
    ids = REPORTED_TOKENS * 300
    lines = logged(server, "ensemble_latest", max_tokens=len(ids), forced_ids=ids)
    assert len(lines) == 2 * len(ids)
    assert [line.index for line in lines if line.node == "inference"] == list(range(1, len(ids) + 1))
    assert not list(node_logs.alarms(lines))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory):
    """A server with a trace file and the trace off."""
    file = str(tmp_path_factory.mktemp("trace") / "trace.json")
    settings = (f"triton,file={file}", "triton,log-frequency=1", "rate=1", "level=OFF")
    flags = [f"--trace-config={setting}" for setting in settings]
    with start_server(["ensemble_append", "ensemble_latest"], flags=flags) as server:
        yield server, file


def test_side_by_side_finds_what_each_instrument_shows_and_metrics_cannot_tell_the_rungs_apart(traced):
    server, file = traced
    found, counts = {}, []
    for ensemble in ("ensemble_append", "ensemble_latest"):
        with side_by_side(server, file, f"one {ensemble}") as shown:
            result = stream(server, ensemble, REPORTED_PROMPT, log=True, request_id=f"one {ensemble}")
        found = {name: facts(rows, result, f"one {ensemble}") for name, rows in shown.items()}
        counts.append(counted(shown, "postprocess"))
        yes = {name: {fact for fact, there in row.items() if there} for name, row in found.items()}
        assert yes == {
            "statistics": {"count"},
            "metrics": {"count", "backlog", "memory"},
            "verbose log": {"count", "sizes", "request id"},
            "trace": {"count", "sizes", "values", "order", "request id"},
            "node log": {"count", "sizes", "order", "request id"},
        }
    assert counts[0] == counts[1] == dict.fromkeys(counts[0], 8)


def test_the_facts_are_looked_for_not_asserted(traced):
    server, file = traced
    with side_by_side(server, file, "again") as shown:
        result = stream(server, "ensemble_latest", REPORTED_PROMPT, log=True, request_id="again")
    other = stream(server, "ensemble_latest", "Pancakes. Ingredients:", 5)
    assert not any(facts(shown["trace"], other, "another id").values())
    assert facts(shown["trace"], result, "again")["values"]


def test_the_trace_is_switched_for_one_request_at_run_time_and_is_off_again(traced):
    server, file = traced
    with tracing(server, "TIMESTAMPS", "TENSORS", count=1):
        for name in ("first", "second"):
            stream(server, "ensemble_latest", REPORTED_PROMPT, request_id=name)
    stream(server, "ensemble_latest", REPORTED_PROMPT, request_id="third")
    assert trace.wait_for(file, "first").whole
    known = {request.request_id for request in trace.requests(trace.read(file))}
    assert not known & {"second", "third"}


def test_costs_are_measured_for_each_instrument_and_all_are_off_afterwards(traced):
    server, file = traced
    paid = costs(server, file, REPORTED_TOKENS * 5, rounds=1)
    assert paid["nothing"].nbytes == 0
    assert paid["verbose log"].nbytes > 10 * paid["node log"].nbytes > 0
    assert paid["trace, TENSORS"].nbytes > paid["trace, TIMESTAMPS"].nbytes > 0
    assert all(cost.seconds > 0 for cost in paid.values())
    before = server.log_path.stat().st_size
    stream(server, "ensemble_latest", REPORTED_PROMPT)
    assert server.log_path.stat().st_size == before


def test_the_server_exports_every_metric_and_label_of_the_alert_rules(server):
    families = text_string_to_metric_families(metrics_page(server))
    exported = {one.name.removesuffix("_total"): set(one.labels) for family in families for one in family.samples}
    named = re.findall(r"\b((?:nv|lab)_\w+)\b(?:\{([^}]*)\})?", RULES.read_text(encoding="utf-8"))
    assert len({name for name, _ in named}) == 6
    for name, inside in named:
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)", inside)) <= exported[name], name
    models = {
        one.labels["model"]
        for family in text_string_to_metric_families(metrics_page(server))
        for one in family.samples
        if one.name == "lab_open_streams"
    }
    assert {"inference", "postprocess"} <= models
