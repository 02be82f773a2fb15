"""Read a model repository's configs as graphs of contracts: which tensor goes from where to where, with dtype and dims.

Nothing is started and no model is loaded: only the files are read. Where they do not tell (a model that completes its
own config when it is loaded, a Python model that calls others), dtype, dims or batching are unknown here, not wrong.
`lab_utils.findings` says what is wrong with a repository.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelEnsembling

from lab_utils import arguments
from lab_utils.server import MODEL_REPOSITORY

CLIENT = "client"
CONFIG = "config.pbtxt"
CONFIGS = "configs"  # folder of further configs, chosen with --model-config-name
UNKNOWN = "?"
ENSEMBLE = "ensemble"
VERSION = re.compile(r"0|[1-9]\d*")  # with leading zeros Triton ignores the folder
NO_SUCH_FIELD = re.compile(r'(\d+):\d+ : .*Message type "(.*?)" has no field named "(.*?)"', re.DOTALL)
HINTS, HINT_DEPTH = 5, 5  # repositories that are named where a folder is none, and how far down they are looked for
ALIKE = 0.8  # of 1: a field so like a known one is a slip of the pen, not a field of another Triton

# How Triton tells the backend where the config does not: by the platform, else by a file in the version folder.
PLATFORMS = {
    ENSEMBLE: ENSEMBLE,
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "libtorch": "pytorch",
    "torch_aoti": "pytorch",
}
FILES = {
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.plan": "tensorrt",
    "model.onnx": "onnxruntime",
    "model.xml": "openvino",
    "model.pt": "pytorch",
    "model.pt2": "pytorch",
    "model.py": "python",
}
# Their code may add tensors to those of the config; all other backends take a list of tensors as it is.
COMPLETING = ("vllm",)
CALLS_MODELS = re.compile(r"\bInferenceRequest\s*\(")
COMPLETES_ITSELF = re.compile(r"\bdef\s+auto_complete_config\b")


@dataclass(frozen=True)
class Edge:
    """One tensor on its way from a producer to a consumer.

    Attributes
    ----------
    tensor : str
        Its name in the ensemble.
    producer, consumer : str
        Names of the models, or `CLIENT` for the ensemble's own inputs and outputs. A model that appears in several
        steps has the step beside its name, such as ``resize (step 2)``; so has one that is itself named like `CLIENT`.
    dtype : str
        Such as "INT32"; "?" where neither end's config tells.
    produced, accepted : tuple of int or None
        Dims as the producer declares them and as the consumer does; -1 stands for any size, None is unknown. They are
        without the batch dimension, unless one end batches and the other does not: then both are the full shapes.
    per_response : bool
        True when the producer is decoupled, or comes after a decoupled step: the tensor travels once for each response,
        not once a request.
    """

    tensor: str
    producer: str
    consumer: str
    dtype: str
    produced: tuple[int, ...] | None
    accepted: tuple[int, ...] | None
    per_response: bool


def edge_dims(edge: Edge) -> str:
    """Return the dims of an edge, such as ``[-1]``; both where its ends differ; ``?`` for unknown ones."""
    produced, accepted = ("?" if dims is None else str(list(dims)) for dims in (edge.produced, edge.accepted))
    return produced if produced == accepted else f"{produced} -> {accepted}"


@dataclass(frozen=True)
class Port:
    """An input or output of a model, as its config declares it.

    Attributes
    ----------
    dtype : str
        Such as "INT32"; "?" where the config leaves it open.
    dims : tuple of int or None
        Without the batch dimension; None where the config leaves them open.
    inner : tuple of int or None
        The same after `reshape`: what the model itself gets or gives. For an ensemble, what its steps get or give.
    """

    name: str
    dtype: str = UNKNOWN
    dims: tuple[int, ...] | None = None
    inner: tuple[int, ...] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Model:
    """One folder of a model repository.

    Attributes
    ----------
    config : ModelConfig
        As written; empty where there is no file, or one that cannot be read.
    file : Path or None
        The ``config.pbtxt``; None for a model without one.
    problem : str
        Why the file cannot be read; empty when it can.
    ignored : str
        The first field in the file that the installed protobuf does not know, with its line; empty for none.
    meant : str
        The field that this one is a misspelling of, by its looks; empty if it is like none.
    folders : tuple of str
        Names of the folders in the model's own.
    """

    name: str
    folder: Path
    config: ModelConfig
    file: Path | None
    problem: str
    ignored: str
    meant: str
    folders: tuple[str, ...]

    @cached_property
    def is_ensemble(self) -> bool:
        """Whether the config schedules steps, or means to."""
        return self.config.HasField("ensemble_scheduling") or self.config.platform == ENSEMBLE

    @cached_property
    def on_disk(self) -> tuple[int, ...]:
        """The version folders, the latest first."""
        return tuple(sorted((int(name) for name in self.folders if VERSION.fullmatch(name)), reverse=True))

    @cached_property
    def served(self) -> tuple[int, ...]:
        """The versions that the version policy serves, of those on disk; the latest first."""
        policy = self.config.version_policy
        if policy.HasField("all"):
            return self.on_disk
        if policy.HasField("specific"):
            return tuple(version for version in self.on_disk if version in policy.specific.versions)
        return self.on_disk[: policy.latest.num_versions if policy.HasField("latest") else 1]

    @cached_property
    def backend(self) -> str:
        """The backend, as Triton finds it: named, from the platform, or from the model's file; empty if unknown."""
        config = self.config
        if self.is_ensemble:
            return ENSEMBLE
        if config.backend or config.platform:
            return config.backend or PLATFORMS.get(config.platform, "")
        if config.default_model_filename:
            return FILES.get(config.default_model_filename, "")
        found = _names(self.folder / self.folders[0]) if self.folders else []
        return next((FILES[name] for name in FILES if name in found), self.name.partition(".")[2])

    @cached_property
    def source(self) -> str:
        """The text of a Python model in its latest served version; empty for others, and where it is not there."""
        if self.backend != "python" or not self.served:
            return ""
        path = self.folder / str(self.served[0]) / (self.config.default_model_filename or "model.py")
        return _read(path) if path.is_file() and os.access(path, os.R_OK) else ""

    @cached_property
    def calls_models(self) -> bool:
        """Whether a Python model sends requests to other models (BLS): which ones, no config tells."""
        return bool(CALLS_MODELS.search(self.source))

    @cached_property
    def completes_itself(self) -> bool:
        """Whether the model's code may add to its config when it is loaded."""
        return self.backend in COMPLETING or bool(COMPLETES_ITSELF.search(self.source))

    @cached_property
    def inputs(self) -> dict[str, Port]:
        """Inputs by name, in the order of the config."""
        return _ports(self.config.input)

    @cached_property
    def outputs(self) -> dict[str, Port]:
        """Outputs by name, in the order of the config."""
        return _ports(self.config.output)

    def lists_all(self, ports: Mapping[str, Port]) -> bool:
        """Whether these ports, its inputs or its outputs, are all there are."""
        return self.is_ensemble or not (self.completes_itself or (not ports and not self.source))

    @cached_property
    def max_batch_size(self) -> int | None:
        """0 for a model that does not batch; None where that is settled only when the model is loaded."""
        declared = self.config.max_batch_size
        settled = declared or (self.lists_all(self.inputs) and self.lists_all(self.outputs))
        return declared if settled else None

    @cached_property
    def opaque(self) -> str:
        """Why this check sees only a part of the model; empty when it sees all that configs can tell."""
        if self.problem:
            return "its config cannot be read"
        if not (self.lists_all(self.inputs) and self.lists_all(self.outputs)):
            return "it completes its config when it is loaded"
        return "it may call other models (BLS)" if self.calls_models else ""


