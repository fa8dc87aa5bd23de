"""Levels as continuous data: laws of the noise, bounds in their order, masses that sum to one."""

import math

import pytest
import torch
from scipy.stats import norm, truncnorm

import scoresde
from scoresde.likelihood.dequantisation import TruncatedNormal, UniformNoise, dequantisers, uniforms
from solvers import InputError

SDE = scoresde.VP()
WIDTH = 0.25
LEVELS = torch.linspace(-0.875, 0.875, 8, dtype=torch.float64).view(8, 1)
OPTIONS = {"solver": "heun", "steps": 240, "divergence": "exact", "bin_width": WIDTH}
COARSE = OPTIONS | {"steps": 120}


def masses(target):
    """The exact probability of each level's bin, of a mixture of normals in one dimension seen at t_min."""
    ratio = SDE(SDE.t_min).ratio
    total = torch.zeros(8, dtype=torch.float64)
    for mean, value, weight in zip(target.means, target.values, target.log_weights.exp(), strict=True):
        std = math.sqrt(float(value) + ratio**2)
        a, b = ((LEVELS.flatten() + side * WIDTH / 2 - mean) / std for side in (-1, 1))
        total += weight * torch.from_numpy(norm.cdf(b.numpy()) - norm.cdf(a.numpy()))
    return total


SMOOTH = scoresde.targets.GaussianMixture(torch.tensor([[-0.5], [0.45]], dtype=torch.float64), 0.03, [0.3, 0.7])


def test_the_levels_of_a_toy_sum_to_one():
    # exp of one draw is an unbiased estimate of a level's mass; beyond the levels there is little
    n = 400
    x = LEVELS.repeat(n, 1)
    found = scoresde.log_prob(SMOOTH.denoiser(SDE), x, dequantiser="uniform", **OPTIONS).nats.exp().view(n, 8)
    exact, error = masses(SMOOTH), found.std(0) / math.sqrt(n)
    assert ((found.mean(0) - exact).abs() < 4.5 * error + 2e-4).all()  # 2e-4: heun in 240 steps
    assert abs(float(found.sum(1).mean()) - float(exact.sum())) < 4.5 * float(found.sum(1).std()) / math.sqrt(n) + 1e-3
    assert float(exact.sum()) == pytest.approx(1, abs=0.02)


def test_more_draws_are_a_tighter_bound():
    n = 20
    x, exact = LEVELS[2:6].repeat(n, 1), masses(SMOOTH)[2:6].log()
    gaps = []
    for draws in (1, 4, 16):
        found = scoresde.log_prob(SMOOTH.denoiser(SDE), x, dequantiser="uniform", draws=draws, **COARSE)
        assert torch.stack(list(found.budget.values())).sum(0).tolist() == pytest.approx(found.nats.tolist(), abs=1e-12)
        gaps.append(float((exact - found.nats.view(n, 4)).mean()))
        # by hand, from the exact density at the same draws; 5e-3: heun in 120 steps
        node = SDE(SDE.t_min)
        y = torch.stack([x + WIDTH * (uniforms((1,), list(range(len(x))), k) - 0.5) for k in range(draws)])
        density = SMOOTH.log_prob(node.alpha * y.view(-1, 1), node).view(draws, -1) + math.log(node.alpha)
        by_hand = torch.logsumexp(density, 0) - math.log(draws) + math.log(WIDTH)
        assert found.nats.tolist() == pytest.approx(by_hand.tolist(), abs=5e-3)
    assert gaps[0] > gaps[1] > gaps[2] > 0  # towards the mass, and not beyond it
    assert found.nfe == 16 * 2 * 120


