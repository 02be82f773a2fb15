"""The life of a server: started, found out when it fails, stopped, and nothing left of it, however its owner ends."""

import contextlib
import gc
import http.server
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from fault_matrix import seen
from jupyter_client.manager import KernelManager
from leftovers import SECONDS, assert_gone, command_lines, launch_of, port_is_free, triton_process, until_none
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from lab_utils import launch as launch_module
from lab_utils import server as server_module
from lab_utils.client import iter_stream, stream
from lab_utils.custom_backend import compiler
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.launch import Launch, Ports, new_folder, reserved_ports
from lab_utils.server import (
    MODEL_REPOSITORY,
    ServerDiedError,
    ServerError,
    ServerStartError,
    TritonServer,
    start_server,
)
from lab_utils.sources import find_source

MODEL = "ensemble_latest"
PROMPT = "Pancakes. Ingredients:"
TEXT = " 1 cup flour, 1 cup"
OWNER = Path(__file__).with_name("owner.py")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Every launch of this test, failed ones too; at the end nothing may be left of any."""
    seen: list[Launch] = []
    start_supervised = server_module.start_supervised

    def watched(launch: Launch) -> subprocess.Popen:
        seen.append(launch)
        return start_supervised(launch)

    monkeypatch.setattr(server_module, "start_supervised", watched)
    return seen


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the model repository that a test may change; links stay links."""
    copy = tmp_path / "a model repository"
    shutil.copytree(MODEL_REPOSITORY, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def kill_and_stop(server: TritonServer) -> None:
    """End a server that a test has damaged: with its process killed first, stop need not wait for it."""
    launch = launch_of(server)
    with contextlib.suppress(psutil.Error, ValueError, AttributeError):
        triton_process(server).kill()
    server.stop()
    assert_gone(launch)


# --- start and stop ---------------------------------------------------------------------------------------------------


def test_the_whole_life_of_a_server():
    said: list[str] = []
    server = start_server("ensemble_append", report=said.append)
    launch = launch_of(server)
    assert (server.running, server.attached, repr(server)) == (True, False, "<TritonServer wheel, running>")
    assert server.metadata["name"] == launch.id
    assert server.metadata["version"] == "2.51.0"
    assert server.models == {"ensemble_append": [1], "inference": [1, 2, 3, 4], "postprocess": [1], "preprocess": [1]}
    assert said[0] == "starting tritonserver (wheel) with ensemble_append"
    assert set(said[1:-1]) == {f"  {model} loaded" for model in server.models}
    assert said[-1].startswith("ready after ")
    assert str(server.device) in said[-1]
    assert "Started HTTPService" in server.log
    assert 0 < len(server.logs(3).splitlines()) <= 3
    server.check()
    assert stream(server, "ensemble_append", REPORTED_PROMPT).lengths[-1] == 128

    server.restart()
    assert launch_of(server).id != launch.id
    assert_gone(launch, seconds=5)  # stop returns when all is gone; the kernel may take a moment with the ports
    assert not launch.folder.exists()
    assert stream(server, "ensemble_append", REPORTED_PROMPT).lengths[-1] == 128, "the buffer was not emptied"

    server.stop()
    assert not server.running
    assert repr(server) == "<TritonServer wheel, stopped>"
    assert_gone(launch_of(server), seconds=5)
    server.stop()
    with pytest.raises(ServerError, match="this server is stopped; start one"):
        server.client()


def test_all_listeners_are_on_loopback_and_only_the_three(shared_server):
    listening = [
        c.laddr for c in triton_process(shared_server).net_connections(kind="inet") if c.status == psutil.CONN_LISTEN
    ]
    ports = launch_of(shared_server).ports
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}  # of a dual-stack socket
    assert {address.port for address in listening} == {ports.http, ports.grpc, ports.metrics}


def test_the_addresses_answer(shared_server):
    port = int(shared_server.metrics_url.partition(":")[2])
    assert b"nv_inference_request_success" in server_module._http_get(port, "/metrics")
    assert server_module._http_get(int(shared_server.http_url.partition(":")[2]), "/v2/health/ready") == b""
    assert shared_server.grpc_url == f"127.0.0.1:{launch_of(shared_server).ports.grpc}"


def test_ports_are_held_against_others_and_free_afterwards():
    with reserved_ports() as ports:
        assert not port_is_free(ports.http)
        assert not port_is_free(ports.grpc)
        assert port_is_free(ports.metrics)  # its listener cannot share: the server itself must get it
    assert port_is_free(ports.http)
    assert port_is_free(ports.grpc)