@dataclass(frozen=True)
class Step:
    """One step of an ensemble: a model, and the ensemble's tensors at its inputs and outputs.

    Attributes
    ----------
    number : int
        From 1, in the order of the config.
    node : str
        A name for it that is unique in the ensemble: that of the model, with the number where it appears twice.
    model : Model or None
        None where the repository has no such model.
    inputs, outputs : dict of str to str
        From the model's name of a tensor to that of the ensemble, by name.
    """

    number: int
    node: str
    model_name: str
    version: int
    model: Model | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class End:
    """Where a tensor starts or arrives: a step, or the client (then `step` is None)."""

    node: str
    step: Step | None
    port: Port
    max_batch_size: int | None

    @property
    def dims(self) -> tuple[int, ...] | None:
        """Dims without the batch dimension, as seen from inside the ensemble."""
        return self.port.dims if self.step else self.port.inner

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Dims with the batch dimension where there is one; None where they, or it, are unknown."""
        if self.dims is None or self.max_batch_size is None:
            return None
        return (-1, *self.dims) if self.max_batch_size > 0 else self.dims


@dataclass(frozen=True)
class Link:
    """A tensor between a producer and one of its consumers, with all that is known of both ends."""

    tensor: str
    producer: End
    consumer: End
    per_response: bool


@dataclass(frozen=True)
class Node:
    """A step as it is shown.

    Attributes
    ----------
    name, model : str
        Of the step, unique in the ensemble, and of its model.
    version : int
        -1 for the latest.
    backend : str
        "ensemble" for a nested ensemble, "?" where it is unknown.
    max_batch_size : int or None
        0 for a model that does not batch, None where that is unknown.
    batching : str
        "dynamic", "sequence" or empty; "?" where it is unknown.
    decoupled : bool
        Whether it may answer a request more than once.
    opaque : str
        Why configs tell only a part of it; empty when they tell all.
    """

    name: str
    model: str
    version: int
    backend: str
    max_batch_size: int | None
    batching: str
    decoupled: bool
    opaque: str


@dataclass(frozen=True)
class Graph:
    """An ensemble: one node for each step, one edge for each tensor and consumer."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class Repository:
    """A model repository, each config read once.

    Attributes
    ----------
    models : dict of str to Model
        By the name of the folder.
    others : tuple of str
        Folders without a config and without a version: Triton takes each folder for a model.
    """

    folder: Path
    models: Mapping[str, Model]
    others: tuple[str, ...] = ()

    @cached_property
    def ensembles(self) -> list[str]:
        """Names of the models that are ensembles."""
        return [name for name, model in self.models.items() if model.is_ensemble]


