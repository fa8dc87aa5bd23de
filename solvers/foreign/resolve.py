"""Reads other programs' labels, which may name a solver and a grid in one; adds the labels to the registries."""

from __future__ import annotations

import logging
import re

from ..errors import InputError, clipped
from ..registry import spec as grammar
from ..registry.normalise import is_title, normalise
from ..registry.registry import LONGEST_LABEL
from ..time_grids.base import grids
from ..types.solver import solvers
from . import diffusers, names

log = logging.getLogger("solvers")
_told: set[str] = set()  # each label is logged once
_TITLES = {normalise(name): grid for name, grid in names.TITLES.items()}
_CLASSES = {normalise(name): name for name in diffusers.CLASSES}


def read(label: str) -> tuple[str, str | None]:
    """Splits a label into its solver and its grid (None if it names none).

    The solver's part is returned as it was typed, or as a spec for diffusers' classes. A registered solver's name is
    never split, nor is a label that as a whole stands for a solver.

    Raises:
        InputError: the label names a solver that needs guidance.
    """
    grammar.refuse_long(label)
    label = re.sub(r"(?<!\s)\s*+\((\d[MSms])\)", r" \1", label)  # DPM-Solver++(2M)
    head, paren, tail = label.partition("(")
    if ":" in head or solvers.knows(head):
        if paren and normalise(head) in _CLASSES and tail.rstrip().endswith(")"):
            return diffusers.read(_CLASSES[normalise(head)], tail.rstrip()[:-1])
        return label, None
    if len(head) > LONGEST_LABEL:
        raise InputError(f"no solver {clipped(head, 80)!r}: a name has at most {LONGEST_LABEL} characters")
    if re.search(names.GUIDED, normalise(head)):
        raise InputError(f"the solver {head!r} needs classifier-free guidance, which a model has, not a solver")
    words = re.findall(r"[^\s_\-]+", head)
    for count in range(min(4, len(words) - 1), 0, -1):  # the longest first: ddim_uniform before uniform
        suffix = "_".join(words[-count:]).lower()
        if suffix in names.SUFFIXES:
            rest = re.sub(rf"([\s_\-]+[^\s_\-]+){{{count}}}[\s_\-]*$", "", head)
            titles = _TITLES if is_title(head[len(rest) :]) else {}
            return rest + paren + tail, titles.get(suffix, names.SUFFIXES[suffix])
    return label, None


def _solver_alone(label: str) -> str:
    """The solver's part of a label that names no grid.

    Raises:
        InputError: the label names a grid.
    """
    typed, grid = read(label)
    if grid is not None:
        raise InputError(f"{label!r} is a solver and a grid: give {solvers.read(typed)} and {grid}")
    return typed


solvers.add_labels(names.SOLVERS | diffusers.CLASSES, read=_solver_alone)
grids.add_labels(names.GRIDS, titles=names.TITLES)


def resolve(label: str, space: str = "gaussian") -> tuple[str, str | None]:
    """The specs of the solver and of the grid (None if none) that a label names; logs them if they differ from it.

    Names that the spaces of states share, such as "euler", mean the solver of ``space``.

    It reads A1111's and ComfyUI's labels, k-diffusion's functions, diffusers' classes with their flags, and the names
    in the solvers' published code.

    >>> resolve("DPM++ 2M SDE Karras"), resolve("k_dpmpp_2m_sde_heun_exp")
    (('dpmpp_2m_sde', 'karras'), ('dpmpp_2m_sde(variant=heun)', 'logsnr(end=zero)'))
    >>> resolve("DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True)")
    ('dpmpp_3m(variant=released, start=lower)', 'karras')
    >>> resolve("euler"), resolve("euler", "discrete")
    (('euler', None), ('tau_euler', None))

    Raises:
        InputError: no such solver; the message contains the nearest matches.
    """
    typed, named = read(solvers.in_space(label, space))
    spec, grid = str(solvers.read(typed)), None if named is None else str(grids.read(named))
    if grid is not None or spec != label:
        if label not in _told:
            log.info("%s -> solver=%s%s", label, spec, f" grid={grid}" if grid else "")
        _told.add(label)
    return spec, grid
