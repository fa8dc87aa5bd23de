"""The parser of the command line: scoresde demo | train | sample | likelihood | benchmark | solvers | check-solver.

Every command that takes a config also takes ``--config.section.field=value``. Invalid input ends with a message of one
line and exit status 2, Ctrl-C with exit status 130.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from solvers import InputError

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _shown(read: Callable[[str], T]) -> Callable[[str], T]:
    """A reader whose error messages argparse shows unchanged; it would replace those of other ValueErrors."""

    def reader(text: str) -> T:
        try:
            return read(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader


def seeds_of(text: str) -> list[int]:
    """Reads seeds: single numbers and ranges, separated by commas.

    >>> seeds_of("0-3,7")
    [0, 1, 2, 3, 7]

    Raises:
        InputError: any other text, or a range that runs backwards.
    """
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and int(high) < int(low)):
            raise InputError(f"cannot read the seeds {text!r}; expected 0-63 or 0,5,9")
        if int(high or low) - int(low) >= 10_000_000 or int(high or low) >= 2**63:
            raise InputError(f"the seeds {text!r} are too many or too large")
        seeds += range(int(low), int(high or low) + 1)
    return seeds


def counts_of(text: str) -> list[int]:
    """Reads positive integers, separated by commas.

    Raises:
        InputError: any other text.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"cannot read the evaluations {text!r}; expected positive integers such as 5,10,20,50")
    return [int(part) for part in parts]


def share_of(text: str) -> tuple[int, int]:
    """Reads k/n: the number of this process, and the number of all processes.

    >>> share_of("2/4")
    (2, 4)

    Raises:
        InputError: any other text.
    """
    which, slash, count = text.partition("/")
    if not (slash and which.isdecimal() and count.isdecimal() and 1 <= int(which) <= int(count)):
        raise InputError(f"cannot read the shards {text!r}; expected k/n with k from 1 to n, such as 2/4")
    return int(which), int(count)


def specs_of(text: str) -> list[str]:
    """Reads specs, separated by commas outside brackets.

    >>> specs_of("ddim(eta=1), pc(predictor=ddpm, corrector_steps=2), heun")
    ['ddim(eta=1)', 'pc(predictor=ddpm, corrector_steps=2)', 'heun']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise InputError("no solvers given; see scoresde solvers")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="scoresde", description="Score-based diffusion models with pluggable solvers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        note = (
            None if name in ("solvers", "check-solver") else "--config.SECTION.FIELD=VALUE sets a field of the config."
        )
        return commands.add_parser(name, help=text, description=text, epilog=note, allow_abbrev=False)

    def workdir_and_out(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--workdir", type=Path, required=True, help="the run's folder")
        sub.add_argument("--out", type=Path, required=True, help="folder for the results")

    demo = command("demo", "train on real digits, sample, score, and write a report; about a minute, offline")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    demo.add_argument("--config", default="digits_vp", help="a config file, or the name of a config of the library")
    demo.add_argument("--fast", action="store_true", help="fewer training steps: a quick check that everything works")

    train = command("train", "train a model, or resume its training")
    train.add_argument("--config", required=True, help="a config file, or the name of a config of the library")
    train.add_argument("--workdir", type=Path, required=True, help="the run's folder; a run in it is resumed")

    sample = command("sample", "draw samples from a trained model")
    workdir_and_out(sample)
    sample.add_argument("--seeds", type=_shown(seeds_of), default="0-63", help="one sample per seed: 0-63 or 0,5,9")

    likelihood = command("likelihood", "log-likelihood of data under a trained model; resumes if started again")
    likelihood.add_argument("--workdir", type=Path, required=True, help="the run's folder")
    likelihood.add_argument("--out", type=Path, help="folder for the results; by default WORKDIR/likelihood")
    likelihood.add_argument("--split", choices=("train", "test"), default="test", help="which part of the data")
    likelihood.add_argument("--limit", type=int, default=None, help="score only this many samples, from the first")
    likelihood.add_argument("--tolerance", type=float, help="total error, bits/dim or nats; replaces the steps")
    shards = "k/n: score every n-th batch, from the k-th, together with n - 1 other processes on the same --out"
    likelihood.add_argument("--shards", type=_shown(share_of), default="1/1", metavar="K/N", help=shards)

    bench = command("benchmark", "steps versus quality: every solver at every number of evaluations")
    workdir_and_out(bench)
    bench.add_argument("--solvers", type=_shown(specs_of), default="ddim, heun, dpmpp_2m, ddpm", help="names or specs")
    bench.add_argument("--nfe", type=_shown(counts_of), default="5,10,20,50", help="budgets of model evaluations")
    bench.add_argument("--seeds", type=_shown(seeds_of), default="0-511", help="one sample per seed")

    listing = command("solvers", "the table of solvers, one solver's card, or its program on a grid")
    listing.add_argument("name", nargs="?", help="a solver's name")
    listing.add_argument("--space", help="list only the solvers for these states: gaussian or discrete")
    listing.add_argument("--show", action="store_true", help="print the solver's program, and draw it into a PNG file")
    listing.add_argument("--json", metavar="FILE", help="write the solver's program into a file; - prints it")
    listing.add_argument("--steps", type=int, help="the number of steps of the grid")
    listing.add_argument("--grid", help="the grid; by default the one that the name contains, or karras")
    listing.add_argument("--sde", help="the path; by default vp")
    listing.add_argument("--output", help="the model's output: x0 (by default), eps, v, score, velocity or edm")
    listing.add_argument("--out", type=Path, help="the picture's file; by default NAME.png")

    check = command("check-solver", "measure a solver: order, batch invariance, evaluations, dtype, spec")
    check.add_argument("name", help="a spec, or package.module:Class")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that mymodule:Mine is found in the current folder, as with python -m
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        parsed, rest = _parser().parse_known_args(argv)
        strange = [argument for argument in rest if not argument.startswith("--config.")]
        if strange or (rest and parsed.command in ("solvers", "check-solver")):
            raise InputError(f"unknown argument {(strange or rest)[0]!r} (see scoresde {parsed.command} --help)")
        from .commands import COMMANDS  # here, so that --help and errors in the arguments respond at once

        return int(COMMANDS[parsed.command](parsed, rest, shlex.join(["scoresde", *argv])) or 0)
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped{': ' + str(stop) if str(stop) else ''}", file=sys.stderr)
        return 130