def test_two_servers_side_by_side(shared_server):
    with start_server(["ensemble_append"]) as second:
        mine, shared = launch_of(second), launch_of(shared_server)
        assert mine.id != shared.id
        assert len({*vars(mine.ports).values(), *vars(shared.ports).values()}) == 6
        assert stream(second, "ensemble_append", REPORTED_PROMPT).lengths[-1] == 128
        assert stream(shared_server, MODEL, PROMPT).text == TEXT
    assert_gone(mine)
    shared_server.check()
    assert stream(shared_server, MODEL, PROMPT).text == TEXT


def test_an_exception_in_the_block_stops_the_server():
    server = start_server(["postprocess"])
    with pytest.raises(ZeroDivisionError), server:
        1 / 0  # noqa: B018
    assert not server.running
    assert_gone(launch_of(server))


def test_flags_are_passed_on_and_a_bad_one_is_explained(launches):
    with pytest.raises(ServerStartError, match="--no-such-flag"):
        start_server(["postprocess"], flags=["--no-such-flag=1"])
    assert_gone(launches[0])


def test_a_second_start_under_the_same_name_leaves_one_server(launches):
    """A learner runs the cell that starts the server again: the first server has no owner left."""
    server = start_server(["postprocess"])
    server = start_server(["postprocess"])
    gc.collect()
    assert_gone(launches[0])
    server.check()
    server.stop()


