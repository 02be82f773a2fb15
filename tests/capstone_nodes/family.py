"""One repository with the healthy pipeline and every faulty one: ensembles talk_0 (healthy), talk_1, talk_2, …"""

from pathlib import Path

from configs import CONFIGS
from faults import FAULTS, NODES, healthy


def ensemble(number: int) -> str:
    """Name of the ensemble of a fault, counted from 1; 0 is the healthy one."""
    return f"talk_{number}"


def write(folder: Path, sources: list[tuple[str, str]]) -> list[str]:
    """Write the healthy nodes, and for each (node, source) that node and an ensemble; the ensembles' names."""
    for node in NODES:
        _node(folder, node, node, healthy(node))
    _ensemble(folder, 0, "")
    for number, (node, source) in enumerate(sources, 1):
        _node(folder, node, f"{node}_{number}", source)
        _ensemble(folder, number, node)
    return [ensemble(number) for number in range(len(sources) + 1)]


def write_faults(folder: Path) -> list[str]:
    """Write every shipped fault."""
    return write(folder, [(fault.node, fault.source) for fault in FAULTS])


def _node(folder: Path, node: str, name: str, source: str) -> None:
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.py").write_text(source, encoding="utf-8")
    (folder / name / "config.pbtxt").write_text(CONFIGS[node].replace(f'"{node}"', f'"{name}"'), encoding="utf-8")


def _ensemble(folder: Path, number: int, node: str) -> None:
    config = CONFIGS["talk"].replace('"talk"', f'"{ensemble(number)}"')
    if node:
        config = config.replace(f'model_name: "{node}"', f'model_name: "{node}_{number}"')
    (folder / ensemble(number) / "1").mkdir(parents=True)
    (folder / ensemble(number) / "config.pbtxt").write_text(config, encoding="utf-8")
