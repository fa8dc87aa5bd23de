"""Checks that every posterior method must pass, measured on Gaussian data, whose posteriors are known.

>>> from scoresde.posterior.base import posteriors
>>> [str(verdict) for verdict in check(posteriors.make("jfps"), Effort(50, 25)) if not verdict.passed]
[]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import solvers
from solvers import InputError, generator
from solvers.conformance.verdict import Check, attempted

from ..models.model import as_model
from ..models.targets import Exact, Gaussian, GaussianMixture
from ..operators.base import Operator, measure
from ..operators.linear import Downsample, Inpaint, Matrix
from ..operators.nonlinear import Tanh
from ..paths.base import SDE
from ..paths.standard import VE, VP, RectifiedFlow
from .base import Conditioned, DenoiserPosterior, Draws, Posterior, Task, posteriors

D, M, NOISE = 4, 2, 0.3
ROUNDING = 1e-9  # of an exact prediction, relative to it; measured: below 1e-14
# what 100 steps and a method near its limit may change, in deviations of a sample and relative to its variance
MEAN, VARIANCE = 0.1, 0.2
PATHS: tuple[SDE, ...] = (VP(), VE(), RectifiedFlow())


class Effort(NamedTuple):
    """How much is measured: the draws of each law, and the steps of each draw.

    Few of both take seconds and find only large errors.
    """

    draws: int = 1000
    steps: int = 100


EFFORT = Effort()


class Case(NamedTuple):
    """Gaussian data N(mean, covariance) and a linear operator, with one observation y (m,)."""

    name: str
    mean: Tensor
    covariance: Tensor
    operator: Operator
    y: Tensor

    @property
    def prior(self) -> Gaussian:
        """The law of the data."""
        return Gaussian(self.mean, self.covariance)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def cases(noise: float = NOISE) -> list[Case]:
    """Data of one variance, of a diagonal covariance and of any, under a mask and under a dense matrix."""
    factor, mean = _normal(D, D, seed=1), _normal(D, seed=2)
    covariances = {
        "N(m, 1.5 I)": 1.5 * torch.eye(D, dtype=torch.float64),
        "N(m, diagonal)": torch.linspace(0.3, 2, D, dtype=torch.float64).diag(),
        "N(m, C)": factor @ factor.T / D + 0.2 * torch.eye(D, dtype=torch.float64),
    }
    operators = {"a mask": Inpaint(torch.arange(D) % 2 == 0, sigma=noise), "a matrix": _matrix(noise)}
    x = _normal(D, seed=3)
    return [
        Case(f"{law} under {kind}", mean, c, a, a((mean + torch.linalg.cholesky(c) @ x)[None])[0] + noise * 0.5)
        for (law, c), (kind, a) in itertools.product(covariances.items(), operators.items())
    ]


def _matrix(noise: float) -> Matrix:
    return Matrix(_normal(M, D, seed=4), sigma=noise)


def verdicts(method: Posterior, effort: Effort = EFFORT) -> Iterator[Check]:
    """Runs every check of a method, and yields each result as soon as it is known."""
    for verify in CHECKS:
        yield from attempted(verify, method, effort)


def check(method: Posterior, effort: Effort = EFFORT) -> list[Check]:
    """The results of every check of a method, see ``verdicts``."""
    return list(verdicts(method, effort))


def _drawn(
    method: Posterior,
    prior: Gaussian,
    operator: Operator,
    y: Tensor,
    seeds: Sequence[int],
    steps: int,
    path: SDE = PATHS[0],
) -> Draws:
    """A draw for each row of y (B, *m), with the method's own solver."""
    nodes = solvers.grid("logsnr(end=zero)", path, steps)
    solver = solvers.make(method.solver)
    method.check(operator, tuple(prior.shape))
    with torch.no_grad():
        task = Task(as_model(prior.denoiser(path)), operator, y, tuple(prior.shape), solver, nodes, tuple(seeds))
        return method.draw(task)


