"""The notebook contract: each check takes a notebook and returns what is wrong with it.

The checks run over every lesson. Below they are checked themselves: each must fail on notebooks broken in its own way.
"""

import ast
import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.validator import iter_validate

from lab_utils.exercises import EXERCISES, NOT_ANSWERED, verdict

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.stem[:2].isdigit()]  # the lab book is a notebook, but no lesson
TAGS = {"exercise", "nbval-ignore-output"}
OPENING = ("What you will do", "What you will learn", "Time", "You need")
FEWEST_CELLS, MOST_CELLS = 20, 45
MEDIAN_LINES, PERCENTILE_90_LINES, MOST_LINES = 4, 10, 20
FEWEST_WORDS, MOST_WORDS = 10, 20  # of prose, for each line of code
FIGURE_REACH = 2  # cells below a figure in which its numbers must stand
VOLATILE = {
    "a port": r"(?:127\.0\.0\.1|localhost|0\.0\.0\.0):\d+",
    "a path": r"(?<![\w.])/(?:home|tmp|root|opt|work|Users)\b",
    "a time": r"\b\d+\.\d+ m?s\b",
    "a clock": r"\b\d\d:\d\d:\d\d\b",
    "a pid": r"\bpids?\b",
}

Check = Callable[[NotebookNode], list[str]]


# --- parts of a notebook ------------------------------------------------------------------------------------------


def read(path: Path) -> NotebookNode:
    """The notebook as it is in the file: nothing is upgraded or repaired."""
    return nbformat.reader.reads(path.read_text(encoding="utf-8"))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def name_of(cell: NotebookNode) -> str:
    """How a message names a cell: its id and how it begins."""
    return f"cell {cell.get('id', '?')} ({cell.source[:40]!r})"


def lines_of_code(cell: NotebookNode) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def words_of_prose(text: str) -> int:
    """Words that are read: no code blocks, no tags of HTML, no addresses of links."""
    text = re.sub(r"```.*?```", " ", text, flags=re.S)
    text = re.sub(r"<[^>]+>|\]\([^)]*\)", " ", text)
    return len(re.findall(r"\w+(?:['’-]\w+)*", text))


