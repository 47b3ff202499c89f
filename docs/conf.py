"""How Sphinx builds the site: MyST Markdown in, plain HTML out, nothing fetched from anywhere."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

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
myst_enable_extensions = ["deflist", "colon_fence", "dollarmath"]
# Formulas are written as code hosts show them: $…$ in a line, a fence named math for one by itself.
myst_fence_as_directive = ["math"]
myst_dmath_allow_space = False
myst_all_links_external = False

html_theme = "furo"
html_title = f"groundup {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw by themselves: no script and no font is loaded."""
    app.add_html_math_renderer("mathml", (formula_in_line, None), (displayed_formula, None))


def formula_in_line(page: HTML5Translator, node: nodes.math) -> None:
    """A formula among words."""
    page.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def displayed_formula(page: HTML5Translator, node: nodes.math_block) -> None:
    """A formula in the middle, and its number, from LaTeX's tag, at the right edge."""
    tagged = re.search(r"\\tag\{(.+?)\}", node.astext())
    tex = node.astext().replace(tagged[0], "") if tagged else node.astext()
    number = f"<span>({escape(tagged[1])})</span>" if tagged else ""
    style = "display: flex; align-items: center; margin: 0.8em 0; padding: 0.4em 0; overflow-x: auto"
    page.body.append(f'<div class="math" style="{style}">')
    page.body.append(f'<div style="flex: 1; font-size: 1.15em">{tex2mathml(tex, as_block=True)}</div>{number}</div>\n')
    raise nodes.SkipNode
