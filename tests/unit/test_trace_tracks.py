"""From a trace to producers and consumers, and to the verdict: the same faults as on a real server, and more."""

import pytest
from trace_writer import call, decoupled_request, ints, save, text

from lab_utils import trace, trace_tracks
from lab_utils.trace_tracks import hops, lines, pairs, tracks
from lab_utils.verdict import judge


def requests(tmp_path, records):
    problems = []
    found = list(trace.requests(trace.read(save(tmp_path / "t.json", records), problems)))
    assert problems == []
    return found


def verdict(tmp_path, records):
    return judge(tracks(requests(tmp_path, records)))


@pytest.mark.parametrize(
    ("lengths", "kind", "first"),
    [((1, 2, 4, 8, 16), "exponential", 2), ((1, 2, 3, 4, 5), "linear", 2), ((2, 2, 2, 4, 8, 16), "exponential", 4)],
)
def test_the_producer_that_grows_is_named_and_not_who_passes_on(tmp_path, lengths, kind, first):
    found = verdict(tmp_path, decoupled_request(1, lengths, "mine"))
    assert (found.node, found.tensor, found.kind, found.first) == ("producer", "IDS", kind, first)
    assert found.others == ()
    assert "1 (mine)" in found.evidence[0]
    assert "each of these messages holds the whole message before it" in found.evidence


@pytest.mark.parametrize("lengths", [(1,) * 8, (3, 1, 4, 1, 5, 9, 2, 6), (8, 4, 2, 1)])
def test_nobody_is_named_when_nothing_grows(tmp_path, lengths):
    assert verdict(tmp_path, decoupled_request(1, lengths)).node is None


def test_a_consumer_that_keeps_all_it_got_is_named(tmp_path):
    records = []
    for n in range(6, 0, -1):
        answer = text("BACKEND_OUTPUT", "TEXT", b" ".join(b"w%d" % k for k in range(n)))
        records += call(n + 1, "consumer", [ints("QUEUE_INPUT", "ID", [n]), answer], parent=1)
    records += call(1, "ensemble", [text("QUEUE_INPUT", "PROMPT", b"p")])
    found = verdict(tmp_path, records)
    assert (found.node, found.tensor, found.kind) == ("consumer", "TEXT", "linear")


