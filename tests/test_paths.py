"""Gaussian paths against closed forms, evaluated in 50-digit decimals where float64 could hide a cancellation."""

import math
from dataclasses import dataclass
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from closed_forms import bent

import scoresde
from scoresde import EDM, SDE, VE, VP, Cosine, InputError, RectifiedFlow, SubVP, make_sde
from scoresde.paths.chains import DDPMChain
from scoresde.paths.learned_vp import LearnedVP

pytestmark = pytest.mark.quick

getcontext().prec = 50
SDES = [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow(), VP(beta_min=0.5, beta_max=12.0, t_min=1e-5)]
each_sde = pytest.mark.parametrize("sde", SDES, ids=str)


def times(sde, n=41):
    """From t_min to t_max, dense near t_min."""
    return [float(t) for t in sde.t_min + (sde.t_max - sde.t_min) * np.linspace(0, 1, n) ** 3]


def decimal_sin_cos(x):
    sin = cos = Decimal(0)
    term = Decimal(1)
    for k in range(60):  # |x| <= pi / 2: the last term is below 1e-70
        if k % 2:
            sin += term * (-1) ** (k // 2)
        else:
            cos += term * (-1) ** (k // 2)
        term *= x / (k + 1)
    return sin, cos


def decimal_alpha_sigma(sde, t):
    """The definitions, word for word; 50 digits leave 30 after any cancellation here."""
    t = Decimal(t)
    if isinstance(sde, VP):
        low, high = Decimal(sde.beta_min), Decimal(sde.beta_max)
        integral = low * t + (high - low) * t * t / 2
        alpha = (-integral / 2).exp()
        return alpha, 1 - alpha**2 if isinstance(sde, SubVP) else (1 - alpha**2).sqrt()
    if isinstance(sde, VE):
        return Decimal(1), Decimal(sde.sigma_min) * (Decimal(sde.sigma_max) / Decimal(sde.sigma_min)) ** t
    if isinstance(sde, Cosine):
        s, half_pi = Decimal(sde.offset), Decimal("1.57079632679489661923132169163975144209858469968755")
        alpha = decimal_sin_cos((t + s) / (1 + s) * half_pi)[1] / decimal_sin_cos(s / (1 + s) * half_pi)[1]
        return alpha, (1 - alpha**2).sqrt()
    return (1 - t if isinstance(sde, RectifiedFlow) else Decimal(1)), t


@each_sde
def test_alpha_and_sigma_keep_every_digit(sde):
    for t in times(sde):
        node, (alpha, sigma) = sde(t), decimal_alpha_sigma(sde, t)
        # 1e-14 is 45 roundings; alpha near a zero at t_max inherits its argument's rounding
        assert abs(float(Decimal(node.sigma) / sigma - 1)) < 1e-14
        assert abs(float(Decimal(node.alpha) - alpha)) < 1e-14 * float(alpha) + 1e-15


@each_sde
def test_sigma_keeps_every_digit_of_float32(sde):
    t = torch.tensor(times(sde)).clamp(sde.t_min, sde.t_max)[:20]
    exact = torch.tensor([float(decimal_alpha_sigma(sde, float(v))[1]) for v in t], dtype=torch.float64)
    # 1e-6 is 8 roundings of float32
    assert float((sde.sigma(t).double() / exact - 1).abs().max()) < 1e-6
    assert sde.sigma(t).dtype == torch.float32


@each_sde
def test_derivatives_are_those_of_alpha_and_sigma(sde):
    for t in times(sde)[1:-1]:
        node, h = sde(t), Decimal("1e-12")
        forward, back = decimal_alpha_sigma(sde, Decimal(t) + h), decimal_alpha_sigma(sde, Decimal(t) - h)
        # central differences in 50 digits: relative truncation h^2 / t^2 < 1e-13 for every t here
        for derivative, plus, minus in zip((node.dalpha, node.dsigma), forward, back, strict=True):
            assert derivative == pytest.approx(float((plus - minus) / (2 * h)), rel=1e-12, abs=1e-14)


# f and g^2 as Song et al. 2021 print them, with beta(t) = 0.1 + 19.9 t and B its integral
COEFFICIENTS = {
    "vp": lambda t, beta, integral: (-beta / 2, beta),
    "subvp": lambda t, beta, integral: (-beta / 2, beta * -math.expm1(-2 * integral)),
    "ve": lambda t, beta, integral: (0.0, 2 * math.log(50 / 0.01) * (0.01 * 5000**t) ** 2),
    "edm": lambda t, beta, integral: (0.0, 2 * t),
    "rectified_flow": lambda t, beta, integral: (-1 / (1 - t), 2 * t / (1 - t)),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_drift_and_diffusion_are_the_published_ones(name):
    sde = make_sde(name)
    for t in times(sde):
        f, g2 = COEFFICIENTS[name](t, 0.1 + 19.9 * t, 0.1 * t + 9.95 * t * t)
        node = sde(t)
        # g^2 = 2 sigma (sigma' - f sigma): two terms of one sign on VP, so a few roundings
        assert node.f == pytest.approx(f, rel=1e-12, abs=1e-14)
        assert node.g2 == pytest.approx(g2, rel=1e-11)
        x = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
        assert torch.allclose(sde.drift(x, t), f * x, rtol=1e-12, atol=1e-14)
        assert sde.diffusion(t) == pytest.approx(math.sqrt(g2), rel=1e-11)


@each_sde
def test_t_of_lam_is_the_inverse(sde):
    for t in times(sde, 201):
        # 1e-12 of t; at VE's t = 0 the rounding of lam itself, of order 1, moves t by 1e-16
        assert sde.t_of_lam(sde(t).lam) == pytest.approx(t, rel=1e-12, abs=1e-15)


@dataclass(frozen=True)
class Users(SDE):
    """Only alpha and sigma: the rest follows."""

    t_min: float = 0.01
    t_max: float = 0.9

    def alpha(self, t):
        return 1 - t**2

    def sigma(self, t):
        return t + 0.5 * t**3


def test_a_users_path_needs_only_alpha_and_sigma():
    sde = Users()
    for t in times(sde, 101):
        node = sde(t)
        assert (node.alpha, node.sigma) == pytest.approx((1 - t**2, t + 0.5 * t**3), rel=1e-15)
        assert (node.dalpha, node.dsigma) == pytest.approx((-2 * t, 1 + 1.5 * t**2), rel=1e-15)
        f = -2 * t / (1 - t**2)
        g2 = 2 * (t + 0.5 * t**3) * (1 + 1.5 * t**2) - 2 * f * (t + 0.5 * t**3) ** 2
        assert (node.f, node.g2) == pytest.approx((f, g2), rel=1e-13)
        assert sde.t_of_lam(node.lam) == pytest.approx(t, rel=1e-12)
    assert sde.t_of_lam(100.0) == 0.01  # beyond the ends, the ends
    assert sde.t_of_lam(-100.0) == 0.9


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow()], ids=str)
def test_root_finding_agrees_with_the_closed_forms(sde):
    for t in times(sde, 21):
        assert SDE.t_of_lam(sde, sde(t).lam) == pytest.approx(t, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    "sde",
    [*SDES, Users(), LearnedVP("linear", -9.0, 6.0), bent(gamma_min=-9.0, gamma_max=6.0), DDPMChain("linear").sde()],
    ids=str,
)  # fmt: skip
def test_many_times_at_once_are_the_single_ones(sde):
    high, low = sde(sde.t_min).lam, sde(sde.t_max).lam
    lam = torch.linspace(low - 1, high + 1, 101, dtype=torch.float64)
    single = [min(max(sde.t_of_lam(min(max(v, low), high)), sde.t_min), sde.t_max) for v in lam.tolist()]
    for found in (sde.times_of_lams(lam), SDE.times_of_lams(sde, lam)):
        # lam is rounded to 1e-15 of up to 10, which a slope of 1 at the least turns into 1e-14
        assert found.tolist() == pytest.approx(single, rel=1e-12, abs=1e-13)
    assert (sde.times_of_lams(lam)[:3] == sde.t_max).all()  # beyond the ends, the ends


class Faster(VP):
    """A path of a user with another integral of beta."""

    def integral(self, t):
        return super().integral(t) ** 2


def test_a_derived_path_does_not_inherit_an_inverse_that_is_not_its_own():
    sde = Faster(t_min=0.1)
    for t in (0.2, 0.5, 0.9):
        assert sde.t_of_lam(sde(t).lam) == pytest.approx(t, rel=1e-12)
        assert float(sde.times_of_lams(torch.tensor([sde(t).lam], dtype=torch.float64))) == pytest.approx(t, rel=1e-12)


def test_numbers_of_the_reference():
    sde = VP(t_min=1e-5)
    # each to the digits that are printed there
    assert sde(1.0).ratio == pytest.approx(152.17, abs=0.005)
    assert sde(1e-3).ratio == pytest.approx(0.010486, abs=5e-7)
    assert sde(1e-5).ratio == pytest.approx(0.0010005, abs=5e-8)
    assert VE()(1.0).sigma == pytest.approx(50, rel=1e-14)
    assert VE()(0.0).sigma == 0.01
    assert VE()(0.5).sigma == pytest.approx(math.sqrt(0.5), rel=1e-14)


@each_sde
def test_tensor_times_are_float_times(sde):
    values = times(sde, 7)
    batch = sde(torch.tensor(values, dtype=torch.float64))
    for i, t in enumerate(values):
        node = sde(t)
        for name in ("t", "alpha", "sigma", "dalpha", "dsigma", "lam", "ratio", "f", "g2"):
            # vectorised and scalar elementary functions may differ in the last bits
            assert float(getattr(batch, name)[i]) == pytest.approx(getattr(node, name), rel=1e-13, abs=1e-15), name
    assert not batch.sigma.requires_grad
    assert sde(torch.tensor(values)).alpha.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(sde(torch.tensor(values, dtype=torch.float64)).dsigma, batch.dsigma)


@pytest.mark.parametrize("sde", [VP(), VE(), EDM(), SubVP()], ids=str)
def test_the_prior_is_a_normal(sde):
    std = {VP: 1.0, VE: math.hypot(1, 50), EDM: math.hypot(1, 80), SubVP: None}[type(sde)]
    alpha, sigma = decimal_alpha_sigma(sde, sde.t_max)
    std = std or float((alpha**2 + sigma**2).sqrt())
    assert sde.prior().std == pytest.approx(std, rel=1e-14)
    x = 3 * torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.distributions.Normal(0.0, torch.tensor(std, dtype=torch.float64)).log_prob(x).sum((1, 2))
    assert torch.allclose(sde.prior().log_prob(x), exact, rtol=1e-13, atol=0)


@each_sde
def test_the_reverse_sde_of_gaussian_data(sde):
    v, mean = 0.3, torch.tensor([1.0, -2.0], dtype=torch.float64)
    denoiser = scoresde.targets.Gaussian(mean, v).denoiser(sde)
    x = torch.tensor([[0.5, 4.0], [-1.0, 0.0]], dtype=torch.float64)
    for t in times(sde, 5):
        node = sde(t)
        score = -(x - node.alpha * mean) / (node.alpha**2 * v + node.sigma**2)
        reverse, flow = sde.reverse(denoiser), sde.reverse(denoiser, probability_flow=True)
        scale = float((node.g2 * score).abs().max() + (node.f * x).abs().max()) + 1e-300
        assert float((reverse.drift(x, t) - (node.f * x - node.g2 * score)).abs().max()) < 1e-12 * scale
        assert float((flow.drift(x, t) - (node.f * x - 0.5 * node.g2 * score)).abs().max()) < 1e-12 * scale
        velocity = denoiser.predict(x, node).velocity(node)  # the same ODE, written with x0 and eps
        assert float((flow.drift(x, t) - velocity).abs().max()) < 1e-11 * scale
        assert reverse.diffusion(t) == sde.diffusion(t) == math.sqrt(node.g2)
        assert flow.diffusion(t) == 0.0


@each_sde
def test_the_clean_node_is_the_data(sde):
    assert (sde.clean.alpha, sde.clean.sigma, sde.clean.lam, sde.clean.ratio) == (1.0, 0.0, math.inf, 0.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vp(beta_min=20, beta_max=0.1)", "VP: needs 0 < beta_min < beta_max"),
        ("vp(beta_min=0)", "VP: needs 0 < beta_min"),
        ("vp(beta_max=nan)", "beta_max"),
        ("vp(t_min=0)", "vp: t_min must be positive"),
        ("vp(t_min=2)", "VP: t_min=2 must be less than t_max=1"),
        ("vp(t_max=nan)", "t_max"),
        ("subvp(t_min=-1)", "subvp: t_min must be positive"),
        ("ve(sigma_min=50, sigma_max=0.01)", "VE: needs 0 < sigma_min < sigma_max"),
        ("ve(sigma_min=0)", "VE: needs 0 < sigma_min"),
        ("edm(t_min=0)", "edm: t_min must be positive"),
        ("cosine(t_max=1)", "Cosine: needs t_max < 1, where alpha is 0"),
        ("cosine(offset=0)", "cosine: offset must be positive"),
        ("rectified_flow(t_max=1)", "RectifiedFlow: needs t_max < 1, where alpha is 0"),
        ("rf(t_min=0)", "rectified_flow: t_min must be positive"),
        ("vpp", "no SDE 'vpp'; did you mean vp"),
        ("vp(beta=1)", "no option of vp 'beta'; did you mean beta_"),
    ],
)
def test_bad_parameters_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        make_sde(spec)


