"""What the contract check calls an error is refused by a real Triton at load; its valid twin by neither of them.

All models lie in one repository and are loaded one after the other by one server. The leaves are Python models that
send zeros of the dims that their config promises.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from lab_utils.contract import read_repository
from lab_utils.errors import ServerError
from lab_utils.findings import ERROR, Finding, check
from lab_utils.server import TritonServer, start_server

MODEL = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.outputs, self.batches = config["output"], config["max_batch_size"] > 0

    def execute(self, requests):
        return [self.answer(request.inputs()[0].as_numpy().shape[0]) for request in requests]

    def answer(self, size):
        tensors = []
        for each in self.outputs:
            dims = [size] * self.batches + [size if int(dim) < 0 else int(dim) for dim in each["dims"]]
            tensors.append(pb_utils.Tensor(each["name"], np.zeros(dims, np.float32)))
        return pb_utils.InferenceResponse(tensors)
"""
DECOUPLED = "model_transaction_policy { decoupled: true }"


def tensor(name: str, dims: str = "[ 4 ]", dtype: str = "FP32", more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{dtype} dims: {dims} {more} }}'


def tensors(kind: str, *each: str) -> str:
    return f"{kind} [ {', '.join(each)} ]\n"


def leaf(inputs: list[str], outputs: list[str], more: str = "") -> str:
    return f'backend: "python"\n{tensors("input", *inputs)}{tensors("output", *outputs)}{more}\n'


def step(model: str, inputs: dict[str, str], outputs: dict[str, str], version: str = "model_version: -1") -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return f'{{ model_name: "{model}" {version} {" ".join(maps)} }}'


X, Y = tensor("X"), tensor("Y")


def ensemble(*steps: str, inputs: Sequence[str] = (X,), outputs: Sequence[str] = (Y,), more: str = "") -> str:
    wiring = f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}\n"
    return f'platform: "ensemble"\n{tensors("input", *inputs)}{tensors("output", *outputs)}{wiring}{more}\n'


def one(model: str, **more: object) -> str:
    """An ensemble of one step, from X to Y."""
    return ensemble(step(model, {"IN": "X"}, {"OUT": "Y"}), **more)


def two(first: str, second: str, **more: object) -> str:
    """An ensemble of two steps, from X over M to Y."""
    return ensemble(step(first, {"IN": "X"}, {"OUT": "M"}), step(second, {"IN": "M"}, {"OUT": "Y"}), **more)


FOUR, ANY, PAIR = "[ 4 ]", "[ -1 ]", "[ -1, 4 ]"
BATCH = "max_batch_size: 8"
LEAVES = {
    "plain": leaf([tensor("IN")], [tensor("OUT")]),
    "open": leaf([tensor("IN", ANY)], [tensor("OUT", ANY)]),
    "five": leaf([tensor("IN", "[ 5 ]")], [tensor("OUT", "[ 5 ]")]),
    "pairs": leaf([tensor("IN", PAIR)], [tensor("OUT", PAIR)]),
    "whole": leaf([tensor("IN", dtype="INT32")], [tensor("OUT", dtype="INT32")]),
    "batching": leaf([tensor("IN")], [tensor("OUT")], BATCH),
    "pair_to_one": leaf([tensor("IN"), tensor("IN2", more="optional: true")], [tensor("OUT")]),
    "both": leaf([tensor("IN"), tensor("IN2")], [tensor("OUT")]),
    "fork": leaf([tensor("IN")], [tensor("OUT"), tensor("OUT2")]),
    "twofold": leaf([tensor("IN")], [tensor("OUT"), tensor("OUT")]),
    "stream": leaf([tensor("IN")], [tensor("OUT")], DECOUPLED),
}
A_TO_M = step("plain", {"IN": "X"}, {"OUT": "M"})
BOTH = step("both", {"IN": "M", "IN2": "S"}, {"OUT": "Y"})
STREAM = step("stream", {"IN": "X"}, {"OUT": "S"})
INNER = "good_two"

