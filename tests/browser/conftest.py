"""Where the pictures go: of every lesson, and of each page that was open when a test failed."""

import re
import shutil
from collections.abc import Iterator

import pytest
from lab_in_browser import SHOTS, Lab, running_browser, running_lab
from playwright.sync_api import Browser

BROWSER = pytest.StashKey[Browser]()


# Of the module, not of the session: while playwright's is open, no later test could start an event loop of its own.
@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A Chromium."""
    with running_browser() as browser:
        request.config.stash[BROWSER] = browser
        yield browser
        del request.config.stash[BROWSER]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab, once for all tests of a module."""
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session", autouse=True)
def _own_pictures() -> None:
    """Pictures of an earlier run are no evidence for this one."""
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and BROWSER in item.config.stash:
        pages = [page for context in item.config.stash[BROWSER].contexts for page in context.pages]
        for number, page in enumerate(pages):
            path = SHOTS / f"failed_{re.sub(r'[^0-9A-Za-z_]+', '_', item.name)}_{report.when}_{number}.png"
            page.screenshot(path=path)
            report.sections.append(("the page", str(path)))
    return report