@each_sde
@pytest.mark.parametrize("off", [-1.0, math.nan, math.inf, 1e6])
def test_a_time_outside_the_range_is_refused(sde, off):
    with pytest.raises(InputError, match=r"^t=\S+ is outside \[\S+, \S+\], where \S+.* is defined$"):
        sde(off)


@pytest.mark.parametrize(
    "sde",
    [
        *SDES,
        VE(sigma_min=0.02, sigma_max=348.0),
        SubVP(beta_max=15.0, t_min=0.05),
        EDM(t_max=40.0),
        Cosine(offset=0.01, t_max=0.99),
        RectifiedFlow(t_min=1e-4),
    ],
    ids=str,
)
def test_a_spec_makes_the_path_again(sde):
    assert make_sde(str(sde)) == sde
    assert type(make_sde(str(sde))) is type(sde)


def test_names_and_aliases():
    assert {"vp", "subvp", "ve", "edm", "cosine", "rectified_flow"} <= set(scoresde.sdes.names())
    for alias, sde in [("VPSDE", VP()), ("sub-VP", SubVP()), ("smld", VE()), ("flow", RectifiedFlow())]:
        assert make_sde(alias) == sde
    assert make_sde("vp(0.2, beta_max=10)") == VP(0.2, 10.0) == VP(beta_min=0.2, beta_max=10.0)


@each_sde
def test_many_nodes_are_those_of_their_times(sde):
    times = [float(t) for t in torch.linspace(sde.t_min, sde.t_max, 37, dtype=torch.float64)]
    for node, t in zip(sde.nodes(times), times, strict=True):
        one = sde(t)
        # the last digit may differ: a processor has two ways to an exponential, for one number and for several
        for name in ("t", "alpha", "sigma", "dalpha", "dsigma"):
            assert getattr(node, name) == pytest.approx(getattr(one, name), rel=1e-14)
    assert sde.nodes([]) == []
    with pytest.raises(InputError, match=r"is outside \["):
        sde.nodes([sde.t_max, sde.t_max + 1])
