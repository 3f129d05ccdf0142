"""The site's configuration for Sphinx; CONTRIBUTING.md says how it is built."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

import learnkit  # noqa: E402

project = "learnkit"
author = "learnkit"
version = release = learnkit.__version__
language = "en"
smartquotes = False  # --options are no dashes

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
root_doc = "index"
nitpicky = False  # types of other packages stand in signatures, and have no page here

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # attributes that are properties, too, are described once
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"learnkit {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []


def setup(app):
    """Write the pages that are made of code and notebooks, and link names in prose to them."""
    app.connect("builder-inited", lambda app: generate.write_pages(Path(app.srcdir)))
    # before napoleon, which reads the sections
    app.connect("autodoc-process-docstring", generate.docstring_to_rst, priority=400)
    app.connect("autodoc-process-signature", generate.readable_signature)
    app.connect("doctree-read", generate.finish)
    app.connect("source-read", generate.site_links)
    return {"parallel_read_safe": False}
