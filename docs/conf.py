"""Sphinx configuration."""

project = "scoresde"
author = "The scoresde authors"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
html_theme = "furo"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "literal"
exclude_patterns = ["_build"]
suppress_warnings = ["ref.python"]