GOOD = {
    INNER: two("plain", "plain"),
    "good_open_dims": two("plain", "open"),
    "good_optional_left_out": one("pair_to_one"),
    "good_nested": ensemble(step(INNER, {"X": "X"}, {"Y": "M"}), step("plain", {"IN": "M"}, {"OUT": "Y"})),
    "good_pinned_version": ensemble(step("plain", {"IN": "X"}, {"OUT": "Y"}, "model_version: 1")),
    "good_reshape": one("plain", inputs=[tensor("X", "[ 2, 2 ]", more="reshape { shape: [ 4 ] }")]),
    "good_batch_dimension_written_out": two("pairs", "batching", inputs=[tensor("X", PAIR)]),
    "good_batching": one("batching", more=BATCH),
    "good_batch_of_one_taken_off": one("plain", more=BATCH),
    "good_smaller_batch": one("batching", more="max_batch_size: 4"),
    "good_after_decoupled": ensemble(STREAM, step("plain", {"IN": "S"}, {"OUT": "Y"})),
    "good_decoupled_twice": ensemble(STREAM, step("stream", {"IN": "S"}, {"OUT": "Y"})),
    "good_conflict_that_triton_does_not_see": ensemble(
        A_TO_M.replace('"M"', '"Y"'),
        step("five", {"IN": "Y"}, {"OUT": "Z"}),
        outputs=[tensor("Y", ANY), tensor("Z", "[ 5 ]")],
    ),
    "good_optional_into_required": ensemble(
        step("both", {"IN": "X", "IN2": "X2"}, {"OUT": "Y"}),
        inputs=[tensor("X"), tensor("X2", more="optional: true")],
    ),
    "good_fan_out": ensemble(
        step("fork", {"IN": "X"}, {"OUT": "M", "OUT2": "S"}), BOTH, outputs=[tensor("Y"), tensor("M")]
    ),
    "good_declared_twice": one("plain", outputs=[tensor("Y"), tensor("Y", "[ 5 ]", "INT32")]),
    "good_batching_settings": LEAVES["batching"]
    + "dynamic_batching { preferred_batch_size: [ 8 ] preserve_ordering: true priority_levels: 1 "
    "default_priority_level: 1 }",
    "good_all_versions": leaf([tensor("IN")], [tensor("OUT")], "version_policy { all { } }"),
}

