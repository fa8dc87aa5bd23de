"""Bounds between the reverse SDE and the ODE, against densities in closed form.

A score -kappa y / (c + r^2) of y = x / alpha is right for N(0, c) where kappa = 1, and else belongs to no diffusion.
All is then linear, and with w = c + r^2 both the SDE's density and its bound are sums of powers of w.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise, product

import pytest
import torch
from closed_forms import Shifted, Shrunk, exact, exact_prior, mixture

import scoresde
from scoresde import continuous_bound, log_prob, plug_in_bound
from solvers import InputError, Prediction, generator

SDE, C = scoresde.VE(0.05, 20.0), 0.5
W_0, W_1 = (C + SDE(t).ratio ** 2 for t in (SDE.t_min, SDE.t_max))
MEMBERS = (0.0, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Linear:
    """The score -kappa y / (c + r^2) on a path with alpha = 1."""

    kappa: float
    sde: scoresde.SDE = SDE

    def predict(self, x, node, **conditions):
        wide = node.like(x)
        eps = self.kappa * wide.sigma / (C + wide.sigma**2) * x
        return Prediction(x - wide.sigma * eps, eps)


def normal(x, variance):
    return (-0.5 * x**2 / variance - 0.5 * math.log(2 * math.pi * variance)).sum(1)


def density(k, kappa, x):
    """log p (B,) of the SDE: backwards its variance obeys dv/dw = (2 - k) kappa v / w - (1 - k), and it starts from
    N(0, w_1)."""
    p = (2 - k) * kappa
    a = (1 - k) / (p - 1) if k < 1 else 0.0
    return normal(x, a * W_0 + (W_1 - a * W_1) * (W_0 / W_1) ** p)


def bound(k, kappa, x):
    """The bound's expectation (B,): upwards the mean square m of a path obeys dm/dw = k kappa m / w + 1 - k, and the
    bound loses (1 - k) kappa^2 m / (2 w^2) - (1 - k/2) kappa / w, by w."""
    p = k * kappa
    a = (1 - k) / (1 - p) if k < 1 else 0.0
    first = (x**2 - a * W_0) / W_0**p  # m = a w + first w^p

    def over(w):  # the integral of m / w^2
        return a * math.log(w) + first * (w ** (p - 1) / (p - 1) if p != 1 else math.log(w))

    m = a * W_1 + first * W_1**p
    loss = 0.5 * (1 - k) * kappa**2 * (over(W_1) - over(W_0)) - (1 - k / 2) * kappa * math.log(W_1 / W_0)
    return (-0.5 * m / W_1 - 0.5 * math.log(2 * math.pi * W_1) - loss).sum(1)


def start(x):
    return normal(x, W_1)


# between the ends, which are compared with other functions below; the others are slow
@pytest.mark.parametrize("k", [pytest.param(k, marks=() if k == 0.5 else pytest.mark.slow) for k in MEMBERS])
def test_a_right_score_is_tight_and_almost_the_same_on_every_path(k):
    target, sde = mixture(2), scoresde.VP()
    x = target.sample(48, generator(1))
    errors = []
    for steps in (25, 50, 100):
        found = plug_in_bound(
            target.denoiser(sde), x, k, steps=steps, draws=4, divergence="exact", prior=exact_prior(target, sde)
        )
        error = found.nats - exact(target, sde, x)
        stderr = float(found.stderr.square().sum().sqrt()) / 48
        # the steps' own error: 0.12 nats at 25 of them, and of second order
        assert abs(float(error.mean())) < 4 * stderr + 0.15 * (25 / steps) ** 2
        errors.append(float(found.stderr.square().mean().sqrt()))
    if k < 1:  # nothing but the steps makes paths differ, to first order
        assert all(a > 1.8 * b for a, b in pairwise(errors)), errors
    assert errors[-1] < 0.1


# every score once, and every member but the ODE, see below; the other pairs are slow
ONCE = ((0.0, 0.7), (0.5, 1.2), (0.9, 1.0))


@pytest.mark.parametrize(
    ("k", "kappa"),
    [
        pytest.param(k, kappa, marks=() if (k, kappa) in ONCE else pytest.mark.slow)
        for k, kappa in product(MEMBERS, (1.0, 0.7, 1.2))
    ],
)
def test_closed_form_of_a_wrong_score(k, kappa):
    x = torch.tensor([[0.1, -0.2, 0.4], [1.0, 0.3, -0.9], [0.0, -1.5, 0.0]], dtype=torch.float64).repeat(8, 1)
    steps = 100 if k < 1 else 200  # where the error is the steps' alone
    found = plug_in_bound(Linear(kappa), x, k, steps=steps, draws=16, divergence="exact", prior=start)
    error = (found.nats - bound(k, kappa, x)).view(8, 3).mean(0)
    stderr = found.stderr.square().view(8, 3).sum(0).sqrt() / 8
    assert (error.abs() < 4 * stderr + 8e-3).all(), (error, stderr)  # 8e-3: the steps


def test_order_and_limits_in_closed_form():
    x = torch.tensor([[0.1], [1.0], [2.0]], dtype=torch.float64)
    for kappa in (0.7, 1.2):
        gaps = torch.stack(
            [density(k, kappa, x) - bound(k, kappa, x) for k in (0.0, 0.5, 0.9, 1 - 1e-4, 1 - 1e-5, 1.0)]
        )
        assert (gaps[:-1] > 0).all()  # a bound, of a model whose score is wrong
        assert torch.allclose(gaps[-1], torch.zeros(3).double(), atol=1e-12)  # of the ODE the value itself
        assert torch.allclose(gaps[3] / gaps[4], torch.full((3,), 10.0).double(), rtol=0.05)  # of first order in 1 - k
        ode = log_prob(Linear(kappa), x, steps=400, divergence="exact", prior=start).nats
        assert torch.allclose(ode, density(1.0, kappa, x), rtol=0, atol=4e-3)
    # with the right score all are one model, and every member is tight wherever the data are
    for k in MEMBERS:
        assert torch.allclose(bound(k, 1.0, x), normal(x, W_0), atol=1e-12)
        assert torch.allclose(density(k, 1.0, x), normal(x, W_0), atol=1e-12)


def test_at_one_it_is_the_value_of_the_ode():
    """The same step, Heun's, in y and log p against r, and the trapezoid for log p against log r: equal as h^2."""
    target, sde = mixture(2), scoresde.VP()
    x = target.sample(8, generator(1))
    found = plug_in_bound(target.denoiser(sde), x, 1.0, steps=200, draws=2, divergence="exact")
    ode = log_prob(target.denoiser(sde), x, "heun", steps=200, divergence="exact")
    assert torch.allclose(found.nats, ode.nats, rtol=0, atol=5e-3)
    assert torch.allclose(found.latent, ode.latent, rtol=0, atol=1e-9)
    assert float(found.stderr.abs().max()) < 1e-12
    assert found.kind == "exact ODE value"
    assert float(found.budget["martingale"].abs().max()) == 0


