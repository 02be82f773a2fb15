"""The capstone: a pipeline with an unknown fault, drawn by a seed; find the node and the law, then mend it.

::

    case = open_case(2024)
    case.stream("a cup of tea")                        # and watch(case.server), and the trace in case.trace_file
    print(case.laws())                                 # what a diagnosis can name
    print(case.diagnose(node="encode", law="dtype"))   # at most three times
    print(case.source())                               # open after a right diagnosis, three wrong ones, or give_up()
    print(case.patch(source))
    print(case.grade())
    case.close()
"""

import ast
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from lab_utils import capstone_evidence, trace
from lab_utils.capstone_cases import ENSEMBLE, NODES, Drawn, choose_seed, draw, write_node, write_repository
from lab_utils.capstone_grading import (
    DEADLINE_SECONDS,
    ENOUGH,
    Answer,
    Graded,
    asker,
    differences,
    expected,
    grade,
    graded_table,
    hidden_runs,
)
from lab_utils.client import StreamError, StreamResult, stream
from lab_utils.errors import ServerDiedError, ServerStartError
from lab_utils.exercise_kinds import NOT_ANSWERED
from lab_utils.labbook import experiment
from lab_utils.server import TritonServer, start_server
from lab_utils.tables import table

__all__ = ["Case", "Report", "choose_seed", "differences", "expected", "open_case"]

LESSON = "10 the capstone"
TRIES = 3
CLOSED = "the node is closed: hand in a diagnosis first, with case.diagnose(node=..., law=...)"


@dataclass(frozen=True)
class Report:
    """How a case stands.

    Attributes
    ----------
    seed : int
    claims : tuple of (str, str)
        Node and law of each diagnosis that was handed in, first to last.
    diagnosis : {"right", "wrong", "none"}
        Whether the last of them was right.
    opened : {"", "diagnosis", "three tries", "given up"}
        Why the node was opened; empty while it is closed.
    patch : {"right", "wrong", "none"}
        What the hidden runs say.
    runs : tuple of Graded
        The hidden runs, empty before the first grading.
    """

    seed: int
    claims: tuple[tuple[str, str], ...] = ()
    diagnosis: str = "none"
    opened: str = ""
    patch: str = "none"
    runs: tuple[Graded, ...] = ()

    @property
    def verdict(self) -> str:
        """Diagnosis and patch, each by itself, in a sentence."""
        tries = f" (try {len(self.claims)} of {TRIES})" if self.claims else ""
        passed = sum(run.right for run in self.runs)
        hidden = f" ({passed} of {len(self.runs)} hidden runs)" if self.runs else ""
        opened = {"three tries": "; opened after three tries", "given up": "; opened on request"}.get(self.opened, "")
        return f"diagnosis {self.diagnosis}{tries}{opened}; patch {self.patch}{hidden}"

    def __str__(self) -> str:
        claims = [f"  try {n}: {node}, {law}" for n, (node, law) in enumerate(self.claims, 1)]
        runs = [graded_table(self.runs)] if self.runs else []
        return "\n".join([f"seed {self.seed}: {self.verdict}", *claims, *runs])