BAD = {
    "unused_input": ("unused-input", one("plain", inputs=[tensor("X"), tensor("Z")])),
    "unused_tensor": ("unused-tensor", ensemble(step("fork", {"IN": "X"}, {"OUT": "Y", "OUT2": "Z"}))),
    "input_without_producer": ("no-producer", ensemble(A_TO_M, step("plain", {"IN": "Q"}, {"OUT": "Y"}))),
    "output_without_producer": ("no-producer", one("plain", outputs=[tensor("Y"), tensor("Z")])),
    "produced_twice": ("produced-twice", ensemble(A_TO_M, A_TO_M, step("plain", {"IN": "M"}, {"OUT": "Y"}))),
    "produced_twice_by_one": ("produced-twice", ensemble(step("fork", {"IN": "X"}, {"OUT": "Y", "OUT2": "Y"}))),
    "produced_twice_by_declaration": ("produced-twice", one("twofold")),
    "cached_ensemble": ("model-setting", one("stream", more="response_cache { enable: true }")),
    "tensor_cycle": (
        "tensor-cycle",
        ensemble(
            step("both", {"IN": "X", "IN2": "N"}, {"OUT": "M"}), step("fork", {"IN": "M"}, {"OUT": "N", "OUT2": "Y"})
        ),
    ),
    "feeds_itself": ("tensor-cycle", ensemble(step("both", {"IN": "X", "IN2": "Y"}, {"OUT": "Y"}))),
    "unknown_input": ("unknown-input", ensemble(step("plain", {"IN": "X", "NO": "X"}, {"OUT": "Y"}))),
    "unknown_output": ("unknown-output", ensemble(step("plain", {"IN": "X"}, {"NO": "Y"}))),
    "unmapped_input": ("unmapped-input", one("both")),
    "dtype": ("dtype-mismatch", two("plain", "whole", outputs=[tensor("Y", dtype="INT32")])),
    "dtype_of_the_ensemble": ("dtype-mismatch", one("plain", outputs=[tensor("Y", dtype="INT32")])),
    "dims": ("dims-mismatch", two("plain", "five", outputs=[tensor("Y", "[ 5 ]")])),
    "dims_count": ("dims-mismatch", two("plain", "pairs", outputs=[tensor("Y", PAIR)])),
    "dims_of_the_ensemble": ("dims-mismatch", one("plain", inputs=[tensor("X", "[ 5 ]")])),
    "dims_before_reshape": ("dims-mismatch", one("plain", inputs=[tensor("X", more="reshape { shape: [ 2, 2 ] }")])),
    "batch_into_whole_shape": ("dims-mismatch", two("batching", "five", outputs=[tensor("Y", "[ 5 ]")])),
    "batch_size": ("batch-size", one("batching", more="max_batch_size: 16")),
    "missing_model": ("missing-model", one("absent")),
    "version": ("version-not-served", ensemble(step("plain", {"IN": "X"}, {"OUT": "Y"}, "model_version: 9"))),
    "version_left_out": ("version-not-served", ensemble(step("plain", {"IN": "X"}, {"OUT": "Y"}, ""))),
    "mixed": ("mixed-decoupled", ensemble(A_TO_M, STREAM, BOTH)),
    "mixed_streams": ("mixed-decoupled", ensemble(STREAM, STREAM.replace('"S"', '"M"'), BOTH)),
    "mixed_outputs": ("mixed-decoupled", ensemble(A_TO_M, STREAM, outputs=[tensor("M"), tensor("S")])),
    "mixed_with_nested": (
        "mixed-decoupled",
        ensemble(A_TO_M, step("good_after_decoupled", {"X": "X"}, {"Y": "S"}), BOTH),
    ),
    "no_platform": ("ensemble-setting", one("plain").replace('platform: "ensemble"', "")),
    "other_platform": ("ensemble-setting", one("plain").replace('"ensemble"', '"onnxruntime_onnx"')),
    "ensemble_with_backend": ("ensemble-setting", one("plain", more='backend: "python"')),
    "ensemble_with_instances": ("ensemble-setting", one("plain", more="instance_group [ { count: 1 } ]")),
    "ensemble_with_optimization": ("ensemble-setting", one("plain", more="optimization { priority: PRIORITY_MAX }")),
    "no_steps": ("step-incomplete", ensemble()),
    "no_schedule": ("step-incomplete", 'platform: "ensemble"'),
    "no_model_name": ("step-incomplete", one("")),
    "no_input_map": ("step-incomplete", ensemble(step("plain", {}, {"OUT": "Y"}), inputs=[])),
    "no_output_map": ("step-incomplete", ensemble(step("plain", {"IN": "X"}, {}), outputs=[])),
    "no_dims": ("incomplete-tensor", one("plain", outputs=['{ name: "Y" data_type: TYPE_FP32 }'])),
    "no_dtype": ("incomplete-tensor", one("plain", outputs=['{ name: "Y" dims: [ 4 ] }'])),
    "zero_dim": ("bad-dims", leaf([tensor("IN", "[ 0 ]")], [tensor("OUT")])),
    "negative_dim": ("bad-dims", leaf([tensor("IN", "[ -2 ]")], [tensor("OUT")])),
    "reshape": ("bad-reshape", leaf([tensor("IN", more="reshape { shape: [ 5 ] }")], [tensor("OUT")])),
    "reshape_open": (
        "bad-reshape",
        leaf([tensor("IN", "[ 2, -1 ]", more="reshape { shape: [ -1, 2 ] }")], [tensor("OUT")]),
    ),
    "reshape_to_nothing": (
        "bad-reshape",
        leaf([tensor("IN", "[ 1 ]", more="reshape { shape: [ ] }")], [tensor("OUT")]),
    ),
    "other_name": ("config-name", 'name: "another"\n' + LEAVES["plain"]),
    "unreadable": ("config-unreadable", LEAVES["plain"] + "input [ {"),
    "template": ("config-unreadable", "max_batch_size: ${size}\n" + LEAVES["plain"]),
    "unknown_field": ("unknown-field", "max_bach_size: 4\n" + LEAVES["plain"]),
    "python_without_dims": ("incomplete-tensor", leaf(['{ name: "IN" data_type: TYPE_FP32 }'], [tensor("OUT")])),
    "negative_batch": ("model-setting", LEAVES["plain"] + "max_batch_size: -1"),
    "preferred_without_batch": ("model-setting", LEAVES["plain"] + "dynamic_batching { preferred_batch_size: [ 4 ] }"),
    "preferred_too_large": ("model-setting", LEAVES["batching"] + "dynamic_batching { preferred_batch_size: [ 9 ] }"),
    "priority_default": ("model-setting", LEAVES["batching"] + "dynamic_batching { priority_levels: 2 }"),
    "priority_outside": (
        "model-setting",
        LEAVES["batching"] + "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
        "priority_queue_policy { key: 3 value { max_queue_size: 1 } } }",
    ),
    "order_and_priority": (
        "model-setting",
        LEAVES["batching"]
        + "dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }",
    ),
    "order_and_delay": (
        "model-setting",
        LEAVES["batching"] + "dynamic_batching { preserve_ordering: true default_queue_policy "
        "{ timeout_action: DELAY default_timeout_microseconds: 5 } }",
    ),
    "cached_stream": ("model-setting", LEAVES["stream"] + "response_cache { enable: true }"),
    "cached_sequence": ("model-setting", LEAVES["plain"] + "sequence_batching { } response_cache { enable: true }"),
    "platform_and_backend": ("model-setting", 'platform: "onnxruntime_onnx" backend: "tensorrt"\n'),
    "labels": ("label-file", leaf([tensor("IN")], [tensor("OUT", more='label_filename: "none.txt"')])),
    "no_backend": ("no-backend", 'platform: "custom"\n'),
    "policy": ("no-version", leaf([tensor("IN")], [tensor("OUT")], "version_policy { specific { versions: [ 7 ] } }")),
    "contains_itself": ("ensemble-cycle", one("contains_itself").replace('"IN"', '"X"').replace('"OUT"', '"Y"')),
}
UNUSUAL_FOLDERS = [("ensemble_without_version", "no-version"), ("config_in_version_folder", "config-misplaced")]
# What Triton's own reason for each of these says.
REASONS = {
    "unused-input": "is not used",
    "unused-tensor": "is unused",
    "no-producer": "is not connected|is not used",
    "produced-twice": "only once|multiple outputs",
    "tensor-cycle": "is not written",
    "unknown-input": "non-existing input",
    "unknown-output": "non-existing output",
    "unmapped-input": "is not mapped",
    "dtype-mismatch": "inconsistent data type",
    "dims-mismatch": "inconsistent shape",
    "batch-size": "allows maximum batch size",
    "missing-model": "not available",
    "version-not-served": "required version",
    "mixed-decoupled": "different decoupled models",
    "ensemble-setting": "Could not determine backend|platform|should not be specified",
    "step-incomplete": "must specify '(step|model_name|input_map|output_map)'|must be set",
    "incomplete-tensor": "must specify '(dims|data_type)'",
    "model-setting": "non-negative|preferred size|priority|preserve_ordering|Response Cache|pair",
    "label-file": "failed to open text file",
    "bad-dims": "integer >= 1",
    "bad-reshape": "reshape",
    "config-name": "directory name must equal",
    "config-unreadable": "failed to read text proto",
    "config-misplaced": "failed to open text file",
    "unknown-field": "failed to read text proto",
    "no-backend": "unexpected platform type",
    "no-version": "at least one version",
    "ensemble-cycle": "circular dependency",
}


