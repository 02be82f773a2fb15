"""The parts of the hub, without a hub: who may come in, how many, what each gets, and what is refused."""

import asyncio
import dataclasses
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import hub_memory
import hub_parts
import hub_proxy
import hub_settings
import learner
import pytest
import run
import sizing
from hub_settings import GIB, HubError, Settings
from jupyter_server.auth import passwd
from traitlets.config import PyFileConfigLoader

from lab_utils import big_run, stale, workspace
from lab_utils.launch import shm_prefix

ROOT = Path(__file__).parents[2]
HUB = ROOT / "deploy/jupyterhub"
PASSWORD = "correct horse"


def options(*arguments: str):
    return run.parser().parse_args(list(arguments))


@pytest.fixture
def as_user(monkeypatch, tmp_path):
    """Whoever runs the tests, the hub is started by an ordinary user called ada, with a state folder of her own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    monkeypatch.setattr(run.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(run.getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(run.pwd, "getpwnam", lambda name: {"ada": 1, "bob": 2}[name])


@pytest.fixture
def as_root(as_user, monkeypatch):
    monkeypatch.setattr(run.os, "geteuid", lambda: 0)


@pytest.fixture
def password_file(tmp_path) -> str:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return str(tmp_path / "password")


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(str(tmp_path / "the state"), str(tmp_path / "learners"), 8000, 8001, 8002, 8)


def loaded(settings: Settings, monkeypatch):
    """What JupyterHub would read from the configuration."""
    monkeypatch.setenv("LAB_HUB_SETTINGS", str(hub_settings.write(settings)))
    return PyFileConfigLoader("jupyterhub_config.py", path=str(HUB)).load_config()


# Who may come in ---------------------------------------------------------------------------------------------------


def test_without_a_word_only_who_starts_it_may_log_in(as_user, monkeypatch):
    made = run.settings_from(options())
    assert (made.system_users, made.password_hash, made.address) == (("ada",), "", "127.0.0.1")
    config = loaded(made, monkeypatch)
    assert config.JupyterHub.authenticator_class == "pam"
    assert config.Authenticator.allowed_users == {"ada"}
    assert "allow_all" not in config.Authenticator
    assert config.JupyterHub.spawner_class is hub_parts.BoundedSpawner


def validates(name: str, config) -> bool:
    """Whether the hub would take this name; it ends its start with an error where an allowed user's is refused."""
    return hub_parts.Authenticator(config=config).validate_username(name)


def test_a_system_users_name_may_be_any_that_the_machine_has(settings, monkeypatch):
    config = loaded(dataclasses.replace(settings, system_users=("john_doe", "first.last")), monkeypatch)
    assert [validates(name, config) for name in ("john_doe", "first.last")] == [True, True]
    config = loaded(dataclasses.replace(settings, password_hash="argon2:x"), monkeypatch)
    assert [validates(name, config) for name in ("john_doe", "first.last", "anna")] == [False, False, True]


def test_an_ordinary_user_cannot_start_servers_for_others(as_user):
    with pytest.raises(HubError, match="needs root"):
        run.settings_from(options("--system-users", "ada", "bob"))


def test_root_names_users_that_the_machine_has(as_root):
    assert run.settings_from(options("--system-users", "bob")).system_users == ("bob",)
    with pytest.raises(HubError, match="no user 'eve' here"):
        run.settings_from(options("--system-users", "bob", "eve"))


def test_roots_workshop_needs_a_word_more(as_root, password_file):
    with pytest.raises(HubError, match="you are root, and workshop learners run as you"):
        run.settings_from(options("--workshop-password-file", password_file))
    assert run.settings_from(options("--workshop-password-file", password_file, "--allow-root")).password_hash


def test_the_workshop_password_is_kept_as_a_hash_for_the_owners_eyes_only(as_user, password_file, settings):
    made = run.settings_from(options("--workshop-password-file", password_file, "--state", settings.state))
    assert made.password_hash.startswith("argon2:$argon2id$")
    file = hub_settings.write(made)
    assert PASSWORD not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert hub_settings.read(file) == made


