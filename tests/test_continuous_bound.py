"""The continuous-time bound against closed forms, and the three gradients that train a learned path.

For data x0 and the exact denoiser of N(0, c^2), with y = (alpha c / sigma)^2, one dimension's error has the mean
(y^2 + y x0^2 / c^2) / (1 + y)^2, and d gamma = -dy / y; so the diffusion term integrates in closed form.
"""

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from closed_forms import Shrunk, bent
from torch import nn

import scoresde
from scoresde.bounds import decoders
from scoresde.bounds.continuous import continuous_bound, place_of
from scoresde.bounds.decoders import Discretised, Gaussian, Levels
from scoresde.paths.learned_vp import LearnedVP
from scoresde.paths.time_samplers import Discrete, LogNormal, LogSNR, LowDiscrepancy, Uniform, times
from scoresde.training.bound_losses import ContinuousBound
from scoresde.training.losses import losses
from solvers import InputError, Prediction, generator
from solvers.noise.draws import Draws

STD, SHAPE = 0.6, (2, 3)
TARGET = scoresde.targets.Gaussian(torch.zeros(SHAPE), STD**2)
SDES = [
    scoresde.VP(), scoresde.SubVP(), scoresde.VE(), scoresde.Cosine(), scoresde.RectifiedFlow(), scoresde.EDM(),
    LearnedVP("linear", -9.0, 6.0), bent(gamma_min=-9.0, gamma_max=6.0),
    replace(bent(gamma_min=-9.0, gamma_max=6.0), t_min=0.1, t_max=0.9),
]  # fmt: skip
IDS = ["vp", "subvp", "ve", "cosine", "rectified_flow", "edm", "line", "bent", "cut"]


def closed_form(sde, x0):
    """prior, diffusion and decoder (B,) in nats, of the exact denoiser and the decoder gaussian."""
    first, last, square = sde(sde.t_min), sde(sde.t_max), (x0.flatten(1) ** 2)
    std = math.hypot(last.alpha, last.sigma)
    prior = 0.5 * ((last.alpha**2 * square + last.sigma**2) / std**2 - 1) - math.log(last.sigma / std)
    y, end = (STD / first.ratio) ** 2, (STD / last.ratio) ** 2
    diffusion = 0.5 * (math.log((1 + y) / (1 + end)) + (1 - square / STD**2) * (1 / (1 + y) - 1 / (1 + end)))
    decoder = 0.5 * (1 + math.log(2 * math.pi * first.ratio**2)) * torch.ones_like(square)
    return prior.sum(1), diffusion.sum(1), decoder.sum(1)


def cases():
    """Every path with every rule of times: the default rule on each, the others on the first; the rest is slow."""
    for sde, sampler in product(SDES, ("low_discrepancy(over=logsnr)", "low_discrepancy", "logsnr", "uniform")):
        quick = sampler.startswith("low_discrepancy(") or sde is SDES[0]
        name = f"{IDS[SDES.index(sde)]}-{sampler}"
        yield pytest.param(sde, sampler, marks=() if quick else pytest.mark.slow, id=name)


@pytest.mark.parametrize(("sde", "sampler"), cases())
def test_every_path_has_the_closed_form_term_by_term(sde, sampler):
    if isinstance(sde, scoresde.EDM) and sampler in ("uniform", "low_discrepancy"):
        return  # a path to sigma = 80: hardly a draw of t falls where there is anything to learn
    x0 = TARGET.sample(150, generator(1))
    bound = continuous_bound(TARGET.denoiser(sde), x0, draws=32, times=sampler)
    prior, diffusion, decoder = closed_form(sde, x0)
    assert torch.allclose(bound.budget["prior"], -prior, rtol=1e-10, atol=1e-10)
    assert torch.allclose(bound.budget["decoder"], -decoder, rtol=1e-10)
    error = bound.budget["diffusion"] + diffusion
    expected = float(bound.stderr.square().sum().sqrt()) / 150
    assert abs(float(error.mean())) < 4 * expected
    assert expected < 0.2 * float(diffusion.mean())  # so that the line above says something
    assert torch.allclose(bound.nats, bound.budget["prior"] + bound.budget["diffusion"] + bound.budget["decoder"])
    # the squared errors are those that the standard errors announce; both are means of 150 heavy-tailed numbers
    if sampler == "low_discrepancy(over=logsnr)":
        assert 0.6 < float(error.square().mean() / bound.stderr.square().mean()) < 1.6


