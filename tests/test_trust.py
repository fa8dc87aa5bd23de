"""What is only data runs no code: files name classes of other modules in vain, and libraries are not taken from where a
command happens to run."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import fails

import scoresde
import solvers
from scoresde import InputError
from scoresde.cli.arguments import HELP, parsers
from scoresde.cli.current_folder import origin_of
from scoresde.cli.parser import main
from scoresde.runs.run import load_run
from scoresde.runs.score import bound_of, options_of
from solvers.registry.outside import Origin, import_named, installed_only, modules_in

ROOT = Path(__file__).parent.parent
PYTHON = Path(sys.executable)
# a module that tells that it ran, and has a class for every field that names one
STRANGER = """
import pathlib
from dataclasses import dataclass
import torch
from scoresde.likelihood.dequantisation import UniformNoise
from scoresde.likelihood.divergence import Exact
from scoresde.models.networks import MLP
from scoresde.paths.standard import VP
from solvers.one_step.ancestral import DDPM
from solvers.one_step.runge_kutta import Heun
from solvers.time_grids.rules import LogSNR
pathlib.Path(__file__).with_suffix(".ran").touch()

def named(base):
    return dataclass(frozen=True)(type("Mine", (base,), {"__module__": __name__}))
"""
BASES = {
    "model.network": "MLP",
    "sde": "VP",
    "sampling.solver": "Heun",
    "sampling.grid": "LogSNR",
    "likelihood.solver": "Heun",
    "likelihood.grid": "LogSNR",
    "likelihood.divergence": "Exact",
    "likelihood.dequantiser": "UniformNoise",
    "likelihood.bound": "DDPM",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a stranger's module in it, which no test has imported yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stranger.py").write_text(STRANGER)
    before = list(sys.path)
    yield tmp_path
    sys.modules.pop("stranger", None)
    assert sys.path == before


def ran(folder):
    return (folder / "stranger.ran").exists()


def stranger(folder, base):
    """Makes the module's class ``Mine`` of a base."""
    (folder / "stranger.py").write_text(f"{STRANGER}\nMine = named({base})\n")


def hostile(run, folder, **fields):
    """A copy of a run whose config names a stranger's classes."""
    copy = folder / "theirs"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    document = json.loads((copy / "config.json").read_text())
    for name, value in fields.items():
        *sections, last = name.split(".")
        holder = document["config"]
        for section in sections:
            holder = holder[section]
        holder[last] = value
    (copy / "config.json").write_text(json.dumps(document))
    return copy


def command_of(field, copy):
    out = copy.parent / "out"
    if field.startswith("likelihood"):
        return ["likelihood", f"--workdir={copy}", "--limit=2", "--steps=4", f"--out={out}"]
    return ["sample", f"--workdir={copy}", "--seeds=2", "--steps=2", f"--out={out}"]


@pytest.mark.parametrize("field", BASES)
def test_a_class_that_a_run_names_is_imported_only_if_the_user_trusts_it(run, folder, capsys, field):
    stranger(folder, BASES[field])
    options = {"model.network": "(width=32, depth=1)", "likelihood.bound": "(variance=beta)"}.get(field, "")
    copy = hostile(run, folder, **{field: f"stranger:Mine{options}"})
    arguments = command_of(field, copy)
    fails(capsys, arguments, f"{copy}/config.json names the class stranger:Mine", "--trust (in Python trust=True)")
    assert not ran(folder)
    if field in ("model.network", "sde"):
        with pytest.raises(InputError, match=r"config.json names the class stranger:Mine.*trust=True"):
            scoresde.load(copy)
    elif field == "likelihood.bound":
        with pytest.raises(InputError, match="names the class stranger:Mine"):
            bound_of(load_run(copy), torch.zeros(1, 1, 8, 8), [0])
    elif field.startswith("likelihood"):
        with pytest.raises(InputError, match="names the class stranger:Mine"):
            options_of(load_run(copy))
    assert not ran(folder)
    status = main([*arguments, "--trust"])
    assert ran(folder)
    assert status == 0


