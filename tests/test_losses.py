"""Denoising score matching against closed forms.

For data N(0, c^2) and its exact denoiser, the error of eps has the posterior variance E = alpha^2 c^2 / (alpha^2 c^2 +
sigma^2) per dimension; every other target is a known multiple of it.
"""

import math
from dataclasses import dataclass

import pytest
import torch

import scoresde
from scoresde.paths.time_samplers import LogNormal, LogSNR, TimeSampler, Uniform, times
from scoresde.training.losses import DSM
from scoresde.training.weightings import weightings
from solvers import InputError, Prediction, generator
from solvers.noise.draws import Draws

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.SubVP(), scoresde.VE(), scoresde.Cosine(), scoresde.RectifiedFlow(), scoresde.EDM()]
WEIGHTINGS = [
    "dsm", "uniform", "v", "flow", "edm", "likelihood", "vdm", "min_snr", "min_snr(gamma=0.3)", "p2",
    "p2(gamma=0.5, k=3)",
]  # fmt: skip


def draws(seed, n):
    return Draws.of(seed, 0, n)


def dsm(weighting="dsm", times=Uniform()):  # noqa: B008
    return DSM(weightings.make(weighting), times)


@dataclass(frozen=True)
class At(TimeSampler):
    """One time."""

    t: float

    def times_at(self, sde, u):
        return torch.full_like(u, self.t)


@dataclass(frozen=True)
class Known:
    """The exact denoiser of N(0, std^2), with a sigma_data."""

    sde: scoresde.SDE
    std: float
    sigma_data: float = 0.5

    def predict(self, x, node, **conditions):
        target = scoresde.targets.Gaussian(torch.zeros(x.shape[1:]), self.std**2)
        return target.denoiser(self.sde).predict(x, node)


def weight(weighting, sde, node, sigma_data):
    """The weight of |d_eps|^2, from the papers' weights of their own errors."""
    ratio, total = node.sigma / node.alpha, node.alpha**2 + node.sigma**2
    snr = ratio**-2
    return {
        "dsm": 1.0 + 0 * ratio,
        "uniform": 1 / snr,
        "v": total**2 / node.sigma**2 / snr,
        "flow": (node.dsigma - node.dalpha * ratio) ** 2,
        "edm": (ratio**2 + sigma_data**2) / (ratio * sigma_data) ** 2 / snr,
        "likelihood": node.g2 / node.sigma**2,
        "vdm": 0.5 * (sde.t_max - sde.t_min) * node.g2 / node.sigma**2,
        "min_snr": (1 + 0 * snr) * torch.as_tensor(snr).clamp(max=5) / snr,
        "min_snr(gamma=0.3)": torch.as_tensor(snr).clamp(max=0.3) / snr,
        "p2": 1 / (1 + snr),
        "p2(gamma=0.5, k=3)": 1 / (3 + snr) ** 0.5,
    }[weighting]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sde", SDES, ids=str)
def test_expected_loss_at_a_time_has_its_closed_form(sde, weighting):
    std, shape, n = 0.7, (2, 3), 4000
    x0 = std * torch.randn(n, *shape, generator=generator(1), dtype=torch.float64)
    for share in (0.1, 0.5, 0.9):
        t = sde.t_min + share * (sde.t_max - sde.t_min)
        node = sde(t)
        loss = dsm(weighting, At(t))(Known(sde, std), x0, draws(2, n))
        signal = (node.alpha * std) ** 2
        expected = float(weight(weighting, sde, node, 0.5)) * signal / (signal + node.sigma**2)
        assert loss.shape == (n,)
        assert abs(float(loss.mean()) - expected) < 4.5 * float(loss.std()) / math.sqrt(n)
        assert float(loss.std()) / math.sqrt(n) < 0.02 * expected  # so that the line above says something


@pytest.mark.parametrize("sde", SDES, ids=str)
def test_weightings_are_one_error_with_other_weights_sample_by_sample(sde):
    x0 = torch.randn(50, 4, generator=generator(1), dtype=torch.float64)
    # a denoiser that is wrong: exact for another variance
    denoiser = Known(sde, 2.0, sigma_data=0.3)
    node = sde(LogSNR().sample(sde, draws(3, 50)))
    plain = dsm("dsm", LogSNR())(denoiser, x0, draws(3, 50))
    for weighting in WEIGHTINGS:
        loss = dsm(weighting, LogSNR())(denoiser, x0, draws(3, 50))
        assert torch.allclose(loss, weight(weighting, sde, node, 0.3) * plain, rtol=1e-9, atol=0)


def test_the_loss_by_hand():
    # one sample, one time, a network that answers 0.25 everywhere
    sde, t = scoresde.VP(), 0.3
    node = sde(t)
    x0 = torch.tensor([[[0.5, -1.0]]], dtype=torch.float64)
    eps = draws(7, 1).normal_like(x0)
    for predicts, weighting, error in [
        ("eps", "dsm", 0.25 - eps),
        ("score", "dsm", node.sigma * 0.25 + eps),
        ("x0", "uniform", 0.25 - x0),
        ("v", "v", 0.25 - (node.alpha * eps - node.sigma * x0)),
        ("velocity", "flow", 0.25 - (node.dalpha * x0 + node.dsigma * eps)),
    ]:
        denoiser = scoresde.Denoiser(lambda x, label: torch.full_like(x, 0.25), sde, predicts=predicts)
        loss = dsm(weighting, At(t))(denoiser, x0, draws(7, 1))
        assert float(loss) == pytest.approx(float((error**2).mean()), rel=1e-12)


