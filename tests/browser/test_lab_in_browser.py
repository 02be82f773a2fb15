"""The lab as a learner uses it: a real JupyterLab, a real browser, every lesson; pictures go to artifacts/browser."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab_in_browser import (
    NOTEBOOK,
    ROOT,
    SECONDS,
    SHOTS,
    Lab,
    code_cell,
    code_cells,
    compared_text,
    number_of_figures,
    opened,
    outputs,
    restart_and_run_all,
    run_all,
    sources,
    type_line,
)
from leftovers import until_none
from playwright.sync_api import Browser, Page, expect

from lab_utils.exercises import NOT_ANSWERED, verdict
from lab_utils.workspace import START

pytestmark = pytest.mark.timeout(900)  # more than the deadlines of one test together
LESSONS = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
START_HERE, PIPELINE, DOUBLING_BUG, NODE = LESSONS[:4]
FIGURE, WIDGETS_FIGURE = ".jp-RenderedImage img", ".jp-OutputArea .widget-image"
SMALLEST = 100  # pixels of a figure

# For each lesson: name of an exercise, and its line with "..." as a learner writes it, wrong and right.
EXERCISES = {
    START_HERE: [("00-text", 'return pieces.join("")', 'return "".join(pieces)')],
    PIPELINE: [("01-quiz", 'answers = ["c", "a", "a"]', 'answers = ["c", "a", "b"]')],
    DOUBLING_BUG: [
        ("02-lengths", "lengths = list(range(1, 9))", "lengths = [2**n for n in range(8)]"),
        ("02-formula", "return 2**n", "return 2 ** (n - 1)"),
    ],
    NODE: [("03-node", 'guilty_node = "postprocess"', 'guilty_node = "inference"')],
}


@dataclass(frozen=True)
class Lesson:
    """A lesson whose cells have all been run, in the page that shows it."""

    name: str
    page: Page
    succeeded: bool
    cells: list[dict]


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request: pytest.FixtureRequest, lab: Lab, browser: Browser) -> Iterator[Lesson]:
    with opened(browser, f"{lab.url}/lab/tree/{request.param}.ipynb?reset&token={lab.token}") as page:
        page.screenshot(path=SHOTS / f"{request.param}.png")
        succeeded = run_all(page)
        yield Lesson(request.param, page, succeeded, code_cells(page))


def lessons(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("lesson", names, indirect=True)


# JupyterLab ----------------------------------------------------------------------------------------------------------


def test_the_lab_opens_on_the_first_lesson_by_itself(lab, browser):
    assert START in lab.start
    with opened(browser, f"{lab.url}/?token={lab.token}") as page:  # no lesson is named
        expect(page.locator(f"{NOTEBOOK} h1").first).to_contain_text("Lesson 00", timeout=1000 * SECONDS)
        expect(page.locator(".jp-Dialog, .Toastify__toast")).to_have_count(0)  # no question before the lesson
        page.screenshot(path=SHOTS / "start.png")


@pytest.mark.parametrize("query", ["", "?token=wrong"])
def test_without_the_right_token_there_is_only_the_login_page(lab, browser, query):
    page = browser.new_page()
    page.goto(f"{lab.url}/lab/tree/{START}{query}")
    expect(page.locator("#password_input")).to_be_visible()
    assert "/login" in page.url
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab.url}/api/contents/{START}{query}")
    page.close()


# Each lesson ---------------------------------------------------------------------------------------------------------


def test_all_cells_of_the_lesson_run(lesson):
    assert outputs(lesson.cells, "error") == []
    assert lesson.succeeded
    assert [cell["execution_count"] for cell in lesson.cells] == list(range(1, len(lesson.cells) + 1))


def test_every_figure_is_visible(lesson):
    figures, widgets = (lesson.page.locator(f"{NOTEBOOK} {kind}").all() for kind in (FIGURE, WIDGETS_FIGURE))
    assert len(figures) == number_of_figures(lesson.cells)
    assert len(widgets) == (lesson.name == DOUBLING_BUG)
    for number, figure in enumerate(figures + widgets, 1):
        figure.scroll_into_view_if_needed()
        width, height = figure.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
        assert min(width, height) > SMALLEST
        expect(figure).to_be_visible()
        figure.screenshot(path=SHOTS / f"{lesson.name}_figure_{number}.png")


def test_no_server_and_no_shared_memory_outlives_the_lesson(lesson, lab):
    until_none(lab.servers, f"lesson {lesson.name}")


# What reacts ---------------------------------------------------------------------------------------------------------


@lessons(DOUBLING_BUG)
def test_the_slider_moves_words_and_figure(lesson):
    cell = code_cell(lesson.page, "iteration_slider(")
    figure, handle = cell.locator(".widget-image"), cell.locator(".noUi-handle")
    expect(cell).to_contain_text("message 8: 128 ids, 512 B; all so far: 255 ids")
    before = figure.get_attribute("src")
    handle.focus()
    lesson.page.keyboard.press("ArrowRight")
    expect(cell).to_contain_text("message 9: 256 ids", timeout=1000 * SECONDS)
    expect(figure).not_to_have_attribute("src", before)
    before = figure.get_attribute("src")
    lesson.page.keyboard.press("End")
    expect(cell).to_contain_text("message 20: 524,288 ids, 2 MiB", timeout=1000 * SECONDS)
    expect(figure).not_to_have_attribute("src", before)
    cell.screenshot(path=SHOTS / f"{lesson.name}_slider.png")


@lessons(*EXERCISES)
def test_exercises_take_a_wrong_and_then_the_right_answer(lesson):
    for name, wrong, right in EXERCISES[lesson.name]:
        cell = code_cell(lesson.page, f'check("{name}"')
        said = cell.locator(".jp-OutputArea-output")
        expect(said).to_have_text(NOT_ANSWERED)
        for old, new, opening in (("...", wrong, "not yet: "), (wrong, right, "right. ")):
            type_line(lesson.page, cell, old, new)
            words = words_of_the_check(source_of(lesson.page, name))
            assert words.startswith(opening)
            expect(said).to_have_text(words, timeout=1000 * SECONDS)
        cell.screenshot(path=SHOTS / f"{lesson.name}_exercise_{name}.png")


def source_of(page: Page, exercise: str) -> str:
    """The code that is now in the exercise's cell."""
    (source,) = (each for each in sources(code_cells(page)) if f'check("{exercise}"' in each)
    return source


def words_of_the_check(code: str) -> str:
    """What the exercise's check makes of this code."""
    said: list[str] = []
    code = code.replace("from lab_utils.exercises import check", "")
    exec(code, {"check": lambda name, answer: said.append(verdict(name, answer))})
    return said[0]


# Again ---------------------------------------------------------------------------------------------------------------


@lessons(START_HERE, DOUBLING_BUG)
def test_restarted_and_run_again_twice_it_is_the_same_and_leaves_nothing(lesson, lab):
    first = compared_text(code_cells(lesson.page))
    for _ in range(2):
        assert restart_and_run_all(lesson.page)
        cells = code_cells(lesson.page)
        assert outputs(cells, "error") == []
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert compared_text(cells) == first
        until_none(lab.servers, f"lesson {lesson.name}, run again")
    assert len(lab.kernels()) == 1
