"""What texts about registered names share: tables in columns, and the options of a card."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from torch import Tensor

import solvers
from solvers import Corrector, Info
from solvers.registry.options import REGISTRIES
from solvers.registry.ranges import marks
from solvers.registry.spec import write

WIDTH = 118

OPTIONS = "Attributes:"  # begins the paragraph of a docstring about options


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines with columns of one width each."""
    lines = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in lines)


class Documented(NamedTuple):
    """The parts of a class's docstring: the first sentence, the text, and what it and its bases' say about options."""

    summary: str
    text: str
    options: dict[str, str]


def documented(info: Info) -> Documented:
    """The parts of the docstring of a registered class."""
    text = [" ".join(part.split()) for part in _paragraphs(inspect.getdoc(info.cls)) if not part.startswith(OPTIONS)]
    options: dict[str, str] = {}
    for part in (part for cls in reversed(info.cls.__mro__) for part in _paragraphs(cls.__doc__)):
        if part.startswith(OPTIONS):
            for name, words in re.findall(r"^    (\w+): ((?:.|\n        )+)", part, flags=re.MULTILINE):
                options[name] = " ".join(words.split())
    return Documented(text[0], "\n".join(text[1:]), options)


def _paragraphs(doc: str | None) -> list[str]:
    return inspect.cleandoc(doc or "").replace("``", "").split("\n\n")


def options_of(info: Info) -> str:
    """The options of a registered class, a line each: the default, the accepted values, and what it is."""
    hints, lines, words = typing.get_type_hints(info.cls), dict[str, str](), documented(info).options
    for name, field in sorted(info.fields.items(), key=lambda item: item[1].kw_only is True):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = f"{name}, required" if default is dataclasses.MISSING else f"{name} = {write(default)}"
        parts = typing.get_args(hints[field.name])
        values = "a .npy file" if str in parts and Tensor in parts else accepted(info, name)
        lines[shown] = f"{values}: {words[field.name]}" if field.name in words else values
    width = max(map(len, lines), default=0)
    return "\n".join(f"{shown.ljust(width)}   {values}" for shown, values in lines.items())


def card(title: str, summary: str, facts: Mapping[str, str]) -> str:
    """A title with a sentence, and below it the facts that are not empty."""
    return "\n".join([entry(title, summary), *(entry(f"  {key}", text) for key, text in facts.items() if text)])


def accepted(info: Info, option: str) -> str:
    """The values that an option accepts: a list, a range, or a type."""
    return _accepted(typing.get_type_hints(info.cls, include_extras=True)[info.fields[option].name])


def _accepted(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return next((mark.words(parts[0]) for mark in marks(hint)), _accepted(parts[0]))
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is Callable:
        return "function"
    if hint is bool:
        return "True | False"
    if hint is Corrector:
        return " | ".join(solvers.correctors.names())
    if origin is tuple:
        inner = _accepted(parts[0])
        return f"[{inner}, ...]" if parts[-1] is Ellipsis else f"[{', '.join([inner] * len(parts))}]"
    if parts:
        return " | ".join(map(_accepted, parts))
    if isinstance(hint, type) and (registry := REGISTRIES.get(hint)):
        return f"any {registry.kind}"
    return {float: "number", int: "integer", str: "name", type(None): "None"}.get(hint, "value")


def entry(title: str, text: str) -> str:
    """A title and its text in two columns; a title of more than eleven letters gets a separate line."""
    if not text:
        return title
    lines = []
    for part in text.splitlines():
        column = "".rjust(len(part) - len(part.partition("   ")[2].lstrip())) if "   " in part else ""
        lines += textwrap.wrap(
            part, WIDTH - 12, subsequent_indent=column, break_long_words=False, break_on_hyphens=False
        )
    indent = "".ljust(12)
    start = f"{title.ljust(11)} " if len(title) < 12 else f"{title}\n{indent}"
    return start + f"\n{indent}".join(lines)
