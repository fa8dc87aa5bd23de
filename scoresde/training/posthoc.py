"""Power averages of any width after the training, from snapshots of a few (Karras et al. 2024, arXiv:2312.02696).

A power average of the weights theta at time t is the integral of its profile p(tau) = (g + 1) tau^g / t^(g + 1) times
theta(tau), see ``averages.Power``. Averages that were stored at several times therefore give, with coefficients c_i of
sum 1, the average with the profile sum_i c_i p_i. The coefficients minimise the distance of that profile to the wanted
one, |p - sum_i c_i p_i|, in closed form from the inner products <p_i, p_j> (section 3.2, appendix C.5).

The distance divided by |p| is the ``error``. It bounds what the weights miss: with r = p - sum_i c_i p_i, whose
integral is 0, the reconstruction differs from the average by the integral of r (theta - m) for any m, which is at most
|r| (integral of |theta - m|^2)^(1/2).

The paper states no number but an order: with two averages stored at each of n times, the mean squared error of the
profile, which is the square of ``error`` times a constant, falls like 1 / n^4 (figure 4). With its pair of standard
deviations, 0.05 and 0.1, at 80 to 256 times it calls reconstructions from 0.015 to 0.25 nearly perfect (appendix C.5).
Here this pair has these errors, whose squares fall in this way, but for widths above 0.213, where gamma is below 3/2
and the profile starts too steeply, like 1 / n^(2 gamma + 1):

| times | from 0.03 to 0.2 | from 0.015 to 0.25 |
| --- | --- | --- |
| 64 | at most 0.003 | at most 0.024 |
| 80 | at most 0.0019 | at most 0.016 |
| 256 | at most 0.00019 | at most 0.0027 |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers import InputError
from solvers.registry.outside import Origin

from . import step_folders
from .averages import NARROWEST, WIDEST, Power, decays, gamma_of
from .checkpoint import AverageState, Checkpoint, averages_as_facts, averages_in, has_averages

LARGEST_ERROR = 0.1  # reconstructions with a larger error are refused
_WHAT = "a snapshot of averages"
_EQUAL = 1e-9  # relative difference of standard deviations that count as equal
_RANK = 1e-12  # eigenvalues of the inner products that count as zero, relative to the largest


class Chosen(NamedTuple):
    """Which average the weights of a loaded run are.

    Attributes:
        spec: the average.
        stored: how many stored averages it was reconstructed from; 1 if it was stored itself.
        error: the distance of its profile to the wanted one, relative to the length of the latter.
    """

    spec: str
    stored: int = 1
    error: float = 0.0

    def __str__(self) -> str:
        if self.stored == 1:
            return self.spec
        return f"{self.spec}, reconstructed from {self.stored} stored averages with a profile error of {self.error:.2g}"

    def facts(self) -> dict[str, Any]:
        """The fields as values of JSON."""
        return self._asdict()


class Profile(NamedTuple):
    """The profile of a power average: tau^gamma from 0 to ``time``, the number of updates."""

    time: float
    gamma: float


def save(workdir: Path, step: int, averages: Mapping[str, AverageState]) -> None:
    """Stores the power averages among ``averages`` in the folder ``snapshots`` of a run.

    The caller holds the run's folder, see ``result_files.exclusive``.

    Raises:
        InputError, OSError: see ``step_folders.write``.
    """
    powers = {spec: average for spec, average in averages.items() if _power(spec) is not None}
    parts = {f"average_{k}": average.tensors for k, average in enumerate(powers.values())}
    content = step_folders.StepFolder(step, parts, {"averages": averages_as_facts(powers)})
    step_folders.write(_parent(workdir), content)


def remove_after(workdir: Path, step: int) -> None:
    """Removes the snapshots after ``step``, which are of lost work, and what killed processes left.

    The caller holds the run's folder.
    """
    step_folders.remove_unfinished(_parent(workdir))
    for when, folder in step_folders.listed(_parent(workdir)).items():
        if when > step:
            step_folders.remove(folder)


def average_of(workdir: Path, checkpoint: Checkpoint, std: float | None) -> tuple[Mapping[str, Tensor], Chosen]:
    """The averaged weights of a run at its last checkpoint, and which average they are.

    Args:
        workdir: the run's folder.
        checkpoint: its last checkpoint.
        std: the relative standard deviation of a power average, which is reconstructed if it is not stored; None for
            the first average.

    Raises:
        InputError: there is no such average, the stored averages are too few or too different from it, or a snapshot is
            damaged or of a different network.
    """
    if std is None:
        spec, first = next(iter(checkpoint.averages.items()))
        return first.tensors, Chosen(spec)
    if not NARROWEST <= std < WIDEST:
        raise InputError(f"sampling.ema is a standard deviation in [{NARROWEST:g}, {WIDEST:.4g}), got {std}")
    powers = _powers(checkpoint.averages)
    for spec, (profile, average) in powers.items():
        if math.isclose(profile.gamma, gamma_of(std), rel_tol=_EQUAL):
            return average.tensors, Chosen(spec)
    if not powers:
        raise InputError(
            f"sampling.ema={std:g} needs power averages, and {workdir} has {', '.join(checkpoint.averages)}: train "
            "with --config.training.averages='ema, power(std=0.05), power(std=0.1)' and "
            "--config.training.snapshot_every"
        )
    return _reconstructed(workdir, checkpoint, powers, std)


def _reconstructed(
    workdir: Path, checkpoint: Checkpoint, powers: Mapping[str, tuple[Profile, AverageState]], std: float
) -> tuple[Mapping[str, Tensor], Chosen]:
    own = [profile for profile, _ in powers.values()]
    wanted = Profile(max(profile.time for profile in own), gamma_of(std))
    folders = [folder for step, folder in step_folders.listed(_parent(workdir)).items() if step < checkpoint.step]
    stored = [_profiles_in(folder) for folder in folders]
    profiles = [*own, *(profile for snapshot in stored for profile in snapshot)]
    found, error = coefficients(profiles, wanted)
    if error > LARGEST_ERROR:
        low, high = reachable(profiles, wanted.time)
        raise InputError(
            f"sampling.ema={std:g} would have a profile error of {error:.2g}, more than {LARGEST_ERROR:g}, from the "
            f"{len(profiles)} stored averages of {workdir}; within reach: {low:.2g} to {high:.2g}. A smaller "
            "--config.training.snapshot_every stores more"
        )
    weights = iter(found)
    total = _Sum(next(iter(powers.values()))[1].tensors)
    for _, average in powers.values():
        total.add(next(weights), average.tensors, f"the checkpoint of step {checkpoint.step}")
    for folder in folders:  # one at a time in memory
        for average in averages_in(step_folders.read(folder, _WHAT, has_averages)).values():
            total.add(next(weights), average.tensors, repr(str(folder)))
    return total.tensors(), Chosen(str(Power(std)), len(profiles), error)


def _profiles_in(folder: Path) -> list[Profile]:
    """The profiles of the averages of a snapshot."""
    facts = step_folders.read_state(folder, _WHAT, has_averages).facts["averages"]
    kinds = [_power(fact["spec"]) for fact in facts]
    found = [Profile(fact["updates"], kind.gamma) for fact, kind in zip(facts, kinds, strict=True) if kind]
    if len(found) < len(facts) or not all(profile.time for profile in found):
        raise InputError(
            f"{str(folder / step_folders.STATE)!r} is damaged: it names averages that are no power averages"
        )
    return found


class _Sum:
    """A weighted sum of state dictionaries in float64; what is no float is that of the first."""

    def __init__(self, first: Mapping[str, Tensor]) -> None:
        self._first = first
        self._totals = {
            name: torch.zeros(value.shape, dtype=_wide(value.dtype))
            for name, value in first.items()
            if value.is_floating_point() or value.is_complex()
        }

    def add(self, weight: float, tensors: Mapping[str, Tensor], where: str) -> None:
        """Adds a state dictionary.

        Raises:
            InputError: it is of a different network.
        """
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (self._first, tensors)]
        if shapes[0] != shapes[1]:
            name = next(n for n in sorted({*shapes[0], *shapes[1]}) if shapes[0].get(n) != shapes[1].get(n))
            raise InputError(f"{where} is of a different network than the last checkpoint: {name} is not the same")
        for name, total in self._totals.items():
            total.add_(tensors[name].to(total.dtype), alpha=weight)

    def tensors(self) -> dict[str, Tensor]:
        """The sum, in the dtypes of the first state dictionary."""
        return {name: self._totals[name].to(v.dtype) if name in self._totals else v for name, v in self._first.items()}


def coefficients(profiles: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The coefficients c_i of sum 1 that minimise |p - sum_i c_i p_i|, and this distance divided by |p|.

    They solve A c = b + mu 1 for A_ij = <p_i, p_j> and b_i = <p_i, p>, with the mu for which their sum is 1.

    >>> coefficients([Profile(100, 7.0), Profile(100, 17.0)], Profile(100, 7.0))
    ([1.0, 0.0], 0.0)
    """
    time = torch.tensor([profile.time for profile in [*profiles, wanted]], dtype=torch.float64)
    gamma = torch.tensor([profile.gamma for profile in [*profiles, wanted]], dtype=torch.float64)
    products = inner(time[:, None], gamma[:, None], time, gamma)
    lengths = products.diagonal().sqrt()
    products = products / lengths / lengths[:, None]  # of profiles of length 1, for accuracy
    a, b = products[:-1, :-1], products[:-1, -1]
    values, vectors = torch.linalg.eigh(a)
    kept = values > _RANK * values[-1]
    inverse = vectors[:, kept] / values[kept] @ vectors[:, kept].T
    sums = lengths[-1] / lengths[:-1]  # of coefficients of such profiles
    mu = (1 - sums @ inverse @ b) / (sums @ inverse @ sums)
    found = inverse @ (b + mu * sums)
    error = float((1 - 2 * found @ b + found @ a @ found).clamp_min(0).sqrt())
    # rounding leaves 1e-8 where the wanted profile is one of those that are there
    exact = [k for k, profile in enumerate(profiles) if profile == wanted]
    if exact:
        return [float(k == exact[0]) for k in range(len(profiles))], 0.0
    return (found * sums).tolist(), error


