"""Looking at a backend from outside: symbols, excerpts, devices, and the figure of two languages side by side."""

import io
import shlex
import subprocess
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from lab_utils import backends, custom_backend
from lab_utils.backends import excerpt, on_device, response_counts, speeds, symbols
from lab_utils.backends_figure import backends_figure

LENGTHS = {"append": [1, 2, 4, 8], "latest": [1, 1, 1, 1]}
SPEEDS = {"one": 1234.5, "another": 4000.0}


# --- symbols and sources ----------------------------------------------------------------------------------------------


def test_symbols_of_triton_that_a_library_has_and_lacks(tmp_path):
    code = """
        extern "C" {
        void TRITONBACKEND_Other(); int printf(const char*, ...);
        void TRITONBACKEND_Mine() { TRITONBACKEND_Other(); printf("x"); }
        void own() {}
        }
        void TRITONBACKEND_Mangled() {}
    """
    (tmp_path / "x.cc").write_text(code)
    library = tmp_path / "libx.so"
    subprocess.run(
        [*shlex.split(custom_backend.compiler()), "-shared", "-fPIC", "-o", library, tmp_path / "x.cc"], check=True
    )
    found = symbols(library)
    assert (found.defined, found.lacking) == (("TRITONBACKEND_Mine",), ("TRITONBACKEND_Other",))


def test_what_is_no_library_is_said(tmp_path):
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(RuntimeError, match=r"nm cannot read .*text\.so"):
        symbols(tmp_path / "text.so")


def test_without_nm_it_is_said_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="binutils"):
        symbols(tmp_path / "x.so")


def test_an_excerpt_ends_before_its_end():
    found = excerpt("token_stream/rungs.cc", "// The bug.", "// One operator")
    assert found.startswith("// The bug.")
    assert "void append(" in found
    assert "void replace(" not in found


@pytest.mark.parametrize(("start", "end"), [("no such words", "}"), ("// The bug.", "no such words")])
def test_an_excerpt_that_is_not_there_is_an_error(start, end):
    with pytest.raises(ValueError, match="substring not found"):
        excerpt("token_stream/rungs.cc", start, end)


# --- speed and counts -------------------------------------------------------------------------------------------------


def test_speeds_are_measured_in_turns_after_a_warm_up(monkeypatch):
    asked = []

    def stream(server, ensemble, prompt, max_tokens):
        asked.append((server, ensemble, prompt, max_tokens))
        return SimpleNamespace(observations=[SimpleNamespace(seconds=at / 100) for at in (1, 2, len(asked))])

    monkeypatch.setattr(backends, "stream", stream)
    found = speeds("server", ["a", "b"], "prompt", max_tokens=5, rounds=2)
    assert [ensemble for _, ensemble, _, _ in asked] == ["a", "b"] * 3
    assert {(server, *rest) for server, _, *rest in asked} == {("server", "prompt", 5)}
    assert found == {"a": pytest.approx([100, 60]), "b": pytest.approx([75, 50])}


def server_with(*versions):
    """A server whose statistics have these response counts, by version of the model."""
    counts = [
        {number: SimpleNamespace(success=SimpleNamespace(count=count)) for number, count in version.items()}
        for version in versions
    ]
    statistics = SimpleNamespace(model_stats=[SimpleNamespace(response_stats=version) for version in counts])
    client = SimpleNamespace(get_inference_statistics=lambda model: {"node": statistics}[model])
    return SimpleNamespace(client=lambda: nullcontext(client))


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([{"1": 2, "0": 3, "10": 1}], [(1, 3), (2, 2), (11, 1)]),
        ([{"0": 3}, {"0": 1, "1": 1}], [(1, 4), (2, 1)]),
        ([{}, {}], []),
    ],
)
def test_responses_are_counted_by_number_over_all_versions(versions, expected):
    assert list(response_counts(server_with(*versions), "node").items()) == expected


# --- devices ----------------------------------------------------------------------------------------------------------


STREAMING = ["token_stream_latest", "token_stream_append"]