# --- files ------------------------------------------------------------------------------------------------------------


def read_config(model: str, repository: str | Path = MODEL_REPOSITORY) -> ModelConfig:
    """The parsed ``config.pbtxt`` of a model.

    Raises
    ------
    ValueError
        There is no such file, or it is not protobuf text of a ModelConfig.
    """
    return _read_model(arguments.name_of_file("model", model), arguments.path("repository", repository)).config


def read_repository(path: str | Path) -> Repository:
    """All models of a repository.

    Raises
    ------
    ValueError
        The path is no folder, cannot be opened, is the folder of a single model, or holds no models.
    """
    folder = arguments.path("the repository", path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the path of a model repository")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be opened; check its permissions")
    found = [_model(folder / name) for name in _folders(folder)]
    models = {model.name: model for model in found}
    others = tuple(name for name, model in models.items() if not (model.file or model.on_disk))
    models = {name: model for name, model in models.items() if name not in others}
    _refuse_if_no_repository(folder, models)
    return Repository(folder, models, others)


def _refuse_if_no_repository(folder: Path, models: Mapping[str, Model]) -> None:
    named = [model for model in models.values() if model.file and not VERSION.fullmatch(model.name)]
    if (folder / CONFIG).is_file() and not named:
        raise ValueError(f"{folder} is the folder of one model; give the repository that holds it: {folder.parent}")
    if not models:
        nearby = _repositories_below(folder)
        hint = f"did you mean {' or '.join(nearby)}?" if nearby else f"expected MODEL/{CONFIG} or MODEL/VERSION in it"
        raise ValueError(f"{folder} has no models; {hint}")


