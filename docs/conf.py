"""Settings of the docs site; `make docs` builds it."""

import os
import re
import sys
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "snopt"
author = "the snopt developers"
copyright = author
html_title = "snopt"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "config_page",
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what each argument is
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

os.environ.setdefault("OMP_NUM_THREADS", "1")
sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "matplotlib_animations": True,
    "show_signature": False,
    "min_reported_time": 1000,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib", "seeded.reset_module"),
    "within_subsection_order": "FileNameSortKey",
}

#: Where the repository can be read; without it its other files are named instead of linked.
REPOSITORY = os.environ.get("SNOPT_REPOSITORY", "")
_OUTWARD = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def _outward(app, docname, source):
    """Links to the repository's other files, of which the examples alone are pages here."""
    source[0] = source[0].replace("](../examples/README.rst)", "](gallery/index)")
    target = rf"[\1]({REPOSITORY}/\2)" if REPOSITORY else r"\1 (`\2`)"
    source[0] = _OUTWARD.sub(target, source[0])


def _bars(app, what, name, obj, options, lines):
    """Norms, |x|, in docstrings are no substitutions."""
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", line) for line in lines]


def _numbers(app, doctree):
    """Cells of tables that hold one number, with its interval, are marked."""
    for cell in doctree.findall(nodes.entry):
        if re.fullmatch(r"[-\d.e%]+( \[[-\d., e%]+\])?", cell.astext()):
            cell["classes"].append("numbers")


def setup(app):
    """Called by Sphinx."""
    app.connect("doctree-read", _numbers)
    app.connect("autodoc-process-docstring", _bars)
    app.connect("source-read", _outward)
