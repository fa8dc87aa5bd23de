"""What a likelihood must hold: where its error comes from, that it knows no coordinates, and that it meets a target."""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from closed_forms import exact, exact_prior, mixture
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as Fit
from test_continuous_bound import STD, closed_form

import scoresde
from scoresde import log_prob
from scoresde.bounds.chain import step_terms
from scoresde.bounds.decoders import Gaussian as Normal
from scoresde.likelihood import tolerance as limits
from scoresde.models.targets import Gaussian, GaussianMixture
from solvers import InputError, Prediction, generator, make

VP = scoresde.VP()


def digits_mixture():
    """Two normals fitted to scikit-learn's digits in [-1, 1], 64 dimensions, each of full covariance."""
    x = load_digits().data / 8 - 1
    x = x + (torch.rand(x.shape, generator=generator(0)).numpy() - 0.5) / 8
    fit = Fit(2, covariance_type="full", reg_covar=1e-3, random_state=0, max_iter=10).fit(x)
    return GaussianMixture(*(torch.from_numpy(v) for v in (fit.means_, fit.covariances_, fit.weights_)))


def test_the_error_is_the_sum_of_solver_prior_and_truncation():
    target, sde = mixture(2), scoresde.VP(t_min=0.02)
    x, denoiser = target.sample(20, generator(0)), target.denoiser(sde)
    found = log_prob(denoiser, x, "heun", steps=60, divergence="exact")
    with_prior = log_prob(denoiser, x, "heun", steps=60, divergence="exact", prior=exact_prior(target, sde))
    solver = with_prior.nats - exact(target, sde, x)
    prior = sde.prior().log_prob(found.latent) - target.log_prob(found.latent, sde(1.0))
    truncation = exact(target, sde, x) - target.log_prob(x)
    assert torch.allclose(found.nats - target.log_prob(x), solver + prior + truncation, rtol=0, atol=1e-10)
    # each is there: of the size that the schedule says
    assert 1e-4 < float(solver.abs().max()) < 0.1
    assert 1e-5 < float(prior.abs().max()) < 0.02
    assert 1e-2 < float(truncation.abs().max()) < 3


@dataclass(frozen=True)
class InRatio:
    """One denoiser, D(x / alpha, sigma / alpha), on any path."""

    sde: scoresde.SDE

    def predict(self, x, node, **conditions):
        wide = node.like(x)
        x0 = torch.tanh(x / wide.alpha + torch.roll(x / wide.alpha, 1, 1)) / (1 + wide.ratio)
        return Prediction(x0, (x - wide.alpha * x0) / wide.sigma)


ADAPTIVE = ["rk45(rtol=1e-6, atol=1e-6)", *(f"adams_adaptive(rtol={t}, atol={t})" for t in (1e-2, 1e-4, 1e-7))]


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "rk4", *ADAPTIVE])
def test_it_does_not_depend_on_the_path(solver):
    x, values = torch.randn(3, 4, generator=generator(1), dtype=torch.float64), []
    high, low = -math.log(0.02), -math.log(20)
    for path in (VP, scoresde.SubVP(), scoresde.VE(), scoresde.RectifiedFlow(), scoresde.EDM(), scoresde.Cosine()):
        sde = replace(path, t_min=path.t_of_lam(high), t_max=path.t_of_lam(low))
        steps = None if solver in ADAPTIVE else 40
        values.append(log_prob(InRatio(sde), x, solver, steps=steps, divergence="exact"))
    for other in values[1:]:
        assert (other.nats - values[0].nats).abs().max() < 1e-6
        assert solver.startswith("rk45") or other.nfe == values[0].nfe


