"""The arguments of the command line, and errors in them that name the nearest match.

Nothing here imports torch, so that the help and errors in the arguments need no second.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from .. import __version__
from .readers import classes_of, count_of, counts_of, folder_of, free_of, seed_of, seeds_of, share_of, specs_of

HELP = {
    "demo": "train on real digits, sample, score, and write a report; about a minute, offline",
    "train": "train a model, or resume its training",
    "sample": "draw samples from a trained model",
    "restore": "draw samples given an observation: a masked, blurred, small, ... picture; mean, deviation and a page",
    "likelihood": "log-likelihood of data under a trained model; resumes if started again",
    "benchmark": "steps versus quality: every solver at every number of evaluations; resumes if started again",
    "rerun": "draw rows of a benchmark again from its file: identical, or by how much not",
    "compare": "the differences of two benchmarks, with intervals",
    "choose": "the solver and grid with the least error at a number of evaluations, as fields of the config to paste",
    "tune": "a solver tuned to a run for a number of evaluations, as a file that a config names",
    "import-solver": "a table of LD3, GITS, AMED, EPD or DyWeight as a solver, in a file that a config names",
    "solvers": "the table of solvers, one solver's card, or its program on a grid",
    "guidances": "the table of guidance, or the card of one kind",
    "posteriors": "the table of methods for scoresde restore, or the card of one method",
    "operators": "the table of observations for scoresde restore, or the card of one operator",
    "check-solver": "measure a solver: order, batch invariance, evaluations, dtype, spec",
    "check-posterior": "measure a posterior method: exactness, independence of the steps, batch invariance, the prior",
}
FIELDS = {
    "demo": ("--config.training.steps=1000", "--config.sde=edm"),
    "train": ("--config.sde=edm", "--config.model.network='mlp(width=512, depth=4)'", "--config.device=cuda"),
    "sample": ("--config.sampling.noise=brownian", "--config.sampling.batch_size=64", "--config.device=cuda"),
    "restore": ("--config.sampling.batch_size=64", "--config.device=cuda"),
    "likelihood": ("--config.likelihood.divergence=exact", "--config.likelihood.batch_size=64", "--config.device=cuda"),
    "benchmark": ("--config.sampling.batch_size=64", "--config.device=cuda"),
    "tune": ("--config.sampling.guidance='cfg(scale=2)'", "--config.sampling.batch_size=64", "--config.device=cuda"),
    "choose": ("--config.sampling.guidance='cfg(scale=2)'", "--config.sampling.batch_size=64", "--config.device=cuda"),
}
STATUS = """

The exit status is 0 when all updates are made; 75 when --max-minutes ended the training, and 130 after Ctrl-C or
SIGTERM, both with a checkpoint from which the same command resumes; 2 for an error, which one line describes."""
# flags that other commands have, and what to use instead
INSTEAD = {
    ("benchmark", "--steps"): "a benchmark compares solvers at equal numbers of evaluations: use --nfe=5,10,20",
    ("sample", "--operator"): "use scoresde restore, which draws samples given an observation",
    ("sample", "--observation"): "use scoresde restore, which draws samples given an observation",
    ("sample", "--posterior"): "use scoresde restore, which draws samples given an observation",
    ("likelihood", "--seeds"): "the seed of a sample is its place in the split: use --limit=4 for the first four",
    ("likelihood", "--seed"): "the seed of a sample is its place in the split: use --limit=4 for the first four",
    ("train", "--solver"): "a solver does not matter in training; the commands sample and benchmark take --solver",
    ("train", "--steps"): "training has updates, and a sampler has steps: use --config.training.steps=2000",
    ("train", "--out"): "the run's folder is --workdir",
}

_METHOD = ("solver", "grid", "steps", "nfe", "forwards", "tolerance")  # flags that set the config's fields


_AUTO = "auto: as torchrun or a Slurm array says"
_SAMPLING = ("guidance", "condition", "operator", "observation", "posterior")  # likewise


class Usage(Exception):
    """Arguments that do not fit a command."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``Usage``."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (see {self.prog} --help)")


