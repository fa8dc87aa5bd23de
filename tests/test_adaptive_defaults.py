"""Adaptive solvers at their defaults: the mean and deviation of Gaussian data, on every kind of path."""

import dataclasses
import math

import pytest
import torch

import scoresde
import solvers
from scoresde.models.targets import Gaussian
from solvers import Node, solve
from solvers.adaptive.base import coarse

PATHS = ("vp", "ve", "sub_vp", "edm", "flow", "cosine")
# the default target, data far from the origin and narrow, and data wider than the prior of VP
DATA = [(0.3, 0.5), (2.0, 0.1), (-5.0, 3.0)]


def quantiles(count):
    """Numbers whose mean is 0 and whose deviation is 1 exactly, so that no scatter of samples is left."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)
    return z / z.std(unbiased=False)


def errors(spec, path, mean, deviation, z, noise=None):
    """The errors of the mean and of the deviation of samples that begin at the quantiles z, over the deviation."""
    target = Gaussian(torch.full(z.shape[1:], mean, dtype=torch.float64), deviation**2)
    denoiser = target.denoiser(scoresde.make_sde(path))
    plan = scoresde.plan(denoiser, spec)
    ends = [(n.alpha * mean, math.hypot(n.alpha * deviation, n.sigma)) for n in (plan.nodes[0], plan.nodes[-1])]
    (first, spread), (last, wanted) = ends
    x = solve(plan.solver, denoiser, first + spread * z, plan.nodes, noise).x
    return abs(float(x.mean()) - last) / wanted, abs(float(x.std(unbiased=False)) / wanted - 1)


@pytest.mark.parametrize("spec", ["dpm_adaptive", "dpm_adaptive(order=2)", "rk45", "rk23", "tsit5", "adams_adaptive"])
@pytest.mark.parametrize("path", PATHS)
def test_the_defaults_find_the_deviation_of_gaussian_data(spec, path):
    # 3 % is what a histogram shows; largest found: dpm_adaptive 1.2 %, its order 2 1.8 %, the others 0.2 %
    for mean, deviation in DATA:
        assert max(errors(spec, path, mean, deviation, quantiles(7).view(-1, 1))) < 0.03, (mean, deviation)


@pytest.mark.parametrize(
    "spec",
    ["dopri5", "scipy", *(pytest.param(s, marks=pytest.mark.slow) for s in ("torchdiffeq", "scipy(method=BDF)"))],
)
@pytest.mark.parametrize("path", PATHS)
def test_other_libraries_find_it_too(spec, path):
    # largest found: 0.2 %; one sample of seven numbers, because each sample is solved alone
    for mean, deviation in DATA:
        assert max(errors(spec, path, mean, deviation, quantiles(7).view(1, -1))) < 0.03, (mean, deviation)


@pytest.mark.parametrize(
    "path", [path if path in ("vp", "flow") else pytest.param(path, marks=pytest.mark.slow) for path in PATHS]
)
def test_gotta_go_fast_finds_it_too(path):
    generator = torch.Generator().manual_seed(0)
    z = quantiles(2000)[torch.randperm(2000, generator=generator)].view(2, -1)

    def noise(t, s):
        return torch.randn(z.shape, generator=generator, dtype=z.dtype)

    # the deviation of 2000 samples scatters by 1.6 %, their mean by 2.2 % of it: 3 % and twice that
    mean, deviation = errors("gotta_go_fast", path, 0.3, 0.5, z, noise)
    assert mean < 0.03 + 2 * 0.022
    assert deviation < 0.03 + 2 * 0.016


def k_diffusion(x, start, end, mean, variance):
    """k-diffusion's adaptive loop, of one number x on x = x0 + sigma eps, from the mathematics: DPM-Solver-3 with
    DPM-Solver-2 inside it, lengths rounded as here. Returns the result and the accepted and rejected steps."""

    def eps(x, lam):
        return math.exp(-lam) * (x - mean) / (variance + math.exp(-2 * lam))

    lam, h, before, accepted, rejected = start, 0.05, x, 0, 0
    while lam != end:
        to = end if 1.01 * h >= end - lam else lam + h
        length = to - lam
        sigma, whole = math.exp(-to), math.expm1(length)
        e = eps(x, lam)
        first = x - math.exp(-lam - length / 3) * math.expm1(length / 3) * e
        e1 = eps(first, lam + length / 3)
        part = 2 / 3 * length
        second = x - math.exp(-lam - part) * (math.expm1(part) * e + 2 * (math.expm1(part) / part - 1) * (e1 - e))
        low = x - sigma * whole * (e + 1.5 * (e1 - e))
        high = x - sigma * (whole * e + 1.5 * (whole / length - 1) * (eps(second, lam + part) - e))
        error = abs(high - low) / max(0.0078, 0.05 * max(abs(low), abs(before)))
        factor = 1 + math.atan(max(error, 1e-10) ** (-1 / 3) - 1)
        if factor >= 0.81:
            x, lam, before, accepted = high, to, low, accepted + 1
        else:
            rejected += 1
        h = coarse(factor * length)
    return x, accepted, rejected


def test_options_give_k_diffusions_method():
    """Its lengths, decisions and results; k-diffusion runs on x = x0 + sigma eps whatever the model's path."""
    spec = "dpm_adaptive(rtol=0.05, atol=0.0078, max_step=inf, error_scale=alpha)"
    nodes = [Node(lam, 1.0, math.exp(-lam)) for lam in (-5.0, 4.5)]
    denoiser = Gaussian(torch.tensor([0.3], dtype=torch.float64), 0.25).denoiser(scoresde.EDM())
    x = math.hypot(0.5, nodes[0].sigma) * quantiles(21).view(-1, 1)

    class Problem(solvers.Problem):
        path = scoresde.EDM()

        def predict(self, x, node):
            return denoiser.predict(x, node)

        def nodes_of_lam(self, lams):
            return [Node(lam, 1.0, math.exp(-lam)) for lam in lams]

    found = solve(solvers.make(spec), Problem(), x, nodes)
    ends = [k_diffusion(float(v), -5.0, 4.5, 0.3, 0.25) for v in x]
    assert torch.allclose(found.x.flatten(), torch.tensor([end[0] for end in ends], dtype=torch.float64), atol=1e-9)
    assert found.accepted.tolist() == [end[1] for end in ends]
    assert found.rejected.tolist() == [end[2] for end in ends]


