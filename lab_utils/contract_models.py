"""What Triton refuses, or misreads, in the folders of a repository and in the config of one model."""

from collections import Counter
from collections.abc import Iterator, Sequence

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelDynamicBatching

from lab_utils.contract import CONFIG, CONFIGS, PLATFORMS, UNKNOWN, Model, Port, Repository
from lab_utils.contract_finding import ERROR, WARNING, Finding, Place, dims_text, file_of, found


def folder_findings(repository: Repository) -> Iterator[Finding]:
    """Of the repository's own folder."""
    if (repository.folder / CONFIG).is_file():
        message = f"{CONFIG} lies beside the models, not in the folder of one"
        yield found("config-misplaced", Place(CONFIG), message, f"move it to MODEL/{CONFIG}", WARNING)
    if repository.others:
        names = ", ".join(repository.others)
        message = f"{names}: neither a {CONFIG} nor a version folder"
        change = f"move {names} out of the repository, or start Triton with --model-control-mode=explicit"
        yield found("not-a-model", Place(repository.others[0]), message, change)


def model_findings(model: Model) -> Iterator[Finding]:
    """Of one model's folder and config."""
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
    named = model.problem[:1].isdigit()  # the parser's words begin with line and column
    change = "mend that line, or the one before it" if named else "put a config there that can be read"
    if "$" in model.problem:
        change = "it is a template: fill in its ${...} first"
    return found("config-unreadable", file_of(model), f"not a model config: {model.problem}", change)


def _without_config(model: Model) -> Iterator[Finding]:
    inside = [version for version in model.on_disk if (model.folder / str(version) / CONFIG).is_file()]
    if inside:
        place = Place(f"{model.name}/{inside[0]}/{CONFIG}")
        message = f"{CONFIG} lies in the version folder: Triton does not see it"
        severity = WARNING if model.backend else ERROR
        yield found("config-misplaced", place, message, f"move it to {model.name}/{CONFIG}", severity)
    elif not model.backend:
        message = f"no {CONFIG}, and no file in the version folder that tells the backend"
        change = f"write {model.name}/{CONFIG}, or put the model's file there, such as model.onnx"
        yield found("no-config", file_of(model), message, change)
    if CONFIGS in model.folders:
        message = f"its configs are in {CONFIGS}/ alone"
        yield found("custom-config", Place(f"{model.name}/{CONFIGS}"), message, "name one with --model-config-name")


def _config(model: Model) -> Iterator[Finding]:
    config = model.config
    if model.meant:
        message = f"there is no field {model.ignored}; did you mean {model.meant}?"
        yield found("unknown-field", file_of(model), message, f"write {model.meant}", ERROR)
    elif model.ignored:
        change = "spell it as in Triton's model_config.proto, or run the Triton that knows it"
        yield found("unknown-field", file_of(model), f"the field {model.ignored} is unknown", change)
    if config.name != model.name:
        message = f"name is {config.name!r} in the folder {model.name!r}"
        yield found("config-name", file_of(model), message, "make them the same, or leave out the name")
    if not model.backend:
        named = f"platform {config.platform!r} names none" if config.platform else "neither backend nor platform"
        message = f"no backend: {named}, and no file in the version folder tells it"
        change = 'set backend, such as backend: "python", or put the model\'s file there, such as model.onnx'
        yield found("no-backend", file_of(model), message, change)


def _settings(model: Model) -> Iterator[Finding]:
    config = model.config
    for message, change in (*_batching_faults(config), *_order_faults(config.dynamic_batching), *_cache_faults(config)):
        yield found("model-setting", file_of(model), message, change)
    known = config.backend in PLATFORMS.values() and config.platform
    if known and not model.is_ensemble and PLATFORMS.get(config.platform) != config.backend:
        message = f"platform {config.platform!r} with backend {config.backend!r}"
        yield found("model-setting", file_of(model), message, "leave out platform")
    for output in config.output:
        if output.label_filename and not (model.folder / output.label_filename).is_file():
            place = Place(file_of(model).file, tensor=output.name)
            message = f"label_filename: there is no {model.name}/{output.label_filename}"
            yield found("label-file", place, message, "add the file, or take label_filename out")


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
        return found("no-version", file_of(model), message, "add the version folder, or change version_policy")
    change = f"make the folder {model.name}/1"
    if model.is_ensemble:
        change += "; it may be empty, but git keeps no empty folder: put a file such as .gitkeep in it"
    return found("no-version", file_of(model), "no version folder", change)


def _ports(model: Model) -> Iterator[Finding]:
    for tensors in (model.config.input, model.config.output):
        for name, times in Counter(tensor.name for tensor in tensors).items():
            if times > 1:
                place = Place(file_of(model).file, tensor=name)
                yield found("declared-twice", place, f"{name} is declared {times} times", "keep one of them")
    for port in (*model.inputs.values(), *model.outputs.values()):
        yield from _dims_faults(model, port)
        if model.is_ensemble or (model.source and not model.completes_itself):
            yield from _incomplete(model, port)


def _dims_faults(model: Model, port: Port) -> Iterator[Finding]:
    place = Place(file_of(model).file, tensor=port.name)
    bad = [size for size in (*(port.dims or ()), *(port.inner or ())) if size < 1 and size != -1]
    if bad:
        message = f"{port.name} has a dimension of {bad[0]}"
        yield found("bad-dims", place, message, "write the size, or -1 where it varies")
    elif port.inner != port.dims and _runs(port.inner or ()) != _runs(port.dims or ()):
        message = f"dims {dims_text(port.dims)} cannot be reshaped to {dims_text(port.inner)}"
        yield found("bad-reshape", place, message, "give both the same number of elements")
    elif port.inner == () and model.config.max_batch_size == 0:
        message = f"{port.name} is reshaped to no dimension, and the model does not batch"
        yield found("bad-reshape", place, message, "keep a dimension of 1: Triton has no scalars")


def _incomplete(model: Model, port: Port) -> Iterator[Finding]:
    there = {"name": port.name, "data_type": port.dtype != UNKNOWN, "dims": port.dims is not None}
    lacks = [field for field in there if not there[field]]
    if lacks:
        message = f"the tensor {port.name!r} has no {' and no '.join(lacks)}"
        place = Place(file_of(model).file, tensor=port.name)
        yield found("incomplete-tensor", place, message, f"add {' and '.join(lacks)}")


def _runs(dims: Sequence[int]) -> list[int]:
    """Number of elements before, between and after the open dimensions."""
    runs = [1]
    for size in dims:
        runs = [*runs, 1] if size == -1 else [*runs[:-1], runs[-1] * size]
    return runs