def test_an_interrupt_when_the_server_is_just_ready_leaves_nothing(launches):
    """As when Ctrl-C comes while the last line of the progress is printed, or the line cannot be printed."""

    def report(line: str) -> None:
        if line.startswith("ready"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        start_server(["postprocess"], report=report)
    assert caught.traceback  # it is kept, as IPython keeps the last one: with it, the server object
    assert_gone(launches[0], seconds=10)


def test_a_leftover_folder_is_removed_after_a_day_but_not_that_of_a_running_server():
    with start_server(["postprocess"]) as running:
        folder = launch_of(running).folder
        forgotten = folder.parent / "0123456789ab"
        forgotten.mkdir()
        (forgotten / "server.log").write_text("of a start that failed")
        two_days_ago = time.time() - 2 * 86_400
        for old in (folder, forgotten):
            os.utime(old, (two_days_ago, two_days_ago))
        shutil.rmtree(new_folder("ba9876543210"))  # as the next start makes one
        assert not forgotten.exists()
        assert "Started HTTPService" in running.log
        running.reload("postprocess")  # needs the stub, which is linked in the folder
        running.check()


def test_a_model_in_the_working_directory_is_not_taken_for_the_one_asked_for(monkeypatch):
    """The stub imports "1.model", and looks for it in its working directory first."""
    monkeypatch.chdir(MODEL_REPOSITORY / "inference")
    start_server(["postprocess"]).stop()


@pytest.mark.parametrize("name", ["Ada Lovelace", "R&D (new); $HOME 'x'"])
def test_a_path_that_a_shell_would_break_does_not_keep_the_server_from_starting(name, tmp_path, monkeypatch):
    """Triton starts a stub by a shell, without quoting: neither the home folder nor the checkout may disturb it."""
    shutil.copytree(MODEL_REPOSITORY, tmp_path / name / "models", symlinks=True)
    monkeypatch.setattr(launch_module, "STATE", tmp_path / name / "state")
    monkeypatch.setattr(server_module, "START_SECONDS", 30.0)
    start_server(["postprocess"], repository=tmp_path / name / "models").stop()


def test_an_interrupted_stop_can_be_repeated(owner):
    launch = owner.spawned()
    assert owner.line() == "ready"
    owner.send("stop")
    time.sleep(0.5)  # the moment is what is tested: stop waits for 2 s
    owner.interrupt()
    assert owner.line() in ("interrupted", "stopped")
    assert owner.ask("stop") == "stopped"
    assert_gone(launch)


# --- models -----------------------------------------------------------------------------------------------------------


def test_load_unload_reload(launches):
    with start_server(["postprocess"]) as server:
        assert server.models == {"postprocess": [1]}
        server.load("ensemble_append")
        assert set(server.models) == {"ensemble_append", "inference", "postprocess", "preprocess"}
        stream(server, "ensemble_append", REPORTED_PROMPT)
        before = set(server._stubs)
        server.reload("inference")
        assert stream(server, "ensemble_append", REPORTED_PROMPT).lengths[-1] == 128
        assert sorted(server._stubs.values()) == [*(f"inference version {n}" for n in (1, 2, 3, 4)), *POST_AND_PRE]
        assert len(before & set(server._stubs)) == 2  # only inference got new processes
        server.unload("inference")
        assert "inference" not in server.models
        assert not any("/inference/" in line for line in command_lines(launches[0].shm_prefix) if "stub" in line)
        server.check()
        with pytest.raises(ServerError, match="could not load model 'nothing'"):
            server.load("nothing")
        server.check()


POST_AND_PRE = ["postprocess version 1", "preprocess version 1"]


def test_a_changed_model_is_loaded_anew_and_its_old_process_is_not_missed(repository):
    """`load` of a loaded model takes in its new code: the old process ends on purpose."""
    with start_server([MODEL], repository=repository) as server:
        old = [process for process, name in server._stubs.items() if name == "postprocess version 1"]
        model = repository / "postprocess" / "1" / "model.py"
        model.write_text(model.read_text().replace("final=last), ids", "final=last).upper(), ids"))
        server.load("postprocess")
        assert stream(server, MODEL, PROMPT).text == TEXT.upper()
        _, alive = psutil.wait_procs(old, timeout=SECONDS)
        assert not alive
        server.check()


def test_a_refused_prompt_leaves_no_request_in_flight():
    """A request in flight makes the server wait for it at its end, and exit with status 1."""
    server = start_server([MODEL])
    with pytest.raises(Exception, match="PROMPT is empty"):
        stream(server, MODEL, "")
    supervisor = server._supervisor
    server.stop()
    assert supervisor.returncode == 0


# --- several repositories, and a backend in C++ -----------------------------------------------------------------------

# Its model answers 42. When it is unloaded it takes a second, and then makes a file; asked 13, it ends the server.
ANSWERING = """
#include <cstdint>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>
extern "C" {
void* TRITONBACKEND_ResponseNew(void** response, void* request);
void* TRITONBACKEND_ResponseOutput(void*, void** output, const char*, int type, const int64_t* shape, uint32_t rank);
void* TRITONBACKEND_OutputBuffer(void* output, void** buffer, uint64_t size, int* memory, int64_t* id);
void* TRITONBACKEND_ResponseSend(void* response, uint32_t flags, void* error);
void* TRITONBACKEND_RequestInputByIndex(void* request, uint32_t index, void** input);
void* TRITONBACKEND_InputBuffer(void* input, uint32_t, const void** buffer, uint64_t* size, int* memory, int64_t* id);
void* TRITONBACKEND_RequestRelease(void* request, uint32_t flags);

void* TRITONBACKEND_ModelInstanceExecute(void*, void** requests, uint32_t count) {
  for (void** request = requests; request < requests + count; ++request) {
    const int64_t shape[] = {1};
    void *input, *response, *output, *answer;
    const void* question;
    uint64_t size;
    int64_t id = 0;
    int memory = 0;
    TRITONBACKEND_RequestInputByIndex(*request, 0, &input);
    TRITONBACKEND_InputBuffer(input, 0, &question, &size, &memory, &id);
    if (*static_cast<const int32_t*>(question) == 13) abort();
    TRITONBACKEND_ResponseNew(&response, *request);
    TRITONBACKEND_ResponseOutput(response, &output, "ANSWER", 8, shape, 1);
    TRITONBACKEND_OutputBuffer(output, &answer, sizeof(int32_t), &memory, &id);
    *static_cast<int32_t*>(answer) = 42;
    TRITONBACKEND_ResponseSend(response, 1, nullptr);
    TRITONBACKEND_RequestRelease(*request, 1);
  }
  return nullptr;
}

void* TRITONBACKEND_ModelFinalize(void*) {
  sleep(1);
  close(open(UNLOADED, O_CREAT | O_WRONLY, 0600));
  return nullptr;
}
}
"""
CONFIG = """
backend: "answering"
max_batch_size: 0
input [ { name: "QUESTION" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "ANSWER" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""


@dataclass(frozen=True)
class Native:
    """A repository of the model "oracle" and a Python model, the oracle's backend, and the file that its end makes."""

    repository: Path
    backends: Path
    unloaded: Path

    def start(self, *models: str, **options) -> TritonServer:
        options = {"repository": [MODEL_REPOSITORY, self.repository], "backends": self.backends, **options}
        return start_server(["oracle", *models], **options)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    """All paths hold white space, as a home folder may."""
    home = tmp_path_factory.mktemp("in C++") / "a folder"
    made = Native(home / "models", home / "my backends", home.parent / "unloaded")
    for folder in (made.repository / "oracle" / "1", made.backends / "answering"):
        folder.mkdir(parents=True)
    (made.repository / "oracle" / "config.pbtxt").write_text(CONFIG)
    shutil.copytree(MODEL_REPOSITORY / "preprocess", made.repository / "second")
    edit(made.repository / "second" / "config.pbtxt", '"preprocess"', '"second"')
    (home / "answering.cc").write_text(ANSWERING)
    unloaded, library = f'-DUNLOADED="{made.unloaded}"', made.backends / "answering" / "libtriton_answering.so"
    flags = ["-std=c++17", "-shared", "-fPIC", unloaded, "-o", str(library)]
    subprocess.run([*shlex.split(compiler()), *flags, str(home / "answering.cc")], check=True)
    return made


def ask(server: TritonServer, question: int = 1) -> int:
    given = grpc.InferInput("QUESTION", [1], "INT32")
    given.set_data_from_numpy(np.array([question], np.int32))
    with server.client() as client:
        return int(client.infer("oracle", [given]).as_numpy("ANSWER")[0])


def state_of(server: TritonServer, model: str) -> list[tuple[str, str]]:
    return [(each.get("state"), each.get("reason")) for each in server._index() if each["name"] == model]


def test_a_model_in_c_beside_the_python_models(native):
    """It has no process of its own: the server's word is all there is to know when it is gone."""
    with native.start("second", MODEL) as server:
        assert set(server.models) == {MODEL, "inference", "oracle", "postprocess", "preprocess", "second"}
        assert stream(server, MODEL, PROMPT).text == TEXT
        assert ask(server) == 42
        assert set(server.processes.values()) == {
            "server",
            *(f"inference version {n}" for n in (1, 2, 3, 4)),
            *(*POST_AND_PRE, "second version 1"),
        }
        native.unloaded.unlink(missing_ok=True)
        server.unload("oracle")
        assert native.unloaded.exists(), "unload came back before the model had ended"
        assert state_of(server, "oracle") == [("UNAVAILABLE", "unloaded")]
        server.check()
        server.load("oracle")
        assert ask(server) == 42
        server.reload("oracle")
        server.reload("postprocess")
        server.restart()
        server.check()
        assert (ask(server), stream(server, MODEL, PROMPT).text) == (42, TEXT)
    assert_gone(launch_of(server))


def test_a_fault_in_c_ends_the_server_and_is_noticed(native, launches):
    """A Python model has a process of its own; here there is none between the fault and the server."""
    server = native.start()
    with pytest.raises(InferenceServerException):
        ask(server, 13)
    with pytest.raises(ServerDiedError, match=r"(?s)tritonserver ended with exit status 134.*restart\(\)"):
        check_for(server, SECONDS)
    server.restart()
    assert_gone(launches[0])
    assert ask(server) == 42
    kill_and_stop(server)


def test_one_repository_and_one_backend_may_be_strings(native):
    with start_server("oracle", repository=str(native.repository), backends=str(native.backends)) as server:
        assert (server.models, ask(server)) == ({"oracle": [1]}, 42)


def test_a_backend_that_is_not_there_is_said_before_anything_is_started(native, launches, tmp_path):
    (tmp_path / "answering").mkdir()
    (tmp_path / "answering" / "libtriton_other.so").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ServerStartError, match=f"no backend in {folder}: expected <name>/libtriton_<name>.so there"
        ):
            native.start(backends=folder)
    assert launches == []