def _repositories_below(folder: Path) -> list[str]:
    """Folders below that hold models, as a hint: not from far down, and a few of many."""
    found: dict[str, None] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if CONFIG in files and not VERSION.fullmatch(Path(place).name):
            found[str(Path(place).parent)] = None
            folders.clear()
        if len(found) >= HINTS or len(Path(place).relative_to(folder).parts) >= HINT_DEPTH:
            folders.clear()
    return list(found)[:HINTS]


def _read_model(name: str, repository: Path) -> Model:
    """One model; unlike in a whole repository, a missing or doubtful config is an error here."""
    model = _model(repository / name)
    problem = model.problem or (model.ignored and f"it has an unknown field, {model.ignored}")
    if problem:
        raise ValueError(f"{model.file} is not a model config: {problem}")
    if not (model.file or (model.on_disk and model.backend)):
        raise ValueError(f"no model {name!r}: {repository / name / CONFIG} does not exist")
    return model


def _model(folder: Path) -> Model:
    name = os.fsencode(folder.name).decode("utf-8", "replace")  # a folder's name may be any bytes
    file = folder / CONFIG if (folder / CONFIG).is_file() else None
    it = _parsed_file(file) if file else _Parsed(ModelConfig())
    it.config.name = it.config.name or name  # as Triton does: a config without a name has that of its folder
    return Model(name, folder, it.config, file, it.problem, it.ignored, it.meant, tuple(_folders(folder)))


@dataclass(frozen=True)
class _Parsed:
    """A config with what `Model` tells of its reading."""

    config: ModelConfig
    problem: str = ""
    ignored: str = ""
    meant: str = ""


def _parsed_file(file: Path) -> _Parsed:
    try:
        return _parsed(_read(file))
    except OSError as error:
        return _Parsed(ModelConfig(), f"the file cannot be opened: {error.strerror}")
    except RecursionError:
        return _Parsed(ModelConfig(), "its braces are nested too deeply")
    except (text_format.ParseError, ValueError) as error:
        return _Parsed(ModelConfig(), str(error))


def _parsed(text: str) -> _Parsed:
    try:
        return _Parsed(text_format.Parse(text, ModelConfig()))
    except text_format.ParseError as error:
        unknown = NO_SUCH_FIELD.match(str(error))
        if not unknown:
            raise
    line, message, field = unknown.groups()
    known = model_config_pb2.DESCRIPTOR.pool.FindMessageTypeByName(message).fields_by_name
    meant = "".join(difflib.get_close_matches(field, known, 1, ALIKE))
    return _Parsed(
        text_format.Parse(text, ModelConfig(), allow_unknown_field=True), "", f"{field} (line {line})", meant
    )


def _read(file: Path) -> str:
    """The text of a file in any encoding: Triton takes any bytes in a comment."""
    return file.read_text(encoding="utf-8", errors="replace")


def _folders(folder: Path) -> list[str]:
    return sorted(name for name in _names(folder) if (folder / name).is_dir())


