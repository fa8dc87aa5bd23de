"""What a likelihood must hold: where its error comes from, that it knows no coordinates, and that it meets a target."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as Fit
from test_likelihood import exact, exact_prior, mixture

import scoresde
from scoresde import log_prob
from scoresde.targets import GaussianMixture
from solvers import InputError, Prediction, generator

VP = scoresde.VP()


def digits_mixture():
    """Ten normals fitted to scikit-learn's digits in [-1, 1], 64 dimensions."""
    x = load_digits().data / 8 - 1
    x = x + (torch.rand(x.shape, generator=generator(0)).numpy() - 0.5) / 8
    fit = Fit(10, covariance_type="full", reg_covar=1e-3, random_state=0, max_iter=10).fit(x)
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


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "rk4", "rk45(rtol=1e-8, atol=1e-8)"])
def test_it_does_not_depend_on_the_path(solver):
    x, values = torch.randn(3, 4, generator=generator(1), dtype=torch.float64), []
    high, low = -math.log(0.02), -math.log(20)
    for path in (VP, scoresde.SubVP(), scoresde.VE(), scoresde.RectifiedFlow(), scoresde.EDM(), scoresde.Cosine()):
        sde = replace(path, t_min=path.t_of_lam(high), t_max=path.t_of_lam(low))
        steps = None if solver.startswith("rk45") else 40
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


def test_per_sample_errors_on_a_mixture_fitted_to_the_digits():
    target, sde = digits_mixture(), scoresde.EDM(t_min=0.01, t_max=80.0)
    x = target.sample(1, generator(3))
    denoiser, prior = target.denoiser(sde), exact_prior(target, sde)
    scale = 64 * math.log(2)
    worst = {}
    for solver, steps in (("rk45", None), ("heun", 25), ("heun", 50)):
        found = log_prob(denoiser, x, solver, steps=steps, divergence="exact", prior=prior)
        worst[solver, steps] = float((found.nats - exact(target, sde, x)).abs().max()) / scale
    # bits/dim: the adaptive pair at its default tolerance, and a method of order 2 at two numbers of steps
    assert worst["rk45", None] < 0.001
    assert worst["heun", 50] < 0.05
    assert 3 < worst["heun", 25] / worst["heun", 50] < 6


def test_float32_and_float64_agree():
    torch.manual_seed(0)
    network = scoresde.networks.MLP(width=32, depth=1).build((6,))
    torch.nn.init.normal_(network.leave.weight, std=0.3)
    x = torch.randn(8, 6, generator=generator(4))
    single = log_prob(scoresde.Denoiser(network, VP, "edm"), x, steps=40, divergence="exact").nats
    double = log_prob(scoresde.Denoiser(network.double(), VP, "edm"), x.double(), steps=40, divergence="exact").nats
    # the state is float64 in both: what is left is the network's own rounding, 1e-7 of its Jacobian at 80 places
    assert (single - double).abs().max() < 1e-3
    assert (single - double).abs().max() > 0


@pytest.mark.parametrize("divergence", ["hutchinson(probes=4)", "hutchinson(probes=32)", "orthogonal(probes=8)"])
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


@pytest.mark.parametrize(("d", "tolerance", "solver"), [(2, 0.03, "rk45"), (2, 0.02, "heun"), (16, 0.5, "rk45")])
def test_a_tolerance_is_met(d, tolerance, solver):
    target = mixture(d)
    x, denoiser, prior = target.sample(16, generator(6)), target.denoiser(VP), exact_prior(target, VP)
    found = log_prob(denoiser, x, solver, tolerance=tolerance, prior=prior)
    error = found.nats - exact(target, VP, x)
    assert float(error.square().mean().sqrt()) < tolerance
    assert float((error.abs() < 2.5 * tolerance).double().mean()) == 1
    assert found.solver_error.max() < tolerance
    # not by brute force: a tenth of the tolerance costs more
    tight = log_prob(denoiser, x[:4], solver, tolerance=tolerance / 10, prior=prior)
    loose = log_prob(denoiser, x[:4], solver, tolerance=tolerance, prior=prior)
    assert tight.products > loose.products
    assert (tight.nats - exact(target, VP, x[:4])).abs().max() < tolerance / 4


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

    found = log_prob(Watched(), target.sample(40, generator(8)), "heun", tolerance=0.05)
    assert int(found.nfe_per_sample.sum()) == sum(seen)
    assert found.nfe == int(found.nfe_per_sample.max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be positive, got 0"),
        ({"tolerance": 0.1, "steps": 10}, "tolerance chooses the steps: leave out steps, nfe and draws"),
        ({"tolerance": 0.1, "solver": "dpm_fast", "nfe": 3}, "tolerance chooses the steps"),
        ({"tolerance": 1e-12}, "does not meet the tolerance"),
        ({"tolerance": 0.1, "solver": "ddpm"}, "draws noise; a likelihood needs a deterministic solver"),
    ],
)
def test_bad_tolerances(options, message):
    target = mixture(2)
    with pytest.raises(InputError, match=message):
        log_prob(target.denoiser(VP), target.sample(2, generator(0)), **options)
