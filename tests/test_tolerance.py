"""Total errors that are asked for: the number of probes and its statistics, gradients, and what it cost."""

import math
import time

import pytest
import torch
from closed_forms import exact, exact_prior, mixture

import scoresde
from scoresde import log_prob
from scoresde.likelihood import tolerance
from scoresde.likelihood.divergence import Exact, Hutchinson, HutchPP, Orthogonal
from scoresde.likelihood.result import LogProb, degrees
from scoresde.models.targets import Gaussian
from solvers import generator, make

VP = scoresde.VP()
MANY, D = 400, 1000


class Normal:
    """Likelihoods whose probes are normal about 0 with given spreads (B,), and whose solver errs by (5 / steps)^2."""

    def __init__(self, spreads, seed):
        self.spreads, self.seed, self.runs = torch.tensor(spreads, dtype=torch.float64), seed, []

    def __call__(self, use):
        _, steps, rule, rows, trial, _ = use
        self.runs.append((rule, trial, (5 / steps) ** 2))
        spreads, m = self.spreads[rows], rule.channels(D)
        g = generator(self.seed, int(trial))  # those of a trial are others
        z = torch.randn(m, len(spreads), generator=g, dtype=torch.float64).T * spreads.unsqueeze(1)
        return LogProb(
            nats=z.mean(1) + (5 / steps) ** 2, stderr=rule.stderr(z, D), nfe=steps, latent=torch.zeros(1, 1), budget={},
            solver="", grid="", divergence=str(rule), seconds=0.0, freedom=degrees(m, spreads),
            nfe_per_sample=torch.full((len(spreads),), steps),
        )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("spreads", [[1.0], pytest.param([0.5, 1.0, 1.5, 3.0], marks=pytest.mark.slow)])
def test_standard_errors_and_totals_over_repetitions(spreads):
    counts, errors, stderrs, covered = [], [], [], []
    for seed in range(MANY):
        likelihoods = Normal(spreads, seed)
        found = tolerance.meet(likelihoods, make("heun"), Hutchinson(2), 0.5, len(spreads), D)
        rule, trial, wrong = likelihoods.runs[-1]
        assert not trial
        assert wrong <= float(found.solver_error.max()) <= 0.125
        low, high = found.interval()
        covered.append((low <= wrong) & (wrong <= high))
        counts.append(rule.probes)
        errors.append(found.nats)
        stderrs.append(found.stderr)
    errors, stderrs, covered = torch.stack(errors), torch.stack(stderrs), torch.stack(covered).double()
    assert (errors.abs() <= 0.5).double().mean() >= 0.95
    # of every sample on its own; four deviations of a share of 0.95 in 400 are 0.044
    assert (abs(covered.mean(0) - 0.95) < 0.03).all(), covered.mean(0)
    # unbiased: in units of the known variance the announced ones have the mean 1
    told = stderrs.square() * torch.tensor(counts).unsqueeze(1) / torch.tensor(spreads).square()
    assert float(told.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 7 / MANY))
    if spreads == [1.0]:  # Stein's number, (q s / a)^2, and no more than the step of its search beyond it
        wanted = (2.3646 / 0.375) ** 2
        assert wanted < sum(counts) / MANY < 1.15 * wanted


def test_standard_errors_of_a_model():
    """One point of a normal law in 48 dimensions that probes see as off its axes, 400 times over."""
    a = torch.randn(48, 48, generator=generator(1), dtype=torch.float64) / 48**0.5
    target = Gaussian(torch.zeros(48, dtype=torch.float64), 0.2 * a @ a.T + 0.05 * torch.eye(48))
    x = target.sample(1, generator(2)).expand(MANY, -1)
    prior = exact_prior(target, VP)
    found = log_prob(target.denoiser(VP), x, "dpmpp_3m", tolerance=4.0, prior=prior)
    assert found.divergence.startswith("hutchinson(probes=")
    assert int(found.divergence[18:-1]) > 8
    truth = exact(target, VP, x)
    assert float(((found.nats - truth).abs() <= 4.0).double().mean()) >= 0.95
    # the solver's error is common to all, and beside the interval; the mean over all has a twentieth of one's error
    low, high = found.interval()
    mean = found.nats.mean()
    assert abs(float(mean - truth[0])) < float(found.solver_error.max()) + 4 * float(found.nats.std()) / MANY**0.5
    assert 0.92 <= float(((low < mean) & (mean < high)).double().mean()) <= 0.98


