"""The live instrument without a server: tracks, reports, the log level's lease, the command line on a stored log."""

import argparse
import json
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from matplotlib.figure import Figure

from lab_utils import launch, watch_cli, watch_server
from lab_utils import watch as watch_module
from lab_utils.alarm import Alarm, Rules, Sample
from lab_utils.attribution import Message
from lab_utils.errors import ServerError
from lab_utils.log_lease import LogLease
from lab_utils.verdict import judge
from lab_utils.watch import Watch, watch
from lab_utils.watch_figure import watch_figure
from lab_utils.watch_report import dims_of, shown_dims, summary, tracks_of
from lab_utils.watch_server import SilentServerError, find_process, metrics_samples, stub_model


class FakeEndpoint:
    """A server that has a log level and nothing else; it dies when told to."""

    url = "127.0.0.1:1"

    def __init__(self, level: int = 0, log=None):
        self.level, self.silent, self.log, self.closed = level, False, log, False

    def _alive(self) -> None:
        if self.silent:
            raise SilentServerError("the server at 127.0.0.1:1 does not answer: it is dead")

    def verbose_level(self) -> int:
        self._alive()
        return self.level

    def set_verbose_level(self, level: int) -> None:
        self._alive()
        self.level = level

    def config(self, model: str) -> None:
        self._alive()

    def executions(self) -> dict[str, int]:
        self._alive()
        return {"m": 3}

    def mark(self, name: str) -> None:
        if self.log and self.level:
            with self.log.open("a") as file:
                file.write(f"unknown model: '{name}'\n")

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "STATE", tmp_path / "state")


def messages(request: str, node: str, side: str, tensor: str, sizes: list[int | None], dtype: str = "INT32") -> list:
    return [
        Message(n, request, node, 1, side, tensor, dtype, (1,) if dtype == "BYTES" else (size,), size, n)
        for n, size in enumerate(sizes, 1)
    ]


# --- tracks -----------------------------------------------------------------------------------------------------------

DOUBLING = [1, 2, 4, 8, 16, 32, 64]


def test_tracks_of_a_doubling_node_convict_it():
    seen = [
        *messages("r", "producer", "input", "IN", [7]),
        *messages("r", "producer", "output", "OUT", DOUBLING),
        *messages("r", "consumer", "input", "X", DOUBLING),
        *messages("r", "consumer", "output", "Y", DOUBLING),
        *messages("r", "whole", "input", "IN", [7]),
        *messages("r", "whole", "output", "Y", DOUBLING),
    ]
    assert judge(tracks_of(seen, {"whole"})).node == "producer"
    assert not [track for track in tracks_of(seen, {"whole"}) if track.node == "whole"]


def test_bytes_of_text_are_sizes_and_unknown_ones_convict_nobody():
    known = [*messages("r", "n", "input", "IN", [5] * 7, "BYTES"), *messages("r", "n", "output", "OUT", DOUBLING)]
    (given, sent) = tracks_of(known)
    assert (given.sizes, given.unit, sent.unit) == ((1,) * 7, "bytes", "elements")
    assert judge([given, sent]).node == "n"
    unknown = [*messages("r", "n", "input", "IN", [None] * 7, "BYTES"), *messages("r", "n", "output", "OUT", DOUBLING)]
    assert tracks_of(unknown) == []
    once = [*messages("r", "n", "input", "IN", [None], "BYTES"), *messages("r", "n", "output", "OUT", DOUBLING)]
    assert judge(tracks_of(once)).node == "n"


def test_tracks_over_requests_for_nodes_that_answer_once():
    seen = []
    for number, size in enumerate(DOUBLING):
        seen += messages(f"r{number}", "once", "input", "IN", [9])
        seen += messages(f"r{number}", "once", "output", "OUT", [size])
        seen += messages(f"r{number}", "often", "output", "OUT", [1, 1])
    over = {(track.node, track.side): track.sizes for track in tracks_of(seen) if not track.request}
    assert over == {("once", "input"): (9,) * 7, ("once", "output"): tuple(DOUBLING)}
    assert judge(tracks_of(seen)).node == "once"


def test_a_prompt_of_unknown_size_does_not_convict_the_node_that_reads_it():
    seen = []
    for number, size in enumerate(DOUBLING):
        seen += messages(f"r{number}", "once", "input", "IN", [None], "BYTES")
        seen += messages(f"r{number}", "once", "output", "OUT", [size])
    assert judge(tracks_of(seen)).node is None


