"""The templates of the pages; those with the same style extend ``base.html``."""

from __future__ import annotations

from importlib import resources

import jinja2


def source(name: str) -> str:
    """The text of a file of this folder, such as the script "report.js.html"."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def template(name: str) -> jinja2.Template:
    """The template of a page, such as "report.html"; what is put into it is escaped, and nothing may be missing."""
    loader = jinja2.FunctionLoader(source)
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader).get_template(name)
