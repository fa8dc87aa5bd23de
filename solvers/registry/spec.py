"""The spec grammar: a string that names an object and its options.

    spec   = name | name "(" [argument {"," argument}] ")"
    value  = number | "string" | True | False | None | [value, ...] | spec

A spec is parsed by Python's own parser and never evaluated. ``package.module:Name`` names a class outside the library.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from ..errors import InputError, clipped

LONGEST, DEEPEST = 100_000, 50  # characters of a spec (a grid of 1000 levels has 20,000), and nested brackets
LARGEST_BITS = 1024  # of an integer in a spec: as large as floats can be
# a quoted string, which remains unchanged, or the name of an outside class. Each letter is looked at once: a name
# begins where no name is, and a quote that nothing closes ends with the text.
_OUTSIDE = re.compile(r"""('(?:\\.|[^'\\])*+'?|"(?:\\.|[^"\\])*+"?)|(?<![\w.])([A-Za-z_][\w.]*+):([A-Za-z_]\w*+)""")
_COLON = "__colon__"  # replaces the colon of an outside name while Python's parser reads the text


@dataclass(frozen=True)
class Spec:
    """A parsed spec: a name and its arguments, which may be specs themselves."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        inside = [*map(write, self.args), *(f"{key}={write(value)}" for key, value in self.kwargs)]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


def parse(text: str, label: str = "") -> Spec:
    """Parses the text of a spec into a tree.

    Args:
        label: the beginning of the text that is its name, if that need not be a Python name (``DPM++ 2M``).

    >>> parse("pc(predictor=ddpm, corrector_steps=2)").kwargs
    (('predictor', Spec(name='ddpm', args=(), kwargs=())), ('corrector_steps', 2))

    Raises:
        InputError: the text is not a spec.
    """
    refuse_long(text)
    code = f"_{text[len(label) :]}" if label else text
    try:
        tree = ast.parse(_OUTSIDE.sub(_without_colon, code.strip()), mode="eval").body
        if label:
            first = min((n for n in ast.walk(tree) if isinstance(n, ast.Name)), key=lambda n: n.col_offset)
            first.id = label
        value = _value(tree, text)
    except InputError:
        raise
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # recursion: a chain of thousands of dots
        expected = _quotes(text) or "; expected name or name(option=value, ...)"
        raise InputError(f"cannot read the spec {text!r}{expected}") from None
    if not isinstance(value, Spec):
        raise InputError(f"the spec {text!r} is a value, not a name; expected name or name(option=value, ...)")
    return value


def refuse_long(text: str) -> None:
    """Rejects a spec that is too long to be one, before it is looked at.

    Raises:
        InputError: it has more than ``LONGEST`` characters, or more than ``DEEPEST`` brackets within brackets.
    """
    if len(text) > LONGEST:
        raise InputError(f"the spec {clipped(text, 80)!r} has {len(text):,} characters; at most {LONGEST:,} are read")
    if max(depths(text), default=0) > DEEPEST:
        raise InputError(f"the spec {clipped(text, 80)!r} has more than {DEEPEST} brackets within brackets")


def depths(text: str) -> Iterator[int]:
    """How many brackets are open after each letter."""
    return accumulate((letter in "([{") - (letter in ")]}") for letter in text)


def split(text: str) -> list[str]:
    """The parts of a text between the commas that are outside of brackets, stripped; empty ones are left out.

    >>> split("ddim(eta=1), pc(predictor=ddpm, corrector_steps=2),")
    ['ddim(eta=1)', 'pc(predictor=ddpm, corrector_steps=2)']
    """
    commas = [place for place, depth in enumerate(depths(text)) if depth == 0 and text[place] == ","]
    parts = [text[start + 1 : end].strip() for start, end in pairwise([-1, *commas, len(text)])]
    return [part for part in parts if part]


def outside_names(text: str) -> set[str]:
    """The names ``package.module:Name`` in a text, except inside of quotes."""
    return {match[0] for match in _OUTSIDE.finditer(text) if match[2]}


def _without_colon(match: re.Match[str]) -> str:
    return match[1] or f"{match[2]}.{_COLON}.{match[3]}"


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=int() as value) if value.bit_length() > LARGEST_BITS:
            raise InputError(f"an integer of {value.bit_length()} bits in the spec {text!r} is too large")
        case ast.Constant(value=int() | float() | str() | bool() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()) as number):
            return -_value(number, text)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -math.inf
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return tuple(_value(element, text) for element in elements)
        case ast.Name() | ast.Attribute():
            return Spec(_name(node, text))
        case ast.Call(func=function, args=args, keywords=keywords):
            named = tuple((k.arg, _value(k.value, text)) for k in keywords if k.arg is not None)
            if len(named) == len(keywords):
                return Spec(_name(function, text), tuple(_value(a, text) for a in args), named)
    raise InputError(f"cannot read {ast.unparse(node)!r} in the spec {text!r}{_quotes(text)}")


def _quotes(text: str) -> str:
    """The end of a message about a text with a path, whose slashes, spaces and dashes a spec reads as other signs."""
    return "; write the path of a file in quotes: 'folder/file.npy'" if re.search(r"[/\\]|\.np[yz]\b", text) else ""


def _name(node: ast.expr, text: str) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, text)}.{node.attr}".replace(f".{_COLON}.", ":")
    raise InputError(f"cannot read {ast.unparse(node)!r} in the spec {text!r}")


def write(value: Any) -> str:
    """The text of an option's value; the inverse of parsing.

    >>> write((1.0, "midpoint", None))
    '[1.0, midpoint, None]'
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(write(v) for v in value)}]"
    if isinstance(value, str):
        bare = value.isascii() and value.isidentifier() and not keyword.iskeyword(value)
        return value if bare else repr(value)
    if isinstance(value, (bool, int, float)) or value is None:
        return repr(value)
    return str(value)