@pytest.mark.parametrize(
    ("given", "d", "trial"),
    [
        (Hutchinson(4), 100, Hutchinson(8)),
        (Hutchinson(12), 100, Hutchinson(12)),
        (Hutchinson(1, "gaussian"), 100, Hutchinson(8, "gaussian")),
        (Hutchinson(4), 8, Exact()),
        (Orthogonal(4), 4, Orthogonal(4)),
        (Orthogonal(4), 100, Hutchinson(8)),
        (HutchPP(8), 100, HutchPP(8)),
    ],
)
def test_what_a_trial_takes(given, d, trial):
    assert tolerance.pilot(given, d) == trial


def test_more_probes_by_hand():
    ones = torch.ones(3, dtype=torch.float64)
    assert tolerance.more(Hutchinson(8), ones, 2.3647, 100) == Hutchinson(8)  # Student's law with 7 degrees
    # a quarter of the error takes sixteen times the probes, found in steps of a sixteenth
    assert 128 <= tolerance.more(Hutchinson(8), ones, 2.3646 / 4, 1000).probes <= 136
    assert tolerance.more(Hutchinson(8), ones, 2.3646 / 4, 128) == Exact()
    assert tolerance.more(HutchPP(8), ones, 1.0, 1000) is None
    assert tolerance.more(Hutchinson(8), 0 * ones, 1e-9, 1000) == Hutchinson(8)
    # of twenty samples one may err by more
    few = torch.tensor([0.01] * 29 + [9.0])
    assert tolerance.more(Hutchinson(8), few, 0.5, 1000) == Hutchinson(8)


@pytest.mark.parametrize(("d", "solver", "asked"), [(2, "heun", 0.2), (16, "dpmpp_3m", 0.5), (16, "tsit5", 2.0)])
def test_the_total_error_is_met_in_the_samples(d, solver, asked):
    target = mixture(d)
    x, prior = target.sample(40, generator(3)), exact_prior(target, VP)
    found = log_prob(target.denoiser(VP), x, solver, tolerance=asked, prior=prior)
    assert float(((found.nats - exact(target, VP, x)).abs() <= asked).double().mean()) >= 0.95


def test_gradients_of_a_value_within_a_tolerance():
    """The slope of log p at the data is the score, known in closed form."""
    target, node = mixture(2), VP(VP.t_min)
    x = target.sample(3, generator(4)).requires_grad_()
    options = {"prior": exact_prior(target, VP), "tolerance": 5e-3}
    found = log_prob(target.denoiser(VP), x, "dpmpp_3m", differentiable=True, **options)
    (slope,) = torch.autograd.grad(found.nats.sum(), x)
    (score,) = torch.autograd.grad(target.log_prob(node.alpha * x, node).sum(), x)
    assert float((slope - score).norm() / score.norm()) < 1e-2
    plain = log_prob(target.denoiser(VP), x.detach(), "dpmpp_3m", **options)
    assert torch.allclose(plain.nats, found.nats.detach(), atol=1e-12)
    assert found.nfe > plain.nfe  # once more, with the graph
    assert not found.solver_error.requires_grad


def test_its_seconds_are_those_of_all_trials():
    """By a clock that a model moves on by a second whenever it is asked."""
    target, now, real = mixture(2), [0.0], time.perf_counter

    class Slow:
        sde = VP

        def predict(self, x, node, **conditions):
            now[0] += 1
            return target.predict(x, node)

    patch = pytest.MonkeyPatch()
    patch.setattr(time, "perf_counter", lambda: now[0])
    try:
        found = log_prob(Slow(), target.sample(10, generator(8)), "heun", tolerance=1.0)
    finally:
        patch.undo()
    assert time.perf_counter is real
    assert found.seconds == now[0] > found.nfe / 2


def test_a_tolerance_that_no_sum_of_float64_meets_is_refused():
    with pytest.raises(scoresde.InputError, match="tolerance must be at least 1e-12, got 1e-300"):
        scoresde.log_prob(scoresde.targets.Gaussian(torch.zeros(2)).denoiser("vp"), torch.zeros(3, 2), tolerance=1e-300)
