"""The scripts in benchmarks: short listings, and paths and commands that exist wherever they are named."""

import ast
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.rglob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
NAMED = re.compile(r"\bbenchmarks/[\w./]*\w\.(?:py|json|csv|png|txt|safetensors)\b")
COMMAND = re.compile(r"python -m (benchmarks(?:\.\w++)++)(?!\.\{)")  # not one that a script completes


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def texts():
    """Every text file that may name a script: code, pages, the Makefile and the result files."""
    yield ROOT / "Makefile"
    yield from ROOT.glob("*.md")
    yield from (ROOT / "docs").glob("*.md")
    for folder in ("benchmarks", "scoresde", "solvers", "tests"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".json"})


def test_a_listing_has_at_most_sixteen_entries():
    for folder in [FOLDER, *(path for path in FOLDER.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        entries = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
        assert len(entries) <= 16, (folder, entries)


def test_no_folder_has_the_name_of_a_package():
    # it would stand before the package for a script that runs by its path
    assert not [path for path in FOLDER.rglob("*") if path.name in {"scoresde", "solvers"}]


@pytest.mark.parametrize("path", SCRIPTS, ids=module)
def test_a_script_says_how_it_runs(path):
    commands = COMMAND.findall(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))
    assert set(commands) == {module(path)}


def test_every_path_and_every_command_exists():
    assert len(SCRIPTS) > 30
    missing, known = [], {module(path) for path in SCRIPTS}
    for file in texts():
        text = file.read_text(encoding="utf-8")
        missing += [f"{file.name}: {name}" for name in NAMED.findall(text) if not (ROOT / name).exists()]
        missing += [f"{file.name}: {name}" for name in COMMAND.findall(text) if name not in known]
        missing += [f"{file.name}: {name}" for name in re.findall(r"python benchmarks\S*", text)]
    assert [line for line in missing if "GROUP" not in line and Path(__file__).name not in line] == []


@pytest.mark.parametrize("folder", sorted(path for path in FOLDER.glob("*/results")), ids=lambda path: path.parent.name)
def test_results_stand_next_to_the_script_that_made_them(folder):
    for path in folder.glob("*.json"):
        header = json.loads(path.read_text(encoding="utf-8"))
        command = header.get("header", header).get("command")
        assert command is None or COMMAND.findall(command)[0].split(".")[1] == folder.parent.name, path