def test_for_a_model_of_levels_the_truncated_normal_beats_uniform_noise():
    # the exact score of the levels themselves: all mass sits within ratio of them, a twelfth of the bin's half
    weights = torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1], dtype=torch.float64)
    target = scoresde.targets.GaussianMixture(LEVELS, 1e-12, weights)
    n, exact = 6, (weights / weights.sum()).log()
    values = {}
    for spec in ("uniform", "truncated_normal"):
        options = OPTIONS | {"solver": "rk45", "steps": None, "dequantiser": spec}
        values[spec] = scoresde.log_prob(target.denoiser(SDE), LEVELS.repeat(n, 1), **options).nats.view(n, 8).mean(0)
    assert values["uniform"].mean() < exact.mean() - 10
    assert values["truncated_normal"].tolist() == pytest.approx(exact.tolist(), abs=5e-3)  # the solver's tolerance


def expected_bits(target, law, points=128):
    """Expected bits/dim over the levels: of one draw of the noise, of two weighted by importance, and the exact ones.

    Exhaustive: the noise is at the midpoints of ``points`` slices of equal probability, the two draws at all pairs.
    """
    node = SDE(SDE.t_min)
    u = ((torch.arange(points, dtype=torch.float64) + 0.5) / points).repeat(8).view(-1, 1)
    x = LEVELS.repeat_interleave(points, 0)
    noise, density = law.spread(x, u, WIDTH, node)
    found = scoresde.log_prob(target.denoiser(SDE), x + noise, **(OPTIONS | {"bin_width": None}))
    weights = (found.nats - density).view(8, points)
    pairs = torch.logaddexp(weights[:, :, None], weights[:, None, :]) - math.log(2)
    exact = masses(target)
    values = (weights.mean(1), pairs.mean((1, 2)), torch.logsumexp(weights, 1) - math.log(points), exact.log())
    return [-float((exact * value).sum() / exact.sum()) / math.log(2) for value in values]


def test_bounds_are_in_their_order():
    """uniform >= truncated normal >= the same of two draws >= exact, in bits/dim. From the second sign on that always
    holds (Burda et al. 2016, theorem 1); the first one holds for models of levels, whose density within a bin is closer
    to the path's own noise than to a flat one, and turns round for a density that is smooth over the bins."""
    node = SDE(SDE.t_min)
    std, weights = 0.008, torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1], dtype=torch.float64)
    levels = scoresde.targets.GaussianMixture(LEVELS, std**2, weights)
    uniform, *_ = expected_bits(levels, UniformNoise())
    one, two, whole, exact = expected_bits(levels, TruncatedNormal())
    assert uniform > one + 10
    assert one > two > exact
    # what one draw loses is the divergence of two normals, the noise and the density within the bin
    wide = math.hypot(std, node.ratio)
    lost = math.log(wide / node.ratio) + 0.5 * (node.ratio / wide) ** 2 - 0.5
    assert one - exact == pytest.approx(lost / math.log(2), abs=0.003)  # of 128 slices, and heun in 240 steps: 0.0017
    assert two - exact < 0.8 * (one - exact)  # measured 0.68
    # all draws together are the sum over the bin, but for the ends, where the weights are large: 0.013
    assert whole == pytest.approx(exact, abs=0.02)
    uniform, other, whole, exact = expected_bits(SMOOTH, UniformNoise())
    one, two, *_ = expected_bits(SMOOTH, TruncatedNormal())
    assert one > two > uniform + 1
    assert uniform > other > exact
    assert whole == pytest.approx(exact, abs=0.002)  # the solver's


