"""Posterior methods that are denoisers, against the exact posterior of Gaussian data.

For Gaussian data p(x0 | y) is Gaussian, and its denoiser is known. Conditional methods must reproduce that denoiser
where they are exact, and must not where their assumption does not hold.
"""

import math
import warnings

import pytest
import torch

import scoresde
from scoresde.models.targets import Gaussian
from scoresde.operators.base import Operator
from scoresde.operators.linear import Inpaint, Matrix
from scoresde.operators.nonlinear import Custom
from scoresde.posterior.base import OBSERVATION, Conditioned, posteriors
from solvers import InputError, Node

pytestmark = pytest.mark.quick
D, M, NOISE = 6, 3, 0.3
DTYPE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


FACTOR = normal(D, D, seed=1)
PRIORS = {
    "identity": torch.eye(D, dtype=DTYPE),
    "diagonal": torch.diag(torch.linspace(0.3, 2, D, dtype=DTYPE)),
    "full": FACTOR @ FACTOR.T / D + 0.1 * torch.eye(D, dtype=DTYPE),
}
SEEN = torch.arange(D) % 2 == 0
OPERATORS = {"dense": Matrix(normal(M, D, seed=2), sigma=NOISE), "mask": Inpaint(SEEN, sigma=NOISE)}
MEAN, Y = normal(D, seed=3), normal(M, seed=4)


def truth(covariance, operator: Operator, y=Y):
    """The posterior N(m + K (y - A m), C - K A C)."""
    a = operator.matrix((D,))
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + NOISE**2 * torch.eye(M, dtype=DTYPE))
    found = covariance - gain @ a @ covariance
    return Gaussian(MEAN + gain @ (y - a @ MEAN), 0.5 * (found + found.T))