def test_in_python_trust_imports_the_network_of_a_run(run, folder, monkeypatch):
    copy = hostile(run, folder, **{"model.network": "stranger:Mine(width=32, depth=1)"})
    stranger(folder, "MLP")
    monkeypatch.syspath_prepend(folder)
    try:
        model = scoresde.load(copy, trust=True)
    finally:
        monkeypatch.undo()
        os.chdir(folder)
    assert ran(folder)
    same = scoresde.sample(scoresde.load(run), (1, 8, 8), 2, "ddim", steps=2).x
    assert torch.equal(scoresde.sample(model, (1, 8, 8), 2, "ddim", steps=2).x, same)


def test_no_way_of_writing_a_name_gets_around_the_refusal(run, folder, capsys):
    """In quotes, with escapes, inside of another solver, by a name that is also a file's or a folder's."""
    stranger(folder, "Heun")
    for spec in (
        "pc(predictor=stranger:Mine)",
        "pc(predictor='stranger:Mine')",
        r"pc(predictor='str\x61nger:Mine')",
        "restart(solver=churn(solver='stranger:Mine'))",
        "  stranger:Mine",
        "stranger:Mine()",
    ):
        copy = hostile(run, folder, **{"sampling.solver": spec})
        assert main(["sample", f"--workdir={copy}", "--seeds=2", "--steps=4", f"--out={folder / 'out'}"]) == 2, spec
        assert not ran(folder), spec
    # what was typed as a file's name is not the name of a class
    copy = hostile(run, folder, **{"model.network": "stranger:Mine"}).rename(folder / "stranger:Mine")
    fails(
        capsys,
        ["sample", "--workdir=stranger:Mine", "--seeds=2", "--out=stranger:Mine"],
        "names the class stranger:Mine",
    )
    (folder / "file.py").write_text("import pathlib\npathlib.Path('stranger.ran').touch()")
    copy = hostile(run, folder, **{"model.network": "file:Mine"})
    given = ["sample", f"--workdir={copy}", "--seeds=2", "--out=out", "--solver=file:Mine"]
    fails(capsys, given, "names the class file:Mine")
    fails(
        capsys,
        ["likelihood", f"--workdir={copy}", "--config.data.path=file:Mine", "--out=out"],
        "names the class file:Mine",
    )
    copy = hostile(run, folder, **{"model.network": "stranger:Mine"})
    given = ["likelihood", f"--workdir={copy}", "--config.data.path=stranger:Mine", "--out=out"]
    fails(capsys, given, "names the class stranger:Mine")
    assert not ran(folder)


def test_what_is_typed_is_allowed_in_every_spec_and_nothing_else():
    def typed(*argv):
        from scoresde.cli.arguments import read

        origin = origin_of(*read(argv))
        return sorted(origin.typed), origin.trusted

    sample = ("sample", "--workdir=a:B", "--out=c:D")
    assert typed(*sample) == ([], False)
    assert typed(*sample, "--trust") == ([], True)
    assert typed(*sample, "--solver=mine:S", "--grid=mine:G(steps=2)") == (["mine:G", "mine:S"], False)
    assert typed(*sample, "--config.sampling.solver=pc(predictor=p.q:S)") == (["p.q:S"], False)
    assert typed(*sample, "--solver=file:e.json") == ([], False)
    assert typed("check-solver", "mine:S(order=2)") == (["mine:S"], False)
    assert typed("solvers", "mine:S", "--sde=mine:P") == (["mine:P", "mine:S"], False)
    bench = ("benchmark", "--workdir=a:B", "--out=c", "--solvers=ddim, mine:S(a=[1, 2]), heun")
    assert typed(*bench) == (["mine:S"], False)
    assert typed("likelihood", "--workdir=r", "--config.data.path=e:V") == ([], False)


def test_every_command_that_reads_a_run_has_the_flag():
    for name, parser in parsers()[1].items():
        text = parser.format_help()
        reads = "--workdir" in text
        assert ("--trust" in text) == reads, name
        assert not reads or "runs code" in " ".join(text.split())
    assert set(HELP) == set(parsers()[1])


