"""Whatever is handed to a public function or command: it works, or it refuses in words that name the input."""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab_utils import (
    alarm,
    big_run,
    contract,
    findings,
    growth,
    labbook,
    labbook_text,
    memory,
    plots,
    streams,
    survey,
    trace,
    verdict,
    watch,
    workspace,
)
from lab_utils.__main__ import main
from lab_utils.client import StreamError, Window, infer, iter_outputs, stream, stream_many
from lab_utils.errors import ServerError
from lab_utils.server import MODEL_REPOSITORY, TritonServer, start_server
from lab_utils.sources import ServerNotFoundError, find_source

DOCUMENTED = (ValueError, TypeError, OSError, ServerError, ServerNotFoundError, StreamError, workspace.LessonError)
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(["", "\0", "\ud800", "é" * 5000, "../..", "02", "nan", "a\nb"]))
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.sampled_from([True, 10**400, 2**31, -(2**31), 1e308, complex(1, 2)]),
)
SCALARS = st.one_of(st.none(), NUMBERS, TEXTS, st.binary(max_size=6), st.just(...), st.builds(object), st.just(int))
ANYTHING = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=5),
    st.lists(NUMBERS, max_size=8),
    st.tuples(SCALARS, SCALARS),
    st.dictionaries(TEXTS, SCALARS, max_size=3),
    st.sets(TEXTS, max_size=2),
    st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
)


def holds(call: Callable[[object], object], value: object, name: str) -> None:
    """The call works, or says what is wrong with the input of this name."""
    try:
        call(value)
    except DOCUMENTED as error:
        refused = error
    else:
        return
    named = [*name.split("|"), *([value[:200]] if isinstance(value, str) and value else [])]
    assert any(one.casefold() in str(refused).casefold() for one in named), repr(refused)


# --- functions that need no server ------------------------------------------------------------------------------------

REPOSITORY = contract.read_repository(MODEL_REPOSITORY)
LAW = growth.fit([1, 2, 4])
BOOK = labbook.Book(Path("nowhere.sqlite3"))
FUNCTIONS: dict[str, tuple[Callable[[object], object], str]] = {
    "fit": (growth.fit, "dims"),
    "fit, tolerance": (lambda value: growth.fit([1, 2, 5], value), "tolerance"),
    "predict": (LAW.predict, "n "),
    "predict_bytes": (lambda value: LAW.predict_bytes(3, value), "itemsize"),
    "growth_figure": (plots.growth_figure, "measured|series"),
    "growth_figure, a series": (lambda value: plots.growth_figure({"some": value}), "some"),
    "growth_figure, reached": (lambda value: plots.growth_figure({"some": [1, 2]}, reached=value), "reached"),
    "timeline_figure": (plots.timeline_figure, "event"),
    "table, headers": (lambda value: plots.table(value, []), "headers"),
    "table, rows": (lambda value: plots.table(["one"], value), "row"),
    "big_run": (lambda value: big_run.big_run(value) if not _whole(value, 1, 28) else None, "wanted"),
    "read_config": (contract.read_config, "model"),
    "read_repository": (contract.read_repository, "repository"),
    "read_edges": (contract.read_edges, "ensemble|model"),
    "check, ensemble": (lambda value: findings.check(REPOSITORY, value), "ensemble"),
    "trace.read": (lambda value: list(trace.read(value)), "paths"),
    "judge": (verdict.judge, "tracks"),
    "Rules, factor": (lambda value: alarm.Rules(factor=value), "factor"),
    "Rules, times": (lambda value: alarm.Rules(times=value), "times"),
    "Rules, memory": (lambda value: alarm.Rules(memory_bytes=value), "memory_bytes"),
    "watch, grpc": (lambda value: watch.watch(grpc_url=value), "watch|grpc"),
    "watch, http": (lambda value: watch.watch(http_url=value), "watch|http"),
    "watch, metrics": (lambda value: watch.watch(metrics_url=value), "watch|metrics"),
    "watch, interval": (lambda value: watch.watch(log="x", interval=value), "interval"),
    "find_lesson": (lambda value: workspace.find_lesson(["00_a.ipynb", "02_b.ipynb"], value), "lesson"),
    "edit_hash": (lambda value: workspace.edit_hash("a.ipynb", value), "text"),
    "find_source": (find_source, "source"),
    "leaks": (memory.leaks, "heap"),
    "inversions": (streams.inversions, "index"),
    "characters_of": (lambda value: survey.characters_of(2, value), "how_many"),
    "experiments, since": (lambda value: BOOK.experiments(since=value), "since"),
    "get": (BOOK.get, "experiment"),
    "compare": (lambda value: BOOK.compare(value, 1), "experiment"),
    "Window": (lambda value: Window(value).share, "messages"),
    "start_server": (start_server, "model"),
    "start_server, repository": (lambda value: start_server("none", repository=value), "repository|model"),
    "start_server, source": (lambda value: start_server("none", source=value), "source|model"),
    "start_server, backends": (lambda value: start_server("postprocess", backends=value), "backend"),
    "start_server, flags": (lambda value: start_server("none", flags=value), "flags|model"),
}


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and least <= value <= most