@pytest.mark.parametrize("name", ["answering", "python"])
def test_two_backends_of_one_name_are_refused(name, native, launches, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / f"libtriton_{name}.so").touch()
    with pytest.raises(ServerStartError, match=f"two backends are named '{name}': .* and {tmp_path / name}"):
        native.start(backends=[native.backends, tmp_path])
    assert launches == []


def test_a_model_in_two_repositories_is_refused(native, launches, tmp_path):
    """Triton says that it is not unique, and loads neither."""
    shutil.copytree(native.repository, tmp_path / "copy")
    with pytest.raises(ServerStartError, match=f"'oracle' is in two repositories, .*{tmp_path / 'copy'}") as caught:
        native.start(repository=[native.repository, tmp_path / "copy"])
    assert caught.value.models == ("oracle",)
    with pytest.raises(ServerStartError, match=r"no model named orakel; .* and .* have: ensemble_append, .*oracle"):
        native.start("orakel")
    assert launches == []


# --- GPU memory -------------------------------------------------------------------------------------------------------


def pools(server: TritonServer) -> list[list[str]]:
    """The CUDA memory pools in the table of options that the server prints: device and bytes."""
    return re.findall(r"cuda_memory_pool_byte_size\{(\d+)\} *\| (\d+)", server.log)