def test_a_state_folder_that_was_there_stays_as_it_is_and_is_refused_unless_it_is_private(settings):
    folder = Path(settings.state)
    folder.mkdir()
    for mode in (0o1777, 0o755, 0o750, 0o720):
        folder.chmod(mode)
        with pytest.raises(HubError, match=r"--state .*the state is not for your eyes only.*chmod 700"):
            hub_settings.write(settings)
        assert stat.S_IMODE(folder.stat().st_mode) == mode
        assert list(folder.iterdir()) == []
    folder.chmod(0o700)
    assert hub_settings.read(hub_settings.write(settings)) == settings


def test_a_state_folder_of_somebody_else_is_refused(settings, monkeypatch):
    Path(settings.state).mkdir(mode=0o700)
    monkeypatch.setattr(hub_settings.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(HubError, match="expected a folder of your own"):
        hub_settings.write(settings)


def test_the_workshop_password_is_asked_for_without_an_echo(as_user, monkeypatch):
    monkeypatch.setattr(run.getpass, "getpass", lambda prompt: PASSWORD)
    assert run.settings_from(options("--workshop-password")).password_hash


def test_a_password_cannot_stand_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        options("--workshop-password", PASSWORD)
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n", "short"])
def test_a_short_password_is_refused(as_user, tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(HubError, match="expected 8 or more"):
        run.settings_from(options("--workshop-password-file", str(tmp_path / "file")))


def login(name: str, password: str) -> str | None:
    authenticator = hub_parts.WorkshopAuthenticator(
        password_hash=passwd(PASSWORD), username_pattern=f"^{hub_settings.NAME_PATTERN}$"
    )
    return asyncio.run(authenticator.authenticate(None, {"username": name, "password": password}))


def test_the_right_password_lets_a_name_in_and_a_wrong_one_does_not():
    assert login("Anna", PASSWORD) == "anna"
    assert login("anna", f"{PASSWORD} ") is None
    assert login("anna", "") is None


BAD_NAMES = [
    "",
    ".",
    "..",
    "../root",
    "a/b",
    "/etc",
    "a b",
    "-a",
    "9a",
    "a" * 33,
    "a\n",
    "a\0b",
    "名字",
    "a.b",
    "~",
    "a%2fb",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_lead_elsewhere_is_refused_even_with_the_password(name, settings):
    assert login(name, PASSWORD) is None
    with pytest.raises(HubError, match="is no learner's name"):
        hub_settings.learner_folder(settings, name)


# Where it listens --------------------------------------------------------------------------------------------------


def test_everything_listens_on_loopback(settings, monkeypatch):
    config = loaded(settings, monkeypatch)
    urls = [config.JupyterHub.bind_url, config.JupyterHub.hub_bind_url, config.ConfigurableHTTPProxy.api_url]
    assert {re.match(r"http://([\d.]+):\d+", url)[1] for url in urls} == {"127.0.0.1"}
    assert config.Spawner.ip == "127.0.0.1"


@pytest.fixture
def in_folder(tmp_path, monkeypatch) -> Path:
    """The working folder has files for TLS and a folder for progress."""
    monkeypatch.chdir(tmp_path)
    for name in ("c.pem", "k.pem"):
        (tmp_path / name).touch()
    (tmp_path / "shared").mkdir()
    return tmp_path


def test_relative_paths_hold_where_the_hub_works(as_user, in_folder):
    made = run.settings_from(options("--tls-certificate=c.pem", "--tls-key=k.pem", "--progress=shared"))
    assert (made.certificate, made.key, made.progress) == tuple(
        str(in_folder / n) for n in ("c.pem", "k.pem", "shared")
    )
    made = run.settings_from(options())
    assert (made.certificate, made.key, made.progress) == ("", "", "")


@pytest.mark.parametrize(
    ("option", "wrong", "kind"),
    [
        ("--tls-certificate", "shared", "file"),
        ("--tls-certificate", "none.pem", "file"),
        ("--tls-key", "none.pem", "file"),
        ("--progress", "none", "folder"),
        ("--progress", "c.pem", "folder"),
    ],
)
def test_a_file_or_folder_that_is_not_there_is_refused(as_user, in_folder, option, wrong, kind):
    with pytest.raises(HubError, match=f"{option}: no {kind} {re.escape(str(in_folder / wrong))}; make it first"):
        run.settings_from(options(option, wrong))


def test_another_address_needs_tls_and_moves_the_public_side_only(as_user, in_folder, monkeypatch):
    with pytest.raises(HubError, match=r"needs --tls-certificate and --tls-key.*put a proxy with TLS in front"):
        run.settings_from(options("--address", "0.0.0.0"))
    tls = ("--tls-certificate", "c.pem", "--tls-key", "k.pem")
    config = loaded(run.settings_from(options("--address", "0.0.0.0", *tls)), monkeypatch)
    assert config.JupyterHub.bind_url.startswith("https://0.0.0.0:")
    assert (config.JupyterHub.ssl_cert, config.JupyterHub.ssl_key) == tuple(
        str(in_folder / name) for name in ("c.pem", "k.pem")
    )
    assert config.JupyterHub.hub_bind_url.startswith("http://127.0.0.1:")
    assert config.ConfigurableHTTPProxy.api_url.startswith("http://127.0.0.1:")


# How many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gib", "cores", "bound", "expected"),
    [
        (24, 2, 2, 8),
        (23, 2, 2, 8),
        (16, 2, 2, 7),
        (8, 2, 2, 3),
        (24, 8, 2, 11),
        (24, 8, 1, 22),
        (2, 2, 2, 1),
        (1, 1, 2, 1),
    ],
)
def test_a_machine_admits_what_its_memory_and_cores_carry(gib, cores, bound, expected):
    assert hub_settings.admitted(gib * GIB, cores, bound * GIB) == expected


def test_a_containers_memory_counts_and_not_its_hosts(tmp_path, monkeypatch):
    """The hub's own share of a big run, where it runs in another hub, is no limit of the machine."""
    for folder in ("proc/self", "sys/fs/cgroup"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text(f"{GIB // 2}\n")
    monkeypatch.setattr(big_run, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    monkeypatch.setattr(big_run.psutil, "virtual_memory", lambda: SimpleNamespace(available=512 * GIB))
    monkeypatch.setattr(hub_settings.os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setenv("LAB_BIG_RUN_BYTES", str(GIB))
    assert hub_settings.admitted_here(2 * GIB) == 2
    assert hub_settings.admitted_here(GIB) == 5


def test_the_instructor_may_say_otherwise(as_user, monkeypatch):
    made = run.settings_from(options("--learners", "30", "--memory", "1.5"))
    config = loaded(made, monkeypatch)
    assert (config.JupyterHub.active_server_limit, config.BoundedSpawner.bound) == (30, int(1.5 * GIB))
    assert config.JupyterHub.concurrent_spawn_limit == 0


@pytest.mark.parametrize(
    "wrong", [("--learners", "0"), ("--learners", "-1"), ("--memory", "0.1"), ("--idle-minutes", "0")]
)
def test_sizes_that_make_no_sense_are_refused(as_user, wrong):
    with pytest.raises(HubError, match=r"expected --memory 0\.5 or more, --learners 1 or more"):
        run.settings_from(options(*wrong))


def test_idle_kernels_and_servers_are_ended(settings, monkeypatch):
    arguments = loaded(settings, monkeypatch).Spawner.args
    assert "--MappingKernelManager.cull_idle_timeout=5400" in arguments
    assert "--ServerApp.shutdown_no_activity_timeout=5400" in arguments


def test_the_page_of_a_full_machine_says_what_to_do():
    page = (HUB / "templates/429.html").read_text()
    assert "{{ learners }}" in page
    assert "tell your instructor" in page


# What each learner gets --------------------------------------------------------------------------------------------


def test_each_learner_has_her_own_everything(tmp_path):
    anna, bob = (hub_parts.learner_environment(tmp_path / name, 2 * GIB) for name in ("anna", "bob"))
    own = {name for name in anna if anna[name] != bob[name]}
    assert own == {"LAB_LEARNER", "LAB_WORKSPACE", "LAB_BOOK", "XDG_STATE_HOME"}
    assert all(anna[name].startswith(str(tmp_path / "anna")) for name in own)
    assert {anna[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")} == {"1"}


def test_shared_memory_of_two_learners_of_one_user_never_mixes():
    names = ["", "anna", "bob", "anna_0123456789ab", "0123456789ab", "/home/me/anna"]
    prefixes = {name: shm_prefix(0, name) for name in names}
    assert prefixes[""] == "triton_lab_0_"
    assert shm_prefix(1, "anna") != prefixes["anna"]
    for name, other in ((name, other) for name in names for other in names if name != other):
        assert not f"{prefixes[other]}0123456789ab_x".startswith(prefixes[name])


def test_the_prefix_and_what_stop_looks_for_follow_the_learner():
    code = "from lab_utils import launch, stale; print(launch.SHM_PREFIX, bool(stale.SERVER_ID.match('%s')))"
    mine = f"{shm_prefix(os.getuid(), '/l/anna')}0123456789ab_x"
    for name, is_mine in (("/l/anna", True), ("/l/bob", False), ("", False)):
        environment = {**os.environ, "LAB_LEARNER": name}
        done = subprocess.run([sys.executable, "-c", code % mine], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [shm_prefix(os.getuid(), name), str(is_mine)], done.stderr
    assert shm_prefix(os.getuid(), os.environ.get("LAB_LEARNER", "")) == stale.SHM_PREFIX


def test_the_big_run_keeps_to_what_the_hub_leaves_it(monkeypatch):
    monkeypatch.setenv("LAB_BIG_RUN_BYTES", hub_parts.learner_environment(Path("/x"), 2 * GIB)["LAB_BIG_RUN_BYTES"])
    assert big_run.available_memory() == 1.5 * GIB
    assert big_run.plan(28, big_run.available_memory(), 8 * GIB).n == 26


def test_a_learners_server_begins_with_her_own_copy_of_the_lessons(tmp_path):
    room = workspace.Room(workspace.ROOM.tracked, tmp_path / "anna's lessons")
    environment = learner.prepare(room, {"LAB_NOTICE": "too much", "PATH": "/bin"})
    assert {path.name for path in room.own.glob("*.ipynb")} == {p.name for p in workspace.ROOM.tracked.glob("*.ipynb")}
    assert "too much" in (room.own / "NOTICE.md").read_text()
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    learner.prepare(room, {})
    assert not (room.own / "NOTICE.md").exists()


def test_a_learners_folder_and_files_are_for_her_eyes_only(tmp_path, monkeypatch):
    code = "import sys; from pathlib import Path; import learner; own = Path(sys.argv[1]); learner.keep_private(own);"
    code += "(own / 'new').touch(); (own / 'folder').mkdir()"
    (tmp_path / "anna").mkdir(mode=0o755)
    for name in ("anna", "bob"):  # the spawner may have made the folder, or nobody
        folder = tmp_path / name
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=HUB)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "folder", folder / "new")]
        assert modes == [0o700, 0o700, 0o600]


def test_a_learners_server_makes_her_folder_private_first(tmp_path, monkeypatch):
    happened = []
    monkeypatch.setenv("LAB_LEARNER", str(tmp_path))
    monkeypatch.setattr(learner, "keep_private", happened.append)
    monkeypatch.setattr(learner, "prepare", lambda room, environment: happened.append("prepared"))
    monkeypatch.setattr(learner.os, "execve", lambda *_: happened.append("server"))
    learner.main([])
    assert happened == [tmp_path, "prepared", "server"]


def test_a_system_users_folder_is_in_her_home():
    class Spawner(hub_parts.BoundedSpawner):
        user = type("User", (), {"name": pwd.getpwuid(os.getuid()).pw_name})

    assert Path(pwd.getpwuid(os.getuid()).pw_dir, "triton-ensemble-lab") == Spawner.folder.fget(Spawner)


# The bound of memory -----------------------------------------------------------------------------------------------

HOLD = "import sys; block = b'x' * int(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def mine(folder: object) -> hub_memory.Learner:
    return hub_memory.Learner(str(folder), os.getuid())


@contextmanager
def process_of(learner: hub_memory.Learner, size: int):
    environment = {**os.environ, "LAB_LEARNER": learner.folder}
    command = [sys.executable, "-I", "-S", "-c", HOLD, str(size)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_processes_are_known_by_their_learner_and_counted(tmp_path):
    anna, bob = mine(tmp_path / "a b"), mine(tmp_path / "c")
    with process_of(anna, 64 * 2**20) as one, process_of(bob, 2**20) as other:
        groups = hub_memory.processes()
        assert groups[anna] == [one.pid]
        assert groups[bob] == [other.pid]
        assert 64 * 2**20 < hub_memory.proportional([one.pid]) <= hub_memory.resident([one.pid]) < 96 * 2**20
    assert hub_memory.resident([one.pid]) == hub_memory.proportional([one.pid]) == 0


def test_only_who_is_above_her_bound_is_found_and_killed(tmp_path):
    names = [mine(tmp_path / name) for name in ("big", "small", "stranger")]
    with (
        process_of(names[0], 64 * 2**20) as big,
        process_of(names[1], 2**20) as small,
        process_of(names[2], 2**26) as third,
    ):
        found = hub_memory.above({names[0]: 32 * 2**20, names[1]: 32 * 2**20})
        assert list(found) == [names[0]]
        assert found[names[0]] > 64 * 2**20
        hub_memory.kill(names[0])
        assert big.wait(10) == -9
        assert (small.poll(), third.poll()) == (None, None)


def test_a_mark_that_another_user_set_ends_nobody(tmp_path):
    """Another user can set a learner's mark, and take memory in her name."""
    anna = hub_memory.Learner(str(tmp_path), os.getuid() + 1)
    with process_of(anna, 2**26) as strangers:
        assert hub_memory.processes()[mine(tmp_path)] == [strangers.pid]
        assert hub_memory.above({anna: 1}) == {}
        hub_memory.kill(anna)
        hub_memory.end(anna, seconds=0)
        assert strangers.poll() is None
        assert list(hub_memory.above({mine(tmp_path): 1})) == [mine(tmp_path)]


def test_the_hub_watches_and_ends_the_processes_of_the_learners_user(tmp_path, monkeypatch):
    name = pwd.getpwuid(os.getuid()).pw_name
    spawner = hub_parts.BoundedSpawner(user=SimpleNamespace(name=name, url="/", id=1))
    assert spawner.learner == mine(Path(pwd.getpwuid(os.getuid()).pw_dir, "triton-ensemble-lab"))
    asked = []
    monkeypatch.setattr(hub_memory, "end", lambda who: asked.append((who, threading.current_thread().name)))
    monkeypatch.setattr(hub_parts.WATCH, "remove", asked.append)
    asyncio.run(spawner.run_post_stop_hook())
    assert asked[0] == asked[1][0] == spawner.learner
    assert asked[1][1].startswith("ending")  # a thread that no login and no look waits for


def test_what_follows_one_learners_end_keeps_nobody_elses_waiting(tmp_path, monkeypatch):
    anna, bob = mine("anna"), mine("bob")
    monkeypatch.setattr(hub_memory, "LOOK_SECONDS", 0)
    monkeypatch.setattr(hub_memory, "kill", lambda learner: None)
    monkeypatch.setattr(hub_memory, "above", lambda bounds: dict.fromkeys(list(bounds)[:1], GIB))

    async def workshop() -> None:
        watch, bob_ended, anna_ended = hub_memory.Watch(), asyncio.Event(), asyncio.Event()

        async def wait_for_bob(size: int) -> None:
            assert asyncio.current_task() in watch._told  # without a reference, asyncio may drop a task
            await bob_ended.wait()
            anna_ended.set()

        async def at_once(size: int) -> None:
            bob_ended.set()
            raise RuntimeError("no matter")

        watch.add(anna, 1, wait_for_bob)
        watch.add(bob, 1, at_once)
        await asyncio.wait_for(anna_ended.wait(), 10)

    asyncio.run(workshop())


def test_what_fails_after_a_learners_end_is_said(capsys):
    async def fails() -> None:
        raise RuntimeError("why")

    asyncio.run(hub_memory._reported(fails()))
    assert "what follows a learner's end failed: RuntimeError('why')" in capsys.readouterr().err


def test_shared_memory_that_counts_twice_ends_nobody(tmp_path, monkeypatch):
    with process_of(mine(tmp_path), 2**20):
        monkeypatch.setattr(hub_memory, "resident", lambda pids: 3 * GIB)
        monkeypatch.setattr(hub_memory, "proportional", lambda pids: GIB)
        assert hub_memory.above({mine(tmp_path): 2 * GIB}) == {}
        assert hub_memory.above({mine(tmp_path): GIB - 1}) == {mine(tmp_path): GIB}


def test_a_supervisor_lives_to_clean_up_unless_it_takes_too_long(tmp_path):
    script, name = tmp_path / "supervisor.py", mine(tmp_path / "x")
    script.write_text(HOLD)
    environment = {**os.environ, "LAB_LEARNER": name.folder}
    command = [sys.executable, "-I", "-S", str(script), "1"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout.readline() == b"held\n"
        hub_memory.kill(name)
        assert supervisor.poll() is None
        hub_memory.end(name, seconds=0.1)
        assert supervisor.wait(10) == -9


def test_the_notice_says_what_happened_and_what_to_do():
    said = hub_parts.notice(3 * GIB, 2 * GIB)
    assert "held 3.0 GiB" in said
    assert "has 2.0 GiB here" in said
    assert "Your files are kept. Start it again" in said


# What is installed, and what is written down -----------------------------------------------------------------------


def test_the_proxys_lock_has_a_hash_for_each_package_and_no_place_to_download_from():
    lock = json.loads((HUB / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages["node_modules/configurable-http-proxy"]["version"] == "5.3.0"
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())


def test_a_missing_proxy_is_an_error_that_tells_what_npm_said(tmp_path, monkeypatch):
    (tmp_path / "package-lock.json").write_text("{}")
    monkeypatch.setattr(hub_proxy, "HERE", tmp_path)
    monkeypatch.setattr(hub_proxy, "MODULES", tmp_path / "node_modules")
    assert not hub_proxy.is_installed()
    with pytest.raises(HubError, match=r"npm could not install the hub's proxy(.|\n)*package"):
        hub_proxy.install()


def test_the_table_in_the_readme_is_what_was_measured():
    measured = json.loads(sizing.FILE.read_text())
    readme = (ROOT / "deploy/README.md").read_text()
    assert sizing.as_table(measured) in readme
    assert sizing.machine_line(measured) in readme
    assert measured["command"] in readme
    assert (
        [each["learners"] for each in measured["runs"]] == [each["passed"] for each in measured["runs"]] == [1, 2, 4, 8]
    )
