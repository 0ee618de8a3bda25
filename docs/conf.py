"""Configure the documentation: Sphinx, MyST, furo."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import gallery
import generate

generate.write()
gallery.write_pages()

project = "inheritune"
author = "The inheritune developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Signatures as they are written, and no table of links to types: the page must not import torch.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
default_role = "code"
# Types in docstrings link to what is on the page of the API; the others have no page.
nitpick_ignore_regex = [(r"py:.*", r".*")]
exclude_patterns = ["_build", "gallery"]
html_extra_path = ["_build/pages"]  # the pages of the gallery, as they are
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # an option begins with two hyphens, and not with a dash
html_theme = "furo"
html_title = "inheritune"
html_copy_source = False
html_show_copyright = False
# log.md names files of the checkout, which are no pages.
suppress_warnings = ["myst.header"]
