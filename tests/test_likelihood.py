"""Likelihood against exact densities, always those at t_min, so that truncation is not counted as solver error."""

import math
from itertools import pairwise, product

import pytest
import torch
from closed_forms import Shifted, exact, exact_prior, mixture
from torch import nn

import scoresde
from scoresde import log_prob
from scoresde.likelihood.result import LogProb
from scoresde.models.networks import networks
from scoresde.models.targets import Gaussian
from solvers import InputError

PATHS = {"vp": scoresde.VP(), "ve": scoresde.VE()}


@pytest.mark.quick
@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize("path", PATHS)
def test_rk45_is_exact_once_the_prior_is(d, path):
    target, sde = mixture(d), PATHS[path]
    x = target.sample(6, torch.Generator().manual_seed(0))
    found = log_prob(
        target.denoiser(sde), x, "rk45(rtol=1e-8, atol=1e-8)", divergence="exact", prior=exact_prior(target, sde)
    )
    assert (found.nats - exact(target, sde, x)).abs().max() < 1e-4
    assert found.nfe > 100


def test_dopri5_agrees_with_rk45():
    target, sde = mixture(2), PATHS["vp"]
    x = target.sample(2, torch.Generator().manual_seed(0))
    found = log_prob(
        target.denoiser(sde), x, "dopri5(rtol=1e-8, atol=1e-8)", divergence="exact", prior=exact_prior(target, sde)
    )
    assert (found.nats - exact(target, sde, x)).abs().max() < 1e-4


# each path and each number of dimensions once; the other pairs are slow
@pytest.mark.parametrize(
    ("d", "path"),
    [pytest.param(d, path, marks=() if (d, path) in ((2, "ve"), (16, "vp")) else pytest.mark.slow)
     for d, path in product((2, 16), PATHS)],
)  # fmt: skip
@pytest.mark.parametrize(
    ("solver", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_2m(variant=heun)", 2)]
)
def test_fixed_grids_converge_at_their_order(d, path, solver, order):
    target, sde = mixture(d), PATHS[path]
    x = target.sample(16, torch.Generator().manual_seed(1))
    errors = []
    for steps in (100, 200, 400):
        found = log_prob(
            target.denoiser(sde), x, solver, steps=steps, divergence="exact", prior=exact_prior(target, sde)
        )
        errors.append(float((found.nats - exact(target, sde, x)).abs().mean()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - order) < 0.2 for slope in slopes), (errors, slopes)


@pytest.mark.quick
def test_hutchinson_is_within_four_standard_errors_of_the_exact_trace():
    target, sde = mixture(16), PATHS["vp"]
    x, denoiser = target.sample(200, torch.Generator().manual_seed(2)), target.denoiser(PATHS["vp"])
    # the same solver on both sides, so that its error cancels
    whole = log_prob(denoiser, x, "dpmpp_2m", steps=30, divergence="exact", prior=exact_prior(target, sde))
    some = log_prob(
        denoiser, x, "dpmpp_2m", steps=30, divergence="hutchinson(probes=64)", prior=exact_prior(target, sde)
    )
    z = (some.nats - whole.nats) / some.stderr
    assert z.abs().max() < 4
    assert torch.all(whole.stderr == 0)
    assert whole.kind != some.kind


def test_the_standard_error_covers_as_often_as_it_should():
    target, sde = mixture(16), PATHS["vp"]
    one = target.sample(1, torch.Generator().manual_seed(3))
    repeats, probes = 600, 24
    x, denoiser = one.expand(repeats, -1), target.denoiser(sde)
    truth = log_prob(denoiser, one, "dpmpp_2m", steps=20, divergence="exact").nats
    found = log_prob(denoiser, x, "dpmpp_2m", steps=20, divergence=f"hutchinson(probes={probes})")
    covered = ((found.nats - truth).abs() < 1.96 * found.stderr).double().mean()
    # Student's t with 23 degrees of freedom is within 1.96 with probability 0.938; four binomial deviations are 0.04
    assert abs(covered - 0.938) < 0.04
    # and the spread over repetitions is what each run's standard error says
    assert abs(found.nats.std() / found.stderr.square().mean().sqrt() - 1) < 4 / math.sqrt(2 * repeats)
    # the estimate is unbiased
    assert abs(found.nats.mean() - truth) < 4 * found.nats.std() / math.sqrt(repeats)


def test_one_probe_has_no_standard_error():
    target = mixture(2)
    found = log_prob(target.denoiser(scoresde.VP()), target.sample(2), steps=5, divergence="hutchinson(probes=1)")
    assert torch.isnan(found.stderr).all()


def test_random_signs_are_exact_for_a_diagonal_jacobian():
    target = Gaussian(torch.zeros(5), torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0]))
    x, denoiser = target.sample(4, torch.Generator().manual_seed(0)), target.denoiser(scoresde.VE())
    a, b = (log_prob(denoiser, x, steps=20, divergence=how) for how in ("exact", "hutchinson(probes=2)"))
    assert torch.allclose(a.nats, b.nats, rtol=0, atol=1e-10)
    assert b.stderr.max() < 1e-10


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "edm", "cosine", "rectified_flow"])
def test_every_path_gives_a_gaussian_its_density(name):
    sde = scoresde.make_sde(name)
    target = Gaussian(torch.tensor([0.3, -0.2, 0.1]), 0.5)
    x = target.sample(8, torch.Generator().manual_seed(0))
    found = log_prob(target.denoiser(sde), x, steps=400, divergence="exact", prior=exact_prior(target, sde))
    assert torch.allclose(found.nats, exact(target, sde, x), rtol=0, atol=2e-3)


