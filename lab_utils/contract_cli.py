"""``python -m lab_utils contract PATH``: check a model repository without starting a server."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from lab_utils.contract import Edge, Graph, Node, Repository, edge_dims, ensemble_graph, read_repository
from lab_utils.files import save_figure
from lab_utils.findings import ERROR, SEVERITIES, Finding, check, report, summary, to_json
from lab_utils.tables import table


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``contract`` to the command line."""
    one = commands.add_parser("contract", help="check the configs of a model repository, as Triton does and beyond")
    one.add_argument("path", type=Path, metavar="PATH", help="the model repository")
    one.add_argument("--ensemble", default="", metavar="NAME", help="only this one, with its nodes and edges")
    one.add_argument("--json", action="store_true", help="graphs and findings as one JSON document")
    one.add_argument("--figure", type=Path, metavar="FILE.png", help="where to save the graph of the ensemble")
    one.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 where a finding is an error, 0 otherwise."""
    repository = read_repository(arguments.path)
    found = check(repository, arguments.ensemble)
    drawn = _only_ensemble(repository, arguments.ensemble) if arguments.figure else ""
    if arguments.json:
        print(to_json(repository, found, arguments.ensemble))
    else:
        print("\n\n".join(filter(None, _sections(repository, arguments.ensemble, found))))
    if drawn:
        _save_figure(ensemble_graph(drawn, repository), arguments.figure)
    return 1 if any(finding.severity == ERROR for finding in found) else 0


def _sections(repository: Repository, ensemble: str, found: list[Finding]) -> list[str]:
    models, ensembles = len(repository.models), len(repository.ensembles)
    head = f"{repository.folder}: {models} model{_s(models)}, of which {ensembles} ensemble{_s(ensembles)}"
    overview = _graph(ensemble_graph(ensemble, repository)) if ensemble else _ensembles(repository, found)
    return [head, overview, report(found), summary(found)]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _ensembles(repository: Repository, found: list[Finding]) -> str:
    """One line for each ensemble."""
    rows = []
    for name in repository.ensembles:
        graph = ensemble_graph(name, repository)
        counts = Counter(finding.severity for finding in found if finding.place.ensemble == name)
        rows.append((name, len(graph.nodes), len(graph.edges), *(counts[severity] for severity in SEVERITIES)))
    return table(["ensemble", "steps", "edges", *(f"{severity}s" for severity in SEVERITIES)], rows) if rows else ""


def _graph(graph: Graph) -> str:
    nodes = [
        (node.name, _version(node.version), node.backend, node.max_batch_size, node.batching or "-", _traits(node))
        for node in graph.nodes
    ]
    parts = [table(["step", "version", "backend", "max batch", "batching", "remarks"], nodes)] if nodes else []
    edges = [(e.tensor, e.producer, e.consumer, e.dtype, edge_dims(e), _travels(e)) for e in graph.edges]
    parts += [table(["tensor", "from", "to", "dtype", "dims", "travels"], edges)] if edges else []
    return "\n\n".join(parts)


def _version(version: int) -> str:
    return "latest" if version == -1 else str(version)


def _traits(node: Node) -> str:
    return "; ".join(filter(None, ["decoupled" if node.decoupled else "", node.opaque])) or "-"


def _travels(edge: Edge) -> str:
    return "once per response" if edge.per_response else "once per request"


def _only_ensemble(repository: Repository, ensemble: str) -> str:
    names = [ensemble] if ensemble else repository.ensembles
    if len(names) != 1:
        there = f"{repository.folder} has: {', '.join(names) or 'no ensemble'}"
        raise ValueError(f"--figure draws one ensemble; name it with --ensemble NAME. {there}")
    return names[0]


def _save_figure(graph: Graph, path: Path) -> None:
    """Save the figure; say so where the ensemble is too broken to be drawn: the findings tell why."""
    from lab_utils.graph import graph_figure  # matplotlib takes long to import

    try:
        figure = graph_figure(graph.edges, graph.name)
    except ValueError as error:
        print(f"no figure of {graph.name}: {error}", file=sys.stderr)
        return
    save_figure(figure, path)
    print(f"figure: {path}", file=sys.stderr)