def _names(folder: Path) -> list[str]:
    """What is in a folder; nothing where there is none, or it cannot be opened."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _ports(tensors: Sequence[object]) -> dict[str, Port]:
    ports: dict[str, Port] = {}
    for tensor in tensors:
        ports.setdefault(tensor.name, _port(tensor))  # of two with one name Triton takes the first
    return ports


def _port(tensor: object) -> Port:
    dtype = _dtype(tensor.data_type)
    dims = tuple(tensor.dims) or None
    inner = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else dims
    return Port(tensor.name, dtype, dims, inner, getattr(tensor, "optional", False))


def _dtype(number: int) -> str:
    if not number:
        return UNKNOWN
    known = model_config_pb2.DataType.values()
    return model_config_pb2.DataType.Name(number).removeprefix("TYPE_") if number in known else str(number)


# --- an ensemble ------------------------------------------------------------------------------------------------------


def read_edges(ensemble: str, repository: str | Path = MODEL_REPOSITORY) -> list[Edge]:
    """The edges of an ensemble, in the order of its steps.

    Raises
    ------
    ValueError
        The model is not an ensemble, a config cannot be read, or a tensor has no producer.
    """
    models: dict[str, Model] = {}
    _read_with_steps(arguments.name_of_file("ensemble", ensemble), arguments.path("repository", repository), models)
    if not models[ensemble].config.ensemble_scheduling.step:
        raise ValueError(f"{ensemble!r} is not an ensemble: its config has no ensemble_scheduling steps")
    _refuse_if_broken(models[ensemble], models)
    return [_edge(link) for link in links(models[ensemble], models)]


def ensemble_graph(ensemble: str, repository: Repository) -> Graph:
    """An ensemble of a repository as a graph; what is broken in it is left out.

    Raises
    ------
    ValueError
        The repository has no such ensemble.
    """
    if ensemble not in repository.ensembles:
        raise ValueError(f"no ensemble {ensemble!r}; {repository.folder} has: {', '.join(repository.ensembles)}")
    model, models = repository.models[ensemble], repository.models
    nodes = tuple(_node(step, models) for step in steps(model, models))
    return Graph(ensemble, nodes, tuple(_edge(link) for link in links(model, models)))


def steps(ensemble: Model, models: Mapping[str, Model]) -> list[Step]:
    """The steps of an ensemble, each with its model."""
    written = ensemble.config.ensemble_scheduling.step
    names = [step.model_name for step in written]
    return [_step(number, step, names, models) for number, step in enumerate(written, 1)]


def links(ensemble: Model, models: Mapping[str, Model]) -> list[Link]:
    """The tensors between the client and the steps, one for each consumer; those without a producer are left out."""
    all_steps = steps(ensemble, models)
    # The client's own ends: what the ensemble takes in is produced by the client, what it gives out is consumed there.
    producers = {name: client_end(ensemble, port) for name, port in ensemble.inputs.items()}
    for step in all_steps:
        producers |= {step.outputs[end.port.name]: end for end in output_ends(step)}
    ends = [(step.inputs[end.port.name], end) for step in all_steps for end in input_ends(step)]
    ends += [(name, client_end(ensemble, port)) for name, port in ensemble.outputs.items()]
    repeated = per_response_tensors(all_steps, models)
    return [Link(name, producers[name], end, name in repeated) for name, end in ends if name in producers]


def per_response_tensors(all_steps: Sequence[Step], models: Mapping[str, Model]) -> set[str]:
    """Tensors that travel once for each response: outputs of decoupled steps, and of steps that these feed."""
    repeated: set[str] = set()
    for _ in all_steps:  # as often as there are steps: enough for any order they are written in
        for step in all_steps:
            if is_decoupled(step.model, models) or repeated & set(step.inputs.values()):
                repeated |= set(step.outputs.values())
    return repeated


def is_decoupled(model: Model | None, models: Mapping[str, Model], outer: tuple[str, ...] = ()) -> bool:
    """Whether a model may answer more than once; an ensemble may if one of its steps does, whatever it declares."""
    if model is None or model.name in outer:  # an ensemble that contains itself is an error, told elsewhere
        return False
    if not model.config.ensemble_scheduling.step:
        return model.config.model_transaction_policy.decoupled
    names = {step.model_name for step in model.config.ensemble_scheduling.step}
    return any(is_decoupled(models.get(name), models, (*outer, model.name)) for name in names)


def client_end(ensemble: Model, port: Port) -> End:
    """The client's end of an ensemble's own input or output."""
    return End(CLIENT, None, port, ensemble.config.max_batch_size)


def step_end(step: Step, port: Port) -> End:
    """A step's end of a tensor."""
    return End(step.node, step, port, step.model.max_batch_size if step.model else None)


