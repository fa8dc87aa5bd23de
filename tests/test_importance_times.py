"""Times uniform in log-SNR: the importance sampling of the likelihood's weight g^2 / sigma^2, in closed form.

On every affine path g^2 / sigma^2 = -d log SNR / dt, so the law with that density is uniform in log SNR. The inverse of
its distribution (Song et al. 2021, arXiv:2101.09258, section on importance sampling) is closed on VP and sub-VP:
log SNR = -log(e^B - 1) and -2 log(2 sinh(B / 2)), with B the integral of beta.
"""

import math

import numpy as np
import pytest
import torch

import scoresde
from scoresde import continuous_bound
from scoresde.paths.time_samplers import LogSNR, LowDiscrepancy
from solvers import generator
from solvers.noise.draws import Draws

PATHS = {"vp": scoresde.VP(t_min=1e-5), "subvp": scoresde.SubVP(t_min=1e-5)}
TOTALS = {"vp": 23.864, "subvp": 37.679}


def beta_integral(t):
    return 0.1 * t + 19.9 * t**2 / 2


def minus_log_snr(name, t):
    """Its derivative by t is g^2 / sigma^2: beta / (1 - e^-B) of VP, 2 beta / (2 tanh(B / 2)) of sub-VP."""
    b = beta_integral(t)
    return np.log(np.expm1(b)) if name == "vp" else 2 * np.log(2 * np.sinh(b / 2))


@pytest.mark.parametrize("name", PATHS)
def test_the_weight_is_the_slope_of_the_log_snr_and_its_total_is_known(name):
    sde = PATHS[name]
    total = 2 * (sde(sde.t_min).lam - sde(sde.t_max).lam)
    assert total == pytest.approx(TOTALS[name], abs=1e-3)
    assert minus_log_snr(name, 1.0) - minus_log_snr(name, 1e-5) == pytest.approx(total, rel=1e-9)
    for t in (1e-5, 1e-3, 0.1, 0.5, 1.0):
        b, beta = beta_integral(t), 0.1 + 19.9 * t
        g2 = beta if name == "vp" else beta * -math.expm1(-2 * b)  # Song et al. 2021, arXiv:2011.13456, eq. 32 and 29
        sigma = math.sqrt(-math.expm1(-b)) if name == "vp" else -math.expm1(-b)
        h = 1e-5 * t
        slope = (minus_log_snr(name, t + h) - minus_log_snr(name, t - h)) / (2 * h)
        assert g2 / sigma**2 == pytest.approx(slope, rel=1e-6)
        assert sde(t).g2 / sde(t).sigma ** 2 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("sampler", [LogSNR(), LowDiscrepancy(LogSNR())], ids=str)
@pytest.mark.parametrize("name", PATHS)
def test_times_have_the_density_of_the_weight(name, sampler):
    sde, n = PATHS[name], 4000
    t = sampler.sample(sde, Draws.of(1, 0, n)).sort().values.numpy()
    start, end = minus_log_snr(name, np.array([sde.t_min, sde.t_max]))
    cdf = (minus_log_snr(name, t) - start) / (end - start)
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
    # of n independent draws below 1.95 / sqrt(n) with probability 0.999; of evenly spread ones at most 1 / n
    assert distance < (1.95 / math.sqrt(n) if isinstance(sampler, LogSNR) else 1.001 / n)
    # and times that are uniform in t are far from it
    assert np.abs((t - sde.t_min) / (sde.t_max - sde.t_min) - steps[1:]).max() > 0.3


@pytest.mark.parametrize("name", PATHS)
def test_the_inverse_is_closed_to_rounding(name):
    sde = PATHS[name]
    low, high = sde(sde.t_max).lam, sde(sde.t_min).lam
    for share in np.linspace(0, 1, 41):
        t = sde.t_of_lam(low + share * (high - low))
        b = beta_integral(t)
        lam = -0.5 * math.log(math.expm1(b)) if name == "vp" else -math.log(2 * math.sinh(b / 2))
        assert lam == pytest.approx(low + share * (high - low), abs=1e-9)


TARGET = scoresde.targets.GaussianMixture(torch.tensor([[-0.5, 0.2], [0.5, 0.1]]), 0.01)


@pytest.mark.parametrize("name", PATHS)
def test_the_bound_varies_less_than_at_uniform_times(name):
    """One draw's variance: 620 times less on VP and 710 on sub-VP, both from t = 1e-5. A draw at a uniform time is
    (t_max - t_min) / 2 g^2 / sigma^2 e, with e the squared error of eps, and one at a time of the weight is Z e / 2."""
    sde, n = PATHS[name], 20000
    t = LowDiscrepancy(LogSNR()).sample(sde, Draws.of(2, 0, n))
    node = sde(t)
    x0, eps = TARGET.sample(n, generator(3)), torch.randn(n, 2, generator=generator(4), dtype=torch.float64)
    wide = node.like(x0)
    found = TARGET.denoiser(sde).predict(wide.alpha * x0 + wide.sigma * eps, node)
    e = (found.eps - eps).square().sum(1)
    total, length = TOTALS[name], sde.t_max - sde.t_min
    mean = float((0.5 * total * e).mean())
    weighted = float((0.5 * total * e).square().mean()) - mean**2
    # the same mean square by uniform times, from draws of the other law: weights length g^2 / sigma^2 / Z
    uniform = float((0.25 * length * total * node.g2 / node.sigma**2 * e**2).mean()) - mean**2
    assert uniform > 400 * weighted

    # and so in the bound itself, where few uniform times fall where the weight is: most samples know of no large draw
    x, variances = TARGET.sample(96, generator(1)), {}
    for times, sets in (("uniform", 48), ("logsnr", 48), ("low_discrepancy(over=logsnr)", 4)):
        bound = continuous_bound(TARGET.denoiser(sde), x, draws=48, sets=sets, times=times)
        variances[times] = float(bound.stderr.square().mean())
    assert variances["logsnr"] == pytest.approx(weighted / 48, rel=0.3)
    assert variances["uniform"] > 3 * variances["logsnr"]
    assert variances["logsnr"] > 1.2 * variances["low_discrepancy(over=logsnr)"]