def error(method, prior="full", operator="dense", sde="vp"):
    """The largest relative error of x0 and eps, over noise levels from almost none to almost only noise."""
    path, covariance, seen = scoresde.make_sde(sde), PRIORS[prior], OPERATORS[operator]
    made = Conditioned(Gaussian(MEAN, covariance).denoiser(path), seen, Y, posteriors.make(method))
    exact, worst = truth(covariance, seen).denoiser(path), 0.0
    for lam in (3.0, 1.0, 0.0, -2.0):
        node = path.node_of_lam(lam)
        x = math.hypot(node.alpha, node.sigma) * normal(5, D, seed=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tmpd's negative variances
            found, wanted = made.predict(x, node), exact.predict(x, node)
        assert torch.allclose(
            node.alpha * found.x0 + node.sigma * found.eps, x, rtol=0, atol=1e-11 * float(x.abs().max())
        )
        worst = max(worst, float(((found.x0 - wanted.x0).norm(dim=1) / wanted.x0.norm(dim=1)).max()))
    return worst


# the condition of M is at most 1e3 here, so that solving costs three of sixteen digits
EXACT, WRONG = 1e-12, 5e-2
PATHS = ["vp", "ve(sigma_min=0.01, sigma_max=50)", "rectified_flow"]


@pytest.mark.parametrize("sde", PATHS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_mmps_is_exact_for_gaussian_data(prior, operator, sde):
    assert error(f"mmps(iterations={M})", prior, operator, sde) < EXACT


@pytest.mark.parametrize("operator", OPERATORS)
def test_mmps_with_fewer_iterations_is_not(operator):
    assert error("mmps(iterations=1)", "full", operator) > WRONG
    assert error(f"mmps(iterations={M + 20})", "full", operator) < EXACT  # solved rows stay as they are


@pytest.mark.parametrize("method", ["pigdm", "jfps"])
def test_one_variance_is_exact_where_the_data_have_it(method):
    for operator in OPERATORS:
        assert error(method, "identity", operator) < EXACT
        assert error(method, "diagonal", operator) > WRONG
        assert error(method, "full", operator) > WRONG
    wide = Conditioned(
        Gaussian(MEAN, 4.0).denoiser(scoresde.VP()), OPERATORS["dense"], Y, posteriors.make(f"{method}(variance=4)")
    )
    node, x = scoresde.VP()(0.4), normal(3, D)
    wanted = truth(4 * PRIORS["identity"], OPERATORS["dense"]).denoiser(scoresde.VP()).predict(x, node)
    assert torch.allclose(wide.predict(x, node).x0, wanted.x0, rtol=1e-12)


def test_tmpd_is_exact_where_its_matrix_is_diagonal():
    assert error("tmpd", "identity", "mask") < EXACT
    assert error("tmpd", "diagonal", "mask") < EXACT
    assert error("tmpd", "identity", "dense") > WRONG
    assert error("tmpd", "full", "mask") > WRONG


@pytest.mark.parametrize("method", ["naive_dps", "dps", "diffpir(lam=1)", "ddnm"])
def test_the_others_are_not_exact_even_for_unit_gaussians(method):
    for operator in OPERATORS:
        assert error(method, "identity", operator) > WRONG


def test_dps_is_the_published_step_in_the_limit():
    """One step of 1000: x_s moves by -scale grad |res| more than the unconditional ancestral step."""
    path, scale, steps = scoresde.VP(), 0.7, 1000
    prior, seen = Gaussian(MEAN, PRIORS["full"]).denoiser(path), OPERATORS["dense"]
    guided = Conditioned(prior, seen, Y, posteriors.make(f"dps(scale={scale})"))
    for time in (0.1, 0.5, 0.9):
        t, s = path(time), path(time - 1 / steps)
        x = normal(4, D).requires_grad_()
        found = prior.predict(x, t).x0
        (gradient,) = torch.autograd.grad((Y - seen(found)).norm(dim=1).sum(), x)
        kappa = 1 - (s.ratio / t.ratio) ** 2
        moved = s.alpha * kappa * (guided.predict(x.detach(), t).x0 - found.detach())
        # beta of the step's start against its mean over the step: half of 20 / 1000 relative to beta, beta(0.1) = 2.1
        assert torch.allclose(moved, -scale * gradient, rtol=0.02, atol=0)


def test_dps_corrects_x0_equally_on_every_path():
    found = []
    for sde in PATHS:
        path = scoresde.make_sde(sde)
        node = path.node_of_lam(-0.5)
        guided = Conditioned(
            Gaussian(MEAN, PRIORS["full"]).denoiser(path), OPERATORS["dense"], Y, posteriors.make("dps")
        )
        found.append(guided.predict(node.alpha * normal(4, D), node).x0)
    for other in found[1:]:
        assert torch.allclose(found[0], other, rtol=1e-9)  # the nodes are found to 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", posteriors.names())
def test_a_batch_equals_its_rows_alone(method, dtype):
    rule = posteriors.make(method)
    if not hasattr(rule, "predict"):
        pytest.skip("not a denoiser")
    prior, seen = Gaussian(MEAN, PRIORS["full"]).denoiser(scoresde.VP()), OPERATORS["dense"]
    ys, x, node = normal(4, M, seed=7).to(dtype), normal(4, D, seed=8).to(dtype), scoresde.VP()(0.5)
    together = Conditioned(prior, seen, ys, rule).predict(x, node)
    nodes = Node.stack([scoresde.VP()(t) for t in (0.3, 0.5, 0.7, 0.9)], 2)
    apart = Conditioned(prior, seen, ys, rule).predict(x, nodes)
    for i in range(4):
        alone = Conditioned(prior, seen, ys[i], rule).predict(x[i : i + 1], node)
        assert alone.x0.dtype == dtype
        assert torch.equal(alone.x0[0], together.x0[i])
        one = Node(*(part[i : i + 1] for part in nodes._numbers))
        assert torch.equal(Conditioned(prior, seen, ys[i], rule).predict(x[i : i + 1], one).x0[0], apart.x0[i])


def test_mmps_linearises_where_it_may():
    seen = Custom(lambda x: torch.tanh(x[:, :M]), sigma=NOISE)
    with pytest.raises(InputError, match=r"mmps\(linearise=True\)"):
        Conditioned(Gaussian(MEAN, 1.0).denoiser(scoresde.VP()), seen, Y, posteriors.make("mmps"))
    # data in so small a place that tanh is straight there: the posterior is that of the tangent
    small, mean = 1e-4, torch.full((D,), 0.3, dtype=DTYPE)
    prior = Gaussian(mean, small**2)
    guided = Conditioned(
        prior.denoiser(scoresde.VP()), Custom(lambda x: torch.tanh(x[:, :M]), sigma=small), torch.tanh(mean[:M]) + small,
        posteriors.make("mmps(linearise=True)"),
    )  # fmt: skip
    node = scoresde.VP().node_of_lam(math.log(1 / small))
    x = node.alpha * mean + node.sigma * normal(3, D)
    slope, rho2 = 1 / math.cosh(0.3) ** 2, small**2 / 2  # half of the variance is left at r = small
    centre = prior.denoiser(scoresde.VP()).predict(x, node).x0
    res = torch.tanh(mean[:M]) + small - torch.tanh(centre[:, :M])
    moved = rho2 * slope * res / (small**2 + rho2 * slope**2)
    assert torch.allclose((guided.predict(x, node).x0 - centre)[:, :M], moved, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "message"),
    [("pigdm", "needs a linear operator.*take it: .*dps"), ("ddnm", "needs a linear operator")],
)
def test_nonlinear_operators_are_refused(method, message):
    seen = Custom(lambda x: x[:, :M] ** 2, sigma=NOISE)
    with pytest.raises(InputError, match=message):
        Conditioned(Gaussian(MEAN, 1.0).denoiser(scoresde.VP()), seen, Y, posteriors.make(method))


@pytest.mark.parametrize("method", ["naive_dps", "mmps", "tmpd", "jfps", "diffpir"])
def test_measurements_without_noise_are_refused(method):
    with pytest.raises(InputError, match="sigma above 0"):
        Conditioned(Gaussian(MEAN, 1.0).denoiser(scoresde.VP()), Inpaint(SEEN), Y, posteriors.make(method))


def test_observations_of_another_shape_are_refused():
    prior, seen = Gaussian(MEAN, 1.0).denoiser(scoresde.VP()), OPERATORS["dense"]
    with pytest.raises(InputError, match=r"as \(3,\): the observation has the shape \(4,\)"):
        Conditioned(prior, seen, normal(4), posteriors.make("mmps"))
    with pytest.raises(InputError, match="not finite"):
        Conditioned(prior, seen, Y / 0, posteriors.make("mmps"))


def test_observations_travel_with_the_samples():
    prior, seen = Gaussian(MEAN, PRIORS["full"]).denoiser(scoresde.VP()), OPERATORS["dense"]
    ys = normal(4, M, seed=9)
    model = Conditioned(prior, seen, ys, posteriors.make("mmps"))
    whole = scoresde.sample(model, seeds=range(4), solver="dpmpp_2m_sde", nfe=10, dtype=DTYPE)
    parts = scoresde.sample(model, seeds=range(4), solver="dpmpp_2m_sde", nfe=10, dtype=DTYPE, batch_size=3)
    assert torch.equal(whole.x, parts.x)
    other = scoresde.sample(
        Conditioned(prior, seen, Y, posteriors.make("mmps")), seeds=range(4), solver="dpmpp_2m_sde", nfe=10, dtype=DTYPE,
        condition={OBSERVATION: ys},
    )  # fmt: skip
    assert torch.equal(whole.x, other.x)
    assert whole.vjps == 10 * 6  # five products for the conjugate gradients, one for the correction
