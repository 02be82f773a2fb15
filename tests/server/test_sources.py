"""Where a server comes from: an address, an installation, the wheel, Docker; and what is said when there is none."""

import json
import os
import shutil
import signal
import socket
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fault_matrix import seen
from leftovers import assert_gone, attach_to, launch_of, triton_process

from lab_utils import custom_backend, sources
from lab_utils import launch as launch_module
from lab_utils import server as server_module
from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.launch import Launch, Ports
from lab_utils.server import MODEL_REPOSITORY, ServerDiedError, ServerError, ServerStartError, start_server
from lab_utils.sources import ServerNotFoundError, find_source

MODEL = "ensemble_latest"
PROMPT = "Pancakes. Ingredients:"
TEXT = " 1 cup flour, 1 cup"


# --- an address given by the user -------------------------------------------------------------------------------------


@pytest.fixture
def address(server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shared server, run by somebody else as far as the lab can tell."""
    return attach_to(server, monkeypatch)


def test_an_attached_server_serves_and_is_never_stopped(server, address):
    with start_server([MODEL]) as attached:
        assert (attached.attached, attached.running, attached.grpc_url) == (True, True, address)
        assert repr(attached) == "<TritonServer attach, attached>"
        assert attached.metadata["name"] == launch_of(server).id
        assert stream(attached, MODEL, PROMPT).text == TEXT
        attached.check()
    attached.stop()
    server.check()
    assert stream(server, MODEL, PROMPT).text == TEXT


def test_what_only_the_owner_can_do_is_refused(server, address):
    attached = start_server([MODEL])
    with pytest.raises(ServerError, match=f"the server at {address} is run by somebody else.* cannot restart it"):
        attached.restart()
    with pytest.raises(ServerError, match="cannot read its log"):
        attached.logs()
    assert attached.log == ""
    assert psutil.pid_exists(triton_process(server).pid)


def test_a_missing_model_is_loaded_into_an_attached_server(server, address):
    server.unload("ensemble_replace")
    assert "ensemble_replace" not in server.models
    attached = start_server(["ensemble_replace", MODEL])
    assert attached.models == server.models
    assert stream(attached, "ensemble_replace", REPORTED_PROMPT).lengths == [1, 2, 3, 1, 1, 1, 1, 1]


def test_a_model_that_an_attached_server_cannot_load_is_named(address):
    with pytest.raises(
        ServerStartError, match=f"the server at {address} does not serve 'nothing'.*model_repository"
    ) as caught:
        start_server(["nothing"])
    assert caught.value.models == ("nothing",)


def test_a_reload_empties_the_buffer_of_an_attached_server_and_alarms_nobody(monkeypatch):
    with start_server(["ensemble_append"]) as other:
        attach_to(other, monkeypatch)
        attached = start_server(["ensemble_append"])
        for _ in range(2):
            assert stream(attached, "ensemble_append", REPORTED_PROMPT).lengths[-1] == 128
            attached.reload("inference")
        attached.check()
        other.check()  # its models have new processes; none died
        assert stream(other, "ensemble_append", REPORTED_PROMPT).lengths[-1] == 128


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_an_address_where_nothing_listens_is_said(monkeypatch):
    address = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("TRITON_GRPC_URL", address)
    with pytest.raises(ServerError, match=f"the server at {address} does not answer") as caught:
        start_server([MODEL])
    seen("nothing listens", str(caught.value))


def test_the_http_port_instead_of_the_grpc_port_is_said(server, monkeypatch):
    monkeypatch.setenv("TRITON_GRPC_URL", server.http_url)
    with pytest.raises(ServerError, match=f"the server at {server.http_url} does not answer"):
        start_server([MODEL])


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8001", "localhost", "127.0.0.1:", ":8001", "127.0.0.1:8001/v2", "two words:1"]
)
@pytest.mark.parametrize("kind", [None, "attach"])
def test_a_malformed_address_is_never_passed_over(url, kind, monkeypatch):
    """Without this the lab would quietly use another server than the one that the user asked for."""
    monkeypatch.setenv("TRITON_GRPC_URL", url)
    with pytest.raises(ServerNotFoundError, match=r"TRITON_GRPC_URL is '.*'; expected HOST:PORT"):
        find_source(kind)


def test_the_death_of_an_attached_server_is_noticed(monkeypatch):
    with start_server(["postprocess"]) as other:
        attach_to(other, monkeypatch)
        attached = start_server(["postprocess"])
        attached.check()
        triton_process(other).kill()
        other._supervisor.wait()
        with pytest.raises(ServerDiedError, match=f"the server at {attached.grpc_url} does not answer"):
            attached.check()
        with pytest.raises(ServerDiedError, match="does not answer"):
            stream(attached, "postprocess", PROMPT)


# --- a native installation --------------------------------------------------------------------------------------------


def build_backends(folder: Path, stub: str | Path) -> Path:
    """A backend folder as an installation has it: the Python backend with its stub beside it."""
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    for file in [*Path(find_source("wheel").backends, "python").iterdir(), Path(stub)]:
        (python / file.name).symlink_to(file)
    return python.parent


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation made of the wheel's files; its libraries are where the linker looks for them."""
    home, wheel = tmp_path / "opt" / "tritonserver", find_source("wheel")
    build_backends(home, wheel.stub)
    (home / "bin").mkdir()
    (home / "bin" / "tritonserver").symlink_to(wheel.binary)
    libraries = wheel.environment["LD_LIBRARY_PATH"].partition(":")[0]
    monkeypatch.setenv("LD_LIBRARY_PATH", libraries)
    monkeypatch.setenv("TRITONSERVER_HOME", str(home))
    return home


def test_an_installation_comes_before_the_wheel_and_runs(installation):
    with start_server([MODEL]) as server:
        assert (server.source.kind, server.source.place) == ("native", str(installation))
        assert triton_process(server).cmdline()[0] == str(installation / "bin" / "tritonserver")
        assert stream(server, MODEL, PROMPT).text == TEXT
        assert len(server._stubs) == 6
    assert_gone(launch_of(server))


def test_an_installation_takes_a_further_backend(installation, tmp_path):
    """Its own backends and the further one are linked into one folder; the installation itself stays as it is."""
    (tmp_path / "mine" / "answering").mkdir(parents=True)
    (tmp_path / "mine" / "answering" / "libtriton_answering.so").touch()
    with start_server(["postprocess"], backends=tmp_path / "mine") as server:
        linked = launch_of(server).folder / "backends"
        assert f"--backend-directory={linked}" in triton_process(server).cmdline()
        assert {folder.name: folder.resolve() for folder in linked.iterdir()} == {
            "answering": tmp_path / "mine" / "answering",
            "python": installation / "backends" / "python",
        }
        assert server.models == {"postprocess": [1]}
    assert [folder.name for folder in (installation / "backends").iterdir()] == ["python"]


def test_an_address_comes_before_an_installation(installation, address):
    assert find_source().kind == "attach"
    assert find_source("native").place == str(installation)


def test_the_usual_place_of_an_installation_is_looked_at(installation, monkeypatch):
    monkeypatch.delenv("TRITONSERVER_HOME")
    monkeypatch.setattr(sources, "NATIVE_HOME", installation)
    assert find_source().place == str(installation)


def test_a_stub_of_another_python_keeps_its_own_environment(installation):
    stub = installation / "backends" / "python" / "triton_python_backend_stub"
    assert sources.stub_python(stub) == sources.python_version()
    assert "PATH" in find_source("native").environment
    stub.unlink()
    stub.write_bytes(b"\x7fELF needs libpython3.9.so.1.0")
    assert find_source("native").environment == {}


def test_an_installation_without_python_backend_is_said(installation):
    shutil.rmtree(installation / "backends" / "python")
    with pytest.raises(ServerNotFoundError, match=r"native: .* has no Python backend \(.*stub is missing\)"):
        find_source("native")


# --- the wheel --------------------------------------------------------------------------------------------------------


def test_the_wheel_is_the_default():
    source = find_source()
    assert source.kind == "wheel"
    assert os.access(source.binary, os.X_OK)
    assert os.access(source.stub, os.X_OK)
    assert sources.stub_python(Path(source.stub)) == sources.python_version()
    assert source.environment["PATH"].startswith(str(Path(sys.executable).parent))


def test_a_missing_execute_bit_is_given(tmp_path):
    binary = tmp_path / "tritonserver"
    binary.write_text("")
    binary.chmod(0o644)
    assert sources._executable(binary) == binary
    assert os.access(binary, os.X_OK)


def test_the_source_can_be_named_by_a_variable(monkeypatch, address):
    monkeypatch.setenv("TRITON_SOURCE", "wheel")
    assert find_source().kind == "wheel"
    monkeypatch.setenv("TRITON_SOURCE", "")
    assert find_source().kind == "attach"  # an empty variable is none
    monkeypatch.setenv("TRITON_SOURCE", "cloud")
    with pytest.raises(
        ValueError, match="server source 'cloud' is not known; use one of attach, native, wheel, docker"
    ):
        find_source()


def test_nothing_found_says_all_that_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "NATIVE_HOME", tmp_path)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerNotFoundError) as caught:
        start_server([MODEL])
    lines = str(caught.value).splitlines()
    assert lines[0] == "no tritonserver found. Looked for:"
    assert "attach: TRITON_GRPC_URL is not set" in lines[1]
    assert f"native: no executable {tmp_path}/bin/tritonserver" in lines[2]
    assert "wheel: the Python package nvidia-pytriton is not installed" in lines[3]
    assert "make setup" in lines[3]


