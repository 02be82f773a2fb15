#!/usr/bin/env python3
"""Find a Chromium for the browser tests, or get one: ``python tools/get_browser.py`` prints its path.

The one on PATH is taken. Where there is none, root gets Debian's package; who is not root, or has no such package, gets
playwright's own Chromium in ``.tools/browsers``. Root also gets a font for Chinese where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSERS = ROOT / ".tools/browsers"
STANDARD_ERROR = 2
FONTS = ("fontconfig", "fonts-dejavu-core", "fonts-wqy-zenhei")  # 7 MB of Chinese; fonts-noto-cjk has 57


class BrowserError(Exception):
    """There is no browser and none could be got; the text says what was tried and what to do."""


def say(text: str) -> None:
    """Print one line of progress, beside the path on standard output."""
    print(f"browser: {text}", file=sys.stderr, flush=True)


def run(command: list[str], **environment: str) -> bool:
    """Run a program, its output on standard error; return whether it is there and succeeded."""
    try:
        return subprocess.run(command, stdout=STANDARD_ERROR, env={**os.environ, **environment}).returncode == 0
    except OSError:
        return False


def answer(*command: str) -> str | None:
    """Return what a program prints; None when it is not there, fails or takes longer than a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_browser() -> str | None:
    """Return the path of a Chromium that runs: one on PATH, else playwright's own in `.tools`; None without either."""
    own = sorted(BROWSERS.glob("chromium-*/chrome-linux*/chrome"))
    found = [*map(shutil.which, NAMES), *map(str, own)]
    # Ubuntu's chromium-browser is there, but does nothing without snap.
    return next((path for path in found if path and answer(path, "--version")), None)


def has_chinese_font() -> bool:
    """Tell whether fontconfig knows a font with Chinese characters."""
    return bool(answer("fc-list", ":lang=zh"))


def may_install() -> bool:
    """Tell whether system packages can be installed here: by root, with apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(*packages: str) -> bool:
    """Install Debian's packages; return whether that succeeded."""
    say(f"installing {' '.join(packages)}")
    run(["apt-get", "-qq", "update"])  # it also fails because of a source that is not needed here
    command = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *packages]
    return run(command, DEBIAN_FRONTEND="noninteractive")


def playwright_install() -> bool:
    """Download playwright's own Chromium into `.tools`; return whether that succeeded."""
    say(f"asking playwright for its Chromium, into {BROWSERS}")
    command = [sys.executable, "-m", "playwright", "install", *(["--with-deps"] if may_install() else []), "chromium"]
    return run(command, PLAYWRIGHT_BROWSERS_PATH=str(BROWSERS))


def get_fonts() -> None:
    """Install a font for Chinese when there is none and root asks; without one, pages show empty boxes."""
    if not has_chinese_font() and not (may_install() and apt_install(*FONTS)):
        say(f"no font for Chinese here, so Chinese text will show as boxes. Root can install {FONTS[-1]}")


def get_browser() -> str:
    """Return the path of a Chromium that runs; install one when there is none.

    Raises
    ------
    BrowserError
        When there is none and none could be installed.
    """
    found = find_browser()
    if not found and may_install() and apt_install("chromium"):
        found = find_browser()
    if not found and playwright_install():
        found = find_browser()
    if not found:
        raise BrowserError(
            f"no Chromium runs here: none of {', '.join(NAMES)} on PATH, and none could be installed (the messages are "
            "above).\nInstall one, then run it again:\n"
            "  Debian, as root:  apt-get install chromium\n"
            "  any Linux:        make setup-workshop, then .venv/bin/python tools/get_browser.py"
        )
    return found


def main() -> int:
    """Print the browser's path; return the exit status."""
    try:
        browser = get_browser()
        get_fonts()
    except BrowserError as error:
        print(f"browser: error: {error}", file=sys.stderr)
        return 1
    print(browser)
    return 0


if __name__ == "__main__":
    sys.exit(main())
