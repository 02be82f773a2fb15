"""Reading an ensemble as edges: the lab's own, and ensembles built here to be awkward."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lab_utils.contract import (
    CLIENT,
    Edge,
    Graph,
    ensemble_graph,
    is_decoupled,
    read_config,
    read_edges,
    read_repository,
)
from lab_utils.server import MODEL_REPOSITORY

RUNGS = {"ensemble_append": 1, "ensemble_release": 2, "ensemble_replace": 3, "ensemble_latest": 4}
MUTANT = "inference_mutant"
VARIANTS = {  # the inference model, whether the consumer is strict, whether it is guarded
    "ensemble_strict": ("inference", True, False),
    "ensemble_guarded": ("inference", False, True),
    "ensemble_mutant": (MUTANT, False, False),
    "ensemble_mutant_strict": (MUTANT, True, False),
    "ensemble_mutant_guarded": (MUTANT, False, True),
}
ONE, ANY = (1,), (-1,)
PRE, INF, POST = "preprocess", "inference", "postprocess"
EDGES = {
    Edge("PROMPT", CLIENT, PRE, "STRING", ONE, ONE, False),
    Edge("MAX_TOKENS", CLIENT, INF, "INT32", ONE, ONE, False),
    Edge("FORCED_IDS", CLIENT, INF, "INT32", ANY, ANY, False),
    Edge("PROMPT_IDS", PRE, INF, "INT32", ANY, ANY, False),
    Edge("TOKEN_IDS", INF, POST, "INT32", ANY, ANY, True),
    Edge("STREAM_ID", INF, POST, "INT64", ONE, ONE, True),
    Edge("END", INF, POST, "BOOL", ONE, ONE, True),
    Edge("END", INF, CLIENT, "BOOL", ONE, ONE, True),
    Edge("INDEX", INF, CLIENT, "INT32", ONE, ONE, True),
    Edge("HEAP", INF, CLIENT, "INT64", ONE, ONE, True),
    Edge("ERROR", INF, CLIENT, "STRING", ONE, ONE, True),
    Edge("TEXT", POST, CLIENT, "STRING", ONE, ONE, True),
    Edge("RECEIVED_IDS", POST, CLIENT, "INT32", ANY, ANY, True),
    Edge("RECEIVED_DIMS", POST, CLIENT, "INT64", ANY, ANY, True),
}


def tensors(kind: str, declared: dict[str, str]) -> str:
    each = (f'{{ name: "{name}" data_type: TYPE_FP32 dims: {dims} }}' for name, dims in declared.items())
    return f"{kind} [ {', '.join(each)} ]\n" if declared else ""


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def write_model(repository: Path, name: str, inputs: dict, outputs: dict, rest: str = "", named: bool = True) -> None:
    folder = repository / name
    folder.mkdir()
    head = f'name: "{name}"\n' if named else ""
    (folder / "config.pbtxt").write_text(head + tensors("input", inputs) + tensors("output", outputs) + rest)


def write_ensemble(repository: Path, inputs: dict, outputs: dict, *steps: str, name: str = "chain") -> None:
    write_model(repository, name, inputs, outputs, f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}")


DECOUPLED = "model_transaction_policy { decoupled: true }"


def repeated(edges: list[Edge]) -> dict[tuple[str, str], bool]:
    return {(edge.tensor, edge.consumer): edge.per_response for edge in edges}


@pytest.fixture
def fan_out(tmp_path) -> Path:
    """a -> b (decoupled) -> c and d; the steps are written in the reverse order; the client sees all three ends."""
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 2, -1 ]"})
    write_model(tmp_path, "b", {"IN": "[ 2, 3 ]"}, {"OUT": "[ 4 ]"}, DECOUPLED)
    write_model(tmp_path, "c", {"IN": "[ 5 ]", "OTHER": "[ -1, -1 ]"}, {"OUT": "[ 6 ]"})
    write_model(tmp_path, "d", {"IN": "[ 7 ]"}, {"OUT": "[ 8 ]"})
    write_ensemble(
        tmp_path,
        {"x": "[ 9 ]"},
        {"b_out": "[ 10 ]", "c_out": "[ 11 ]", "d_out": "[ 12 ]", "a_out": "[ 13 ]"},
        step("d", {"IN": "c_out"}, {"OUT": "d_out"}),
        step("c", {"IN": "b_out", "OTHER": "b_out"}, {"OUT": "c_out"}),
        step("b", {"IN": "a_out"}, {"OUT": "b_out"}),
        step("a", {"IN": "x"}, {"OUT": "a_out"}),
    )
    return tmp_path


@pytest.mark.parametrize("ensemble", RUNGS)
def test_the_edges_of_the_labs_ensembles(ensemble):
    edges = read_edges(ensemble)
    assert set(edges) == EDGES
    assert len(edges) == len(EDGES)


def renamed(edge: Edge, new: dict[str, str]) -> Edge:
    return replace(edge, producer=new.get(edge.producer, edge.producer), consumer=new.get(edge.consumer, edge.consumer))


@pytest.mark.parametrize("ensemble", VARIANTS)
def test_the_edges_of_the_variants_differ_only_as_they_say(ensemble):
    model, strict, guarded = VARIANTS[ensemble]
    new = {INF: model, POST: f"{POST}_strict" if strict else f"{POST}_guarded" if guarded else POST}
    expected = {renamed(edge, new) for edge in EDGES}
    if strict:
        expected = {replace(edge, accepted=ONE) if edge.tensor == "TOKEN_IDS" else edge for edge in expected}
    if guarded:
        expected |= {Edge("STATUS", new[POST], CLIENT, "STRING", ONE, ONE, True)}
        expected |= {Edge("INDEX", model, new[POST], "INT32", ONE, ONE, True)}
        expected |= {Edge("CHECKSUM", model, new[POST], "INT64", ONE, ONE, True)}
    assert set(read_edges(ensemble)) == expected


@pytest.mark.parametrize(("ensemble", "version"), RUNGS.items())
def test_each_rung_pins_its_version(ensemble, version):
    steps = read_config(ensemble).ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [(PRE, -1), (INF, version), (POST, -1)]


def test_the_rungs_differ_in_nothing_but_name_and_version():
    configs = [read_config(ensemble) for ensemble in RUNGS]
    for config in configs:
        config.name, config.ensemble_scheduling.step[1].model_version = "", 0
    assert all(config == configs[0] for config in configs)


def test_a_repository_can_be_given_as_text():
    assert read_edges("ensemble_latest", str(MODEL_REPOSITORY)) == read_edges("ensemble_latest")


def test_the_order_is_that_of_the_steps_and_then_of_the_outputs():
    consumers = [edge.consumer for edge in read_edges("ensemble_append")]
    assert consumers == [PRE] + [INF] * 3 + [POST] * 3 + [CLIENT] * 7


def test_dims_of_both_ends_are_kept_apart(fan_out):
    edge = next(edge for edge in read_edges("chain", fan_out) if edge.consumer == "b")
    assert edge == Edge("a_out", "a", "b", "FP32", (2, -1), (2, 3), False)


def test_one_output_that_feeds_several_consumers_is_an_edge_for_each(fan_out):
    edges = [edge for edge in read_edges("chain", fan_out) if edge.tensor == "b_out"]
    assert [(edge.producer, edge.consumer, edge.accepted) for edge in edges] == [
        ("b", "c", (5,)),
        ("b", "c", (-1, -1)),
        ("b", CLIENT, (10,)),
    ]


def test_repetition_is_found_in_any_order_of_the_steps(fan_out):
    assert repeated(read_edges("chain", fan_out)) == {
        ("x", "a"): False,
        ("a_out", "b"): False,
        ("a_out", CLIENT): False,
        ("b_out", "c"): True,
        ("b_out", CLIENT): True,
        ("c_out", "d"): True,
        ("c_out", CLIENT): True,
        ("d_out", CLIENT): True,
    }


def test_without_a_decoupled_step_nothing_is_repeated(fan_out):
    config = fan_out / "b" / "config.pbtxt"
    config.write_text(config.read_text().replace(DECOUPLED, ""))
    assert set(repeated(read_edges("chain", fan_out)).values()) == {False}


def test_an_input_that_is_not_wired_has_no_edge(tmp_path):
    """Optional inputs may be left out."""
    write_model(tmp_path, "a", {"IN": "[ 1 ]", "UNUSED": "[ 1 ]"}, {"OUT": "[ 1 ]", "ALSO_UNUSED": "[ 1 ]"})
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step("a", {"IN": "x"}, {"OUT": "y"}))
    assert [edge.tensor for edge in read_edges("chain", tmp_path)] == ["x", "y"]


def test_a_config_without_a_name_has_that_of_its_folder(tmp_path):
    """Triton takes the folder's name where a config gives none."""
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"}, named=False)
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step("a", {"IN": "x"}, {"OUT": "y"}))
    ends = [(edge.producer, edge.consumer) for edge in read_edges("chain", tmp_path)]
    assert ends == [(CLIENT, "a"), ("a", CLIENT)]


