"""What is wrong, or risky, in a model repository: found in its configs alone, before any server is started.

An error is what Triton refuses when it loads the model. A warning is what it accepts and what then fails or goes
unnoticed at run time. A note says where a promise is not checked by anybody, or where this check cannot see.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelDynamicBatching, ModelInstanceGroup

from lab_utils.contract import (
    CONFIG,
    CONFIGS,
    ENSEMBLE,
    PLATFORMS,
    UNKNOWN,
    End,
    Link,
    Model,
    Port,
    Repository,
    Step,
    client_end,
    ensemble_graph,
    input_ends,
    is_decoupled,
    links,
    output_ends,
    steps,
)
from lab_utils.plots import table

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
TWO_ON_CPU = ("onnxruntime", "tensorflow")  # backends with two instances on a CPU where no count is given


@dataclass(frozen=True)
class Rule:
    """What a kind of finding means: how grave it is, and why."""

    severity: str
    why: str


RULES = {
    # a model's folder and its config
    "config-unreadable": Rule(ERROR, "Triton reads it as protobuf text of a ModelConfig and loads nothing else."),
    "unknown-field": Rule(
        WARNING,
        "A server that does not know a field refuses the whole config. The field is misspelt, or of another version "
        "than the protobuf installed here, which left it out.",
    ),
    "config-name": Rule(ERROR, "Triton wants a model to be named as its folder, or to have no name in its config."),
    "config-misplaced": Rule(ERROR, "Triton reads MODEL/config.pbtxt and no other place."),
    "custom-config": Rule(
        NOTE, "Triton reads a file in configs/ only when it is started with --model-config-name; it is not read here."
    ),
    "no-config": Rule(ERROR, "Without a config Triton tells the backend by the file in the version folder."),
    "no-backend": Rule(ERROR, "Triton does not know which backend is to run the model."),
    "no-version": Rule(ERROR, "Triton loads versions: folders with a number for a name. An ensemble needs one too."),
    "not-a-model": Rule(
        WARNING,
        "Triton takes each folder of a repository for a model. Where it loads all of them, which is the default, it "
        "does not start because of one that is none.",
    ),
    "model-setting": Rule(ERROR, "Triton refuses settings that cannot be kept together."),
    "label-file": Rule(
        ERROR, "Triton reads the labels when it loads the model; the path starts at the model's folder."
    ),
    "declared-twice": Rule(WARNING, "Triton goes by the first of them, and the second is there to mislead."),
    "bad-dims": Rule(ERROR, "A dimension is 1 or more, or -1 for any size."),
    "bad-reshape": Rule(ERROR, "A reshape keeps the number of elements, and each -1 in its place among them."),
    # an ensemble
    "ensemble-setting": Rule(ERROR, "An ensemble has no code of its own: it is scheduled, and runs on nothing."),
    "incomplete-tensor": Rule(
        ERROR, "Nothing completes this config: an ensemble has no code, and a Python model completes it only by code."
    ),
    "step-incomplete": Rule(ERROR, "A step is a model, at least one input and at least one output."),
    "missing-model": Rule(ERROR, "An ensemble is loaded only after the models of all its steps."),
    "version-not-served": Rule(ERROR, "An ensemble is loaded only when the very versions that it names are."),
    "ensemble-cycle": Rule(
        ERROR,
        "Each can be loaded only after the other. Triton 24.10 crashed where a further ensemble used one of them.",
    ),
    "batch-size": Rule(ERROR, "A request of the ensemble's batch size would not fit into this step."),
    "unknown-input": Rule(ERROR, "input_map goes from an input of the model to a tensor of the ensemble."),
    "unknown-output": Rule(ERROR, "output_map goes from an output of the model to a tensor of the ensemble."),
    "unmapped-input": Rule(ERROR, "The step could never run: an input that is not optional never gets a tensor."),
    "no-producer": Rule(ERROR, "The tensor is neither an input of the ensemble nor an output of a step."),
    "produced-twice": Rule(ERROR, "A tensor has one producer; its consumers could not tell two apart."),
    "unused-input": Rule(ERROR, "Triton refuses an ensemble that asks its clients for what no step takes."),
    "unused-tensor": Rule(ERROR, "Triton refuses a tensor that is neither taken by a step nor an output."),
    "tensor-cycle": Rule(ERROR, "Each of these steps waits for another one of them: none could ever start."),
    "dtype-mismatch": Rule(ERROR, "One tensor has one dtype, and Triton converts none."),
    "dims-mismatch": Rule(
        ERROR, "One tensor has one shape: the ends must agree, or leave a size open with -1. Batching adds a first -1."
    ),
    "mixed-decoupled": Rule(
        ERROR,
        "After a decoupled step there may be many tensors for one from before it, or none: Triton pairs them never "
        '("receives inputs originated from different decoupled models").',
    ),
    # accepted at load, and then
    "dims-conflict": Rule(
        WARNING,
        "Triton compares each end only with the first it meets, and that one is open here. The first request fails.",
    ),
    "batch-of-one": Rule(
        WARNING, "Triton can take the batch dimension off only where it is 1. Larger batches fail at run time."
    ),
    "optional-input": Rule(WARNING, "A client may leave it out; then the step lacks an input and the request fails."),
    "open-edge": Rule(
        NOTE,
        "Triton checks the size of a tensor only at its consumer's input. Where that is open, a producer that breaks "
        "its promise goes unnoticed.",
    ),
    "open-decoupled-edge": Rule(
        WARNING,
        "Response after response, no size is refused: a producer that sends all it sent before, or twice as much each "
        "time, is noticed by nobody until memory runs out.",
    ),
    "order-lost": Rule(
        WARNING,
        "The responses of one request are shared out among the instances, and the quicker one is ahead: the client "
        "gets them out of order.",
    ),
    "queue-limit": Rule(
        WARNING,
        "Where a step is called once for each response, a full queue leaves the ensemble's request without response or "
        "error: it hangs. Elsewhere the request is refused, 'Exceeds maximum queue size'. (Measured on Triton 24.10.)",
    ),
    "unenforced-output": Rule(
        NOTE, "Triton never compares what a Python model sends with its config; only a consumer's input is checked."
    ),
    "opaque-step": Rule(NOTE, "Configs do not tell it, so what it takes, gives or calls is not checked here."),
}


@dataclass(frozen=True)
class Place:
    """Where a finding is: a file of the repository, and inside it as far as that goes. Empty where it does not."""

    file: str
    ensemble: str = ""
    step: str = ""
    tensor: str = ""

    def __str__(self) -> str:
        parts = [self.file, self.step and f"step {self.step}", self.tensor and f"tensor {self.tensor}"]
        if self.ensemble and not self.file.startswith(f"{self.ensemble}/"):
            parts.insert(1, f"in {self.ensemble}")
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes
    ----------
    severity : str
        "error", "warning" or "note".
    rule : str
        Its kind, a key of `RULES`.
    place : Place
    message : str
        What is there.
    why : str
        Why it matters.
    change : str
        The change that mends it.
    """

    severity: str
    rule: str
    place: Place
    message: str
    why: str
    change: str