def test_the_noise_keeps_its_precision_at_levels_of_16_bits():
    """In bfloat16 the bin around 0.875 of width 0.25 holds 65 numbers, and one of width 0.125 in float16 129."""
    u = uniforms((500,), [1, 2])
    for dtype, width in ((torch.bfloat16, 0.25), (torch.float16, 0.125)):
        x = torch.full((2, 500), 0.875).to(dtype)
        for law in (UniformNoise(), TruncatedNormal()):
            noise, density = law.spread(x, u, width, SDE(0.02))
            wide, exact = law.spread(x.double(), u, width, SDE(0.02))
            assert (noise.dtype, density.dtype) == (torch.float64, torch.float64)
            assert torch.equal(noise, wide)
            assert torch.equal(density, exact)
        spread = scoresde.data.spread(x, width, u)
        assert torch.equal(spread, x.double() + width * (u - 0.5))
        narrow = scoresde.data.spread(x, width, u.to(dtype))
        assert narrow.dtype == torch.float32
        # of the 16-bit numbers it was given, no more is lost: float32 rounds 1 by 2^-24
        assert (narrow - x.double() - width * (u.to(dtype).double() - 0.5)).abs().max() <= 2**-24


def test_the_laws_are_what_they_say():
    node = SDE(0.02)
    u = uniforms((50,), [1, 2])
    noise, law = UniformNoise().spread(0 * u, u, WIDTH, node)
    assert float(noise.abs().max()) <= WIDTH / 2
    assert law.tolist() == pytest.approx([-50 * math.log(WIDTH)] * 2)
    for width in (0.01, 0.25, 4.0):
        noise, law = TruncatedNormal().spread(0 * u, u, width, node)
        tau = width / 2 / node.ratio
        theirs = truncnorm(-tau, tau, scale=node.ratio)
        assert noise.numpy() == pytest.approx(theirs.ppf(u.numpy()), rel=1e-7, abs=1e-12)
        assert law.numpy() == pytest.approx(theirs.logpdf(noise.numpy()).sum(1), rel=1e-9)


def test_entropies_of_the_truncated_normal():
    # in units of sigma, in bits: 2.024 at tau = 3, 2.047 without a cut, log2(2 tau) for a narrow one
    u = torch.linspace(0, 1, 20001, dtype=torch.float64)[1:-1].view(-1, 1)
    node = SDE(0.02)
    for tau, entropy in ((3.0, 2.024), (8.0, 0.5 * math.log2(2 * math.pi * math.e)), (0.01, math.log2(0.02))):
        _, law = TruncatedNormal().spread(0 * u, u, 2 * tau * node.ratio, node)
        assert -float(law.mean()) / math.log(2) - math.log2(node.ratio) == pytest.approx(entropy, abs=1e-3)


def test_it_is_the_same_as_by_hand_and_belongs_to_the_seed():
    x = LEVELS[1:4]
    own = scoresde.log_prob(SMOOTH.denoiser(SDE), x, dequantiser="uniform", seeds=[4, 5, 6], **OPTIONS)
    spread = scoresde.dequantise(x, WIDTH, [4, 5, 6])
    hand = scoresde.log_prob(SMOOTH.denoiser(SDE), spread, seeds=[4, 5, 6], **OPTIONS)
    assert torch.equal(own.nats, hand.nats)
    alone = scoresde.log_prob(SMOOTH.denoiser(SDE), x[1:2], dequantiser="uniform", seeds=[5], draws=2, **OPTIONS)
    among = scoresde.log_prob(SMOOTH.denoiser(SDE), x, dequantiser="uniform", seeds=[4, 5, 6], draws=2, **OPTIONS)
    assert alone.nats[0] == among.nats[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bin_width": None}, "the dequantiser uniform needs the bin width of discrete data"),
        ({"dequantiser": None, "draws": 3}, "draws=3 needs a dequantiser: pass dequantiser"),
        ({"draws": 0}, "draws must be a positive integer, got 0"),
        ({"dequantiser": "unifrm"}, "did you mean uniform"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message):
        scoresde.log_prob(SMOOTH.denoiser(SDE), LEVELS, **({"dequantiser": "uniform"} | OPTIONS | change))
    with pytest.raises(InputError, match="needs a path with noise at its start"):
        TruncatedNormal().spread(LEVELS, LEVELS, WIDTH, SDE.clean)
    assert dequantisers.names() == ["truncated_normal", "uniform", "variational"]
