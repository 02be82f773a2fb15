"""The C++ nodes come and go: unloading frees everything, open streams end, and a bad config is refused in words."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest
from cpp_nodes import (
    Answers,
    begin,
    call,
    copied_repositories,
    error_of,
    ids_of,
    one,
    start_both,
    stopping_cleanly,
    tensors,
    until,
)
from leftovers import SHARED_MEMORY, assert_gone, launch_of, open_streams, triton_process

from lab_utils.client import StreamError
from lab_utils.device import has_gpu
from lab_utils.errors import ServerError
from lab_utils.memory import snapshot
from lab_utils.server import TritonServer
from lab_utils.watch_compare import metrics_page

MODEL = "token_stream_latest"
GRANT_SECONDS = 1
MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both repositories, to be changed."""
    copy = tmp_path_factory.mktemp("repositories")
    copied_repositories(copy, grant_seconds=GRANT_SECONDS)
    return copy


def start(folder: Path) -> TritonServer:
    repositories = [folder / "model_repository", folder / "custom_backend" / "models"]
    return start_both([MODEL, "postprocess_cpp"], repository=repositories)


@pytest.fixture(scope="module")
def alone(_nothing_left_behind: None, folder: Path) -> Iterator[TritonServer]:
    """A server with C++ nodes alone, which at the end stops by itself."""
    with stopping_cleanly(start(folder)) as running:
        yield running


@pytest.fixture
def server(alone: TritonServer) -> Iterator[TritonServer]:
    """That server, with the model loaded before and after."""
    yield alone
    alone.check()
    if MODEL not in alone.models:
        alone.load(MODEL)
    assert ids_of(call(alone, "latest", tensors([64, 65]))) == [[64], [65]]


# --- what unloading frees ---------------------------------------------------------------------------------------------


def open_files(process: psutil.Process) -> set[str]:
    return {file.path for file in process.open_files()} | {mapped.path for mapped in process.memory_maps()}


def test_a_model_that_is_unloaded_gives_back_its_thread_its_files_and_its_memory(server):
    """Eighty times, after twenty in which the process takes what it takes once: an arena for each new thread.

    The allocator holds some MiB more or less at a time, so the least of thirty readings is compared.
    """
    process, readings = triton_process(server), []
    for _ in range(100):
        answers = call(server, "latest", tensors(prompt=[64] * 50, max_tokens=60), trace_heap=True)
        assert one(answers[0], "HEAP") > 300_000  # it has a cache
        server.unload(MODEL)
        readings.append((process.num_threads(), snapshot(server).server))
        assert not any("safetensors" in path for path in open_files(process))
        assert MODEL not in lab_metrics(server)
        server.load(MODEL)
        assert list(SHARED_MEMORY.glob(f"{server.shm_prefix}*")) == []
    threads, memory = zip(*readings[20:], strict=True)
    assert max(threads) <= threads[0]
    # Over the fifty times between, one cache kept for each would be 20 MiB, one table of tokens 100 MiB.
    assert min(memory[-30:]) - min(memory[:30]) < 10 * MIB


def lab_metrics(server: TritonServer) -> str:
    """The gauges of this lab's nodes, as the server shows them."""
    return "\n".join(line for line in metrics_page(server).splitlines() if line.startswith("lab_open_streams"))


def test_the_engines_thread_is_there_while_the_model_is(server):
    process = triton_process(server)
    assert MODEL in lab_metrics(server)
    loaded = process.num_threads()
    server.unload(MODEL)
    without = process.num_threads()
    server.load(MODEL)
    assert without < loaded == process.num_threads()


# --- unloading under open streams -------------------------------------------------------------------------------------


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list]:
    results: list = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    return thread, results


def test_a_running_stream_is_finished_before_its_model_goes(server):
    arriving = begin(server, "latest", tensors([64] * 20_000))
    next(arriving)
    thread, rest = in_thread(lambda: sum(1 for _ in arriving))
    server.unload(MODEL)
    assert MODEL not in server.models
    thread.join()
    assert rest == [19_999]
    with pytest.raises(StreamError, match=MODEL):
        call(server, "latest", tensors([64]))


def test_a_stream_that_waits_for_its_client_ends_in_words_and_its_model_goes(server):
    arriving = begin(server, "latest", tensors([64] * 9), window=1, window_key=1)
    assert len(list(islice(arriving, 1))) == 1
    thread, unloaded_at = in_thread(lambda: server.unload(MODEL))
    rest = list(arriving)
    thread.join()
    assert unloaded_at == [None]
    words = f"the client granted no message for {GRANT_SECONDS} s: it is taken for lost"
    assert (len(rest), error_of(rest), one(rest[-1], "END")) == (1, words, True)