def test_the_edm_weighting_is_the_plain_error_of_the_raw_network():
    # Karras et al. 2022, eq. 8: lam c_out^2 = 1, so the loss is |F - (y0 - c_skip y) / c_out|^2
    sde, t, sd = scoresde.EDM(), 0.8, 0.5
    x0 = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    y = x0 + t * draws(7, 1).normal_like(x0)
    skip, out = sd**2 / (t**2 + sd**2), t * sd / math.hypot(t, sd)
    denoiser = scoresde.Denoiser(lambda x, label: torch.full_like(x, 0.25), sde, predicts="edm", sigma_data=sd)
    loss = dsm("edm", At(t))(denoiser, x0, draws(7, 1))
    assert float(loss) == pytest.approx(float(((0.25 - (x0 - skip * y) / out) ** 2).mean()), rel=1e-12)


def test_the_draws_alone_decide_and_dtypes_agree():
    denoiser = Known(scoresde.VP(), 1.0)
    x0 = torch.randn(64, 5, generator=generator(1), dtype=torch.float64)
    first, again = (DSM()(denoiser, x0, draws(4, 64)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, DSM()(denoiser, x0, draws(5, 64)))
    single = DSM()(denoiser, x0.float(), draws(4, 64))
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), first, rtol=1e-3, atol=1e-5)


def test_conditions_reach_the_denoiser():
    class Conditional:
        sde = scoresde.VP()

        def predict(self, x, node, shift):
            return Prediction(shift.expand(x.shape), torch.zeros_like(x))

    x0 = torch.zeros(3, 2)
    loss = dsm("uniform")(Conditional(), x0, draws(0, 3), shift=torch.tensor([[1.0], [2.0], [3.0]]))
    assert loss.tolist() == [1, 4, 9]


@pytest.mark.parametrize("sampler", [Uniform(), LogNormal(), LogNormal(mean=9, std=20), LogSNR()], ids=str)
@pytest.mark.parametrize("sde", SDES, ids=str)
def test_times_stay_on_the_path(sde, sampler):
    t = sampler.sample(sde, draws(0, 2000))
    assert t.dtype == torch.float64
    assert t.shape == (2000,)
    assert t.min() >= sde.t_min
    assert t.max() <= sde.t_max
    assert torch.equal(t, sampler.sample(sde, draws(0, 2000)))


def test_laws_of_the_times():
    n = 4000
    sde = scoresde.EDM(t_min=1e-6, t_max=1e5)  # so wide that nothing is clipped
    log_ratio = -sde(LogNormal(mean=-1.2, std=1.2).sample(sde, draws(1, n))).lam
    assert abs(log_ratio.mean() + 1.2) < 4.5 * 1.2 / math.sqrt(n)
    assert abs(log_ratio.var() - 1.44) < 4.5 * 1.44 * math.sqrt(2 / n)
    vp = scoresde.VP()
    t = Uniform().sample(vp, draws(2, n))
    middle = 0.5 * (vp.t_min + vp.t_max)
    assert abs(t.mean() - middle) < 4.5 * (vp.t_max - vp.t_min) / math.sqrt(12 * n)
    low, high = vp(vp.t_max).lam, vp(vp.t_min).lam
    share = (vp(LogSNR().sample(vp, draws(3, n))).lam - low) / (high - low)
    assert abs(share.mean() - 0.5) < 4.5 / math.sqrt(12 * n)
    assert abs(share.var() - 1 / 12) < 4.5 / math.sqrt(180 * n)


def test_lognormal_moves_what_is_outside_to_the_ends():
    sde = scoresde.EDM(t_min=0.1, t_max=1.0)
    u = draws(6, 500).uniform("times")[:, 0]
    expected = torch.exp(-1.2 + 1.2 * torch.special.ndtri(u)).clamp(0.1, 1.0)
    assert torch.allclose(LogNormal().sample(sde, draws(6, 500)), expected, rtol=1e-12, atol=0)


def test_names_and_errors():
    assert {"discrete", "lognormal", "logsnr", "low_discrepancy", "uniform"} <= set(times.names())
    assert times.make("lognormal(mean=-0.4, std=1)") == LogNormal(-0.4, 1.0)
    assert str(LogNormal(-0.4, 1.0)) == "lognormal(mean=-0.4, std=1.0)"
    with pytest.raises(InputError, match="did you mean lognormal"):
        times.make("lognorm")
    with pytest.raises(InputError, match="lognormal: std must be positive"):
        times.make("lognormal(std=0)")
    with pytest.raises(InputError, match=r"no weighting 'velocty'; did you mean flow\?"):
        weightings.make("velocty")
    assert DSM(weightings.make("snr")) == DSM(weightings.make("eps")) == DSM()
    assert weightings.make("x0") == weightings.make("uniform")
    assert weightings.make("velocity") == weightings.make("flow")
    exact = scoresde.targets.Gaussian(torch.zeros(2)).denoiser(scoresde.VP())
    with pytest.raises(InputError, match="needs a denoiser with sigma_data"):
        dsm("edm")(exact, torch.zeros(3, 2), draws(0, 3))