def test_a_network_has_the_same_bits_in_other_units():
    wide = InRatio(scoresde.VE(0.02, 40))

    @dataclass(frozen=True)
    class Halved:
        """The same model of data in [0, 1] instead of [-1, 1]."""

        sde: scoresde.SDE

        def predict(self, x, node, **conditions):
            x0 = (wide.predict(2 * x - 1, replace_sigma(node), **conditions).x0 + 1) / 2
            return Prediction(x0, (x - x0) / node.like(x).sigma)

    def replace_sigma(node):
        return type(node)(node.t, node.alpha, 2 * node.sigma, node.dalpha, 2 * node.dsigma)

    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)[torch.randint(17, (6, 4), generator=generator(2))]
    prior = wide.sde.prior().log_prob
    # the channel's standard normal is that of one scale, so that the solver's error is not the same
    options = {"solver": "rk45(rtol=1e-9, atol=1e-9)", "divergence": "exact"}
    a = log_prob(wide, levels, bin_width=1 / 8, dequantiser="uniform", **options)
    b = log_prob(
        Halved(scoresde.VE(0.01, 20)), (levels + 1) / 2, bin_width=1 / 16, dequantiser="uniform", **options,
        prior=lambda z: prior(2 * z - 1) + 4 * math.log(2),
    )  # fmt: skip
    assert (a.bits_per_dim - b.bits_per_dim).abs().max() < 1e-6
    assert float((a.budget["offset"] - b.budget["offset"])[0]) == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize("kernel", ["ddpm(variance=beta_tilde)", "ddpm(variance=beta)"])