def _compared(x: Tensor, mean: Tensor, covariance: Tensor, effort: Effort, samples: int = 1) -> tuple[bool, str]:
    """Whether draws x (n, d) have a mean and a covariance, up to five standard errors and the error of their steps.

    Args:
        samples: 2 if the mean and the covariance are those of as many draws.
    """
    if not bool(torch.isfinite(x).all()):
        return False, "draws are not finite"
    # the covariance of methods that reproduce y is singular, but for what is added here
    eye = torch.eye(len(mean), dtype=mean.dtype)
    inverse = torch.linalg.inv(torch.linalg.cholesky(covariance + 1e-4 * covariance.diagonal().mean() * eye))
    z = (x - mean) @ inverse.T
    off = float(z.mean(0).abs().max())
    wide = float((torch.cov(z.T) - inverse @ covariance @ inverse.T).abs().max())
    noise, bias = math.sqrt(samples / effort.draws), 100 / effort.steps
    passed = off < MEAN * bias + 5 * noise and wide < VARIANCE * bias + 5 * math.sqrt(2) * noise
    return passed, f"the mean is off by {off:.2f} deviations, the covariance by {wide:.2f} (noise {noise:.2f})"


def check_spec(method: Posterior, effort: Effort) -> Iterator[Check]:
    """The method's spec makes an equal method with the same hash."""
    same = posteriors.make(str(method)) == method and hash(posteriors.make(str(method))) == hash(method)
    yield Check("spec round trip", same, str(method), "every field needs a type that a spec can hold, and no state")


def check_exactness(method: Posterior, effort: Effort) -> Iterator[Check]:
    """Where the method states that it is exact, its predictions or draws are those of the exact posterior."""
    count = 0
    for case in cases():
        exact = method.exact_version(case.covariance, case.operator)
        if exact is None:
            continue
        count += 1
        truth = case.prior.posterior(case.operator, case.y)
        if isinstance(exact, DenoiserPosterior):
            error = max(_prediction_error(exact, case, truth.denoiser(path), path) for path in PATHS)
            passed, detail = error < ROUNDING, f"x0 of {exact} has the relative error {error:.1e}"
        else:
            y, seeds = case.y.expand(effort.draws, -1), range(effort.draws)
            x = _drawn(exact, case.prior, case.operator, y, seeds, 2 * effort.steps).x
            passed, detail = _compared(x, truth.means[0], _covariance(truth), effort)
        yield Check(f"exact for {case.name}", passed, detail, "the formula; or exact_version, which states too much")
    if bool(method.exact_for) != bool(count):
        stated = f"exact_for says {method.exact_for!r}" if method.exact_for else "exact_for is empty"
        yield Check("exact_for", False, f"{stated}, and exact_version returns {count} methods for 6 cases", "both")


def _prediction_error(method: DenoiserPosterior, case: Case, exact: Exact, path: SDE) -> float:
    """The largest error of x0 at five states of four noise levels, relative to the exact one."""
    worst, truth = 0.0, as_model(exact)
    made = Conditioned(case.prior.denoiser(path), case.operator, case.y, method)
    for lam in (3.0, 1.0, 0.0, -2.0):
        node = path.node_of_lam(lam)
        x = math.hypot(node.alpha, node.sigma) * _normal(5, D, seed=5)
        wanted = truth.predict(x, node).x0
        gap = (made.predict(x, node).x0 - wanted).norm(dim=1) / wanted.norm(dim=1)
        worst = max(worst, float(gap.max()))
    return worst


def check_steps(method: Posterior, effort: Effort) -> Iterator[Check]:
    """Twice as many steps give draws of the same law: what is done in a step must be a part of a limit of many."""
    # less noise makes some methods stiff, which few steps do not solve
    case, steps = cases(noise=1.0)[-1], effort.steps
    y, seeds = case.y.expand(effort.draws, -1), range(effort.draws)
    few, many = (_drawn(method, case.prior, case.operator, y, seeds, n).x for n in (steps, 2 * steps))
    passed, detail = _compared(few, many.mean(0), torch.cov(many.T), effort, 2)
    detail = f"between {steps} and {2 * steps} steps {detail}"
    yield Check("independence of the steps", passed, detail, "a change per step must grow with the step's length")


