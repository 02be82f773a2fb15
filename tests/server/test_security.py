"""What other users of the machine can do with a server that the lab started: nothing, on the whole."""

import contextlib
import http.client
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from leftovers import SHARED_MEMORY, attach_to, header_of, launch_of, triton_process
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from lab_utils import api_key, launch, supervisor, trace
from lab_utils.api_key import ApiKey, connect
from lab_utils.client import infer, stream
from lab_utils.errors import ServerError, ServerStartError
from lab_utils.server import TritonServer, start_server
from lab_utils.watch import watch
from lab_utils.watch_server import GrpcEndpoint, HttpEndpoint
from lab_utils.workshop_check import running_lab
from lab_utils.workspace import Room

NOBODY = 65534
OPEN = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/inference", "/v2/models/inference/ready"]
CLOSED = [
    ("POST", "/v2/models/preprocess/infer"),
    ("POST", "/v2/models/ensemble_latest/generate"),
    ("POST", "/v2/models/ensemble_latest/generate_stream"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/inference/load"),
    ("POST", "/v2/repository/models/inference/unload"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("POST", "/v2/models/inference/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/models/inference/config"),
    ("GET", "/v2/models/stats"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("GET", "/v2/cudasharedmemory/status"),
]
CLOSED_GRPC: list[tuple[str, list]] = [
    ("infer", ["preprocess", []]),
    ("load_model", ["inference"]),
    ("unload_model", ["inference"]),
    ("get_model_repository_index", []),
    ("get_trace_settings", []),
    ("update_trace_settings", []),
    ("get_log_settings", []),
    ("update_log_settings", [{"log_verbose_level": 1}]),
    ("get_model_config", ["inference"]),
    ("get_inference_statistics", []),
    ("get_system_shared_memory_status", []),
    ("register_system_shared_memory", ["x", "/x", 8]),
    ("get_cuda_shared_memory_status", []),
]
WRONG = ApiKey(api_key.HEADER, "0" * 32)


def status(url: str, method: str, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(url, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        return connection.getresponse().status


# --- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {WRONG.header: WRONG.value}], ids=["no key", "wrong key"])
def test_without_the_key_only_health_and_metadata_answer_over_http(server, headers):
    assert {path: status(server.http_url, "GET", path, headers) for path in OPEN} == dict.fromkeys(OPEN, 200)
    answers = {one: status(server.http_url, *one, headers) for one in CLOSED}
    assert answers == dict.fromkeys(CLOSED, 403)


def test_with_the_key_everything_answers_over_http(server):
    harmless = [one for one in CLOSED if not one[1].endswith("load")]
    assert 403 not in {status(server.http_url, *one, header_of(server)) for one in harmless}


@pytest.mark.parametrize("key", [None, WRONG], ids=["no key", "wrong key"])
def test_without_the_key_only_health_and_metadata_answer_over_grpc(server, key):
    with connect(server.grpc_url, key) as client:
        assert client.is_server_ready()
        assert client.get_server_metadata().name == launch_of(server).id
        for method, arguments in CLOSED_GRPC:
            with pytest.raises(InferenceServerException, match=api_key.RESTRICTED):
                getattr(client, method)(*arguments)


def test_a_stream_without_the_key_is_refused(server):
    answers: list[object] = []
    came = threading.Event()
    with connect(server.grpc_url, None) as client:
        client.start_stream(lambda result, error: (answers.append(error), came.set()))
        with contextlib.suppress(InferenceServerException):  # the refusal may come before there is anything to send
            client.async_stream_infer("ensemble_latest", [])
        assert came.wait(30)
    assert api_key.RESTRICTED in str(answers[0])


def test_every_server_has_a_key_of_its_own_which_is_never_printed(server):
    other = api_key.new_key()
    assert len({server.api_key.value, other.value, api_key.new_key().value}) == 3
    assert len(other.value) == 32
    assert other.value not in f"{other} {other!r} {launch_of(server)!r}"
    assert server.api_key.value not in f"{server!r} {launch_of(server)!r}"


# --- where the key is -------------------------------------------------------------------------------------------------


def test_a_server_without_a_key_is_there_for_every_client():
    with start_server(["preprocess"], with_key=False) as server, grpc.InferenceServerClient(server.grpc_url) as client:
        assert server.api_key is None
        assert client.get_inference_statistics("preprocess").model_stats[0].name == "preprocess"
        client.unload_model("preprocess")


@contextlib.contextmanager
def command_lines_seen() -> Iterator[set[str]]:
    """Every command line there is meanwhile, read as often as this machine can."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_bytes().decode(errors="replace"))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        over.set()
        reader.join()


def test_the_key_is_on_no_command_line_at_no_moment_and_not_in_the_log(tmp_path):
    flags = trace.server_flags(tmp_path / "trace.json")
    with command_lines_seen() as seen, start_server(["preprocess"], flags=flags) as server:
        key, prefix = server.api_key.value, server.shm_prefix
        with server.client() as client:
            client.update_log_settings({"log_verbose_level": 4})
            client.get_model_config("preprocess")
        infer(server, "preprocess", {"PROMPT": np.array([b"Pancakes"], dtype=object)})
        assert status(server.http_url, "GET", "/v2/models/preprocess/config", header_of(server)) == 200
        assert key not in server.log
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o600]  # all values are in it
    ours = {line for line in seen if prefix in line}
    assert {Path(line.split("\0")[0]).name.rstrip("0123456789.") for line in ours} >= {"python", "tritonserver"}
    assert any("--http-restricted-api=hidden" in line for line in ours)
    assert not [line for line in seen if key in line]


def test_the_processes_of_models_do_not_inherit_the_key(server):
    stubs = [process for process, name in server.processes.items() if name != "server"]
    assert stubs
    assert all(server.api_key.value not in str(process.environ()) for process in stubs)
    assert all(process.environ()["--http-restricted-api"] == supervisor.HIDDEN for process in stubs)


ECHO = "import os, sys; print(sys.argv[1:], os.environ.get('--flag'), open('/proc/self/cmdline').read())"


def test_a_hidden_flag_reaches_the_program_and_nobody_else(capfd):
    """More than one, of any length, and without any variable of the user's own in the environment."""
    hidden = ["--flag=secret=1", f"--{'x' * 5000}=secret2"]
    process = supervisor.start([sys.executable, "-c", ECHO, "plain"], hidden)
    assert process.wait(30) == 0
    arguments, variable, line = capfd.readouterr().out.partition(" hidden ")
    assert arguments == str(["plain", *hidden])
    assert "secret" not in variable + line
    assert "--flag=hidden" in line


def test_where_ptrace_is_not_permitted_the_server_starts_and_its_user_is_told(monkeypatch, capfd):
    def refused() -> None:
        raise PermissionError

    monkeypatch.setattr(supervisor, "be_traced", refused)
    process = supervisor.start([sys.executable, "-c", ECHO], ["--flag=secret"])
    assert process.wait(30) == 0
    said = capfd.readouterr().out
    assert said.startswith(supervisor.EXPOSED)
    assert "['--flag=secret']" in said


def test_a_learner_is_told_when_the_key_can_be_read(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(TritonServer, "log", property(lambda self: f"{supervisor.EXPOSED}\n{log(self)}"))
    with start_server(["preprocess"], report=said.append):
        assert "other users of this machine can read it" in said[-1]


log = TritonServer.log.fget


def test_a_program_that_cannot_be_prepared_is_ended(monkeypatch, capfd):
    def refused(*_: object) -> None:
        raise PermissionError("no memory access")

    before = set(psutil.Process().children())
    monkeypatch.setattr(supervisor, "swap", refused)
    process = supervisor.start(["/bin/true"], ["--flag=secret"])
    assert process.wait(30) == 0
    assert "no memory access" in capfd.readouterr().out
    assert set(psutil.Process().children()) <= before


# --- files ------------------------------------------------------------------------------------------------------------


def test_tensors_log_and_folder_are_the_users_own(server):
    """The Python backend makes its files in /dev/shm with mode 0644, whatever the umask says."""
    stream(server, "ensemble_latest", "Pancakes. Ingredients:", 2)
    tensors = list(SHARED_MEMORY.glob(f"{server.shm_prefix}*"))
    folder = launch_of(server).folder
    assert len(tensors) >= 6
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (*tensors, folder, folder.parent, server.log_path)}
    assert [path for path, mode in modes.items() if mode & 0o077] == []


def test_a_folder_of_another_user_is_not_used_for_links_and_logs(monkeypatch, tmp_path):
    """With white space in the state folder's path the lab works in the temporary folder, where anybody may be first."""
    monkeypatch.setattr(launch, "STATE", tmp_path / "with space")
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"triton-ensemble-lab-{os.getuid()}").symlink_to("/proc/1")  # as any other user could have made it
    real = os.lstat

    def lstat(path, *more, **options):
        found = real(path, *more, **options)
        return os.stat_result([*found[:4], NOBODY, *found[5:10]]) if "triton-ensemble-lab-" in str(path) else found

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(Path, "lstat", lambda path: lstat(path))
    with pytest.raises(ServerStartError, match="belongs to another user"):
        start_server(["preprocess"])


# --- another user -----------------------------------------------------------------------------------------------------


def outcome(attempt: Callable[[], object]) -> str:
    try:
        return str(attempt())
    except OSError as error:
        return type(error).__name__


def attempts_of_another_user(server: TritonServer) -> dict[str, str]:
    """What another user of this machine gets who tries to read and to control the server, by what was tried."""
    folder, triton = launch_of(server).folder, triton_process(server).pid
    files = [folder / "server.log", *SHARED_MEMORY.glob(f"{server.shm_prefix}*")]
    secret = [Path(f"/proc/{pid}/{name}") for pid in (triton, server._supervisor.pid) for name in ("environ", "mem")]
    tries = {str(path): lambda path=path: path.open("rb").read(1) for path in [*files, *secret]}
    tries["the supervisor's files"] = lambda: os.listdir(f"/proc/{server._supervisor.pid}/fd")
    tries["the folder"] = lambda: os.listdir(folder)
    tries["SIGTERM"] = lambda: os.kill(triton, 15)
    return {name: outcome(attempt) for name, attempt in tries.items()} | {
        f"{method} {path}": str(status(server.http_url, method, path, {})) for method, path in CLOSED
    }


def in_child(work: Callable[[], dict], user: int) -> dict:
    """What the function returns in a forked child that belongs to this user."""
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.write(write_end, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def test_another_user_can_neither_read_nor_control_the_server(server):
    """As root this is tried; an ordinary user cannot become another one, and reads who may enter."""
    if os.getuid() == 0:
        found = in_child(lambda: attempts_of_another_user(server), NOBODY)
        assert len(found) > 25
        assert {name: got for name, got in found.items() if got not in ("PermissionError", "403")} == {}
        return
    assert launch_of(server).folder.stat().st_mode & 0o077 == 0


# --- the lab's own clients --------------------------------------------------------------------------------------------


def test_a_server_of_somebody_else_is_used_with_its_key_and_refused_without(server, monkeypatch):
    attach_to(server, monkeypatch)
    with start_server(["ensemble_latest"]) as attached:
        assert stream(attached, "ensemble_latest", "Pancakes. Ingredients:", 1).lengths == [1]
    for wrong in ("", WRONG.text):
        monkeypatch.setenv("TRITON_API_KEY", wrong)
        with pytest.raises(ServerStartError, match=r"answers only who sends its key: set TRITON_API_KEY=HEADER=VALUE"):
            start_server(["ensemble_latest"])


@pytest.mark.parametrize("kind", [GrpcEndpoint, HttpEndpoint])
def test_an_endpoint_without_the_key_says_what_to_do(server, kind, monkeypatch):
    url = server.grpc_url if kind is GrpcEndpoint else server.http_url
    for key in (None, WRONG):
        with contextlib.closing(kind(url, key)) as endpoint, pytest.raises(ServerError, match="set TRITON_API_KEY"):
            endpoint.verbose_level()
    monkeypatch.delenv("TRITON_API_KEY", raising=False)
    address = {"grpc_url": url} if kind is GrpcEndpoint else {"http_url": url}
    with pytest.raises(ServerError, match="set TRITON_API_KEY"), watch(**address, log=server.log_path):
        pass


# --- listeners --------------------------------------------------------------------------------------------------------


def listeners(process: psutil.Process) -> dict[int, str]:
    """Every port that this process or a descendant listens on, with the address; gRPC says ::ffff:127.0.0.1."""
    found = []
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            found += [one for one in each.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    return {one.laddr.port: one.laddr.ip.removeprefix("::ffff:") for one in found}


def test_a_server_listens_on_loopback_alone(server):
    ports = launch_of(server).ports
    assert listeners(psutil.Process(server._supervisor.pid)) == dict.fromkeys(
        (ports.http, ports.grpc, ports.metrics), "127.0.0.1"
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, int, Path]]:
    """JupyterLab as `make lab` starts it, on an empty folder: its address, token, process id and that folder."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        with running_lab(Room(folder, folder)) as (url, token, pid):
            yield urlsplit(url).netloc, token, pid, folder


def test_jupyter_keeps_its_token(lab):
    url, token, _, _ = lab
    assert len(token) >= 32
    for headers in ({}, {"Authorization": "token wrong"}, {"Authorization": f"token {token[:-1]}"}):
        assert status(url, "GET", "/api/contents", headers) == 403
        assert status(url, "POST", "/api/kernels", headers) == 403
    assert status(url, "GET", "/api/contents?token=wrong", {}) == 403
    assert status(url, "GET", "/api/contents", {"Authorization": f"token {token}"}) == 200


def test_jupyter_and_its_kernels_listen_on_loopback_alone(lab):
    url, token, pid, folder = lab
    assert status(url, "POST", "/api/kernels", {"Authorization": f"token {token}"}) == 201
    deadline = time.monotonic() + 60
    while len(found := listeners(psutil.Process(pid))) < 6:  # Jupyter's own, and five of the kernel
        assert time.monotonic() < deadline, f"only {found}"
        time.sleep(0.05)
    assert set(found.values()) == {"127.0.0.1"}
    (connection,) = folder.glob("runtime/kernel-*.json")
    assert stat.S_IMODE(connection.stat().st_mode) & 0o077 == 0  # it holds the key to the kernel