def test_every_gpu_gets_a_pool_of_known_size_and_a_flag_can_change_it(monkeypatch):
    """The server takes the flag without a GPU too. Of two flags for one device the later one counts."""
    monkeypatch.setattr(launch_module, "gpu_count", lambda: 2)
    with start_server(["postprocess"], flags=["--cuda-memory-pool-byte-size=1:1048576"]) as server:
        assert pools(server) == [("0", str(64 * 2**20)), ("1", "1048576")]
    monkeypatch.setattr(launch_module, "gpu_count", lambda: 0)
    flags = launch_module.server_flags(replace(launch_of(server), flags=[]), [], "")
    assert not [flag for flag in flags if flag.startswith("--cuda")]


# --- a start that fails -----------------------------------------------------------------------------------------------


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def initialize(line: str) -> Callable[[Path], None]:
    """A break: this line at the start of an initialize that postprocess has then."""
    return lambda copy: edit(
        copy / "postprocess/1/model.py",
        "    def respond(",
        f"    def initialize(self, args):\n        {line}\n        super().initialize(args)\n\n    def respond(",
    )


BREAKS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "syntax error": (
        lambda copy: edit(copy / "postprocess/1/model.py", "class TritonPythonModel(", "class TritonPythonModel(("),
        "postprocess",
        "SyntaxError",
    ),
    "missing import": (
        lambda copy: edit(copy / "postprocess/1/model.py", "import json", "import no_such_package"),
        "postprocess",
        "No module named 'no_such_package'",
    ),
    "exception in initialize": (
        initialize('raise RuntimeError("the table is gone")'),
        "postprocess",
        "the table is gone",
    ),
    "exception about something in use": (
        initialize('raise RuntimeError("the device is already in use")'),
        "postprocess",
        "the device is already in use",
    ),
    "broken config": (
        lambda copy: edit(copy / "postprocess/config.pbtxt", "max_batch_size: 0", "max_batch_size: many"),
        "postprocess",
        "many",
    ),
    "wrong tensor name in the ensemble": (
        lambda copy: edit(
            copy / MODEL / "config.pbtxt", 'key: "STREAM_ID" value: "STREAM_ID"', 'key: "STREAM" value: "STREAM_ID"'
        ),
        MODEL,
        "STREAM",
    ),
    "dtype mismatch": (
        lambda copy: edit(
            copy / "postprocess/config.pbtxt", '"STREAM_ID" data_type: TYPE_INT64', '"STREAM_ID" data_type: TYPE_INT32'
        ),
        MODEL,
        "STREAM_ID",
    ),
    "step that is not there": (
        lambda copy: edit(copy / MODEL / "config.pbtxt", 'model_name: "postprocess"', 'model_name: "postproces"'),
        "postproces",
        "not found",
    ),
    "stub that exits": (initialize("import os; os._exit(3)"), "postprocess", "is not healthy"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_failed_start_names_the_model_and_says_why(name, repository, launches):
    break_it, culprit, reason = BREAKS[name]
    break_it(repository)
    with pytest.raises(ServerStartError) as caught:
        start_server([MODEL], repository=repository)
    message = str(caught.value)
    assert caught.value.models == (culprit,)
    assert f"{culprit} failed to load" in message
    assert reason in message
    assert len(message.splitlines()) < 40
    assert len(launches) == 1, "a start that cannot work was tried again"
    assert str(launches[0].log_path) in message
    assert launches[0].log_path.exists()
    assert_gone(launches[0])


def test_two_models_that_fail_are_both_named(repository, launches):
    BREAKS["missing import"][0](repository)
    (repository / "inference" / "recipes.safetensors").unlink()
    with pytest.raises(ServerStartError) as caught:
        start_server([MODEL], repository=repository)
    assert sorted(caught.value.models) == ["inference", "postprocess"]
    assert "no_such_package" in str(caught.value)
    assert "recipes.safetensors" in str(caught.value)
    assert_gone(launches[0])


def test_a_load_that_fails_says_why_and_leaves_the_rest_serving(repository):
    edit(repository / "postprocess/1/model.py", "import json", "import no_such_package")
    with start_server(["preprocess"], repository=repository) as server:
        with pytest.raises(ServerError, match=r"could not load model 'postprocess': .*no_such_package"):
            server.load("postprocess")
        server.check()
        assert server.models == {"preprocess": [1]}


def test_an_unknown_model_is_named_before_anything_is_started(launches):
    with pytest.raises(ServerStartError, match=r"no model named ensemble_latset; .* has: ensemble_append, ") as caught:
        start_server(["ensemble_latset", MODEL])
    assert caught.value.models == ("ensemble_latset",)
    with pytest.raises(ServerStartError, match="no model was asked for"):
        start_server([])
    assert launches == []


def test_a_repository_that_is_not_there_is_named(tmp_path, launches):
    with pytest.raises(ServerStartError, match="nowhere has: no models"):
        start_server([MODEL], repository=tmp_path / "nowhere")
    assert launches == []


def test_a_server_that_does_not_get_ready_is_given_up(launches, monkeypatch):
    monkeypatch.setattr(server_module, "START_SECONDS", 0.05)
    with pytest.raises(ServerStartError, match="tritonserver was not ready after 0 s"):
        start_server([MODEL])
    assert_gone(launches[0])


# --- ports and identity -----------------------------------------------------------------------------------------------


def give_port_once(monkeypatch: pytest.MonkeyPatch, which: str, port: int, times: int = 1) -> None:
    """Let the first `times` starts get a port that somebody else listens on."""
    left = [times]

    @contextlib.contextmanager
    def some_taken() -> Iterator[Ports]:
        with reserved_ports() as ports:
            left[0] -= 1
            yield Ports(**{**vars(ports), which: port}) if left[0] >= 0 else ports

    monkeypatch.setattr(server_module, "reserved_ports", some_taken)


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a listener that lets nobody share it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("which", ["http", "grpc", "metrics"])
def test_a_taken_port_is_no_failure(which, listener, launches, monkeypatch):
    give_port_once(monkeypatch, which, listener)
    with start_server([MODEL]) as server:
        assert len(launches) == 2
        assert getattr(launches[0].ports, which) == listener
        assert listener not in vars(launches[1].ports).values()
        assert server.metadata["name"] == launches[1].id
        assert stream(server, MODEL, PROMPT).text == TEXT
        assert_gone(launches[0], but=listener)
    seen("port taken", "")


def test_ports_taken_every_time_are_said(listener, launches, monkeypatch):
    monkeypatch.setattr(server_module, "PORT_TRIES", 2)
    give_port_once(monkeypatch, "grpc", listener, times=2)
    with pytest.raises(ServerStartError, match="found its ports taken 2 times in a row") as caught:
        start_server(["postprocess"])
    seen("ports taken", str(caught.value))
    assert len(launches) == 2
    for launch in launches:
        assert_gone(launch, but=listener)


@contextlib.contextmanager
def foreign_server(body: bytes) -> Iterator[int]:
    """An HTTP server that answers 200 with `body` to everything; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving.server_port
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [b'{"name": "triton", "version": "2.51.0"}', b"<html>hello</html>"])
def test_another_server_that_answers_is_not_mistaken(body, launches, monkeypatch):
    """Where two listeners share a port, the kernel hands a connection to either: here, at first, to the other one."""
    http_get = server_module._http_get
    with foreign_server(body) as foreign:

        def misled(port: int, path: str) -> bytes | None:
            return http_get(foreign if port == launches[0].ports.http else port, path)

        monkeypatch.setattr(server_module, "_http_get", misled)
        with start_server(["postprocess"]) as server:
            assert len(launches) == 2
            assert server.metadata["name"] == launches[1].id
        assert_gone(launches[0])


@pytest.mark.parametrize("body", [None, b"", b"{}", b"[]", b"7", b"null", b"\xff", b"<html>"])
def test_an_answer_without_a_name_names_no_server(body):
    assert server_module._name_in(body) == ""


def test_a_listener_that_does_not_speak_http_is_no_answer():
    def greet(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=greet, args=[listening])
        thread.start()
        assert server_module._http_get(listening.getsockname()[1], "/v2") is None
        thread.join()


# --- a server that dies -----------------------------------------------------------------------------------------------


def test_a_killed_server_is_noticed_at_once_and_can_be_restarted(launches):
    server = start_server([MODEL])
    arriving = iter_stream(server, MODEL, "x", 30_000, forced_ids=[64] * 30_000)
    next(arriving)
    triton_process(server).kill()
    with pytest.raises(ServerDiedError, match="tritonserver ended") as caught:
        list(arriving)
    assert "still says it is ready" not in str(caught.value)
    seen("server killed", str(caught.value))
    with pytest.raises(ServerDiedError, match=r"(?s)tritonserver ended.*restart\(\)") as caught:
        server.check()
    with pytest.raises(ServerDiedError, match="tritonserver ended"):
        stream(server, MODEL, PROMPT)
    server.restart()
    assert_gone(launches[0])
    assert stream(server, MODEL, PROMPT).text == TEXT
    kill_and_stop(server)


def check_for(server: TritonServer, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        server.check()


def test_a_server_that_somebody_else_ends_is_noticed():
    """Its models go first, then its listeners, at last its process: no step may end in anything but these words."""
    server = start_server([MODEL])
    triton_process(server).terminate()
    with pytest.raises(ServerDiedError, match="tritonserver ended"):
        check_for(server, SECONDS)
    server.stop()
    assert_gone(launch_of(server))


@pytest.mark.parametrize("name", ["inference version 4", "postprocess version 1"])
def test_a_killed_stub_is_noticed_by_a_running_stream(name):
    """Now and then it takes the whole server down: tritonserver aborts (exit status 134)."""
    server = start_server([MODEL])
    arriving = iter_stream(server, MODEL, "x", 100_000, forced_ids=[64] * 100_000, deadline=300)
    next(arriving)
    (stub,) = [process for process, served in server._stubs.items() if served == name]
    stub.kill()
    words = rf"(?s)(process \(stub\) of {name}|tritonserver) ended.*server\.restart\(\)"
    began = time.monotonic()
    with pytest.raises(ServerDiedError, match=words) as caught:
        list(arriving)
    assert time.monotonic() - began < 100, "it was the deadline that ended the stream"
    if "(stub) of inference" in str(caught.value):
        seen("stub killed", str(caught.value))
    with pytest.raises(ServerDiedError, match=words):
        server.check()
    kill_and_stop(server)


def test_a_killed_stub_is_noticed_by_the_next_stream():
    server = start_server([MODEL])
    (stub,) = [process for process, served in server._stubs.items() if served == "preprocess version 1"]
    stub.kill()
    until_none(lambda: ["the stub"] if server_module._is_alive(stub) else [], "the killed stub")
    with pytest.raises(ServerDiedError, match=r"process \(stub\) of preprocess version 1 ended"):
        server.check()
    with pytest.raises(ServerDiedError, match="preprocess version 1") as caught:
        stream(server, MODEL, PROMPT)
    seen("stub killed before", str(caught.value))
    server.restart()
    assert stream(server, MODEL, PROMPT).text == TEXT
    kill_and_stop(server)


# --- an owner that ends -----------------------------------------------------------------------------------------------


class Owner:
    """A process that starts a server, in a session of its own."""

    def __init__(self, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, str(OWNER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        return self.process.stdout.readline().rstrip("\n")

    def send(self, command: str) -> None:
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> str:
        self.send(command)
        return self.line()

    def spawned(self) -> Launch:
        """Wait until the supervisor was started; what it launched."""
        word, name, *ports = self.line().split()
        assert word == "spawned"
        return Launch(find_source(), [MODEL_REPOSITORY], [MODEL], name, Ports(*map(int, ports)), Path())

    def interrupt(self) -> None:
        """Ctrl-C in a terminal, or Jupyter's Interrupt: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def owners() -> Iterator[Callable[..., Owner]]:
    """Makes owners, and ends them all."""
    with contextlib.ExitStack() as made:

        def make(*arguments: str) -> Owner:
            owner = Owner(*arguments)
            made.callback(owner.end)
            return owner

        yield make


@pytest.fixture
def owner(owners: Callable[..., Owner]) -> Owner:
    return owners()


def test_an_owner_killed_while_the_server_loads_leaves_nothing(owners):
    launches = []
    for seconds in (0, 0.05, 0.1, 0.2, 0.4):
        owner = owners()
        launches.append(owner.spawned())
        time.sleep(seconds)  # the moment is what is tested
        owner.process.kill()
    for launch in launches:
        assert_gone(launch)


def test_an_owner_that_ends_when_the_server_is_ready_leaves_nothing(owners):
    launches = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        owner = owners()
        launches.append(owner.spawned())
        assert owner.line() == "ready"
        owner.process.send_signal(number)
    for launch in launches:
        assert_gone(launch)


def test_an_interrupted_owner_keeps_its_server(owner):
    launch = owner.spawned()
    assert owner.line() == "ready"
    owner.interrupt()
    assert owner.line() == "interrupted"
    assert owner.ask("stream") == TEXT
    assert owner.ask("stop") == "stopped"
    assert_gone(launch)


def test_an_interrupt_while_the_server_loads_leaves_nothing_though_the_owner_lives_on(owners):
    for seconds in (0, 0.1, 0.3):
        owner = owners()
        launch = owner.spawned()
        time.sleep(seconds)  # the moment is what is tested
        owner.interrupt()
        assert owner.line() == "interrupted while starting"
        assert_gone(launch)
        assert owner.process.poll() is None


def test_a_second_interrupt_while_the_first_is_served_leaves_nothing(owner):
    launch = owner.spawned()
    owner.interrupt()
    time.sleep(0.1)  # the moment is what is tested
    owner.interrupt()
    assert owner.line() in ("interrupted while starting", "interrupted", "")
    assert_gone(launch)


def test_an_interrupt_in_the_moment_of_the_spawn_leaves_nothing(monkeypatch):
    launches = []

    def interrupted(launch: Launch):
        supervisor = launch_module.start_supervised(launch)
        launches.append(launch)
        signal.raise_signal(signal.SIGINT)
        return supervisor

    monkeypatch.setattr(server_module, "start_supervised", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        start_server([MODEL])
    assert caught.tb  # it refers to the server, as the traceback that Jupyter keeps
    assert_gone(launches[0])


def test_a_forked_child_of_the_owner_neither_blocks_stop_nor_keeps_the_server(owners):
    """A child made by fork, such as a multiprocessing worker, holds a copy of the pipe to the supervisor."""
    stopping, killed = owners("fork"), owners("fork")
    launches = [owner.spawned() for owner in (stopping, killed)]
    assert stopping.line() == killed.line() == "ready"
    killed.process.kill()
    assert stopping.ask("stop") == "stopped"
    for launch in launches:
        assert_gone(launch)


# --- a real Jupyter kernel --------------------------------------------------------------------------------------------


class Kernel:
    """A Jupyter kernel and its client."""

    def __init__(self, folder: Path):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder))
        self.connect()

    def connect(self) -> None:
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def run(self, code: str) -> str:
        """What the cell prints; an exception's name and value if it raises."""
        printed: list[str] = []

        def note(message: dict) -> None:
            content = message["content"]
            printed.append(content.get("text", "") or f"{content.get('ename', '')} {content.get('evalue', '')}".strip())

        self.client.execute_interactive(code, timeout=SECONDS, output_hook=note)
        return "".join(printed)

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