def test_a_node_that_is_called_once_a_request_is_judged_over_all_requests(tmp_path):
    records = []
    for n in range(1, 7):
        tensors = [text("QUEUE_INPUT", "P", b"same"), ints("BACKEND_OUTPUT", "IDS", [k // 3 for k in range(3 * n)])]
        records += call(10 * n + 1, "preprocess", tensors, parent=10 * n, start=n * 1000)
        records += call(10 * n, "ensemble", tensors, start=n * 1000)
    found = verdict(tmp_path, records)
    assert (found.node, found.tensor, found.kind) == ("preprocess", "IDS", "linear")
    assert "one message for each request" in found.evidence[0]
    assert found.others == ()


def test_longer_prompts_from_the_client_are_no_fault(tmp_path):
    records = []
    for n in range(1, 8):
        records += call(
            n, "model", [ints("QUEUE_INPUT", "A", range(n)), ints("BACKEND_OUTPUT", "B", range(n))], start=n
        )
    assert verdict(tmp_path, records).node is None


def test_a_request_that_failed_does_not_shift_those_after_it(tmp_path):
    records = []
    for n, size in enumerate([2, 3, 90, 5, 6, 7, 8], 1):
        answer = [ints("BACKEND_OUTPUT", "B", range(size))] if size != 90 else []
        records += call(n, "model", [ints("QUEUE_INPUT", "A", range(size)), *answer], start=n)
    assert verdict(tmp_path, records).node is None


@pytest.mark.parametrize(("limits", "node"), [([1, 2, 4, 8, 16], None), ([9] * 5, "model")])
def test_a_limit_that_the_client_raises_explains_longer_answers(tmp_path, limits, node):
    records = []
    for n, limit in enumerate(limits, 1):
        tensors = [ints("QUEUE_INPUT", "LIMIT", [limit]), ints("BACKEND_OUTPUT", "B", range(2**n))]
        records += call(n, "model", tensors, start=n)
    assert verdict(tmp_path, records).node == node


def test_a_node_that_collects_messages_is_not_judged_by_its_answer_alone(tmp_path):
    """It is called for each message of a request, and answers to the last one; the client asks for more each time."""
    records = []
    for n in range(1, 7):
        for k in range(n + 1):
            answer = [ints("BACKEND_OUTPUT", "ALL", range(n + 1))] if k == n else []
            tensors = [ints("QUEUE_INPUT", "ONE", [k]), *answer]
            records += call(100 * n + k + 1, "collector", tensors, parent=100 * n, start=n)
        records += call(100 * n, "ensemble", [ints("QUEUE_INPUT", "N", [5])], start=n)
    assert verdict(tmp_path, records).node is None


def test_requests_over_time_are_ordered_by_time_not_by_file(tmp_path):
    order = [3, 1, 5, 2, 4, 6]
    records = []
    for n in order:
        records += call(
            n, "model", [ints("QUEUE_INPUT", "A", [1]), ints("BACKEND_OUTPUT", "B", range(n))], start=1000 * n
        )
    (track,) = [each for each in tracks(requests(tmp_path, records)) if each.tensor == "B"]
    assert track.sizes == (1, 2, 3, 4, 5, 6)


def test_what_a_called_model_answers_is_an_input_of_its_caller(tmp_path):
    """A model with business logic calls a decoupled one, and passes on what it sends."""
    sent = [ints("BACKEND_OUTPUT", "OUT", range(n)) for n in (1, 2, 4, 8, 16, 32)]
    records = [*call(2, "decoupled", [ints("QUEUE_INPUT", "IN", [1]), *sent], parent=1), *call(1, "logic", sent)]
    found = verdict(tmp_path, records)
    assert (found.node, found.others) == ("decoupled", ())


def test_lines_count_messages_over_the_calls_of_a_node(tmp_path):
    (request,) = requests(tmp_path, decoupled_request(1, [1, 2, 4]))
    found = {(line.node, line.side, line.tensor): line for line in lines(request)}
    assert found["consumer", "input", "IDS"].sizes == (1, 2, 4)
    assert found["consumer", "output", "TEXT_LENGTH"].sizes == (1, 1, 1)
    assert found["ensemble", "input", "producer.IDS"].sizes == (1, 2, 4)
    assert (found["tokenizer", "input", "PROMPT"].sizes, found["tokenizer", "input", "PROMPT"].unit) == ((5,), "bytes")


def test_hops_are_complete_and_in_order(tmp_path):
    (request,) = requests(tmp_path, decoupled_request(5, [1, 2], "mine"))
    found = list(hops(request))
    assert len(found) == sum(len(each.tensors) for each in request.calls)
    consumer = [hop for hop in found if hop.model == "consumer" and hop.tensor == "IDS"]
    assert [(hop.call, hop.parent, hop.iteration, hop.shape, hop.nbytes) for hop in consumer] == [
        (8, 5, 1, (1,), 4),
        (9, 5, 2, (2,), 8),
    ]
    assert {(hop.request, hop.request_id) for hop in found} == {("5 (mine)", "mine")}
    assert consumer[0].queue_ns == 90


def wired(found):
    return {(p.producer, p.output, p.consumer, p.input): p for p in found}


def test_pairs_by_name_and_values(tmp_path):
    (request,) = requests(tmp_path, decoupled_request(1, [1, 2, 4, 8, 16]))
    found = wired(pairs(request))
    assert set(found) == {
        ("ensemble", "PROMPT", "tokenizer", "PROMPT"),
        ("tokenizer", "TOKENS", "producer", "TOKENS"),
        ("producer", "IDS", "consumer", "IDS"),
        ("consumer", "TEXT_LENGTH", "ensemble", "TEXT_LENGTH"),
    }
    pair = found["producer", "IDS", "consumer", "IDS"]
    assert [(s.elements, r.elements) for s, r in zip(pair.sent, pair.received, strict=True)] == [
        (n, n) for n in (1, 2, 4, 8, 16)
    ]
    assert pair.by == "name and values"


def test_pairs_by_values_where_names_differ(tmp_path):
    records = [*call(3, "b", [ints("QUEUE_INPUT", "Y", [4, 5])], parent=1),
               *call(2, "a", [ints("BACKEND_OUTPUT", "X", [4, 5]), ints("BACKEND_OUTPUT", "Z", [4, 6])], parent=1),
               *call(1, "ens", [ints("QUEUE_INPUT", "W", [9])])]  # fmt: skip
    (found,) = pairs(requests(tmp_path, records)[0])
    assert (found.producer, found.output, found.consumer, found.input, found.by) == ("a", "X", "b", "Y", "values")


def test_equal_values_are_told_to_be_ambiguous(tmp_path):
    records = [*call(3, "b", [ints("QUEUE_INPUT", "Y", [4])], parent=1),
               *call(2, "a", [ints("BACKEND_OUTPUT", "X", [4]), ints("BACKEND_OUTPUT", "Z", [4])], parent=1),
               *call(1, "ens")]  # fmt: skip
    (found,) = pairs(requests(tmp_path, records)[0])
    assert found.by == "values (the same in 1 more)"


def test_a_later_call_feeds_nobody_before_it(tmp_path):
    records = [*call(3, "b", [ints("BACKEND_OUTPUT", "X", [4])], parent=1),
               *call(2, "a", [ints("QUEUE_INPUT", "X", [4])], parent=1), *call(1, "ens")]  # fmt: skip
    assert pairs(requests(tmp_path, records)[0]) == []


def test_a_repository_tells_what_values_cannot(tmp_path):
    for model, config in {
        "ens": 'input [{name: "IN" data_type: TYPE_INT32 dims: [-1]}]'
        'output [{name: "OUT" data_type: TYPE_INT32 dims: [-1]}] ensemble_scheduling { step ['
        '{model_name: "a" input_map {key: "P" value: "IN"} output_map {key: "Z" value: "mid"}},'
        '{model_name: "b" input_map {key: "Y" value: "mid"} output_map {key: "Q" value: "OUT"}}]}',
        "a": "",
        "b": "",
    }.items():
        (tmp_path / "repository" / model).mkdir(parents=True)
        (tmp_path / "repository" / model / "config.pbtxt").write_text(config)
    same = [4]
    records = [
        *call(3, "b", [ints("QUEUE_INPUT", "Y", same), ints("BACKEND_OUTPUT", "Q", same)], parent=1),
        *call(
            2,
            "a",
            [ints("QUEUE_INPUT", "P", same), ints("BACKEND_OUTPUT", "X", same), ints("BACKEND_OUTPUT", "Z", same)],
            parent=1,
        ),
        *call(1, "ens", [ints("QUEUE_INPUT", "IN", same), ints("BACKEND_OUTPUT", "OUT", same)]),
    ]
    found = pairs(requests(tmp_path, records)[0], tmp_path / "repository")
    assert set(wired(found)) == {("ens", "IN", "a", "P"), ("a", "Z", "b", "Y"), ("b", "Q", "ens", "OUT")}


def test_what_was_found_once_is_used_for_later_requests(tmp_path, monkeypatch):
    first, second = requests(tmp_path, [*decoupled_request(1, [1, 2]), *decoupled_request(11, [1, 2])])
    known = {}
    expected = set(wired(pairs(first, known=known)))
    monkeypatch.setattr(trace_tracks, "raw", lambda tensor: pytest.fail("values were read again"))
    assert set(wired(pairs(second, known=known))) == expected


def test_large_messages_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_tracks, "COMPARED_BYTES", 100)
    found = {
        t.tensor: t for t in tracks(requests(tmp_path, decoupled_request(1, [1, 2, 4, 80]))) if t.node == "producer"
    }
    assert found["IDS"].sizes == (1, 2, 4, 80)
    assert found["IDS"].holds_previous == ()


@pytest.mark.parametrize(
    ("messages", "held"),
    [
        (([1], [1, 2], [9, 1, 2], [9, 1, 2, 3]), (True, True, True)),
        (([1], [11, 2], [3, 11, 2], [1, 2, 3, 4]), (False, True, False)),
        (([0], [0, 0], [0, 0, 0], [0, 0, 0, 0]), (False, False, False)),
        (([1], [1, 2], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]), (True, False, True, True, True)),
    ],
)
def test_holding_the_message_before(tmp_path, messages, held):
    sent = [ints("BACKEND_OUTPUT", "X", message) for message in messages]
    (track,) = tracks(requests(tmp_path, call(1, "m", sent)))
    assert track.holds_previous == held


def test_times_alone_give_no_tracks(tmp_path):
    assert list(tracks(requests(tmp_path, call(1, "m")))) == []
