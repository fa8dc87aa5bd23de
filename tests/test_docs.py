"""The pages of the documentation run as they are printed, and their tables are the registry's."""

import doctest
import os
import re
from pathlib import Path

import pytest
from commands import forked

import scoresde
import solvers
from benchmarks import readme

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_page(page, registry):
    failed, _ = doctest.testfile(str(ROOT / "docs" / page), module_relative=False)
    assert failed == 0


def test_the_readme_and_the_table_of_the_docs_are_up_to_date():
    assert os.waitpid(forked(lambda: readme.main(check=True)), 0)[1] == 0


def test_every_solver_stands_in_the_readme_and_in_the_docs():
    for page in (ROOT / "README.md", ROOT / "docs" / "solvers.md"):
        text = page.read_text(encoding="utf-8")
        assert [name for name in solvers.names() if f"`{name}`" not in text] == []


def test_the_citation_names_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, re.M) == [scoresde.__version__] == [solvers.__version__]


def test_every_module_stands_in_the_reference():
    listed = re.findall(r"automodule:: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    files = [path for package in ("solvers", "scoresde") for path in (ROOT / package).rglob("*.py")]
    files = [path for path in files if path.stem != "__main__"]  # importing it runs the command line
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert len(listed) == len(set(listed))
    assert set(listed) == modules


def test_links_of_the_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