def test_the_density_integrates_to_one():
    target, sde = mixture(2), scoresde.VP()
    axis = torch.linspace(-2.5, 2.5, 60, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    found = log_prob(target.denoiser(sde), x, "heun", steps=150, divergence="exact", prior=exact_prior(target, sde))
    assert abs(found.nats.exp().sum() * (axis[1] - axis[0]) ** 2 - 1) < 5e-3


@pytest.mark.quick
def test_the_budget_sums_to_the_value_and_each_part_is_what_it_says():
    target, sde = mixture(2), scoresde.VP()
    x, denoiser = target.sample(5, torch.Generator().manual_seed(0)), target.denoiser(sde)
    found = log_prob(denoiser, x, "heun", steps=25, divergence="exact", bin_width=0.25)
    assert list(found.budget) == ["prior", "divergence", "truncation", "dequantisation", "offset"]
    assert torch.allclose(sum(found.budget.values()), found.nats, rtol=0, atol=1e-12)
    start = sde(sde.t_min)
    code = scoresde.encode(denoiser, start.alpha * x, "heun", "logsnr", steps=25)
    assert torch.allclose(found.latent, code.x, rtol=0, atol=1e-9)
    normal = torch.distributions.Normal(0.0, math.hypot(sde(1.0).alpha, sde(1.0).sigma))
    assert torch.allclose(found.budget["prior"], normal.log_prob(code.x).sum(1), rtol=0, atol=1e-9)
    assert torch.allclose(found.budget["truncation"], torch.tensor(2 * math.log(start.alpha)).double())
    assert torch.all(found.budget["dequantisation"] == 0)
    assert torch.allclose(found.budget["offset"], torch.tensor(2 * math.log(0.25)).double())
    assert torch.allclose(found.bits_per_dim, -found.nats / (2 * math.log(2)))
    assert found.nfe == 50


def test_uniform_dequantisation_bounds_the_mass_of_a_level():
    """E log p(x + u) <= log of the mass of the bin, and close to it where the density is nearly flat over the bin."""
    sde, width = scoresde.VE(), 0.5
    target = Gaussian(torch.zeros(1), 1.0)
    seeds = range(400)
    x = torch.full((400, 1), 0.5, dtype=torch.float64)
    spread = scoresde.dequantise(x, width, seeds)
    assert spread.min() >= 0.25
    assert spread.max() < 0.75
    bound = log_prob(target.denoiser(sde), spread, steps=100, divergence="exact", bin_width=width).nats
    normal = torch.distributions.Normal(0.0, 1.0)
    mass = torch.log(normal.cdf(torch.tensor(0.75)) - normal.cdf(torch.tensor(0.25)))
    gap = mass - bound.mean()
    # Jensen's gap is Var(log p) / 2, about (x width)^2 / 24 = 0.0026; the Monte Carlo error of the mean is 0.004
    assert -0.01 < gap < 0.02
    assert torch.equal(spread[17:18], scoresde.dequantise(x[:1], width, [17]))


@pytest.mark.quick
def test_alone_in_a_batch_and_in_any_batch_size():
    class RowWise:
        """A denoiser whose rows are computed by the same elementwise operations, wherever they stand."""

        sde = scoresde.VP()

        def predict(self, x, node, **conditions):
            node = node.like(x)
            x0 = torch.tanh(x / (node.alpha**2 + node.sigma**2))
            return scoresde.models.denoiser.Prediction(x0, (x - node.alpha * x0) / node.sigma)

    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
    whole = log_prob(RowWise(), x, steps=10)
    parts = log_prob(RowWise(), x, steps=10, batch_size=4)
    alone = log_prob(RowWise(), x[3:4], steps=10, seeds=[3])
    assert torch.equal(whole.nats, parts.nats)
    assert torch.equal(whole.nats[3:4], alone.nats)
    assert torch.equal(whole.stderr[3:4], alone.stderr)


@pytest.mark.parametrize("solver", ["heun", "rk45(rtol=1e-6, atol=1e-6)"])
def test_conditions_reach_their_rows(solver):
    denoiser = scoresde.Denoiser(Shifted(), scoresde.VP(), predicts="x0")
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0.0, 0.5, -0.5])
    steps = 20 if solver == "heun" else None
    found = log_prob(denoiser, x, solver, steps=steps, divergence="exact", condition={"y": y}, batch_size=2)
    each = [
        log_prob(denoiser, x[i : i + 1], solver, steps=steps, divergence="exact", condition={"y": y[i : i + 1]}).nats
        for i in range(3)
    ]
    assert torch.allclose(found.nats, torch.cat(each), rtol=0, atol=1e-10)
    assert torch.allclose(found.nats[1], found.nats[2], rtol=0, atol=1e-9)  # by symmetry
    assert abs(found.nats[0] - found.nats[1]) > 1e-3