@pytest.mark.parametrize("path", [VP, scoresde.SubVP()], ids=str)
def test_the_bound_of_a_chain_becomes_the_continuous_one(path, kernel):
    """The diffusion terms from t = 0.1 on: what a finite N adds to the integral falls like 1 / N."""
    x0 = STD * torch.tensor([[-0.9], [0.2], [1.3]], dtype=torch.float64)
    points, weights = np.polynomial.hermite_e.hermegauss(3)  # exact: the terms are squares of what is linear in eps
    gaps = []
    for n in (100, 200, 400):
        chain = path.chain(n)
        denoiser = Gaussian(torch.zeros(1, dtype=torch.float64), STD**2).denoiser(chain.sde())
        assert chain.node(n // 10 - 1).t == pytest.approx(0.1)
        index = torch.arange(n // 10, n).repeat_interleave(3)
        x, (at, _) = x0.repeat(n - n // 10, 1), chain.steps(index)
        total = torch.zeros(len(x), dtype=torch.float64)
        for point, weight in zip(points, weights / weights.sum(), strict=True):
            eps = torch.full_like(x, float(point))
            prediction = denoiser.predict(at.like(x).alpha * x + at.like(x).sigma * eps, at)
            total += weight * step_terms(chain, index, x, eps, prediction, make(kernel), Normal())
        expected = closed_form(replace(path, t_min=0.1), x0)[1]
        gaps.append(total.view(-1, 3).sum(0) - expected)
        assert (gaps[-1].abs() < 0.2 * expected).all()
    for coarse, fine in pairwise(gaps):
        assert (coarse / fine).tolist() == pytest.approx([2, 2, 2], abs=0.15)


@pytest.mark.long
def test_per_sample_errors_on_a_mixture_fitted_to_the_digits():
    target, sde = digits_mixture(), scoresde.EDM(t_min=0.01, t_max=80.0)
    x = target.sample(4, generator(3))
    denoiser, prior = target.denoiser(sde), exact_prior(target, sde)

    def errors(x, solver, steps=None):
        found = log_prob(denoiser, x, solver, steps=steps, divergence="exact", prior=prior)
        return (found.nats - exact(target, sde, x)).abs() / (64 * math.log(2))

    # bits/dim, of every sample: measured 3e-6 at most, about the tolerance itself
    assert (errors(x, "tsit5(rtol=1e-6, atol=1e-6)") < 1e-5).all()
    # a method of order 2 at two numbers of steps
    coarse, fine = (errors(x[:2], "heun", steps) for steps in (25, 50))
    assert (fine < 0.05).all()
    assert ((coarse / fine > 3) & (coarse / fine < 6)).all()


@pytest.mark.parametrize("path", [VP, pytest.param(scoresde.SubVP(), marks=pytest.mark.slow), scoresde.VE()], ids=str)
def test_the_latent_leads_back_to_the_data(path):
    """From the data to the latent and back along the same ODE, the latter as ``sample`` solves it."""
    target = mixture(2)
    x, denoiser = target.sample(12, generator(1)), target.denoiser(path)
    scale = path(path.t_min).alpha  # x enters the path as alpha x

    def there_and_back(solver, steps):
        found = log_prob(denoiser, x, solver, steps=steps, divergence="exact", prior=exact_prior(target, path))
        back = scoresde.sample(
            denoiser, (2,), range(12), solver, "logsnr(end=t_min)", steps=steps, x_init=found.latent,
            dtype=torch.float64,
        )  # fmt: skip
        return (back.x / scale - x).abs(), (found.nats - exact(target, path, x)).abs()

    # a pair errs by its tolerance at each of about a hundred steps, and rounds by far less
    distance, error = there_and_back("tsit5(rtol=1e-9, atol=1e-9)", None)
    assert distance.max() < 1e-8
    assert error.max() < 1e-7  # nats, with the exact prior
    # heun's errors of second order are the same both ways and cancel: an order more than its own
    means = [float(there_and_back("heun", steps)[0].mean()) for steps in (50, 100, 200)]
    assert [math.log2(a / b) for a, b in pairwise(means)] == pytest.approx([3, 3], abs=0.1)


def test_float32_and_float64_agree():
    torch.manual_seed(0)
    network = scoresde.models.networks.MLP(width=32, depth=1).build((6,))
    torch.nn.init.normal_(network.leave.weight, std=0.3)
    x = torch.randn(8, 6, generator=generator(4)).bfloat16()  # numbers that all three dtypes have
    values = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        network.to(torch.float64 if dtype == torch.float64 else torch.float32)
        denoiser = scoresde.Denoiser(network, VP, "edm")
        for divergence in ("exact", "hutchpp(vectors=2)"):
            values[dtype, divergence] = log_prob(denoiser, x.to(dtype), steps=40, divergence=divergence).nats
    for (dtype, divergence), value in values.items():
        error = float((value - values[torch.float64, divergence]).abs().max())
        # the state is float64 in all of them: what is left is the network's own rounding, 1e-7 of numbers of order 1,
        # whose errors at 80 evaluations hardly add up (measured 2e-6)
        assert error < 2e-5
        assert (error > 0) == (dtype != torch.float64)


@pytest.mark.parametrize("law", ["uniform", "truncated_normal"])
def test_levels_of_16_bits_have_the_bits_of_float64_ones(law):
    """The levels are numbers of all four dtypes, and nothing that is added to them has 16 bits."""
    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)[torch.randint(17, (6, 64), generator=generator(2))]
    torch.manual_seed(0)
    network = scoresde.models.networks.MLP(width=32, depth=1).build((64,))
    torch.nn.init.normal_(network.leave.weight, std=0.3)
    options = {"steps": 20, "bin_width": 1 / 8, "dequantiser": law, "divergence": "hutchinson(probes=4)"}
    truth = log_prob(scoresde.Denoiser(network.double(), VP, "edm"), levels, **options)
    denoiser = scoresde.Denoiser(network.float(), VP, "edm")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = log_prob(denoiser, levels.to(dtype), **options)
        # the network's float32; noise of 16 bits would cost 1e-2 of uniform noise, and of the narrow one all
        assert (found.bits_per_dim - truth.bits_per_dim).abs().max() < 1e-6
        assert torch.equal(found.budget["dequantisation"], truth.budget["dequantisation"])
        # and by hand, where float32 is what the caller holds
        spread = scoresde.dequantise(levels.to(dtype), 1 / 8, range(6))
        assert spread.dtype == torch.float32
        if law == "uniform":
            hand = log_prob(denoiser, spread, **(options | {"dequantiser": None}))
            assert (hand.bits_per_dim - truth.bits_per_dim).abs().max() < 1e-5


@pytest.mark.parametrize(
    "divergence",
    [
        "hutchinson(probes=2)", "hutchinson(probes=4)", "hutchinson(probes=32)",
        "hutchinson(probes=3, law=gaussian)", "hutchinson(probes=3, law=sphere)",
        "orthogonal(probes=2)", "orthogonal(probes=8)", "hutchpp(vectors=2)", "hutchpp(vectors=3)",
    ],
)  # fmt: skip
def test_intervals_cover_as_often_as_they_say(divergence):
    target = mixture(16)
    one, denoiser = target.sample(1, generator(5)), target.denoiser(VP)
    truth = log_prob(denoiser, one, "dpmpp_2m", steps=20, divergence="exact")
    found = log_prob(denoiser, one.expand(400, -1), "dpmpp_2m", steps=20, divergence=divergence)
    low, high = found.interval(0.95)
    assert 0.92 <= float(((low < truth.nats) & (truth.nats < high)).double().mean()) <= 0.98
    assert torch.equal(*truth.interval())
    with pytest.raises(InputError, match="level must lie between 0 and 1, got 95"):
        found.interval(95)


@cache
def one_point_in_draws(divergence):
    """A likelihood of one point of a mixture, 400 times over, as the mean of three draws of its noise in the bin."""
    target = mixture(16)
    x, denoiser = target.sample(1, generator(5)).expand(400, -1), target.denoiser(VP)
    options = {"solver": "dpmpp_2m", "steps": 20, "bin_width": 0.05, "dequantiser": "uniform", "draws": 3}
    return log_prob(denoiser, x, divergence=divergence, **options)


@pytest.mark.parametrize("divergence", ["hutchinson(probes=4)", "orthogonal(probes=4)", "hutchpp(vectors=3)"])
def test_intervals_of_several_draws_cover_as_often_as_they_say(divergence):
    """The draws share their probes; the truth has the same draws and the exact trace."""
    truth, found = one_point_in_draws("exact"), one_point_in_draws(divergence)
    low, high = found.interval(0.95)
    assert 0.92 <= float(((low < truth.nats) & (truth.nats < high)).double().mean()) <= 0.98
    # the weights of the draws differ: it is not the interval of their plain mean
    assert float(truth.budget["importance"].mean()) > 0.01


@pytest.mark.long
@pytest.mark.parametrize(
    ("d", "tolerance", "solver", "tighter"),
    # the loosest trial of rk45 meets a tenth of it too: its first step is short; of heun see also test_tolerance
    [
        (2, 0.03, "rk45", 1000),
        pytest.param(2, 0.02, "heun", 10, marks=pytest.mark.slow),
        pytest.param(16, 0.5, "rk45", 10, marks=pytest.mark.slow),
        (16, 0.5, None, 10),
    ],
)
def test_a_tolerance_is_met(d, tolerance, solver, tighter):
    target = mixture(d)
    x, denoiser, prior = target.sample(16, generator(6)), target.denoiser(VP), exact_prior(target, VP)
    found = log_prob(denoiser, x, solver, tolerance=tolerance, prior=prior)
    error = found.nats - exact(target, VP, x)
    assert float(error.square().mean().sqrt()) < tolerance
    assert float((error.abs() < 2.5 * tolerance).double().mean()) == 1
    assert found.solver_error.max() < tolerance
    # not by brute force: a fraction of the tolerance costs more
    tight = log_prob(denoiser, x[:4], solver, tolerance=tolerance / tighter, prior=prior)
    loose = log_prob(denoiser, x[:4], solver, tolerance=tolerance, prior=prior)
    assert tight.vjps > loose.vjps
    assert (tight.nats - exact(target, VP, x[:4])).abs().max() < 2.5 * tolerance / tighter


def test_a_tolerance_is_in_bits_where_there_are_bits():
    target = mixture(2)
    x, denoiser = target.sample(5, generator(7)), target.denoiser(VP)
    nats = log_prob(denoiser, x, tolerance=0.1 * 2 * math.log(2), bin_width=None)
    bits = log_prob(denoiser, x, tolerance=0.1, bin_width=1.0)
    assert torch.equal(nats.nats, bits.nats)
    assert (nats.solver, nats.divergence, nats.nfe) == (bits.solver, bits.divergence, bits.nfe)


def test_what_a_tolerance_costs_is_counted():
    target, seen = mixture(2), []

    @dataclass(frozen=True)
    class Watched:
        sde: scoresde.SDE = VP

        def predict(self, x, node, **conditions):
            seen.append(len(x))
            return target.predict(x, node)

    found = log_prob(Watched(), target.sample(10, generator(8)), "heun", tolerance=0.5)
    assert int(found.nfe_per_sample.sum()) == sum(seen)
    assert found.nfe == int(found.nfe_per_sample.max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be positive, got 0"),
        ({"tolerance": 0.1, "steps": 10}, "tolerance chooses the steps: leave out plan, steps, nfe and draws"),
        ({"tolerance": 0.1, "solver": "dpm_fast", "nfe": 3}, "tolerance chooses the steps"),
        ({"tolerance": 1e-12}, "does not meet the tolerance"),
        ({"tolerance": 0.1, "solver": "ddpm"}, "draws noise; a likelihood needs a deterministic solver"),
    ],
)
def test_bad_tolerances(monkeypatch, options, message):
    monkeypatch.setattr(limits, "TIGHTEST", 1e-4)  # it is reached sooner than 1e-10
    target = mixture(2)
    with pytest.raises(InputError, match=message):
        log_prob(target.denoiser(VP), target.sample(2, generator(0)), **options)
