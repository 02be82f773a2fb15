"""The command ``trace``, its figure and its tables."""

import argparse
import json

import pytest
from trace_writer import call, decoupled_request, ints, save, stamp, tensor, text

from lab_utils import trace, trace_cli
from lab_utils.trace_figure import pair_figure, pair_table, repeated
from lab_utils.trace_tracks import pairs


def run(*words):
    parser = argparse.ArgumentParser()
    trace_cli.add_command(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["trace", *map(str, words)])
    return arguments.run(arguments)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def doubling(tmp_path):
    healthy = decoupled_request(21, [1] * 6, "healthy", start=90_000)
    return save(tmp_path / "t.json", [*decoupled_request(1, [1, 2, 4, 8, 16, 32], "sick"), *healthy])


def test_the_hops_and_the_verdict_are_printed(doubling, capsys):
    assert run(doubling) == 0
    said = capsys.readouterr().out
    assert "2 client request(s), 18 calls" in said
    assert "request 1 (sick), hop by hop" in said
    assert "producer   output  IDS          INT32         6  [1] [2] [4] [8] [16] [32]    252" in said
    assert "verdict: producer, at its output IDS" in said
    assert "producer IDS → consumer" in said
    assert ["6", "[32]", "128", "[32]", "128"] in [line.split() for line in said.splitlines()]
    assert "problem" not in said
    assert "note" not in said


def test_names_with_a_dot_are_shown_and_what_a_callee_answered_is_not(tmp_path, capsys):
    sent = [ints("BACKEND_OUTPUT", "out.0", [n]) for n in (1, 2)]
    records = [*call(2, "a", [ints("QUEUE_INPUT", "input.1", [4]), *sent], parent=1), *call(1, "ens")]
    assert run(save(tmp_path / "t.json", records)) == 0
    said = capsys.readouterr().out
    assert "input.1" in said
    assert "a.out.0" not in said


def test_a_request_is_found_by_trace_id_and_by_the_clients_id(doubling, capsys):
    for name in ("21", "healthy", "21 (healthy)"):
        assert run(doubling, "--request", name) == 0
        assert "request 21 (healthy), hop by hop" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no request 'nobody'"):
        run(doubling, "--request", "nobody")


def test_every_hop_has_a_row_with_its_times(doubling, capsys):
    run(doubling, "--hops", "--rows", 1000)
    said = capsys.readouterr().out
    assert "1 (sick)" in said
    (row,) = [line for line in said.splitlines() if "consumer" in line and "IDS " in line and "[32]" in line][:1]
    assert row.split() == ["9", "1", "consumer", "1", "input", "IDS", "6", "INT32", "[32]", "128", "0.00", "0.00"]
    assert "left out" not in said


def test_long_tables_are_cut_with_a_word(doubling, capsys):
    run(doubling, "--hops", "--rows", 3)
    assert "more hops of this request left out; --rows " in capsys.readouterr().out
    with pytest.raises(ValueError, match="--rows is 0"):
        run(doubling, "--rows", 0)


def test_values_are_printed_on_demand(doubling, capsys):
    run(doubling, "--values", "sick", "--rows", 1000)
    said = capsys.readouterr().out
    assert "tokenizer input PROMPT 1: b'hello'" in said
    assert "producer output IDS 5: 0 1 2 3 4 5 6 7 8 9 10 11 ... (16 in all)" in said


def test_values_that_triton_does_not_write_are_explained(tmp_path, capsys):
    path = save(tmp_path / "t.json", call(1, "m", [("QUEUE_INPUT", "H", b"", (2,), "FP16")]))
    assert run(path, "--values", "1") == 0
    assert "m input H 1: not shown: H is FP16" in capsys.readouterr().out