def test_a_decoupled_ensemble_as_a_step_repeats_too(tmp_path):
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"}, DECOUPLED)
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step("a", {"IN": "x"}, {"OUT": "y"}), name="inner")
    write_ensemble(tmp_path, {"p": "[ 1 ]"}, {"q": "[ 1 ]"}, step("inner", {"x": "p"}, {"y": "q"}))
    assert repeated(read_edges("chain", tmp_path)) == {("p", "inner"): False, ("q", CLIENT): True}


def broken_chain(folder: Path, **wiring: dict) -> Path:
    write_model(folder, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"})
    whole = {"inputs": {"IN": "x"}, "outputs": {"OUT": "y"}} | wiring
    write_ensemble(folder, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step("a", **whole))
    return folder


def test_the_chain_that_the_next_tests_break_is_whole(tmp_path):
    assert len(read_edges("chain", broken_chain(tmp_path))) == 2


@pytest.mark.parametrize(
    ("wiring", "culprit"),
    [
        ({"inputs": {"IN": "nobody_makes_this"}}, "nobody_makes_this"),
        ({"outputs": {"OUT": "another_name"}}, "y"),
        ({"outputs": {"OUT": "y", "NO_SUCH_OUTPUT": "z"}}, "NO_SUCH_OUTPUT"),
    ],
    ids=["input without producer", "output without producer", "model has no such output"],
)
def test_a_wiring_that_does_not_hold_together_is_named(tmp_path, wiring, culprit):
    with pytest.raises(ValueError, match=f"(?s)chain.*{culprit}|{culprit}.*chain"):
        read_edges("chain", broken_chain(tmp_path, **wiring))


def test_a_model_that_does_not_exist_is_named_with_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"no model 'absent': .*absent/config\.pbtxt does not exist"):
        read_config("absent", tmp_path)