def check(repository: Repository, ensemble: str = "") -> list[Finding]:
    """All findings in a repository, the gravest first.

    Parameters
    ----------
    repository : Repository
        As `lab_utils.contract.read_repository` returns it.
    ensemble : str, optional
        Only what concerns this ensemble and the models in it.

    Raises
    ------
    ValueError
        The repository has no such ensemble.
    """
    models = repository.models
    found = [*_folder(repository), *_ensemble_cycles(repository)]
    for model in models.values():
        found += _model(model)
    for wiring in _wirings(models):
        for rules in ENSEMBLE_RULES:
            found += rules(wiring)
    if ensemble:
        found = _only(found, ensemble, repository)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _only(found: list[Finding], ensemble: str, repository: Repository) -> list[Finding]:
    ensemble_graph(ensemble, repository)  # raises where there is none
    names: set[str] = set()
    rest = [ensemble]
    while rest:
        name = rest.pop()
        if name in repository.models and name not in names:
            names.add(name)
            rest += [step.model_name for step in steps(repository.models[name], repository.models)]
    return [one for one in found if (one.place.ensemble or one.place.file.partition("/")[0]) in names]


def _found(rule: str, place: Place, message: str, change: str, severity: str = "") -> Finding:
    return Finding(severity or RULES[rule].severity, rule, place, message, RULES[rule].why, change)


# --- the repository and its models ------------------------------------------------------------------------------------


def _folder(repository: Repository) -> Iterator[Finding]:
    if (repository.folder / CONFIG).is_file():
        message = f"{CONFIG} lies beside the models, not in the folder of one"
        yield _found("config-misplaced", Place(CONFIG), message, f"move it to MODEL/{CONFIG}", WARNING)
    if repository.others:
        names = ", ".join(repository.others)
        message = f"{names}: neither a {CONFIG} nor a version folder"
        change = f"move {names} out of the repository, or start Triton with --model-control-mode=explicit"
        yield _found("not-a-model", Place(repository.others[0]), message, change)


def _ensemble_cycles(repository: Repository) -> Iterator[Finding]:
    models = repository.models
    parts = {name: [step.model_name for step in steps(models[name], models)] for name in repository.ensembles}
    cycle = _cycle(parts)
    if cycle:
        message = f"the ensembles contain one another: {' -> '.join(cycle)}"
        yield _found("ensemble-cycle", Place(f"{cycle[0]}/{CONFIG}", cycle[0]), message, "take one of these steps out")


def _cycle(parts: Mapping[str, Sequence[str]]) -> list[str]:
    try:
        TopologicalSorter(parts).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def _model(model: Model) -> Iterator[Finding]:
    if model.problem:
        yield _unreadable(model)
    elif not model.file:
        yield from _without_config(model)
    else:
        yield from _config(model)
        yield from _settings(model)
        yield from _ports(model)
    if not (model.served or model.problem):
        yield _no_version(model)


def _unreadable(model: Model) -> Finding:
    change = "mend that line, or the one before it"
    if "${" in model.file.read_text(encoding="utf-8", errors="replace"):
        change = "it is a template: fill in its ${...} first"
    return _found("config-unreadable", _file(model), f"not a model config: {model.problem}", change)