def test_another_kind_of_machine_is_said(monkeypatch):
    monkeypatch.setattr(sources.sys, "platform", "darwin")
    with pytest.raises(ServerNotFoundError, match="runs on Linux x86-64 only; this is darwin"):
        find_source("wheel")


def test_a_python_without_stub_is_said(monkeypatch):
    monkeypatch.setattr(sources, "python_version", lambda: "3.77")
    with pytest.raises(ServerNotFoundError, match=r"has no stub for Python 3\.77") as caught:
        find_source("wheel")
    seen("wrong python", str(caught.value))


# --- Docker -----------------------------------------------------------------------------------------------------------


class FakeDocker:
    """The settings and the notes of `fake_docker.py`, which stands on PATH as ``docker``."""

    def __init__(self, folder: Path):
        self.folder, wheel = folder, find_source("wheel")
        (folder / "bin").mkdir(parents=True)
        script = folder / "bin" / "docker"
        script.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I "{Path(__file__).with_name("fake_docker.py")}" "$@"\n'
        )
        script.chmod(0o755)
        self.binary, self.settings = str(script), {"binary": wheel.binary, "environment": wheel.environment, "fail": []}
        self.settings["backends"] = str(build_backends(folder, wheel.stub))
        self.fail()

    def fail(self, *commands: str) -> None:
        self.settings["fail"] = commands
        (self.folder / "settings.json").write_text(json.dumps(self.settings))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def calls_of(self, command: str) -> list[list[str]]:
        return [call for call in self.calls if call[0] == command]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDocker]:
    made = FakeDocker(tmp_path / "fake_docker")
    monkeypatch.setenv("FAKE_DOCKER", str(made.folder))
    monkeypatch.setenv("PATH", f"{made.folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(launch_module, "has_gpu", lambda: False)
    return made


def tag_of(*packages: str) -> str:
    """The image with these packages: another one for others."""
    return f"triton-ensemble-lab:24.10-py3-{zlib.crc32(' '.join(packages).encode()):08x}"


REQUIREMENTS = (MODEL_REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
TAG = tag_of(*(line for line in REQUIREMENTS if line and not line.startswith("#")))


def test_the_life_of_a_container(docker, tmp_path):
    """The name of the repository would do harm in a shell."""
    repository = tmp_path / "models $(touch pwned); `touch pwned` & touch pwned 'x' \"y\""
    shutil.copytree(MODEL_REPOSITORY, repository, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    with start_server([MODEL], source="docker", repository=repository) as server:
        launch = launch_of(server)
        assert (server.source.kind, server.source.binary) == ("docker", docker.binary)
        assert stream(server, MODEL, PROMPT).text == TEXT
        assert docker.calls_of("rm") == []
    assert_gone(launch)
    assert [call[:2] for call in docker.calls] == [
        *(["info"], ["image", "inspect"], ["build", "--tag"], ["run", "--rm"], ["rm", "--force"])
    ]
    (run,) = docker.calls_of("run")
    assert run[: run.index("tritonserver") + 1] == [
        *("run", "--rm", "--name", launch.id, "--network", "host", "--shm-size", "6g"),
        *("--volume", f"{repository}:/models:ro", TAG, "tritonserver"),
    ]
    assert docker.calls_of("rm") == [["rm", "--force", launch.id]]
    assert not Path("pwned").exists()


def test_a_container_is_removed_when_its_owner_is_gone(docker):
    server = start_server(["postprocess"], source="docker")
    server._supervisor.send_signal(signal.SIGTERM)
    server._supervisor.wait()
    assert docker.calls_of("rm") == [["rm", "--force", launch_of(server).id]]
    assert_gone(launch_of(server))
    server.stop()


def test_the_image_is_built_once_from_the_models_requirements(docker):
    source = find_source("docker")
    made = Launch(source, [MODEL_REPOSITORY], [MODEL], "0" * 12, Ports(1, 2, 3), docker.folder)
    assert launch_module.docker_image(made) == launch_module.docker_image(made) == TAG
    assert len(docker.calls_of("build")) == 1
    first, install = (docker.folder / "recipe.txt").read_text().splitlines()
    assert first == f"FROM {source.place}"
    packages = json.loads(install.removeprefix("RUN "))
    requirements = (MODEL_REPOSITORY / "requirements.txt").read_text().splitlines()
    assert packages == [
        *("python3", "-m", "pip", "install", "--no-cache-dir"),
        *(r for r in requirements if r[:1] != "#"),
    ]


def test_gpus_are_asked_for_only_with_a_gpu(docker, monkeypatch):
    made = Launch(find_source("docker"), [MODEL_REPOSITORY], [MODEL], "0" * 12, Ports(1, 2, 3), docker.folder)
    assert "--gpus" not in launch_module.docker_command(made)
    monkeypatch.setattr(launch_module, "has_gpu", lambda: True)
    command = launch_module.docker_command(made)
    assert command[command.index("--gpus") + 1] == "all"
    assert command.index("--gpus") < command.index(TAG)


def test_every_repository_and_every_further_backend_is_mounted(docker, tmp_path):
    backends = [tmp_path / "one" / "fast", tmp_path / "two" / "slow"]
    repositories = [MODEL_REPOSITORY, custom_backend.REPOSITORY]
    made = Launch(find_source("docker"), repositories, [MODEL], "0" * 12, Ports(1, 2, 3), docker.folder, [], backends)
    command = launch_module.docker_command(made)
    assert command[command.index("--shm-size") + 2 : command.index("tritonserver")] == [
        *("--volume", f"{MODEL_REPOSITORY}:/models/model_repository:ro"),
        *("--volume", f"{custom_backend.REPOSITORY}:/models/custom_backend/models:ro"),
        *("--volume", f"{tmp_path}/one/fast:/opt/tritonserver/backends/fast:ro"),
        *("--volume", f"{tmp_path}/two/slow:/opt/tritonserver/backends/slow:ro"),
        TAG,
    ]
    flags = command[command.index("tritonserver") :]
    assert flags[-2:] == made.key.flags
    assert [flag for flag in flags[:-2] if "repository" in flag or "directory" in flag] == [
        *("--model-repository=/models/model_repository", "--model-repository=/models/custom_backend/models"),
        "--backend-directory=/opt/tritonserver/backends",
    ]


def test_links_from_one_repository_to_another_lead_there_in_the_container(docker):
    """The weights of the C++ models are links to those of the Python models."""
    made = Launch(
        find_source("docker"),
        [MODEL_REPOSITORY, custom_backend.REPOSITORY],
        [MODEL],
        "0" * 12,
        Ports(1, 2, 3),
        docker.folder,
    )
    command = launch_module.docker_command(made)
    volumes = [command[at + 1].split(":")[:2] for at, word in enumerate(command) if word == "--volume"]
    mounted = dict(volumes)
    link = custom_backend.REPOSITORY / "token_stream_latest" / "recipes.safetensors"
    inside = Path(mounted[str(custom_backend.REPOSITORY)], "token_stream_latest", link.readlink())
    assert os.path.normpath(inside) == f"{mounted[str(MODEL_REPOSITORY)]}/inference/recipes.safetensors"


def test_a_further_backend_never_hides_the_images_python_backend(docker, tmp_path):
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "libtriton_python.so").touch()
    with pytest.raises(
        ServerStartError, match=r"two backends are named 'python': /opt/tritonserver/backends/python and"
    ):
        start_server([MODEL], source="docker", backends=tmp_path)


def test_the_image_has_the_packages_of_all_repositories_or_is_the_stock_one(docker, tmp_path):
    source, second = find_source("docker"), tmp_path / "second"
    second.mkdir()
    plain = Launch(source, [second], [MODEL], "0" * 12, Ports(1, 2, 3), docker.folder)
    assert launch_module.docker_image(plain) == source.place
    assert docker.calls_of("build") == []
    (second / "requirements.txt").write_text("# of the second\nnumpy==1.26.4\nanother==1.0\n")
    both = Launch(source, [MODEL_REPOSITORY, second], [MODEL], "0" * 12, Ports(1, 2, 3), docker.folder)
    tag = launch_module.docker_image(both)
    packages = json.loads((docker.folder / "recipe.txt").read_text().partition("RUN ")[2])
    assert tag == tag_of(*packages[packages.index("--no-cache-dir") + 1 :]) != TAG
    assert packages[-1] == "another==1.0"
    assert packages.count("numpy==1.26.4") == 1


def test_docker_is_never_used_unasked(docker, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "NATIVE_HOME", tmp_path)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerNotFoundError):
        find_source()
    monkeypatch.setenv("TRITON_SOURCE", "docker")
    assert find_source().kind == "docker"


def test_no_docker_and_no_engine_are_said(docker, monkeypatch, tmp_path):
    docker.fail("info")
    with pytest.raises(ServerNotFoundError, match=r"no Docker engine answers: .*does not work today"):
        find_source("docker")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerNotFoundError, match="docker: no docker command on PATH"):
        find_source("docker")


def test_a_container_that_does_not_start_is_said(docker):
    docker.fail("run")
    with pytest.raises(ServerStartError, match=r"exit status 125(.|\n)*fake docker: run does not work today"):
        start_server([MODEL], source="docker")


def test_a_build_that_fails_is_a_failed_start(docker):
    docker.fail("build")
    with pytest.raises(ServerStartError, match=r"docker build of triton-ensemble-lab(.|\n)*does not work today"):
        start_server([MODEL], source="docker")


def test_the_time_of_a_build_is_not_that_of_the_start(docker, monkeypatch):
    """Fetching the image can take many minutes; the server still gets its own two afterwards."""
    clock, docker_image, skipped = server_module.time, launch_module.docker_image, [0.0]

    def slow(launch: Launch) -> str:
        skipped[0] += 3_600.0
        return docker_image(launch)

    late = SimpleNamespace(monotonic=lambda: clock.monotonic() + skipped[0], sleep=clock.sleep, time=clock.time)
    monkeypatch.setattr(launch_module, "docker_image", slow)
    monkeypatch.setattr(server_module, "time", late)
    start_server(["postprocess"], source="docker").stop()
