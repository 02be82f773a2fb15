"""The static site is built without a warning, shows the stored outputs, and has no dead link."""

import subprocess
import sys
from pathlib import Path

import check_site
import pytest

ROOT = Path(__file__).parents[2]
PAGE = '<h1 id="top">x</h1><a href="{}">x</a>'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as `make site` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "site", "-d", str(folder / "doctrees")]
    built = subprocess.run([*command, ".", str(folder / "html")], cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return folder / "html"


def test_there_is_no_dead_link(site):
    assert check_site.problems(site) == []


@pytest.mark.parametrize("edition", ["notebooks", "notebooks/zh"])
def test_every_lesson_is_there_with_its_outputs(site, edition):
    for path in sorted((ROOT / edition).glob("*.ipynb")):
        text = check_site.page(site / edition / f"{path.stem}.html").get_text()
        assert "not answered yet" in text or path.stem == "lab_book", path.stem
    growth = check_site.page(site / edition / "02_the_doubling_bug.html")
    assert "134,217,728" in growth.get_text()
    assert len(growth.find_all("img", src=lambda source: "jupyter_execute" in source or "_images" in source)) >= 2


def test_every_page_can_be_reached_from_the_first_one(site):
    index = check_site.page(site / "site/index.html")
    linked = {(site / "site" / tag["href"].partition("#")[0]).resolve() for tag in index.find_all("a", href=True)}
    written = {path.relative_to(site) for path in site.rglob("*.html") if "_static" not in path.parts}
    written -= {Path(name) for name in ("index.html", "genindex.html", "search.html", "site/index.html")}
    assert sorted(str(name) for name in written if (site / name).resolve() not in linked) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PAGE.format("b.html"), "b.html leads nowhere"),
        (PAGE.format("../outside.html"), "../outside.html leads nowhere"),
        (PAGE.format("#bottom"), "#bottom leads to a page without that anchor"),
        (PAGE.format("c.html#gone"), "c.html#gone leads to a page without that anchor"),
        ('<img src="figure.png">', "figure.png leads nowhere"),
        ('<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js from elsewhere"),
    ],
)
def test_a_dead_link_is_found(tmp_path, capsys, text, problem):
    (tmp_path / "a.html").write_text(text)
    (tmp_path / "c.html").write_text(PAGE.format("a.html"))
    check_site.page.cache_clear()
    check_site.anchors.cache_clear()
    assert check_site.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"a.html: {problem}\n"


def test_a_folder_without_a_site_is_no_clean_site(tmp_path, capsys):
    assert check_site.main([str(tmp_path)]) == 1
    assert "no page" in capsys.readouterr().out
