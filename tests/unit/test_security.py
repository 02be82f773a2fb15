"""Nothing is executed that was read; what is shown is shown as text; every dependency is pinned and hashed."""

import ast
import csv
import json
import os
import pickle
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from trace_writer import call, decoupled_request, ints, save, text

from lab_utils import api_key, labbook_report
from lab_utils.__main__ import main
from lab_utils.api_key import key_from_environment
from lab_utils.errors import ServerError
from lab_utils.labbook import Book
from lab_utils.labbook_report import export
from lab_utils.plots import growth_figure
from lab_utils.trace import read, values

ROOT = Path(__file__).parents[2]

# --- nothing is executed ----------------------------------------------------------------------------------------------

# Calls that turn what they are given into running code, whatever module they come from.
RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "execfile",
    "__import__",
    "import_module",
    "exec_module",
    "run_path",
    "run_module",
}
RUNS_CODE |= {"system", "popen", "getoutput", "getstatusoutput", "from_string", "Markup", "extractall", "execvp"}
LOADS_CODE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "imp", "code"}
OPTIONS = {"shell": True, "allow_pickle": True, "autoescape": False, "weights_only": False}
ALLOWED = {
    # What the lab itself ships: its own models' modules, by a name that stands in the lab's code.
    ("lab_utils/model_files.py", "spec.loader.exec_module"),
    # One of two modules that are named there.
    ("model_repository/inference/transformer.py", "importlib.import_module"),
    ("model_repository/inference_mutant/transformer.py", "importlib.import_module"),
    ("benchmarks/model_repository/one_model/transformer.py", "importlib.import_module"),
    ("benchmarks/decode_step_arrays.py", "importlib.import_module"),
    # One of five modules that are named there.
    ("lab_utils/__main__.py", "importlib.import_module"),
    # torch's word for "not training".
    ("tiny_lm/reference_logits.py", "model.float().eval"),
    # A tar that git has just written of this checkout.
    ("tools/offline_archive.py", "archive.extractall"),
}


def shipped() -> list[Path]:
    """Every Python file that a user runs; not the tests."""
    folders = ("lab_utils", "model_repository", "tools", "custom_backend", "tiny_lm", "benchmarks", "deploy")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in files if not {"node_modules", "build"} & set(path.parts))


def suspicious(source: str) -> Iterator[str]:
    """Every call, import and option in this source that can execute what it is given."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            if (last in RUNS_CODE and name not in ("re.compile", "platform.system")) or _reads_yaml(name):
                yield name
            for word in node.keywords:
                if word.arg in OPTIONS and not (
                    isinstance(word.value, ast.Constant) and word.value.value is not OPTIONS[word.arg]
                ):
                    yield f"{name}({word.arg}=…)"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            yield from (f"import {each}" for each in named if each.partition(".")[0] in LOADS_CODE)


def _reads_yaml(name: str) -> bool:
    return name.startswith("yaml.") and name.rpartition(".")[2] in ("load", "load_all", "unsafe_load", "full_load")


@pytest.mark.parametrize(
    "line",
    [
        *("eval(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "os.system(x)", "builtins.eval(x)"),
        *(
            "import pickle",
            "from pickle import loads",
            "import dill as d",
            "yaml.load(x)",
            "numpy.load(x, allow_pickle=True)",
        ),
        *(
            "run(x, shell=True)",
            "run(x, shell=y)",
            "Environment(autoescape=False)",
            "tar.extractall(x)",
            "torch.load(x, weights_only=False)",
        ),
    ],
)
def test_the_search_finds(line):
    assert list(suspicious(f"def f(x, y):\n    {line}\n"))


def test_the_search_lets_pass_what_is_harmless():
    lines = [
        "re.compile(x)",
        "json.loads(x)",
        "yaml.safe_load(x)",
        "run(x, shell=False)",
        "numpy.load(x)",
        "import json",
    ]
    assert list(suspicious("\n".join(lines))) == []


def test_no_code_of_the_lab_executes_what_it_reads():
    """Exercise checks call functions that the learner wrote in the same notebook; these never come from a file."""
    files = shipped()
    assert len(files) > 100
    found = {
        (str(path.relative_to(ROOT)), what) for path in files for what in suspicious(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


def test_values_reach_the_database_as_parameters():
    """Statements with something built in name tables and columns of the lab's own code, never a value."""
    built = {}
    for path in (ROOT / "lab_utils").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("execute", "executemany")):
                parts = [each for each in ast.walk(node.args[0]) if isinstance(each, ast.FormattedValue)]
                built |= {ast.unparse(each.value): path.name for each in parts}
    assert set(built) <= {"table", "columns", "names", "marks", "same", "APPLICATION_ID", "CURRENT"}, built


