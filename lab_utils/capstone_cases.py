"""The capstone's pipeline: which of its faults a seed draws, and the repository that a server loads.

The sources lie packed in ``data/capstone.bin``. Nothing here, and nothing in the repository that is written, tells a
fault by name before the diagnosis.
"""

import hashlib
import json
import os
import secrets
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ENSEMBLE = "talk"
NODES = ("encode", "generate", "decode")
PACKED = Path(__file__).parent / "data" / "capstone.bin"
SEED_VARIABLE = "CAPSTONE_SEED"
CLOSED = '''"""This node is closed until the diagnosis is in."""

import zlib
from pathlib import Path

exec(compile(zlib.decompress(Path(__file__).with_name("node.bin").read_bytes()), "node", "exec"))
'''


@dataclass(frozen=True)
class Drawn:
    """What a seed draws. Its representation shows nothing of it."""

    node: str = field(repr=False)
    law: str = field(repr=False)
    source: str = field(repr=False)


def choose_seed(otherwise: int | None = None) -> int:
    """The seed in the environment variable CAPSTONE_SEED; without it `otherwise`, or a random one.

    Raises
    ------
    ValueError
        The variable holds no whole number.
    """
    given = os.environ.get(SEED_VARIABLE, "").strip()
    if not given:
        return secrets.randbelow(1_000_000) if otherwise is None else otherwise
    try:
        return int(given)
    except ValueError:
        raise ValueError(f"the environment variable {SEED_VARIABLE} is {given!r}; expected a whole number") from None


def draw(seed: int) -> Drawn:
    """The fault of a seed: the same one for the same seed, and all of them about equally often.

    Raises
    ------
    TypeError
        The seed is no whole number.
    """
    if type(seed) is not int:
        raise TypeError(f"seed is {seed!r}; expected a whole number")
    family = _packed()["faults"]
    digest = hashlib.sha256(f"capstone {seed}".encode()).digest()
    return Drawn(**family[int.from_bytes(digest[:8], "big") % len(family)])


def write_repository(folder: Path, drawn: Drawn) -> None:
    """Write a model repository with the pipeline, all of its nodes closed."""
    content = _packed()
    for model, config in content["configs"].items():
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(config, encoding="utf-8")
    for node, source in (content["healthy"] | {drawn.node: drawn.source}).items():
        (folder / node / "1" / "model.py").write_text(CLOSED, encoding="utf-8")
        (folder / node / "1" / "node.bin").write_bytes(zlib.compress(source.encode("utf-8")))


def write_node(folder: Path, node: str, source: str) -> None:
    """Put a node's source into the repository as plain text: it is open from now on."""
    (folder / node / "1" / "model.py").write_text(source, encoding="utf-8")


@cache
def _packed() -> dict:
    return json.loads(zlib.decompress(PACKED.read_bytes()))
