"""The documentation site: `make docs` builds it, without a network, and checks what it built."""

import configparser
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_ext"), str(ROOT)]

import lljax  # noqa: E402

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / "setup.cfg", encoding="utf-8")
_urls = dict(
    line.split(" = ") for line in _metadata["metadata"]["project_urls"].strip().splitlines()
)

project = "lljax"
author = "the lljax contributors"
copyright = author
version = release = lljax.__version__
source_url = _urls["Source"]
site_url = _urls["Documentation"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_nb",
    "docstrings",
    "mathml",
    "notebooks",
    "pages",
]
exclude_patterns = ["_build", "_ext", "_static", "_templates"]
templates_path = ["_templates"]

# A name in single backticks is code in docstrings as well; `docstrings` links what has a page.
default_role = "literal"
nitpicky = True
smartquotes_action = "D"  # dashes; quotation marks stay those of the code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]
highlight_language = "none"

# Each tutorial is executed, from its beginning, whenever the site is built.
nb_execution_mode = "force"
nb_execution_timeout = 600  # seconds a cell, on a machine that does other things too
nb_execution_raise_on_error = True
nb_merge_streams = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"lljax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