def near(given: str, accepted: Iterable[str]) -> str:
    """The end of an error message: the nearest of the accepted words, or all of them."""
    words = list(accepted)
    found = difflib.get_close_matches(given[:64], words, n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else f"accepted: {', '.join(words)}"


def _command(commands: argparse._SubParsersAction[Parser], name: str) -> Parser:
    """The parser of a command, with its help text."""
    note = None
    if name in FIELDS:
        lines = "\n".join(f"  {field}" for field in FIELDS[name])
        note = f"--config.SECTION.FIELD=VALUE sets a field of the config, for example\n{lines}"
        note += "\nconfigs/default.py describes all fields; a run's config.json contains its own."
        note += STATUS if name == "train" else ""
    return commands.add_parser(
        name, help=HELP[name], description=HELP[name], epilog=note, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _workdir(sub: Parser, text: str = "the run's folder") -> None:
    sub.add_argument("--workdir", type=folder_of, required=True, help=text)
    sub.add_argument("--trust", action="store_true", help="import modules that the run's files name, which runs code")


def _out(sub: Parser) -> None:
    sub.add_argument("--out", type=folder_of, required=True, help="folder for the results")
    sub.add_argument("--overwrite", action="store_true", help="replace earlier results in that folder")


def _method(sub: Parser, section: str) -> None:
    """The flags of a solver and its nodes; each sets the field of its name in a section of the config."""
    sub.add_argument("--solver", help=f"a name or spec, see scoresde solvers; sets --config.{section}.solver")
    sub.add_argument("--grid", help=f"where the steps are, such as karras; sets --config.{section}.grid")
    sub.add_argument("--steps", type=count_of, help=f"number of steps; sets --config.{section}.steps")
    sub.add_argument("--nfe", type=count_of, help="instead of steps: the largest number of model evaluations")


def _making(commands: argparse._SubParsersAction[Parser]) -> None:
    """The commands that train and sample."""
    demo = _command(commands, "demo")
    demo.add_argument("--out", type=folder_of, default=Path("demo"), help="folder for the results")
    demo.add_argument("--config", default="digits_vp", help="a config file, or the name of a config of the library")
    demo.add_argument("--fast", action="store_true", help="fewer training steps: a quick check that everything works")

    train = _command(commands, "train")
    train.add_argument("--config", help="a config file, or the name of a config of the library")
    data = "a folder of images or a file of arrays; without --config, it decides the network and the other settings"
    train.add_argument("--data", type=folder_of, metavar="PATH", help=data)
    _workdir(train, "the run's folder; a run in it is resumed, from its own config if --config is left out")
    limit = "write a checkpoint and end with status 75 after so many minutes; the same command resumes"
    train.add_argument("--max-minutes", type=float, metavar="M", help=limit)
    other = "resume a run although its data are not those it was trained on; config.json records the change"
    train.add_argument("--continue-with-other-data", action="store_true", help=other)

    sample = _command(commands, "sample")
    _workdir(sample)
    _out(sample)
    sample.add_argument("--seeds", type=seeds_of, default="64", help="one sample per seed: 64 means 0-63; or 0,5,9")
    chosen = "the classes to draw, equally many of each in the order of the seeds: 3, 0-9, or none; by default all"
    _conditions(sample, chosen)
    _method(sample, "sampling")


def _conditions(sub: Parser, chosen: str) -> None:
    """The flags of what a sample is drawn given."""
    sub.add_argument("--class", dest="classes", type=classes_of, metavar="CLASSES", help=chosen)
    rows = "a condition, such as y=7 or angle=0.5,1; or a .npz file with rows by name, one per sample or one for all"
    sub.add_argument("--condition", action="append", metavar="NAME=VALUE", help=rows)
    sub.add_argument("--guidance", help="a name or spec, see scoresde guidances; sets --config.sampling.guidance")
    sub.add_argument("--forwards", type=count_of, help="instead of nfe: the most evaluations of the network")


def _restoring(commands: argparse._SubParsersAction[Parser]) -> None:
    """The command that draws samples given observations."""
    restore = _command(commands, "restore")
    _workdir(restore)
    _out(restore)
    name = "how the observation was made, a name or spec, see scoresde operators; sets --config.sampling.operator"
    restore.add_argument("--operator", help=name)
    file = "a .npy file with one observation, or one in each row; sets --config.sampling.observation"
    restore.add_argument("--observation", type=folder_of, metavar="FILE", help=file)
    data = "instead: make the observations from samples by the operator; a .npy file, or test for held-out data"
    restore.add_argument("--measure", metavar="FILE", help=data)
    seed = "the seed of the noise of --measure, 0 by default"
    restore.add_argument("--measure-seed", type=seed_of, default=0, metavar="SEED", help=seed)
    restore.add_argument("--limit", type=count_of, help="only the first observations; 4 with --measure=test")
    shown = "a .npy file with the sample that was observed, or one for each observation, to show next to the draws"
    restore.add_argument("--truth", type=folder_of, metavar="FILE", help=shown)
    method = "the method, a name or spec, see scoresde posteriors; sets --config.sampling.posterior"
    restore.add_argument("--posterior", help=method)
    each = "one draw of each observation per seed: 16 means 0-15; or 0,5,9"
    restore.add_argument("--samples", "--seeds", dest="seeds", type=seeds_of, default="16", metavar="SEEDS", help=each)
    _conditions(restore, "the class of the observed samples, such as 3; by default none, which fits every class")
    _method(restore, "sampling")


def _measuring(commands: argparse._SubParsersAction[Parser]) -> None:
    """The commands that score a model or compare solvers on it."""
    likelihood = _command(commands, "likelihood")
    _workdir(likelihood)
    likelihood.add_argument("--out", type=folder_of, help="folder for the results; by default WORKDIR/likelihood")
    likelihood.add_argument("--split", choices=("train", "test"), default="test", help="which part of the data")
    likelihood.add_argument("--limit", type=count_of, help="score only this many samples, from the first")
    every = "the likelihood under each class: prints how often the most probable class is the data's"
    likelihood.add_argument("--class", dest="classes", choices=("all",), help=every)
    _method(likelihood, "likelihood")
    likelihood.add_argument("--tolerance", help="total error, bits/dim or nats; replaces the steps")
    shards = "k/n: score every n-th batch, from the k-th, together with n - 1 other processes on the same --out"
    likelihood.add_argument("--shards", type=share_of, default="1/1", metavar="K/N", help=f"{shards}; {_AUTO}")

    _benchmarking(commands)


def _benchmarking(commands: argparse._SubParsersAction[Parser]) -> None:
    """The command benchmark, and those that read its results."""
    bench = _command(commands, "benchmark")
    one = bench.add_mutually_exclusive_group(required=True)
    one.add_argument("--workdir", type=folder_of, help="what is measured: the folder of a run,")
    one.add_argument("--diffusers", type=folder_of, metavar="FOLDER", help="or a pipeline that diffusers saved,")
    law = "or a law with its exact score: gaussian(...), mixture(...), empirical(digits), empirical('x.npy', rows=300)"
    one.add_argument("--target", metavar="SPEC", help=f"{law}; or module:factory, which returns one, or a denoiser")
    bench.add_argument("--sde", help="the path of a target, see configs/default.py; by default vp")
    real = "real samples to compare with, of all but a run: a .npy or .npz file, or what train --data takes"
    bench.add_argument("--reference", type=folder_of, metavar="FILE", help=real)
    bench.add_argument("--trust", action="store_true", help="import modules that files name, which runs code")
    bench.add_argument("--out", type=folder_of, required=True, help="folder for the results; finished rows are kept")
    bench.add_argument("--overwrite", action="store_true", help="replace the results of a different benchmark there")
    names = "names or specs, separated by commas; or all"
    bench.add_argument(
        "--solvers", "--solver", type=specs_of, default="ddim, heun, dpmpp_2m, ddpm", metavar="NAMES", help=names
    )
    bench.add_argument("--grid", help="the grid of all solvers; sets --config.sampling.grid")
    grids = "every solver on each of these grids, but for those with a grid of their own"
    bench.add_argument("--grids", type=specs_of, metavar="NAMES", help=grids)
    bench.add_argument("--nfe", type=counts_of, default="5,10,20,50", help="budgets of model evaluations")
    bench.add_argument("--seeds", type=seeds_of, default="512", help="one sample per seed: 512 means 0-511")
    scores = "distances from held-out data, separated by commas, such as frechet, precision, recall"
    bench.add_argument("--metrics", type=specs_of, metavar="NAMES", help=scores)
    mapped = "module:factory(option=value): returns a function whose outputs are compared instead of the samples"
    bench.add_argument("--features", metavar="SPEC", help=mapped)
    bench.add_argument(
        "--round", action="store_true", help="round samples to the levels of the data before the metrics"
    )
    rows = "k/n: compute every n-th row, from the k-th, together with n - 1 other processes on the same --out"
    bench.add_argument("--shards", type=share_of, default="1/1", metavar="K/N", help=f"{rows}; {_AUTO}")

    again = _command(commands, "rerun")
    again.add_argument("results", type=folder_of, help="the folder of a benchmark's results")
    again.add_argument(
        "--row", type=counts_of, metavar="N", help="the numbers of the rows, such as 7 or 1,3; default all"
    )
    for name in ("workdir", "diffusers", "reference"):
        again.add_argument(f"--{name}", type=folder_of, metavar="PATH", help="where it is now, if it has been moved")
    again.add_argument("--trust", action="store_true", help="import modules that the files name, which runs code")

    two = _command(commands, "compare")
    two.add_argument("folders", type=folder_of, nargs=2, help="the folders of the results of two benchmarks")


def _tuning(commands: argparse._SubParsersAction[Parser]) -> None:
    """The commands that find a solver for a budget."""
    choose, tune = _command(commands, "choose"), _command(commands, "tune")
    every = "names or specs, separated by commas; by default every deterministic solver with fixed steps"
    for sub in (choose, tune):
        _workdir(sub)
        sub.add_argument("--nfe", type=counts_of, required=True, help="budgets of model evaluations: 8, or 5,8,10")
        sub.add_argument("--solvers", type=specs_of, metavar="NAMES", help=every)
        sub.add_argument("--grids", type=specs_of, metavar="NAMES", help="likewise; by default those of common use")
        sub.add_argument("--class", dest="classes", type=classes_of, metavar="CLASSES", help="of the samples; or none")
    choose.add_argument("--seeds", type=seeds_of, default="256", help="the samples to compare on: 256 means 0-255")
    choose.add_argument("--without-tuning", action="store_true", help="do not try how much a tuned program would gain")
    choose.add_argument("--out", type=folder_of, help="a folder for choice.json, with the errors of all settings")
    _out(tune)
    each = "samples to tune on; as many more decide when to stop, and as many are held out"
    tune.add_argument("--samples", type=count_of, default=256, metavar="N", help=each)
    free = (
        "what moves: all, ld3 (nodes, labels), s4s (nodes, predictions), or some of nodes, labels, predictions, states"
    )
    tune.add_argument("--free", type=free_of, default="all", help=free)
    loss = "squared, pseudo_huber or log: the distance to the exact solution; energy or sliced_wasserstein: to data"
    tune.add_argument("--loss", default="squared", help=loss)
    tune.add_argument("--iterations", type=count_of, default=400, metavar="N", help="the most iterations")
    tune.add_argument("--batch", type=count_of, metavar="N", help="samples of an iteration; by default all")


def _importing(commands: argparse._SubParsersAction[Parser]) -> None:
    """The command that reads other projects' tables."""
    table = _command(commands, "import-solver")
    table.add_argument("file", type=folder_of, help="a .pt, .pth, .npz, .npy, .safetensors, .json or .txt file")
    table.add_argument("--kind", required=True, help="whose table it is: amed, dyweight, epd, gits or ld3")
    table.add_argument("--sde", default="edm", help="the path of the model that will run it; by default edm")
    table.add_argument(
        "--output", default="x0", help="the model's output: x0 (by default), eps, v, score, velocity, edm"
    )
    table.add_argument("--solver", help="of ld3 and gits, whose files have nodes only, such as 'uni_pc(order=3)'")
    table.add_argument("--table-sde", help="of ld3: the path whose times the file contains; by default t is sigma")
    table.add_argument("--quantity", help="of ld3: what the solver keeps of an evaluation: x0 or eps")
    fact = "what the file does not contain, such as afs=true or t_steps=[80,1,0.002]; may be repeated"
    table.add_argument("--set", action="append", metavar="NAME=VALUE", help=fact)
    table.add_argument("--out", type=folder_of, required=True, metavar="FILE", help="the program's file")
    table.add_argument("--overwrite", action="store_true", help="replace that file")


def _solvers(commands: argparse._SubParsersAction[Parser]) -> None:
    """The commands about solvers alone."""
    listing = _command(commands, "solvers")
    listing.add_argument("name", nargs="?", help="a solver's name")
    listing.add_argument("--space", help="list only the solvers for these states: gaussian or discrete")
    listing.add_argument("--show", action="store_true", help="print the solver's program, and draw it into a PNG file")
    listing.add_argument("--json", metavar="FILE", help="write the solver's program into a file; - prints it")
    listing.add_argument("--steps", type=count_of, help="the number of steps of the grid")
    listing.add_argument("--grid", help="the grid; by default the one that the name contains, or karras")
    listing.add_argument("--sde", help="the path; by default vp")
    listing.add_argument("--output", help="the model's output: x0 (by default), eps, v, score, velocity or edm")
    listing.add_argument("--out", type=folder_of, help="the picture's file; by default NAME.png")

    guidances = _command(commands, "guidances")
    guidances.add_argument("name", nargs="?", help="a guidance's name or spec")

    posteriors = _command(commands, "posteriors")
    posteriors.add_argument("name", nargs="?", help="a method's name or spec")
    operators = _command(commands, "operators")
    operators.add_argument("name", nargs="?", help="an operator's name or spec")

    for name in ("check-solver", "check-posterior"):
        _command(commands, name).add_argument("name", help="a spec, or package.module:Class")


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of all commands, and those of each."""
    made = Parser(
        prog="scoresde", description="Score-based diffusion models with pluggable solvers.", allow_abbrev=False,
        epilog="scoresde COMMAND --help describes a command.",
    )  # fmt: skip
    made.add_argument("--version", action="version", version=f"scoresde {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for add in (_making, _restoring, _measuring, _tuning, _importing, _solvers):
        add(commands)
    return made, dict(commands.choices)


def read(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads arguments: those of the command, and the overrides ``--config.section.field=value``.

    Raises:
        Usage: an unknown command or flag, with its nearest match, or a value that cannot be read.
    """
    argv = _joined(argv)
    if argv and not argv[0].startswith("-") and argv[0] not in HELP:
        raise Usage(f"no command {argv[0]!r}; {near(argv[0], HELP)}")
    made, commands = parsers()
    if argv and argv[0] in commands:
        _refuse_unknown(commands[argv[0]], argv[0], argv[1:])
    parsed, rest = made.parse_known_args(argv)
    strange = [argument for argument in rest if not argument.startswith("--config.")]
    if strange or (rest and parsed.command not in FIELDS):
        raise Usage(f"unknown argument {(strange or rest)[0]!r} (see scoresde {parsed.command} --help)")
    return parsed, _overrides(parsed) + rest


def _joined(argv: Sequence[str]) -> list[str]:
    """The arguments with ``--config.x y`` written as ``--config.x=y``."""
    found: list[str] = []
    for argument in argv:
        open_field = found and re.fullmatch(r"--config\.[^=]+", found[-1])
        if open_field and not argument.startswith("--"):
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


def _refuse_unknown(sub: Parser, command: str, argv: Sequence[str]) -> None:
    """Rejects flags that a command does not have, before argparse complains about those that are missing."""
    known = list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z-]+(?![a-z.-])", sub.format_help())))
    for argument in argv:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in ("--", *known) and not flag.startswith("--config."):
            section, dot, field = flag.partition(".")
            if dot and difflib.get_close_matches(section, ["--config"]):
                raise Usage(f"scoresde {command} has no {argument}; did you mean --config.{field}?")
            instead = INSTEAD.get((command, flag)) or near(flag, known)
            raise Usage(f"scoresde {command} has no {argument}; {instead}")


def _overrides(parsed: argparse.Namespace) -> list[str]:
    """The flags that set fields of the config, as overrides."""
    section = {"sample": "sampling", "restore": "sampling", "likelihood": "likelihood", "benchmark": "sampling"}.get(
        parsed.command
    )
    names = ("grid",) if parsed.command == "benchmark" else (*_METHOD, *_SAMPLING)
    section, names = ("training", ("max_minutes",)) if parsed.command == "train" else (section, names)
    given = {name: value for name in names if section and (value := vars(parsed).get(name)) is not None}
    if isinstance(given.get("condition"), list):
        given["condition"] = " ".join(given["condition"])
    return [f"--config.{section}.{name}={value}" for name, value in given.items()]
