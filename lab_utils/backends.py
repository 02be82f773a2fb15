"""Look at a backend from outside: its symbols, its speed, what the server counts of it, and the device it runs on."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from lab_utils import custom_backend
from lab_utils.client import stream
from lab_utils.server import TritonServer

PREFIX = "TRITON"  # how the functions of Triton's C API begin
DEFINED = "TRDBVW"  # kinds of symbols, as nm calls them, that a library has itself


@dataclass(frozen=True)
class Symbols:
    """The functions of Triton's C API that a library has, and those that it lacks; both sorted."""

    defined: tuple[str, ...]
    lacking: tuple[str, ...]


def symbols(library: str | Path) -> Symbols:
    """Read the symbols of a backend's library, as far as they belong to Triton's C API.

    Raises
    ------
    RuntimeError
        There is no `nm`, or the file is no library.
    """
    try:
        listed = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise RuntimeError("there is no command nm; it belongs to the package binutils, as the linker does") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"nm cannot read {library}: {error.stderr.strip()}") from None
    words = [line.split()[-2:] for line in listed.splitlines() if line.split()[-1].startswith(PREFIX)]
    defined, lacking = (sorted(name for kind, name in words if (kind in DEFINED) is own) for own in (True, False))
    return Symbols(tuple(defined), tuple(lacking))


def excerpt(file: str, start: str, end: str) -> str:
    """The part of one of the C++ sources from where `start` stands to just before the next `end`.

    Raises
    ------
    ValueError
        One of the two is not in the file.
    """
    text = (custom_backend.SOURCES / file).read_text(encoding="utf-8")
    begin = text.index(start)
    return text[begin : text.index(end, begin)].rstrip()


def speeds(
    server: TritonServer, ensembles: Sequence[str], prompt: str, max_tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Tokens a second of several ensembles, measured in turns: what else the machine does meets them all alike.

    Parameters
    ----------
    server : TritonServer
        From `lab_utils.server.start_server`.
    ensembles : sequence of str
        With this lab's tensors; each streams the prompt alone.
    prompt, max_tokens
        As for `lab_utils.client.stream`.
    rounds : int
        How often each is measured, after one stream to warm up.

    Returns
    -------
    dict of str to list of float
        For each ensemble its rounds, in order; from sending the request to its last message. (From the first message
        on it would be too fast on a busy machine: messages wait there until the client comes to run, and then all
        arrive at once.)
    """
    for ensemble in ensembles:
        stream(server, ensemble, prompt, max_tokens)
    found: dict[str, list[float]] = {ensemble: [] for ensemble in ensembles}
    for _ in range(rounds):
        for ensemble, measured in found.items():
            observations = stream(server, ensemble, prompt, max_tokens).observations
            measured.append(len(observations) / observations[-1].seconds)
    return found


def response_counts(server: TritonServer, model: str) -> dict[int, int]:
    """How many requests had a first response, a second one and so on, as a backend reports it to the server.

    Empty where it reports nothing, as Triton's Python backend does.
    """
    with server.client() as client:
        versions = client.get_inference_statistics(model).model_stats
    counts: dict[int, int] = {}
    for version in versions:
        for number, response in version.response_stats.items():
            counts[int(number) + 1] = counts.get(int(number) + 1, 0) + response.success.count
    return dict(sorted(counts.items()))


def on_device(repository: str | Path, target: str | Path, kind: str, models: Sequence[str]) -> Path:
    """A copy of a model repository in which these models run on another kind of device.

    Parameters
    ----------
    repository, target : path
        The repository, and the folder of the copy; an earlier copy there is written over.
    kind : str
        "CPU" or "GPU".
    models : sequence of str
        The others stay as they are.

    Raises
    ------
    ValueError
        A model has no instance group that could be changed, or there is no such kind.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    copy = Path(shutil.copytree(repository, target, ignore=ignored, dirs_exist_ok=True))
    for model in models:
        path = copy / model / "config.pbtxt"
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        if not config.instance_group:
            raise ValueError(f"model {model!r} in {repository} has no instance_group; expected one with a kind")
        for group in config.instance_group:
            group.kind = ModelInstanceGroup.Kind.Value(f"KIND_{kind}")
        path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return copy