def inner(time: Tensor, gamma: Tensor, other_time: Tensor, other_gamma: Tensor) -> Tensor:
    """<p, q> of the profiles of power averages; the arguments are float64 tensors that broadcast.

    (g + 1) (h + 1) / (g + h + 1) (t / s)^h / s for t <= s (Karras et al. 2024, eq. 151), by the powers of tau from 0
    to the earlier time.
    """
    first = time <= other_time
    late = torch.where(first, other_time, time)
    ratio = torch.where(first, time, other_time) / late
    power = torch.where(first, other_gamma, gamma)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * ratio**power / late


def reachable(profiles: Sequence[Profile], time: float) -> tuple[float, float]:
    """The least and the largest standard deviation with an accepted error at a time, of 80 on a logarithmic scale."""
    tried = torch.logspace(-3, math.log10(WIDEST), 80, dtype=torch.float64)[:-1].tolist()
    fit = [std for std in tried if coefficients(profiles, Profile(time, gamma_of(std)))[1] <= LARGEST_ERROR]
    return min(fit, default=math.nan), max(fit, default=math.nan)


def _powers(averages: Mapping[str, AverageState]) -> dict[str, tuple[Profile, AverageState]]:
    """The power averages that were updated at least once, with their profiles."""
    found = {spec: (kind, average) for spec, average in averages.items() if (kind := _power(spec)) and average.updates}
    return {spec: (Profile(average.updates, kind.gamma), average) for spec, (kind, average) in found.items()}


def _power(spec: str) -> Power | None:
    """The power average that a spec in a file names; None if it names another one."""
    if not spec.startswith("power("):
        return None
    with Origin("a file of averages").limits():
        made = decays.make(spec)
    return made if isinstance(made, Power) else None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float64)


def _parent(workdir: Path) -> Path:
    return workdir / "snapshots"
