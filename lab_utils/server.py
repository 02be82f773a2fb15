"""Start, watch and stop a tritonserver.

``with start_server(["ensemble_append"]) as server:`` gives a running server and stops it at the end of the block. In a
notebook, ``server = start_server(...)`` in one cell and ``server.stop()`` in the last one do the same.
"""

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from lab_utils import arguments, launch, server_log
from lab_utils.api_key import RESTRICTED, ApiKey, closed, connect, key_from_environment, new_key
from lab_utils.device import Device, first_device
from lab_utils.errors import ServerDiedError, ServerError, ServerStartError
from lab_utils.launch import Launch, Ports, extra_backends, new_folder, reserved_ports, start_supervised
from lab_utils.sources import Source, find_source
from lab_utils.supervisor import EXPOSED

MODEL_REPOSITORY = Path(__file__).parents[1] / "model_repository"
START_SECONDS = 120.0
POLL_SECONDS = 0.005
LAST_POLL_SECONDS = 0.001  # between the first listener and the last one
PORT_TRIES = 5
UNLOAD_SECONDS = 15.0
LOG_LINES = 12

Report = Callable[[str], None]


class _PortTakenError(Exception):
    """Another process took a port between choosing it and listening on it."""


class TritonServer:
    """A running tritonserver; `start_server` makes one.

    Attributes
    ----------
    grpc_url, http_url, metrics_url : str
        HOST:PORT of the listeners. A server that was attached to has only the first.
    source : Source
        Where the server comes from.
    attached : bool
        True for a server that somebody else runs: it is never stopped from here.
    """

    def __init__(
        self,
        source: Source,
        repositories: Sequence[Path],
        models: Sequence[str],
        flags: Sequence[str],
        report: Report,
        backends: Sequence[Path] = (),
        with_key: bool = True,
    ):
        self.source, self.attached = source, source.kind == "attach"
        self.grpc_url, self.http_url, self.metrics_url = source.grpc_url, "", ""
        self._repositories, self._models, self._flags = tuple(repositories), tuple(models), tuple(flags)
        self._backends, self._report, self._with_key = tuple(backends), report, with_key
        self._launch: Launch | None = None
        self._supervisor: subprocess.Popen | None = None
        self._process: psutil.Process | None = None
        self._stubs: dict[psutil.Process, str] = {}

    def __enter__(self) -> "TritonServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "attached" if self.attached else "running" if self._supervisor else "stopped"
        return f"<TritonServer {self.source.kind}, {state}>"

    # --- start and stop -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._report(f"starting tritonserver ({self.source.kind}) with {', '.join(self._models)}")
        for _ in range(PORT_TRIES):
            try:
                with reserved_ports() as ports:
                    self._launch = self._new_launch(ports)
                    self._launch_once()
                    return
            except _PortTakenError:
                continue
            except OSError as error:
                raise ServerStartError(_no_place(error)) from None
        raise ServerStartError(f"tritonserver found its ports taken {PORT_TRIES} times in a row; start it again")

    def _new_launch(self, ports: Ports) -> Launch:
        name = uuid.uuid4().hex[:12]
        what = self.source, self._repositories, self._models
        key = new_key() if self._with_key else None
        return Launch(*what, name, ports, new_folder(name), self._flags, self._backends, key)

    def _launch_once(self) -> None:
        try:
            with uninterrupted():
                self._supervisor = start_supervised(self._launch)
                # Popen keeps itself, and so its pipe, alive while its process runs: the server must end with this
                # object.
                weakref.finalize(self, _close, self._supervisor.stdin)
            began = time.monotonic()
            self._wait_until_ready(began + START_SECONDS)
            ports = self._launch.ports
            self.grpc_url, self.http_url, self.metrics_url = (
                f"127.0.0.1:{port}" for port in (ports.grpc, ports.http, ports.metrics)
            )
            self._process = self._process or self._find_process()
            self._stubs = self._find_stubs()
            self._report(f"ready after {time.monotonic() - began:.1f} s on {self.device}")
            if EXPOSED in self.log:
                self._report("  its key stands on its command line, where other users of this machine can read it")
        except BaseException:
            self._end()
            raise

    def _wait_until_ready(self, deadline: float) -> None:
        reported = 0
        while not self._is_ready():
            if self._supervisor.poll() is not None:
                raise self._start_error(f"tritonserver ended with exit status {self._supervisor.returncode}")
            if time.monotonic() > deadline:
                raise self._start_error(f"tritonserver was not ready after {START_SECONDS:.0f} s")
            log = self.log
            loaded = server_log.loaded_models(log)
            for model in loaded[reported:]:
                self._report(f"  {model} loaded")
            reported = len(loaded)
            time.sleep(LAST_POLL_SECONDS if "Started HTTPService" in log else POLL_SECONDS)

    def _is_ready(self) -> bool:
        """Whether this very server, not another one on the same port, is ready, and all three listeners are."""
        if "Started HTTPService" not in self.log:
            return False
        if _http_get(self._launch.ports.http, "/v2/health/ready") is None:
            return False
        if _name_in(_http_get(self._launch.ports.http, "/v2")) != self._launch.id:
            raise _PortTakenError
        if "failed to start Metrics service" in self.log:
            raise _PortTakenError
        return self._listens_on(self._launch.ports.metrics)

    def _listens_on(self, port: int) -> bool:
        """Whether the server itself listens on the port. The log says "Started" also where the port was taken."""
        if self.source.kind == "docker":  # the listener belongs to a process that cannot be seen from here
            return "Started Metrics Service" in self.log
        with contextlib.suppress(
            psutil.Error, ServerDiedError
        ):  # where it ended meanwhile, the caller's next look tells
            self._process = self._process or self._find_process()
            listeners = self._process.net_connections("tcp4")
            return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in listeners)
        return False

    def _start_error(self, what: str) -> Exception:
        if server_log.port_taken(self.log):
            return _PortTakenError()
        failures = server_log.failures(self.log)
        reasons = "\n".join(reason for reasons in failures.values() for reason in server_log.distinct(reasons))
        if failures:
            what = f"{what}: {', '.join(failures)} failed to load"
        lines = (
            reasons
            or server_log.errors(self.log, LOG_LINES)
            or server_log.tail(self.log, LOG_LINES)
            or "(the log is empty)"
        )
        advice = server_log.advice(lines)
        message = f"{what}. Its log says:\n{lines}\n{advice}The whole log: {self._launch.log_path}"
        return ServerStartError(message, list(failures))

    def stop(self) -> None:
        """Stop the server and wait until its processes, ports and shared memory are gone.

        Can be called more than once. A server that was attached to goes on running.
        """
        if self._supervisor is not None:
            self._end()
            shutil.rmtree(self._launch.folder, ignore_errors=True)

    def _end(self) -> None:
        if self._supervisor is None:
            return
        pipe = self._supervisor.stdin
        with uninterrupted():
            with contextlib.suppress(BrokenPipeError, ValueError):  # it ended, or an interrupted stop closed the pipe
                pipe.write(b"stop")  # a word, not only the end of the pipe: a forked child may hold it open
                pipe.flush()
            _close(pipe)
        self._supervisor.wait()
        self._supervisor, self._process, self._stubs = None, None, {}
        self.grpc_url = self.http_url = self.metrics_url = ""

    def restart(self) -> None:
        """Stop the server and start it again with the same models: empty buffers, new processes, new ports."""
        self._refuse_if_attached("restart it")
        self.stop()
        self._start()

    # --- models ---------------------------------------------------------------------------------------------------

    def load(self, model: str) -> None:
        """Load a model of the repository; an ensemble brings its composing models along."""
        self._model_control("load", model)
        self._stubs = self._find_stubs()

    def unload(self, model: str) -> None:
        """Unload a model, and wait until it is gone: the server itself answers before that.

        A model of the Python backend is gone when its processes have ended, any other when the server says so.
        """
        ending = self._stubs_of(model)
        self._model_control("unload", model)
        self._wait_until_gone(model, ending)

    def _stubs_of(self, model: str) -> list[psutil.Process]:
        return [process for process, name in self._stubs.items() if name.startswith(f"{model} version ")]

    def _wait_until_gone(self, model: str, ending: Sequence[psutil.Process]) -> None:
        deadline = time.monotonic() + UNLOAD_SECONDS
        _, left = psutil.wait_procs(ending, timeout=UNLOAD_SECONDS)
        while not left and self._is_unloading(model) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if left or self._is_unloading(model):
            raise ServerError(f"model {model!r} was not unloaded within {UNLOAD_SECONDS:.0f} s: is a stream open?")
        self._stubs = self._find_stubs()

    def _is_unloading(self, model: str) -> bool:
        try:
            return any(each["name"] == model and each.get("state") == "UNLOADING" for each in self._index())
        except InferenceServerException as error:
            raise ServerError(f"the server stopped answering while it unloaded {model!r}: {error.message()}") from None

    def reload(self, model: str) -> None:
        """Unload a model and load it again: its processes start anew, with empty buffers.

        It is loaded beside the old one, which takes over a second to end: the Python backend sleeps that long.
        """
        ending = self._stubs_of(model)
        self._model_control("unload", model)
        self._model_control("load", model)
        self._wait_until_gone(model, ending)

    def _model_control(self, action: str, model: str) -> None:
        try:
            with self.client() as client:
                getattr(client, f"{action}_model")(arguments.name_of_file("model", model))
        except InferenceServerException as error:
            raise ServerError(f"could not {action} model {model!r}: {error.message()}") from None

    # --- looking at it --------------------------------------------------------------------------------------------

    def client(self) -> grpc.InferenceServerClient:
        """A new gRPC client for this server; use it in a ``with`` block."""
        if not self.grpc_url:
            raise ServerError("this server is stopped; start one with start_server([...])")
        return connect(self.grpc_url, self.api_key)

    @property
    def api_key(self) -> ApiKey | None:
        """What opens its closed APIs; for a server that was attached to, as the variable TRITON_API_KEY has it."""
        return self._launch.key if self._launch else key_from_environment()

    @property
    def running(self) -> bool:
        """Whether the server can be used: it was started, or attached to, and not stopped from here."""
        return bool(self.grpc_url)

    @property
    def metadata(self) -> dict:
        """Name, version and extensions, as the server tells them."""
        with self.client() as client:
            return client.get_server_metadata(as_json=True)

    @property
    def models(self) -> dict[str, list[int]]:
        """The models that are ready, each with its ready versions."""
        ready: dict[str, list[int]] = {}
        for model in self._index():
            if model.get("state") == "READY":
                ready.setdefault(model["name"], []).append(int(model["version"]))
        return {name: sorted(ready[name]) for name in sorted(ready)}

    def _index(self) -> list[dict]:
        """Every version of every model that the server knows, with its name, version, state and reason."""
        with self.client() as client:
            return client.get_model_repository_index(as_json=True).get("models", [])

    @property
    def device(self) -> Device:
        """What this machine has for the models of a local server; of an attached one nothing is known here."""
        return Device("unknown", f"the server at {self.grpc_url} is run elsewhere") if self.attached else first_device()

    @property
    def processes(self) -> dict[psutil.Process, str]:
        """The processes of a local server: its own, named "server", and its stubs, such as "inference version 1".

        Raises
        ------
        ServerError
            They cannot be seen from here, or the server is stopped.
        ServerDiedError
            One of them ended.
        """
        self._refuse_if_attached("look at its processes")
        if self.source.kind == "docker":
            raise ServerError("this server runs in a container: the lab cannot look at its processes")
        if self._process is None:
            raise ServerError("this server is stopped; start one with start_server([...])")
        self.check()
        return {self._process: "server", **self._stubs}

    @property
    def shm_prefix(self) -> str:
        """How the names of a local server's files in /dev/shm begin; empty for one that was attached to."""
        return self._launch.shm_prefix if self._launch else ""

    @property
    def log_path(self) -> Path | None:
        """The log file of a local server; None for one that was attached to."""
        return self._launch.log_path if self._launch else None

    @property
    def log(self) -> str:
        """The whole log of a local server; empty for one that was attached to."""
        return server_log.read(self._launch.log_path) if self._launch else ""

    def logs(self, lines: int = LOG_LINES) -> str:
        """The last lines of the log of a local server, without tables and remarks about a missing GPU."""
        self._refuse_if_attached("read its log")
        return server_log.tail(self.log, arguments.whole("lines", lines, 1))

    def check(self) -> None:
        """Raise a `ServerDiedError` when the server or the process of one of its models is gone.

        The server's own readiness is no help here: it stays "ready" after a model's process has died.
        """
        if self.attached:
            self._check_attached()
        elif self._process is not None and not _is_alive(self._process):
            raise ServerDiedError(
                f"tritonserver ended with exit status {self._supervisor.wait()}. The end of its log:\n"
                f"{self.logs()}\nStart it again with server.restart()."
            )
        elif not all(map(_is_alive, self._stubs)):
            self._check_stubs()

    def _check_stubs(self) -> None:
        known, found = set(self._stubs.values()), self._find_stubs()
        dead = sorted(known - set(found.values()) - self._unloaded(known))
        if dead:
            raise ServerDiedError(
                f"the Python process (stub) of {', '.join(dead)} ended, although the server still says it is ready. "
                f"The end of its log:\n{self.logs()}\nStart the server again with server.restart()."
            )
        self._stubs = found

    def _unloaded(self, names: set[str]) -> set[str]:
        """Those of the model versions that the server does not serve any more: somebody else unloaded them."""
        try:
            served = {f"{model} version {version}" for model, versions in self.models.items() for version in versions}
        except InferenceServerException:  # it does not answer any more: it is ending, and its process will tell
            return names
        return names - served

    def _check_attached(self) -> None:
        try:
            with self.client() as client:
                live = client.is_server_live(client_timeout=5.0)
        except InferenceServerException as error:
            raise ServerDiedError(
                f"the server at {self.grpc_url} does not answer: {error.message()}. Is it running there? Correct or "
                "unset TRITON_GRPC_URL"
            ) from None
        if not live:
            raise ServerDiedError(f"the server at {self.grpc_url} says that it is not live")

    def _refuse_if_attached(self, action: str) -> None:
        if self.attached:
            raise ServerError(
                f"the server at {self.grpc_url} is run by somebody else: the lab cannot {action}. Let the lab start "
                'one here: run `import os; del os.environ["TRITON_GRPC_URL"]` in a notebook, or unset '
                "TRITON_GRPC_URL before you start JupyterLab"
            )

    def _find_process(self) -> psutil.Process:
        """The process of tritonserver itself: the supervisor's only child."""
        children = psutil.Process(self._supervisor.pid).children()
        if not children:
            raise ServerDiedError(f"tritonserver ended. The end of its log:\n{self.logs()}")
        return children[0]

    def _find_stubs(self) -> dict[psutil.Process, str]:
        """The Python processes of the models, each with the model and version it serves."""
        if self._supervisor is None:
            return {}
        children = psutil.Process(self._supervisor.pid).children(recursive=True)
        return {child: name for child in children if (name := _stub_name(child))}


