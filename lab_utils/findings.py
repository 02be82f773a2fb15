"""What is wrong, or risky, in a model repository: found in its configs alone, before any server is started.

An error is what Triton refuses when it loads the model. A warning is what it accepts and what then fails or goes
unnoticed at run time. A note says where a promise is not checked by anybody, or where this check cannot see.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from lab_utils.contract import Repository, ensemble_graph, steps
from lab_utils.contract_advice import ADVICE
from lab_utils.contract_ensembles import RULES_OF_TRITON, ensemble_cycles, wirings
from lab_utils.contract_finding import ERROR, NOTE, RULES, SEVERITIES, WARNING, Finding, Place
from lab_utils.contract_models import folder_findings, model_findings
from lab_utils.tables import table

__all__ = [
    "ERROR",
    "NOTE",
    "RULES",
    "SEVERITIES",
    "WARNING",
    "Finding",
    "Place",
    "check",
    "findings_table",
    "report",
    "summary",
    "to_json",
]


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
    found = [*folder_findings(repository), *ensemble_cycles(repository)]
    for model in repository.models.values():
        found += model_findings(model)
    for wiring in wirings(repository.models):
        for rule in (*RULES_OF_TRITON, *ADVICE):
            found += rule(wiring)
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