def test_a_step_without_its_model_is_named(fan_out):
    (fan_out / "c" / "config.pbtxt").unlink()
    with pytest.raises(ValueError, match=r"no model 'c': .*c/config\.pbtxt"):
        read_edges("chain", fan_out)


@pytest.mark.parametrize(
    "content",
    [b'name: "a', b"no_such_field: 1", b"name: 3", b'name: "a" }', b"\xff\xfe", b"{}", b"max_batch_size: many"],
    ids=["cut", "field", "type", "bracket", "not UTF-8", "JSON", "number"],
)
def test_a_broken_config_is_named_with_its_file(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.pbtxt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a/config\.pbtxt") as caught:
        read_config("a", tmp_path)
    assert caught.value.__context__ is None  # the parser's own traceback would hide the line to mend


@pytest.mark.parametrize("model", [PRE, INF, POST])
def test_a_model_that_is_no_ensemble_is_named(model):
    with pytest.raises(ValueError, match=f"'{model}' is not an ensemble"):
        read_edges(model)


# --- whole repositories -----------------------------------------------------------------------------------------------


def graph(repository: Path, ensemble: str = "chain") -> Graph:
    return ensemble_graph(ensemble, read_repository(repository))


def test_the_labs_own_repository():
    repository = read_repository(MODEL_REPOSITORY)
    ensembles = [*RUNGS, *VARIANTS, "ensemble_parallel", "ensemble_ordered"]
    assert repository.ensembles == sorted(ensembles)
    consumers = [POST, *(f"{POST}_{variant}" for variant in ("strict", "guarded", "parallel", "ordered"))]
    assert sorted(repository.models) == sorted([*ensembles, PRE, INF, MUTANT, *consumers])
    assert [(model.backend, model.served) for name, model in repository.models.items() if name == INF] == [
        ("python", (4, 3, 2, 1))
    ]
    shown = ensemble_graph("ensemble_append", repository)
    assert [(node.name, node.version, node.decoupled) for node in shown.nodes] == [
        (PRE, -1, False),
        (INF, 1, True),
        (POST, -1, False),
    ]
    assert list(shown.edges) == read_edges("ensemble_append")


def test_a_model_in_two_steps_is_two_nodes(tmp_path):
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"})
    first, second = step("a", {"IN": "x"}, {"OUT": "y"}), step("a", {"IN": "y"}, {"OUT": "z"})
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"z": "[ 1 ]"}, first, second)
    ends = [(edge.producer, edge.consumer) for edge in read_edges("chain", tmp_path)]
    assert ends == [(CLIENT, "a (step 1)"), ("a (step 1)", "a (step 2)"), ("a (step 2)", CLIENT)]
    assert [(node.name, node.model) for node in graph(tmp_path).nodes] == [("a (step 1)", "a"), ("a (step 2)", "a")]


