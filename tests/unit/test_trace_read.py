"""Reading Triton's trace files: whole, split, hostile, broken."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_writer import call, decoupled_request, header, ints, save, stamp, tensor, text

from lab_utils import trace, trace_records


def read(path):
    problems = []
    return list(trace.read(path, problems)), problems


def one(path):
    (found,), problems = read(path)
    assert problems == []
    return found


# --- whole files ------------------------------------------------------------------------------------------------------


def test_a_call_has_all_that_its_records_tell(tmp_path):
    tensors = [ints("QUEUE_INPUT", "A", [5, 6, 7]), ints("BACKEND_OUTPUT", "B", [-1], "INT64")]
    found = one(save(tmp_path / "t.json", call(7, "model", tensors, request_id="mine", parent=3, start=5000)))
    assert (found.id, found.parent, found.model, found.version, found.request_id) == (7, 3, "model", 1, "mine")
    assert (found.start_ns, found.end_ns, found.queue_ns, found.compute_ns) == (5000, 5140, 90, 30)
    assert [(t.side, t.name, t.dtype, t.dims, t.nbytes, t.iteration) for t in found.tensors] == [
        ("input", "A", "INT32", (3,), 12, 1),
        ("output", "B", "INT64", (1,), 8, 1),
    ]


def test_outputs_of_a_decoupled_call_are_counted(tmp_path):
    sent = [ints("BACKEND_OUTPUT", "IDS", range(n)) for n in (1, 2, 4)]
    found = one(save(tmp_path / "t.json", call(1, "m", sent)))
    assert [(t.iteration, t.dims) for t in found.tensors] == [(1, (1,)), (2, (2,)), (3, (4,))]
    assert found.messages == 3


def test_times_may_come_before_the_header(tmp_path):
    records = [stamp(1, "HTTP_RECV_START", 5), *call(1, "m", start=10), stamp(1, "HTTP_SEND_END", 500)]
    found = one(save(tmp_path / "t.json", records))
    assert (found.model, found.start_ns, len(found.times)) == ("m", 10, 9)


def test_a_rescheduled_call_was_in_the_queue_more_than_once(tmp_path):
    again = [stamp(1, "QUEUE_START", 2000), stamp(1, "COMPUTE_START", 2005), stamp(1, "COMPUTE_END", 2007)]
    found = one(save(tmp_path / "t.json", [*call(1, "m"), *again]))
    assert (found.queue_ns, found.compute_ns) == (90 + 5, 30 + 2)


def test_a_call_without_times_has_none(tmp_path):
    found = one(save(tmp_path / "t.json", [tensor(1, "QUEUE_INPUT", "A", [1], (1,), "INT32")]))
    assert (found.model, found.start_ns, found.end_ns, found.queue_ns, found.compute_ns) == ("", None, None, None, None)


@pytest.mark.parametrize(
    ("data", "shape", "dtype", "nbytes", "expected"),
    [
        ([1, 2, 3, 4], (2, 2), "INT16", 8, np.array([[1, 2], [3, 4]], "int16")),
        ([2**64 - 1], (1,), "UINT64", 8, np.array([2**64 - 1], "uint64")),
        ([-(2**63)], (1,), "INT64", 8, np.array([-(2**63)], "int64")),
        ([0, 1, 1], (3,), "BOOL", 3, np.array([False, True, True])),
        (
            ["0.5", "-1e+30", "nan", "inf", "-nan"],
            (5,),
            "FP32",
            20,
            np.array([0.5, -1e30, np.nan, np.inf, np.nan], "f4"),
        ),
        ([], (0,), "INT32", 0, np.zeros(0, "int32")),
        ([], (1, 0), "FP64", 0, np.zeros((1, 0))),
        ([7], (), "INT32", 4, np.array(7, "int32")),
        (b'",\\,\n,\x00', (4,), "UINT8", 4, np.array([34, 92, 10, 0], "uint8")),
        (b"\xff,,,-", (3,), "INT8", 3, np.array([-1, 44, 45], "int8")),
    ],
)
def test_values_come_back_as_they_were(tmp_path, data, shape, dtype, nbytes, expected):
    record = tensor(1, "QUEUE_INPUT", "A", data, shape, dtype)
    found = one(save(tmp_path / "t.json", [*call(1, "m"), record, stamp(1, "GRPC_SEND_END", 9)]))
    (only,) = found.tensors
    assert (only.dims, only.nbytes, only.elements) == (shape, nbytes, expected.size)
    values = trace.values(only)
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_half_precision_has_a_shape_but_no_values(tmp_path, dtype):
    (only,) = one(save(tmp_path / "t.json", call(1, "m", [("QUEUE_INPUT", "A", b"", (2, 3), dtype)]))).tensors
    assert (only.dims, only.nbytes) == ((2, 3), 12)
    with pytest.raises(ValueError, match="writes no values"):
        trace.values(only)


# --- what Triton does not escape --------------------------------------------------------------------------------------

HOSTILE = [
    b"",
    b'a "quote"',
    b"back\\slash \\n \\u00e9",
    b'escaped \\"quote\\"',
    b"line\nbreak\ttab\x00",
    b"\xff\xfe not UTF-8",
    "鼠 é".encode(),
    b'","shape":"1","dtype":"BYTES"}}',
    b'x","shape":"1","dtype":"BYTES"}},{"id":99,"model_name":"evil","model_version":1}',
    b'},{"id":5,"timestamps":[{"name":"A","ns":1}]},{"id":6,"model_name":"b"}]',
    b'{"id":1,"activity":"TENSOR_QUEUE_INPUT","tensor":{"name":"A","data":"1","shape":"1","dtype":"INT32"}}',
    b'"',
    b"\\",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_text_of_users_is_read_exactly(tmp_path, hostile):
    tensors = [text("QUEUE_INPUT", "T", hostile), ints("BACKEND_OUTPUT", "B", [1])]
    found, problems = read(save(tmp_path / "t.json", [*call(7, "a", tensors), *call(8, "b", tensors[:1])]))
    assert [(each.id, each.model, len(each.times)) for each in found] == [(7, "a", 7), (8, "b", 7)]
    assert [trace.values(each.tensors[0]).tolist() for each in found] == [[hostile], [hostile]]
    assert [each.tensors[0].nbytes for each in found] == [len(hostile)] * 2
    assert problems == []


def test_several_texts_in_one_tensor(tmp_path):
    texts = [b'a"b', b"", b"c\\", b"\xff"]
    (only,) = one(save(tmp_path / "t.json", call(1, "m", [("QUEUE_INPUT", "T", texts, (2, 2), "BYTES")]))).tensors
    assert only.nbytes == 6
    assert trace.values(only).tolist() == [[b'a"b', b""], [b"c\\", b"\xff"]]


def test_texts_that_cannot_be_told_apart_are_refused_but_there(tmp_path):
    (only,) = one(save(tmp_path / "t.json", call(1, "m", [text("QUEUE_INPUT", "T", b'a\\",\\"b', b"c")]))).tensors
    with pytest.raises(ValueError, match="cannot be told apart"):
        trace.values(only)
    assert trace.raw(only) == b'\\"a\\",\\"b\\",\\"c\\"'


@pytest.mark.parametrize(
    "request_id",
    [
        'r"1',
        'x","parent_id":3,"z":"b',
        'x","parent_id":3',
        "back\\slash",
        '"}',
        '"},{"id":9,"model_name":"evil"}',
        "\n",
    ],
)
def test_request_ids_of_users_are_read_exactly(tmp_path, request_id):
    records = [*call(2, "child", request_id=request_id, parent=1), *call(1, "root", request_id=request_id)]
    found, problems = read(save(tmp_path / "t.json", records))
    assert [(each.id, each.request_id, each.parent) for each in found] == [(2, request_id, 1), (1, request_id, None)]
    assert problems == []


def test_a_perfect_forgery_is_told(tmp_path):
    forged = (
        b'x\\"","shape":"1","dtype":"BYTES"}},' + header(99, "evil") + b',{"id":99,"activity":"TENSOR_QUEUE_INPUT",'
    )
    forged += b'"tensor":{"name":"T","data":"\\"y'
    found, problems = read(save(tmp_path / "t.json", call(7, "m", [text("QUEUE_INPUT", "T", forged)])))
    assert [each.model for each in found] == ["m", "evil", ""]
    assert len(problems) == 1
    assert "call 7 goes on" in problems[0].what
    assert "not to be trusted" in problems[0].what


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.binary(max_size=30), max_size=4), request_id=st.text(st.characters(codec="utf-8"), max_size=20)
)
def test_any_text_and_any_request_id_come_back(tmp_path, texts, request_id):
    if any(b'\\",\\"' in text_ for text_ in texts):
        return
    tensors = [("QUEUE_INPUT", "T", texts, (len(texts),), "BYTES"), ints("BACKEND_OUTPUT", "N", [len(texts)])]
    found = one(save(tmp_path / "t.json", call(3, "m", tensors, request_id=request_id)))
    assert found.request_id == request_id
    assert trace.values(found.tensors[0]).tolist() == texts
    assert trace.values(found.tensors[1]).tolist() == [len(texts)]


@pytest.mark.parametrize("window", [700, 1024, 5000])
def test_windows_may_end_anywhere(tmp_path, monkeypatch, window):
    records = [record for n in range(1, 40) for record in call(n, "m", [
        text("QUEUE_INPUT", "T", HOSTILE[n % len(HOSTILE)] * 3), ints("BACKEND_OUTPUT", "B", range(n * 10))
    ])]  # fmt: skip
    path = save(tmp_path / "t.json", records)
    whole, _ = read(path)
    monkeypatch.setattr(trace_records, "WINDOW", window)
    found, problems = read(path)
    assert problems == []
    assert [each._replace(stamps=each.times) for each in found] == [each._replace(stamps=each.times) for each in whole]
    assert [trace.values(each.tensors[1]).size for each in found] == [n * 10 for n in range(1, 40)]


# --- several files, several servers -----------------------------------------------------------------------------------


def test_numbered_files_are_read_by_number(tmp_path):
    paths = [save(tmp_path / f"t.json.{n}", call(n + 1, "m")) for n in range(12)]
    assert [found.id for found in read(sorted(paths, key=str))[0]] == list(range(1, 13))
    assert [found.id for found in read(tmp_path / "t.json")[0]] == list(range(1, 13))


def test_a_request_may_be_split_over_files(tmp_path):
    records = decoupled_request(1, [1, 2])
    place = records.index(header(2, "tokenizer", parent=1))
    paths = [save(tmp_path / "t.json.0", records[:place]), save(tmp_path / "t.json.1", records[place:])]
    (request,) = trace.requests(trace.read(paths))
    assert [each.model for each in request.calls] == ["ensemble", "tokenizer", "producer", "consumer", "consumer"]
    assert request.root.id == 1


def test_ids_that_start_again_are_another_server(tmp_path):
    for number in range(2):
        save(tmp_path / f"t.json.{number}", decoupled_request(1, [1], request_id=f"r{number}"))
    save(tmp_path / "other.json", call(1, "m"))
    found = list(trace.requests(trace.read([tmp_path / "t.json", tmp_path / "other.json"])))
    assert [(each.run, each.id, len(each.calls)) for each in found] == [(1, 1, 4), (2, 1, 4), (3, 1, 1)]
    assert [each.label for each in found] == ["1 (r0)", "run 2, 1 (r1)", "run 3, 1"]


def test_files_behind_each_other_in_one(tmp_path):
    first, second = (save(tmp_path / f"{n}", call(n, "m")).read_bytes() for n in (1, 2))
    (tmp_path / "both.json").write_bytes(first + b"\n" + second + b"\n")
    found, problems = read(tmp_path / "both.json")
    assert ([each.id for each in found], problems) == ([1, 2], [])


def test_calls_of_concurrent_requests_in_any_order_find_each_other(tmp_path):
    groups = [[call(10 * n, "root"), call(10 * n + 1, "a", parent=10 * n), call(10 * n + 2, "b", parent=10 * n + 1)]
              for n in range(1, 200)]  # fmt: skip
    orders = [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)]
    records = [record for n, group in enumerate(groups) for place in orders[n % 4] for record in group[place]]
    found = list(trace.requests(trace.read(save(tmp_path / "t.json", records))))
    assert [[each.id for each in request.calls] for request in found] == [
        [n, n + 1, n + 2] for n in range(10, 2000, 10)
    ]


def test_calls_without_their_root_come_last(tmp_path):
    records = [*call(5, "child", parent=4), *call(6, "child", parent=4), *call(9, "alone")]
    found = list(trace.requests(trace.read(save(tmp_path / "t.json", records))))
    assert [(each.id, each.root is None, len(each.calls)) for each in found] == [(9, False, 1), (4, True, 2)]


# --- what is broken, or no trace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_file_that_ends_early_gives_what_it_has(tmp_path, cut):
    path = save(tmp_path / "t.json", [*call(1, "m", [ints("QUEUE_INPUT", "A", range(9))]), *call(2, "n")])
    path.write_bytes(path.read_bytes()[:-cut])
    found, problems = read(path)
    assert found[0].model == "m"
    assert found[0].tensors[0].dims == (9,)
    assert len(problems) == 1
    assert "server was ended, or is still running" in problems[0].what


def test_a_broken_record_costs_only_itself(tmp_path):
    records = call(1, "m", [ints("QUEUE_INPUT", "A", [1]), ints("BACKEND_OUTPUT", "B", [2])])
    records[4] = b'{"id":1,"activity":"TENSOR_BACKEND_OUTPUT","ten\x00\x00\x00'
    found, problems = read(save(tmp_path / "t.json", [*records, *call(2, "n")]))
    assert [(each.model, len(each.times), len(each.tensors)) for each in found] == [("m", 7, 1), ("n", 7, 0)]
    (problem,) = problems
    assert "passed over" in problem.what
    assert problem.offset == len(b"[" + b",".join(records[:4]) + b",")


def test_a_tensor_without_data_is_no_tensor(tmp_path):
    records = call(1, "m", [ints("QUEUE_INPUT", "A", [1]), ints("BACKEND_OUTPUT", "B", [2])])
    records[3] = records[3].replace(b'"data"', b'"dxta"')
    found, problems = read(save(tmp_path / "t.json", records))
    assert [[tensor.name for tensor in each.tensors] for each in found] == [["B"]]
    assert len(problems) == 1


def test_a_tensor_that_triton_gave_up_costs_only_itself(tmp_path):
    records = call(1, "m", [text("QUEUE_INPUT", "T", b"x"), text("BACKEND_OUTPUT", "U", b"y")])
    records[3] = b'{"id":1,"activity":"TENSOR_QUEUE_INPUT","tensor":{"name":"T","data":"\\"x\\",'
    found, problems = read(save(tmp_path / "t.json", records))
    assert [(each.tensors[0].name, trace.values(each.tensors[0]).tolist()) for each in found] == [("U", [b"y"])]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (gzip.compress(b"[]", mtime=0), "gzip"),
        (b'{"resourceSpans":[]}', "OpenTelemetry"),
        (b"I1123 10:00:00 server.cc] Started", "no trace file"),
        (b'[{"name":"x","ph":"X"}]', "no trace file"),
        (b'{"traceEvents":[]}', "no trace file"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path, content, what):
    path = tmp_path / "file"
    path.write_bytes(content)
    found, problems = read(path)
    assert found == []
    (problem,) = problems
    assert what in problem.what
    assert (problem.path, problem.offset) == (str(path), 0)


def test_a_trace_without_requests_is_no_problem(tmp_path):
    (tmp_path / "t.json").write_bytes(b"[]")
    assert read(tmp_path / "t.json") == ([], [])


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_cannot_be_read_is_a_problem(tmp_path, name):
    found, problems = read([tmp_path / name, save(tmp_path / "good.json", call(1, "m"))])
    assert [each.model for each in found] == ["m"]
    assert len(problems) == 1
    assert "cannot be" in problems[0].what


def test_text_after_the_end_is_passed_over(tmp_path):
    path = save(tmp_path / "t.json", call(1, "m"))
    path.write_bytes(path.read_bytes() + b" trailing")
    found, problems = read(path)
    assert [each.model for each in found] == ["m"]
    assert "after the closing bracket" in problems[0].what


def test_values_of_a_file_that_changed_are_refused(tmp_path):
    path = save(tmp_path / "t.json", call(1, "m", [ints("QUEUE_INPUT", "A", [1, 2])]))
    found = one(path)
    save(path, call(1, "another", [ints("QUEUE_INPUT", "LONGER", [1])]))
    with pytest.raises(ValueError, match="changed"):
        trace.values(found.tensors[0])


# --- other layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1 << 20, 700])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_trace_that_was_formatted_anew(tmp_path, monkeypatch, indent, window):
    monkeypatch.setattr(trace_records, "WINDOW", window)
    records = json.loads(save(tmp_path / "t.json", decoupled_request(1, [1, 2, 4])).read_bytes())
    (tmp_path / "new.json").write_text(json.dumps(records, indent=indent, sort_keys=True))
    old, new = read(tmp_path / "t.json")[0], read(tmp_path / "new.json")
    assert new[1] == []
    assert [(c.id, c.model, c.parent, c.times) for c in new[0]] == [(c.id, c.model, c.parent, c.times) for c in old]
    for before, after in zip(old, new[0], strict=True):
        assert [(t.name, t.dims, t.nbytes) for t in after.tensors] == [
            (t.name, t.dims, t.nbytes) for t in before.tensors
        ]
        assert [trace.raw(t) for t in after.tensors] == [trace.raw(t) for t in before.tensors]


def test_the_layout_of_2019(tmp_path):
    """One record a call, as in server pull request 894; the header's words are the record's own."""
    times = [{"name": "request handler start", "ns": 100}, {"name": "compute start", "ns": 200}]
    records = [
        {"timestamps": times, "model_name": "nop", "model_version": 1, "id": 2, "parent_id": 1},
        {"timestamps": times, "model_name": "ensemble", "model_version": -1, "id": 1},
        {"model_name": "simple", "model_version": -1, "id": 3, "activity": "TENSOR_QUEUE_INPUT",
         "tensor": {"name": "input", "data": "0.1,0.2,0.3", "dtype": "FP32"}},
    ]  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(records))
    found, problems = read(tmp_path / "t.json")
    assert problems == []
    assert [(each.id, each.model, each.parent, each.start_ns) for each in found] == [
        (2, "nop", 1, 100),
        (1, "ensemble", None, 100),
        (3, "simple", None, None),
    ]
    assert (found[2].tensors[0].dims, found[2].tensors[0].nbytes) == ((3,), 12)
