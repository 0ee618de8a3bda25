"""Of the documentation: Sphinx, MyST, furo."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generate

generate.write()

project = "inheritune"
author = "The inheritune developers"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # an option begins with two hyphens, and not with a dash
html_theme = "furo"
html_title = "inheritune"
html_copy_source = False
html_show_copyright = False
# log.md names files of the checkout, which are no pages.
suppress_warnings = ["myst.header"]