def _without_config(model: Model) -> Iterator[Finding]:
    inside = [version for version in model.on_disk if (model.folder / str(version) / CONFIG).is_file()]
    if inside:
        place = Place(f"{model.name}/{inside[0]}/{CONFIG}")
        message = f"{CONFIG} lies in the version folder: Triton does not see it"
        severity = WARNING if model.backend else ERROR
        yield _found("config-misplaced", place, message, f"move it to {model.name}/{CONFIG}", severity)
    elif not model.backend:
        message = f"no {CONFIG}, and no file in the version folder that tells the backend"
        change = f"write {model.name}/{CONFIG}, or put the model's file there, such as model.onnx"
        yield _found("no-config", _file(model), message, change)
    if CONFIGS in model.folders:
        message = f"its configs are in {CONFIGS}/ alone"
        yield _found("custom-config", Place(f"{model.name}/{CONFIGS}"), message, "name one with --model-config-name")


def _config(model: Model) -> Iterator[Finding]:
    config = model.config
    if model.ignored:
        change = "spell it as in Triton's model_config.proto, or run the Triton that knows it"
        yield _found("unknown-field", _file(model), f"the field {model.ignored} is unknown", change)
    if config.name != model.name:
        message = f"name is {config.name!r} in the folder {model.name!r}"
        yield _found("config-name", _file(model), message, "make them the same, or leave out the name")
    if not model.backend:
        named = f"platform {config.platform!r} names none" if config.platform else "neither backend nor platform"
        message = f"no backend: {named}, and no file in the version folder tells it"
        change = 'set backend, such as backend: "python", or put the model\'s file there, such as model.onnx'
        yield _found("no-backend", _file(model), message, change)


def _settings(model: Model) -> Iterator[Finding]:
    config = model.config
    for message, change in (*_batching_faults(config), *_order_faults(config.dynamic_batching), *_cache_faults(config)):
        yield _found("model-setting", _file(model), message, change)
    known = config.backend in PLATFORMS.values() and config.platform
    if known and not model.is_ensemble and PLATFORMS.get(config.platform) != config.backend:
        message = f"platform {config.platform!r} with backend {config.backend!r}"
        yield _found("model-setting", _file(model), message, "leave out platform")
    for output in config.output:
        if output.label_filename and not (model.folder / output.label_filename).is_file():
            place = Place(_file(model).file, tensor=output.name)
            message = f"label_filename: there is no {model.name}/{output.label_filename}"
            yield _found("label-file", place, message, "add the file, or take label_filename out")


def _batching_faults(config: ModelConfig) -> Iterator[tuple[str, str]]:
    most = config.max_batch_size
    if most < 0:
        yield f"max_batch_size is {most}", "set it to 0, or to the largest batch"
    preferred = [*config.dynamic_batching.preferred_batch_size, *config.sequence_batching.oldest.preferred_batch_size]
    for size in preferred:
        if not 0 < size <= most:
            change = (
                f"take it out, or choose sizes from 1 to {most}" if most > 0 else "take it out, or set max_batch_size"
            )
            yield f"preferred_batch_size {size} with max_batch_size {most}", change


def _order_faults(batching: ModelDynamicBatching) -> Iterator[tuple[str, str]]:
    levels, policies = batching.priority_levels, batching.priority_queue_policy
    outside = [level for level in policies if not 0 < level <= levels]
    if levels and not 0 < batching.default_priority_level <= levels:
        message = f"default_priority_level is {batching.default_priority_level} of {levels}"
        yield message, f"choose one from 1 to {levels}"
    if levels and outside:
        yield f"priority_queue_policy for level {outside[0]} of {levels}", f"choose levels from 1 to {levels}"
    if batching.preserve_ordering and levels > 1:
        yield f"preserve_ordering with {levels} priority levels", "keep one of the two"
    delays = [one for one in (batching.default_queue_policy, *policies.values()) if one.timeout_action == one.DELAY]
    if batching.preserve_ordering and any(one.default_timeout_microseconds for one in delays):
        yield "preserve_ordering with timeout_action DELAY", "use REJECT, or no time-out"


def _cache_faults(config: ModelConfig) -> Iterator[tuple[str, str]]:
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        yield "response_cache in a decoupled model", "take response_cache out"
    if config.response_cache.enable and config.HasField("sequence_batching"):
        yield "response_cache with sequence_batching", "take response_cache out"


def _no_version(model: Model) -> Finding:
    if model.on_disk:
        there = ", ".join(map(str, model.on_disk))
        message = f"version_policy asks for versions that are not there; there is: {there}"
        return _found("no-version", _file(model), message, "add the version folder, or change version_policy")
    change = f"make the folder {model.name}/1"
    if model.is_ensemble:
        change += "; it may be empty, but git keeps no empty folder: put a file such as .gitkeep in it"
    return _found("no-version", _file(model), "no version folder", change)


def _ports(model: Model) -> Iterator[Finding]:
    for tensors in (model.config.input, model.config.output):
        for name, times in Counter(tensor.name for tensor in tensors).items():
            if times > 1:
                place = Place(_file(model).file, tensor=name)
                yield _found("declared-twice", place, f"{name} is declared {times} times", "keep one of them")
    for port in (*model.inputs.values(), *model.outputs.values()):
        yield from _dims_faults(model, port)
        if model.is_ensemble or (model.source and not model.completes_itself):
            yield from _incomplete(model, port)


