"""``python -m lab_utils contract``: what it prints, draws and returns."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

from lab_utils import contract_cli
from lab_utils.contract import read_repository
from lab_utils.findings import check, report, summary
from lab_utils.server import MODEL_REPOSITORY

PNG = b"\x89PNG\r\n\x1a\n"
INPUT, OUTPUT = (f'[ {{ name: "{name}" data_type: TYPE_INT32 dims: [ 1 ] }} ]' for name in ("IN", "OUT"))
MODEL = f'backend: "onnxruntime"\ninput {INPUT}\noutput {OUTPUT}\n'
ENSEMBLE = f"""platform: "ensemble"
input {INPUT}
output {OUTPUT}
ensemble_scheduling {{
  step [ {{ model_name: "model" model_version: -1
            input_map {{ key: "IN" value: "IN" }} output_map {{ key: "OUT" value: "OUT" }} }} ]
}}
"""


def run(*words: object) -> int:
    root = argparse.ArgumentParser()
    contract_cli.add_command(root.add_subparsers(required=True))
    arguments = root.parse_args(["contract", *map(str, words)])
    return arguments.run(arguments)


@pytest.fixture
def sound(tmp_path) -> Path:
    for name, config in (("model", MODEL), ("chain", ENSEMBLE)):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(config)
    return tmp_path


def edit(repository: Path, name: str, old: str, new: str) -> None:
    config = repository / name / "config.pbtxt"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def test_a_sound_repository(sound, capsys):
    assert run(sound) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{sound}: 2 models, of which 1 ensemble"
    assert lines[-1] == "0 errors, 0 warnings, 0 notes"
    assert [line.split() for line in lines if line.startswith(("ensemble ", "chain "))] == [
        ["ensemble", "steps", "edges", "errors", "warnings", "notes"],
        ["chain", "1", "2", "0", "0", "0"],
    ]


def test_an_error_is_exit_status_1(sound, capsys):
    edit(sound, "model", "TYPE_INT32", "TYPE_INT64")
    assert run(sound) == 1
    out = capsys.readouterr().out
    assert "error: dtype-mismatch: chain/config.pbtxt, step 1 (model), tensor IN" in out
    assert out.endswith("2 errors, 0 warnings, 0 notes\n")


def test_warnings_and_notes_are_exit_status_0(capsys):
    assert run(MODEL_REPOSITORY) == 0
    found = check(read_repository(MODEL_REPOSITORY))
    out = capsys.readouterr().out
    assert report(found) in out
    assert out.endswith(f"{summary(found)}\n")


def test_one_ensemble_with_its_steps_and_edges(capsys):
    assert run(MODEL_REPOSITORY, "--ensemble", "ensemble_replace") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["inference", "3", "python", "0", "-", "decoupled"] in rows
    assert ["preprocess", "latest", "python", "0", "-", "-"] in rows
    assert ["TOKEN_IDS", "inference", "postprocess", "INT32", "[-1]", "once", "per", "response"] in rows
    assert ["PROMPT", "client", "preprocess", "STRING", "[1]", "once", "per", "request"] in rows
    assert "ensemble_append" not in out


def test_json_alone_is_on_standard_output(sound, capsys, tmp_path):
    edit(sound, "chain", '"IN" }', '"NOWHERE" }')
    assert run(sound, "--json", "--figure", tmp_path / "figure.png") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["repository"] == str(sound)
    assert document["models"] == 2
    assert [one["rule"] for one in document["findings"] if one["severity"] == "error"] == [
        "no-producer",
        "unused-input",
    ]


def test_json_of_one_ensemble(capsys):
    assert run(MODEL_REPOSITORY, "--json", "--ensemble", "ensemble_latest") == 0
    document = json.loads(capsys.readouterr().out)
    (graph,) = document["ensembles"]
    assert [node["version"] for node in graph["nodes"]] == [-1, 4, -1]
    assert len(graph["edges"]) == 14
    assert {one["place"]["ensemble"] for one in document["findings"]} == {"ensemble_latest"}


def test_the_figure(sound, capsys):
    path = sound / "new" / "figure.png"
    assert run(sound, "--figure", path) == 0
    assert path.read_bytes().startswith(PNG)
    assert capsys.readouterr().err == f"figure: {path}\n"


def test_an_ensemble_too_broken_to_draw_is_reported_all_the_same(sound, capsys):
    edit(sound, "chain", 'value: "IN"', 'value: "OUT"')
    assert run(sound, "--figure", sound / "figure.png") == 1
    out, err = capsys.readouterr()
    assert "tensor-cycle" in out
    assert err.startswith("no figure of chain: edges form a cycle")
    assert not (sound / "figure.png").exists()


def test_a_figure_of_several_ensembles_needs_a_name(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"--ensemble NAME.*ensemble_append, ensemble_guarded, ensemble_latest"):
        run(MODEL_REPOSITORY, "--figure", tmp_path / "figure.png")
    assert capsys.readouterr().out == ""


def test_an_ensemble_that_is_not_there_is_named(sound):
    with pytest.raises(ValueError, match=r"no ensemble 'model'; .* has: chain"):
        run(sound, "--ensemble", "model")


def test_what_is_no_repository_is_refused(sound, tmp_path_factory):
    nothing = tmp_path_factory.mktemp("nothing")
    for path, reason in (
        (sound / "absent", "is not a folder"),
        (sound / "chain" / "config.pbtxt", "is not a folder"),
        (sound / "model", f"folder of one model; give the repository that holds it: {sound}"),
        (sound / "model" / "1", "has no models"),
        (nothing, "has no models; expected"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(path)


def test_a_repository_further_down_is_hinted_at(sound):
    (sound / "deploy" / "models").mkdir(parents=True)
    for name in ("model", "chain"):
        (sound / name).rename(sound / "deploy" / "models" / name)
    with pytest.raises(ValueError, match=f"has no models; did you mean {sound}/deploy/models[?]"):
        run(sound)


def test_a_repository_without_ensembles(sound, capsys):
    shutil.rmtree(sound / "chain")
    assert run(sound) == 0
    assert capsys.readouterr().out == f"{sound}: 1 model, of which 0 ensembles\n\n0 errors, 0 warnings, 0 notes\n"