def kinds(repository, model):
    config = text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())
    return [group.Kind.Name(group.kind) for group in config.instance_group]


def test_the_named_models_move_to_another_device(tmp_path):
    before = (custom_backend.REPOSITORY / "token_stream_latest/config.pbtxt").read_bytes()
    copy = on_device(custom_backend.REPOSITORY, tmp_path / "models", "GPU", STREAMING)
    assert kinds(copy, "token_stream_latest") == kinds(copy, "token_stream_append") == ["KIND_GPU"]
    assert kinds(copy, "postprocess_cpp") == ["KIND_CPU"]
    assert (custom_backend.REPOSITORY / "token_stream_latest/config.pbtxt").read_bytes() == before
    assert (copy / "token_stream_latest/recipes.safetensors").exists()


def test_an_earlier_copy_is_written_over(tmp_path):
    on_device(custom_backend.REPOSITORY, tmp_path / "models", "GPU", STREAMING)
    copy = on_device(custom_backend.REPOSITORY, tmp_path / "models", "CPU", STREAMING)
    assert kinds(copy, "token_stream_latest") == ["KIND_CPU"]


def test_a_kind_that_triton_does_not_know_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="KIND_TPU"):
        on_device(custom_backend.REPOSITORY, tmp_path / "models", "TPU", STREAMING)


# --- the figure -------------------------------------------------------------------------------------------------------


def test_the_figure_has_a_panel_for_each_rung_and_one_for_the_speeds():
    figure = backends_figure({"Python": LENGTHS, "C++": LENGTHS}, SPEEDS)
    *panels, bars = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["append", "latest"]
    for axes, lengths in zip(panels, LENGTHS.values(), strict=True):
        assert [line.get_ydata().tolist() for line in axes.lines] == [lengths, lengths]
        assert axes.get_yscale() == "log"
    assert [bar.get_width() for bar in bars.patches] == list(SPEEDS.values())
    assert {text.get_text() for text in bars.texts} == {"1,234", "4,000"}


def test_later_languages_lie_visibly_on_the_first():
    line, later = backends_figure({"Python": LENGTHS, "C++": LENGTHS}, SPEEDS).axes[0].lines
    assert line.get_markersize() > later.get_markersize()
    assert line.get_linewidth() > later.get_linewidth()
    assert line.get_color() != later.get_color()
    assert line.get_marker() != later.get_marker()


def test_every_axis_says_what_it_shows():
    *panels, bars = backends_figure({"Python": LENGTHS, "C++": LENGTHS}, SPEEDS).axes
    assert all(axes.get_xlabel() == "message" for axes in panels)
    assert panels[0].get_ylabel() == "ids in the message"
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["Python", "C++"]
    assert "tokens a second" in bars.get_xlabel()


def test_nothing_in_the_figure_leaves_it():
    figure = backends_figure({"Python": LENGTHS, "C++": LENGTHS}, {"a long name of an ensemble": 1e6, "b": 1.0})
    figure.savefig(io.BytesIO(), format="png")
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.axes[-1].texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width
        assert 0 <= box.y0 <= box.y1 <= height


@pytest.mark.parametrize(
    ("lengths", "speeds", "words"),
    [
        ({}, SPEEDS, "0 languages"),
        ({"Python": {}}, SPEEDS, "0 rungs"),
        ({"Python": LENGTHS}, {}, "0 speeds"),
        (dict.fromkeys("abcd", LENGTHS), SPEEDS, "4 languages"),
        ({"Python": {rung: [1] for rung in "abcde"}}, SPEEDS, "5 rungs"),
        ({"Python": LENGTHS}, dict.fromkeys("abcdefg", 1.0), "7 speeds"),
        ({"Python": LENGTHS, "C++": {"append": [1]}}, SPEEDS, "different rungs"),
    ],
)
def test_what_cannot_be_drawn_is_said(lengths, speeds, words):
    with pytest.raises(ValueError, match=words):
        backends_figure(lengths, speeds)