def _dims_faults(model: Model, port: Port) -> Iterator[Finding]:
    place = Place(_file(model).file, tensor=port.name)
    bad = [size for size in (*(port.dims or ()), *(port.inner or ())) if size < 1 and size != -1]
    if bad:
        message = f"{port.name} has a dimension of {bad[0]}"
        yield _found("bad-dims", place, message, "write the size, or -1 where it varies")
    elif port.inner != port.dims and _runs(port.inner or ()) != _runs(port.dims or ()):
        message = f"dims {_text(port.dims)} cannot be reshaped to {_text(port.inner)}"
        yield _found("bad-reshape", place, message, "give both the same number of elements")
    elif port.inner == () and model.config.max_batch_size == 0:
        message = f"{port.name} is reshaped to no dimension, and the model does not batch"
        yield _found("bad-reshape", place, message, "keep a dimension of 1: Triton has no scalars")


def _incomplete(model: Model, port: Port) -> Iterator[Finding]:
    there = {"name": port.name, "data_type": port.dtype != UNKNOWN, "dims": port.dims is not None}
    lacks = [field for field in there if not there[field]]
    if lacks:
        message = f"the tensor {port.name!r} has no {' and no '.join(lacks)}"
        place = Place(_file(model).file, tensor=port.name)
        yield _found("incomplete-tensor", place, message, f"add {' and '.join(lacks)}")


def _runs(dims: Sequence[int]) -> list[int]:
    """Number of elements before, between and after the open dimensions."""
    runs = [1]
    for size in dims:
        runs = [*runs, 1] if size == -1 else [*runs[:-1], runs[-1] * size]
    return runs


def _file(model: Model) -> Place:
    return Place(f"{model.name}/{CONFIG}")


# --- an ensemble, as Triton checks it when it loads it ----------------------------------------------------------------


@dataclass(frozen=True)
class _Wiring:
    """An ensemble with all that its rules look at.

    `fed` names the ensemble that calls this one once for each response, empty for none; `nested` tells whether
    any ensemble calls this one.
    """

    ensemble: Model
    models: Mapping[str, Model]
    steps: Sequence[Step]
    links: Sequence[Link]
    fed: str
    nested: bool

    def place(self, step: Step | None = None, tensor: str = "", file: str = "") -> Place:
        where = f"{step.number} ({step.model_name})" if step else ""
        return Place(file or _file(self.ensemble).file, self.ensemble.name, where, tensor)


def _wirings(models: Mapping[str, Model]) -> list[_Wiring]:
    ensembles = [model for model in models.values() if model.is_ensemble]
    parts = {one.name: steps(one, models) for one in ensembles}
    joined = {one.name: links(one, models) for one in ensembles}
    nested = {step.model_name for each in parts.values() for step in each}
    fed = _fed(joined, parts)
    return [
        _Wiring(one, models, parts[one.name], joined[one.name], fed.get(one.name, ""), one.name in nested)
        for one in ensembles
    ]


def _fed(joined: Mapping[str, Sequence[Link]], parts: Mapping[str, Sequence[Step]]) -> dict[str, str]:
    """Ensembles that another one calls once for each response, with the name of that one."""
    fed: dict[str, str] = {}
    for outer, all_links in joined.items():
        ends = [link.consumer for link in all_links if link.per_response]
        fed |= {end.step.model_name: outer for end in ends if end.step and end.step.model_name in parts}
    rest = list(fed)
    while rest:
        name = rest.pop()
        inner = {step.model_name for step in parts[name] if step.model_name in parts} - set(fed)
        fed |= dict.fromkeys(inner, fed[name])
        rest += inner
    return fed


def _ensemble_settings(it: _Wiring) -> Iterator[Finding]:
    config, name = it.ensemble.config, it.ensemble.name
    if config.platform != ENSEMBLE:
        message = f"ensemble_scheduling with platform {config.platform!r}"
        yield _found("ensemble-setting", it.place(), message, 'set platform: "ensemble"')
    elif config.backend:
        message = f"an ensemble with backend {config.backend!r}"
        yield _found("ensemble-setting", it.place(), message, "leave out backend")
    for field in ("instance_group", "optimization", "model_warmup"):
        if any(descriptor.name == field for descriptor, _ in config.ListFields()):
            message = f"an ensemble with {field}"
            yield _found("ensemble-setting", it.place(), message, f"move {field} to the models of its steps")
    if not it.steps:
        message = f"{name} has no steps"
        yield _found("step-incomplete", it.place(), message, "add ensemble_scheduling { step [ ... ] }")


def _cached_stream(it: _Wiring) -> Iterator[Finding]:
    if it.ensemble.config.response_cache.enable and is_decoupled(it.ensemble, it.models):
        message = f"response_cache in {it.ensemble.name}, which a step makes decoupled"
        yield _found("model-setting", it.place(), message, "take response_cache out")