# --- hostile content --------------------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b2J\x7f"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
SQL = "'); DROP TABLE experiments; --"
LINK = "[x](javascript:alert(1)) <a href='javascript:alert(1)'>x</a>"
FORMULA = '=HYPERLINK("http://x","x")'
BRACES, MATHS = "{{ 7 * 7 }} ${7*7} %s %n {0}", "a$\\frac{$b"
HOSTILE = ["../../../x", "/etc/passwd", SCRIPT, SQL, ESCAPE, LINK, FORMULA, BRACES, MATHS, "-rf"]
NAMES = [f"../../../x{SCRIPT}", f"/etc/passwd{SQL}", ESCAPE + BRACES, MATHS + LINK]


class Canary:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_the_canary_sings(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary"), 0))
    assert (tmp_path / "canary").exists()


def assert_harmless(printed: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_trace_is_shown_and_nothing_else_happens(tmp_path, capsys, name):
    work, canary = tmp_path / "deep" / "er" / "work", tmp_path / "canary"
    work.mkdir(parents=True)
    bomb = pickle.dumps(Canary(canary), 0)
    plain = name.replace('"', "")
    records = call(1, plain, [text("QUEUE_INPUT", plain, bomb), ints("BACKEND_OUTPUT", plain, [1])], request_id=plain)
    path = save(work / "trace.json", [*records, *decoupled_request(9, [1, 2, 4, 8, 16], request_id=plain)])
    arguments = ["trace", str(path), "--figure", str(work / "edges.png"), "--perfetto", str(work / "line.json")]
    assert main(arguments) in (0, 1)
    assert main(["trace", str(path), "--json"]) in (0, 1)
    printed = capsys.readouterr()
    assert_harmless(printed.out + printed.err)
    assert json.loads((work / "line.json").read_text())["traceEvents"]
    first = next(iter(read(path)))
    assert values(first.tensors[0]).tolist() == [bomb]  # kept as it came, as bytes
    assert files_below(tmp_path) == {f"deep/er/work/{file}" for file in ("trace.json", "edges.png", "line.json")}
    assert not canary.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_repository_is_read_and_nothing_in_it_is_run(tmp_path, capsys, name):
    work, canary = tmp_path / "deep" / "er", tmp_path / "canary"
    quoted = "".join(f"\\{ord(each):03o}" if ord(each) < 0x80 else each for each in name)
    tensor = f'[ {{ name: "{quoted}" data_type: TYPE_STRING dims: [ 1 ] }} ]'
    step = f'model_name: "node" model_version: -1 input_map {{ key: "{quoted}" value: "{quoted}" }}'
    configs = {
        "node": f'name: "node" backend: "python" input {tensor} output {tensor} parameters {{ key: "{quoted}" }}',
        "chain": f'platform: "ensemble" input {tensor} output {tensor} ensemble_scheduling {{ step [ {{ {step} '
        f'output_map {{ key: "{quoted}" value: "{quoted}" }} }}, {{ model_name: "{quoted}" }} ] }}',
    }
    for model, config in configs.items():
        (work / model / "1").mkdir(parents=True)
        (work / model / "config.pbtxt").write_text(config, encoding="utf-8")
        (work / model / "1" / "model.py").write_text(f"import os; os.mkdir({str(canary)!r})")
    before = files_below(tmp_path)
    assert main(["contract", str(work), "--figure", str(tmp_path / "graph.png")]) in (0, 1)
    assert main(["contract", str(work), "--json"]) in (0, 1)
    printed = capsys.readouterr()
    assert "chain" in printed.out
    assert_harmless(printed.out + printed.err)
    assert files_below(tmp_path) - before <= {"graph.png"}
    assert not canary.exists()


class Page(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[Path, Path]:
    """A lab book that has hostile text in every field, and the folder of its report."""
    folder = tmp_path_factory.mktemp("report")
    file = folder / "deep" / "book.sqlite3"
    book, png = Book(file), growth_figure({"measured": [1, 2, 4]})._repr_png_()[0]
    for number, nasty in enumerate(HOSTILE):
        for ensemble in (nasty, f"other {number}") if nasty in (SCRIPT, MATHS) else (nasty,):
            with book.experiment(
                nasty, nasty, predicted=[1, 2], ensemble=ensemble, **{nasty: nasty}, prompt=nasty
            ) as e:
                e.series("measured", [1, 2, 4])
                e.series(nasty, [1, 2], unit=nasty)
                e.number(nasty, 1, nasty)
                e.verdict(nasty)
                e.note(nasty)
                e.figure(nasty, png, alt=nasty)
        with pytest.raises(RuntimeError), book.experiment(nasty, nasty):
            raise RuntimeError(nasty)
    export(book, folder / "deep" / "report")
    return file, folder / "deep" / "report"


def test_the_report_holds_no_script_no_link_elsewhere_and_no_picture_from_elsewhere(report):
    page = (report[1] / "report.html").read_text(encoding="utf-8")
    tags = Page(page).tags
    assert {tag for tag, _ in tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "input",
        "base",
        "link",
        "svg",
    } == set()
    assert all(attributes["href"].startswith("#") for tag, attributes in tags if tag == "a")
    assert all(attributes["src"].startswith("data:image/png;base64,") for tag, attributes in tags if tag == "img")
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "srcdoc"]
    assert "default-src 'none'" in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert "49" not in re.findall(r"<li>\{\{ (.*?) \}\}", page)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


def test_no_cell_of_the_table_is_a_formula(report):
    with (report[1] / "data.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{FORMULA}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]


def test_the_book_and_its_folder_are_whole_after_hostile_text(report):
    with sqlite3.connect(report[0]) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sum(one.title == SQL for one in Book(report[0]).experiments()) == 2
    assert {path.parts[0] for path in map(Path, files_below(report[0].parents[1]))} == {"deep"}
    assert {path.name for path in report[1].iterdir()} == {"report.html", "data.csv", "data.json"}
    json.loads((report[1] / "data.json").read_text(encoding="utf-8"))


def test_the_book_is_printed_harmlessly(report, capsys, monkeypatch):
    monkeypatch.setenv("LAB_BOOK", str(report[0]))
    for words in (["list"], ["show", "11"], ["compare", "5", "6"]):
        assert main(["labbook", *words]) == 0
    assert_harmless(capsys.readouterr().out)


def test_the_template_escapes_by_itself():
    template = (ROOT / "lab_utils" / "data" / labbook_report.TEMPLATE).read_text(encoding="utf-8")
    assert "|safe" not in template.replace(" ", "")
    assert "autoescape false" not in template


def test_no_other_code_of_the_lab_writes_html_with_names_in_it():
    """Notebooks show tables as text and figures as PNG; the slider puts numbers into its line, and nothing else."""
    makers = {
        path.name
        for path in (ROOT / "lab_utils").glob("*.py")
        if re.search(r"_repr_html_|\bHTML\(|</\w+>", path.read_text())
    }
    assert makers <= {"iteration_slider.py"}, makers


# --- the key ----------------------------------------------------------------------------------------------------------


def test_no_variable_no_key(monkeypatch):
    monkeypatch.delenv("TRITON_API_KEY", raising=False)
    assert key_from_environment() is None


@pytest.mark.parametrize("name", ["admin-key", "triton-grpc-protocol-admin-key", "Admin-Key"])
def test_a_key_from_the_environment(monkeypatch, name):
    monkeypatch.setenv("TRITON_API_KEY", f"{name}=a=b/+")
    assert (key_from_environment().header, key_from_environment().value) == ("admin-key", "a=b/+")


@pytest.mark.parametrize("text", ["secret", "=secret", "a b=secret", "a=", "a=secret\r\nx: y", "ä=secret"])
def test_a_malformed_key_is_refused_and_not_printed(monkeypatch, text):
    monkeypatch.setenv("TRITON_API_KEY", text)
    with pytest.raises(ServerError, match="TRITON_API_KEY is not HEADER=VALUE") as caught:
        key_from_environment()
    assert "secret" not in str(caught.value)


def test_only_health_and_metadata_are_open():
    groups = {"health", "metadata", "inference", "shared-memory", "model-config", "model-repository", "statistics"}
    groups |= {"trace", "logging"}
    assert groups - set(api_key.CLOSED) == {"health", "metadata"}


# --- dependencies and documents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", sorted(path.name for path in ROOT.glob("requirements*.lock")))
def test_every_locked_package_is_pinned_and_hashed(lock):
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) > 50
    assert [
        line for line in lines if not re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line)
    ] == []


def test_every_package_of_the_proxy_is_pinned_and_hashed():
    found = json.loads((ROOT / "deploy/jupyterhub/package-lock.json").read_text(encoding="utf-8"))["packages"]
    packages = {name: one for name, one in found.items() if name}
    assert packages
    assert [name for name, one in packages.items() if not one.get("integrity", "").startswith("sha512-")] == []


def test_every_claim_names_a_test_that_there_is():
    document = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document))
    assert len(named) > 15
    missing = [
        f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_nothing_is_downloaded_by_git_or_plain_http():
    answer = subprocess.run(["git", "ls-files", "*.lock", "pyproject.toml"], cwd=ROOT, capture_output=True, text=True)
    for name in answer.stdout.split():
        assert not re.search(r"git\+|http://", (ROOT / name).read_text(encoding="utf-8"))