def test_the_closed_form_is_tight_on_a_wide_range():
    x0 = TARGET.sample(50, generator(1))
    total = sum(closed_form(LearnedVP("linear", -22.0, 22.0), x0))
    # what is left is of the order of the ratio at the one end and of alpha^2 at the other: exp(-22)
    assert float((total + TARGET.log_prob(x0)).abs().max()) < 1e-7


@dataclass(frozen=True)
class Signs:
    """The exact denoiser of independent numbers -1 and 1, equally likely: E[x0 | x] = tanh(alpha x / sigma^2)."""

    sde: scoresde.SDE

    def predict(self, x, node, **conditions):
        wide = node.like(x)
        x0 = torch.tanh(wide.alpha * x / wide.sigma**2)
        return Prediction(x0, (x - wide.alpha * x0) / wide.sigma)


def test_discrete_data_cost_their_entropy_wherever_the_path_ends():
    """With equally likely levels and the exact denoiser, the decoder levels is the exact posterior: at any sigma at
    t = 0 the expected bound is log 2 a dimension and the KL of the prior, 1e-7 at gamma_1 = 8."""
    x = torch.randint(2, (60, 40), generator=generator(1)).double() * 2 - 1
    points, weights = np.polynomial.hermite_e.hermegauss(120)
    for gamma_min in (-6.0, -2.0, 0.5):
        denoiser = Signs(LearnedVP("linear", gamma_min, 8.0))
        bound = continuous_bound(denoiser, x, draws=64, times="low_discrepancy", decoder="levels(bin_width=2)")
        stderr = float(bound.stderr.square().sum().sqrt()) / x.numel()
        assert stderr < 0.02 * math.log(2)
        assert abs(float(bound.nats.mean()) / 40 + math.log(2)) < 4 * stderr
        assert math.isclose(
            float(bound.bits_per_dim.mean()), -float(bound.nats.mean()) / (40 * math.log(2)), rel_tol=1e-12
        )
        # the decoder's part: E log(1 + exp(-2 x / ratio^2)) over x = 1 + ratio z
        variance = math.exp(gamma_min)
        lost = np.logaddexp(0.0, -2 * (1 + math.sqrt(variance) * points) / variance)
        decoder = -bound.budget["decoder"] / 40
        error = float(decoder.std()) / math.sqrt(60)
        assert abs(float(decoder.mean()) - weights @ lost / weights.sum()) < 4 * error + 1e-6


def test_the_integral_does_not_depend_on_the_interior():
    t = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    integrals = []
    for sde in (LearnedVP("linear", -9.0, 6.0), bent(gamma_min=-9.0, gamma_max=6.0)):
        place = place_of(sde, t, "t")
        y = (STD * place.at.alpha / place.at.sigma) ** 2
        integrals.append((place.weight * y / (1 + y)).mean().item())
    exact = 0.5 * math.log((1 + STD**2 * math.exp(9)) / (1 + STD**2 * math.exp(-6)))
    # the midpoint rule errs by h^2 / 24 times a change of slope of at most 1e3
    assert [abs(value - exact) < 1e-6 for value in integrals] == [True, True]


def test_draws_belong_to_their_samples():
    x0 = TARGET.sample(6, generator(1))
    denoiser = TARGET.denoiser(scoresde.VP())
    whole = continuous_bound(denoiser, x0, draws=8, sets=2)
    parts = continuous_bound(denoiser, x0, draws=8, sets=2, batch_size=4)
    assert torch.allclose(whole.nats, parts.nats, rtol=1e-12)
    alone = continuous_bound(denoiser, x0[3:4], draws=8, sets=2, seeds=[3])
    assert math.isclose(float(alone.nats), float(whole.nats[3]), rel_tol=1e-12)
    assert whole.nfe == 8
    assert torch.isnan(continuous_bound(denoiser, x0, draws=8, sets=1).stderr).all()