def printed(cell: NotebookNode) -> str:
    """All text that a code cell put out, but not the name of a figure's class."""
    texts = [output.get("text", "") for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    texts += [each.get("text/plain", "") for each in data if not any(kind.startswith("image/") for kind in each)]
    return "\n".join(texts)


def has_figure(cell: NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


# --- exercises ----------------------------------------------------------------------------------------------------


def statements(source: str) -> list[ast.stmt]:
    """The statements of a cell; IPython's own syntax (%magic, !command) is taken as the calls that it stands for."""
    return ast.parse(TransformerManager().transform_cell(source)).body


def check_calls(source: str) -> list[ast.Call]:
    """The calls of `check` in a cell."""
    calls = (node for top in statements(source) for node in ast.walk(top) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "check"]


def exercise_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in code_cells(notebook) if check_calls(cell.source)]


def exercise_names(cell: NotebookNode) -> list[str]:
    return [call.args[0].value for call in check_calls(cell.source)]


def is_quiz(cell: NotebookNode) -> bool:
    return any(name.endswith("-quiz") for name in exercise_names(cell))


def below(notebook: NotebookNode, cell: NotebookNode, reach: int = 1) -> list[NotebookNode]:
    """The next cells."""
    at = next(i for i, each in enumerate(notebook.cells) if each is cell)
    return notebook.cells[at + 1 : at + 1 + reach]


def details(text: str, title: str) -> str:
    """What a <details> block with this title holds; empty where there is none."""
    match = re.search(rf"<details><summary>{title}</summary>\n\n(.*?)\n</details>", text, flags=re.S)
    return match[1] if match else ""


def solution_of(notebook: NotebookNode, cell: NotebookNode) -> str:
    """The Python code of an exercise's solution; empty where there is none."""
    text = "".join(each.source for each in below(notebook, cell) if each.cell_type == "markdown")
    match = re.search(r"```python\n(.*?)```", details(text, "Solution"), flags=re.S)
    return match[1] if match else ""


def is_check(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and bool(check_calls(ast.unparse(statement)))


def verdicts(body: list[ast.stmt]) -> list[str]:
    """Run an exercise's statements with a `check` that keeps the verdict; what goes wrong is a verdict, too."""
    said: list[str] = []
    namespace = {"check": lambda name, answer: said.append(verdict(name, answer))}
    kept = [each for each in body if not isinstance(each, ast.ImportFrom) or each.module != "lab_utils.exercises"]
    try:
        exec(compile(ast.Module(kept, type_ignores=[]), "exercise", "exec"), namespace)
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    return said


def solved(exercise: str, solution: str) -> list[ast.stmt]:
    """The solution in the place of the answer, and the exercise's own check after it."""
    answer = [each for each in statements(solution) if not is_check(each)]
    return answer + [each for each in statements(exercise) if is_check(each)]


# --- the checks ---------------------------------------------------------------------------------------------------


def valid(notebook: NotebookNode) -> list[str]:
    """By nbformat's own schema."""
    return [str(error.message)[:200] for error in iter_validate(notebook)]


def executed_in_order(notebook: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    wanted = list(range(1, len(counts) + 1))
    return [] if counts == wanted else [f"execution counts are {counts}; expected 1 to {len(counts)}: make notebooks"]


def without_errors(notebook: NotebookNode) -> list[str]:
    kinds = [(cell, output.output_type) for cell in code_cells(notebook) for output in cell.outputs]
    return [f"{name_of(cell)} ended in an error" for cell, kind in kinds if kind == "error"]


def without_stderr(notebook: NotebookNode) -> list[str]:
    names = [(cell, output.get("name")) for cell in code_cells(notebook) for output in cell.outputs]
    return [f"{name_of(cell)} wrote to stderr" for cell, name in names if name == "stderr"]


def number_of_cells(notebook: NotebookNode) -> list[str]:
    cells = len(notebook.cells)
    return [] if FEWEST_CELLS <= cells <= MOST_CELLS else [f"{cells} cells; expected {FEWEST_CELLS} to {MOST_CELLS}"]


def size_of_code_cells(notebook: NotebookNode) -> list[str]:
    lines = [lines_of_code(cell) for cell in code_cells(notebook)]
    bounds = [
        ("median", np.median(lines), MEDIAN_LINES),
        ("90th percentile", np.percentile(lines, 90), PERCENTILE_90_LINES),
        ("longest", max(lines), MOST_LINES),
    ]
    return [f"{name} of code cells has {is_} lines; at most {most}" for name, is_, most in bounds if is_ > most]


def prose_for_code(notebook: NotebookNode) -> list[str]:
    words, lines = words_of_prose(markdown(notebook)), sum(map(lines_of_code, code_cells(notebook)))
    if FEWEST_WORDS * lines <= words <= MOST_WORDS * lines:
        return []
    return [f"{words} words of prose for {lines} lines of code: {words / lines:.1f}; {FEWEST_WORDS} to {MOST_WORDS}"]


def opening(notebook: NotebookNode) -> list[str]:
    first = notebook.cells[0]
    problems = [f"the first cell lacks {part!r}" for part in OPENING if f"**{part}" not in first.source]
    if first.cell_type != "markdown" or not re.match(r"# Lesson \d\d: \w", first.source):
        problems.append("the first cell is no title such as '# Lesson 00: start here'")
    return problems


def told_where_it_runs(notebook: NotebookNode) -> list[str]:
    """Whether the lesson runs against a remote server, in a paragraph of its own after what one needs."""
    _, _, after = notebook.cells[0].source.partition("**You need**")
    paragraphs = after.split("\n\n")[1:]
    told = [one for one in paragraphs if "**Remote server.**" in one]
    if told == paragraphs[:1] and told and re.match(r"\*\*Remote server\.\*\* (Yes\. [A-Z]|No: it \w)", told[0]):
        return []
    return ["the paragraph after **You need** is not '**Remote server.** Yes. ...' or '**Remote server.** No: it ...'"]


def closing(notebook: NotebookNode) -> list[str]:
    *_, before, quiz, last = notebook.cells
    recap, _, questions = before.source.partition("## Quiz")
    asked = re.findall(r"^(\d)\. .*\*\*a\)\*\* .*\*\*b\)\*\* .*\*\*c\)\*\* ", questions, flags=re.M)
    holds = {
        "a recap": "## Recap\n" in recap,
        "three questions with a), b) and c)": asked == ["1", "2", "3"],
        "an exercise for the quiz": quiz.cell_type == "code" and bool(check_calls(quiz.source)) and is_quiz(quiz),
        "the next lesson at its end": "**Next:**" in last.source,
    }
    return [f"the closing lacks {part}" for part, there in holds.items() if not there]


def exercises_are_marked(notebook: NotebookNode) -> list[str]:
    problems = []
    lesson = notebook.cells[0].source[len("# Lesson ") :][:2]
    for cell in code_cells(notebook):
        names = exercise_names(cell)
        if ("exercise" in tags(cell)) != (len(names) == 1):
            problems.append(f"{name_of(cell)}: the tag 'exercise' and one call of check(...) go together")
        problems += [f"{name_of(cell)}: there is no exercise {name!r}" for name in names if name not in EXERCISES]
        problems += [f"{name!r} stands in lesson {lesson}" for name in names if not name.startswith(f"{lesson}-")]
    return problems


def exercises_are_unsolved(notebook: NotebookNode) -> list[str]:
    problems = []
    for cell in exercise_cells(notebook):
        said = verdicts(statements(cell.source))
        if said != [NOT_ANSWERED]:
            problems.append(f"{name_of(cell)} as shipped says {said}")
        if printed(cell).strip() != NOT_ANSWERED:
            problems.append(f"{name_of(cell)} has another output stored: {printed(cell)!r}")
    return problems


def exercises_have_help(notebook: NotebookNode) -> list[str]:
    problems = []
    for cell in exercise_cells(notebook):
        text = "".join(each.source for each in below(notebook, cell) if each.cell_type == "markdown")
        wanted = ["Solution"] if is_quiz(cell) else ["Hint", "Solution"]
        problems += [f"{name_of(cell)} has no {part} below it" for part in wanted if not details(text, part).strip()]
    return problems


def solutions_are_right(notebook: NotebookNode) -> list[str]:
    problems = []
    for cell in exercise_cells(notebook):
        solution = solution_of(notebook, cell)
        said = verdicts(solved(cell.source, solution))
        if len(said) != 1 or not said[0].startswith("right. "):
            problems.append(f"the solution of {name_of(cell)} gets {said}")
        if set(map(ast.unparse, check_calls(solution))) - set(map(ast.unparse, check_calls(cell.source))):
            problems.append(f"the solution of {name_of(cell)} checks something else")
    return problems


def nothing_volatile_is_compared(notebook: NotebookNode) -> list[str]:
    compared = [cell for cell in code_cells(notebook) if "nbval-ignore-output" not in tags(cell)]
    return [
        f"{name_of(cell)} prints {what} ({match[0]!r}) and is not tagged nbval-ignore-output"
        for cell in compared
        for what, pattern in VOLATILE.items()
        if (match := re.search(pattern, printed(cell)))
    ]


def figures_are_told_in_text(notebook: NotebookNode) -> list[str]:
    """Below a figure stand its numbers, or, for a drawing without numbers, a paragraph that begins "In text:"."""
    problems = []
    for cell in filter(has_figure, notebook.cells):
        told = [
            len(re.findall(r"\d[\d,.]*", printed(each))) >= 3
            if each.cell_type == "code"
            else bool(re.search(r"^In text: \w", each.source, flags=re.M))
            for each in below(notebook, cell, FIGURE_REACH)
        ]
        if not any(told):
            problems.append(f"{name_of(cell)} shows a figure, and no text below tells what is in it")
    return problems


def plain_outputs(notebook: NotebookNode) -> list[str]:
    """What nbval cannot compare: hidden outputs, cleared or updated ones, SVG."""
    problems = []
    for cell in code_cells(notebook):
        words = re.findall(r"clear_output|update_display|display_id|;\s*$", cell.source, flags=re.M)
        problems += [f"{name_of(cell)} uses {word!r}" for word in words]
        problems += [f"{name_of(cell)} has an SVG" for each in cell.outputs if "image/svg+xml" in each.get("data", {})]
    return problems


def kernel(notebook: NotebookNode) -> list[str]:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"the kernel is {name!r}; expected 'python3'"]


def ids_are_unique(notebook: NotebookNode) -> list[str]:
    counts = Counter(cell.get("id") for cell in notebook.cells)
    return [f"{count} cells have the id {cell_id!r}" for cell_id, count in counts.items() if count > 1 or not cell_id]


def tags_are_known(notebook: NotebookNode) -> list[str]:
    unknown = [(cell, tag) for cell in notebook.cells for tag in tags(cell) if tag not in TAGS]
    return [f"{name_of(cell)} has the tag {tag!r}; known are {sorted(TAGS)}" for cell, tag in unknown]


CHECKS: tuple[Check, ...] = (
    valid,
    executed_in_order,
    without_errors,
    without_stderr,
    number_of_cells,
    size_of_code_cells,
    prose_for_code,
    opening,
    told_where_it_runs,
    closing,
    exercises_are_marked,
    exercises_are_unsolved,
    exercises_have_help,
    solutions_are_right,
    nothing_volatile_is_compared,
    figures_are_told_in_text,
    plain_outputs,
    kernel,
    ids_are_unique,
    tags_are_known,
)


# --- the lessons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, check):
    if path in LESSONS or check not in (opening, closing):
        assert check(read(path)) == []


def test_there_are_lessons_and_a_lab_book():
    assert [path.stem[:2] for path in LESSONS] == ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10"]
    assert [path.stem for path in NOTEBOOKS if path not in LESSONS] == ["lab_book"]


def test_every_exercise_is_used_in_one_place():
    used = Counter(name for path in NOTEBOOKS for cell in code_cells(read(path)) for name in exercise_names(cell))
    assert used == Counter(EXERCISES.keys())


# --- the checks, checked ------------------------------------------------------------------------------------------

WORDS = "this paragraph has just enough words to be read before the next cell is run"
HINT = "<details><summary>Hint</summary>\n\nThink.\n</details>\n"


def solution(code: str) -> str:
    return f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n</details>"


def text_cell(source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def code_cell(source: str, output: str = "", *tags: str) -> NotebookNode:
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)] if output else []
    return nbformat.v4.new_code_cell(source, outputs=outputs, metadata={"tags": list(tags)} if tags else {})


def figure_cell() -> NotebookNode:
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 1100x420 with 2 Axes>"}
    output = nbformat.v4.new_output("execute_result", data=data, execution_count=1)
    return nbformat.v4.new_code_cell("growth_figure(lengths)", outputs=[output])


def good_notebook() -> NotebookNode:
    """A small notebook that keeps the contract: 24 cells, of every kind that a lesson has."""
    question = " Which one? **a)** this, **b)** that, **c)** other."
    parts = [*(f"**{part}**. Something." for part in OPENING), "**Remote server.** No: it restarts the server."]
    cells = [
        text_cell("# Lesson 00: a test\n\n" + "\n\n".join(parts)),
        *(cell for n in range(7) for cell in (text_cell(WORDS), code_cell(f"print({n})", f"{n}\n"))),
        code_cell("print(server)", "at 127.0.0.1:8001, pid 12, after 0.3 s, in /tmp/x\n", "nbval-ignore-output"),
        figure_cell(),
        text_cell(WORDS),
        code_cell("print(table)", "1 2 4 8\n"),
        code_cell('messages = ...\ncheck("00-messages", messages)', f"{NOT_ANSWERED}\n", "exercise"),
        text_cell(HINT + solution("messages = 5")),
        text_cell("## Recap\n\n- All.\n\n## Quiz\n\n" + "\n".join(f"{n}.{question}" for n in (1, 2, 3))),
        code_cell('answers = [..., ..., ...]\ncheck("00-quiz", answers)', f"{NOT_ANSWERED}\n", "exercise"),
        text_cell(solution('answers = ["b", "a", "c"]') + "\n\n**Next:** another lesson."),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "P"}})
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
    return notebook