def test_text_that_doubles_is_seen_without_the_four_bytes_of_its_length():
    seen = [
        *messages("r", "n", "input", "IN", [1] * 7),
        *messages("r", "n", "output", "OUT", [4 + 3 * size for size in DOUBLING], "BYTES"),
    ]
    verdict = judge(tracks_of(seen))
    assert (verdict.node, verdict.kind) == ("n", "exponential")


def test_a_failed_request_does_not_shift_those_after_it():
    seen = []
    for number, size in enumerate([8, 16, 400, 24, 32, 40, 48, 56]):
        seen += messages(f"r{number}", "once", "input", "IN", [size])
        if size != 400:
            seen += messages(f"r{number}", "once", "output", "OUT", [size])
    assert [track.sizes for track in tracks_of(seen) if not track.request] == [(8, 16, 24, 32, 40, 48, 56)] * 2
    assert judge(tracks_of(seen)).node is None


def test_a_limit_whose_value_the_log_does_not_have_may_explain_growth_over_requests():
    seen = []
    for number, size in enumerate(DOUBLING):
        seen += messages(f"r{number}", "once", "input", "LIMIT", [1])
        seen += messages(f"r{number}", "once", "output", "OUT", [size])
    assert judge(tracks_of(seen)).node is None


def test_messages_of_nobody_known_are_in_no_track():
    seen = [Message(1, None, "n", 1, "output", "T", "INT32", (1,), 4, None, ("a: n", "b: n"))]
    assert tracks_of(seen) == []
    assert "?" not in summary(seen, [])
    assert "n" in summary(seen, [])


# --- reports ----------------------------------------------------------------------------------------------------------


def test_dims_of_one_request():
    seen = [*messages("a", "n", "output", "T", [1, 2]), *messages("b", "n", "output", "T", [3])]
    assert dims_of(seen, "n", "T", None, "a") == [(1,), (2,)]
    with pytest.raises(ValueError, match=r"seen 2 times; name one of: request='a' side='output', request='b'"):
        dims_of(seen, "n", "T", None, None)
    with pytest.raises(ValueError, match=r"no message of tensor 'X'.*seen: n output T"):
        dims_of(seen, "n", "X", None, None)
    both = [*seen, *messages("a", "n", "input", "T", [9])]
    assert dims_of(both, "n", "T", "input", None) == [(9,)]


def test_summary_shows_the_last_requests_dims_and_polled_values():
    seen = messages("a", "n", "output", "T", [1, 2, 4])
    text = summary(seen, [Sample(0, "backlog", "n", 1), Sample(1, "backlog", "n", 5), Sample(2, "backlog", "n", 2)])
    assert "[1] [2] [4]" in text
    row = next(line for line in text.splitlines() if "backlog" in line)
    assert row.split()[-3:] == ["1", "2", "5"]
    assert summary([], []) == "nothing was seen"
    assert shown_dims([(1, 2)] * 11) == "[1,2] " * 10 + "..."


def test_figure_of_everything_and_of_nothing():
    seen = messages("a", "n", "output", "T", DOUBLING)
    many = [one for k in range(9) for one in messages("a", f"other{k}", "output", "T", [1, 1])]
    samples = [Sample(n, quantity, "n", n * 1e6) for n in range(5) for quantity in ("backlog", "memory")]
    alarms = [Alarm(4, "dims", "n", (1, 2, 4, 8), "T", "output", "a", 0, 4), Alarm(3, "backlog", "n", (0, 1, 2, 3))]
    figure = watch_figure([*seen, *many], samples, alarms, 0.0)
    assert isinstance(figure, Figure)
    dims, size, backlog, memory = figure.axes
    assert [tuple(line.get_ydata()) for line in dims.lines if len(line.get_ydata()) > 2] == [tuple(DOUBLING)]
    (cross,) = (line for line in dims.lines if line.get_label() == "alarm")
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([4], [8])
    assert "and 4 more" in dims.get_legend().get_title().get_text()
    (cross,) = (line for line in backlog.lines if line.get_label() == "alarm")
    assert list(cross.get_ydata()) == [3e6]
    assert max(memory.lines[0].get_ydata()) == pytest.approx(4e6 / 2**20)
    assert [axes.texts[0].get_text() for axes in watch_figure([], [], [], 0.0).axes] == ["nothing seen"] * 4
    assert size.get_yscale() == "log"