def test_limits_hold_in_a_block_and_contain_those_around_it(folder):
    stranger(folder, "Heun")
    with Origin("one.json", frozenset({"this:One"})).limits():
        with Origin("two.json").limits():
            with pytest.raises(InputError, match="cannot import the solver 'this:One'"):
                solvers.make("this:One")
            with pytest.raises(InputError, match=r"^two.json names the class stranger:Mine"):
                solvers.make("stranger:Mine")
        with pytest.raises(InputError, match=r"^one.json names the class stranger:Mine"):
            solvers.grids.make("stranger:Mine")
    with pytest.raises(InputError, match="cannot import the solver 'stranger:Mine'"):
        solvers.make("stranger:Mine")  # typed in Python; the current folder is not on the path of the tests


def test_a_registered_class_of_a_plug_in_needs_no_trust(registry):
    @registry.register("of_a_plug_in")
    @dataclass(frozen=True)
    class Plugged(type(solvers.make("heun"))):
        """A solver that an installed package registered."""

    with Origin("a.json").limits():
        assert isinstance(solvers.make("of_a_plug_in"), Plugged)


def test_a_named_module_is_looked_for_in_the_folder_last_and_only_then(folder):
    (folder / "statistics.py").write_text("raise RuntimeError('the folder came first')")
    (folder / "of_the_folder.py").write_text("found = True")
    before = list(sys.path)
    sys.modules.pop("statistics", None)
    with modules_in(str(folder)):
        assert sys.path == before
        assert import_named("statistics").__file__ != str(folder / "statistics.py")
        assert import_named("of_the_folder").found
        assert sys.path == [*before, str(folder)]
        with installed_only():
            assert sys.path == before
        assert sys.path == [*before, str(folder)]
    assert sys.path == before
    sys.modules.pop("of_the_folder")


# files


def test_a_pipeline_of_diffusers_names_no_class(folder):
    diffusers = pytest.importorskip("diffusers")
    from scoresde.interop import DiffusersScheduler
    from scoresde.interop.diffusers_folder import own_solver

    stranger(folder, "Heun")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "pipe")
    path = folder / "pipe" / "scheduler" / "scheduler_config.json"
    good = dict(DiffusersScheduler("heun", "ddpm_chain(linear)", grid="trailing").config)
    for entry in ("solver", "sde", "grid"):
        config = {**good, entry: "stranger:Mine"}
        path.write_text(json.dumps(config))
        with pytest.raises(InputError, match="the scheduler's config names the class stranger:Mine"):
            DiffusersScheduler.from_config(config)
        with pytest.raises(InputError, match="the scheduler's config names the class stranger:Mine"):
            DiffusersScheduler.from_pretrained(folder / "pipe" / "scheduler")
        if entry != "grid":
            with pytest.raises(InputError, match=r"scheduler_config.json names the class stranger:Mine"):
                own_solver(folder / "pipe")
        if entry == "sde":
            with pytest.raises(InputError, match=r"scheduler_config.json names the class stranger:Mine"):
                scoresde.load(f"diffusers:{folder / 'pipe'}")
            with pytest.raises(InputError, match="names the class stranger:Mine"):
                DiffusersScheduler("heun", config)
    assert not ran(folder)
    config = {**good, "solver": "stranger:Mine"}
    with modules_in(str(folder)):
        assert DiffusersScheduler.from_config(good, solver="stranger:Mine").config["solver"] == "stranger:Mine"
        sys.modules.pop("stranger")
        path.write_text(json.dumps(config))
        made = DiffusersScheduler.from_pretrained(folder / "pipe" / "scheduler", trust=True)
        assert made.config["solver"] == "stranger:Mine"


def test_a_scheduler_class_is_one_of_diffusers(folder):
    pytest.importorskip("diffusers")
    from scoresde.interop import DiffusersScheduler

    for name in ("_LazyModule", "scheduling_utils", "KarrasDiffusionSchedulers", "os"):
        with pytest.raises(InputError, match="no scheduler class of diffusers"):
            DiffusersScheduler("heun", {"_class_name": name, "beta_schedule": "linear"})


