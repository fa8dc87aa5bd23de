"""What an import and a command load, read from ``sys.modules`` of a new process: heavy packages only where used."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import scoresde
from scoresde import public

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
DRAWING = {"matplotlib", "PIL", "jinja2"}
HEAVY = {*DRAWING, "diffusers", "sklearn", "scipy.stats", "scipy.integrate", "scipy.optimize", "scipy.interpolate"}
HEAVY |= {"torchdiffeq", "ml_collections", "torch._dynamo"}


def loaded(code, arguments=()):
    """The names of the modules that a new process has loaded at the end of some code."""
    script = f"import sys\n{code}\nimport json; sys.stderr.write('\\n' + json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_importing_the_package_loads_nothing():
    assert {"torch", "numpy", "scipy", "solvers", *HEAVY} & loaded("import scoresde; scoresde.__version__") == set()


def test_using_the_package_loads_no_plotting_and_no_integrators():
    code = "import scoresde; m = scoresde.targets.Gaussian([0.0], 0.25).denoiser(scoresde.VP())"
    found = loaded(f"{code}; scoresde.sample(m, (1,), [0, 1], 'ddim', steps=2); scoresde.load")
    assert "scoresde.sampling.sample" in found
    assert HEAVY & found == set()


@pytest.mark.parametrize("argument", ["--help", "--version", "sample --help", "smaple", "train --stepz=3"])
def test_help_and_errors_in_the_arguments_do_not_wait_for_torch(argument):
    code = "from scoresde.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass"
    found = loaded(code, argument.split())
    assert "scoresde.cli.arguments" in found
    assert {"torch", "numpy", "solvers", *HEAVY} & found == set()


def test_the_table_of_solvers_loads_no_plotting_and_no_runs():
    found = loaded("from scoresde.cli import main; main(['solvers', 'heun'])")
    assert {*DRAWING, "ml_collections", "sklearn", "diffusers"} & found == set()


def test_the_public_names_are_all_there_and_no_other():
    assert {name for name in dir(scoresde) if name in public.__all__} == set(public.__all__)
    assert all(getattr(scoresde, name) is getattr(public, name) for name in public.__all__)
    assert scoresde.training.__name__ == "scoresde.training"  # a room
    with pytest.raises(AttributeError, match="module 'scoresde' has no attribute 'smaple'"):
        _ = scoresde.smaple


def test_a_star_import_and_a_type_checker_see_the_public_names():
    space = {}
    exec("from scoresde import *", space)
    assert set(public.__all__) <= set(space)
    # what a type checker reads: without it every misspelt name would pass as Any
    (branch,) = [node for node in ast.parse(Path(scoresde.__file__).read_text()).body if isinstance(node, ast.If)]
    assert ast.unparse(branch.test) == "TYPE_CHECKING"
    assert ast.unparse(branch.body[0]) == "from .public import *"
    assert [node.name for node in branch.orelse] == ["__getattr__", "__dir__"]