# --- log level --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "meanwhile"), [(0, 1), (1, 1), (3, 3)])
def test_lease_raises_the_level_and_puts_it_back(before, meanwhile):
    endpoint = FakeEndpoint(before)
    lease = LogLease(endpoint)
    assert endpoint.level == meanwhile
    assert lease.release()
    assert endpoint.level == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_only_the_last_of_two_leases_puts_the_level_back(order):
    endpoint = FakeEndpoint()
    leases = [LogLease(endpoint), LogLease(endpoint)]
    assert not leases[order[0]].release()
    assert endpoint.level == 1
    assert leases[order[1]].release()
    assert endpoint.level == 0
    assert [path.name for path in (launch.STATE / "log_levels").iterdir()] == ["lock"]


def test_many_leases_at_once_end_as_they_began():
    endpoint = FakeEndpoint()

    def hold(_: int) -> None:
        for _ in range(20):
            lease = LogLease(endpoint)
            lease.renew()
            lease.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(8)))
    assert endpoint.level == 0


def test_a_lease_that_was_never_released_is_made_good_by_the_next():
    endpoint = FakeEndpoint()
    killed = LogLease(endpoint)
    killed._file.close()  # as the kernel does for a process that was killed
    assert endpoint.level == 1
    LogLease(endpoint).release()
    assert endpoint.level == 0


def test_a_killed_watch_of_a_server_that_started_anew_does_not_count():
    LogLease(FakeEndpoint(0))._file.close()
    anew = FakeEndpoint(2)
    LogLease(anew).release()
    assert anew.level == 2


def test_a_level_that_somebody_lowered_is_raised_and_put_back_in_the_end():
    endpoint = FakeEndpoint()
    lease = LogLease(endpoint)
    assert not lease.renew()
    endpoint.level = 0
    assert lease.renew()
    assert endpoint.level == 1
    lease.release()
    assert endpoint.level == 0


def test_a_level_that_somebody_raised_is_left_alone():
    endpoint = FakeEndpoint()
    lease = LogLease(endpoint)
    endpoint.level = 4
    lease.release()
    assert endpoint.level == 4


def test_a_lease_ends_although_the_server_is_gone():
    endpoint = FakeEndpoint()
    lease = LogLease(endpoint)
    endpoint.silent = True
    with pytest.raises(ServerError, match="does not answer"):
        lease.release()
    endpoint.silent = False
    LogLease(endpoint).release()
    assert endpoint.level == 0


# --- the watch --------------------------------------------------------------------------------------------------------


def fake_watch(endpoint: FakeEndpoint, log=None, **options) -> Watch:
    events = options.pop("on_event", None)
    return Watch(endpoint, "", log, options.pop("interval", 0.01), Rules(), events)


def test_a_server_that_falls_silent_ends_the_watch_with_a_word(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    endpoint = FakeEndpoint(log=log)
    with fake_watch(endpoint, log) as seen:
        endpoint.silent = True
        seen.wait(30)
    assert "does not answer: it is dead (after" in seen.ended
    assert any("could not be put back to 0" in note for note in seen.notes)
    assert endpoint.closed


def test_one_missed_answer_is_not_the_end(tmp_path):
    endpoint = FakeEndpoint()
    seen = fake_watch(endpoint)
    for silent in (True, False) * 5:
        endpoint.silent = silent
        seen._poll()
    assert not seen.ended
    endpoint.silent = True
    seen._poll()
    seen._poll()
    assert seen.ended


def test_an_end_of_the_log_that_does_not_come_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "MARK_SECONDS", 0.05)
    log = tmp_path / "log"
    log.write_text("")
    endpoint = FakeEndpoint(log=log)
    with fake_watch(endpoint, log) as seen:
        endpoint.log = None
    assert any("did not come" in note for note in seen.notes)
    assert endpoint.level == 0


