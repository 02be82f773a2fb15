"""Keep the Chinese edition beside the English one: ``python tools/translation.py {status,update,export,import}``.

A Chinese notebook is the English one with the text of its markdown cells replaced, cell by cell. Each replaced cell
carries the hash of the English text that it was translated from, so a cell whose English has changed since is found.
A page (*.md) is kept in the same way, section by section; the hash stands in a comment below each section.

    status              list what is missing, stale or out of step; exit status 1 if anything is
    update              build all Chinese notebooks anew: the prose that is there, everything else from the English
    export NAME         print what is missing or stale of one document, in English, to translate it in place
    import NAME FILE    take such a file back, in Chinese; it may hold a part of the cells

NAME is a lesson's number, such as 02, or a document's name. The marker above each cell says which English was
translated: leave it as it is. Links are written as in the English text: they are set right on the way in. To polish
what is translated, edit the Chinese prose itself, and run `update`.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER, README = "notebooks", "README.md"
MARK = "translated_from"
TOP = "top"  # a page's text before its first section
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
CELL = re.compile(r"^<!-- cell (\S+) (\w+) -->\n", re.MULTILINE)
SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)
FOOT = re.compile(rf"\n\n<!-- {MARK} (\S+) (\w*) -->\n+")  # a section's id, and its hash: none where it is English


class TranslationError(Exception):
    """A document or an exchange file cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Prose:
    """One cell's text in Chinese.

    Attributes
    ----------
    text : str
        The text, links already set right.
    source : str
        The hash of the English text it was translated from.
    """

    text: str
    source: str


def digest(text: str) -> str:
    """Return the hash of an English text, 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Where things are --------------------------------------------------------------------------------------------------


def documents(root: Path) -> list[Path]:
    """Return all English documents that have a Chinese counterpart: notebooks, the pages beside them, the README."""
    folder = root / FOLDER
    return [*sorted(folder.glob("*.ipynb")), *sorted(folder.glob("*.md")), root / README]


def chinese_path(path: Path) -> Path:
    """Return where the Chinese counterpart of an English document is kept."""
    return path.with_name("README.zh.md") if path.name == README else path.parent / "zh" / path.name


def find(root: Path, wanted: str) -> Path:
    """Return the English document of a name or a lesson's number.

    Raises
    ------
    TranslationError
        When not exactly one fits; the text lists the names.
    """
    paths = documents(root)
    found = [path for path in paths if wanted in (path.name, path.stem, path.name.partition("_")[0])]
    if len(found) != 1:
        listed = "\n".join(f"  {path.name}" for path in paths)
        raise TranslationError(f"{wanted!r} names {len(found)} documents, expected one of:\n{listed}")
    return found[0]


def relink(text: str, english: Path, root: Path) -> str:
    """Return a text whose links, written as seen from the English document, lead on from the Chinese one.

    A link to a document that has a Chinese counterpart leads to that, and one to the counterpart leads back: it is
    the link to the other language. Code is left alone.
    """
    pairs = {path: chinese_path(path) for path in documents(root)}
    other = pairs | {chinese: path for path, chinese in pairs.items()}

    def turned(link: re.Match) -> str:
        target = Path(os.path.normpath(english.parent / link[2]))
        return link[1] + os.path.relpath(other.get(target, target), chinese_path(english).parent)

    parts = CODE.split(text)
    return "".join(part if i % 2 else LINK.sub(turned, part) for i, part in enumerate(parts))


# Reading and writing -----------------------------------------------------------------------------------------------


def read_notebook(path: Path) -> dict:
    """Return a notebook as it is in the file: nothing is upgraded or repaired.

    Raises
    ------
    TranslationError
        When the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TranslationError(f"{path} is no notebook, expected JSON: {error}; see `git status`") from None


def english_prose(path: Path) -> dict[str, str]:
    """Return the English texts of a document by cell id, in order; of a page those of its sections."""
    if path.suffix == ".md":
        titles, texts = _sections(path.read_text(encoding="utf-8"))
        return dict(zip(titles, texts, strict=True))
    return {cell["id"]: "".join(cell["source"]) for cell in _markdown(read_notebook(path))}


def chinese_prose(path: Path) -> dict[str, Prose]:
    """Return what is translated of an English document by cell id; cells that were never translated are left out."""
    kept = chinese_path(path)
    if not kept.exists():
        return {}
    if path.suffix == ".md":
        texts = iter(FOOT.split(kept.read_text(encoding="utf-8")))
        return {key: Prose(text, source) for text, key, source in zip(texts, texts, texts, strict=False) if source}
    cells = [cell for cell in _markdown(read_notebook(kept)) if MARK in cell["metadata"]]
    return {cell["id"]: Prose("".join(cell["source"]), cell["metadata"][MARK]) for cell in cells}


