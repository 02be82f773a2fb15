"""The browser for the tests: found, or got from Debian or playwright, or a clear error. Stand-ins for all commands."""

import os
import sys
from pathlib import Path

import get_browser
import pytest

RUNS = 'echo "Chromium 156"'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A bare machine: nothing on PATH but /bin/sh's own, an ordinary user, and a playwright that fails."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(get_browser, "BROWSERS", tmp_path / "browsers")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    program(tmp_path / "python", f'echo "$@" >> "{tmp_path}/playwright.log"; exit 1')
    return tmp_path


def program(path: Path, script: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def as_root(machine: Path, monkeypatch, script: str = "") -> Path:
    """Make the user root, with an apt-get that keeps its arguments and runs `script`; return where it keeps them."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(machine / "bin/apt-get", f'echo "$DEBIAN_FRONTEND $@" >> "{machine}/apt.log"\n{script}')
    return machine / "apt.log"


def written_by_shell(path: Path, script: str = RUNS) -> str:
    """Shell code that writes a program, with the shell's own words only."""
    return f"echo '#!/bin/sh' > '{path}'; echo '{script}' >> '{path}'; /bin/chmod +x '{path}'"


@pytest.mark.parametrize("name", get_browser.NAMES)
def test_a_browser_on_the_path_is_taken_and_nothing_installed(machine, monkeypatch, capsys, name):
    apt = as_root(machine, monkeypatch)
    browser = program(machine / "bin" / name, RUNS)
    program(machine / "bin/fc-list", "echo WenQuanYi")
    for _ in range(2):
        assert get_browser.main() == 0
    assert capsys.readouterr() == (f"{browser}\n" * 2, "")
    assert not apt.exists()


def test_a_browser_that_does_not_run_is_passed_over(machine):
    program(machine / "bin/chromium", "exit 1")
    other = program(machine / "bin/google-chrome", RUNS)
    assert get_browser.find_browser() == str(other)


def test_root_gets_debians_package_and_the_fonts(machine, monkeypatch, capsys):
    browser = machine / "bin/chromium"
    apt = as_root(machine, monkeypatch, f"case $* in *chromium) {written_by_shell(browser)};; esac")
    assert get_browser.main() == 0
    assert capsys.readouterr().out == f"{browser}\n"
    install = "noninteractive -qq install --yes --no-install-recommends"
    installed = [line for line in apt.read_text().splitlines() if "install" in line]
    assert installed == [f"{install} chromium", f"{install} {' '.join(get_browser.FONTS)}"]
    assert not (machine / "playwright.log").exists()


def test_root_gets_the_fonts_alone_where_the_browser_is_there(machine, monkeypatch):
    program(machine / "bin/chromium", RUNS)
    program(machine / "bin/fc-list", "exit 0")  # it works, and knows no such font
    apt = as_root(machine, monkeypatch)
    assert get_browser.main() == 0
    assert "fonts-wqy-zenhei" in apt.read_text()
    assert "chromium" not in apt.read_text()


def test_a_package_index_that_cannot_be_read_is_no_obstacle(machine, monkeypatch):
    browser = machine / "bin/chromium"
    script = f"case $* in *update) exit 100;; *chromium) {written_by_shell(browser)};; esac"
    as_root(machine, monkeypatch, script)
    assert get_browser.get_browser() == str(browser)


@pytest.mark.parametrize("root", [False, True])
def test_playwrights_own_comes_where_debians_does_not(machine, monkeypatch, root):
    if root:
        as_root(machine, monkeypatch, "exit 100")
    own = machine / "browsers/chromium-1/chrome-linux64/chrome"
    own.parent.mkdir(parents=True)
    arguments = "-m playwright install --with-deps chromium" if root else "-m playwright install chromium"
    program(machine / "python", f'[ "$*" = "{arguments}" ] || exit 3\n{written_by_shell(own)}')
    assert get_browser.get_browser() == str(own)
    assert get_browser.find_browser() == str(own)


def test_playwrights_goes_into_the_checkout(machine):
    program(machine / "python", f'echo "$PLAYWRIGHT_BROWSERS_PATH" > "{machine}/where"; exit 1')
    get_browser.playwright_install()
    assert (machine / "where").read_text() == f"{get_browser.BROWSERS}\n"


def test_an_ordinary_user_without_a_font_is_told_and_goes_on(machine, capsys):
    browser = program(machine / "bin/chromium", RUNS)
    program(machine / "bin/apt-get", "exit 3")
    assert get_browser.main() == 0
    out, told = capsys.readouterr()
    assert (out, told.count("\n")) == (f"{browser}\n", 1)
    assert "Root can install fonts-wqy-zenhei" in told


def test_where_nothing_works_it_is_an_error_that_says_what_to_install(machine, monkeypatch, capsys):
    apt = as_root(machine, monkeypatch, "exit 100")
    assert get_browser.main() == 1
    out, told = capsys.readouterr()
    assert out == ""
    assert "error: no Chromium runs here" in told
    assert "apt-get install chromium" in told
    assert apt.exists()
    assert (machine / "playwright.log").exists()
