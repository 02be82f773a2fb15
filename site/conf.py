"""How Sphinx makes the static site: all lessons with their stored outputs, the guides, and the pages they link to."""

import re

project = "Triton ensemble lab"
author = "the contributors of the Triton ensemble lab"
extensions = ["myst_nb"]
root_doc = "site/index"
include_patterns = [
    *("site/index.md", "README.md", "README.zh.md", "CONTRIBUTING.md", "docs/*.md", "notebooks/**"),
    *("benchmarks/README.md", "custom_backend/README.md", "deploy/*.md", "deploy/**/*.md", "tiny_lm/*.md"),
]
exclude_patterns = ["**/node_modules", "**/.ipynb_checkpoints"]

# The outputs are the committed ones: nothing is run here. Nothing is loaded from elsewhere either, so that the site
# works in a room without network: no widgets (each has its figure beneath it) and no MathJax (no page has a formula).
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"home_page_in_toc": True, "use_download_button": True, "show_toc_level": 2}
html_extra_path = ["redirect"]


def setup(app) -> None:
    """A link to one cell of a notebook (JupyterLab's `#cell-id=`) leads to the notebook's page."""
    app.connect("source-read", _without_cell_ids)


def _without_cell_ids(_app, _page: str, source: list[str]) -> None:
    source[0] = re.sub(r"(\.ipynb)#cell-id=[\w-]+", r"\1", source[0])
