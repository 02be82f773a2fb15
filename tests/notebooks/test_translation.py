"""The Chinese edition follows the English one: same code and outputs to the byte, no stale prose, and prose in Chinese.

The checks run over every document. Below they are checked themselves, and so is the tool that keeps the edition.
"""

import json
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import translation
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCUMENTS = translation.documents(ROOT)
NOTEBOOKS = [path for path in DOCUMENTS if path.suffix == ".ipynb"]
CELL = re.compile(r"^  \{\n.*?^  \}", re.M | re.S)  # as nbformat indents them; no string spans lines in JSON
OURS = {"LAB_LANGUAGE=zh", "notebooks/zh/"}  # code that only the Chinese text needs: how to open its lessons
HAN = r"[\u4e00-\u9fff]"
LATIN_RUN = re.compile(r"(?:[A-Za-z][A-Za-z'’-]*[ ,.;:]+){8,}[A-Za-z]")
NUMBER = re.compile(r"\d[\d,.]{2,}\d")  # a measurement or a year; a small number may become a word
COUNTED = {"heading_open", "tr_open", "list_item_open", "blockquote_open", "hr"}


# --- parts of a document --------------------------------------------------------------------------------------------


def without_prose(path: Path) -> str:
    """A notebook's raw text with nothing left of its markdown cells but their ids."""

    def kept(raw: re.Match) -> str:
        cell = json.loads(raw[0])
        return f"  markdown {cell['id']}" if cell["cell_type"] == "markdown" else raw[0]

    return CELL.sub(kept, path.read_text(encoding="utf-8"))


@cache
def tokens(text: str) -> list[Token]:
    """The parts of a Markdown text, those within paragraphs too."""
    return [each for block in MarkdownIt().enable("table").parse(text) for each in (block, *(block.children or []))]


def shape(text: str) -> Counter:
    """All that a translation keeps: code, tags, the kinds of blocks, and where links and pictures lead."""
    found = Counter()
    for token in tokens(text):
        if token.type in ("code_inline", "fence"):
            found[token.type, token.info, token.content] += 1
        elif token.type == "code_block":  # what stands in a second column explains the first, and is translated
            found.update((token.type, line.partition("  ")[0]) for line in token.content.splitlines())
        elif token.type in ("html_inline", "html_block"):
            found.update(re.findall(r"</?[a-z]+", token.content))
        elif token.type in ("link_open", "image"):
            found[token.type, token.attrs.get("href") or token.attrs.get("src")] += 1
        elif token.type in COUNTED:
            found[token.type, token.tag] += 1
    return found


def targets(text: str) -> list[str]:
    return [key[1] for key in shape(text) if key[0] in ("link_open", "image")]


def words(text: str) -> list[str]:
    """The prose of a Markdown text, a string for each paragraph; code stands as one Chinese character."""
    blocks = []
    for token in tokens(text):
        if token.type == "inline":
            kinds = {"code_inline": "码", "softbreak": "\n"}
            blocks.append("".join(kinds.get(each.type, each.content) for each in token.children))
        elif token.type == "html_block":
            blocks += [part for part in re.split(r"<[^>]*>|\n", token.content) if part.strip()]
    return blocks


# --- the checks -----------------------------------------------------------------------------------------------------


def changes(english: str, chinese: str) -> list[str]:
    """What a translation lost or added besides words; links in `english` must already lead where they should."""
    before, after = shape(english), shape(chinese)
    added = [key for key in (after - before).elements() if key[0] != "code_inline" or key[2] not in OURS]
    numbers = Counter(NUMBER.findall("\n".join(words(english)))) - Counter(NUMBER.findall("\n".join(words(chinese))))
    return [f"lost: {key}" for key in (before - after + numbers).elements()] + [f"added: {key}" for key in added]


def bad_prose(text: str) -> list[str]:
    """Paragraphs that are not Chinese, or not set as Chinese."""
    rules = {
        "English left": LATIN_RUN,
        "half-width punctuation": re.compile(rf"{HAN}\s*[,.;:?!]\s*{HAN}|{HAN}[,;:?!](?:\s|$)"),
        "markup that is shown": re.compile(r"\*\*|\]\("),
        "no space beside Latin": re.compile(rf"{HAN}[A-Za-z0-9]|[A-Za-z0-9]{HAN}"),
        "您": re.compile("您"),
    }
    return [f"{name}: {block[:60]!r}" for block in words(text) for name, rule in rules.items() if rule.search(block)]