class Case:
    """A running pipeline with an unknown fault; `open_case` makes one.

    Attributes
    ----------
    seed : int
        What drew the fault; the same seed gives the same case.
    server : TritonServer
        It runs the ensemble "talk": encode, generate, decode.
    trace_file : Path
        Where the server writes its trace, with tensors.
    report : Report
        How the case stands.
    """

    def __init__(self, seed: int, drawn: Drawn, folder: tempfile.TemporaryDirectory, server: TritonServer):
        self.seed, self.server = seed, server
        self.report = Report(seed)
        self.trace_file = Path(folder.name) / "trace.json"
        self._drawn, self._folder, self._patch = drawn, folder, ""
        weakref.finalize(self, folder.cleanup)

    def __enter__(self) -> "Case":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<capstone case {self.seed}: {self.report.verdict}>"

    def close(self) -> None:
        """Stop the server, and remove its files. Can be called more than once."""
        self.server.stop()
        self._folder.cleanup()

    # --- looking at it --------------------------------------------------------------------------------------------

    def stream(self, prompt: str, max_tokens: int = ENOUGH, request_id: str = "") -> StreamResult:
        """Stream one prompt. Errors are those of `lab_utils.client.stream`."""
        return stream(self.server, ENSEMBLE, prompt, max_tokens, request_id=request_id, deadline=DEADLINE_SECONDS)

    def ask(self, *requests: str | tuple[str, int]) -> list[Answer]:
        """Stream several prompts side by side, each alone or with its token limit; an answer or an error for each."""
        pairs = [(request, ENOUGH) if isinstance(request, str) else request for request in requests]
        return asker(self.server, ENSEMBLE)(pairs)

    def laws(self) -> str:
        """The laws that a diagnosis can name, with their meaning."""
        return table(["law", "what is wrong"], [(name, law.words) for name, law in capstone_evidence.LAWS.items()])

    # --- the diagnosis --------------------------------------------------------------------------------------------

    def diagnose(self, node: object, law: object) -> str:
        """Hand in a diagnosis; a wrong one is answered with what speaks against it.

        Parameters
        ----------
        node : str
            "encode", "generate" or "decode".
        law : str
            One of those in `laws`.
        """
        if node is ... or law is ...:
            return NOT_ANSWERED
        if node not in NODES or law not in list(capstone_evidence.LAWS):  # whatever it is: a list cannot be looked up
            return (
                f"not counted: expected a node of {', '.join(NODES)} and a law of {', '.join(capstone_evidence.LAWS)}"
            )
        if self.report.opened:
            return f"the node is open, opened by: {self.report.opened}. The diagnosis that counts is handed in already"
        if (node, law) in self.report.claims:
            return "not counted: you have handed in this one already"
        right = (node, law) == (self._drawn.node, self._drawn.law)
        claims = (*self.report.claims, (node, law))
        opened = "diagnosis" if right else "three tries" if len(claims) == TRIES else ""
        self._note(claims=claims, diagnosis="right" if right else "wrong", opened=opened)
        return self._answer_to(node, law)

    def give_up(self) -> str:
        """Open the node without a right diagnosis; the report says so."""
        if not self.report.opened:
            self._note(opened="given up")
        return self._opened()

    def _answer_to(self, node: str, law: str) -> str:
        if self.report.diagnosis == "right":
            return f"right: {node}, {law}. {self._opened()}"
        lines = [f"not right (try {len(self.report.claims)} of {TRIES})", *self._contradictions(node, law)]
        return "\n".join(lines + [self._opened()] * bool(self.report.opened))

    def _contradictions(self, node: str, law: str) -> list[str]:
        lines = []
        if law != self._drawn.law:
            evidence = capstone_evidence.collect(asker(self.server, ENSEMBLE))
            lines.append(capstone_evidence.against_law(law, evidence))
        if node != self._drawn.node:
            lines.append(capstone_evidence.against_node(node, self._traced()))
        return lines

    def _traced(self) -> trace.Request | None:
        """The trace of one probe; None where the server did not write one."""
        name = f"probe {len(self.report.claims)}"
        try:
            self.stream(*capstone_evidence.PROBES[0], request_id=name)
        except (StreamError, ServerDiedError):
            return None
        return trace.wait_for(self.trace_file, name)

    def _opened(self) -> str:
        return f"The node {self._drawn.node} is open: print(case.source())"

    def _note(self, **changes: object) -> None:
        self.report = Report(**(vars(self.report) | changes))

    # --- the patch ------------------------------------------------------------------------------------------------

    def source(self) -> str:
        """The source of the guilty node, as shipped; a remark while it is closed."""
        return self._drawn.source if self.report.opened else CLOSED

    def patch(self, source: object) -> str:
        """Start the server anew with another source of the guilty node, and tell whether it loaded."""
        if source is ...:
            return NOT_ANSWERED
        if not self.report.opened:
            return CLOSED
        if problem := source_problem(source):
            return f"not loaded: {problem}"
        before = self._patch or self._drawn.source
        try:
            self._run_with(source)
        except ServerStartError as error:
            self._run_with(before)
            return f"not loaded, the node is as it was: {_cause(error)}"
        self._patch = source
        self._note(patch="none", runs=())
        return f"loaded: the server runs your {self._drawn.node}. Next: print(case.grade())"

    def grade(self) -> Report | str:
        """Send the hidden runs, and record the outcome in the lab book."""
        if not self.report.opened:
            return CLOSED
        if not self._patch:
            return "nothing to grade yet: hand in a source with case.patch(...)"
        node, law = self.report.claims[-1] if self.report.claims else ("nothing", "claimed")
        claim = {"ensemble": ENSEMBLE, "seed": self.seed, "predicted": f"{node}, {law}"}
        with experiment(LESSON, "diagnosis, patch, hidden runs", server=self.server, **claim) as entry:
            runs = grade(asker(self.server, ENSEMBLE), hidden_runs(self.seed))
            self._note(runs=tuple(runs), patch="right" if all(run.right for run in runs) else "wrong")
            entry.number("hidden runs right", sum(run.right for run in runs), f"of {len(runs)}")
            entry.note(str(self.report))
            entry.verdict(self.report.verdict)
        if any(problem.startswith("error") for run in runs for problem in run.problems):
            self.server.restart()  # a stub that hangs or is gone would stay so
        return self.report

    def _run_with(self, source: str) -> None:
        self.server.stop()  # not a reload: a request that a fault left in flight would block it
        write_node(Path(self._folder.name) / "models", self._drawn.node, source)
        self.server.restart()


def open_case(seed: int | None = None) -> Case:
    """Start a pipeline with an unknown fault, with trace and log on.

    Parameters
    ----------
    seed : int, optional
        What draws the fault; by default that of the environment variable CAPSTONE_SEED, or else a random one. It is
        printed, so that the case can be opened again.

    Raises
    ------
    lab_utils.errors.ServerStartError
        The server did not start.
    """
    seed = choose_seed() if seed is None else seed
    drawn = draw(seed)
    print(f"capstone case {seed}")
    folder = tempfile.TemporaryDirectory(prefix="capstone_")
    repository = Path(folder.name) / "models"
    write_repository(repository, drawn)
    flags = trace.server_flags(Path(folder.name) / "trace.json")
    try:
        server = start_server([ENSEMBLE], repository=repository, flags=flags)
    except BaseException:
        folder.cleanup()
        raise
    return Case(seed, drawn, folder, server)


def source_problem(source: object) -> str:
    """What keeps a source from being loaded; empty where nothing is seen."""
    if not isinstance(source, str):
        return f"expected the source as text, got {type(source).__name__}"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    except ValueError as error:
        return f"{error}"
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return "" if "TritonPythonModel" in classes else "it has no class TritonPythonModel; hand in the whole source"


def _cause(error: ServerStartError) -> str:
    return str(error).split("The whole log:")[0].strip()
