"""A change of the time sampler that divides by its density leaves the expected gradient; by quadrature over fractions.

A sampler is a function of fractions u that are uniform in (0, 1): an expectation is an integral over u.
"""

import math
from collections import deque

import pytest
import torch

import scoresde
from scoresde.paths.importance import Adaptive, History, Importance
from scoresde.paths.time_samplers import Discrete, LogitNormal, LogNormal, LogSNR, LowDiscrepancy, Uniform
from scoresde.training.losses import DSM, losses
from scoresde.training.weightings import Likelihood, weightings
from solvers import InputError
from solvers.noise.draws import Draws

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.SubVP(), scoresde.VE(), scoresde.EDM(), scoresde.Cosine(), scoresde.RectifiedFlow()]
U = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000


def slopes(sde, t, weighting):
    """The expected gradient (n,) at times t of a weighted loss of the denoiser eps = 0.8 best x on N(0, 0.5^2).

    With s = alpha^2 c^2 + sigma^2 and eps = a x, E |a x - eps|^2 = a^2 s - 2 a sigma + 1; its derivative by a.
    """
    node = sde(t)
    power = 0.25 * node.alpha**2 + node.sigma**2
    scale = 0.8 * node.sigma / power
    return weightings.make(weighting).of_eps(sde, node, 0.5) * node.sigma * (2 * scale * power - 2 * node.sigma)


def expected(sampler, sde, weighting, state=None):
    t, factor = sampler.weighted_at(sde, U, state)
    values = slopes(sde, t, weighting)
    return float((values if factor is None else factor * values).mean())


@pytest.mark.parametrize("weighting", ["dsm", "likelihood", "edm"])
@pytest.mark.parametrize("sde", SDES, ids=str)
def test_importance_keeps_the_expected_gradient(sde, weighting):
    for law in (Uniform(), LogSNR(), LowDiscrepancy(LogSNR())):
        truth = expected(law, sde, weighting)
        assert abs(truth) > 1e-6
        for draw in (Uniform(), LogSNR(), LogNormal(-1.0, 4.0), LowDiscrepancy(LogNormal(-1.0, 4.0))):
            # what the midpoint rule leaves near the ends, where ratios of densities reach 1e4
            assert expected(Importance(draw, law), sde, weighting) == pytest.approx(truth, rel=5e-3)
    # whereas plain sampling trains another loss
    plain = [expected(law, sde, weighting) for law in (Uniform(), LogNormal(-1.0, 4.0))]
    assert abs(plain[0] / plain[1] - 1) > 0.02


@pytest.mark.parametrize("sde", SDES, ids=str)
def test_importance_of_the_likelihood_has_one_weight_at_all_times(sde):
    """Song et al. 2021: g^2 / sigma^2 divided by its own density is a constant, twice the range of lam / (T - 0)."""
    t, ratio = Importance(LogSNR(), Uniform()).weighted_at(sde, U[::100])
    weight = ratio * Likelihood().of_eps(sde, sde(t), None)
    constant = 2 * (sde(sde.t_min).lam - sde(sde.t_max).lam) / (sde.t_max - sde.t_min)
    assert torch.allclose(weight, torch.full_like(weight, constant), rtol=1e-9)


def test_the_loss_is_multiplied_by_the_ratio_of_the_densities():
    x0, draws = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), Draws.of(1, 0, 50)
    model = scoresde.targets.Gaussian(torch.zeros(2), 0.5).denoiser(scoresde.VP())
    drawn = DSM(times=LogNormal())(model, x0, draws)
    sampler = Importance(LogNormal(), Uniform())
    _, ratio = sampler.weighted_at(scoresde.VP(), sampler.fractions(draws))
    assert torch.allclose(DSM(times=sampler)(model, x0, draws), ratio * drawn, rtol=1e-12)
    assert float(ratio.std()) > 0.1