def _step(number: int, step: ModelEnsembling.Step, names: list[str], models: Mapping[str, Model]) -> Step:
    name = step.model_name
    node = f"{name} (step {number})" if names.count(name) > 1 or name == CLIENT else name
    # The maps of protobuf have no order of their own.
    inputs, outputs = dict(sorted(step.input_map.items())), dict(sorted(step.output_map.items()))
    return Step(number, node, name, step.model_version, models.get(name), inputs, outputs)


def input_ends(step: Step) -> Iterator[End]:
    """The inputs in the order of the model's config, then those that only the loaded model can know."""
    ports = step.model.inputs if step.model else {}
    yield from (step_end(step, port) for name, port in ports.items() if name in step.inputs)
    if not (step.model and step.model.lists_all(ports)):
        yield from (step_end(step, Port(name)) for name in step.inputs if name not in ports)


def output_ends(step: Step) -> Iterator[End]:
    """The outputs that the ensemble takes, in the order of their names."""
    ports = step.model.outputs if step.model else {}
    yield from (step_end(step, ports[name]) for name in step.outputs if name in ports)
    if not (step.model and step.model.lists_all(ports)):
        yield from (step_end(step, Port(name)) for name in step.outputs if name not in ports)


def _edge(link: Link) -> Edge:
    producer, consumer = link.producer, link.consumer
    dtype = producer.port.dtype if producer.port.dtype != UNKNOWN else consumer.port.dtype
    dims = producer.dims, consumer.dims
    batching = producer.max_batch_size, consumer.max_batch_size
    if None not in (*dims, *batching) and bool(batching[0]) != bool(batching[1]):
        dims = producer.shape, consumer.shape
    return Edge(link.tensor, producer.node, consumer.node, dtype, *dims, link.per_response)


def _node(step: Step, models: Mapping[str, Model]) -> Node:
    model = step.model
    if model is None:
        return Node(step.node, step.model_name, step.version, UNKNOWN, None, UNKNOWN, False, "it is not there")
    kind = "" if model.is_ensemble else (model.config.WhichOneof("scheduling_choice") or "").removesuffix("_batching")
    decoupled = is_decoupled(model, models)
    backend = model.backend or UNKNOWN
    return Node(step.node, model.name, step.version, backend, model.max_batch_size, kind, decoupled, model.opaque)


def _read_with_steps(name: str, repository: Path, models: dict[str, Model]) -> None:
    """Read a model, and if it is an ensemble those of its steps, each once."""
    models[name] = _read_model(name, repository)
    for step in models[name].config.ensemble_scheduling.step:
        if step.model_name not in models:
            _read_with_steps(step.model_name, repository, models)


def _refuse_if_broken(ensemble: Model, models: Mapping[str, Model]) -> None:
    all_steps = steps(ensemble, models)
    for step in all_steps:
        unknown = set(step.outputs) - set(step.model.outputs)
        if unknown and step.model.lists_all(step.model.outputs):
            gone = ", ".join(sorted(unknown))
            raise ValueError(f"ensemble {ensemble.name!r}: model {step.model_name!r} has no output {gone}")
    made = {*ensemble.inputs, *(name for step in all_steps for name in step.outputs.values())}
    orphans = [name for step in all_steps for name in step.inputs.values() if name not in made]
    orphans += [name for name in ensemble.outputs if name not in made]
    if orphans:
        raise ValueError(
            f"ensemble {ensemble.name!r}: nothing produces {', '.join(orphans)}; mend its input_map or output_map"
        )
