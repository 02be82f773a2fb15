"""What Triton refuses in an ensemble when it loads it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from lab_utils.contract import (
    CONFIG,
    ENSEMBLE,
    UNKNOWN,
    End,
    Link,
    Model,
    Port,
    Repository,
    Step,
    client_end,
    input_ends,
    is_decoupled,
    links,
    output_ends,
    steps,
)
from lab_utils.contract_finding import Finding, Place, dims_text, file_of, found


@dataclass(frozen=True)
class Wiring:
    """An ensemble with all that its rules look at.

    Attributes
    ----------
    fed : str
        The ensemble that calls this one once for each response; empty for none.
    nested : bool
        Whether any ensemble calls this one.
    """

    ensemble: Model
    models: Mapping[str, Model]
    steps: Sequence[Step]
    links: Sequence[Link]
    fed: str
    nested: bool

    def place(self, step: Step | None = None, tensor: str = "", file: str = "") -> Place:
        """A place in this ensemble; `file` where it is not the ensemble's own config."""
        where = f"{step.number} ({step.model_name})" if step else ""
        return Place(file or file_of(self.ensemble).file, self.ensemble.name, where, tensor)


def wirings(models: Mapping[str, Model]) -> list[Wiring]:
    """One for each ensemble."""
    ensembles = [model for model in models.values() if model.is_ensemble]
    parts = {one.name: steps(one, models) for one in ensembles}
    joined = {one.name: links(one, models) for one in ensembles}
    nested = {step.model_name for each in parts.values() for step in each}
    fed = _fed(joined, parts)
    return [
        Wiring(one, models, parts[one.name], joined[one.name], fed.get(one.name, ""), one.name in nested)
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


def ensemble_cycles(repository: Repository) -> Iterator[Finding]:
    """Ensembles that contain one another."""
    models = repository.models
    parts = {name: [step.model_name for step in steps(models[name], models)] for name in repository.ensembles}
    cycle = _ring(parts)
    if cycle:
        message = f"the ensembles contain one another: {' -> '.join(cycle)}"
        yield found("ensemble-cycle", Place(f"{cycle[0]}/{CONFIG}", cycle[0]), message, "take one of these steps out")


def _ring(parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Names that need one another in a ring, of a mapping from each name to those it needs; empty for none."""
    try:
        TopologicalSorter(parts).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def _ensemble_settings(it: Wiring) -> Iterator[Finding]:
    config, name = it.ensemble.config, it.ensemble.name
    if config.platform != ENSEMBLE:
        message = f"ensemble_scheduling with platform {config.platform!r}"
        yield found("ensemble-setting", it.place(), message, 'set platform: "ensemble"')
    elif config.backend:
        message = f"an ensemble with backend {config.backend!r}"
        yield found("ensemble-setting", it.place(), message, "leave out backend")
    for field in ("instance_group", "optimization", "model_warmup"):
        if any(descriptor.name == field for descriptor, _ in config.ListFields()):
            message = f"an ensemble with {field}"
            yield found("ensemble-setting", it.place(), message, f"move {field} to the models of its steps")
    if not it.steps:
        message = f"{name} has no steps"
        yield found("step-incomplete", it.place(), message, "add ensemble_scheduling { step [ ... ] }")


def _cached_stream(it: Wiring) -> Iterator[Finding]:
    if it.ensemble.config.response_cache.enable and is_decoupled(it.ensemble, it.models):
        message = f"response_cache in {it.ensemble.name}, which a step makes decoupled"
        yield found("model-setting", it.place(), message, "take response_cache out")


def _step_models(it: Wiring) -> Iterator[Finding]:
    for step in it.steps:
        there = {"model_name": step.model_name, "input_map": step.inputs, "output_map": step.outputs}
        lacks = [field for field in there if not there[field]]
        if lacks:
            message = f"step {step.number} has no {' and no '.join(lacks)}"
            yield found("step-incomplete", it.place(step), message, f"add {' and '.join(lacks)}")
        if step.model_name and not step.model:
            yield _missing(it, step)
        if step.model:
            yield from _version(it, step)
            yield from _batch(it, step)


def _missing(it: Wiring, step: Step) -> Finding:
    message = f"the repository has no model {step.model_name!r}"
    change = "add it, or give the right model_name; ignore this if Triton is given a second repository with it"
    named = [model.name for model in it.models.values() if model.config.name == step.model_name]
    if named:
        message += f"; the config in the folder {named[0]!r} has that name"
        change = f"rename the folder {named[0]!r}: it is what counts"
    return found("missing-model", it.place(step), message, change)


def _version(it: Wiring, step: Step) -> Iterator[Finding]:
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
    yield found("version-not-served", it.place(step), message, change)


def _batch(it: Wiring, step: Step) -> Iterator[Finding]:
    size, most = it.ensemble.config.max_batch_size, step.model.config.max_batch_size
    if 0 < most < size:
        message = f"the ensemble takes batches of {size}, {step.model_name} only of {most}"
        change = f"set max_batch_size of {it.ensemble.name} to {most}, or that of {step.model_name} to {size}"
        yield found("batch-size", it.place(step), message, change)


def _maps(it: Wiring) -> Iterator[Finding]:
    for step in it.steps:
        if step.model and not step.model.problem:
            yield from _unknown(it, step, "input", step.inputs, step.model.inputs)
            yield from _unknown(it, step, "output", step.outputs, step.model.outputs)
            for port in step.model.inputs.values() if step.inputs else ():
                if port.name not in step.inputs and not port.optional:
                    message = f"{step.model_name} needs {port.name}, and input_map gives it none"
                    change = f'add input_map {{ key: "{port.name}" value: "..." }}, or make the input optional'
                    yield found("unmapped-input", it.place(step, port.name), message, change)


def _outputs_declared_twice(it: Wiring) -> Iterator[Finding]:
    for step in it.steps:
        names = Counter(output.name for output in step.model.config.output) if step.model else {}
        for name in step.outputs:
            if names.get(name, 0) > 1:
                message = (
                    f"{step.outputs[name]} comes from {name}, which {step.model_name} declares {names[name]} times"
                )
                change = f"declare {name} once in {step.model_name}/{CONFIG}"
                yield found("produced-twice", it.place(step, step.outputs[name]), message, change)


def _unknown(it: Wiring, step: Step, kind: str, mapped: Mapping, ports: Mapping[str, Port]) -> Iterator[Finding]:
    for name in mapped if step.model.lists_all(ports) else ():
        if name not in ports:
            message = f"{step.model_name} has no {kind} {name}; it has {', '.join(ports) or 'none'}"
            change = f"give one of these as key in {kind}_map"
            yield found(f"unknown-{kind}", it.place(step, name), message, change)


def _flow(it: Wiring) -> Iterator[Finding]:
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
            yield found("produced-twice", it.place(tensor=name), message, "give each its own name")
        if name not in taken and name not in it.ensemble.outputs:
            message = f"{name} is produced and taken by nothing"
            change = "take it out of output_map, or make it an output"
            yield found("unused-tensor", it.place(tensor=name), message, change)
    for name in it.ensemble.inputs:
        if name not in taken:
            message = f"no step takes the input {name}"
            yield found("unused-input", it.place(tensor=name), message, "map it to a step, or take it out")
    yield from _tensor_cycle(it)


def _no_producer(it: Wiring, step: Step | None, name: str, message: str) -> Finding:
    change = f"name a tensor that is produced, or add {name} to the output_map of a step or to the ensemble's inputs"
    return found("no-producer", it.place(step, name), message, change)


def _tensor_cycle(it: Wiring) -> Iterator[Finding]:
    given = set(it.ensemble.inputs)
    makers = {name: step for step in it.steps for name in step.outputs.values() if name not in given}
    needs = {
        str(step.number): [str(makers[name].number) for name in step.inputs.values() if name in makers]
        for step in it.steps
    }
    cycle = _ring(needs)
    if cycle:
        names = [it.steps[int(number) - 1].node for number in cycle]
        message = f"the steps wait for each other: {' -> '.join(names)}"
        yield found("tensor-cycle", it.place(it.steps[int(cycle[0]) - 1]), message, "take one tensor out of the ring")


def _types(it: Wiring) -> Iterator[Finding]:
    """Compare as Triton does: each end with the first one of that tensor, the ensemble's own before the steps'."""
    first: dict[str, tuple[str, End]] = {}
    clashing: set[str] = set()
    for name, verb, end in _claims(it):
        said, other = first.setdefault(name, (verb, end))
        if len({other.port.dtype, end.port.dtype} - {UNKNOWN}) > 1:
            message = f"{_claim(other, said, other.port.dtype)}, {_claim(end, verb, end.port.dtype)}"
            change = "declare the same data_type at both ends, or put a step between that converts"
            yield found("dtype-mismatch", it.place(end.step, name), f"{name}: {message}", change)
        if not _fit(other, end):
            clashing.add(name)
            message = f"{_claim(other, said, _shape(other))}, {_claim(end, verb, _shape(end))}"
            yield found("dims-mismatch", it.place(end.step, name), f"{name}: {message}", _dims_change(other, end))
    yield from _conflicts(it, clashing)


def _claims(it: Wiring) -> Iterator[tuple[str, str, End]]:
    """Each end of each tensor, in Triton's order, with what it does."""
    own = it.ensemble
    yield from ((name, "sends", client_end(own, port)) for name, port in own.inputs.items())
    outputs = {name: port for name, port in own.outputs.items() if name not in own.inputs}
    yield from ((name, "receives", client_end(own, port)) for name, port in outputs.items())
    for step in it.steps:
        yield from ((step.inputs[end.port.name], "takes", end) for end in input_ends(step))
        yield from ((step.outputs[end.port.name], "gives", end) for end in output_ends(step))


def _conflicts(it: Wiring, clashing: set[str]) -> Iterator[Finding]:
    for link in it.links:
        if link.tensor not in clashing and not _fit(link.producer, link.consumer):
            gives, takes = _shape(link.producer), _shape(link.consumer)
            message = f"{link.tensor}: {link.producer.node} gives {gives}, {link.consumer.node} takes {takes}"
            change = _dims_change(link.producer, link.consumer)
            yield found("dims-conflict", it.place(link.consumer.step, link.tensor), message, change)


def _fit(one: End, other: End) -> bool:
    """Whether two ends agree for Triton: as declared, or with their batch dimensions."""
    if one.dims is None or other.dims is None or agree(one.dims, other.dims):
        return True
    return any(agree(first, second) for first in _shapes(one) for second in _shapes(other))


def _shapes(end: End) -> list[tuple[int, ...]]:
    """The full shape; both that it can be where batching is unknown."""
    return [end.dims, (-1, *end.dims)] if end.shape is None else [end.shape]


def agree(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether dims are the same; -1 agrees with any size."""
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _claim(end: End, verb: str, what: str) -> str:
    inner = f" (its {'output' if verb == 'gives' else 'input'} {end.port.name})" if end.step else ""
    return f"{end.node} {verb} {what}{inner}"


def _shape(end: End) -> str:
    batch = ", the first -1 being the batch" if end.max_batch_size else ""
    return f"{dims_text(end.dims if end.shape is None else end.shape)}{batch}"


def _dims_change(one: End, other: End) -> str:
    if bool(one.max_batch_size) != bool(other.max_batch_size):
        return "count the batch dimension: dims of a model with max_batch_size 0 are the whole shape, batch included"
    return "declare the same dims at both ends, or -1 where the size varies"


def _mixed(it: Wiring) -> Iterator[Finding]:
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


def _mixture(it: Wiring, step: Step | None, names: set[str], origin: Mapping[str, str]) -> Finding:
    parts = ", ".join(f"{name} from {origin[name]}" for name in sorted(names))
    taker = f"{step.node} takes" if step else "the client receives"
    change = "send what belongs together through the decoupled step, so that each of its responses carries all of it"
    return found("mixed-decoupled", it.place(step), f"{taker} {parts}", change)


RULES_OF_TRITON = (
    *(_ensemble_settings, _cached_stream, _step_models, _maps),
    *(_outputs_declared_twice, _flow, _types, _mixed),
)