START = f"""
from pathlib import Path
from lab_utils.client import stream
from lab_utils.launch import Ports
from lab_utils.server import start_server
server = start_server(["{MODEL}"])
print("launch", server._launch.id, *vars(server._launch.ports).values())
"""


def launch_in(printed: str) -> Launch:
    name, *ports = printed.splitlines()[-1].removeprefix("launch ").split()
    return Launch(find_source(), [MODEL_REPOSITORY], [MODEL], name, Ports(*map(int, ports)), Path())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    running = Kernel(tmp_path_factory.mktemp("notebook"))
    yield running
    running.end()


def test_a_cell_shows_progress_and_running_it_again_leaves_one_server(kernel):
    first = kernel.run(START)
    assert first.splitlines()[0] == f"starting tritonserver (wheel) with {MODEL}"
    assert "  inference loaded" in first.splitlines()
    second = kernel.run(START)
    assert_gone(launch_in(first))
    seen("started twice", "")
    assert kernel.run(f'print(stream(server, "{MODEL}", "{PROMPT}").text)') == f"{TEXT}\n"
    assert kernel.run("server.stop()") == ""
    assert_gone(launch_in(second))


def test_an_interrupted_cell_keeps_the_server(kernel):
    launch = launch_in(kernel.run(START))
    timer = threading.Timer(0.5, kernel.manager.interrupt_kernel)
    timer.start()
    assert kernel.run("import time\ntime.sleep(100)").startswith("KeyboardInterrupt")
    timer.join()
    assert kernel.run(f'print(stream(server, "{MODEL}", "{PROMPT}").text)') == f"{TEXT}\n"
    assert kernel.run("server.stop()") == ""  # nor does the log of its end land in this cell
    assert_gone(launch)


@pytest.mark.parametrize("how", ["restart", "SIGKILL", "shutdown"])
def test_the_end_of_the_kernel_ends_the_server(kernel, how):
    launch = launch_in(kernel.run(START))
    if how == "shutdown":  # the last one: this kernel does not come back
        kernel.manager.shutdown_kernel(now=False)
    elif how == "SIGKILL":
        os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
    else:
        kernel.manager.restart_kernel(now=False)
    assert_gone(launch)
    if how == "SIGKILL":
        kernel.manager.restart_kernel(now=True)
    if how != "shutdown":
        kernel.client.stop_channels()
        kernel.connect()
