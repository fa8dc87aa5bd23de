"""What people type, turned into canonical names."""

from __future__ import annotations

import logging
import re

from . import diffusers_labels, labels

log = logging.getLogger("solvers")
_told: set[str] = set()  # each label is logged once


def normalise(name: str) -> str:
    """A label as a name: lower case, ``++`` as ``pp``, words joined by ``_``, prefixes dropped, ``_a`` spelled out.

    >>> [normalise(n) for n in ("DPM++ 2M", "Euler a", "sample_heun", "k_lms", "HeunDiscreteScheduler")]
    ['dpmpp_2m', 'euler_ancestral', 'heun', 'lms', 'heundiscretescheduler']
    """
    text = re.sub(r"[\s\-.]+", "_", name.strip().replace("++", "pp").lower())
    text = re.sub(r"^(sample_|k_)", "", text)
    text = re.sub(r"_gpu$", "", text)
    return re.sub(r"_a$", "_ancestral", text)


_CLASSES = {normalise(name): name for name in diffusers_labels.CLASSES}


def meaning(kind: str, name: str) -> str | None:
    """The spec that a normalised label of another program stands for.

    >>> meaning("solver", "dpmpp_2m_sde_heun"), meaning("grid", "normal"), meaning("solver", "mine")
    ('dpmpp_2m_sde(variant=heun)', 'uniform(end=zero)', None)
    """
    if kind == "solver":
        return diffusers_labels.CLASSES[_CLASSES[name]] if name in _CLASSES else labels.SOLVERS.get(name)
    return labels.GRIDS.get(name) if kind == "grid" else None


def known(kind: str) -> list[str]:
    """The normalised labels that ``meaning`` knows."""
    return [*labels.SOLVERS, *_CLASSES] if kind == "solver" else [*labels.GRIDS] if kind == "grid" else []


def read(label: str) -> tuple[str, str | None]:
    """A label's solver and grid, the solver's part as it was typed or, of diffusers' classes, as a spec.

    A registered solver's name is never taken apart, nor is a label that stands for a solver as a whole.
    """
    from .types import solvers

    head, paren, tail = label.partition("(")
    if ":" in head or solvers.knows(head):
        if paren and normalise(head) in _CLASSES and tail.rstrip().endswith(")"):
            return diffusers_labels.read(_CLASSES[normalise(head)], tail.rstrip()[:-1])
        return label, None
    words = re.findall(r"[^\s_\-]+", head)
    for count in range(min(3, len(words) - 1), 0, -1):  # the longest first: ddim_uniform before uniform
        suffix = "_".join(words[-count:]).lower()
        if suffix in labels.SUFFIXES:
            rest = re.sub(rf"([\s_\-]+[^\s_\-]+){{{count}}}[\s_\-]*$", "", head)
            return rest + paren + tail, labels.SUFFIXES[suffix]
    return label, None


def resolve(label: str) -> tuple[str, str | None]:
    """The spec of a solver and the spec of the grid that a label names, or None; logged where they are spelled anew.

    It reads A1111's and ComfyUI's labels, k-diffusion's functions, diffusers' classes with their flags, and the names
    of the solvers' own code.

    >>> resolve("DPM++ 2M SDE Karras"), resolve("k_dpmpp_2m_sde_heun_exp")
    (('dpmpp_2m_sde', 'karras'), ('dpmpp_2m_sde(variant=heun)', 'logsnr(end=zero)'))
    >>> resolve("DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True)")
    ('dpmpp_3m(variant=released, start=lower)', 'karras')

    Raises:
        InputError: no such solver; the message holds the nearest matches.
    """
    from .grids import grids
    from .types import solvers

    typed, named = read(label)
    spec, grid = str(solvers.read(typed)), None if named is None else str(grids.read(named))
    if grid is not None or spec != label:
        if label not in _told:
            log.info("%s -> solver=%s%s", label, spec, f" grid={grid}" if grid else "")
        _told.add(label)
    return spec, grid
