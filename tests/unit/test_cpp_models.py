"""The models of the C++ backends: the contract of the Python nodes, and a repository in which nothing is broken."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.message import Message

from lab_utils import custom_backend
from lab_utils.contract import Edge, read_config, read_edges, read_repository
from lab_utils.findings import Finding, check
from lab_utils.server import MODEL_REPOSITORY

REPOSITORY = custom_backend.REPOSITORY
RUNGS = ("append", "release", "replace", "latest")
NODES = [f"token_stream_{rung}" for rung in RUNGS]
ENSEMBLES = [f"ensemble_cpp_{rung}" for rung in (*RUNGS, "text")]
MODELS = [*NODES, *ENSEMBLES, "postprocess_cpp"]
CONTRACT = ("input", "output", "max_batch_size", "model_transaction_policy")  # of a config: what others rely on
# What a C++ model needs that a Python one has in its code.
OF_ITS_OWN = {"rung", "weights", "tokens"}


def contract(config: Message) -> dict[str, object]:
    """What a config promises to others: names, types, dims, and which input may be left out."""
    return {name: getattr(config, name) for name in CONTRACT}


def parameters(config: Message) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def test_the_repository_has_these_models_and_no_others():
    assert sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")) == sorted(MODELS)
    assert not {path.name for path in REPOSITORY.iterdir()} & {path.name for path in MODEL_REPOSITORY.iterdir()}


@pytest.mark.parametrize("model", MODELS)
def test_a_config_has_the_name_of_its_folder_and_a_version_that_git_keeps(model):
    assert read_config(model, REPOSITORY).name == model
    assert [path.name for path in (REPOSITORY / model).iterdir() if path.is_dir()] == ["1"]
    assert [path.name for path in (REPOSITORY / model / "1").iterdir()] == [".gitkeep"]


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_promises_what_the_python_node_promises(rung):
    ours, theirs = read_config(f"token_stream_{rung}", REPOSITORY), read_config("inference")
    assert contract(ours) == contract(theirs)
    assert ours.model_transaction_policy.decoupled
    assert (ours.backend, parameters(ours)["rung"]) == ("token_stream", rung)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_has_the_limits_of_the_python_node_and_all_its_parameters(rung):
    ours, theirs = parameters(read_config(f"token_stream_{rung}", REPOSITORY)), parameters(read_config("inference"))
    assert {name: value for name, value in ours.items() if name not in OF_ITS_OWN} == theirs
    assert set(ours) - set(theirs) == OF_ITS_OWN


def test_the_rungs_differ_in_the_rung_alone():
    texts = {rung: (REPOSITORY / f"token_stream_{rung}" / "config.pbtxt").read_text(encoding="utf-8") for rung in RUNGS}
    plain = {
        text.replace(f'"token_stream_{rung}"', "NAME").replace(f'string_value: "{rung}"', "RUNG")
        for rung, text in texts.items()
    }
    assert len(set(texts.values())) == 4 > len(plain) == 1


def test_post_processing_promises_what_the_python_node_promises():
    ours, theirs = read_config("postprocess_cpp", REPOSITORY), read_config("postprocess")
    assert contract(ours) == contract(theirs)
    assert ours.backend == "token_text"
    assert parameters(ours) == parameters(theirs) | {"tokens": "token_bytes.safetensors"}


@pytest.mark.parametrize("model", [*NODES, "postprocess_cpp"])
def test_there_is_one_instance_which_needs_no_gpu(model):
    (group,) = read_config(model, REPOSITORY).instance_group
    assert group.count == 1
    assert group.kind != group.KIND_GPU


@pytest.mark.parametrize("model", [*NODES, "postprocess_cpp"])
def test_links_lead_to_the_files_that_the_python_nodes_read(model):
    named = parameters(read_config(model, REPOSITORY))
    for parameter, node in (("weights", "inference"), ("tokens", "postprocess")):
        if parameter in named:
            path = REPOSITORY / model / named[parameter]
            assert path.is_symlink()
            assert not path.readlink().is_absolute()
            assert path.resolve() == (MODEL_REPOSITORY / node / path.name).resolve()
            assert path.stat().st_size > 100_000


def both(folder: Path) -> Path:
    """All models in one repository, as Triton sees them."""
    for repository in (MODEL_REPOSITORY, REPOSITORY):
        for model in repository.glob("*/config.pbtxt"):
            shutil.copytree(model.parent, folder / model.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def edges(ensemble: str, folder: Path) -> set[Edge]:
    """The edges of an ensemble, each C++ node under the name of the Python one."""
    python = dict.fromkeys(NODES, "inference") | {"postprocess_cpp": "postprocess"}
    return {
        replace(
            edge,
            producer=python.get(edge.producer, edge.producer),
            consumer=python.get(edge.consumer, edge.consumer),
        )
        for edge in read_edges(ensemble, folder)
    }


def of_cpp(finding: Finding) -> bool:
    return finding.place.file.partition("/")[0] in MODELS


def test_the_contract_check_finds_nothing_in_them_that_it_does_not_find_in_the_python_ones(tmp_path):
    """Both repositories in one folder: of open edges it warns in both, of errors it knows none."""
    found = check(read_repository(both(tmp_path)))
    assert [finding for finding in found if finding.severity == "error"] == []
    ours = {finding.rule for finding in found if finding.place.ensemble in ENSEMBLES or of_cpp(finding)}
    assert "open-decoupled-edge" in ours
    theirs = {finding.rule for finding in found if finding.place.ensemble == "ensemble_latest"}
    assert ours <= theirs


def test_the_ensembles_have_the_edges_of_the_python_ones(tmp_path):
    folder = both(tmp_path)
    for rung in RUNGS:
        assert edges(f"ensemble_cpp_{rung}", folder) == edges(f"ensemble_{rung}", folder)
    assert edges("ensemble_cpp_text", folder) == edges("ensemble_latest", folder)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_an_ensemble_promises_what_the_python_one_promises_and_runs_its_own_rung(ensemble):
    rung = ensemble.removeprefix("ensemble_cpp_").replace("text", "latest")
    ours = read_config(ensemble, REPOSITORY)
    assert contract(ours) == contract(read_config(f"ensemble_{rung}"))
    last = "postprocess_cpp" if ensemble == "ensemble_cpp_text" else "postprocess"
    steps = [step.model_name for step in ours.ensemble_scheduling.step]
    assert steps == ["preprocess", f"token_stream_{rung}", last]
    assert {step.model_version for step in ours.ensemble_scheduling.step} == {-1}