def _step_models(it: _Wiring) -> Iterator[Finding]:
    for step in it.steps:
        there = {"model_name": step.model_name, "input_map": step.inputs, "output_map": step.outputs}
        lacks = [field for field in there if not there[field]]
        if lacks:
            message = f"step {step.number} has no {' and no '.join(lacks)}"
            yield _found("step-incomplete", it.place(step), message, f"add {' and '.join(lacks)}")
        if step.model_name and not step.model:
            yield _missing(it, step)
        if step.model:
            yield from _version(it, step)
            yield from _batch(it, step)


def _missing(it: _Wiring, step: Step) -> Finding:
    message = f"the repository has no model {step.model_name!r}"
    change = "add it, or give the right model_name; ignore this if Triton is given a second repository with it"
    named = [model.name for model in it.models.values() if model.config.name == step.model_name]
    if named:
        message += f"; the config in the folder {named[0]!r} has that name"
        change = f"rename the folder {named[0]!r}: it is what counts"
    return _found("missing-model", it.place(step), message, change)


def _version(it: _Wiring, step: Step) -> Iterator[Finding]:
    model = step.model
    if step.version == -1 or step.version in model.served or not model.served or model.problem:
        return
    there = ", ".join(map(str, model.served))
    wanted = f"model_version is {step.version}"
    if step.version == 0:
        wanted = "model_version is 0, which is also what leaving it out means"
    message = f"{wanted}; {model.name} serves {there}"
    change = "set model_version: -1 for the latest"
    if step.version in model.on_disk:
        change += f", or let version_policy in {model.name}/{CONFIG} serve version {step.version}"
    yield _found("version-not-served", it.place(step), message, change)


def _batch(it: _Wiring, step: Step) -> Iterator[Finding]:
    size, most = it.ensemble.config.max_batch_size, step.model.config.max_batch_size
    if 0 < most < size:
        message = f"the ensemble takes batches of {size}, {step.model_name} only of {most}"
        change = f"set max_batch_size of {it.ensemble.name} to {most}, or that of {step.model_name} to {size}"
        yield _found("batch-size", it.place(step), message, change)


def _maps(it: _Wiring) -> Iterator[Finding]:
    for step in it.steps:
        if step.model and not step.model.problem:
            yield from _unknown(it, step, "input", step.inputs, step.model.inputs)
            yield from _unknown(it, step, "output", step.outputs, step.model.outputs)
            for port in step.model.inputs.values() if step.inputs else ():
                if port.name not in step.inputs and not port.optional:
                    message = f"{step.model_name} needs {port.name}, and input_map gives it none"
                    change = f'add input_map {{ key: "{port.name}" value: "..." }}, or make the input optional'
                    yield _found("unmapped-input", it.place(step, port.name), message, change)


def _outputs_declared_twice(it: _Wiring) -> Iterator[Finding]:
    for step in it.steps:
        names = Counter(output.name for output in step.model.config.output) if step.model else {}
        for name in step.outputs:
            if names.get(name, 0) > 1:
                message = (
                    f"{step.outputs[name]} comes from {name}, which {step.model_name} declares {names[name]} times"
                )
                change = f"declare {name} once in {step.model_name}/{CONFIG}"
                yield _found("produced-twice", it.place(step, step.outputs[name]), message, change)


def _unknown(it: _Wiring, step: Step, kind: str, mapped: Mapping, ports: Mapping[str, Port]) -> Iterator[Finding]:
    for name in mapped if step.model.lists_all(ports) else ():
        if name not in ports:
            message = f"{step.model_name} has no {kind} {name}; it has {', '.join(ports) or 'none'}"
            change = f"give one of these as key in {kind}_map"
            yield _found(f"unknown-{kind}", it.place(step, name), message, change)


def _flow(it: _Wiring) -> Iterator[Finding]:
    makers = Counter(name for step in it.steps for name in step.outputs.values())
    taken = {name for step in it.steps for name in step.inputs.values()}
    made = {*it.ensemble.inputs, *makers}
    for step in it.steps:
        for name in sorted(set(step.inputs.values()) - made):
            message = f"step {step.number} takes {name}, which nothing produces"
            yield _no_producer(it, step, name, message)
    for name in it.ensemble.outputs:
        if name not in made:
            yield _no_producer(it, None, name, f"the output {name} is produced by nothing")
    for name, times in makers.items():
        if times > 1:
            message = f"{name} is in {times} output_maps"
            yield _found("produced-twice", it.place(tensor=name), message, "give each its own name")
        if name not in taken and name not in it.ensemble.outputs:
            message = f"{name} is produced and taken by nothing"
            change = "take it out of output_map, or make it an output"
            yield _found("unused-tensor", it.place(tensor=name), message, change)
    for name in it.ensemble.inputs:
        if name not in taken:
            message = f"no step takes the input {name}"
            yield _found("unused-input", it.place(tensor=name), message, "map it to a step, or take it out")
    yield from _tensor_cycle(it)


def _no_producer(it: _Wiring, step: Step | None, name: str, message: str) -> Finding:
    change = f"name a tensor that is produced, or add {name} to the output_map of a step or to the ensemble's inputs"
    return _found("no-producer", it.place(step, name), message, change)