@pytest.mark.parametrize("name", FUNCTIONS)
@FEW
@given(value=ANYTHING)
def test_a_function_works_or_names_its_input(name, value):
    call, named = FUNCTIONS[name]
    holds(call, value, named)


# --- a server that runs, and one that was stopped ---------------------------------------------------------------------

MODEL = "ensemble_latest"
TEXT = {"PROMPT": np.array([b"x"], dtype=object)}
SHORT = {"deadline": 5.0}
OPTIONS = (
    "forced_ids",
    "dims_only",
    "max_message_ids",
    "trace_heap",
    "guard",
    "log",
    "mutation",
    "window",
    "request_id",
)
CALLS: dict[str, tuple[Callable[[TritonServer, object], object], str]] = {
    "ensemble": (lambda server, value: stream(server, value, "x", 1, **SHORT), "ensemble|model"),
    "prompt": (lambda server, value: stream(server, MODEL, value, 1, **SHORT), "prompt"),
    "max_tokens": (lambda server, value: stream(server, MODEL, "x", value, **SHORT), "max_tokens"),
    "deadline": (lambda server, value: stream(server, MODEL, "x", 1, deadline=value), "deadline"),
    "prompts": (lambda server, value: stream_many(server, MODEL, value, 1, **SHORT), "prompt"),
    "infer, model": (lambda server, value: infer(server, value, {}), "model"),
    "infer, inputs": (lambda server, value: infer(server, "preprocess", value), "input"),
    "version": (lambda server, value: list(iter_outputs(server, "preprocess", TEXT, version=value)), "version"),
    "parameters": (lambda server, value: list(iter_outputs(server, "preprocess", TEXT, parameters=value)), "parameter"),
    "load": (lambda server, value: server.load(value), "model"),
    "logs": (lambda server, value: server.logs(value), "lines"),
    **{
        name: (lambda server, value, name=name: stream(server, MODEL, "x", 1, **SHORT, **{name: value}), name)
        for name in OPTIONS
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    with start_server([MODEL]) as running:
        yield running
        assert stream(running, MODEL, "Pancakes. Ingredients:").lengths == [1] * 8


@pytest.fixture(scope="module")
def stopped() -> TritonServer:
    with start_server(["postprocess"]) as server:
        pass
    return server


@pytest.mark.parametrize("name", CALLS)
@FEW
@given(value=ANYTHING)
def test_a_call_of_a_server_works_or_names_its_input(name, server, value):
    call, named = CALLS[name]
    holds(lambda given: call(server, given), value, named)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_a_stopped_server_says_so(name, stopped):
    """Whatever can be wrong besides; its log went with it."""
    right = {"infer, inputs": TEXT, "version": 1, "parameters": {}, "logs": 3, "window": None, "forced_ids": [64]}
    right |= {"deadline": 1.0, "max_tokens": 1, "max_message_ids": 1}
    call, _ = CALLS[name]
    if name == "logs":
        assert call(stopped, 3) == ""
    elif name == "prompts":
        with pytest.raises(ServerError, match="this server is stopped; start one"):
            call(stopped, ["x"])
    else:
        with pytest.raises(ServerError, match="this server is stopped; start one"):
            call(stopped, right.get(name, "x"))


# --- the lab book -----------------------------------------------------------------------------------------------------

ENTRIES: dict[str, tuple[Callable[[labbook.Book, object], object], str]] = {
    "lesson": (lambda book, value: _recorded(book, lesson=value), "lesson"),
    "title": (lambda book, value: _recorded(book, title=value), "title"),
    "predicted": (lambda book, value: _recorded(book, predicted=value), "predicted"),
    "server": (lambda book, value: _recorded(book, server=value), "server"),
    "configuration": (lambda book, value: _recorded(book, prompt=value), "prompt"),
    "series": (lambda book, value: _entry(book).series("measured", value), "iteration|observation|series"),
    "series, label": (lambda book, value: _entry(book).series(value, [1]), "label"),
    "verdict": (lambda book, value: _entry(book).verdict(value), "verdict"),
    "note": (lambda book, value: _entry(book).note(value), "note"),
    "number": (lambda book, value: _entry(book).number("n", value), "number"),
    "figure": (lambda book, value: _entry(book).figure("f", value), "figure|PNG"),
}


def _entry(book: labbook.Book) -> labbook.Recorder:
    with book.experiment("00", "of anything") as entry:
        return entry


def _recorded(book: labbook.Book, **what: object) -> None:
    with book.experiment(**{"lesson": "00", "title": "of anything", **what}):
        pass


@pytest.mark.parametrize("name", ENTRIES)
@settings(FEW, max_examples=15)
@given(value=ANYTHING)
def test_the_lab_book_takes_anything_or_names_it_and_stays_readable(name, tmp_path, value):
    book = labbook.open_book(tmp_path / "book.sqlite3")
    call, named = ENTRIES[name]
    holds(lambda given: call(book, given), value, named)
    assert labbook_text.listing(book.experiments()[-1:])


# --- commands ---------------------------------------------------------------------------------------------------------

ARGUMENTS = st.one_of(
    TEXTS,
    st.sampled_from(
        ["--json", "--figure", "--ensemble", "--rows", "--values", "--since", "--series", "--out", "-h", "--"]
    ),
    st.sampled_from(
        ["list", "show", "compare", "export", "0", "-1", "1e9", str(MODEL_REPOSITORY), "nowhere/x", "/dev/null"]
    ),
)
COMMANDS = (["contract"], ["trace"], ["labbook"], ["watch", "--seconds", "0.1"], ["stream", "none"], ["nonsense"], [])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "none")
@settings(FEW, max_examples=60)
@given(arguments=st.lists(ARGUMENTS, max_size=4))
def test_a_command_ends_with_a_status_and_a_word(command, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            status = main([*command, *arguments])
        except SystemExit as ended:  # argparse: usage and a line
            status = ended.code
    assert status in (0, 1, 2)
    assert "Traceback" not in output.getvalue() + error.getvalue()
    assert status == 0 or output.getvalue() or "error: " in error.getvalue()


@settings(FEW, max_examples=60)
@given(wanted=TEXTS)
def test_a_lesson_that_is_not_there_is_listed(wanted, tmp_path):
    room = workspace.Room(MODEL_REPOSITORY.parent / "notebooks", tmp_path / "workspace")
    holds(lambda given: workspace.reset(room, given), wanted, "lesson")
