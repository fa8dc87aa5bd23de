"""The rooms of the two packages, read from their syntax trees: who may import whom, and how long things may be."""

import ast
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PACKAGES = ("solvers", "scoresde")

# rooms and top-level modules from the ground up: each imports only from those that stand before it
FLOORS = {
    "solvers": (
        *("errors", "files", "libraries", "registry", "types", "noise", "time_grids", "loop", "budget"),
        *("one_step", "multistep", "adaptive", "wrappers", "discrete", "program", "foreign", "tuning", "conformance"),
    ),
    "scoresde": (
        *(
            "io",
            "operators",
            "data",
            "paths",
            "models",
            "guidance",
            "posterior",
            "sampling",
        ),
        *("likelihood", "bounds", "training", "benchmark"),
        *("show", "interop", "runs", "cli", "public", "__main__"),
    ),
}
# what solvers may import besides the standard library
FOREIGN = {"solvers", "torch", "numpy", "scipy", "torchdiffeq", "typing_extensions"}
# the doors, where an object of a user's or of another library becomes one of ours: here its parts are looked up, once
DOORS = {"solvers/types/problem.py", "solvers/types/schedule.py", "scoresde/models/model.py"}
# attributes looked up by name on objects that are not ours
FOREIGN_ATTRIBUTES = {
    "scoresde/models/denoiser.py": {"_orig_mod", "sample"},  # torch.compile's modules; outputs of diffusers' networks
    "scoresde/interop/diffusers_config.py": {"config", "tolist"},  # diffusers' objects and their values
    "scoresde/interop/diffusers_scheduler.py": {"dtype"},  # of what may be no tensor
    "scoresde/interop/k_diffusion.py": {"dtype"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(node):
    """Every node below, but for what stands under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imported(module):
    """The full names that a module imports, inside of functions as well: of ``from a import b`` a.b where that is a
    module, else a."""
    path = MODULES[module]
    folder = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in statements(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (full if (full := f"{source}.{a.name}") in MODULES else source for a in node.names)


def room(module):
    """The room or the top-level module that a module stands in; the package itself has none."""
    return ".".join(module.split(".")[:2]) if "." in module else None


def circle(edges):
    """A circle in a graph {name: names}, as the names on it; empty where there is none."""
    done, path = set(), []

    def walk(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        found = next((c for other in sorted(edges.get(name, ())) if (c := walk(other))), [])
        path.pop()
        done.add(name)
        return found

    return next((c for name in sorted(edges) if (c := walk(name))), [])


def test_the_walk_finds_what_there_is():
    assert "solvers.types.node" in set(imported("solvers.types.problem"))
    assert "scoresde.paths.base" in set(imported("scoresde.paths.standard"))
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_solvers_import_nothing_of_scoresde():
    import sys

    packages = {name.partition(".")[0] for m in MODULES if room(m) and m.startswith("solvers") for name in imported(m)}
    assert packages - FOREIGN - sys.stdlib_module_names == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_listing_has_at_most_twenty_entries(package):
    folders = [path for path in (ROOT / package).rglob("*") if path.is_dir() and path.name != "__pycache__"]
    for folder in [ROOT / package, *folders]:
        entries = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
        assert len(entries) <= 20, (folder, entries)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_its_floor(package):
    rooms = {room(module) for module in MODULES if module.startswith(f"{package}.")}
    assert rooms == {f"{package}.{name}" for name in FLOORS[package]}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_one_above_it(package):
    floor = {f"{package}.{name}": i for i, name in enumerate(FLOORS[package])}
    for module in MODULES:
        if module.startswith(f"{package}."):
            upward = [n for n in imported(module) if room(n) in floor and floor[room(n)] > floor[room(module)]]
            assert upward == [], f"{module} imports {upward}"


def test_there_is_no_circle_of_modules():
    # what a package's or a room's __init__ hands out is imported from where it is defined
    assert circle({m: {n for n in imported(m) if n in MODULES and n != m} for m in MODULES if room(m)}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_of_a_room_are_imported_by_their_own_name(package):
    for module in MODULES:
        inside = [n for n in imported(module) if n in MODULES and MODULES[n].name == "__init__.py"]
        inside = [n for n in inside if n.startswith(f"{package}.") and n.count(".") == 1]
        if module.startswith(f"{package}."):
            assert inside == [], f"{module} imports from the rooms {inside}"


def declared():
    """The public names of all methods and fields of our classes."""
    for path in MODULES.values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef):
                        yield part.name
                    elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                        yield part.target.id


def test_nothing_of_ours_is_found_by_probing():
    ours = {name for name in declared() if not name.startswith("_")}
    found = set()
    for path in MODULES.values():
        where = path.relative_to(ROOT).as_posix()
        for node in ast.walk(tree(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1):
                continue
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            probed = node.func.id == "hasattr" or (node.func.id == "getattr" and name in ours)
            if probed and where not in DOORS and name not in FOREIGN_ATTRIBUTES.get(where, ()):
                found.add(f"{where}:{node.lineno}: {ast.unparse(node)}")
    assert found == set()


def test_no_function_is_longer_than_sixty_lines():
    lengths = {}
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                lengths[f"{module}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: length for name, length in lengths.items() if length > 60} == {}


@pytest.mark.parametrize("folder", [*PACKAGES, "configs", "benchmarks", "tests"])
def test_no_file_is_longer_than_400_lines(folder):
    paths = list((ROOT / folder).rglob("*.py"))
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > 400} == {}
