"""Input that no method for inverse problems and no guidance can use: one clear line each, from the Python functions.

The lines about guidance alone are in test_guidance, those about options and specs in test_restore.
"""

import pytest
import torch
from test_posterior_loop_scores import Unknown

import scoresde
from scoresde.models.targets import Gaussian
from scoresde.operators.base import operators
from scoresde.operators.linear import Inpaint, Matrix
from scoresde.posterior.base import posteriors
from solvers import InputError

pytestmark = pytest.mark.quick
D, DTYPE = 4, torch.float64
MODEL = Gaussian(torch.zeros(D, dtype=DTYPE), 1.0).denoiser(scoresde.VP())
SEEN, Y = Matrix(torch.eye(D, dtype=DTYPE)[:2], sigma=0.5), torch.ones(2, dtype=DTYPE)
HALF = torch.arange(D) % 2 == 0


def of_sigma(sigma):
    made = Unknown()
    object.__setattr__(made, "sigma", sigma)
    return made


def told(message, posterior, operator=SEEN, y=Y, **more):
    with pytest.raises(InputError, match=message) as raised:
        scoresde.restore(MODEL, operator, y, posterior, samples=2, **{"steps": 20, **more})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", posteriors.names())
def test_what_a_method_cannot_use_is_told(method):
    """Of every method: another shape of y, no noise where it divides by it, nonlinear operators, no singular values."""
    rule = posteriors.make(method)
    told(
        r"observes samples \(4,\) as y \(2,\), or \(n, 2,\) for n of them; got the shape \(3,\)",
        method,
        y=torch.ones(3),
    )
    told("the observation must contain finite real numbers only", method, y=Y / 0)
    if rule.noise == "needed":
        told(
            "divides by the noise of the observation: give .* a sigma above 0",
            method,
            Matrix(torch.eye(D, dtype=DTYPE)[:2]),
        )
    if not rule.nonlinear:
        told(
            f"{method} needs a linear operator, which tanh.* is not; these take it: .*dps", method, "tanh(2, sigma=0.3)"
        )
    if rule.nonlinear and method != "tds":
        rounded = r"follows the gradient of the residual, which is 0 for quantise.*; these take it: tds$"
        told(f"{method} {rounded}", method, "quantise(3, sigma=0.3)", torch.ones(D))
    if method in ("pigdm", "jfps", "diffpir", "ddnm", "ddrm", "tds"):
        told(f"{method} needs the singular values of unknown, unknown for", method, of_sigma(0.5))


@pytest.mark.parametrize(
    ("message", "method", "more"),
    [
        (r"mmps: tanh.* is not linear; mmps\(linearise=True\)", "mmps", {"operator": "tanh(2, sigma=0.3)"}),
        ("tds needs a solver that draws noise, which heun does not: use ddpm", "tds", {"solver": "heun"}),
        ("one step at a time; dpmpp_2m_sde has none: use ddpm", "tds", {"solver": "dpmpp_2m_sde"}),
        ("particles must be an integer of at least 2, got 1", "tds(particles=1)", {}),
        ("ddrm takes ddim's steps in the singular vectors of A: leave out heun", "ddrm", {"solver": "heun"}),
        ("daps solves an ODE from each level, and ddpm draws noise", "daps", {"solver": "ddpm"}),
        ("split_gibbs draws x0 given a noisy state, and heun is deterministic", "split_gibbs", {"solver": "heun"}),
        ("rho_min=20 is above rho_max=10", "split_gibbs(rho_min=20)", {}),
        (r"rho_min=0.001 is outside \[", "split_gibbs(rho_min=0.001)", {}),
        (r"sdedit: level=900 is outside \[", "sdedit(level=900)", {}),
        ("repaint: jump=30 is more than the 19 steps", "repaint(jump=30)", {}),
        ("tds.*makes evaluations of its own: set its options", "tds", {"steps": None, "nfe": 20}),
        ("c has 2 rows for 3 samples", "mmps", {"y": Y.expand(3, 2), "condition": {"c": Y}}),
    ],
)  # fmt: skip
def test_options_and_solvers_that_do_not_suit_are_told(message, method, more):
    told(message, method, **more)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inpaint(torch.ones(D)), "inpaint: mask must be boolean, True where a number is seen; got numbers"),
        (lambda: Inpaint(HALF & ~HALF), "the mask shows nothing: it is False everywhere"),
        (lambda: Inpaint(HALF, sigma=-1), "sigma must be at least 0"),
        (lambda: operators.make("inpant(mask=m.npy)"), "did you mean inpaint"),
        (lambda: posteriors.make("mmsp"), "did you mean mmps"),
        (lambda: posteriors.make("dps(scale=inf)"), "scale must be"),
        (lambda: scoresde.condition(MODEL, SEEN, Y, "tds"), r"is no denoiser.*use scoresde\.restore"),
    ],
)  # fmt: skip
def test_values_that_are_none_are_told(make, message):
    with pytest.raises(InputError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