@pytest.mark.parametrize("sampler", [Uniform(), LogSNR(), LogNormal(-1.0, 1.5), LogitNormal(0.3, 1.2)], ids=str)
@pytest.mark.parametrize("sde", SDES, ids=str)
def test_densities_are_the_inverse_of_the_slope_of_the_quantiles(sde, sampler):
    u = torch.linspace(0.02, 0.98, 40, dtype=torch.float64)
    h = 1e-6
    t = sampler.times_at(sde, u)
    inside = (sampler.times_at(sde, u - h) > sde.t_min) & (sampler.times_at(sde, u + h) < sde.t_max)
    slope = (sampler.times_at(sde, u + h) - sampler.times_at(sde, u - h)) / (2 * h)
    assert int(inside.sum()) > 5
    # differences of t to 1e-16 t over 2e-6, where a quantile rises a thousandfold slower than t / u: 1e-6
    assert torch.allclose((slope * sampler.density(sde, t))[inside], torch.ones(int(inside.sum())).double(), rtol=1e-5)
    assert (t[1:] >= t[:-1]).all()


def test_logit_normal_times_are_log_normal_noise_levels_on_straight_paths():
    sde = scoresde.RectifiedFlow(t_min=1e-9, t_max=1 - 1e-9)
    u = torch.linspace(0.01, 0.99, 30, dtype=torch.float64)
    found, expected = LogitNormal(0.4, 0.8).times_at(sde, u), LogNormal(0.4, 0.8).times_at(sde, u)
    assert torch.allclose(found, expected, atol=3e-9)  # the range is shorter than (0, 1) by 2e-9