def test_intervals_cover_as_often_as_they_say():
    """At their defaults, of a right and of a wrong score: four sets, three degrees of freedom."""
    x0 = TARGET.sample(1, generator(2)).double().expand(400, *SHAPE)
    right = TARGET.denoiser(scoresde.VP())
    for denoiser in (right, Shrunk(right)):
        found = continuous_bound(denoiser, x0)
        low, high = found.interval()
        mean = found.nats.mean()  # whose own error is a twentieth of one's
        assert 0.92 <= float(((low < mean) & (mean < high)).double().mean()) <= 0.98
        assert found.freedom.tolist() == [3] * 400
    truth = -sum(float(part[0]) for part in closed_form(scoresde.VP(), x0))
    first = continuous_bound(right, x0)
    assert abs(float(first.nats.mean()) - truth) < 4 * float(first.nats.std()) / 20
    shown = f"standard error of the draws of times and noise: {float(first.stderr.mean()):.3g} nats a sample"
    assert shown in str(first)
    single = continuous_bound(right, x0[:2], sets=1)
    assert "standard error of the draws of times and noise: not known" in str(single)
    assert torch.isnan(single.interval()[0]).all()


def test_bits_of_data_spread_over_their_bins():
    x0 = TARGET.sample(6, generator(1))
    denoiser = TARGET.denoiser(scoresde.VP())
    plain, offset = (continuous_bound(denoiser, x0, draws=4, bin_width=width) for width in (None, 0.25))
    assert torch.allclose(offset.nats, plain.nats + 6 * math.log(0.25))
    assert torch.allclose(offset.bits_per_dim, -offset.nats / (6 * math.log(2)))


def test_the_loss_is_the_bound_in_bits_and_unbiased():
    x0 = TARGET.sample(20000, generator(1))
    for sde in (SDES[2], *SDES[-2:]):
        for sampler in (LowDiscrepancy(), LowDiscrepancy(LogSNR()), Uniform()):
            if isinstance(sampler, LowDiscrepancy) and sampler.over == LogSNR() and sde is not SDES[2]:
                continue  # 20000 inversions
            loss = ContinuousBound(Gaussian(), sampler)(TARGET.denoiser(sde), x0, Draws.of(2, 0, 20000))
            expected = sum(closed_form(sde, x0)) / (6 * math.log(2))
            assert loss.shape == (20000,)
            error = (loss - expected).detach()
            assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(20000)