def test_twenty_streams_and_a_reload_in_their_midst(server):
    """Each is told all its ids, or that the model is not there; none waits for ever."""

    def outcome() -> Answers | str:
        try:
            return call(server, "latest", tensors([64] * 300))
        except StreamError as error:
            return str(error)

    threads = [in_thread(outcome) for _ in range(10)]
    until(lambda: open_streams(server) != {} or any(results for _, results in threads))
    server.unload(MODEL)
    threads += [in_thread(outcome) for _ in range(10)]
    for thread, _ in threads[10:]:
        thread.join()
    server.load(MODEL)
    for thread, _ in threads:
        thread.join()
    told = [results[0] for _, results in threads]
    assert any(isinstance(each, list) for each in told)
    for each in told:
        assert MODEL in each if isinstance(each, str) else ids_of(each) == [[64]] * 300
    assert all(isinstance(each, str) for each in told[10:])


@pytest.mark.usefixtures("_nothing_left_behind")
def test_a_server_that_is_stopped_under_a_waiting_stream_ends_by_itself(folder):
    server = start(folder)
    launch = launch_of(server)
    arriving = begin(server, "latest", tensors([64] * 9), window=1, window_key=1)
    assert len(list(islice(arriving, 1))) == 1
    supervisor = server._supervisor
    thread, rest = in_thread(lambda: end_of(arriving))
    server.stop()
    assert supervisor.returncode == 0
    thread.join()
    assert len(rest) == 1
    assert_gone(launch)


def end_of(arriving: Iterator[dict]) -> str:
    """How a stream ended under which the server was stopped: by the node's own words, or by the connection's."""
    try:
        return error_of(list(arriving))
    except Exception as error:
        return str(error)


# --- bad configs ------------------------------------------------------------------------------------------------------

PARAMETERS = ["rung", "weights", "tokens", "default_message_ids", "hard_message_ids", "max_streams", "max_waiting"]
PARAMETERS += ["grant_seconds"]
RUNGS_SAID = "; expected append, release, replace or latest"
NUMBER = "; expected a whole number"


def with_second_id(data: bytes, token: int) -> bytes:
    """The weights file with another id in row 1; the ids are its first tensor."""
    begin = 8 + int.from_bytes(data[:8], "little") + 4
    return data[:begin] + token.to_bytes(4, "little") + data[begin + 4 :]


CHANGED = [
    ("rung", "newest", f'model parameter "rung" is "newest"{RUNGS_SAID}'),
    ("rung", "Latest", f'model parameter "rung" is "Latest"{RUNGS_SAID}'),
    ("rung", "", f'model parameter "rung" is ""{RUNGS_SAID}'),
    ("max_streams", "many", f'model parameter "max_streams" is "many"{NUMBER}'),
    ("max_waiting", "-1", f'model parameter "max_waiting" is "-1"{NUMBER}'),
    ("grant_seconds", "1.5", f'model parameter "grant_seconds" is "1.5"{NUMBER}'),
    ("hard_message_ids", "", f'model parameter "hard_message_ids" is ""{NUMBER}'),
    ("default_message_ids", "9" * 19, f'model parameter "default_message_ids" is "{"9" * 19}"{NUMBER}'),
    ("max_streams", "0", f'model parameter "max_streams" is "0"{NUMBER} from 1 to 1000000'),
    ("default_message_ids", "134217729", f'"default_message_ids" is "134217729"{NUMBER} from 1 to 134217728'),
    ("grant_seconds", "0", f'model parameter "grant_seconds" is "0"{NUMBER} from 1 to '),
    ("weights", "absent.safetensors", "/broken/absent.safetensors: it cannot be opened. Restore the file"),
    ("tokens", "absent.safetensors", "/broken/absent.safetensors: it cannot be opened. Restore the file"),
    ("weights", "", "/broken/: it does not begin with the length of a header"),
    ("weights", "token_bytes.safetensors", 'metadata "config" is missing. Restore the file'),
    ("tokens", "recipes.safetensors", 'tensor "data" is missing. Restore the file'),
]
FILES = {
    "empty": (lambda _: b"", "it does not begin with the length of a header"),
    "seven bytes": (lambda data: data[:7], "it does not begin with the length of a header"),
    "another format": (lambda _: b"\x80\x04pickle of a model", "it does not begin with the length of a header"),
    "cut in the header": (lambda data: data[:500], "its header is cut off"),
    "no JSON": (lambda data: data[:8] + b"[" + data[9:], "JSON, character "),
    "cut in the tensors": (lambda data: data[:-1], "lies outside of the file"),
    "another type": (lambda data: data.replace(b'"I32"', b'"I64"'), "has dtype I64; expected F16, F32, I32 or U8"),
    "an id past the vocabulary": (
        lambda data: with_second_id(data, 2**31 - 1),
        "token id 2147483647 is not in the table of tokens. Name two files that belong together",
    ),
    "another name": (
        lambda data: data.replace(b"model.norm.w", b"model.nork.w"),
        'tensor "model.norm.weight" is missing',
    ),
}