def write(repository: Path, name: str, config: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    if 'backend: "python"' in config:
        (version / "model.py").write_text(MODEL)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    bad = {name: config for name, (_, config) in BAD.items()}
    for name, config in (LEAVES | GOOD | bad).items():
        write(folder, name, config)
    write(folder, "ensemble_without_version", one("plain"))
    (folder / "ensemble_without_version" / "1").rmdir()
    write(folder, "config_in_version_folder", one("plain"))
    (folder / "config_in_version_folder" / "config.pbtxt").rename(folder / "config_in_version_folder/1/config.pbtxt")
    return folder


@pytest.fixture(scope="module")
def findings(repository: Path) -> dict[str, list[Finding]]:
    """By the folder, or the ensemble, that they are in."""
    found: dict[str, list[Finding]] = {}
    for each in check(read_repository(repository)):
        found.setdefault(each.place.ensemble or each.place.file.partition("/")[0], []).append(each)
    return found


@pytest.fixture(scope="module")
def triton(repository: Path, _nothing_left_behind: None) -> Iterator[TritonServer]:
    with start_server(["plain"], repository=repository) as running:
        yield running


@pytest.mark.parametrize("name", [*LEAVES, *GOOD])
def test_what_triton_loads_has_no_error(name, triton, findings):
    triton.load(name)
    assert [each for each in findings.get(name, []) if each.severity == ERROR] == []


@pytest.mark.parametrize(("name", "rule"), [*((name, rule) for name, (rule, _) in BAD.items()), *UNUSUAL_FOLDERS])
def test_what_triton_refuses_is_found(name, rule, triton, findings):
    before = len(triton.log)
    with pytest.raises(ServerError, match=f"load model '{name}'"):
        triton.load(name)
    reasons = [line for line in triton.log[before:].splitlines() if name in line and line.startswith("E")]
    assert any(re.search(REASONS[rule], line) for line in reasons), reasons
    assert (ERROR, rule) in {(each.severity, each.rule) for each in findings[name]}


def ask(triton: TritonServer, model: str, inputs: dict[str, tuple[int, ...]]) -> grpc.InferResult:
    tensors = [grpc.InferInput(name, list(dims), "FP32") for name, dims in inputs.items()]
    for each in tensors:
        each.set_data_from_numpy(np.zeros(each.shape(), np.float32))
    with triton.client() as client:
        return client.infer(model, tensors)


def rules(found: list[Finding]) -> set[str]:
    return {each.rule for each in found}


def test_a_conflict_that_triton_does_not_see_fails_at_the_first_request(triton, findings):
    name = "good_conflict_that_triton_does_not_see"
    assert "dims-conflict" in rules(findings[name])
    triton.load(name)
    with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'IN'.*Expected \[5\], got \[4\]"):
        ask(triton, name, {"X": (4,)})


def test_a_batch_is_taken_off_only_where_it_is_one(triton, findings):
    name = "good_batch_of_one_taken_off"
    assert "batch-of-one" in rules(findings[name])
    assert "batch-of-one" not in rules(findings.get("good_batching", []))
    triton.load(name)
    assert ask(triton, name, {"X": (1, 4)}).as_numpy("Y").shape == (1, 4)
    with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'IN'"):
        ask(triton, name, {"X": (2, 4)})


def test_an_optional_input_that_a_step_needs_may_not_be_left_out(triton, findings):
    name = "good_optional_into_required"
    assert "optional-input" in rules(findings[name])
    triton.load(name)
    assert ask(triton, name, {"X": (4,), "X2": (4,)}).as_numpy("Y").shape == (4,)
    with pytest.raises(InferenceServerException, match="missing required input"):
        ask(triton, name, {"X": (4,)})


def test_of_two_tensors_with_one_name_the_first_counts(triton, findings):
    name = "good_declared_twice"
    assert "declared-twice" in rules(findings[name])
    triton.load(name)
    assert ask(triton, name, {"X": (4,)}).as_numpy("Y").shape == (4,)
