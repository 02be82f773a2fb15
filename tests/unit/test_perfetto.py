"""The file for Perfetto keeps to the Trace Event Format: required fields, nesting on a thread, pairs of arrow ends."""

import json
from collections import defaultdict
from decimal import Decimal

import pytest
from trace_writer import call, decoupled_request, header, ints, save, stamp, tensor

from lab_utils import perfetto, trace

REQUIRED = {
    "X": {"name", "ts", "dur", "pid", "tid"},
    "M": {"name", "pid", "args"},
    "b": {"name", "cat", "id", "ts", "pid", "tid"},
    "e": {"name", "cat", "id", "ts", "pid", "tid"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
}


def written(tmp_path, records):
    """Events of a trace, with exact times."""
    out = tmp_path / "out.json"
    result = perfetto.write(trace.requests(trace.read(save(tmp_path / "t.json", records))), out)
    content = json.loads(out.read_text(encoding="utf-8"), parse_float=Decimal)
    assert set(content) == {"displayTimeUnit", "traceEvents"}
    assert len(content["traceEvents"]) == result.events
    check_format(content["traceEvents"])
    return content["traceEvents"], result


def check_format(events):
    for event in events:
        assert REQUIRED[event["ph"]] <= set(event)
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
        assert isinstance(event["pid"], int)
        assert isinstance(event.get("tid", 0), int)
    check_nesting(events)
    check_pairs(events)


def check_nesting(events):
    """Slices on one thread lie apart, or one in the other."""
    threads = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in threads.values():
        open_ends = []
        for start, end in sorted(slices, key=lambda each: (each[0], -each[1])):
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


def check_pairs(events):
    """Every arrow leaves inside a slice and arrives in one, not earlier; every async slice ends after its begin."""
    slices = [event for event in events if event["ph"] == "X"]
    for first, second in (("s", "f"), ("b", "e")):
        starts = {(e["cat"], e["id"], e["name"], e["pid"] * (first == "b")): e for e in events if e["ph"] == first}
        ends = {(e["cat"], e["id"], e["name"], e["pid"] * (first == "b")): e for e in events if e["ph"] == second}
        assert starts.keys() == ends.keys()
        assert all(ends[key]["ts"] >= start["ts"] for key, start in starts.items())
    for arrow in events:
        if arrow["ph"] in "sf":
            assert any(
                (each["pid"], each["tid"]) == (arrow["pid"], arrow["tid"])
                and each["ts"] <= arrow["ts"] <= each["ts"] + each["dur"]
                for each in slices
            )


def processes(events):
    return {event["args"]["name"]: event["pid"] for event in events if event["ph"] == "M"}


def test_a_process_for_each_model_and_one_for_client_requests(tmp_path):
    events, _ = written(tmp_path, decoupled_request(1, [1, 2, 4]))
    names = processes(events)
    assert set(names) == {"ensemble", "tokenizer", "producer", "consumer", "client requests"}
    assert len(set(names.values())) == 5
    calls = [event for event in events if event.get("cat") == "call"]
    assert {event["name"]: event["pid"] for event in calls} == {
        n: p for n, p in names.items() if n != "client requests"
    }


def test_a_call_shows_times_shapes_and_phases(tmp_path):
    records = call(
        7, "m", [ints("BACKEND_OUTPUT", "X", range(n)) for n in (1, 2)], request_id="mine", start=123_456_789_012_345
    )
    events, _ = written(tmp_path, records)
    (shown,) = [event for event in events if event.get("cat") == "call"]
    assert (shown["ts"], shown["dur"]) == (Decimal("123456789012.345"), Decimal("0.14"))
    assert shown["args"] == {"request": "7 (mine)", "trace id": 7, "version": 1, "output X": "INT32 [1] [2]"}
    assert [event["name"] for event in events if event.get("cat") == "phase"] == ["queue", "compute", "input", "output"]


def test_calls_that_overlap_get_threads_of_their_own(tmp_path):
    records = [record for n, start in enumerate([0, 50, 60, 140, 5000], 1) for record in call(n, "m", start=start)]
    events, _ = written(tmp_path, records)
    threads = [event["tid"] for event in events if event.get("cat") == "call"]
    assert threads == [1, 2, 3, 1, 1]


def test_arrows_go_from_producer_to_consumer(tmp_path):
    events, _ = written(tmp_path, decoupled_request(1, [1, 2, 4]))
    names = {pid: name for name, pid in processes(events).items()}
    arrows = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            arrows[event["id"]][event["ph"]] = names[event["pid"]]
    found = sorted((each["s"], each["f"]) for each in arrows.values())
    assert found == [("producer", "consumer")] * 3 + [("tokenizer", "producer")]


def test_a_second_server_has_processes_of_its_own(tmp_path):
    paths = [save(tmp_path / f"t.json.{n}", call(1, "m")) for n in range(2)]
    perfetto.write(trace.requests(trace.read(paths)), tmp_path / "out.json")
    names = processes(json.loads((tmp_path / "out.json").read_text())["traceEvents"])
    assert set(names) == {"m", "client requests", "m (run 2)", "client requests (run 2)"}


def test_calls_without_times_are_counted_and_left_out(tmp_path):
    events, result = written(tmp_path, [tensor(1, "QUEUE_INPUT", "A", [1], (1,), "INT32")])
    assert (events, result.left_out) == ([], 1)


def test_a_call_that_ends_before_it_starts_is_left_out(tmp_path):
    events, result = written(tmp_path, [header(1, "m"), stamp(1, "REQUEST_START", 50), stamp(1, "REQUEST_END", 40)])
    assert result.left_out == 1
    assert not [event for event in events if event["ph"] == "X"]


def test_names_with_quotes_stay_json(tmp_path):
    events, _ = written(tmp_path, call(1, "m", request_id='a"b\\c\n'))
    assert any('a"b\\c\n' in event["name"] for event in events if event["ph"] == "b")


def test_an_empty_trace_is_a_valid_file(tmp_path):
    assert written(tmp_path, [])[1] == perfetto.Written(0, 0)


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "missing").touch()
    with pytest.raises(OSError, match="missing"):
        perfetto.write([], tmp_path / "missing" / "out.json")
