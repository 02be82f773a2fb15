"""``python -m lab_utils``: reproduce, stream, stop, doctor; and the time line of the first token."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from leftovers import assert_gone, launch_of, shm_files

from lab_utils import __main__ as command_line
from lab_utils import doctor, first_token, stale
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.server import ServerDiedError, TritonServer, start_server

PROMPT = "Pancakes. Ingredients:"
COMMAND = [sys.executable, "-m", "lab_utils"]
PNG = b"\x89PNG\r\n\x1a\n"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, as a user runs it."""
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def main(server: TritonServer, monkeypatch: pytest.MonkeyPatch):
    """The command in this process, with the shared server in place of one of its own."""
    monkeypatch.setattr(command_line, "start_server", lambda *_, **__: contextlib.nullcontext(server))
    return command_line.main


# --- reproduce --------------------------------------------------------------------------------------------------------


def test_reproduce_does_the_main_job(tmp_path):
    done = run(tmp_path, "reproduce")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    dims = [line.split()[:2] for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert dims == [[str(n), f"[{2 ** (n - 1)}]"] for n in range(1, 9)]
    assert any(line.startswith("law: ") and "2" in line for line in lines)
    assert "message 8 equals the 128 ids of the field report" in lines
    assert lines[-1] == "figure: artifacts/growth.png"
    assert (tmp_path / "artifacts" / "growth.png").read_bytes().startswith(PNG)
    assert "ready after" in done.stderr
    assert "Traceback" not in done.stderr


def test_reproduce_says_when_the_array_differs(main, server, tmp_path, monkeypatch, capsys):
    server.reload("inference")
    monkeypatch.setattr(command_line, "REPORTED_IDS", [*REPORTED_IDS[:-1], 0])
    assert main(["reproduce", "--figure", str(tmp_path / "a" / "b.png")]) == 1
    assert "message 8 DIFFERS FROM the 128 ids" in capsys.readouterr().out
    assert (tmp_path / "a" / "b.png").read_bytes().startswith(PNG)


def test_reproduce_works_again_and_again_on_a_server_that_goes_on_running(main, server, tmp_path, monkeypatch, capsys):
    """A server that was attached to keeps the buffer of the run before."""
    monkeypatch.setattr(server, "attached", True)
    server.reload("inference")
    assert [main(["reproduce", "--figure", str(tmp_path / "x.png")]) for _ in range(2)] == [0, 0]


def test_a_figure_that_cannot_be_saved_is_said(main, server, tmp_path, capsys):
    server.reload("inference")
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "--figure", str(tmp_path / "file" / "x.png")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# --- stream -----------------------------------------------------------------------------------------------------------


def test_stream_as_json_lines_and_the_second_repetition_is_polluted(tmp_path):
    done = run(tmp_path, "stream", "ensemble_append", REPORTED_PROMPT, "--repeat", "2", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["request"] for record in records] == [1] * 8 + [2] * 8
    assert [record["iteration"] for record in records] == [*range(1, 9)] * 2
    assert [record["dims"] for record in records] == [[2**n] for n in range(16)]
    assert [record["bytes"] for record in records] == [4 * 2**n for n in range(16)]
    assert records[7]["ids"] == REPORTED_IDS
    assert records[8]["ids"][:255] == [token for record in records[:8] for token in record["ids"]]
    assert [record["end"] for record in records] == ([False] * 7 + [True]) * 2
    assert set(records[0]) == {"request", "iteration", "dims", "bytes", "seconds", "ids", "text", "index", "end"}
    assert "茶" in done.stdout  # readable, not escaped


def test_stream_as_text(main, capsys):
    assert main(["stream", "ensemble_latest", REPORTED_PROMPT, "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "request 1  iteration 1  dims [1]  ids 8908  text ' '",
        "request 1  iteration 2  dims [1]  ids 234  text ''",
        "request 1  iteration 3  dims [1]  ids 114  text '茶'",
        "request 1  iteration 4  dims [1]  ids 103081  text '匙'",
    ]


def test_stream_shows_no_more_than_a_few_ids(main, capsys):
    assert main(["stream", "ensemble_release", REPORTED_PROMPT]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"request 1  iteration 8  dims [128]  ids {' '.join(map(str, REPORTED_IDS[:8]))} ...  text ")
    assert f" {REPORTED_TOKENS[-1]} " not in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: command"),
        (["dance"], "invalid choice: 'dance'"),
        (["stream", "ensemble_latest"], "required: prompt"),
        (["stream", "ensemble_latest", "x", "--max-tokens", "many"], "invalid int value: 'many'"),
        (["stop", "everything"], "unrecognized arguments: everything"),
    ],
)
def test_bad_arguments_exit_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(arguments)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stream", "ensemble_latest", ""], "PROMPT is empty"),
        (["stream", "ensemble_latest", "x", "--max-tokens", "0"], "ask for at least 1"),
        (["stream", "ensemble_latest", "x", "--max-tokens", "3000000000"], "max_tokens"),
        (["stream", "ensemble_latest", "x", "--repeat", "0"], "--repeat is 0; expected 1 or more"),
        (["stream", "preprocess", "x"], "MAX_TOKENS"),
    ],
)
def test_what_the_server_refuses_exits_with_2_and_one_line(main, arguments, words, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_an_unknown_ensemble_exits_with_2_and_names_those_there_are(tmp_path):
    done = run(tmp_path, "stream", "ensemble_latset", PROMPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no model named ensemble_latset; ")
    assert "ensemble_latest" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_stream_with_130_and_no_traceback(tmp_path):
    arguments = [*COMMAND, "stream", "ensemble_latest", PROMPT, "--repeat", "100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, cwd=tmp_path, text=True, start_new_session=True, **pipes) as process:
        assert process.stdout.readline().startswith("request 1 ")
        os.killpg(process.pid, signal.SIGINT)
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in errors


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stale_server(own_prefix: str) -> Iterator[TritonServer]:
    """A server whose supervisor was killed: nobody owns it any more."""
    server = start_server(["postprocess"])
    server._supervisor.kill()
    server._supervisor.wait()
    yield server
    stale.stop_servers(everything=True)
    assert_gone(launch_of(server))


@pytest.fixture
def decoy_files(own_prefix: str) -> Iterator[list[Path]]:
    """Files in /dev/shm that are no lab server's, with names that come close."""
    names = [f"{own_prefix}notes", f"{own_prefix}0123456789AB_x", f"x{own_prefix}0123456789ab_x", f"{own_prefix}0123_x"]
    files = [Path("/dev/shm") / name for name in names]
    for file in files:
        file.write_text("not yours")
    yield files
    for file in files:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def decoy_process(*arguments: str) -> Iterator[subprocess.Popen]:
    """A process of this user that has `arguments` on its command line and waits."""
    with subprocess.Popen([sys.executable, "-c", "input()", *arguments], stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_stop_ends_what_is_stale_and_nothing_else(stale_server, own_prefix, decoy_files, server, capsys):
    in_use = start_server(["postprocess"])
    orphan = Path("/dev/shm") / f"{own_prefix}00000000dead_left"
    orphan.write_text("left by a server that was killed")
    with decoy_process("--shm", f"{own_prefix}notes", "tritonserver") as decoy:
        capsys.readouterr()
        assert command_line.main(["stop"]) == 0
        assert decoy.poll() is None
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("ended 1 server(s), removed ")
    assert printed[1] == "1 server(s) in use were left alone; `stop --all` ends them too"
    assert_gone(launch_of(stale_server))
    assert not orphan.exists()
    assert all(file.read_text() == "not yours" for file in decoy_files)
    in_use.check()
    in_use.reload("postprocess")
    server.check()  # of the usual prefix: another user's, as it were

    assert command_line.main(["stop", "--all"]) == 0
    assert capsys.readouterr().out.startswith("ended 1 server(s), ")
    assert_gone(launch_of(in_use))
    with pytest.raises(ServerDiedError, match="tritonserver ended"):
        in_use.check()
    in_use.stop()
    assert all(file.exists() for file in decoy_files)


def test_stop_as_a_command_when_there_is_nothing_to_do(own_prefix, tmp_path):
    code = (
        f"import runpy; from lab_utils import launch; launch.SHM_PREFIX = {own_prefix!r}; "
        "runpy.run_module('lab_utils', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, "stop"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "ended 0 server(s), removed 0 file(s) from /dev/shm\n")


def test_a_process_that_only_mentions_a_server_is_left_alone(own_prefix):
    """Such as an editor with the server's log, or a shell that lists its files in /dev/shm."""
    with decoy_process(f"/dev/shm/{own_prefix}0123456789ab_*") as decoy:
        done = stale.stop_servers(everything=True)
        assert decoy.poll() is None
        assert done.ended == []


def test_a_server_started_while_stop_is_at_work_keeps_its_shared_memory(own_prefix, monkeypatch):
    started: list[TritonServer] = []
    lab_servers = stale.lab_servers

    def then_one_more() -> list[stale.LabServer]:
        found = lab_servers()
        if not started:
            started.append(start_server(["postprocess"]))
        return found

    monkeypatch.setattr(stale, "lab_servers", then_one_more)
    stale.stop_servers()
    (server,) = started
    try:
        assert shm_files(launch_of(server).shm_prefix), "stop removed the shared memory of a live server"
        server.reload("postprocess")
    finally:
        server.stop()


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_finds_this_machine_fit(tmp_path):
    done = run(tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {line.split()[1]: line for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert set(findings) == {"system", "python", "numpy", "server", "gpu", "compiler", "memory", "ports"}
    assert "tritonserver 2.51.0 (wheel: " in findings["server"]
    assert "starts and stops" in findings["server"]
    assert "the big run goes to iteration " in findings["memory"]
    assert done.stderr == ""


def test_doctor_exits_with_1_on_a_problem_and_says_what_to_do(monkeypatch, capsys):
    problem = doctor.Finding(doctor.PROBLEM, "numpy", "2.0.0", "make setup")
    note = doctor.Finding(doctor.NOTE, "gpu", "none", "no matter")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: note,))
    assert command_line.main(["doctor"]) == 0
    monkeypatch.setattr(doctor, "CHECKS", (lambda: note, lambda: problem))
    assert command_line.main(["doctor"]) == 1
    assert "problem numpy          2.0.0\n                       -> make setup" in capsys.readouterr().out


def test_doctor_says_when_the_server_does_not_start(monkeypatch):
    monkeypatch.setenv("TRITON_SOURCE", "attach")
    finding = doctor.check_server()
    assert finding.level == doctor.PROBLEM
    assert "TRITON_GRPC_URL is not set" in finding.found


# --- the first token --------------------------------------------------------------------------------------------------


def test_the_steps_to_the_first_token_follow_each_other():
    steps = first_token.measure()
    assert [label for label, _, _ in steps] == list(first_token.STEPS)
    assert [label for label, _, _ in steps] == ["start Python, import", "start tritonserver", "first token"]
    assert steps[0][1] == 0.0
    assert [end for _, _, end in steps[:-1]] == [start for _, start, _ in steps[1:]]
    assert all(start < end for _, start, end in steps)


def test_a_measurement_that_fails_says_why(monkeypatch):
    monkeypatch.setenv("TRITON_SOURCE", "cloud")
    with pytest.raises(
        RuntimeError, match=r"could not measure the first token(.|\n)*server source 'cloud' is not known"
    ):
        first_token.measure()