def test_at_zero_it_is_the_continuous_bound():
    """Of a wrong denoiser too: there in the form of denoising score matching, here in the implicit one."""
    sde = scoresde.VP()
    wrong = scoresde.targets.GaussianMixture(torch.tensor([[-0.4, 0.2], [0.6, 0.1]]), 0.2).denoiser(sde)
    n = 200
    one = torch.tensor([[0.9, -0.3]], dtype=torch.float64)
    x = one.expand(n, -1)
    first = sde(sde.t_min)
    noised = x + first.ratio * torch.randn(x.shape, generator=generator(5), dtype=torch.float64)
    mine = plug_in_bound(Shrunk(wrong), noised, 0.0, steps=100, draws=4, divergence="exact")
    theirs = continuous_bound(Shrunk(wrong), x, draws=256)
    spread = math.hypot(float(mine.nats.std()), float(theirs.nats.std())) / math.sqrt(n)
    assert abs(float(mine.nats.mean() - theirs.nats.mean())) < 4 * spread
    assert "reverse SDE" in theirs.kind
    assert "lower bound" in mine.kind
    # and wrong it is: a bound of the right score lies elsewhere
    right = plug_in_bound(wrong, noised, 0.0, steps=100, draws=4, divergence="exact")
    assert abs(float(mine.nats.mean() - right.nats.mean())) > 8 * spread


def test_probes_are_each_paths_own_and_in_the_standard_error():
    target, sde = mixture(16), scoresde.VP()
    one = target.sample(1, generator(2))
    x = one.expand(100, -1)
    found = plug_in_bound(target.denoiser(sde), x, 1.0, steps=20, draws=8)
    whole = plug_in_bound(target.denoiser(sde), one, 1.0, steps=20, draws=1, divergence="exact")
    assert abs(float(found.nats.mean() - whole.nats)) < 4 * float(found.nats.std()) / 10
    # the mean square of the announced error is the variance seen, to a relative error of about sqrt(2 / 100)
    assert abs(float(found.stderr.square().mean() / found.nats.var()) - 1) < 4 * math.sqrt(2 / 100)
    assert found.kind == "estimate of the ODE value"
    assert float(whole.stderr) == 0  # nothing was drawn
    single = plug_in_bound(target.denoiser(sde), one, 1.0, steps=20, draws=1)
    assert math.isnan(float(single.stderr))
    assert math.isnan(float(single.interval()[0]))


