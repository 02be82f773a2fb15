"""Links lead to files that are there, and nothing tracked names a machine or a package registry."""

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "notebooks").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "deploy").rglob("*.md") if "node_modules" not in path.parts),
    ROOT / "README.zh.md",
    *sorted((ROOT / "notebooks/zh").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
LINK = re.compile(r"\[[^\]]*\]\(<?([^)<>\s]+)>?(?:\s+\"[^\"]*\")?\)")

# The parts are joined here, so that this file does not hold what it looks for.
REGISTRIES = ["pypi" + ".org", "python" + "hosted.org", "anaconda" + ".org", "npmjs" + ".org", "proxy.golang" + ".org"]
REGISTRY = re.compile("|".join(map(re.escape, REGISTRIES)) + r"|index-url[= ]+\S*://")
PLACEHOLDERS = r"(?!(?:me|you|user|jovyan|Ada)\b)"  # stand for anybody's home
OWN_FOLDER = re.compile(r"(?<![\w.$}~-])/(?:ho" + "me/" + PLACEHOLDERS + r"|ro" + r"ot/|wo" + r"rk/|Us" + r"ers/)[\w.]")


def tracked() -> list[Path]:
    """Files that git tracks and that are here; a checkout of another user counts, too."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """The file's text; empty for one that is no text."""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8")


def found(pattern: re.Pattern, text: str) -> list[str]:
    """The places, each with what stands around it."""
    return [text[max(0, match.start() - 20) : match.end() + 20] for match in pattern.finditer(text)]


def without_images(path: Path) -> str:
    """A notebook without its base64 data, which may spell anything."""
    text = text_of(path)
    return re.sub(r'"image/png": "[^"]*"', '""', text) if path.suffix == ".ipynb" else text


def prose(path: Path) -> str:
    """Markdown without its code: what looks like a link there is none."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.S))


def broken_links(path: Path) -> list[str]:
    """Relative links of a page whose file, or whose heading in a page, is not there."""
    problems = []
    for link in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = unquote(link).partition("#")
        target = path.parent / name if name else path
        if not target.exists():
            problems.append(f"{link}: {name} does not exist")
        elif heading and target.suffix == ".md" and heading not in headings(target):
            problems.append(f"{link}: {target.name} has no heading {heading!r}")
        elif heading and target.suffix == ".ipynb" and heading not in cells_with_output(target):
            problems.append(f"{link}: {target.name} has no cell with output at {heading!r}")
    return problems


def cells_with_output(path: Path) -> set[str]:
    """Anchors of a notebook's cells that show something, as JupyterLab makes them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {f"cell-id={cell['id']}" for cell in cells if cell.get("outputs")}


def headings(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and JupyterLab make them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    words = [re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title)).strip().replace(" ", "-") for title in titles]
    return {*words, *map(str.lower, words)}


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(path):
    assert broken_links(path) == []


def test_there_are_pages_with_links():
    assert len(PAGES) >= 3
    assert len(NOTEBOOKS) >= 3
    assert sum(len(LINK.findall(prose(path))) for path in [*PAGES, *NOTEBOOKS]) >= 8


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_links_out_of_the_project(path):
    """A relative link that climbs out works on one machine only."""
    links = [link for link in LINK.findall(prose(path)) if not re.match(r"[a-z]+:|#", link)]
    targets = [(path.parent / unquote(link).partition("#")[0]).resolve() for link in links]
    assert all(target.is_relative_to(ROOT.resolve()) for target in targets)


def test_the_readme_names_every_lesson():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"notebooks/{path.name}" not in text] == []


def test_nothing_tracked_names_a_package_registry():
    places = {path.relative_to(ROOT).as_posix(): found(REGISTRY, without_images(path)) for path in tracked()}
    assert {name: hits for name, hits in places.items() if hits} == {}


def test_nothing_tracked_names_a_folder_of_one_machine():
    places = {path.relative_to(ROOT).as_posix(): found(OWN_FOLDER, without_images(path)) for path in tracked()}
    assert {name: hits for name, hits in places.items() if hits} == {}


def test_there_are_tracked_files():
    names = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert {"README.md", "lab_utils/server.py", "notebooks/00_start_here.ipynb"} <= names
    assert sum(bool(text_of(path)) for path in tracked()) > 40


# --- the checks, checked ------------------------------------------------------------------------------------------

CELLS = json.dumps({"cells": [{"id": "shown", "outputs": [{}]}, {"id": "silent", "outputs": []}]})


@pytest.mark.parametrize(
    "text",
    [
        "see [it](absent.md)",
        "see [it](../absent.ipynb)",
        "![figure](absent.png)",
        "see [it](page.md#absent)",
        "see [it](#absent)",
        'see [it](absent.md "a title")',
        "see [it](<absent.md>)",
        "see [it](cells.ipynb#cell-id=absent)",
        "see [it](cells.ipynb#cell-id=silent)",
    ],
)
def test_a_broken_link_is_found(tmp_path, text):
    (tmp_path / "cells.ipynb").write_text(CELLS)
    (tmp_path / "page.md").write_text(f"# Some heading\n\n{text}\n")
    assert len(broken_links(tmp_path / "page.md")) == 1
    cell = {"cell_type": "markdown", "source": [f"{text}\n"]}
    (tmp_path / "lesson.ipynb").write_text(json.dumps({"cells": [cell]}))
    if "#" not in text:
        assert len(broken_links(tmp_path / "lesson.ipynb")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "see [it](page.md)",
        "see [it](page.md#some-heading)",
        "see [it](#some-heading)",
        "see [it](https://example.com/absent.md)",
        "see [it](cells.ipynb#cell-id=shown)",
        "in code: `[it](absent.md)`",
        "```\n[it](absent.md)\n```",
        "an [aside] (in words)",
    ],
)
def test_a_good_link_is_none(tmp_path, text):
    (tmp_path / "cells.ipynb").write_text(CELLS)
    (tmp_path / "page.md").write_text(f"# Some heading\n\n{text}\n")
    assert broken_links(tmp_path / "page.md") == []


@pytest.mark.parametrize(
    "parts",
    [
        ["in /ho", "me/jane/lab"],
        ["'/ro", "ot/.cache'"],
        ['"/wo', 'rk/main"'],
        ["(/Us", "ers/jane)"],
        ["FOO=/ro", "ot/x"],
        ["file:///ho", "me/jane"],
    ],
)
def test_a_folder_of_one_machine_is_found(parts):
    assert len(found(OWN_FOLDER, "".join(parts))) == 1


@pytest.mark.parametrize(
    "parts",
    [
        ["~/wo", "rk/lab"],
        ["notebooks/wo", "rk/x"],
        ["$ROOT/wo", "rk/x"],
        ["/ho", "mes"],
        ["a/ro", "ot/x"],
        ["/opt/tritonserver"],
    ],
)
def test_another_folder_is_none(parts):
    assert found(OWN_FOLDER, "".join(parts)) == []


@pytest.mark.parametrize("host", [*REGISTRIES, "--index-url" + " https://mirror.example"])
def test_a_registry_is_found(host):
    assert len(found(REGISTRY, f"from {host}/simple")) == 1
