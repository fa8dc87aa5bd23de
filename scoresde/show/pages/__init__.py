"""The templates of the pages; those with the same style extend ``base.html``."""

from __future__ import annotations

from importlib import resources

import jinja2


def template(name: str) -> jinja2.Template:
    """The template of a page, such as "report.html"; what is put into it is escaped, and nothing may be missing."""
    folder = resources.files(__name__)
    loader = jinja2.FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8"))
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader).get_template(name)