def _tensor_cycle(it: _Wiring) -> Iterator[Finding]:
    given = set(it.ensemble.inputs)
    makers = {name: step for step in it.steps for name in step.outputs.values() if name not in given}
    needs = {
        str(step.number): [str(makers[name].number) for name in step.inputs.values() if name in makers]
        for step in it.steps
    }
    cycle = _cycle(needs)
    if cycle:
        names = [it.steps[int(number) - 1].node for number in cycle]
        message = f"the steps wait for each other: {' -> '.join(names)}"
        yield _found("tensor-cycle", it.place(it.steps[int(cycle[0]) - 1]), message, "take one tensor out of the ring")


def _types(it: _Wiring) -> Iterator[Finding]:
    """Compare as Triton does: each end with the first one of that tensor, the ensemble's own before the steps'."""
    first: dict[str, tuple[str, End]] = {}
    clashing: set[str] = set()
    for name, verb, end in _claims(it):
        said, other = first.setdefault(name, (verb, end))
        if len({other.port.dtype, end.port.dtype} - {UNKNOWN}) > 1:
            message = f"{_claim(other, said, other.port.dtype)}, {_claim(end, verb, end.port.dtype)}"
            change = "declare the same data_type at both ends, or put a step between that converts"
            yield _found("dtype-mismatch", it.place(end.step, name), f"{name}: {message}", change)
        if not _fit(other, end):
            clashing.add(name)
            message = f"{_claim(other, said, _shape(other))}, {_claim(end, verb, _shape(end))}"
            yield _found("dims-mismatch", it.place(end.step, name), f"{name}: {message}", _dims_change(other, end))
    yield from _conflicts(it, clashing)


def _claims(it: _Wiring) -> Iterator[tuple[str, str, End]]:
    """Each end of each tensor, in Triton's order, with what it does."""
    own = it.ensemble
    yield from ((name, "sends", client_end(own, port)) for name, port in own.inputs.items())
    outputs = {name: port for name, port in own.outputs.items() if name not in own.inputs}
    yield from ((name, "receives", client_end(own, port)) for name, port in outputs.items())
    for step in it.steps:
        yield from ((step.inputs[end.port.name], "takes", end) for end in input_ends(step))
        yield from ((step.outputs[end.port.name], "gives", end) for end in output_ends(step))


def _conflicts(it: _Wiring, clashing: set[str]) -> Iterator[Finding]:
    for link in it.links:
        if link.tensor not in clashing and not _fit(link.producer, link.consumer):
            gives, takes = _shape(link.producer), _shape(link.consumer)
            message = f"{link.tensor}: {link.producer.node} gives {gives}, {link.consumer.node} takes {takes}"
            change = _dims_change(link.producer, link.consumer)
            yield _found("dims-conflict", it.place(link.consumer.step, link.tensor), message, change)


def _fit(one: End, other: End) -> bool:
    """Whether two ends agree for Triton: as declared, or with their batch dimensions."""
    if one.dims is None or other.dims is None or _agree(one.dims, other.dims):
        return True
    return any(_agree(first, second) for first in _shapes(one) for second in _shapes(other))


def _shapes(end: End) -> list[tuple[int, ...]]:
    """The full shape; both that it can be where batching is unknown."""
    return [end.dims, (-1, *end.dims)] if end.shape is None else [end.shape]