@pytest.mark.parametrize(("k", "kappa", "draws"), [(0.0, 0.7, 32), (0.5, 0.7, 32), (0.5, 1.0, 8)])
def test_intervals_cover_as_often_as_they_say(k, kappa, draws):
    x = torch.tensor([[1.0, -0.4]], dtype=torch.float64).expand(400, -1)
    found = plug_in_bound(Linear(kappa), x, k, steps=30, draws=draws, divergence="exact", prior=start)
    # the expectation, the steps' error included: the mean over all, whose own error is a twentieth of one's
    low, high = found.interval()
    assert 0.92 <= float(((low < found.nats.mean()) & (found.nats.mean() < high)).double().mean()) <= 0.98
    assert abs(float(found.nats.mean() - bound(k, kappa, x)[0])) < 4 * float(found.nats.std()) / 20 + 0.03
    assert found.freedom.tolist() == [draws - 1] * 400
    assert f"standard error of the paths: {float(found.stderr.mean()):.3g} nats a sample" in str(found)


def test_what_is_drawn_is_named():
    x, options = torch.zeros(2, 2, dtype=torch.float64), {"steps": 5, "draws": 2}
    both = plug_in_bound(Linear(1.0), x, 0.5, **options)
    assert both.stderr_of == "the paths and the trace's probes"
    assert plug_in_bound(Linear(1.0), x, 1.0, **options).stderr_of == "the trace's probes"
    none = plug_in_bound(Linear(1.0), x, 1.0, divergence="orthogonal(probes=2)", **options)
    assert (none.stderr_of, none.kind, none.stderr.tolist()) == ("", "exact ODE value", [0, 0])
    assert "standard error" not in str(none)
    single = plug_in_bound(Linear(1.0), x, 0.5, steps=5, draws=1)
    assert "standard error of the paths and the trace's probes: not known" in str(single)
    assert all(torch.isnan(end).all() for end in single.interval())


def test_rows_are_alone_and_the_budget_adds_up():
    denoiser = scoresde.Denoiser(Shifted(), scoresde.VP(), predicts="x0")
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0.0, 0.5, -0.5])
    options = {"steps": 10, "draws": 2, "bin_width": 0.25}
    whole = plug_in_bound(denoiser, x, 0.5, condition={"y": y}, batch_size=2, **options)
    alone = plug_in_bound(denoiser, x[1:2], 0.5, condition={"y": y[1:2]}, seeds=[1], **options)
    assert torch.allclose(whole.nats[1:2], alone.nats, rtol=0, atol=1e-9)
    assert torch.allclose(sum(whole.budget.values()), whole.nats, rtol=0, atol=1e-12)
    assert torch.allclose(whole.budget["offset"], torch.tensor(4 * math.log(0.25)).double())
    assert torch.allclose(whole.bits_per_dim, -whole.nats / (4 * math.log(2)))
    assert (whole.nfe, whole.vjps) == (40, 40)
    # a path does not depend on how many there are
    more = plug_in_bound(denoiser, x, 0.5, condition={"y": y}, **(options | {"draws": 3}))
    assert torch.allclose(more.latent, whole.latent, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": 1.5}, "interpolation must be between 0, the reverse SDE, and 1, the ODE, got 1.5"),
        ({"interpolation": -0.1}, "interpolation must be between 0"),
        ({"draws": 0}, "draws must be a positive integer"),
        ({"seeds": [1]}, "got 1 seeds for 2 samples"),
        ({"bin_width": 0.0}, "bin_width must be positive"),
        ({"t_max": 0.5}, "the paths end at t=0.5, before t_max=1"),
        ({"x": torch.zeros(2)}, "must be floats"),
        ({"steps": 0}, "positive integer"),
        ({"seeds": 5}, "got 5 seeds for 2 samples"),
        ({"bin_width": math.inf}, "bin_width must be a positive, finite number, got inf"),
        ({"prior": lambda y: y}, r"the prior must return the log-density \(2,\) of each state, got shape \(2, 2\)"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message):
        plug_in_bound(Linear(1.0), **({"x": torch.zeros(2, 2), "steps": 5} | change))
    with pytest.raises(InputError, match="not finite"):
        plug_in_bound(replace(Linear(1.0), kappa=math.nan), torch.zeros(2, 2), steps=5)