def test_a_largest_step_is_never_exceeded():
    denoiser = Gaussian(torch.zeros(1, dtype=torch.float64), 1.0).denoiser(scoresde.VP())
    for spec, least in (("rk45(max_step=0.05)", 1 / 0.05), ("dpm_adaptive(first_step=inf, max_step=0.4)", 9 / 0.4)):
        plan = scoresde.plan(denoiser, spec)
        assert int(solve(plan.solver, denoiser, quantiles(3).view(-1, 1), plan.nodes).accepted.min()) >= least - 1


@pytest.mark.parametrize(
    ("spec", "evaluations"),
    [("dopri5", 6), ("torchdiffeq(method=bosh3)", 3), ("torchdiffeq(method=scipy_solver)", 1), ("scipy", 6)],
)
def test_other_libraries_get_the_largest_step(spec, evaluations):
    """On data N(0, I) of VP every slope is 0, so that only the limit makes the steps short."""
    denoiser = Gaussian(torch.zeros(3, dtype=torch.float64), 1.0).denoiser(scoresde.VP())
    plan = scoresde.plan(denoiser, spec)
    limited = dataclasses.replace(plan.solver, max_step=0.01)
    nfe = [int(solve(s, denoiser, quantiles(3).view(1, -1), plan.nodes).nfe) for s in (plan.solver, limited)]
    assert nfe[0] < 0.5 * evaluations / 0.01
    assert nfe[1] >= evaluations * (1 / 0.01 - 1)