def test_a_network_in_float32_and_more_dimensions_than_one_chunk_of_products():
    torch.manual_seed(0)
    network = networks.make("mlp(width=32, depth=1)").build((9, 9))
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    denoiser = scoresde.Denoiser(network, scoresde.VP(), "edm")
    x = torch.rand(2, 9, 9)
    whole = log_prob(denoiser, x, steps=8, divergence="exact")
    some = log_prob(denoiser, x, steps=8, divergence="hutchinson(probes=200)")
    assert ((whole.nats - some.nats) / some.stderr).abs().max() < 4
    network.double()
    double = log_prob(denoiser, x.double(), steps=8, divergence="exact")
    assert torch.allclose(whole.nats, double.nats, rtol=0, atol=2e-3)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "ddpm", "steps": 5}, "ddpm draws noise; a likelihood needs a deterministic solver"),
        ({"solver": "heun"}, "heun needs a step count: pass steps or nfe"),
        ({"solver": "heun", "steps": 0}, "positive integer"),
        ({"steps": 5, "divergence": "hutchinson(probes=0)"}, "probes must be a positive integer"),
        ({"steps": 5, "divergence": "exakt"}, "did you mean exact"),
        ({"steps": 5, "seeds": [1]}, "got 1 seeds for 2 samples"),
        ({"solver": "rk45", "tolerance": 0.1, "seeds": [1, 2, 3]}, "got 3 seeds for 2 samples"),
        ({"steps": 5, "seeds": 5}, "got 5 seeds for 2 samples"),
        ({"steps": 5, "seeds": "12"}, "seeds must be a number of samples or a list of integers, got '12'"),
        ({"steps": 5, "seeds": ["1", "2"]}, "a seed must be an integer of at least 0, got '1'"),
        ({"steps": 5, "seeds": [0, -1]}, "a seed must be an integer of at least 0, got -1"),
        ({"steps": 5, "seeds": [True, 1]}, "a seed must be an integer of at least 0, got True"),
        ({"steps": 5, "bin_width": "wide"}, "bin_width must be a positive, finite number, got 'wide'"),
        ({"steps": 5, "bin_width": True}, "bin_width must be a positive, finite number, got True"),
        ({"steps": 5, "bin_width": math.inf}, "bin_width must be a positive, finite number, got inf"),
        ({"steps": 5, "bin_width": math.nan}, "bin_width must be positive, got nan"),
        ({"tolerance": 0.1, "grid": "nope"}, "no grid 'nope'"),
        ({"tolerance": "tight"}, "tolerance must be a positive, finite number, got 'tight'"),
        ({"tolerance": math.inf}, "tolerance must be a positive, finite number, got inf"),
        ({"tolerance": math.nan}, "tolerance must be positive, got nan"),
        ({"tolerance": True}, "tolerance must be a positive, finite number, got True"),
        ({"steps": 5, "draws": "2"}, "draws must be a positive integer, got '2'"),
        ({"steps": 5, "draws": math.inf}, "draws must be a positive integer, got inf"),
        ({"steps": 5, "draws": math.nan}, "draws must be a positive integer, got nan"),
        ({"steps": 5, "draws": True}, "draws must be a positive integer, got True"),
        ({"solver": "scipy", "differentiable": True}, "scipy computes outside torch, so it has no gradients"),
        (
            {"solver": "torchdiffeq(method=scipy_solver)", "differentiable": True},
            "torchdiffeq.* computes outside torch, so it has no gradients",
        ),
        ({"steps": 5, "prior": lambda y: y.sum(1, keepdim=True)}, r"the prior must return .* got shape \(2, 1\)"),
        ({"steps": 5, "prior": lambda y: y.sum()}, r"the prior must return .* got shape \(\)"),
        ({"steps": 5, "prior": lambda y: 0.0}, "the prior must return .* got float"),
        (
            {"steps": 5, "x": torch.tensor([[0.0, 0.25], [0.1, 0.25]]), "bin_width": 0.25, "dequantiser": "uniform"},
            "needs levels, bin_width=0.25 apart, but x has values that differ by 0.1",
        ),
        ({"steps": 5, "bin_width": -1.0}, "bin_width must be positive"),
        ({"steps": 5, "batch_size": 0}, "batch_size must be a positive integer"),
        ({"steps": 5, "x": torch.tensor([[math.nan, 0.0]])}, "not finite"),
        ({"steps": 5, "x": torch.zeros(0, 2)}, "at least one sample"),
        ({"steps": 5, "x": torch.zeros(2, 2, dtype=torch.long)}, "must be floats"),
        ({"steps": 5, "x": torch.zeros(2)}, "must be floats .* shape"),
        ({"steps": 5, "condition": {"y": torch.zeros(1)}}, "y has 1 rows for 2 samples"),
        ({"steps": 5, "t_max": 0.5}, "before t_max=1: give the prior"),
        ({"grid": "explicit(times=[0.5, 0.1])"}, "before t_max=1: give the prior"),
        ({"steps": 5, "t_min": 2.0}, "not a range within"),
    ],
)
def test_bad_input(change, message):
    target = mixture(2)
    options = {"x": torch.zeros(2, 2, dtype=torch.float64), "solver": "heun", **change}
    with pytest.raises(InputError, match=message):
        log_prob(target.denoiser(scoresde.VP()), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_levels_may_be_rounded_and_shifted(dtype):
    """256 levels in [-1, 1], once through 16 bits, less a mean of each dimension: the lattice of each is its own."""
    levels = torch.arange(256).repeat(2, 1).T.double() / 127.5 - 1
    x = (levels.to(torch.float16).double() - torch.tensor([0.123, -0.077])).to(dtype)
    found = log_prob(Gaussian(torch.zeros(2), 1.0).denoiser(PATHS["vp"]), x, steps=4, bin_width=2 / 255,
                     dequantiser="uniform", divergence="exact")  # fmt: skip
    exactly = log_prob(Gaussian(torch.zeros(2), 1.0).denoiser(PATHS["vp"]), x.double(), steps=4, bin_width=2 / 255,
                       dequantiser="uniform", divergence="exact")  # fmt: skip
    assert torch.allclose(found.nats, exactly.nats, rtol=0, atol=1e-3)  # the noise is not rounded to 16 bits
    with pytest.raises(InputError, match="needs levels"):
        log_prob(Gaussian(torch.zeros(2), 1.0).denoiser(PATHS["vp"]), x, steps=4, bin_width=3 / 255,
                 dequantiser="uniform")  # fmt: skip


def test_probes_in_as_many_dimensions_are_exact():
    """An orthonormal basis gives the whole trace, whichever it is, and is told as exact."""
    target = mixture(2)
    x, denoiser = target.sample(3, torch.Generator().manual_seed(0)), target.denoiser(PATHS["vp"])
    whole = log_prob(denoiser, x, steps=20, divergence="exact")
    some = log_prob(denoiser, x, steps=20, divergence="orthogonal(probes=2)")
    assert torch.allclose(some.nats, whole.nats, rtol=0, atol=1e-8)
    assert some.kind == whole.kind == "exact ODE value"
    for found in (some, whole):
        low, high = found.interval()
        assert torch.equal(low, found.nats)
        assert torch.equal(high, found.nats)
        assert "standard error" not in str(found)
    fewer = log_prob(denoiser, x, steps=20, divergence="orthogonal(probes=1)")
    assert fewer.kind == "estimate of the ODE value"
    assert "standard error of the trace's probes: not known" in str(fewer)


def test_the_block_by_hand():
    found = LogProb(
        nats=torch.tensor([-1.0, -3.0], dtype=torch.float64), stderr=torch.tensor([0.1, 0.3]), nfe=14,
        latent=torch.zeros(2, 4), budget={"prior": torch.tensor([-4.0, -6.0]), "divergence": torch.tensor([3.0, 3.0])},
        solver="heun", grid="logsnr", divergence="hutchinson(probes=2)", seconds=1.25, bin_width=0.5,
        kind="estimate of the ODE value", vjps=28.0, freedom=torch.tensor([1.0, 1.0]),
        stderr_of="the trace's probes", solver_error=torch.tensor([0.5, 1.5]),
    )  # fmt: skip
    assert str(found).splitlines() == [
        "log p = -2.000 +- 1.000 nats (mean of 2), estimate of the ODE value",
        "bits/dim = 0.7213 +- 0.3607",
        "  prior                 -5.000 nats",
        "  divergence             3.000 nats",
        "  standard error of the trace's probes: 0.2 nats a sample",
        "  solver error: 1 nats a sample, 1.5 at most",
        "  heun on logsnr, trace hutchinson(probes=2), 14 NFE, 28 vector-Jacobian products, 1.2 s",
    ]
    half = 12.7062 * torch.tensor([0.1, 0.3])  # Student's law with one degree of freedom, from tables
    low, high = found.interval()
    assert ((high - low) / 2).tolist() == pytest.approx(half.tolist(), rel=1e-4)


def test_a_shortened_range_with_the_prior_of_its_end():
    target, sde = mixture(2), PATHS["ve"]
    x = target.sample(4, torch.Generator().manual_seed(0))
    found = log_prob(
        target.denoiser(sde), x, steps=300, t_max=0.6, divergence="exact", prior=lambda y: target.log_prob(y, sde(0.6))
    )
    assert torch.allclose(found.nats, exact(target, sde, x), rtol=0, atol=2e-3)


class Constant(nn.Module):
    """A network that does not look at x."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, label):
        return torch.full_like(x, self.value)


def test_a_model_that_does_not_look_at_x():
    """D = 0.3 everywhere: the data are a point, blurred by the path to N(0.3, ratio(t_min)^2)."""
    sde = scoresde.VP()
    denoiser = scoresde.Denoiser(Constant(0.3), sde, predicts="x0")
    r = sde(sde.t_min).ratio
    x = 0.3 + r * torch.tensor([[0.0, 0.5], [1.0, -1.0]], dtype=torch.float64)
    end = sde(1.0)
    at_end = torch.distributions.Normal(0.3 * end.alpha, end.sigma)
    found = log_prob(denoiser, x, steps=300, divergence="exact", prior=lambda y: at_end.log_prob(y).sum(1))
    truth = torch.distributions.Normal(0.3, r).log_prob(x).sum(1)
    assert torch.allclose(found.nats, truth, rtol=0, atol=2e-2)


def test_a_model_that_fails_is_told():
    denoiser = scoresde.Denoiser(Constant(math.nan), scoresde.VP(), predicts="x0")
    with pytest.raises(InputError, match="not finite"):
        log_prob(denoiser, torch.zeros(2, 2), steps=5)
    for solver in ("dpmpp_2m", "rk45", "dopri5"):
        with pytest.raises(InputError, match="not finite"):
            scoresde.sample(denoiser, (2,), range(2), solver, steps=None if solver != "dpmpp_2m" else 5)


def test_by_default_the_trace_is_exact_where_it_takes_no_more_products():
    """In 2 dimensions four probes would take 4 products for an estimate, the exact trace takes 2."""
    for d, rule, products in ((1, "exact", 1), (2, "exact", 2), (4, "exact", 4), (5, "hutchinson", 4)):
        target = mixture(d)
        found = log_prob(target.denoiser(scoresde.VP()), target.sample(3), steps=5)
        assert (found.divergence, found.vjps) == (rule, products * found.nfe)
        assert bool((found.stderr == 0).all()) == (rule == "exact")
        assert found.kind == ("exact ODE value" if rule == "exact" else "estimate of the ODE value")
        drawn = scoresde.sample_with_log_prob(target.denoiser(scoresde.VP()), (d,), range(3), steps=5)[1]
        assert (drawn.divergence, drawn.vjps) == (rule, products * drawn.nfe)
    asked = log_prob(mixture(2).denoiser(scoresde.VP()), torch.zeros(2, 2), steps=5, divergence="hutchinson")
    assert (asked.divergence, asked.vjps) == ("hutchinson", 4 * asked.nfe)


def test_bits_need_a_bin_width():
    target = mixture(2)
    found = log_prob(target.denoiser(scoresde.VP()), target.sample(2), steps=5)
    with pytest.raises(InputError, match="bin width"):
        found.bits_per_dim  # noqa: B018
    assert "nats" in str(found)
    assert "bits" not in str(found)