def without_chinese(text: str) -> bool:
    return not re.search(HAN, "".join(words(text)).replace("码", ""))


def dead_links(text: str, path: Path) -> list[str]:
    """Links of a document whose file, or whose cell in a notebook, is not there."""
    dead = []
    for link in (link for link in targets(text) if not re.match(r"[a-z]+:|#", link)):
        name, _, cell = link.partition("#cell-id=")
        target = path.parent / name
        if not target.exists() or (cell and f'"id": "{cell}"' not in target.read_text(encoding="utf-8")):
            dead.append(link)
    return dead


def problems(path: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the prose of one document's Chinese counterpart."""
    english, chinese = translation.english_prose(path), translation.chinese_prose(path)
    found = [f"{key} is {what}" for key, what in translation.open_cells(path).items()]
    for key, prose in chinese.items():
        wrong = changes(translation.relink(english.get(key, ""), path, root), prose.text) + bad_prose(prose.text)
        wrong += [f"dead link: {link}" for link in dead_links(prose.text, translation.chinese_path(path))]
        wrong += ["no Chinese"] * without_chinese(prose.text)
        found += [f"{key}: {each}" for each in wrong]
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_the_prose_is_chinese_and_translates_the_present_english(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_but_the_prose_is_the_english_notebook_byte_for_byte(path):
    assert without_prose(translation.chinese_path(path)) == without_prose(path)


def test_every_chinese_document_has_an_english_one():
    kept = {path for path in (ROOT / "notebooks/zh").iterdir() if path.suffix in (".ipynb", ".md")}
    assert kept == {translation.chinese_path(path) for path in DOCUMENTS} - {ROOT / "README.zh.md"}
    assert len(kept) > 12


def test_the_edition_follows_as_the_tool_sees_it():
    assert translation.status(ROOT) == []


# --- the tool, on a small edition ------------------------------------------------------------------------------------

TEXT = "# A lesson\n\nRead `config` and [the next](02_b.ipynb#cell-id=run), [docs](../docs/a.md).\n"
CHINESE = "# 一课\n\n先读 `config`，再看[下一课](02_b.ipynb#cell-id=run)和[文档](../docs/a.md)。\n"


def write_notebook(path: Path, text: str, code: str = "print(1)") -> None:
    cells = [
        {"cell_type": "markdown", "id": "top", "metadata": {}, "source": text.splitlines(keepends=True)},
        {"cell_type": "code", "execution_count": 1, "id": "run", "metadata": {}, "outputs": [], "source": [code]},
        {"cell_type": "markdown", "id": "end", "metadata": {}, "source": ["The end."]},
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("# A\n")
    write_notebook(tmp_path / "notebooks/01_a.ipynb", TEXT)
    write_notebook(tmp_path / "notebooks/02_b.ipynb", "# B\n")
    (tmp_path / "notebooks/glossary.md").write_text("# Glossary\n\n[A](01_a.ipynb)\n")
    (tmp_path / "README.md").write_text("# Lab\n\n[A](notebooks/01_a.ipynb), [docs](docs/a.md)\n")
    return tmp_path


def take(root: Path, name: str, **cells: str) -> int:
    english, file = translation.english_prose(translation.find(root, name)), root / "exchange.md"
    marked = [f"<!-- cell {key} {translation.digest(english.get(key, ''))} -->\n{text}" for key, text in cells.items()]
    file.write_text("\n".join(marked), encoding="utf-8")
    return translation.main(["import", name, str(file)], root)


@pytest.fixture
def whole(root) -> Path:
    """The small edition, all of it translated."""
    take(root, "01", top=CHINESE, end="完。")
    take(root, "02", top="# 乙课\n", end="完。")
    take(root, "glossary", top="# 术语表\n\n[甲课](01_a.ipynb)\n")
    take(root, "README.md", top="# 实验\n\n[甲课](notebooks/01_a.ipynb)、[文档](docs/a.md)\n")
    return root


def test_a_whole_edition_has_no_problem(whole, capsys):
    assert translation.main(["status"], whole) == 0
    for path in translation.documents(whole):
        assert problems(path, whole) == []
    assert translation.main(["update"], whole) == 0


def test_links_lead_on_from_the_deeper_folder_and_stay_in_the_edition(whole):
    text = translation.chinese_prose(whole / "notebooks/01_a.ipynb")["top"].text
    assert targets(text) == ["02_b.ipynb#cell-id=run", "../../docs/a.md"]
    readme = translation.chinese_prose(whole / "README.md")["top"].text
    assert targets(readme) == ["notebooks/zh/01_a.ipynb", "docs/a.md"]


def test_the_link_to_the_other_language_leads_back(root):
    assert translation.relink("[中文](README.zh.md)", root / "README.md", root) == "[中文](README.md)"


def test_code_keeps_what_looks_like_a_link(root):
    text = "`a[0](b)`\n\n```python\na[0](02_b.ipynb)\n```\n"
    assert translation.relink(text, root / "notebooks/01_a.ipynb", root) == text


def test_new_code_and_outputs_come_with_an_update(whole):
    path = whole / "notebooks/01_a.ipynb"
    write_notebook(path, TEXT, code="print(2)")
    assert translation.status(whole) == ["01_a.ipynb: the Chinese one is out of step; run tools/translation.py update"]
    assert without_prose(translation.chinese_path(path)) != without_prose(path)
    assert translation.main(["update"], whole) == 0
    assert without_prose(translation.chinese_path(path)) == without_prose(path)
    assert problems(path, whole) == []


def test_new_english_prose_makes_its_cell_stale_until_it_is_translated(whole, capsys):
    write_notebook(whole / "notebooks/01_a.ipynb", TEXT + "One more `word`.\n")
    assert translation.main(["update"], whole) == 1
    assert "01_a.ipynb top: stale" in capsys.readouterr().out
    assert problems(whole / "notebooks/01_a.ipynb", whole)[0] == "top is stale"
    translation.main(["export", "01"], whole)
    hash_ = translation.digest(TEXT + "One more `word`.\n")
    assert capsys.readouterr().out.strip() == f"<!-- cell top {hash_} -->\n{TEXT}One more `word`."
    take(whole, "01", top=CHINESE + "\n还有一个 `word`。\n")
    assert translation.status(whole) == []


def test_english_that_changes_while_it_is_translated_is_stale_at_once(whole, capsys):
    write_notebook(whole / "notebooks/01_a.ipynb", TEXT + "One more `word`.\n")
    translation.main(["export", "01"], whole)
    file = whole / "exchange.md"
    file.write_text(capsys.readouterr().out.replace("One more", "还有一个"), encoding="utf-8")
    write_notebook(whole / "notebooks/01_a.ipynb", TEXT + "One more `word`, at the last moment.\n")
    assert translation.import_(whole, "01", str(file)) == ["01_a.ipynb top: stale"]


def test_a_page_is_kept_section_by_section(whole):
    readme = whole / "README.md"
    readme.write_text(readme.read_text() + "\n## Two commands\n\nRead `a`.\n\n## The end\n\nBye.\n")
    assert translation.update(whole) == ["README.md two-commands: missing", "README.md the-end: missing"]
    take(whole, "README.md", **{"two-commands": "## 两个命令\n\n读 `a`。\n", "the-end": "## 结尾\n\n再见。\n"})
    assert translation.status(whole) == problems(readme, whole) == []
    readme.write_text(readme.read_text().replace("Read `a`", "Read `b`"))
    assert translation.update(whole) == ["README.md two-commands: stale"]
    assert translation.chinese_path(readme).read_text().index("两个命令") > 0


def test_what_is_not_translated_is_named_and_stays_english(root, capsys):
    take(root, "01", top=CHINESE)
    assert translation.main(["update"], root) == 1
    said = capsys.readouterr().out
    assert "01_a.ipynb end: missing" in said
    assert "02_b.ipynb top: missing" in said
    assert "The end." in translation.chinese_path(root / "notebooks/01_a.ipynb").read_text()
    assert not translation.chinese_path(root / "notebooks/02_b.ipynb").exists()


def test_what_comes_back_unchanged_is_english(root):
    take(root, "01", top=TEXT, end="The end.")
    found = problems(root / "notebooks/01_a.ipynb", root)
    assert {"top: no Chinese", "end: no Chinese"} <= set(found)


@pytest.mark.parametrize("cells", [{}, {"nowhere": "文"}, {"top": "\n"}])
def test_an_exchange_file_that_does_not_fit_is_refused_with_the_cells(root, capsys, cells):
    assert take(root, "01", **cells) == 1
    assert "of: top end" in capsys.readouterr().err
    assert not (root / "notebooks/zh").exists()


def test_a_broken_notebook_is_named(whole, capsys):
    (whole / "notebooks/02_b.ipynb").write_text("<<<<<<< HEAD")
    assert translation.main(["update"], whole) == 1
    assert "02_b.ipynb is no notebook" in capsys.readouterr().err


def test_wrong_commands_end_with_a_status_and_a_text(root, capsys):
    assert [translation.main(line.split(), root) for line in ("", "status now", "import 01", "translate")] == [2] * 4
    assert translation.main(["export", "07"], root) == 1
    assert "'07' names 0 documents, expected one of:\n  01_a.ipynb" in capsys.readouterr().err
    assert translation.main(["import", "01", os.devnull + "/x"], root) == 1


# --- the checks, checked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chinese", "said"),
    [
        ("# 一课\n\n看[下一课](b.md)。", "lost: ('code_inline', '', 'config')"),
        ("# 一课\n\n读 `config` 和 `more`，[下](b.md)。", "added: ('code_inline', '', 'more')"),
        ("# 一课\n\n读 `config`。", "lost: ('link_open', 'b.md')"),
        ("# 一课\n\n读 `config`，[下](c.md)。", "added: ('link_open', 'c.md')"),
        ("## 一课\n\n读 `config`，[下](b.md)。", "lost: ('heading_open', 'h1')"),
        ("# 一课\n\n读 `config`，[下](b.md)。\n\n```python\nx\n```", "added: ('fence', 'python', 'x\\n')"),
        ("# 一课\n\n读 `config`，[下](b.md)。\n\n<details>\n</details>", "added: <details"),
        ("# 一课\n\n读 `config`，[下](b.md)。\n\n    a = b", "added: ('code_block', 'a = b')"),
        ("# 一课\n\n- 读 `config`，[下](b.md)。", "added: ('list_item_open', 'li')"),
    ],
)
def test_what_a_translation_loses_or_adds_is_found(chinese, said):
    assert said in changes("# A\n\nRead `config`, [next](b.md).", chinese)


def test_a_lost_number_is_found():
    assert changes("It holds 134,217,728 ids after 3.75 s.", "它有 134,217,728 个 id，用了 3.7 秒。") == ["lost: 3.75"]


def test_a_faithful_translation_may_name_its_own_language():
    assert changes("Run `make`.", "运行 `make`，加上 `LAB_LANGUAGE=zh`。") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("这里 the server listens on this machine only and ends 结束。", "English left"),
        ("先读,再写。", "half-width punctuation"),
        ("第一句. 第二句。", "half-width punctuation"),
        ("先读: `x`", "half-width punctuation"),
        ("这是**强调。**后面。", "markup that is shown"),
        ("这个token 很长。", "no space beside Latin"),
        ("共 8个。", "no space beside Latin"),
        ("请您看。", "您"),
    ],
)
def test_prose_that_is_not_set_as_chinese_is_found(text, said):
    assert [each for each in bad_prose(text) if each.startswith(said)]


def test_good_prose_passes():
    assert bad_prose("**预测。** 第 8 条消息有 128 个 token（见 `config`），不是 1 个。\n\n- a、b：都对。") == []


def test_a_dead_link_is_found(whole):
    path = whole / "notebooks/zh/01_a.ipynb"
    assert dead_links("[x](02_b.ipynb#cell-id=gone) [y](none.md) [z](02_b.ipynb#cell-id=run)", path) == [
        "02_b.ipynb#cell-id=gone",
        "none.md",
    ]