def _agree(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _claim(end: End, verb: str, what: str) -> str:
    inner = f" (its {'output' if verb == 'gives' else 'input'} {end.port.name})" if end.step else ""
    return f"{end.node} {verb} {what}{inner}"


def _shape(end: End) -> str:
    batch = ", the first -1 being the batch" if end.max_batch_size else ""
    return f"{_text(end.dims if end.shape is None else end.shape)}{batch}"


def _text(dims: Sequence[int] | None) -> str:
    return UNKNOWN if dims is None else str(list(dims))


def _dims_change(one: End, other: End) -> str:
    if bool(one.max_batch_size) != bool(other.max_batch_size):
        return "count the batch dimension: dims of a model with max_batch_size 0 are the whole shape, batch included"
    return "declare the same dims at both ends, or -1 where the size varies"


def _mixed(it: _Wiring) -> Iterator[Finding]:
    """Follow the tensors: each belongs to the client's request, or to the last decoupled step before it."""
    origin: dict[str, str] = dict.fromkeys(it.ensemble.inputs, "the client's request")
    rest = [step for step in it.steps if step.inputs]
    while ready := [step for step in rest if set(step.inputs.values()) <= set(origin)]:
        for step in ready:
            rest.remove(step)
            names = set(step.inputs.values())
            if len({origin[name] for name in names}) > 1:
                yield _mixture(it, step, names, origin)
                continue
            after = f"the decoupled {step.node}" if is_decoupled(step.model, it.models) else origin[min(names)]
            origin |= dict.fromkeys(step.outputs.values(), after)
    outputs = {name for name in it.ensemble.outputs if name in origin}
    if len({origin[name] for name in outputs}) > 1:
        yield _mixture(it, None, outputs, origin)


def _mixture(it: _Wiring, step: Step | None, names: set[str], origin: Mapping[str, str]) -> Finding:
    parts = ", ".join(f"{name} from {origin[name]}" for name in sorted(names))
    taker = f"{step.node} takes" if step else "the client receives"
    change = "send what belongs together through the decoupled step, so that each of its responses carries all of it"
    return _found("mixed-decoupled", it.place(step), f"{taker} {parts}", change)


# --- an ensemble, beyond what Triton checks ---------------------------------------------------------------------------


def _batch_of_one(it: _Wiring) -> Iterator[Finding]:
    for link in it.links:
        one, other = link.producer, link.consumer
        unknown = None in (one.dims, other.dims, one.max_batch_size, other.max_batch_size)
        if unknown or not other.step or other.max_batch_size or it.ensemble.config.max_batch_size < 2:
            continue
        if one.max_batch_size > 1 and _agree(one.dims, other.dims):
            message = f"{link.tensor}: {one.node} gives batches of {_text(one.dims)}, {other.node} takes no batches"
            change = f"let {other.node} take {_text(one.shape)}, or batch; or set max_batch_size of the ensemble to 1"
            yield _found("batch-of-one", it.place(other.step, link.tensor), message, change)


def _optional(it: _Wiring) -> Iterator[Finding]:
    for link in it.links:
        sent, taken = link.producer, link.consumer
        known = taken.step and taken.port.name in (taken.step.model.inputs if taken.step.model else {})
        if not sent.step and sent.port.optional and known and not taken.port.optional:
            message = f"{link.tensor} is optional for the client, and {taken.port.name} is not for {taken.node}"
            change = "make both optional, or neither"
            yield _found("optional-input", it.place(taken.step, link.tensor), message, change)


def _open_edges(it: _Wiring) -> Iterator[Finding]:
    """One finding for each step and rule, with all tensors concerned."""
    for step in it.steps:
        entering = [link for link in it.links if link.consumer.step == step and _comparable(link)]
        often = [link for link in entering if link.per_response or it.fed]
        unbounded = [link for link in often if (-1, -1) in _pairs(link)]
        if unbounded:
            message = f"open once for each response{_by(it)}: {_ends(unbounded)}"
            change = f"declare the sizes that {step.node} expects in the dims of {_inputs(unbounded)}"
            change += "; where they vary, assert in its code what they may be"
            yield _found("open-decoupled-edge", _inside(it, step, unbounded), message, change)
        loose = [link for link in entering if link not in unbounded and _is_loose(link)]
        if loose:
            grave = any(link in often and link.producer.step.model.backend == "python" for link in loose)
            wanted = ", ".join(f"{link.consumer.port.name} to {_text(link.producer.dims)}" for link in loose)
            change = f"if {step.node} is meant for nothing else, set the dims of {wanted}"
            yield _found(
                "open-edge",
                _inside(it, step, loose),
                f"more open than promised: {_ends(loose)}",
                change,
                WARNING if grave else NOTE,
            )


def _comparable(link: Link) -> bool:
    one, other = link.producer, link.consumer
    known = None not in (one.dims, other.dims, one.max_batch_size, other.max_batch_size)
    if not (one.step and known and len(one.dims) == len(other.dims)):
        return False
    return bool(one.max_batch_size) == bool(other.max_batch_size)


def _pairs(link: Link) -> list[tuple[int, int]]:
    return list(zip(link.producer.dims, link.consumer.dims, strict=True))


def _is_loose(link: Link) -> bool:
    return any(promised != -1 and accepted == -1 for promised, accepted in _pairs(link))


def _ends(all_links: Sequence[Link]) -> str:
    """Such as "pre -> post: IDS [4] -> [-1], END [1]"."""
    carried: dict[tuple[str, str], list[str]] = {}
    for link in all_links:
        gives, takes = _text(link.producer.dims), _text(link.consumer.dims)
        dims = gives if gives == takes else f"{gives} -> {takes}"
        carried.setdefault((link.producer.node, link.consumer.node), []).append(f"{link.tensor} {dims}")
    return "; ".join(f"{one} -> {other}: {', '.join(names)}" for (one, other), names in carried.items())


def _inputs(all_links: Sequence[Link]) -> str:
    return ", ".join(link.consumer.port.name for link in all_links)


def _inside(it: _Wiring, step: Step, all_links: Sequence[Link] = ()) -> Place:
    """A place in the config of a step's model, not in that of the ensemble."""
    tensors = ", ".join(dict.fromkeys(link.tensor for link in all_links))
    return it.place(step, tensors, f"{step.model_name}/{CONFIG}")


def _by(it: _Wiring) -> str:
    return f" of {it.fed}" if it.fed else ""


def _order(it: _Wiring) -> Iterator[Finding]:
    often = _called_often(it)
    for step in it.steps:
        model = step.model
        if step.number not in often or not model or not model.file or model.problem or model.is_ensemble:
            continue
        if model.config.dynamic_batching.preserve_ordering or model.config.HasField("sequence_batching"):
            continue
        count, more = instances(model)
        if count > 1 or more:
            message = f"{step.node} gets one call for each response{_by(it)}, and has "
            message += f"{count} instances" if count > 1 else more
            change = (
                "set dynamic_batching { preserve_ordering: true }, or instance_group [ { kind: KIND_CPU count: 1 } ]"
            )
            yield _found("order-lost", _inside(it, step), message, change, "" if count > 1 else NOTE)


def instances(model: Model) -> tuple[int, str]:
    """How many instances a model has for certain, and why it may have more: empty if it may not.

    Without a count Triton takes 1, and 2 for ONNX and TensorFlow on a CPU; without a kind, the GPUs if there are any.
    """
    groups = list(model.config.instance_group) or [ModelInstanceGroup()]
    count = sum(_count(group, model.backend) * (len(group.gpus) or 1) for group in groups)
    kinds = {group.kind for group in groups if not group.gpus}
    if not kinds & {ModelInstanceGroup.KIND_AUTO, ModelInstanceGroup.KIND_GPU}:
        return count, ""
    more = "one instance for each GPU of the machine"
    if model.backend in TWO_ON_CPU and any(group.kind == group.KIND_AUTO and not group.count for group in groups):
        more += ", two where there is none"
    return count, more


def _count(group: ModelInstanceGroup, backend: str) -> int:
    two = group.kind == ModelInstanceGroup.KIND_CPU and backend in TWO_ON_CPU
    return group.count or (2 if two else 1)


def _queues(it: _Wiring) -> Iterator[Finding]:
    often = _called_often(it)
    for step in it.steps:
        batching = step.model.config.dynamic_batching if step.model else ModelDynamicBatching()
        policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
        limits = [policy.max_queue_size for policy in policies if policy.max_queue_size]
        if limits and step.number in often:
            message = f"{step.node} gets one call for each response{_by(it)}, and has max_queue_size {limits[0]}"
            change = "take max_queue_size out, and limit the requests where they enter, at the client or a proxy"
            yield _found("queue-limit", _inside(it, step), message, change)
        elif limits:
            message = f"{step.node} has max_queue_size {limits[0]}"
            yield _found("queue-limit", _inside(it, step), message, "nothing, if clients expect refusals", NOTE)


def _called_often(it: _Wiring) -> set[int]:
    """Numbers of the steps that are called once for each response."""
    return {link.consumer.step.number for link in it.links if link.consumer.step and (link.per_response or it.fed)}


def _unenforced(it: _Wiring) -> Iterator[Finding]:
    taken = {link.tensor for link in it.links if link.consumer.step}
    for step in [] if it.nested else it.steps:
        if step.model and step.model.backend == "python":
            fixed = [name for name, port in step.model.outputs.items() if port.dims and set(port.dims) != {-1}]
            names = [name for name in fixed if name in step.outputs and step.outputs[name] not in taken]
            if names:
                message = f"{step.node} promises the dims of {', '.join(names)} to the client, and nobody checks them"
                change = "let the client, or an assertion in the model's code, check them"
                yield _found("unenforced-output", _inside(it, step), message, change)


def _opaque(it: _Wiring) -> Iterator[Finding]:
    for step in it.steps:
        if step.model and step.model.opaque and not step.model.problem:
            message = f"{step.node} is opaque: {step.model.opaque}"
            change = "nothing, if that is meant; a config with all inputs and outputs can be checked"
            if step.model.calls_models:
                change = "nothing, if that is meant; check the models that it calls by hand"
            yield _found("opaque-step", _inside(it, step), message, change)


ENSEMBLE_RULES = (
    *(_ensemble_settings, _cached_stream, _step_models, _maps, _outputs_declared_twice, _flow, _types, _mixed),
    *(_batch_of_one, _optional, _open_edges, _order, _queues, _unenforced, _opaque),
)


# --- to read and to store ---------------------------------------------------------------------------------------------


def findings_table(findings: Sequence[Finding]) -> str:
    """One line for each finding; "no findings" without any."""
    rows = [(one.severity, one.rule, str(one.place), one.message) for one in findings]
    return table(["severity", "rule", "place", "what is there"], rows) if rows else "no findings"


def report(findings: Sequence[Finding]) -> str:
    """A paragraph for each finding: what is there, why it matters, what to change."""
    return "\n\n".join(
        f"{one.severity}: {one.rule}: {one.place}\n  {one.message}\n  why: {one.why}\n  change: {one.change}"
        for one in findings
    )


def summary(findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity, such as "1 error, 2 warnings, 0 notes"."""
    counts = Counter(one.severity for one in findings)
    return ", ".join(f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}" for name in SEVERITIES)


def to_json(repository: Repository, findings: Sequence[Finding], ensemble: str = "") -> str:
    """Graphs and findings as JSON text: ``repository``, ``models``, ``ensembles``, ``counts`` and ``findings``.

    Unknown dims and batch sizes are null; an unknown dtype is "?".
    """
    counts = Counter(one.severity for one in findings)
    names = [ensemble] if ensemble else repository.ensembles
    document = {
        "repository": str(repository.folder),
        "models": len(repository.models),
        "ensembles": [asdict(ensemble_graph(name, repository)) for name in names],
        "counts": {name: counts[name] for name in SEVERITIES},
        "findings": [{**asdict(one), "place": asdict(one.place)} for one in findings],
    }
    return json.dumps(document, ensure_ascii=False, indent=2)