def build(path: Path, prose: dict[str, Prose]) -> str:
    """Return the Chinese document's whole text. A cell that is not translated stays English, and has no hash."""
    if path.suffix == ".md":
        sections = {key: Prose(text, "") for key, text in english_prose(path).items()}
        sections |= {key: prose[key] for key in sections if key in prose}
        return "\n".join(f"{each.text}\n\n<!-- {MARK} {key} {each.source} -->\n" for key, each in sections.items())
    notebook = read_notebook(path)
    for cell in _markdown(notebook):
        if translated := prose.get(cell["id"]):
            cell["source"] = translated.text.splitlines(keepends=True)
            cell["metadata"] = {**cell["metadata"], MARK: translated.source}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def write(path: Path, prose: dict[str, Prose]) -> None:
    """Write the Chinese counterpart of an English document; nothing while nothing is translated."""
    if prose:
        chinese_path(path).parent.mkdir(exist_ok=True)
        chinese_path(path).write_text(build(path, prose), encoding="utf-8")


def _sections(text: str) -> tuple[list[str], list[str]]:
    top, *rest = SECTION.split(text)
    titles = [re.sub(r"\W+", "-", title.lower()).strip("-") for title in rest[::2]]
    bodies = [f"## {title}\n{body}" for title, body in zip(rest[::2], rest[1::2], strict=True)]
    return [TOP, *titles], [each.strip("\n") for each in (top, *bodies)]


def _markdown(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


# Commands ----------------------------------------------------------------------------------------------------------


def open_cells(path: Path) -> dict[str, str]:
    """Return the cells of an English document that have no translation ("missing") or an old one ("stale")."""
    prose, english = chinese_prose(path), english_prose(path)
    missing = {key: "missing" for key in english if key not in prose}
    return missing | {key: "stale" for key in english if key in prose and prose[key].source != digest(english[key])}


def status(root: Path) -> list[str]:
    """Return one line for each thing to do, empty when the Chinese edition follows the English one."""
    lines = []
    for path in documents(root):
        lines += [f"{path.name} {key}: {what}" for key, what in open_cells(path).items()]
        kept = chinese_path(path)
        if kept.exists() and kept.read_text(encoding="utf-8") != build(path, chinese_prose(path)):
            lines.append(f"{path.name}: the Chinese one is out of step; run tools/translation.py update")
    return lines


def update(root: Path) -> list[str]:
    """Build all Chinese documents anew from their own prose and the English rest; return what `status` says then."""
    for path in documents(root):
        write(path, chinese_prose(path))
    return status(root)


def export(root: Path, name: str) -> list[str]:
    """Return the English text of each missing or stale cell of one document, under its marker."""
    path = find(root, name)
    english = english_prose(path)
    return [f"<!-- cell {key} {digest(english[key])} -->\n{english[key]}\n" for key in open_cells(path)]


def import_(root: Path, name: str, file: str) -> list[str]:
    """Take the cells of an exchange file into one Chinese document; return what is left to do in it.

    Raises
    ------
    TranslationError
        When the file holds no marker, a cell that the document lacks, or a cell without text.
    """
    path = find(root, name)
    english = english_prose(path)
    _, *parts = CELL.split(Path(file).read_text(encoding="utf-8"))
    cells = list(zip(parts[::3], parts[1::3], (text.strip("\n") for text in parts[2::3]), strict=True))
    wrong = [key for key, _, text in cells if key not in english or not text]
    if wrong or not cells:
        expected = f"expected `<!-- cell ID HASH -->` as export writes it, each with text, of: {' '.join(english)}"
        raise TranslationError(f"{file}: unknown or empty cells: {' '.join(wrong) or 'no cell at all'}; {expected}")
    new = {key: Prose(relink(text, path, root), hash_) for key, hash_, text in cells}
    write(path, chinese_prose(path) | new)
    return [f"{path.name} {key}: {what}" for key, what in open_cells(path).items()]


COMMANDS: dict[str, tuple[Callable[..., list[str]], int]] = {
    "status": (status, 0),
    "update": (update, 0),
    "export": (export, 1),
    "import": (import_, 2),
}


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Run one command; return 1 when `status` or `update` leaves something to do, 2 for a wrong command."""
    command, values = COMMANDS.get((arguments or [""])[0], (None, 0)), arguments[1:]
    if command[0] is None or len(values) != command[1]:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        lines = command[0](root, *values)
    except (TranslationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines) or "the Chinese edition follows the English one")
    return 1 if lines and not values else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
