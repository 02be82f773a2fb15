"""What a finding of the contract check is, and what each kind of finding means."""

from collections.abc import Sequence
from dataclasses import dataclass

from lab_utils.contract import CONFIG, UNKNOWN, Model

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")


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
        "A server that does not know a field refuses the whole config. The field is misspelt, or belongs to another "
        "version of Triton. It was left out here.",
    ),
    "config-name": Rule(ERROR, "The name in a config is that of the folder, or is left out."),
    "config-misplaced": Rule(ERROR, "Triton reads MODEL/config.pbtxt and no other place."),
    "custom-config": Rule(
        NOTE, "Triton reads a file in configs/ only when it is started with --model-config-name; it is not read here."
    ),
    "no-config": Rule(ERROR, "Without a config, Triton knows the backend only from the file in the version folder."),
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
    "declared-twice": Rule(WARNING, "Triton uses the first and ignores the others. Whoever reads the config may not."),
    "bad-dims": Rule(ERROR, "A dimension is 1 or more, or -1 for any size."),
    "bad-reshape": Rule(ERROR, "A reshape keeps the number of elements, and each -1 stays between the same ones."),
    # an ensemble
    "ensemble-setting": Rule(ERROR, "An ensemble only calls other models. It has no code and no instances of its own."),
    "incomplete-tensor": Rule(
        ERROR, "Nothing completes this config: an ensemble has no code, and a Python model completes it only by code."
    ),
    "step-incomplete": Rule(ERROR, "A step needs a model, at least one input and at least one output."),
    "missing-model": Rule(ERROR, "An ensemble is loaded only after the models of all its steps."),
    "version-not-served": Rule(ERROR, "An ensemble is loaded only when each version that it names is served."),
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
    "unused-input": Rule(ERROR, "Triton refuses an ensemble that asks for an input that no step takes."),
    "unused-tensor": Rule(ERROR, "Triton refuses a tensor that is neither taken by a step nor an output."),
    "tensor-cycle": Rule(ERROR, "Each of these steps waits for another of them. None could ever start."),
    "dtype-mismatch": Rule(ERROR, "One tensor has one dtype, and Triton converts none."),
    "dims-mismatch": Rule(
        ERROR, "One tensor has one shape: the ends must agree, or leave a size open with -1. Batching adds a first -1."
    ),
    "mixed-decoupled": Rule(
        ERROR,
        "After a decoupled step there may be many tensors for one from before it, or none. Triton never pairs them "
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
        "No response is refused for its size. A producer that sends everything again, or twice as much each time, "
        "goes unnoticed until memory runs out.",
    ),
    "order-lost": Rule(
        WARNING,
        "The instances share the responses of one request, and the quicker instance overtakes the other. The client "
        "gets them out of order.",
    ),
    "queue-limit": Rule(
        WARNING,
        "Where a step is called once for each response, a full queue leaves the ensemble's request without response or "
        "error: it hangs. Elsewhere the request is refused, 'Exceeds maximum queue size'. (Measured on Triton 24.10.)",
    ),
    "unenforced-output": Rule(
        NOTE, "Triton never compares what a Python model sends with its config. It checks only what enters a model."
    ),
    "opaque-step": Rule(
        NOTE, "The configs do not say all of what it takes, gives or calls, so that is not checked here."
    ),
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


def found(rule: str, place: Place, message: str, change: str, severity: str = "") -> Finding:
    """A finding of one rule, as grave as the rule says if no severity is given."""
    return Finding(severity or RULES[rule].severity, rule, place, message, RULES[rule].why, change)


def file_of(model: Model) -> Place:
    """The config of a model as a place."""
    return Place(f"{model.name}/{CONFIG}")


def dims_text(dims: Sequence[int] | None) -> str:
    """Such as "[-1, 4]"; "?" for unknown dims."""
    return UNKNOWN if dims is None else str(list(dims))