def start_server(
    models: Sequence[str],
    *,
    repository: str | Path | Sequence[str | Path] = MODEL_REPOSITORY,
    backends: str | Path | Sequence[str | Path] = (),
    source: str | None = None,
    flags: Sequence[str] = (),
    local: bool = False,
    with_key: bool = True,
    report: Report | None = None,
) -> TritonServer:
    """Start a tritonserver with these models, and return it when it is ready.

    Parameters
    ----------
    models : sequence of str
        Models to load; an ensemble brings its composing models along.
    repository : path or sequence of paths
        The model repository, or several: no model may be in two of them. An attached server has its own.
    backends : path or sequence of paths
        Folders that hold further backends, each as ``<name>/libtriton_<name>.so``; the server finds them beside its
        own. An attached server cannot be given any: it is refused.
    source : str, optional
        "attach", "native", "wheel" or "docker"; by default the first of the first three that is there.
        See `lab_utils.sources`.
    flags : sequence of str
        More command line flags for tritonserver; paths in them have to be absolute, since it runs in a folder of its
        own. An attached server cannot be given any: it is refused.
    local : bool
        True where the server's log, processes or metrics are read later: an attached server is refused at once.
    with_key : bool
        False for clients that know nothing of keys: then every user of this machine can use and control the server.
    report : callable, optional
        Called with a line of text for each step; in a notebook the default prints, elsewhere it is silent.

    Returns
    -------
    TritonServer
        Ready to be used. It ends with the ``with`` block, with `stop`, or with this process, however that ends.

    Raises
    ------
    ServerError
        What was asked for needs a server that the lab starts itself, and TRITON_GRPC_URL names another one.
    ServerStartError
        A model, repository or backend is not there, or there are two of one name. Or the server did not become ready;
        the message names the model that failed and shows why.
    lab_utils.sources.ServerNotFoundError
        There is no server to start.
    ValueError, TypeError
        An argument is not what it should be.
    """
    models, flags = arguments.texts("models", models), arguments.texts("flags", flags)
    repositories = [one.resolve() for one in arguments.paths("repository", repository)]
    backends = arguments.paths("backends", backends)
    found, report = find_source(source), report or _default_report()
    if found.kind == "attach":
        server = TritonServer(found, repositories, models, flags, report)
        if local or flags or backends:
            server._refuse_if_attached("start it with flags or backends, or read what it leaves on its machine")
        _load_missing(server, models)
    else:
        _check_models_exist(repositories, models)
        server = TritonServer(found, repositories, models, flags, report, extra_backends(backends, found), with_key)
        server._start()
    return server