class Net(nn.Module):
    """A smooth network in float64 that looks at x and at the label."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(7, 9), nn.Linear(9, 6)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator(parameter.numel())))

    def forward(self, x, label):
        return self.last(torch.tanh(self.first(torch.cat([x.flatten(1), label[:, None]], 1)))).view_as(x)


LOSS = ContinuousBound(Levels(0.5))
DRAWS = Draws.of(5, 0, 40)
ROWS = torch.randint(5, (40, *SHAPE), generator=generator(4)).double() / 2 - 1


def learned(predicts="v"):
    sde = bent(gamma_min=-5.0, gamma_max=3.0, width=4)
    sde.module.double()  # so that differences are exact
    return scoresde.Denoiser(Net(), sde, predicts, "c_noise"), sde.module


def terms(denoiser):
    """prior + decoder (B,) and diffusion (B,) in bits/dim at the draws of the loss, written out once more."""
    sde = denoiser.sde
    t = LowDiscrepancy().sample(sde, DRAWS)
    eps, noise = (DRAWS.normal_like(ROWS, stream) for stream in ("noise", "decoder"))
    u, rate = sde.share(t)
    low, high = sde.ends()
    gamma, slope = low + (high - low) * u, (high - low) * rate
    alpha, sigma = (torch.sigmoid(v).sqrt().view(-1, 1, 1) for v in (-gamma, gamma))
    x = alpha * ROWS + sigma * eps
    out = denoiser.network(x, gamma / 8)
    found = alpha * out + sigma * x if denoiser.predicts == "v" else out
    diffusion = 0.5 * slope * ((found - eps) ** 2).flatten(1).sum(1)
    square, signal, rest = (ROWS**2).flatten(1).sum(1), torch.sigmoid(-high), torch.sigmoid(high)
    prior = 0.5 * (signal * square + 6 * (rest - 1 - rest.log()))
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
    seen = ROWS + (low / 2).exp() * noise
    logits = torch.log_softmax(-0.5 * (-low).exp() * (seen[..., None] - levels) ** 2, -1)
    chosen = logits.gather(-1, (2 * ROWS + 2).long()[..., None])
    bits = 6 * math.log(2)
    return (prior - chosen.flatten(1).sum(1)) / bits, diffusion / bits


def differences(parameter, value, h=1e-5):
    """Central differences of value() by every number of a parameter; errors of 1e-10 f''' and 1e-11 f."""
    flat, found = parameter.data.view(-1), []
    for k in range(len(flat)):
        kept = flat[k].item()
        values = []
        for sign in (1, -1):
            flat[k] = kept + sign * h
            with torch.no_grad():
                values.append(value().item())
        flat[k] = kept
        found.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(found, dtype=torch.float64).view_as(parameter)


@pytest.mark.parametrize("predicts", ["v", "eps"])
def test_values_are_the_plain_bound_whatever_is_trained(predicts):
    denoiser, _ = learned(predicts)
    ends, between = terms(denoiser)
    assert torch.allclose(LOSS(denoiser, ROWS, DRAWS), ends + between, rtol=1e-12)


@pytest.mark.parametrize("predicts", ["v", "eps"])
def test_the_interior_gets_the_gradient_of_the_mean_square_of_the_diffusion_term(predicts):
    denoiser, module = learned(predicts)
    LOSS(denoiser, ROWS, DRAWS).mean().backward()
    for name, parameter in module.interior.named_parameters():
        expected = differences(parameter, lambda: terms(denoiser)[1].square().mean())
        assert torch.allclose(parameter.grad, expected, rtol=1e-6, atol=1e-8), name
        assert float(expected.abs().max()) > 1e-4
        # the bound's own gradient on these draws is another one, and none of it leaks
        leak = differences(parameter, lambda: sum(terms(denoiser)).mean())
        assert float((parameter.grad - leak).abs().max()) > 1e-3 * float(leak.abs().max())


@pytest.mark.parametrize("predicts", ["v", "eps"])
def test_network_and_ends_get_the_gradient_of_the_bound(predicts):
    denoiser, module = learned(predicts)
    LOSS(denoiser, ROWS, DRAWS).mean().backward()
    for parameter in (module.stretch, *denoiser.network.parameters()):
        expected = differences(parameter, lambda: sum(terms(denoiser)).mean())
        assert torch.allclose(parameter.grad, expected, rtol=1e-6, atol=1e-8)
        assert float(expected.abs().max()) > 1e-4


def test_spread_over_lam_the_interior_plays_no_part():
    denoiser, module = learned()
    straight = LearnedVP("linear", -5.0, 3.0)
    loss = replace(LOSS, times=LowDiscrepancy(LogSNR()))
    value = loss(denoiser, ROWS, DRAWS)
    assert torch.allclose(value, loss(replace(denoiser, sde=straight), ROWS, DRAWS), rtol=1e-9)
    value.mean().backward()
    assert all(parameter.grad is None for parameter in module.interior.parameters())
    # the ends' gradient, of the same numbers
    scaled = loss(replace(denoiser, sde=straight), ROWS, DRAWS).mean()
    (expected,) = torch.autograd.grad(scaled, straight.module.stretch)
    assert torch.allclose(module.stretch.grad, expected.double(), rtol=1e-6)


def test_a_trained_interior_evens_out_the_loss():
    """The least variance has gamma' proportional to 1 / rms of |eps - eps_model|^2 at gamma: two thirds of a path on
    which there is nothing left to learn are crossed quickly."""
    sde = LearnedVP("monotone", -4.0, 12.0, 16)
    denoiser = TARGET.denoiser(sde)
    optimizer = torch.optim.Adam(sde.module.interior.parameters(), lr=0.02)
    loss = ContinuousBound(Gaussian())
    x0 = TARGET.sample(256, generator(1))

    def square():
        return loss(denoiser, x0, Draws.of(9, 0, 256)).detach().var().item()

    before = square()
    for step in range(150):
        optimizer.zero_grad()
        loss(denoiser, x0, Draws.of(7, step, 256)).mean().backward()
        optimizer.step()
    assert square() < 0.5 * before
    slopes = sde.share(torch.tensor([0.1, 0.95], dtype=torch.float64))[1]
    assert slopes[1].item() > 3 * slopes[0].item()


def test_low_discrepancy_times_leave_no_gaps_and_are_each_uniform():
    sde = scoresde.VP()
    t = torch.stack([LowDiscrepancy().sample(sde, Draws.of(seed, 0, 8)) for seed in range(2000)])
    share = (t - sde.t_min) / (sde.t_max - sde.t_min)
    gaps = share.sort(1).values.diff(dim=1)
    assert float((gaps - 1 / 8).abs().max()) < 1e-12
    # of a uniform number: mean 1/2 and mean square 1/3, with standard errors 0.0065 and 0.0067
    for column in share.T:
        assert abs(float(column.mean()) - 1 / 2) < 4 * 0.0065
        assert abs(float(column.square().mean()) - 1 / 3) < 4 * 0.0067
    spread = LowDiscrepancy(LogSNR()).sample(sde, Draws.of(0, 0, 8))
    lams = torch.tensor([sde(value).lam for value in spread.tolist()]).sort().values.diff()
    assert torch.allclose(lams, torch.full((7,), (sde(sde.t_min).lam - sde(1.0).lam) / 8, dtype=lams.dtype), rtol=1e-5)
    assert "low_discrepancy" in times.names()


def test_levels_are_a_normalised_normal_density():
    rule = Levels(0.25)
    mean = torch.tensor([-1.3, -0.4, 0.11, 0.9], dtype=torch.float64)
    for variance in (1e-4, 0.01, 4.0, torch.tensor([0.01, 0.1, 1.0, 2.0], dtype=torch.float64)):
        masses = torch.stack([rule.log_prob(level.expand(4), mean, variance) for level in rule.levels])
        assert torch.allclose(masses.exp().sum(0), torch.ones(4, dtype=torch.float64), rtol=1e-12)
        # the ratio of two levels is that of the densities
        density = Gaussian().log_prob(rule.levels[:, None], mean, variance)
        assert torch.allclose(masses - masses[3], density - density[3], rtol=1e-10, atol=1e-9)
    assert str(decoders.decoders.make("levels(bin_width=0.25)")) == "levels(bin_width=0.25)"


def test_levels_and_bins_agree_where_the_density_is_smooth_over_a_bin():
    """Inside the range and for std >> bin, mass = bin x density: both are normalised, to h^2 / (24 std^2)."""
    x0, mean = torch.tensor([0.0]).double(), torch.tensor([0.05]).double()
    fine = 1 / 256
    values = [rule.log_prob(x0, mean, 0.01).item() for rule in (Levels(fine), Discretised(fine))]
    assert abs(values[0] - values[1]) < 2 * fine**2 / (24 * 0.01)


def test_refusals():
    denoiser, x0 = TARGET.denoiser(scoresde.VP()), TARGET.sample(3, generator(1))
    with pytest.raises(InputError, match="continuous_bound needs a decoder"):
        losses.make("continuous_bound")(denoiser, x0, Draws.of(0, 0, 3))
    for sampler in (LogNormal(), Discrete()):
        with pytest.raises(InputError, match="needs times low_discrepancy, uniform or logsnr"):
            ContinuousBound(times=sampler)
    assert ContinuousBound(times=LogSNR()).times == LogSNR()
    with pytest.raises(InputError, match="needs data at its levels"):
        continuous_bound(denoiser, x0, decoder="levels(bin_width=0.5)")
    for options, words in (
        ({"draws": 6}, "draws must be a multiple of sets, got 6 and 4"),
        ({"draws": 0}, "draws"),
        ({"seeds": [1]}, "got 1 seeds for 3 samples"),
        ({"times": "lognormal"}, "needs times"),
        ({"bin_width": 0.0}, "bin_width must be positive"),
        ({"decoder": "level"}, "levels"),
    ):
        with pytest.raises(InputError, match=words):
            continuous_bound(denoiser, x0, **options)
    with pytest.raises(InputError, match="not finite"):
        continuous_bound(denoiser, x0 / 0)
