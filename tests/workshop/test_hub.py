"""A real hub with real learners: a whole workshop, the one too many, and what one learner can do to another."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hub_memory
import hub_settings
import hub_visitor
import psutil
import pytest
import simulate
from hub_settings import GIB
from hub_visitor import OpenNotebook, VisitError, Visitor, message_in, printed
from simulate import Hub, Workshop

ROOT = Path(__file__).parents[2]
ADMITTED = 8
START = "00_start_here.ipynb"
SERVER = "from lab_utils.server import start_server\nserver = start_server(['ensemble_latest'])"


# The workshop: nine learners at once on a hub that admits eight ----------------------------------------------------


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return simulate.simulate(ADMITTED + 1, simulate.LESSON, simulate.RESULTS, f"--learners={ADMITTED}")


@pytest.mark.timeout(900)
def test_eight_learners_run_lesson_02_side_by_side(workshop):
    assert workshop.admitted == ADMITTED
    assert len(workshop.passed) == ADMITTED, simulate.report(workshop)
    assert all(set(visit.seconds) == set(simulate.STEPS) for visit in workshop.passed)


def test_one_too_many_is_told_so_and_what_to_do(workshop):
    (refused,) = [visit for visit in workshop.visits if visit.error]
    assert "answered 429: This machine is full" in refused.error
    assert f"It has room for {ADMITTED} learners" in refused.error
    assert "tell your instructor" in refused.error
    assert set(refused.seconds) == {"login"}


def test_no_learner_came_near_her_bound(workshop):
    assert all(GIB / 2 < visit.peak < hub_settings.BOUND for visit in workshop.passed), simulate.report(workshop)


def test_nothing_is_left_of_the_workshop(workshop):
    assert workshop.left == []


def test_the_report_tells_it(workshop):
    lines = simulate.report(workshop).splitlines()
    assert sum(line.startswith("learner-") and "GiB" in line for line in lines) == ADMITTED + 1
    assert f"{ADMITTED} of {ADMITTED + 1} lessons passed" in lines[-2]
    assert lines[-1] == "left over: nothing"


# Two learners, to see what one can do to the other -----------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("a hub")
    with simulate.running_hub(folder, "--memory=1", "--learners=2") as running:
        yield running
    assert simulate.left_of(running, ["anna", "bob"]) == []


@pytest.fixture(scope="module")
def visitors(hub) -> dict[str, Visitor]:
    """Two learners who are logged in, and their servers."""
    both = {name: Visitor(hub.url, name) for name in ("anna", "bob")}
    for visitor in both.values():
        visitor.log_in(hub.password)
    with ThreadPoolExecutor() as pool:
        list(pool.map(Visitor.spawn, both.values()))
    return both


@pytest.fixture
def notebooks(visitors) -> Iterator[dict[str, OpenNotebook]]:
    """A notebook with a kernel for each."""
    opened = {name: visitor.open(START) for name, visitor in visitors.items()}
    yield opened
    for notebook in opened.values():
        with notebook:
            notebook.close()


def said(notebook: OpenNotebook, code: str) -> str:
    outputs = notebook.run(code)
    assert [output for output in outputs if output.output_type == "error"] == []
    return "".join(output.get("text", "") for output in outputs)


def test_a_wrong_password_is_refused(hub):
    for wrong in (f"{hub.password}x", "", hub.password[:-1]):
        with pytest.raises(VisitError, match=r"403 to the login.*Invalid username or password"):
            Visitor(hub.url, "anna").log_in(wrong)


def test_a_name_that_leads_elsewhere_is_refused(hub):
    with pytest.raises(VisitError, match="403 to the login"):
        Visitor(hub.url, "../anna").log_in(hub.password)


def test_without_a_login_nothing_is_shown(hub, visitors):
    stranger = Visitor(hub.url, "anna")
    assert "Sign in" in stranger.get(stranger.home).text
    with pytest.raises(VisitError, match="answered 403"):
        stranger.api("GET", "contents")


def test_one_learner_cannot_open_anothers_server(hub, visitors):
    answer = visitors["bob"].get(visitors["anna"].home)
    assert answer.status_code in (403, 404), message_in(answer.text)


def test_the_password_is_nowhere_in_the_clear(hub, visitors):
    held = [path.read_bytes() for path in (hub.folder / "state").rglob("*") if path.is_file()]
    held += [Path(f"/proc/{pid}/{what}").read_bytes() for pid in tree(hub) for what in ("environ", "cmdline")]
    assert len(held) > 4
    assert not any(hub.password.encode() in text for text in [*held, hub.log.encode()])
    assert hub_settings.read(hub.folder / "state/settings.json").password_hash.startswith("argon2:")


def tree(hub: Hub) -> list[int]:
    """The hub, its proxy, and all that the learners have started."""
    children = psutil.Process(hub.process.pid).children(recursive=True)
    learners = [pid for name in ("anna", "bob") for pid in hub_memory.processes().get(hub.learner(name), [])]
    return sorted({hub.process.pid, *(child.pid for child in children), *learners})


def test_all_sockets_are_on_loopback(hub, visitors, notebooks):
    said(notebooks["anna"], SERVER)
    listening = [
        connection.laddr.ip
        for pid in tree(hub)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3 + 2 + 2 * 5 + 3  # hub and proxy, servers, kernels, tritonserver
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_a_kernel_that_answers_nobody_is_restarted_and_that_is_said(visitors, monkeypatch, capsys):
    silent = [hub_visitor.KernelSilentError("anna: silent")]
    wait = OpenNotebook._wait_until_ready

    def wait_or_be_silent(notebook: OpenNotebook, deadline: float) -> None:
        if silent:
            raise silent.pop()
        wait(notebook, deadline)

    monkeypatch.setattr(OpenNotebook, "_wait_until_ready", wait_or_be_silent)
    with visitors["anna"].open(START) as notebook:
        assert said(notebook, "print(1)") == "1\n"
        notebook.close()
    assert capsys.readouterr().err == "anna: silent; restarting it\n"


def test_stop_of_one_learner_leaves_the_others_server_alone(hub, visitors, notebooks):
    for notebook in notebooks.values():
        said(notebook, SERVER)
    stop = "import subprocess, sys\nprint(subprocess.run([sys.executable, '-m', 'lab_utils', 'stop', '--all'],"
    ended = said(notebooks["anna"], f"{stop} capture_output=True, text=True).stdout)")
    assert "ended 1 server(s)" in ended
    stream = "from lab_utils.client import stream\nprint(stream(server, 'ensemble_latest', 'Pancakes.', 1).lengths)"
    assert said(notebooks["bob"], f"server.check()\n{stream}") == "[1]\n"


def test_each_learner_writes_her_own_lesson_and_lab_book(hub, visitors, notebooks):
    code = (
        "from lab_utils.labbook import experiment\n"
        "with experiment('00 start here', 'hello') as entry: entry.verdict('mine')"
    )
    said(notebooks["anna"], code)
    assert (hub.folder / "learners/anna/lessons/lab_book.sqlite3").exists()
    assert not (hub.folder / "learners/bob/lessons/lab_book.sqlite3").exists()
    notebooks["anna"].content.cells[0].source = "anna was here"
    notebooks["anna"].save()
    assert "anna was here" not in (hub.folder / f"learners/bob/lessons/{START}").read_text()
    assert "anna was here" not in (ROOT / "notebooks" / START).read_text()


def test_who_takes_too_much_memory_is_ended_with_a_word_and_the_others_go_on(hub, visitors, notebooks):
    anna, bob = visitors["anna"], visitors["bob"]
    said(notebooks["bob"], "kept = 41")
    said(notebooks["anna"], SERVER)
    with pytest.raises(VisitError, match="the connection to the kernel broke"):
        notebooks["anna"].run("import numpy as np\nblock = np.ones(2 * 2**30 // 8)\nimport time; time.sleep(60)")
    page = told_why(anna)
    assert "held 1." in page or "held 2." in page
    assert "Each learner has 1.0 GiB here" in page
    assert "Your files are kept" in page
    assert said(notebooks["bob"], "print(kept + 1)") == "42\n"
    anna.spawn()
    assert "Each learner has 1.0 GiB here" in (hub.folder / "learners/anna/lessons/NOTICE.md").read_text()
    notebooks["anna"] = anna.open(START)
    assert printed(notebooks["anna"].content) == ""
    assert bob.api("GET", "status")["kernels"] >= 1


def told_why(visitor: Visitor, seconds: float = 60.0) -> str:
    """The page that the learner finds in the place of her server."""
    deadline = time.monotonic() + seconds
    while "held" not in (page := message_in(visitor.get(visitor.home).text)):
        assert time.monotonic() < deadline, page
        time.sleep(0.1)
    return page