def test_programs_grids_and_dequantisers_name_no_class(run, folder, capsys):
    stranger(folder, "Heun")
    given = ["sample", f"--workdir={run}", "--seeds=2", "--out=out"]
    assert main(["solvers", "heun", "--json=program.json", "--steps=2", "--sde=vp"]) == 0
    program = json.loads(Path("program.json").read_text())
    Path("program.json").write_text(json.dumps({**program, "solver": "stranger:Mine"}))
    assert main([*given, "--solver=file:program.json"]) == 0
    assert main(["solvers", "file:program.json", "--show"]) == 0
    grid = {"format": "scoresde-grid", "version": 1, "ratios": [5.0, 1.0, 0.1], "solver": "stranger:Mine"}
    Path("grid.json").write_text(json.dumps(grid))
    assert main([*given, "--overwrite", "--solver=heun", "--grid=file:grid.json"]) == 0
    trained = scoresde.VariationalDequantiser((1, 8, 8), layers=0, width=4)
    scoresde.save_dequantiser(trained, "law.safetensors")
    law = Path("law.safetensors").read_bytes()
    Path("law.safetensors").write_bytes(law.replace(b'\\"layers\\": 0', b'\\"networks\\": "stranger:Mine"'))
    with pytest.raises(InputError):
        scoresde.load_dequantiser("law.safetensors")
    assert not ran(folder)


# the folder where a command runs


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A folder with a file for every library and every module of Python, and settings of matplotlib."""
    folder = tmp_path_factory.mktemp("evil")
    code = "import sys, os\nos.close(os.open(__file__ + '.ran', os.O_CREAT))\nraise SystemExit('evil')\n"
    site = Path(find_spec("torch").submodule_search_locations[0]).parent
    libraries = {path.stem for path in site.iterdir() if path.stem.isidentifier()} - {"scoresde", "solvers"}
    for name in {*sys.stdlib_module_names, *libraries, "evil"}:
        (folder / f"{name}.py").write_text(code)
    (folder / "matplotlibrc").write_text("backend: module://evil\nno.such.key: 1\n")
    (folder / "evil-1.0.dist-info").mkdir()
    (folder / "evil-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    points = "[scoresde.solvers]\nevil = evil\n[torch.backends]\nevil = evil:f\n"
    (folder / "evil-1.0.dist-info" / "entry_points.txt").write_text(points)
    return folder


SCRIPT = "import sys; del sys.path[0]; from scoresde.cli import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("start", "arguments"),
    [
        ("-m", ["benchmark", "--solvers=ddim", "--nfe=5", "--seeds=8"]),
        ("script", ["solvers", "no_such_solver"]),  # the name is looked up among the plug-ins
        pytest.param("-m", ["solvers", "statistics:Mine"], marks=pytest.mark.slow),
        pytest.param("script", ["solvers", "heun", "--steps=2", "--show"], marks=pytest.mark.slow),
    ],
)
def test_a_folder_full_of_hostile_files_runs_none_of_them(run, evil, tmp_path, start, arguments):
    """In the installed command, which has the folder of the script on its path, and with ``python -m``."""
    first = ["-m", "scoresde"] if start == "-m" else ["-c", SCRIPT]
    places = [f"--workdir={run}", f"--out={tmp_path / 'out'}"] if arguments[0] == "benchmark" else []
    done = subprocess.run(
        [PYTHON, *first, *arguments, *places], cwd=evil, capture_output=True, text=True, check=False, timeout=120
    )
    named = arguments[-1] in ("statistics:Mine", "no_such_solver")
    assert done.returncode == (2 if named else 0), done.stderr
    assert "evil" not in done.stdout + done.stderr
    assert "no.such.key" not in done.stderr  # matplotlib complains of what it reads
    assert [path.name for path in evil.glob("*.ran")] == []
