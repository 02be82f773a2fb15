"""Reading node logs: every line of a node is found, nothing else is, and the alarm works on them."""

import json
import tracemalloc

import pytest

from lab_utils import node_logs
from lab_utils.alarm import MOST_TRACKED, Rules
from lab_utils.watch_figure import watch_figure

TRITON = 'I1123 14:07:31.921605 17991 infer_request.cc:132] "[request id: x] Setting state from INITIALIZED to PENDING"'


def text(**changes: object) -> str:
    """A line as the models write it."""
    line = {"time": 5.5, "node": "inference", "request_id": "a", "stream_id": 7, "index": 1, "dims": [1], "end": False}
    return json.dumps(line | changes)


def read(*lines: str) -> list[node_logs.NodeLine]:
    return list(node_logs.read(lines))


def lines_of(lengths: list[int], node: str = "inference", stream_id: int = 7, **changes: object) -> list:
    made = [
        text(node=node, stream_id=stream_id, index=n, dims=[length], **changes) for n, length in enumerate(lengths, 1)
    ]
    return read(*made)


def test_a_line_is_read_as_it_was_written():
    (line,) = read(text(dims=[3, 4], end=True))
    assert line == node_logs.NodeLine(5.5, "inference", "a", 7, 1, (3, 4), True)


@pytest.mark.parametrize(
    "line",
    [
        text() + "\n",
        TRITON + text(),
        TRITON.replace("[", "{") + text(),
        '{"other": {"deep": [1]}} ' + text() + ' {"more": 1}',
        "\x1b[0m" + text(),
        text(colour="blue", dims=[1]),
        text(index=None),
        text(request_id='{"stream_id": 1} "quoted"\nbroken'),
        text(request_id="茶 \ud83d\ude00"),
        text(time=1),
    ],
)
def test_a_line_is_found_wherever_it_stands(line):
    assert len(read(line)) == 1


def test_two_lines_in_one_are_two():
    assert [line.index for line in read(text(index=1) + text(index=2))] == [1, 2]


@pytest.mark.parametrize(
    "line",
    ["", TRITON, "{", '{"stream_id"', "{}", "null", '["stream_id"]', '"stream_id"', '{"a": ' * 100_000 + '"stream_id"'],
)
def test_everything_else_is_passed_over(line):
    assert read(line) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"time": "now"},
        {"time": None},
        {"node": 1},
        {"request_id": None},
        {"stream_id": "7"},
        {"stream_id": True},
        {"index": 1.5},
        {"index": True},
        {"dims": 8},
        {"dims": None},
        {"dims": ["8"]},
        {"dims": [True]},
        {"dims": {"0": 1}},
        {"end": 1},
    ],
    ids=str,
)
def test_a_line_with_values_of_another_kind_is_not_taken_and_not_lost(changes):
    unreadable: list[str] = []
    assert list(node_logs.read([text(**changes), text()], unreadable)) == read(text())
    assert unreadable == [text(**changes)]


def test_a_line_that_lacks_a_key_or_its_end_is_named_as_unreadable():
    short = text()[:-4]
    lacking = text().replace('"index"', '"number"')
    unreadable: list[str] = []
    assert list(node_logs.read([short, lacking, TRITON], unreadable)) == []
    assert unreadable == [short, lacking]


def test_a_log_is_read_from_a_byte_on_whatever_bytes_are_in_it(tmp_path):
    log = tmp_path / "server.log"
    log.write_bytes(text(index=1).encode() + b"\n\xff\xfe\x00 broken\n")
    start = log.stat().st_size
    log.write_bytes(log.read_bytes() + TRITON.encode() + text(index=2).encode() + b"\n" + text(index=3).encode()[:20])
    assert [line.index for line in node_logs.read_log(log)] == [1, 2]
    assert [line.index for line in node_logs.read_log(log, start)] == [2]


def test_dims_are_those_of_one_node_and_one_stream():
    lines = lines_of([1, 2, 4]) + lines_of([1, 2], node="postprocess") + lines_of([9], stream_id=8, request_id="b")
    assert node_logs.dims(lines, "inference", "a") == [(1,), (2,), (4,)]
    assert node_logs.dims(lines, "postprocess") == [(1,), (2,)]
    with pytest.raises(ValueError, match=r"2 streams at node 'inference'; expected one: name a request"):
        node_logs.dims(lines, "inference")
    with pytest.raises(ValueError, match=r"0 streams at node 'inference' of request 'c'.*parameter \"log\""):
        node_logs.dims(lines, "inference", "c")


def test_two_streams_with_the_same_request_id_are_not_mixed():
    lines = lines_of([1, 2, 4]) + lines_of([8, 16, 32], stream_id=8)
    assert not list(node_logs.alarms(lines))
    with pytest.raises(ValueError, match="2 streams"):
        node_logs.dims(lines, "inference", "a")


def test_the_alarm_comes_with_the_line_that_completes_it():
    lines = iter(lines_of([1, 2, 4, 8, 16, 32]))
    alarm = next(node_logs.alarms(lines))
    assert (alarm.node, alarm.number, alarm.sizes) == ("inference", 4, (1, 2, 4, 8))
    assert [line.index for line in lines] == [5, 6]  # not one line further was read
    assert str(alarm).startswith(
        "ALARM dims: inference, logged message, dimension 0, message 4 of request a (stream 7)"
    )


def test_the_alarm_fires_at_each_node_once_and_not_where_nothing_grows():
    doubling = [1, 2, 4, 8, 16, 32, 64, 128]
    lines = lines_of(doubling) + lines_of(doubling, node="postprocess") + lines_of([1] * 5_000, stream_id=8)
    assert [(alarm.node, alarm.number) for alarm in node_logs.alarms(lines)] == [("inference", 4), ("postprocess", 4)]
    assert next(alarm.number for alarm in node_logs.alarms(lines, Rules(times=1))) == 2


def test_streams_are_kept_apart_while_they_run_together():
    rows = [lines_of([1] * 20, stream_id=stream) for stream in range(50)] + [
        lines_of([2**n for n in range(20)], stream_id=99)
    ]
    mixed = [line for turn in zip(*rows, strict=True) for line in turn]
    assert [(alarm.number, alarm.request) for alarm in node_logs.alarms(mixed)] == [(4, "a (stream 99)")]


def test_what_is_remembered_of_streams_is_bounded():
    streams = (node_logs.NodeLine(1.0, "n", "", stream, 1, (1,), True) for stream in range(3 * MOST_TRACKED))
    followed = node_logs.alarms(streams)
    tracemalloc.start()
    assert next(followed, None) is None
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


def test_the_figure_of_a_watch_shows_the_long_flat_stream_and_not_the_single_messages():
    """Where nothing grows, that is what there is to see."""
    lines = [one for n in range(8) for one in lines_of([1], node=f"called once {n}", stream_id=n)]
    figure = watch_figure(node_logs.messages(lines + lines_of([1] * 50)), [], [], began=0.0)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == "inference out message"