def test_discrete_times_are_equally_likely():
    sde = scoresde.VP()
    t = Discrete(50).times_at(sde, (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000)
    values, counts = t.unique(return_counts=True)
    assert torch.allclose(values, torch.linspace(sde.t_min, 1, 50, dtype=torch.float64), rtol=1e-12)
    assert counts.tolist() == [100] * 50


# adaptive times


def filled(sampler, levels):
    """A state whose bins have remembered these losses (bins,), the same for all of their history."""
    state = sampler.state()
    state.append(torch.arange(sampler.bins).repeat(sampler.history), torch.tensor(levels).repeat(sampler.history))
    return state


@pytest.mark.parametrize("over", [Uniform(), LogSNR(), LogNormal()], ids=str)
def test_adaptive_times_keep_the_expected_gradient_whatever_they_remember(over):
    sampler = Adaptive(over, bins=7, history=3, floor=0.01)
    for sde in SDES:
        for weighting in ("likelihood", "dsm"):
            truth = expected(over, sde, weighting)
            for levels in ([1.0] * 7, [9.0, 3.0, 1.0, 0.1, 0.5, 2.0, 4.0], [0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.1]):
                found = expected(sampler, sde, weighting, filled(sampler, levels))
                # the midpoint rule in bins whose share of the fractions is 0.01 / 7: 140 points
                assert found == pytest.approx(truth, rel=2e-2 if min(levels) == 0 else 2e-3)


def test_adaptive_times_are_proportional_to_the_root_mean_square_of_the_losses():
    sampler, sde = Adaptive(bins=4, history=2, floor=0.2), scoresde.EDM(t_min=1e-9, t_max=4.0)
    state = sampler.state()
    state.append(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.tensor([3.0, 4.0, 1.0, 1.0, 0.0, 0.0, 5.0, -5.0]))
    moments = torch.tensor([math.sqrt(12.5), 1.0, 0.0, 5.0], dtype=torch.float64)
    shares = 0.8 * moments / moments.sum() + 0.05
    t, factor = sampler.weighted_at(sde, U, state)
    found = torch.bincount(t.long().clamp(max=3), minlength=4) / len(U)
    assert torch.allclose(found.double(), shares, atol=2 / len(U))
    assert torch.allclose(factor, (0.25 / shares)[t.long().clamp(max=3)], rtol=1e-12)
    assert float(factor.mean()) == pytest.approx(1, abs=1e-4)


def test_adaptive_times_reduce_the_mean_square():
    """Nichol and Dhariwal 2021: the density of the least variance. Here of a loss that is 40 in one bin and 1 else."""
    sampler = Adaptive(bins=10, history=4)
    levels = [40.0] + [1.0] * 9
    _, factor = sampler.weighted_at(scoresde.VP(), U, filled(sampler, levels))
    t, _ = sampler.weighted_at(scoresde.VP(), U, filled(sampler, levels))
    share = (t - 1e-3) / (1 - 1e-3)
    loss = torch.where(share < 0.1, 40.0, 1.0).double()
    assert float((factor * loss).mean()) == pytest.approx(4.9, rel=1e-3)
    # E (f L)^2 = (E L)^2 at the best density, and 160.9 at uniform times
    assert float((factor * loss).square().mean()) == pytest.approx(4.9**2, rel=0.01)


def test_a_history_keeps_the_newest_losses_of_each_bin():
    g, state = torch.Generator().manual_seed(3), History(5, 4)
    rings = [deque(maxlen=4) for _ in range(5)]
    for _ in range(30):
        index, values = torch.randint(5, (9,), generator=g), torch.randn(9, generator=g)
        values[0] = math.inf  # is left out
        state.append(index, values)
        for i, value in zip(index[1:].tolist(), values[1:].tolist(), strict=True):
            rings[i].append(value)
    assert [sorted(row) for row in state.losses.tolist()] == [sorted(ring) for ring in rings]
    assert int(state.counts.sum()) == 30 * 8


def test_the_losses_are_remembered_without_their_factors_and_after_each_bin_is_full():
    loss = losses.make("dsm(times=adaptive(bins=3, history=4, floor=0.1))")
    sde = scoresde.VP()
    state = loss.state(sde)
    x0 = torch.randn(48, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = scoresde.targets.Gaussian(torch.zeros(2), 0.5).denoiser(sde)
    for step in range(3):
        draws = Draws.of(7, step, 48)
        values = loss(model, x0, draws, state)
        node, factor = loss.drawn(sde, draws, state)
        if step == 0:
            plain = DSM()(model, x0, draws)
            assert torch.allclose(values, plain, rtol=1e-12)  # uniform until all bins are full
        else:
            assert float(factor.std()) > 0.01
        index = ((node.t - sde.t_min) / (sde.t_max - sde.t_min) * 3).long()
        before = dict(state.state_dict())
        loss.remember(state, draws, values)
        for i in range(3):
            last, kept = (values / factor)[index == i][-4:], state["times"].losses[i].double()
            assert ((kept[:, None] - last).abs().amin(0) < 1e-6 * last).all()
        assert step > 0 or float(state["times"].counts.min()) >= 4
        # what is saved is the whole memory
        other = loss.state(sde)
        other.load_state_dict(state.state_dict())
        assert torch.equal(loss.nodes(sde, Draws.of(7, 9, 48), other).t, loss.nodes(sde, Draws.of(7, 9, 48), state).t)
        assert set(before) == {"times.losses", "times.counts"}


def test_refusals():
    with pytest.raises(InputError, match="the law lognormal has a probability at the ends"):
        Importance(LogSNR(), LogNormal())
    with pytest.raises(InputError, match="adaptive keeps the expectation of its own option 'over'"):
        Importance(Adaptive(), Uniform())
    with pytest.raises(InputError, match="the time sampler discrete has no density"):
        Importance(Discrete(), Uniform()).weighted_at(scoresde.VP(), U[:5])
    with pytest.raises(InputError, match=r"adaptive times need the losses of earlier updates: pass state=loss.state"):
        losses.make("dsm(times=adaptive)").nodes(scoresde.VP(), Draws.of(0, 0, 4))