def test_a_callback_that_fails_fails_the_block_and_the_level_is_put_back(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    for in_thread in (False, True):
        endpoint = FakeEndpoint(log=log)

        def refuse(event: object, in_thread=in_thread) -> None:
            if (threading.current_thread() is not threading.main_thread()) is in_thread:
                raise BrokenPipeError("nobody reads")

        seen = fake_watch(endpoint, log, on_event=refuse)
        with pytest.raises(BrokenPipeError), seen:
            seen.wait(30)
        assert endpoint.level == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "nothing to watch"),
        ({"grpc_url": "localhost"}, "grpc address is 'localhost'; expected HOST:PORT"),
        ({"log": "x", "interval": 0}, "interval is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, what):
    with pytest.raises(ValueError, match=what):
        watch(**options)


def test_a_watch_is_used_once():
    with fake_watch(FakeEndpoint()) as seen:
        pass
    with pytest.raises(ValueError, match="used before"):
        seen.__enter__()


def test_a_log_that_is_not_there():
    with (
        pytest.raises(OSError, match=r"the log /nowhere/server.log cannot be read \(No such file"),
        watch(log="/nowhere/server.log"),
    ):
        pass


# --- the server's answers ---------------------------------------------------------------------------------------------

PAGE = """# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="a",version="1"} 2
nv_inference_pending_request_count{model="a",version="2"} 3
nv_inference_pending_request_count{model="b",version="1"} 0
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 100
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 50
"""


def test_metrics(monkeypatch):
    monkeypatch.setattr(watch_server, "_read", lambda url: PAGE.encode())
    found = {(one.quantity, one.node): one.value for one in metrics_samples("h:1")}
    assert found == {
        ("backlog", "a"): 5,
        ("backlog", "b"): 0,
        ("memory", "(GPU GPU-1)"): 100,
        ("memory", "(machine)"): 50,
    }


def test_a_page_that_is_no_metrics(monkeypatch):
    monkeypatch.setattr(watch_server, "_read", lambda url: b"<html> { </html>")
    with pytest.raises(ServerError, match="is this the metrics port"):
        metrics_samples("h:1")
    monkeypatch.undo()
    with pytest.raises(SilentServerError, match=r"no metrics at 127\.0\.0\.1:1"):
        metrics_samples("127.0.0.1:1")


def test_processes_of_other_machines_are_not_looked_for():
    assert find_process("server.example:8001") is None
    assert find_process("127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("command", "model"),
    [
        (["/x/triton_python_backend_stub", "/models/m/2/model.py", "prefix"], "m"),
        (["/x/triton_python_backend_stub"], ""),
        (["/x/triton_python_backend_stub", "model.py"], ""),
        (["python", "/models/m/2/model.py"], ""),
        ([], ""),
    ],
)
def test_model_of_a_stub(command, model):
    assert stub_model(command) == model


# --- command line -----------------------------------------------------------------------------------------------------


def run_cli(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    watch_cli.add_command(parser.add_subparsers())
    parsed = parser.parse_args(["watch", *arguments])
    return parsed.run(parsed)


def stored_log(path, sizes: list[int]) -> str:
    prepared = (
        "[request id: r] prepared: [0x0x7f] request id: r, model: m, requested version: -1, actual version: 1, flags: "
        "0x0\noriginal inputs:\noverride inputs:\ninputs:\noriginal requested outputs:\nrequested outputs:\nT\n"
    )
    texts = [prepared]
    for size in sizes:
        texts += [f"add response output: output: T, type: INT32, shape: [{size}]"]
        texts += [f"GRPC: using buffer for 'T', size: {4 * size}, addr: 0x7f"]
    path.write_text("".join(f"I1123 10:51:20.1 7 f.cc:1] {json.dumps(text)}\n" for text in texts))
    return str(path)


def test_a_stored_log_is_read_from_its_start(tmp_path, capsys):
    assert run_cli("--log", stored_log(tmp_path / "log", DOUBLING), "--seconds", "0.1") == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[3] == "r: m  output T  INT32 [8]  32 bytes  message 4"
    assert lines[4] == "ALARM dims: m, output T, dimension 0, message 4 of request r: 1 2 4 8"
    assert "verdict: m, at its output T" in out
    assert "cannot show: backlog" in out


def test_exit_status_and_json_without_an_alarm(tmp_path, capsys):
    figure = tmp_path / "new" / "f.png"
    path = stored_log(tmp_path / "log", [1, 1, 1])
    assert run_cli("--log", path, "--seconds", "0.1", "--json", "--figure", str(figure)) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = defaultdict(list)
    for event in events:
        kinds[event["event"]].append(event)
    assert [event["dims"] for event in kinds["message"]] == [[1], [1], [1]]
    assert kinds["end"][0]["verdict"]["node"] is None
    assert figure.exists()


def test_polled_values_are_printed_where_they_changed(capsys):
    show = watch_cli.Printer(as_json=False)
    for second, value in enumerate([5, 5, 6]):
        show(Sample(second, "backlog", "n", value))
    for second, value in enumerate([1e7, 1e7 + 5000, 2e7]):
        show(Sample(second, "memory", "n", value))
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["5", "6", "10,000,000", "20,000,000"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--seconds", "0"], "--seconds is 0"),
        (["--memory-mib", "nan"], "memory_bytes is nan"),
        (["--factor", "0.1"], "factor is 0.1"),
        ([], "nothing to watch"),
    ],
)
def test_bad_arguments(arguments, what):
    with pytest.raises(ValueError, match=what):
        run_cli(*arguments)
