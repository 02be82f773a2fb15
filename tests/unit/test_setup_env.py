"""The set-up: which uv and which Python it takes, and when it has nothing to do."""

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest
import setup_env
from setup_env import SetupError

VERSION = ".".join(map(str, sys.version_info[:2]))


def program(path: Path, script: str) -> str:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def fake_python(path: Path, version: str, error: str = "") -> str:
    """Write a program that answers the probe."""
    answer = json.dumps({"version": version, "libpython": "/lib/libpython.so", "error": error})
    return program(path, f"echo '{answer}'")


# uv --------------------------------------------------------------------------------------------------------------


def test_uv_on_the_path_is_taken(tmp_path, monkeypatch):
    uv = program(tmp_path / "bin/uv", "echo uv 0.13.9 '(x)'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert setup_env.find_uv(tmp_path) == uv


@pytest.mark.parametrize("script", ["exit 127", "echo uv 0.1.2", "echo something else"])
def test_a_uv_that_fails_or_is_too_old_is_passed_over_for_the_one_in_tools(tmp_path, monkeypatch, script):
    program(tmp_path / "bin/uv", script)
    own = program(tmp_path / ".tools/bin/uv", "echo uv 0.13.9")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert setup_env.find_uv(tmp_path) == own


def test_no_uv_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup_env.find_uv(tmp_path) is None


def test_uv_is_installed_pinned_and_into_the_project(tmp_path):
    command = setup_env.uv_install_command(tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[command.index("--target") + 1] == str(tmp_path / ".tools")
    assert command[-1] == f"uv=={setup_env.UV_VERSION}"


def test_without_pip_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python3", "exit 1"))
    with pytest.raises(SetupError, match="apt-get install python3-pip"):
        setup_env.install_uv(tmp_path)


def test_a_pip_that_installs_uv_gives_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    uv = tmp_path / ".tools/bin/uv"
    script = f"mkdir -p {uv.parent}; printf '#!/bin/sh\\necho uv 0.13.9' > {uv}; chmod +x {uv}"
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python3", script))
    assert setup_env.install_uv(tmp_path) == str(uv)


# The interpreter -------------------------------------------------------------------------------------------------


def test_the_first_version_that_passes_the_probe_wins(tmp_path):
    found = {
        "3.12": [
            program(tmp_path / "shim", "exit 127"),
            program(tmp_path / "silent", "true"),
            fake_python(tmp_path / "static", "3.12.4", "libpython3.12.so.1.0: cannot open shared object file"),
        ],
        "3.11": [fake_python(tmp_path / "other", "3.13.0"), fake_python(tmp_path / "good", "3.11.2")],
        "3.10": [fake_python(tmp_path / "never", "3.10.1")],
    }
    chosen = setup_env.choose_interpreter(setup_env.VERSIONS, found.__getitem__)
    assert (chosen.path, chosen.version) == (str(tmp_path / "good"), "3.11.2")


def test_when_none_passes_the_error_names_each_with_its_reason(tmp_path):
    static = fake_python(tmp_path / "static", "3.12.4", "cannot open shared object file")
    other = fake_python(tmp_path / "other", "3.13.0")
    with pytest.raises(SetupError) as refusal:
        setup_env.choose_interpreter(("3.12",), lambda _: [static, other, "/no/such/python"])
    lines = str(refusal.value).splitlines()
    assert f"  {static}: has no shared libpython: cannot open shared object file" in lines
    assert f"  {other}: is Python 3.13.0" in lines
    assert "  /no/such/python: does not run" in lines


def test_the_interpreter_of_this_environment_really_loads_its_libpython():
    found = setup_env.probe(sys.executable, VERSION)
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert Path(found.libpython).name == f"libpython{VERSION}.so.1.0"
    assert Path(found.libpython).is_file()


def test_a_libpython_that_cannot_be_loaded_is_refused(tmp_path, monkeypatch):
    (tmp_path / f"libpython{VERSION}.so.1.0").write_text("no library")
    lines = setup_env.PROBE.strip().splitlines()
    bent = [f"folders = [{str(tmp_path)!r}]" if line.startswith("folders") else line for line in lines]
    monkeypatch.setattr(setup_env, "PROBE", "\n".join(bent))
    with pytest.raises(SetupError, match="has no shared libpython"):
        setup_env.probe(sys.executable, VERSION)


def test_candidates_come_in_order_and_never_from_a_shim_that_is_not_there(tmp_path, monkeypatch):
    uv = program(tmp_path / "uv", "echo /bin/sh")
    on_path = program(tmp_path / "bin/python3.10", "true")
    pyenv = [program(tmp_path / f"pyenv/versions/3.10.{n}/bin/python3", "true") for n in (9, 13)]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert setup_env.candidates("3.10", uv)[:4] == ["/bin/sh", on_path, pyenv[1], pyenv[0]]


@pytest.mark.parametrize(
    ("native", "expected"),
    [(None, ["3.12", "3.11", "3.10"]), ("3.10", ["3.10", "3.12", "3.11"]), ("3.13", ["3.12", "3.11", "3.10"])],
)
def test_the_version_of_an_installed_tritonserver_leads(tmp_path, monkeypatch, native, expected):
    stub = tmp_path / setup_env.STUB
    stub.parent.mkdir(parents=True)
    stub.write_bytes(b"\x7fELF\0libc.so.6\0" + (f"libpython{native}.so.1.0\0".encode() if native else b""))
    monkeypatch.setenv("TRITONSERVER_HOME", str(tmp_path))
    assert setup_env.native_stub_version() == native
    assert list(setup_env.wanted_versions(native)) == expected


def test_without_any_python_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "candidates", lambda version, uv: [])
    with pytest.raises(SetupError) as refusal:
        setup_env.get_interpreter(program(tmp_path / "uv", "exit 2"), tmp_path)
    assert all(
        word in str(refusal.value) for word in ("3.12", "apt-get install", "--enable-shared", "conda env create")
    )


# The environment -------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Return a project whose uv makes an environment of one package, and counts its calls in the file `calls`."""
    for name in (setup_env.LOCK, setup_env.WORKSHOP_LOCK, "pyproject.toml"):
        (tmp_path / name).write_text(name)
    where = tmp_path / ".venv"
    site = where / f"lib/python{VERSION}/site-packages"
    answer = f"{VERSION}.1\n{where}"
    python = f"#!/bin/sh\necho '{answer}'"
    make = f'mkdir -p {where}/bin {site}/numpy; echo "{python}" > {where}/bin/python; chmod +x {where}/bin/python'
    over = 'case "$*" in *--reinstall*) echo "$1 $2 over";; *) echo "$1 $2";; esac'
    uv = program(tmp_path / "uv", f'{over} >> {tmp_path}/calls; [ "$1" = venv ] && {{ {make}; }}; exit 0')
    monkeypatch.setattr(setup_env, "find_uv", lambda root: uv)
    fixed = setup_env.Interpreter("/usr/bin/python", f"{VERSION}.1", "/lib/libpython.so")
    monkeypatch.setattr(setup_env, "get_interpreter", lambda uv, root: fixed)
    return tmp_path


def calls(project: Path) -> list[str]:
    return (project / "calls").read_text().splitlines()


FRESH = ["venv --quiet", "pip install", "pip install"]
OVER = ["pip install over", "pip install over"]


def test_a_second_set_up_does_nothing(project):
    setup_env.set_up(project)
    assert calls(project) == FRESH
    setup_env.set_up(project)
    assert calls(project) == FRESH


def test_a_changed_lock_is_laid_over_the_environment_and_keeps_what_the_user_added(project):
    setup_env.set_up(project)
    added = project / f".venv/lib/python{VERSION}/site-packages/torch"
    added.mkdir()
    setup_env.set_up(project)
    assert calls(project) == FRESH
    (project / "requirements.lock").write_text("other")
    setup_env.set_up(project)
    assert calls(project) == [*FRESH, *OVER]
    assert added.is_dir()


def test_a_lost_package_is_installed_again(project):
    setup_env.set_up(project)
    (project / f".venv/lib/python{VERSION}/site-packages/numpy").rmdir()
    setup_env.set_up(project)
    assert calls(project) == [*FRESH, *OVER]


@pytest.mark.parametrize("damage", ["stamp", "half a stamp", "python", "folder", "file in its place"])
def test_a_broken_environment_is_made_anew(project, damage):
    setup_env.set_up(project)
    venv = project / ".venv"
    if damage == "stamp":
        (venv / setup_env.STAMP).unlink()
    elif damage == "half a stamp":
        (venv / setup_env.STAMP).write_text('{"fingerprint":')
    elif damage == "python":
        (venv / "bin/python").write_text("")
    else:
        venv.rename(project / "gone")
        if damage == "file in its place":
            venv.write_text("")
    setup_env.set_up(project)
    assert calls(project) == [*FRESH, *FRESH]
    assert setup_env.is_ready(project)


def test_a_moved_project_gets_a_new_environment(project):
    setup_env.set_up(project)
    stamp = json.loads((project / ".venv" / setup_env.STAMP).read_text())
    (project / ".venv" / setup_env.STAMP).write_text(json.dumps({**stamp, "root": "/old", "fingerprint": "old"}))
    setup_env.set_up(project)
    assert calls(project) == [*FRESH, *FRESH]


def test_a_failed_set_up_leaves_no_stamp(project, monkeypatch):
    setup_env.set_up(project)
    (project / "requirements.lock").write_text("other")
    monkeypatch.setattr(setup_env, "find_uv", lambda root: program(project / "broken", "exit 2"))
    with pytest.raises(SetupError, match="status 2"):
        setup_env.set_up(project)
    assert not (project / ".venv" / setup_env.STAMP).exists()


def test_another_set_up_is_waited_for(project, monkeypatch, capsys):
    waited = []

    def flock(file, operation):
        waited.append(operation)
        if operation & fcntl.LOCK_NB:
            raise BlockingIOError
        setup_env.build(project)  # what the other one does meanwhile

    monkeypatch.setattr(fcntl, "flock", flock)
    setup_env.set_up(project)
    assert waited == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert calls(project) == FRESH
    assert "waiting for it" in capsys.readouterr().out


def test_the_workshop_is_laid_on_top_once(project):
    setup_env.set_up(project)
    setup_env.add_workshop(project)
    setup_env.add_workshop(project)
    assert calls(project) == [*FRESH, "pip install"]


@pytest.mark.parametrize("change", ["its lock", "the lock below", "a package is gone", "the environment is made anew"])
def test_the_workshop_is_installed_again_after(project, change):
    setup_env.set_up(project)
    (project / ".venv/bin/jupyterhub").write_text("")
    setup_env.add_workshop(project)
    if change == "a package is gone":
        (project / ".venv/bin/jupyterhub").unlink()
    elif change == "the environment is made anew":
        (project / ".venv" / setup_env.STAMP).unlink()
        (project / ".venv" / setup_env.WORKSHOP_STAMP).unlink()
    else:
        (project / (setup_env.WORKSHOP_LOCK if change == "its lock" else setup_env.LOCK)).write_text("other")
    setup_env.set_up(project)
    before = len(calls(project))
    setup_env.add_workshop(project)
    assert calls(project)[before:] == ["pip install" if "anew" in change else "pip install over"]


def test_a_system_without_a_server_build_is_refused(project, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SetupError, match="Triton runs on Linux"):
        setup_env.set_up(project)


def test_what_would_bend_pip_uv_and_python_is_left_out(monkeypatch):
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "UV_SYSTEM_PYTHON", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("UV_INDEX_URL", "mirror")
    environment = setup_env.child_environment()
    assert not {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "UV_SYSTEM_PYTHON"} & set(environment)
    assert (environment["PIP_USER"], environment["PIP_REQUIRE_VIRTUALENV"]) == ("0", "0")
    assert environment["UV_INDEX_URL"] == "mirror"


def test_an_error_is_one_readable_text_and_a_status(monkeypatch, capsys):
    def fail(root):
        raise SetupError("no pip")

    monkeypatch.setattr(setup_env, "set_up", fail)
    assert setup_env.main([]) == 1
    assert capsys.readouterr().err == "setup: error: no pip\n"
