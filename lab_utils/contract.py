"""Read an ensemble's configs as a graph of contracts: which tensor goes from where to where, with dtype and dims."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelEnsembling

from lab_utils.server import MODEL_REPOSITORY

CLIENT = "client"


@dataclass(frozen=True)
class Edge:
    """One tensor on its way from a producer to a consumer.

    Attributes
    ----------
    tensor : str
        Its name in the ensemble.
    producer, consumer : str
        Names of the models, or `CLIENT` for the ensemble's own inputs and outputs.
    dtype : str
        Such as "INT32".
    produced, accepted : tuple of int
        Dims as the producer declares them and as the consumer does; -1 stands for any size.
    per_response : bool
        True when the producer is decoupled, or comes after a decoupled step: the tensor travels once for each response,
        not once a request.
    """

    tensor: str
    producer: str
    consumer: str
    dtype: str
    produced: tuple[int, ...]
    accepted: tuple[int, ...]
    per_response: bool


def read_config(model: str, repository: str | Path = MODEL_REPOSITORY) -> ModelConfig:
    """The parsed ``config.pbtxt`` of a model.

    Raises
    ------
    ValueError
        There is no such file, or it is not protobuf text of a ModelConfig.
    """
    path = Path(repository) / model / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except FileNotFoundError:
        raise ValueError(f"no model {model!r}: {path} does not exist") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a model config: {error}") from None
    config.name = config.name or model  # as Triton does: a config without a name has that of its folder
    return config


def read_edges(ensemble: str, repository: str | Path = MODEL_REPOSITORY) -> list[Edge]:
    """The edges of an ensemble, in the order of its steps.

    Raises
    ------
    ValueError
        The model is not an ensemble, a config cannot be read, or a tensor has no producer.
    """
    config = read_config(ensemble, repository)
    if not config.ensemble_scheduling.step:
        raise ValueError(f"{ensemble!r} is not an ensemble: its config has no ensemble_scheduling steps")
    steps = [(step, read_config(step.model_name, repository)) for step in config.ensemble_scheduling.step]
    # The client's own ends: what the ensemble takes in is produced by the client, what it gives out is consumed there.
    producers = {tensor.name: (CLIENT, tensor) for tensor in config.input}
    for step, model in steps:
        producers |= _outputs(ensemble, step, model)
    ends = [*_consumers(steps), *((tensor.name, CLIENT, tensor) for tensor in config.output)]
    orphans = [name for name, *_ in ends if name not in producers]
    if orphans:
        raise ValueError(
            f"ensemble {ensemble!r}: nothing produces {', '.join(orphans)}; mend its input_map or output_map"
        )
    repeated = _repeated(steps, repository)
    return [_edge(name, *producers[name], consumer, tensor, name in repeated) for name, consumer, tensor in ends]


def _outputs(ensemble: str, step: ModelEnsembling.Step, model: ModelConfig) -> dict[str, tuple[str, object]]:
    declared = {tensor.name: tensor for tensor in model.output}
    unknown = set(step.output_map) - set(declared)
    if unknown:
        raise ValueError(f"ensemble {ensemble!r}: model {model.name!r} has no output {', '.join(sorted(unknown))}")
    return {name: (model.name, declared[key]) for key, name in step.output_map.items()}


def _repeated(steps: list[tuple[ModelEnsembling.Step, ModelConfig]], repository: str | Path) -> set[str]:
    """Tensors that travel once for each response: outputs of decoupled steps, and of steps that these feed."""
    repeated: set[str] = set()
    for _ in steps:  # as often as there are steps: enough for any order they are written in
        for step, model in steps:
            if _is_decoupled(model, repository) or repeated & set(step.input_map.values()):
                repeated |= set(step.output_map.values())
    return repeated


def _is_decoupled(model: ModelConfig, repository: str | Path) -> bool:
    """Whether a model may answer more than once; an ensemble may if one of its steps does."""
    inner = (read_config(step.model_name, repository) for step in model.ensemble_scheduling.step)
    return model.model_transaction_policy.decoupled or any(_is_decoupled(step, repository) for step in inner)


def _consumers(steps: list[tuple[ModelEnsembling.Step, ModelConfig]]) -> list[tuple]:
    return [
        (step.input_map[tensor.name], model.name, tensor)
        for step, model in steps
        for tensor in model.input
        if tensor.name in step.input_map
    ]


def _edge(name: str, producer: str, produced: object, consumer: str, accepted: object, per_response: bool) -> Edge:
    dtype = model_config_pb2.DataType.Name(produced.data_type).removeprefix("TYPE_")
    return Edge(name, producer, consumer, dtype, tuple(produced.dims), tuple(accepted.dims), per_response)
