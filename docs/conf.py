"""How Sphinx builds the site: MyST Markdown in, plain HTML out, nothing fetched from anywhere."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "groundup"
author = "The groundup authors"
release = re.search(r'__version__ = "([^"]+)"', (ROOT / "src/groundup/__init__.py").read_text(encoding="utf-8"))[1]
version = release
language = "en"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]

# Links between pages and to headings are checked: an unknown target is a warning, and warnings stop `make docs`.
nitpicky = True
myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "colon_fence"]
myst_all_links_external = False

html_theme = "furo"
html_title = f"groundup {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