def test_a_model_named_client_is_not_the_client(tmp_path):
    write_model(tmp_path, CLIENT, {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"})
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step(CLIENT, {"IN": "x"}, {"OUT": "y"}))
    assert [edge.consumer for edge in read_edges("chain", tmp_path)] == ["client (step 1)", CLIENT]


def test_where_one_end_batches_and_the_other_does_not_the_whole_shapes_are_shown(tmp_path):
    write_model(tmp_path, "a", {"IN": "[ -1, 3 ]"}, {"OUT": "[ -1, 3 ]"})
    write_model(tmp_path, "b", {"IN": "[ 3 ]"}, {"OUT": "[ 3 ]"}, "max_batch_size: 8")
    write_model(tmp_path, "c", {"IN": "[ 3 ]"}, {"OUT": "[ -1, 3 ]"}, "max_batch_size: 4")
    steps = [step("a", {"IN": "x"}, {"OUT": "y"}), step("b", {"IN": "y"}, {"OUT": "z"})]
    steps.append(step("c", {"IN": "z"}, {"OUT": "q"}))
    write_ensemble(tmp_path, {"x": "[ -1, 3 ]"}, {"q": "[ 5, 5, 3 ]"}, *steps)
    assert [(edge.produced, edge.accepted) for edge in read_edges("chain", tmp_path)] == [
        ((-1, 3), (-1, 3)),
        ((-1, 3), (-1, 3)),
        ((3,), (3,)),
        ((-1, -1, 3), (5, 5, 3)),
    ]


def test_the_steps_see_a_reshaped_input_and_a_model_its_own_dims(tmp_path):
    write_model(tmp_path, "a", {"IN": "[ 4 ] reshape { shape: [ 2, 2 ] }"}, {"OUT": "[ 4 ]"})
    reshaped = {"x": "[ 2, 2 ] reshape { shape: [ 4 ] }"}, {"y": "[ 1, 4 ] reshape { shape: [ 4 ] }"}
    write_ensemble(tmp_path, *reshaped, step("a", {"IN": "x"}, {"OUT": "y"}))
    assert [(edge.produced, edge.accepted) for edge in read_edges("chain", tmp_path)] == [((4,), (4,))] * 2


def test_a_model_that_triton_completes_leaves_dims_unknown(tmp_path):
    (tmp_path / "a" / "1" / "model.onnx").mkdir(parents=True)
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step("a", {"IN": "x"}, {"OUT": "y"}))
    first, second = read_edges("chain", tmp_path)
    assert (first.dtype, first.produced, first.accepted) == ("FP32", (1,), None)
    assert (second.dtype, second.produced, second.accepted) == ("FP32", None, (1,))
    (node,) = graph(tmp_path).nodes
    assert (node.backend, node.max_batch_size) == ("onnxruntime", None)
    assert "completes its config" in node.opaque


def test_between_two_such_models_the_dtype_is_unknown_too(tmp_path):
    for name in "ab":
        (tmp_path / name / "1" / "model.plan").mkdir(parents=True)
    steps = step("a", {"IN": "x"}, {"OUT": "y"}), step("b", {"IN": "y"}, {"OUT": "z"})
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"z": "[ 1 ]"}, *steps)
    assert [edge.dtype for edge in read_edges("chain", tmp_path)] == ["FP32", "?", "FP32"]


def test_what_is_missing_is_drawn_as_a_node_and_what_nothing_produces_is_left_out(tmp_path):
    steps = step("gone", {"IN": "x", "OTHER": "nobody_makes_this"}, {"OUT": "y"})
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, steps)
    shown = graph(tmp_path)
    assert [(node.name, node.opaque) for node in shown.nodes] == [("gone", "it is not there")]
    assert [(edge.tensor, edge.consumer) for edge in shown.edges] == [("x", "gone"), ("y", CLIENT)]


