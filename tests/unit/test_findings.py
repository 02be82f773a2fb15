"""What the check finds in small repositories, each a sound one with one thing changed. No server.

That a real Triton refuses what is called an error here is tested in tests/server/test_contract_rules.py.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from lab_utils import contract
from lab_utils.contract import read_repository
from lab_utils.findings import (
    ERROR,
    NOTE,
    SEVERITIES,
    WARNING,
    Finding,
    check,
    findings_table,
    report,
    summary,
    to_json,
)
from lab_utils.server import MODEL_REPOSITORY

DECOUPLED = "model_transaction_policy { decoupled: true }\n"
ONE = "instance_group [ { kind: KIND_CPU count: 1 } ]\n"


def tensor(name: str, dims: str = "4", dtype: str = "FP32", more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{dtype} dims: [ {dims} ] {more} }}'


IN, OUT, X, Y = (tensor(name) for name in ("IN", "OUT", "X", "Y"))


def model(inputs: str = IN, outputs: str = OUT, more: str = "", backend: str = "onnxruntime") -> str:
    return f'backend: "{backend}"\ninput [ {inputs} ]\noutput [ {outputs} ]\n{more}'


def step(name: str, inputs: dict[str, str], outputs: dict[str, str], version: int = -1) -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return f'{{ model_name: "{name}" model_version: {version} {" ".join(maps)} }}'


def ensemble(*steps: str, inputs: str = X, outputs: str = Y, more: str = "") -> str:
    wiring = f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}"
    return f'platform: "ensemble"\ninput [ {inputs} ]\noutput [ {outputs} ]\n{wiring}\n{more}'


FIRST, SECOND = step("a", {"IN": "X"}, {"OUT": "M"}), step("b", {"IN": "M"}, {"OUT": "Y"})
SOUND = {"a": model(), "b": model(), "chain": ensemble(FIRST, SECOND)}


def write(folder: Path, configs: Mapping[str, str]) -> Path:
    for name, config in configs.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
    return folder


def python(folder: Path, name: str, source: str = "class TritonPythonModel: ...") -> None:
    (folder / name / "1" / "model.py").write_text(source)


def found(folder: Path, configs: Mapping[str, str]) -> list[Finding]:
    return check(read_repository(write(folder, SOUND | dict(configs))))


def places(findings: list[Finding]) -> list[tuple[str, str, str, str]]:
    return [(one.rule, one.place.file, one.place.step, one.place.tensor) for one in findings]


def test_a_sound_repository_has_no_findings(tmp_path):
    assert found(tmp_path, {}) == []


CHAIN, A = "chain/config.pbtxt", "a/config.pbtxt"
ERRORS = {
    "unreadable": ({"c": "input ["}, ("config-unreadable", "c/config.pbtxt", "", "")),
    "nested too deep": ({"c": "x { " * 3000 + "} " * 3000}, ("config-unreadable", "c/config.pbtxt", "", "")),
    "misspelt": ({"a": "max_bath_size: 4\n" + model()}, ("unknown-field", A, "", "")),
    "misspelt inside": (
        {"a": model(more="dynamic_batching { prefered_batch_size: [ 4 ] }")},
        ("unknown-field", A, "", ""),
    ),
    "template": ({"c": "max_batch_size: ${n}"}, ("config-unreadable", "c/config.pbtxt", "", "")),
    "other name": ({"a": 'name: "z"\n' + model()}, ("config-name", A, "", "")),
    "no backend": ({"c": 'platform: "custom"'}, ("no-backend", "c/config.pbtxt", "", "")),
    "nothing named": ({"c": "max_batch_size: 4"}, ("no-backend", "c/config.pbtxt", "", "")),
    "policy": (
        {"c": model(more="version_policy { specific { versions: [ 2 ] } }")},
        ("no-version", "c/config.pbtxt", "", ""),
    ),
    "dim of 0": ({"c": model(tensor("IN", "0"))}, ("bad-dims", "c/config.pbtxt", "", "IN")),
    "reshape": (
        {"c": model(tensor("IN", "4", more="reshape { shape: [ 2, 3 ] }"))},
        ("bad-reshape", "c/config.pbtxt", "", "IN"),
    ),
    "reshape of open dims": (
        {"c": model(tensor("IN", "2, -1", more="reshape { shape: [ -1, 2 ] }"))},
        ("bad-reshape", "c/config.pbtxt", "", "IN"),
    ),
    "reshape to a scalar": (
        {"c": model(tensor("IN", "1", more="reshape { shape: [ ] }"))},
        ("bad-reshape", "c/config.pbtxt", "", "IN"),
    ),
    "preferred batch": (
        {"c": model(more="max_batch_size: 2 dynamic_batching { preferred_batch_size: [ 4 ] }")},
        ("model-setting", "c/config.pbtxt", "", ""),
    ),
    "negative batch": ({"c": model(more="max_batch_size: -1")}, ("model-setting", "c/config.pbtxt", "", "")),
    "labels": (
        {"c": model(outputs=tensor("OUT", more='label_filename: "labels.txt"'))},
        ("label-file", "c/config.pbtxt", "", "OUT"),
    ),
    "platform": ({"chain": SOUND["chain"].replace('"ensemble"', '"x"')}, ("ensemble-setting", CHAIN, "", "")),
    "backend": ({"chain": SOUND["chain"] + 'backend: "python"'}, ("ensemble-setting", CHAIN, "", "")),
    "instances": ({"chain": SOUND["chain"] + "instance_group [ { } ]"}, ("ensemble-setting", CHAIN, "", "")),
    "no dtype": (
        {"chain": SOUND["chain"].replace(Y, '{ name: "Y" dims: [ 4 ] }')},
        ("incomplete-tensor", CHAIN, "", "Y"),
    ),
    "no steps": ({"chain": 'platform: "ensemble"'}, ("step-incomplete", CHAIN, "", "")),
    "no input_map": (
        {"chain": ensemble(FIRST, SECOND, step("a", {}, {"OUT": "Z"}), outputs=f"{Y}, {tensor('Z')}")},
        ("step-incomplete", CHAIN, "3 (a)", ""),
    ),
    "missing model": (
        {"chain": ensemble(FIRST, SECOND.replace('"b"', '"c"'))},
        ("missing-model", CHAIN, "2 (c)", ""),
    ),
    "version": (
        {"chain": ensemble(FIRST, SECOND.replace("-1", "2"))},
        ("version-not-served", CHAIN, "2 (b)", ""),
    ),
    "version left out": (
        {"chain": ensemble(FIRST, SECOND.replace("model_version: -1", ""))},
        ("version-not-served", CHAIN, "2 (b)", ""),
    ),
    "batch size": (
        {name: config + f"max_batch_size: {8 if name == 'chain' else 4}" for name, config in SOUND.items()},
        ("batch-size", CHAIN, "1 (a)", ""),
    ),
    "unknown input": (
        {"chain": ensemble(step("a", {"IN": "X", "NO": "X"}, {"OUT": "M"}), SECOND)},
        ("unknown-input", CHAIN, "1 (a)", "NO"),
    ),
    "unknown output": (
        {"chain": ensemble(step("a", {"IN": "X"}, {"OUT": "M", "NO": "N"}), SECOND, outputs=f"{Y}, {tensor('N')}")},
        ("unknown-output", CHAIN, "1 (a)", "NO"),
    ),
    "unmapped input": ({"a": model(f"{IN}, {tensor('IN2')}")}, ("unmapped-input", CHAIN, "1 (a)", "IN2")),
    "input from nowhere": (
        {"chain": ensemble(FIRST, step("b", {"IN": "N"}, {"OUT": "Y"}), outputs=f"{Y}, {tensor('M')}")},
        ("no-producer", CHAIN, "2 (b)", "N"),
    ),
    "output from nowhere": (
        {"chain": ensemble(FIRST, SECOND, outputs=f"{Y}, {tensor('Z')}")},
        ("no-producer", CHAIN, "", "Z"),
    ),
    "produced twice": ({"chain": ensemble(FIRST, FIRST, SECOND)}, ("produced-twice", CHAIN, "", "M")),
    "unused input": (
        {"chain": ensemble(FIRST, SECOND, inputs=f"{X}, {tensor('Z')}")},
        ("unused-input", CHAIN, "", "Z"),
    ),
    "unused tensor": (
        {"chain": ensemble(FIRST, SECOND, step("a", {"IN": "X"}, {"OUT": "Z"}))},
        ("unused-tensor", CHAIN, "", "Z"),
    ),
    "dtype": ({"b": model(tensor("IN", dtype="INT8"))}, ("dtype-mismatch", CHAIN, "2 (b)", "M")),
    "dims": ({"b": model(tensor("IN", "5"))}, ("dims-mismatch", CHAIN, "2 (b)", "M")),
    "number of dims": ({"b": model(tensor("IN", "-1, 4"))}, ("dims-mismatch", CHAIN, "2 (b)", "M")),
    "dims of the ensemble": (
        {"chain": ensemble(FIRST, SECOND, outputs=tensor("Y", "5"))},
        ("dims-mismatch", CHAIN, "2 (b)", "Y"),
    ),
    "reshape of the ensemble": (
        {"chain": ensemble(FIRST, SECOND, inputs=tensor("X", more="reshape { shape: [ 2, 2 ] }"))},
        ("dims-mismatch", CHAIN, "1 (a)", "X"),
    ),
    "whole shape for a batch": (
        {"a": model(more="max_batch_size: 8"), "b": model(tensor("IN", "5, 5"))},
        ("dims-mismatch", CHAIN, "2 (b)", "M"),
    ),
}


@pytest.mark.parametrize(("changed", "expected"), ERRORS.values(), ids=ERRORS)
def test_one_fault_is_one_error(tmp_path, changed, expected):
    errors = [one for one in found(tmp_path, changed) if one.severity == ERROR]
    assert expected in places(errors)
    assert {one.rule for one in errors} == {expected[0]}, report(errors)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": model(f"{IN}, {tensor('IN2', more='optional: true')}")},
        {"b": model(tensor("IN", "-1"))},
        {"a": model(more="max_batch_size: 8"), "b": model(tensor("IN", "-1, 4"))},
        {name: config + "max_batch_size: 8" for name, config in SOUND.items()},
        {"a": model(outputs=OUT.replace("dims: [ 4 ]", ""))},
        {"a": model(outputs=OUT.replace("data_type: TYPE_FP32", ""))},
        {"chain": ensemble(FIRST, SECOND, inputs=tensor("X", "2, 2", more="reshape { shape: [ 4 ] }"))},
        {"chain": ensemble(SECOND, FIRST)},
        {"chain": ensemble(FIRST, SECOND.replace("-1", "1"))},
        {"c": model(tensor("IN", "1", more="reshape { shape: [ ] }"), more="max_batch_size: 1")},
        {"c": model(tensor("IN", "2, -1, 6", more="reshape { shape: [ 2, -1, 2, 3 ] }"))},
        {"c": model(more="version_policy { specific { versions: [ 1, 2 ] } }")},
        {"c": model(IN.replace("TYPE_FP32", "99"))},
    ],
)
def test_what_triton_accepts_has_no_error(tmp_path, changed):
    assert [one for one in found(tmp_path, changed) if one.severity == ERROR] == []


# --- folders ----------------------------------------------------------------------------------------------------------


def test_an_ensemble_without_a_version_folder(tmp_path):
    (write(tmp_path, SOUND) / "chain" / "1").rmdir()
    (one,) = check(read_repository(tmp_path))
    assert (one.rule, one.place.file) == ("no-version", CHAIN)
    assert "git keeps no empty folder" in one.change


@pytest.mark.parametrize(("file", "severity"), [("model.onnx", WARNING), ("weights.bin", ERROR)])
def test_a_config_in_the_version_folder(tmp_path, file, severity):
    folder = write(tmp_path, SOUND) / "b"
    (folder / "config.pbtxt").rename(folder / "1" / "config.pbtxt")
    (folder / "1" / file).touch()
    misplaced = [one for one in check(read_repository(tmp_path)) if one.rule == "config-misplaced"]
    assert [(one.severity, one.place.file) for one in misplaced] == [(severity, "b/1/config.pbtxt")]


def test_a_config_beside_the_models(tmp_path):
    (write(tmp_path, SOUND) / "config.pbtxt").write_text(model())
    assert places(check(read_repository(tmp_path))) == [("config-misplaced", "config.pbtxt", "", "")]


def test_a_model_without_config_that_triton_can_complete_is_opaque(tmp_path):
    folder = write(tmp_path, SOUND) / "b"
    (folder / "config.pbtxt").unlink()
    (folder / "1" / "model.onnx").touch()
    (one,) = check(read_repository(tmp_path))
    assert (one.severity, one.rule, one.place.step) == (NOTE, "opaque-step", "2 (b)")


def test_a_model_without_config_and_without_a_known_file(tmp_path):
    (write(tmp_path, SOUND) / "b" / "config.pbtxt").unlink()
    errors = [one for one in check(read_repository(tmp_path)) if one.severity == ERROR]
    assert places(errors) == [("no-config", "b/config.pbtxt", "", "")]


def test_configs_to_choose_from_are_told(tmp_path):
    folder = write(tmp_path, SOUND) / "b"
    (folder / "1" / "model.onnx").touch()
    (folder / "configs").mkdir()
    (folder / "config.pbtxt").rename(folder / "configs" / "small.pbtxt")
    assert "custom-config" in {one.rule for one in check(read_repository(tmp_path))}


def test_folders_that_are_no_models(tmp_path):
    for name in ("docs", ".ipynb_checkpoints"):
        (write(tmp_path, SOUND if name == "docs" else {}) / name).mkdir()
    (one,) = check(read_repository(tmp_path))
    assert (one.severity, one.rule) == (WARNING, "not-a-model")
    assert one.message.startswith(".ipynb_checkpoints, docs:")


def test_a_field_of_another_triton_is_left_out_and_named(tmp_path):
    (one,) = found(tmp_path, {"a": "\nof_the_future { size: 4 }\n" + model()})
    assert (one.severity, one.rule, one.place.file) == (WARNING, "unknown-field", A)
    assert "of_the_future (line 2)" in one.message


def test_what_a_misspelt_field_was_meant_to_be_is_said(tmp_path):
    (one,) = found(tmp_path, {"a": model(more="dynamic_batching { prefered_batch_size: [ 4 ] }")})
    assert one.message.endswith("prefered_batch_size (line 4); did you mean preferred_batch_size?")
    assert one.change == "write preferred_batch_size"


def test_a_template_is_told_from_a_mistake(tmp_path):
    both = found(tmp_path, {"c": "max_batch_size: ${n}", "d": "input ["})
    assert [("template" in one.change, one.place.file) for one in both] == [
        (True, "c/config.pbtxt"),
        (False, "d/config.pbtxt"),
    ]


def test_the_folder_that_a_missing_model_lies_in_is_named(tmp_path):
    both = found(tmp_path, {"c": 'name: "b2"\n' + model(), "chain": ensemble(FIRST, SECOND.replace('"b"', '"b2"'))})
    (one,) = (each for each in both if each.rule == "missing-model")
    assert "rename the folder 'c'" in one.change


# --- more than one ensemble -------------------------------------------------------------------------------------------

OUTER = ensemble(step("chain", {"X": "P"}, {"Y": "Q"}), inputs=tensor("P"), outputs=tensor("Q"))


def test_ensembles_that_contain_one_another(tmp_path):
    inner = ensemble(step("outer", {"P": "X"}, {"Q": "Y"}))
    rings = [one for one in found(tmp_path, {"outer": OUTER, "chain": inner}) if one.rule == "ensemble-cycle"]
    assert len(rings) == 1
    assert "chain" in rings[0].message
    assert "outer" in rings[0].message


def test_steps_that_wait_for_each_other(tmp_path):
    two = model(f"{IN}, {tensor('IN2')}")
    ring = ensemble(step("a", {"IN": "X", "IN2": "Y"}, {"OUT": "M"}), SECOND)
    (one,) = found(tmp_path, {"a": two, "chain": ring})
    assert one.rule == "tensor-cycle"
    assert "a -> b" in one.message or "b -> a" in one.message


PAIR = {"pair": model(f"{IN}, {tensor('IN2')}")}
STREAM = {"a": model(more=DECOUPLED)}
MIXED = {
    "step": ensemble(FIRST, step("pair", {"IN": "M", "IN2": "X"}, {"OUT": "Y"})),
    "outputs": ensemble(FIRST, step("b", {"IN": "X"}, {"OUT": "Y"}), outputs=f"{Y}, {tensor('M')}"),
    "two streams": ensemble(
        FIRST, step("a", {"IN": "X"}, {"OUT": "N"}), step("pair", {"IN": "M", "IN2": "N"}, {"OUT": "Y"})
    ),
    "stream after stream": ensemble(
        FIRST, step("a", {"IN": "M"}, {"OUT": "N"}), step("pair", {"IN": "M", "IN2": "N"}, {"OUT": "Y"})
    ),
    "nested": ensemble(step("inner", {"X": "X"}, {"Y": "M"}), step("pair", {"IN": "M", "IN2": "X"}, {"OUT": "Y"})),
}


@pytest.mark.parametrize("wiring", MIXED.values(), ids=MIXED)
def test_tensors_from_before_and_after_a_decoupled_step_do_not_mix(tmp_path, wiring):
    errors = [
        one
        for one in found(tmp_path, PAIR | STREAM | {"inner": SOUND["chain"], "chain": wiring})
        if one.severity == ERROR
    ]
    assert [one.rule for one in errors] == ["mixed-decoupled"]
    assert "the decoupled " in errors[0].message


def test_without_a_decoupled_step_they_do(tmp_path):
    assert found(tmp_path, PAIR | {"chain": MIXED["step"]}) == []


# --- beyond what Triton checks ----------------------------------------------------------------------------------------


def graded(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.severity, one.rule) for one in findings]


def streaming(consumer: str, produced: str = "-1", **more: str) -> dict[str, str]:
    return {
        "a": model(outputs=tensor("OUT", produced), more=DECOUPLED + ONE, backend="python"),
        "b": model(tensor("IN", consumer), more=ONE),
        **more,
    }


@pytest.mark.parametrize(
    ("produced", "consumer", "expected"),
    [
        ("-1", "-1", [(WARNING, "open-decoupled-edge")]),
        ("4", "-1", [(WARNING, "open-edge")]),
        ("-1", "4", []),
        ("4", "4", []),
    ],
)
def test_an_edge_after_a_decoupled_step_is_best_closed(tmp_path, produced, consumer, expected):
    both = found(tmp_path, streaming(consumer, produced))
    assert graded(both) == expected
    assert all((one.place.file, one.place.tensor) == ("b/config.pbtxt", "M") for one in both)


def test_the_batch_dimension_is_not_open(tmp_path):
    batching = {name: config + "max_batch_size: 4\n" for name, config in (SOUND | streaming("4")).items()}
    assert found(tmp_path, batching) == []


def test_an_open_edge_that_travels_once_is_a_note(tmp_path):
    assert graded(found(tmp_path, {"b": model(tensor("IN", "-1"))})) == [(NOTE, "open-edge")]


def test_open_tensors_of_one_step_are_one_finding(tmp_path):
    first = step("a", {"IN": "X"}, {"OUT": "M", "OUT2": "N"})
    changed = {
        "a": model(outputs=f"{tensor('OUT', '-1')}, {tensor('OUT2', '-1')}", more=DECOUPLED),
        "b": model(f"{tensor('IN', '-1')}, {tensor('IN2', '-1')}", more=ONE),
        "chain": ensemble(first, step("b", {"IN": "M", "IN2": "N"}, {"OUT": "Y"})),
    }
    (one,) = found(tmp_path, changed)
    assert (one.rule, one.place.tensor) == ("open-decoupled-edge", "M, N")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (ONE, []),
        ("instance_group [ { kind: KIND_CPU count: 4 } ]", [(WARNING, "order-lost")]),
        ("instance_group [ { kind: KIND_CPU } ]", [(WARNING, "order-lost")]),  # ONNX: 2 on a CPU
        ("instance_group [ { kind: KIND_CPU count: 1 }, { kind: KIND_CPU count: 1 } ]", [(WARNING, "order-lost")]),
        ("instance_group [ { kind: KIND_GPU count: 1 gpus: [ 0, 1 ] } ]", [(WARNING, "order-lost")]),
        ("instance_group [ { kind: KIND_GPU count: 1 gpus: [ 0 ] } ]", []),
        ("instance_group [ { kind: KIND_MODEL count: 1 } ]", []),
        ("instance_group [ { kind: KIND_GPU count: 1 } ]", [(NOTE, "order-lost")]),
        ("", [(NOTE, "order-lost")]),
        ("instance_group [ { count: 4 } ] dynamic_batching { preserve_ordering: true }", []),
        ("instance_group [ { count: 4 } ] sequence_batching { }", []),
        ("instance_group [ { count: 4 } ] dynamic_batching { }", [(WARNING, "order-lost")]),
    ],
)
def test_several_instances_after_a_decoupled_step_lose_the_order(tmp_path, setting, expected):
    assert graded(found(tmp_path, STREAM | {"b": model(more=setting)})) == expected


def test_several_instances_elsewhere_do_not(tmp_path):
    several = "instance_group [ { kind: KIND_CPU count: 4 } ]"
    assert found(tmp_path, {"b": model(more=several)}) == []
    assert found(tmp_path / "at the stream itself", {"a": model(more=DECOUPLED + several), "b": model(more=ONE)}) == []


LIMIT = "dynamic_batching { default_queue_policy { max_queue_size: 8 } }\n"
PRIORITY = (
    "max_batch_size: 0 dynamic_batching { priority_levels: 2 default_priority_level: 1 "
    "priority_queue_policy { key: 2 value { max_queue_size: 8 } } }\n"
)


@pytest.mark.parametrize("limit", [LIMIT, PRIORITY])
def test_a_full_queue_after_a_decoupled_step_hangs(tmp_path, limit):
    assert graded(found(tmp_path / "often", STREAM | {"b": model(more=ONE + limit)})) == [(WARNING, "queue-limit")]
    assert graded(found(tmp_path / "once", {"b": model(more=ONE + limit)})) == [(NOTE, "queue-limit")]
    assert found(tmp_path / "no ensemble", {"c": model(more=ONE + limit)}) == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_nested_ensemble_is_called_once_for_each_response_too(tmp_path, depth):
    several = {"s": model(more=DECOUPLED), "b": model(more="instance_group [ { kind: KIND_CPU count: 2 } ]")}
    names = ["chain", *(f"around_{number}" for number in range(1, depth))]
    around = {outer: ensemble(step(inner, {"X": "X"}, {"Y": "Y"})) for inner, outer in pairwise(names)}
    inner = step(names[-1], {"X": "R"}, {"Y": "Q"})
    outer = ensemble(step("s", {"IN": "P"}, {"OUT": "R"}), inner, inputs=tensor("P"), outputs=tensor("Q"))
    both = found(tmp_path, {"a": model(more=ONE), "outer": outer} | several | around)
    assert [(one.rule, one.place.ensemble, one.place.step) for one in both] == [("order-lost", "chain", "2 (b)")]
    assert "of outer" in both[0].message


def test_a_ring_of_ensembles_after_a_decoupled_step_comes_to_an_end(tmp_path):
    ring = {"one": ensemble(step("two", {"X": "X"}, {"Y": "Y"})), "two": ensemble(step("one", {"X": "X"}, {"Y": "Y"}))}
    chain = ensemble(FIRST, step("one", {"X": "M"}, {"Y": "Y"}))
    assert [one.rule for one in found(tmp_path, STREAM | ring | {"chain": chain})] == ["ensemble-cycle"]


def test_fixed_dims_that_a_python_model_promises_to_the_client(tmp_path):
    (one,) = found(tmp_path, {"b": model(backend="python")})
    assert (one.severity, one.rule, one.place.step) == (NOTE, "unenforced-output", "2 (b)")
    assert "OUT" in one.message


def test_a_promise_inside_a_nested_ensemble_is_not_made_to_the_client(tmp_path):
    assert found(tmp_path, {"b": model(backend="python"), "outer": OUTER}) == []


def test_a_conflict_that_triton_does_not_see(tmp_path):
    hidden = ensemble(FIRST, SECOND, outputs=f"{Y}, {tensor('M', '-1')}")
    both = found(tmp_path, {"b": model(tensor("IN", "5")), "chain": hidden})
    assert graded(both) == [(WARNING, "dims-conflict")]
    assert both[0].place.step == "2 (b)"


@pytest.mark.parametrize(
    ("step_size", "size", "expected"), [(8, 8, [(WARNING, "batch-of-one")]), (1, 1, []), (8, 1, []), (8, 0, [])]
)
def test_a_batch_that_only_one_fits_through(tmp_path, step_size, size, expected):
    changed = {"a": SOUND["a"] + f"max_batch_size: {step_size}", "chain": SOUND["chain"] + f"max_batch_size: {size}"}
    assert graded(found(tmp_path, changed)) == expected


@pytest.mark.parametrize(("more", "expected"), [("", [(WARNING, "optional-input")]), ("optional: true", [])])
def test_what_a_client_may_leave_out_a_step_must_not_need(tmp_path, more, expected):
    optional = ensemble(FIRST, SECOND, inputs=tensor("X", more="optional: true"))
    assert graded(found(tmp_path, {"a": model(tensor("IN", more=more)), "chain": optional})) == expected


def test_a_python_model_that_calls_others_is_opaque(tmp_path):
    write(tmp_path, SOUND | {"a": model(backend="python")})
    python(tmp_path, "a", "request = pb_utils.InferenceRequest(model_name='x')")
    (one,) = check(read_repository(tmp_path))
    assert (one.rule, one.place.step) == ("opaque-step", "1 (a)")
    assert "BLS" in one.message


COMPLETES = "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config): ..."


@pytest.mark.parametrize(("source", "rules"), [(COMPLETES, {"opaque-step"}), ("", {"unknown-output", "no-producer"})])
def test_a_python_model_may_complete_its_config_only_by_code(tmp_path, source, rules):
    wiring = ensemble(step("a", {"IN": "X"}, {"MORE": "M"}), SECOND)
    write(tmp_path, SOUND | {"a": model(backend="python"), "chain": wiring})
    python(tmp_path, "a", source or "class TritonPythonModel: ...")
    assert {one.rule for one in check(read_repository(tmp_path))} <= rules | {"unenforced-output"}
    assert rules & {one.rule for one in check(read_repository(tmp_path))}


def test_a_python_model_that_does_not_complete_its_config(tmp_path):
    write(tmp_path, {"a": model(IN.replace("dims: [ 4 ]", ""), backend="python")})
    python(tmp_path, "a")
    assert places(check(read_repository(tmp_path))) == [("incomplete-tensor", A, "", "IN")]
    python(tmp_path, "a", COMPLETES)
    assert check(read_repository(tmp_path)) == []


def test_of_two_tensors_with_one_name_the_first_counts(tmp_path):
    twice = ensemble(FIRST, SECOND, outputs=f"{Y}, {tensor('Y', '5', 'INT8')}")
    (one,) = found(tmp_path, {"chain": twice})
    assert (one.severity, one.rule, one.place.tensor) == (WARNING, "declared-twice", "Y")


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_labs_own_repository():
    both = check(read_repository(MODEL_REPOSITORY))
    grave = [(one.rule, one.place.ensemble, one.place.tensor) for one in both if one.severity != NOTE]
    names = sorted(path.parent.name for path in MODEL_REPOSITORY.glob("ensemble_*/config.pbtxt"))
    edges = [("open-decoupled-edge", name, "TOKEN_IDS") for name in names if not name.endswith("strict")]
    assert sorted(grave) == sorted([*edges, ("order-lost", "ensemble_parallel", "")])
    assert len(edges) == 9
    assert {one.rule for one in both if one.severity == NOTE} == {"unenforced-output"}


def test_the_gravest_come_first(tmp_path):
    both = found(tmp_path, streaming("-1", chain=ensemble(FIRST, SECOND, inputs=f"{X}, {tensor('Z')}")))
    assert [SEVERITIES.index(one.severity) for one in both] == sorted(SEVERITIES.index(one.severity) for one in both)
    assert both[0].severity == ERROR


def test_one_ensemble_alone_with_all_that_is_in_it(tmp_path):
    broken = {"a": 'name: "z"\n' + model(), "other": ensemble(FIRST), "c": "input ["}
    write(tmp_path, SOUND | broken | {"outer": OUTER})
    repository = read_repository(tmp_path)
    assert {one.rule for one in check(repository, "outer")} == {"config-name"}
    assert {one.place.file.partition("/")[0] for one in check(repository)} == {"a", "other", "c"}
    with pytest.raises(ValueError, match=r"no ensemble 'a'; .*chain, other, outer"):
        check(repository, "a")


def test_each_config_is_parsed_once(tmp_path, monkeypatch):
    parsed = []
    parse = contract.text_format.Parse
    monkeypatch.setattr(
        contract.text_format, "Parse", lambda text, *rest, **more: parsed.append(text) or parse(text, *rest, **more)
    )
    many = {f"chain_{number}": SOUND["chain"] for number in range(20)}
    repository = read_repository(write(tmp_path, SOUND | many))
    to_json(repository, check(repository))
    assert len(parsed) == len(SOUND | many)


def test_findings_as_text_and_as_json(tmp_path):
    both = found(tmp_path, {"b": model(tensor("IN", "5")), "chain": SOUND["chain"] + "instance_group [ { } ]"})
    assert summary(both) == "2 errors, 0 warnings, 0 notes"
    assert "dims-mismatch" in findings_table(both)
    assert findings_table([]) == "no findings"
    text = report(both)
    assert all(part in text for one in both for part in (one.message, one.why, one.change, one.place.file))
    document = json.loads(to_json(read_repository(tmp_path), both))
    assert document["counts"] == {"error": 2, "warning": 0, "note": 0}
    assert [edge["tensor"] for edge in document["ensembles"][0]["edges"]] == ["X", "M", "Y"]
    assert document["ensembles"][0]["nodes"][1]["model"] == "b"
    one = next(one for one in document["findings"] if one["rule"] == "dims-mismatch")
    assert one["place"] == {"file": CHAIN, "ensemble": "chain", "step": "2 (b)", "tensor": "M"}