def _load_missing(server: TritonServer, models: Sequence[str]) -> None:
    server._check_attached()
    try:
        served = set(server.models)
    except InferenceServerException as error:
        asks = RESTRICTED in error.message()
        raise ServerStartError(closed(server.grpc_url) if asks else f"{server.grpc_url}: {error.message()}") from None
    for model in set(models) - served:
        try:
            server.load(model)
        except ServerError as error:
            raise ServerStartError(
                f"the server at {server.grpc_url} does not serve {model!r}, and does not load it: {error}. "
                "Give it the lab's model_repository and start it with --model-control-mode=explicit, or load it there.",
                [model],
            ) from None


def _check_models_exist(repositories: Sequence[Path], models: Sequence[str]) -> None:
    present: dict[str, Path] = {}
    for path in sorted(path.parent for repository in repositories for path in repository.glob("*/config.pbtxt")):
        if path.name in present:
            raise ServerStartError(
                f"model {path.name!r} is in two repositories, {present[path.name].parent} and {path.parent}, and "
                "Triton would load neither; leave one of them out",
                [path.name],
            )
        present[path.name] = path
    missing = [model for model in models if model not in present]
    if missing or not models:
        wanted = f"no model named {', '.join(missing)}" if missing else "no model was asked for"
        places = f"{' and '.join(map(str, repositories))} {'has' if len(repositories) == 1 else 'have'}"
        raise ServerStartError(f"{wanted}; {places}: {', '.join(sorted(present)) or 'no models'}", missing)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended: between two steps that must both be taken, or none."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
        yield
        return
    held: list[tuple] = []
    before = signal.signal(signal.SIGINT, lambda *interrupt: held.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            before(*held[0])


def _no_place(error: OSError) -> str:
    return (
        f"tritonserver cannot be started: {error}. Its log and its links go into {launch.STATE}, which needs 1 MiB: "
        "free space on that disk, or let the variable XDG_STATE_HOME name a folder of yours on another one"
    )


def _close(pipe: BinaryIO) -> None:
    with uninterrupted(), contextlib.suppress(BrokenPipeError):
        pipe.close()


def _http_get(port: int, path: str) -> bytes | None:
    """The body of a 200 answer on loopback, None for any other answer or none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _name_in(metadata: bytes | None) -> str:
    """The server's name in the answer to ``GET /v2``; empty where it is not such an answer."""
    try:
        answer = json.loads(metadata or b"")
    except ValueError:
        return ""
    return answer.get("name", "") if isinstance(answer, dict) else ""


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _stub_name(process: psutil.Process) -> str:
    """Model and version of a stub, from its command line `…stub …/MODEL/VERSION/model.py …`; empty for others."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        command = process.cmdline()
        if len(command) > 1 and command[0].endswith("triton_python_backend_stub"):
            path = Path(command[1])
            return f"{path.parents[1].name} version {path.parent.name}"
    return ""


def _default_report() -> Report:
    """Print in a notebook, where a learner waits; say nothing elsewhere."""
    in_notebook = "ipykernel" in sys.modules
    return (lambda line: print(line, flush=True)) if in_notebook else (lambda _: None)
