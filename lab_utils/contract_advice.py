"""What Triton accepts in an ensemble, and what then fails or goes unnoticed at run time."""

from collections.abc import Iterator, Sequence

from tritonclient.grpc.model_config_pb2 import ModelDynamicBatching, ModelInstanceGroup

from lab_utils.contract import CONFIG, Link, Model, Step
from lab_utils.contract_ensembles import Wiring, agree
from lab_utils.contract_finding import NOTE, WARNING, Finding, Place, dims_text, found

TWO_ON_CPU = ("onnxruntime", "tensorflow")  # backends with two instances on a CPU where no count is given


def _batch_of_one(it: Wiring) -> Iterator[Finding]:
    for link in it.links:
        one, other = link.producer, link.consumer
        unknown = None in (one.dims, other.dims, one.max_batch_size, other.max_batch_size)
        if unknown or not other.step or other.max_batch_size or it.ensemble.config.max_batch_size < 2:
            continue
        if one.max_batch_size > 1 and agree(one.dims, other.dims):
            message = f"{link.tensor}: {one.node} gives batches of {dims_text(one.dims)}, {other.node} takes no batches"
            change = (
                f"let {other.node} take {dims_text(one.shape)}, or batch; or set max_batch_size of the ensemble to 1"
            )
            yield found("batch-of-one", it.place(other.step, link.tensor), message, change)


def _optional(it: Wiring) -> Iterator[Finding]:
    for link in it.links:
        sent, taken = link.producer, link.consumer
        known = taken.step and taken.port.name in (taken.step.model.inputs if taken.step.model else {})
        if not sent.step and sent.port.optional and known and not taken.port.optional:
            message = f"{link.tensor} is optional for the client, and {taken.port.name} is not for {taken.node}"
            change = "make both optional, or neither"
            yield found("optional-input", it.place(taken.step, link.tensor), message, change)


def _open_edges(it: Wiring) -> Iterator[Finding]:
    """One finding for each step and rule, with all tensors concerned."""
    for step in it.steps:
        entering = [link for link in it.links if link.consumer.step == step and _comparable(link)]
        often = [link for link in entering if link.per_response or it.fed]
        unbounded = [link for link in often if (-1, -1) in _pairs(link)]
        if unbounded:
            message = f"open once for each response{_by(it)}: {_ends(unbounded)}"
            change = f"declare the sizes that {step.node} expects in the dims of {_inputs(unbounded)}"
            change += "; where they vary, assert in its code what they may be"
            yield found("open-decoupled-edge", _inside(it, step, unbounded), message, change)
        loose = [link for link in entering if link not in unbounded and _is_loose(link)]
        if loose:
            grave = any(link in often and link.producer.step.model.backend == "python" for link in loose)
            wanted = ", ".join(f"{link.consumer.port.name} to {dims_text(link.producer.dims)}" for link in loose)
            change = f"if {step.node} is meant for nothing else, set the dims of {wanted}"
            yield found(
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
        gives, takes = dims_text(link.producer.dims), dims_text(link.consumer.dims)
        dims = gives if gives == takes else f"{gives} -> {takes}"
        carried.setdefault((link.producer.node, link.consumer.node), []).append(f"{link.tensor} {dims}")
    return "; ".join(f"{one} -> {other}: {', '.join(names)}" for (one, other), names in carried.items())


def _inputs(all_links: Sequence[Link]) -> str:
    return ", ".join(link.consumer.port.name for link in all_links)


def _inside(it: Wiring, step: Step, all_links: Sequence[Link] = ()) -> Place:
    """A place in the config of a step's model, not in that of the ensemble."""
    tensors = ", ".join(dict.fromkeys(link.tensor for link in all_links))
    return it.place(step, tensors, f"{step.model_name}/{CONFIG}")


def _by(it: Wiring) -> str:
    return f" of {it.fed}" if it.fed else ""


def _order(it: Wiring) -> Iterator[Finding]:
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
            yield found("order-lost", _inside(it, step), message, change, "" if count > 1 else NOTE)


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


def _queues(it: Wiring) -> Iterator[Finding]:
    often = _called_often(it)
    for step in it.steps:
        batching = step.model.config.dynamic_batching if step.model else ModelDynamicBatching()
        policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
        limits = [policy.max_queue_size for policy in policies if policy.max_queue_size]
        if limits and step.number in often:
            message = f"{step.node} gets one call for each response{_by(it)}, and has max_queue_size {limits[0]}"
            change = "take max_queue_size out, and limit the requests where they enter, at the client or a proxy"
            yield found("queue-limit", _inside(it, step), message, change)
        elif limits:
            message = f"{step.node} has max_queue_size {limits[0]}"
            yield found("queue-limit", _inside(it, step), message, "nothing, if clients expect refusals", NOTE)


def _called_often(it: Wiring) -> set[int]:
    """Numbers of the steps that are called once for each response."""
    return {link.consumer.step.number for link in it.links if link.consumer.step and (link.per_response or it.fed)}


def _unenforced(it: Wiring) -> Iterator[Finding]:
    taken = {link.tensor for link in it.links if link.consumer.step}
    for step in [] if it.nested else it.steps:
        if step.model and step.model.backend == "python":
            fixed = [name for name, port in step.model.outputs.items() if port.dims and set(port.dims) != {-1}]
            names = [name for name in fixed if name in step.outputs and step.outputs[name] not in taken]
            if names:
                message = f"{step.node} promises the dims of {', '.join(names)} to the client, and nobody checks them"
                change = "let the client, or an assertion in the model's code, check them"
                yield found("unenforced-output", _inside(it, step), message, change)


def _opaque(it: Wiring) -> Iterator[Finding]:
    for step in it.steps:
        if step.model and step.model.opaque and not step.model.problem:
            message = f"{step.node} is opaque: {step.model.opaque}"
            change = "nothing, if that is meant; a config with all inputs and outputs can be checked"
            if step.model.calls_models:
                change = "nothing, if that is meant; check the models that it calls by hand"
            yield found("opaque-step", _inside(it, step), message, change)


ADVICE = (_batch_of_one, _optional, _open_edges, _order, _queues, _unenforced, _opaque)
