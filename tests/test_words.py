"""Words that made sentences hard to read, and better ones: docstrings, comments, messages and pages do not use them."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
BETTER = {
    r"be had": "is available",
    r"errs": "has an error of",
    r"that is none": "that is not one",
    r"in the place of": "instead of, replaces",
    r"go(es)? on": "continues, resumes",
    r"(come|comes|came) late": "has a long pre-asymptotic range",
    r"told from": "estimated from, distinguished from",
    r"(is|are|was|were|be) told": "is reported, receives, is configured to",
    r"what (it|this|that|the \w+) tells": "what it shows",
    r"one's own": "your own, custom",
    r"of (a user|its user)'s": "user input, of the user",
    r"anew": "again",
    r"ask(s|ed|ing)? the (model|network)": "evaluates the model",
    r"(model|network)s? (is|are|was|were) (to be )?asked": "is evaluated",
    r"(model|network)s? (say|says|said)": "predicts",
    r"answer(s|ed)? with": "returns",
    r"put(s|ting)? out": "returns; the output",
    r"besides?": "next to, in addition to, compared with",
    r"whatever": "for any",
    r"taken for": "used as, mistaken for",
    r"as of (``|`)": "as in",
    r"where (it|they|a solve|the solve) arrive[sd]?": "the result of",
}


def sources() -> list[Path]:
    """The modules of both packages, the configs and the scripts, then the pages."""
    code = [
        path for folder in ("solvers", "scoresde", "configs", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    return [*code, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def texts(path: Path) -> list[str]:
    """The text of a page, or the sentences of a module: docstrings and messages of several words, and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return [text]
    nodes = list(ast.walk(ast.parse(text)))
    formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {part for node in formatted for part in node.values}
    found = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts and " " in node.value
    ]
    for node in formatted:
        found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values))
    last = -1  # the line of the last comment: those below one another are one text
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("# ")
            if token.start[0] == last + 1:
                found[-1] += f" {words}"
            else:
                found.append(words)
            last = token.start[0]
    return found


def faults(path: Path) -> list[str]:
    """The words to replace, each with its neighbours and a better word."""
    return [
        f"{path.relative_to(ROOT)}: ...{flat[max(0, match.start() - 30) : match.end() + 30]}...  better: {better}"
        for flat in (" ".join(text.split()) for text in texts(path))
        for phrase, better in BETTER.items()
        for match in re.finditer(rf"\b(?:{phrase})(?!\w)", flat, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_uses_them(path):
    found = faults(path)
    assert not found, "\n" + "\n".join(found)


def test_they_are_found_across_lines_in_every_kind_of_text(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "module.py"
    module.write_text('"""A shape is\ntold."""\n\n# the noise\n# errs\nx = f"{1} has to be" " had"\nerr = 0\n')
    assert [fault.rpartition("better: ")[2] for fault in faults(module)] == [
        BETTER["(is|are|was|were|be) told"],
        BETTER["be had"],
        BETTER["errs"],
    ]