@pytest.fixture
def broken(folder: Path) -> Iterator[Path]:
    """A model to be broken: a copy of the last rung."""
    models = folder / "custom_backend" / "models"
    shutil.copytree(models / MODEL, models / "broken", symlinks=True)
    config = models / "broken" / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace(MODEL, "broken"), encoding="utf-8")
    yield models / "broken"
    shutil.rmtree(models / "broken")


def edit(model: Path, pattern: str, text: str) -> None:
    """Change one place of a config."""
    config = model / "config.pbtxt"
    changed, places = re.subn(pattern, text, config.read_text(encoding="utf-8"))
    assert places == 1
    config.write_text(changed, encoding="utf-8")


def refusal(server: TritonServer) -> str:
    """What the server says when it is to load the broken model; it goes on as before."""
    with pytest.raises(ServerError, match="could not load model 'broken'") as caught:
        server.load("broken")
    assert ids_of(call(server, "latest", tensors([64]))) == [[64]]
    return str(caught.value)


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_missing_parameter_is_named(server, broken, parameter):
    edit(broken, rf'parameters {{ key: "{parameter}" .*\n', "")
    assert f'model parameter "{parameter}" is missing in config.pbtxt' in refusal(server)


@pytest.mark.parametrize(("parameter", "value", "words"), CHANGED)
def test_a_bad_parameter_is_named_with_what_was_expected(server, broken, parameter, value, words):
    edit(broken, rf'(key: "{parameter}" value {{ string_value: ")[^"]*', rf"\g<1>{value}")
    assert words in refusal(server)


@pytest.mark.parametrize("what", FILES)
def test_a_broken_weights_file_is_named_with_what_is_wrong(server, broken, what):
    change, words = FILES[what]
    path = broken / "recipes.safetensors"
    data = path.read_bytes()
    path.unlink()  # the link, not what it leads to
    path.write_bytes(change(data))
    said = refusal(server)
    assert str(path) in said
    assert words in said


def test_a_broken_token_table_is_named(server, broken):
    path = broken / "token_bytes.safetensors"
    data = bytearray(path.read_bytes())
    path.unlink()
    header = int.from_bytes(data[:8], "little")
    begin_at = int(re.search(rb'"lengths":\{.*?"data_offsets":\[(\d+)', data[8 : 8 + header])[1])
    data[8 + header + begin_at] += 1  # the length of the first token
    path.write_bytes(bytes(data))
    said = refusal(server)
    assert f"token table {path}: the lengths do not add up to the data. Restore the file" in said


def test_an_instance_on_a_gpu_is_refused_where_there_is_none(server, broken):
    edit(broken, "KIND_CPU", "KIND_GPU")
    if has_gpu():
        server.load("broken")
        server.unload("broken")
    else:
        assert "GPU" in refusal(server)


def test_postprocess_cpp_names_what_is_missing_too(server, folder):
    models = folder / "custom_backend" / "models"
    shutil.copytree(models / "postprocess_cpp", models / "broken", symlinks=True)
    try:
        edit(models / "broken", 'name: "postprocess_cpp"', 'name: "broken"')
        edit(models / "broken", r'"15"', '"soon"')
        assert 'model parameter "idle_seconds" is "soon"; expected a whole number' in refusal(server)
        edit(models / "broken", r'parameters { key: "idle_seconds" .*\n', "")
        assert 'model parameter "idle_seconds" is missing in config.pbtxt' in refusal(server)
    finally:
        shutil.rmtree(models / "broken")


def test_what_was_refused_is_loaded_once_it_was_mended(server, broken):
    edit(broken, '"latest"', '"newest"')
    refusal(server)
    edit(broken, '"newest"', '"latest"')
    server.load("broken")
    assert "broken" in server.models
    server.unload("broken")


def test_refusals_leave_no_thread_and_no_memory(server, broken):
    edit(broken, '"recipes.safetensors"', '"absent.safetensors"')
    process = triton_process(server)
    for number in range(25):
        refusal(server)
        if number == 4:
            before, threads = snapshot(server).server, process.num_threads()
    until(lambda: process.num_threads() <= threads)
    assert snapshot(server).server - before < 4 * MIB