def test_a_nested_ensemble_is_a_node_with_the_ensembles_own_dims(tmp_path):
    write_model(tmp_path, "a", {"IN": "[ -1 ]"}, {"OUT": "[ -1 ]"}, DECOUPLED)
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 2 ]"}, step("a", {"IN": "x"}, {"OUT": "y"}), name="inner")
    write_ensemble(tmp_path, {"p": "[ 1 ]"}, {"q": "[ 2 ]"}, step("inner", {"x": "p"}, {"y": "q"}))
    shown = graph(tmp_path)
    assert [(node.name, node.backend, node.decoupled) for node in shown.nodes] == [("inner", "ensemble", True)]
    assert [(edge.produced, edge.accepted) for edge in shown.edges] == [((1,), (1,)), ((2,), (2,))]


def test_ensembles_that_contain_one_another_come_to_an_end(tmp_path):
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step("two", {"x": "x"}, {"y": "y"}), name="one")
    write_ensemble(tmp_path, {"x": "[ 1 ]"}, {"y": "[ 1 ]"}, step("one", {"x": "x"}, {"y": "y"}), name="two")
    models = read_repository(tmp_path).models
    assert not is_decoupled(models["one"], models)
    assert len(read_edges("one", tmp_path)) == 2


@pytest.mark.parametrize(
    ("config", "files", "backend"),
    [
        ('backend: "python"', [], "python"),
        ('platform: "tensorrt_plan"', [], "tensorrt"),
        ('platform: "never_heard_of"', [], ""),
        ('default_model_filename: "model.onnx"', [], "onnxruntime"),
        ("", ["model.py"], "python"),
        ("", ["model.pt", "model.onnx"], "onnxruntime"),
        ("", ["weights.bin"], ""),
        ('platform: "ensemble"', [], "ensemble"),
    ],
)
def test_the_backend_is_found_as_triton_finds_it(tmp_path, config, files, backend):
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / "a" / "config.pbtxt").write_text(config)
    for file in files:
        (tmp_path / "a" / "1" / file).touch()
    assert read_repository(tmp_path).models["a"].backend == backend


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", (10,)),
        ("version_policy { latest { num_versions: 2 } }", (10, 3)),
        ("version_policy { all { } }", (10, 3, 1)),
        ("version_policy { specific { versions: [ 1, 7 ] } }", (1,)),
    ],
)
def test_the_versions_that_the_policy_serves(tmp_path, policy, served):
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"}, policy)
    for name in ("1", "3", "10", "02", "latest", "configs"):
        (tmp_path / "a" / name).mkdir()
    assert read_repository(tmp_path).models["a"].served == served


def test_comments_in_any_encoding_and_fields_of_a_newer_triton_do_not_stop_the_reading(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.pbtxt").write_bytes(
        "# 模型\n".encode("gbk") + b'brand_new: { x: [ 1 ] }\nbackend: "python"'
    )
    model = read_repository(tmp_path).models["a"]
    assert (model.problem, model.ignored, model.backend) == ("", "brand_new (line 2)", "python")


def test_links_to_nowhere_and_names_in_no_encoding_do_not_stop_the_reading(tmp_path):
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"})
    for link, target in (("ring", "ring"), ("gone", "nowhere"), ("a/ring", "ring")):
        (tmp_path / link).symlink_to(target)
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    repository = read_repository(tmp_path)
    assert list(repository.models) == ["a"]
    assert repository.others == ("\N{REPLACEMENT CHARACTER}",)


def test_a_config_that_cannot_be_opened_is_a_problem_of_that_model(tmp_path, monkeypatch):
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"})

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    assert read_repository(tmp_path).models["a"].problem == "the file cannot be opened: Permission denied"


def test_a_folder_that_cannot_be_opened_is_empty_but_the_repository_itself_must_open(tmp_path, monkeypatch):
    write_model(tmp_path, "a", {"IN": "[ 1 ]"}, {"OUT": "[ 1 ]"})
    (tmp_path / "lost+found").mkdir()
    listed = os.listdir

    def guarded(folder: Path) -> list[str]:
        if Path(folder).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", guarded)
    assert read_repository(tmp_path).others == ("lost+found",)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot be opened; check its permissions"):
        read_repository(tmp_path)