def find(notebook: NotebookNode, start: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.source.startswith(start))


def replace(start: str, old: str, new: str) -> Callable[[NotebookNode], None]:
    """Change the source of the cell that begins so."""

    def change(notebook: NotebookNode) -> None:
        cell = find(notebook, start)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return change


def output(text: str, **fields: str) -> Callable[[NotebookNode], None]:
    """Give the first code cell another output."""

    def change(notebook: NotebookNode) -> None:
        kind = {"output_type": "stream", "name": "stdout", "text": text} | fields
        code_cells(notebook)[0].outputs = [nbformat.from_dict(kind)]

    return change


def retag(start: str, *new: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: find(notebook, start).metadata.update(tags=list(new))


def without(start: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells.remove(find(notebook, start))


def count(start: str, value: int | None) -> Callable[[NotebookNode], None]:
    return lambda notebook: find(notebook, start).update(execution_count=value)


def longer(cells: int, lines: int) -> Callable[[NotebookNode], None]:
    """Make some code cells longer."""

    def change(notebook: NotebookNode) -> None:
        for cell in code_cells(notebook)[:cells]:
            cell.source = "\n\n".join(["x = 1"] * lines)

    return change


def more_cells(number: int) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells.__setitem__(slice(1, 1), [text_cell("a") for _ in range(number)])


def fewer_cells(number: int) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells.__delitem__(slice(1, 1 + number))


def error(notebook: NotebookNode) -> None:
    failed = {"output_type": "error", "ename": "NameError", "evalue": "x", "traceback": []}
    code_cells(notebook)[2].outputs.append(nbformat.from_dict(failed))


def same_id(notebook: NotebookNode) -> None:
    notebook.cells[3].id = notebook.cells[5].id


EXERCISE, QUIZ, HELP = "messages = ...", "answers = [", "<details><summary>Hint"
REMOTE = "**Remote server.** No: it"
BREAKS: list[tuple[Check, str, Callable[[NotebookNode], None]]] = [
    (valid, "cell without id", lambda notebook: notebook.cells[1].pop("id")),
    (valid, "unknown kind of cell", lambda notebook: notebook.cells[1].update(cell_type="prose")),
    (valid, "outputs missing", lambda notebook: code_cells(notebook)[0].pop("outputs")),
    (executed_in_order, "not executed", count("print(3)", None)),
    (executed_in_order, "executed twice", count("print(3)", 99)),
    (executed_in_order, "one too early", count("print(0)", 0)),
    (without_errors, "error", error),
    (without_stderr, "warning", output("UserWarning: old", name="stderr")),
    (number_of_cells, "19 cells", fewer_cells(5)),
    (number_of_cells, "46 cells", more_cells(22)),
    (size_of_code_cells, "one of 21 lines", longer(1, 21)),
    (size_of_code_cells, "two of 11 lines", longer(2, 11)),
    (size_of_code_cells, "most of 5 lines", longer(9, 5)),
    (prose_for_code, "too little", lambda notebook: [replace("this", WORDS, "short")(notebook) for _ in range(8)]),
    (prose_for_code, "too much", replace("this", WORDS, WORDS * 20)),
    *((opening, f"without {part}", replace("# Lesson", part, "Something")) for part in OPENING),
    (told_where_it_runs, "not at all", replace("# Lesson", REMOTE, "Somewhere: it")),
    (told_where_it_runs, "no reason", replace("# Lesson", REMOTE, f"{REMOTE[:-4]}. It")),
    (told_where_it_runs, "neither", replace("# Lesson", "No: it", "Perhaps: it")),
    (told_where_it_runs, "yes, because", replace("# Lesson", "No: it", "Yes: it")),
    (told_where_it_runs, "not on its own", replace("# Lesson", f"\n\n{REMOTE}", f" {REMOTE}")),
    (told_where_it_runs, "too early", replace("# Lesson", "**You need**. Something.\n\n", "")),
    (told_where_it_runs, "too late", replace("# Lesson", REMOTE, f"Something.\n\n{REMOTE}")),
    (opening, "no title", replace("# Lesson", "# Lesson 00: a", "A")),
    (opening, "no number", replace("# Lesson", "# Lesson 00: a", "# Lesson: a")),
    (opening, "code first", lambda notebook: notebook.cells.reverse()),
    (closing, "no recap", replace("## Recap", "## Recap", "## Summary")),
    (closing, "no quiz", replace("## Recap", "## Quiz", "## Questions")),
    (closing, "two questions", replace("## Recap", "\n3. Which", "\nWhich")),
    (closing, "no third letter", replace("## Recap", "**c)**", "or")),
    (closing, "no exercise for it", without(QUIZ)),
    (closing, "no next lesson", replace("<details><summary>Solution", "**Next:**", "Bye:")),
    (closing, "something after it", lambda notebook: notebook.cells.append(text_cell("more"))),
    (exercises_are_marked, "tag missing", retag(EXERCISE)),
    (exercises_are_marked, "tag without check", retag("print(2)", "exercise")),
    (exercises_are_marked, "two checks", replace(EXERCISE, "check(", 'check("00-quiz", 1)\ncheck(')),
    (exercises_are_marked, "unknown name", replace(EXERCISE, "00-messages", "00-nothing")),
    (exercises_are_marked, "name of another lesson", replace(EXERCISE, "00-messages", "02-gib")),
    (exercises_are_unsolved, "solved", replace(EXERCISE, "...", "5")),
    (exercises_are_unsolved, "answered wrongly", replace(EXERCISE, "...", "1")),
    (exercises_are_unsolved, "fails", replace(EXERCISE, "...", "unknown_name")),
    (exercises_are_unsolved, "another output", lambda notebook: find(notebook, QUIZ).update(outputs=[])),
    (exercises_have_help, "no hint", replace(HELP, "Hint", "Remark")),
    (exercises_have_help, "empty hint", replace(HELP, "Think.", "")),
    (exercises_have_help, "no solution", replace(HELP, "Solution", "Answer")),
    (exercises_have_help, "open solution", replace(HELP, "<details>", "")),
    (exercises_have_help, "cell missing", without(HELP)),
    (exercises_have_help, "code in between", lambda notebook: notebook.cells.insert(-1, code_cell("print(1)"))),
    (solutions_are_right, "wrong", replace(HELP, "messages = 5", "messages = 6")),
    (solutions_are_right, "not there", replace(HELP, "messages = 5", "")),
    (solutions_are_right, "no code", replace(HELP, "```python", "```text")),
    (solutions_are_right, "fails", replace(HELP, "messages = 5", "messages = five")),
    (solutions_are_right, "another check", replace(HELP, "messages = 5", 'messages = 5\ncheck("00-quiz", messages)')),
    (nothing_volatile_is_compared, "port", output("at 127.0.0.1:8001")),
    (nothing_volatile_is_compared, "named port", output("localhost:8001 answers")),
    *(
        (nothing_volatile_is_compared, f"{root} folder", output(f"in /{root}/x"))
        for root in ("home", "tmp", "root", "opt")
    ),
    (nothing_volatile_is_compared, "seconds", output("ready after 0.3 s")),
    (nothing_volatile_is_compared, "milliseconds", output("took 12.5 ms")),
    (nothing_volatile_is_compared, "clock", output("at 07:44:59")),
    (nothing_volatile_is_compared, "pid", output("pid 4711")),
    (nothing_volatile_is_compared, "tag missing", retag("print(server)")),
    (figures_are_told_in_text, "no numbers", lambda notebook: find(notebook, "print(table)").update(outputs=[])),
    (figures_are_told_in_text, "too far below", lambda notebook: notebook.cells.insert(17, text_cell(WORDS))),
    (plain_outputs, "semicolon", replace("print(2)", "print(2)", "print(2);")),
    (plain_outputs, "semicolon within", replace("print(2)", "print(2)", "figure();  \nprint(2)")),
    (plain_outputs, "cleared", replace("print(2)", "print(2)", "clear_output()")),
    (plain_outputs, "updated", replace("print(2)", "print(2)", "display(x, display_id=True)")),
    (plain_outputs, "SVG", output("", output_type="display_data", data={"image/svg+xml": "<svg/>"}, metadata={})),
    (kernel, "another", lambda notebook: notebook.metadata.kernelspec.update(name="python3.12")),
    (kernel, "none", lambda notebook: notebook.metadata.pop("kernelspec")),
    (ids_are_unique, "twice the same", same_id),
    (ids_are_unique, "empty", lambda notebook: notebook.cells[3].update(id="")),
    (tags_are_known, "spelling", retag("print(server)", "nbval-ignore-outputs")),
    (tags_are_known, "skipped", retag("print(2)", "nbval-skip")),
]


def through_a_file(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Write and read it as a lesson is; a broken one is written as it is."""
    path = folder / "00_test.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return read(path)


@pytest.fixture(scope="module")
def good() -> NotebookNode:
    return good_notebook()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_notebook_that_keeps_the_contract_passes(good, tmp_path, check):
    assert check(through_a_file(good, tmp_path)) == []


@pytest.mark.parametrize(("check", "break_"), [pytest.param(c, b, id=f"{c.__name__}: {what}") for c, what, b in BREAKS])
def test_a_broken_notebook_does_not_pass(good, tmp_path, check, break_):
    broken = copy.deepcopy(good)
    break_(broken)
    problems = check(through_a_file(broken, tmp_path))
    assert problems
    assert all(isinstance(problem, str) and problem for problem in problems)


def test_every_check_is_checked():
    assert {check for check, _, _ in BREAKS} == set(CHECKS)


@pytest.mark.parametrize("cells", [20, 45])
def test_the_bounds_of_the_number_of_cells_are_allowed(good, cells):
    notebook = copy.deepcopy(good)
    (more_cells if cells > len(good.cells) else fewer_cells)(abs(cells - len(good.cells)))(notebook)
    assert (len(notebook.cells), number_of_cells(notebook)) == (cells, [])


def test_the_bounds_of_the_size_of_cells_are_allowed(good):
    notebook = copy.deepcopy(good)
    longer(len(code_cells(notebook)), 4)(notebook)
    longer(2, 10)(notebook)
    longer(1, 20)(notebook)
    assert size_of_code_cells(notebook) == []


def test_a_drawing_without_numbers_may_be_told_in_words(good):
    notebook = copy.deepcopy(good)
    notebook.cells[18] = text_cell("A drawing.\n\nIn text: preprocess sends PROMPT_IDS to inference.")
    assert figures_are_told_in_text(notebook) == []


def test_a_cell_in_ipythons_own_syntax_can_be_read(good):
    notebook = copy.deepcopy(good)
    replace("print(2)", "print(2)", "%config InlineBackend\n!ls")(notebook)
    assert exercises_are_marked(notebook) == []


def test_a_solution_may_repeat_the_whole_cell(good):
    notebook = copy.deepcopy(good)
    replace(HELP, "messages = 5", 'messages = 5\n\n\ncheck("00-messages", messages)')(notebook)
    assert solutions_are_right(notebook) == []