def check_prior(method: Posterior, effort: Effort) -> Iterator[Check]:
    """An observation of almost infinite noise leaves the prior."""
    if not method.keeps_prior or method.noise == "ignored":
        return
    operator, case = _matrix(1e6), cases()[-1]
    for prior in (Gaussian(torch.zeros(D, dtype=torch.float64), 1.0), case.prior):
        mean, covariance = prior.means[0], _covariance(prior)
        y = measure(operator, mean.expand(effort.draws, -1), 1)
        x = _drawn(method, prior, operator, y, range(effort.draws), effort.steps).x
        passed, detail = _compared(x, mean, covariance, effort)
        hint = "the noise of a step, which is the solver's; if y is used as without noise, state keeps_prior = False"
        name = f"the prior {'N(m, C)' if prior.vectors is not None else 'N(0, I)'} at infinite noise"
        yield Check(name, passed, detail, hint)


def _covariance(law: GaussianMixture) -> Tensor:
    """The covariance (d, d) of a mixture of one Gaussian."""
    if law.vectors is None:
        return law.values[0].diag()
    return law.vectors[0] @ law.values[0].diag() @ law.vectors[0].T


def check_batch(method: Posterior, effort: Effort) -> Iterator[Check]:
    """A draw is the same, to the last bit, alone and in any batch; it depends on its seed and its observation."""
    case, seeds = cases()[-1], [5, 0, 9, 3, 12]
    x = case.mean + _normal(5, D, seed=6) @ torch.linalg.cholesky(case.covariance).T
    for path, dtype in itertools.product(PATHS, (torch.float32, torch.float64)):
        y = measure(case.operator, x, 2).to(dtype)

        def run(rows: list[int], seeds: Sequence[int] = seeds, y: Tensor = y, path: SDE = path) -> Draws:
            own = [seeds[i] for i in rows]
            return _drawn(method, case.prior, case.operator, y[rows], own, 14, path)

        whole = run([0, 1, 2, 3, 4])
        gap = max(float((run(rows).x - whole.x[rows]).abs().max()) for rows in ([4, 1], [3]))
        other = run([0, 1, 2, 3, 4], [5, 0, 8, 3, 12]).x
        owned = torch.equal(other[[0, 1, 3, 4]], whole.x[[0, 1, 3, 4]]) and not torch.equal(other[2], whole.x[2])
        kinds = whole.x.dtype == dtype and whole.x.shape == x.shape and whole.nfe.shape == (5,)
        detail = f"largest difference {gap:.1e}" if owned else "a draw does not depend on its own seed alone"
        yield Check(
            f"alone and in a batch on {path} in {str(dtype).removeprefix('torch.')}",
            gap == 0 and owned and kinds,
            detail if kinds else f"x is {tuple(whole.x.shape)}, {whole.x.dtype}, nfe {tuple(whole.nfe.shape)}",
            "a norm, a sum or a decision over the batch, or noise that is not from task.noise()",
        )


def check_operators(method: Posterior, effort: Effort) -> Iterator[Check]:
    """Draws are finite for observations without noise, of pictures, and of operators that are not linear.

    What a method cannot use, its ``check`` refuses by an ``InputError``.
    """
    picture, vector = Gaussian(torch.zeros(1, 4, 4), 1.0), cases()[-1].prior
    for name, prior, operator, taken in (
        ("observations without noise", vector, _matrix(0.0), method.noise != "needed"),
        ("pictures", picture, Downsample(2, sigma=NOISE), True),
        ("an operator that is not linear", vector, Tanh(2, sigma=NOISE), method.nonlinear),
    ):
        x = prior.sample(3, generator(7))
        try:
            found = _drawn(method, prior, operator, measure(operator, x, 3), range(3), 14)
        except InputError as error:
            passed, detail = "\n" not in str(error) and name != "pictures", f"refused: {error}"
        else:
            passed = found.x.shape == x.shape and bool(torch.isfinite(found.x).all()) and taken
            detail = "finite" if passed else "not finite" if taken else f"{operator} is taken, against the declaration"
        yield Check(name, passed, detail, "the declarations noise and nonlinear; what is divided by 0")


CHECKS = (check_spec, check_exactness, check_steps, check_prior, check_batch, check_operators)
