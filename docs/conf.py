"""Sphinx configuration."""

project = "scoresde"
author = "The scoresde authors"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
html_theme = "furo"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True  # attributes once, also of named tuples, whose fields autodoc lists
default_role = "literal"
exclude_patterns = ["_build"]
suppress_warnings = ["ref.python"]


def _literal(app, what, name, obj, options, lines):
    """Docstrings are plain text: a star in a shape such as (B, *) is no emphasis, a bar no substitution."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("*", "\\*").replace("|", "\\|") for part in parts[::2]]
        lines[i] = line if line.lstrip().startswith((">>>", "...")) else "``".join(parts)


def setup(app):
    """Hooks into autodoc, before napoleon reads the docstrings."""
    app.connect("autodoc-process-docstring", _literal, priority=400)