def test_json_has_the_hops_and_the_verdict(doubling, capsys):
    assert run(doubling, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["requests"], said["calls"], said["problems"]) == (2, 18, [])
    assert (said["verdict"]["node"], said["verdict"]["first"]) == ("producer", 2)
    assert said["models"]["consumer"] == {"calls": 12, "responses": 12}
    consumer = [hop for hop in said["hops"] if hop["model"] == "consumer" and hop["tensor"] == "IDS"]
    assert [hop["shape"] for hop in consumer] == [[1], [2], [4], [8], [16], [32]]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_figure_and_perfetto_files_are_saved(doubling, tmp_path, capsys, form):
    assert run(doubling, "--figure", tmp_path / "new" / "f.png", "--perfetto", tmp_path / "more" / "p.json", *form) == 0
    assert (tmp_path / "new" / "f.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "more" / "p.json").read_text())["traceEvents"]
    said = capsys.readouterr().out
    if form:
        json.loads(said)
    else:
        assert "figure: " in said
        assert "open it at https://ui.perfetto.dev" in said


def test_times_alone_give_times_and_a_word_on_tensors(tmp_path, capsys):
    assert run(save(tmp_path / "t.json", call(1, "m"))) == 0
    said = capsys.readouterr().out
    assert "level=TENSORS" in said
    assert "hop by hop" not in said
    assert "m          1          -            0.00              0.00" in said


def test_tensors_alone_give_hops_and_a_word_on_times(tmp_path, capsys):
    assert run(save(tmp_path / "t.json", [tensor(1, "QUEUE_INPUT", "A", [1, 2], (2,), "INT32")])) == 0
    said = capsys.readouterr().out
    assert "level TENSORS alone" in said
    assert "A               1  INT32  [2]        8" in said


def test_problems_are_said_first_and_not_all_of_them(tmp_path, capsys):
    good = call(1, "m")
    broken = [record for n in range(8) for record in (b'{"id":1,"activity":"x\x00', stamp(1, f"T{n}", n))]
    assert run(save(tmp_path / "t.json", [*good, *broken])) == 0
    said = capsys.readouterr().out
    assert said.startswith("problem: ")
    assert said.count("passed over") == trace_cli.SHOWN_PROBLEMS
    assert "and 3 more problems" in said


@pytest.mark.parametrize("lost", [b'"id":3,"model_name"', b'"id":3,"timestamps":[{"name":"REQUEST_END"', b'"id":1,'])
def test_requests_that_are_not_whole_are_said(tmp_path, capsys, lost):
    """As if the server had not written the beginning of the producer's call, its end, or the client's own call."""
    records = [one for one in decoupled_request(1, [1, 2, 3]) if lost not in one]
    path = save(tmp_path / "t.json", records)
    assert run(path) == 0
    assert "note: 1 client request(s) are not whole in the file" in capsys.readouterr().out
    run(path, "--json")
    assert json.loads(capsys.readouterr().out)["not_whole"] == 1


@pytest.mark.parametrize("content", [b"", b"hello", b"[]"])
def test_files_without_a_call_are_exit_status_2(tmp_path, capsys, content):
    (tmp_path / "t.json").write_bytes(content)
    assert run(tmp_path / "t.json") == 2
    assert "no call could be read from" in capsys.readouterr().out
    assert run(tmp_path / "t.json", "--json") == 2
    assert json.loads(capsys.readouterr().out)["hops"] == []


def test_without_iterations_there_is_no_figure_and_that_is_said(tmp_path, capsys):
    path = save(tmp_path / "t.json", call(1, "m", [ints("QUEUE_INPUT", "A", [1])]))
    assert run(path, "--figure", tmp_path / "f.png") == 0
    said = capsys.readouterr().out
    assert "verdict: none" in said
    assert "no figure: in this request no tensor has more than one message" in said
    assert not (tmp_path / "f.png").exists()


def test_the_figure_is_saved_where_nothing_else_is_asked_for(doubling, tmp_path, capsys):
    assert run(doubling) == 0
    assert "figure: artifacts/trace.png" in capsys.readouterr().out
    assert (tmp_path / "artifacts" / "trace.png").read_bytes().startswith(b"\x89PNG")


# --- the figure -------------------------------------------------------------------------------------------------------


def found(path):
    (first, *_) = trace.requests(trace.read(path))
    return pairs(first)


def test_the_figure_lays_what_was_received_over_what_was_sent(doubling):
    figure = pair_figure(found(doubling), "title")
    (axes,) = figure.axes
    sent, received = axes.lines
    assert list(sent.get_ydata()) == list(received.get_ydata()) == [1, 2, 4, 8, 16, 32]
    assert sent.get_linewidth() > received.get_linewidth()
    assert axes.get_yscale() == "log"
    assert [word.get_text() for word in axes.get_legend().get_texts()] == ["sent by producer", "received by consumer"]


def test_a_missing_message_is_a_gap_in_figure_and_table(tmp_path):
    records = decoupled_request(1, [1, 2, 3])
    lost = [record for record in records if b'"id":6,' not in record]
    (pair, *_) = chosen = repeated(found(save(tmp_path / "t.json", lost)), focus=("producer", "IDS"))
    assert (pair.by, len(pair.sent), len(pair.received)) == ("name", 3, 2)
    assert len(pair_figure(chosen).axes[0].lines[1].get_ydata()) == 2
    assert pair_table(chosen, focus=("producer", "IDS")).splitlines()[-1].split() == ["3", "[3]", "12", "-", "-"]


def test_the_focus_comes_first(tmp_path):
    sizes = [("BIG", 100), ("FEW", 1), ("BIG", 400), ("FEW", 2), ("BIG", 1600), ("FEW", 4)]
    sent = [ints("BACKEND_OUTPUT", name, range(size)) for name, size in sizes]
    got = [call(3 + n, "b", [ints("QUEUE_INPUT", name, range(size))], parent=1) for n, (name, size) in enumerate(sizes)]
    records = [*(record for each in got for record in each), *call(2, "a", sent, parent=1), *call(1, "ens")]
    every = found(save(tmp_path / "t.json", records))
    assert [pair.output for pair in repeated(every)] == ["BIG", "FEW"]
    assert [pair.output for pair in repeated(every, focus=("a", "FEW"))] == ["FEW", "BIG"]


def test_text_is_measured_in_bytes(tmp_path):
    words = [b"a", b"ab", b"abc"]
    got = [call(3 + n, "b", [text("QUEUE_INPUT", "T", word)], parent=1) for n, word in enumerate(words)]
    sent = [text("BACKEND_OUTPUT", "T", word) for word in words]
    records = [*(record for each in got for record in each), *call(2, "a", sent, parent=1), *call(1, "ens")]
    (axes,) = pair_figure(found(save(tmp_path / "t.json", records))).axes
    assert list(axes.lines[0].get_ydata()) == [1, 2, 3]
    assert axes.get_ylabel() == "bytes of text in one message"
