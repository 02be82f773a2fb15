#!/usr/bin/env python3
"""Look for dead links in a built site: ``python tools/check_site.py FOLDER``. Exit status 1 when there are any.

Checked are links, images, scripts and styles that stay within the site, with their anchors. A page must also load
nothing from elsewhere. Where links to other sites lead is not looked at: that needs the network (`make site-links`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
NOT_LOADED = {"canonical", "next", "prev", "search", "author", "license"}  # kinds of <link> that only name a place


@cache
def page(path: Path) -> BeautifulSoup:
    """Return the parsed page."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the names in a page that a link can lead to."""
    return frozenset(tag.get(key) for key in ("id", "name") for tag in page(path).find_all(attrs={key: True}))


def problems(root: Path) -> list[str]:
    """Return what is wrong with the site in `root`, one line for each link."""
    pages = sorted(path for path in root.rglob("*.html") if "_static" not in path.parts)
    if not pages:
        return [f"{root}: no page; expected the folder of a built site"]
    return [f"{path.relative_to(root)}: {problem}" for path in pages for problem in _problems_of(path, root)]


def _problems_of(path: Path, root: Path) -> Iterator[str]:
    for tag in page(path).find_all("a", href=True):
        yield from _dead(tag["href"], path, root)
    for name, key in LOADED.items():
        for tag in page(path).find_all(name, attrs={key: True}):
            if urlsplit(tag[key]).netloc and not NOT_LOADED & set(tag.get("rel", [])):
                yield f"loads {tag[key]} from elsewhere"
            yield from _dead(tag[key], path, root)


def _dead(link: str, path: Path, root: Path) -> Iterator[str]:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.is_relative_to(root.resolve()) or not target.is_file():
        yield f"{link} leads nowhere"
    elif target.suffix == ".html" and parts.fragment and unquote(parts.fragment) not in anchors(target):
        yield f"{link} leads to a page without that anchor"


def main(arguments: list[str]) -> int:
    """Print every problem; return the exit status."""
    if len(arguments) != 1:
        print(__doc__.partition("\n")[0], file=sys.stderr)
        return 2
    found = problems(Path(arguments[0]))
    print("\n".join(found) or f"no dead links in {arguments[0]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
