"""Exact posteriors against integrals of prior times likelihood, and against sums written out."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import scoresde
from scoresde import InputError
from scoresde.models.targets import Empirical, Gaussian, GaussianMixture
from scoresde.operators import Custom, Downsample, Inpaint, Matrix, Quantise, Tanh, log_likelihood
from solvers import Node, generator

pytestmark = pytest.mark.quick


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


LINE = GaussianMixture(torch.tensor([[-1.0], [0.4], [0.9]]), torch.tensor([0.09, 0.36, 0.04]), [0.3, 0.5, 0.2])
PLANE = GaussianMixture(
    torch.tensor([[-1.0, 0.5], [1.2, -0.3], [0.0, 1.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]], [[0.05, 0.0], [0.0, 0.05]]]),
    [0.5, 0.3, 0.2],
)


def moments(points, log_density):
    """The integral, the mean and the second moments of a density on a lattice, in units of one cell."""
    top = log_density.max()
    share = (log_density - top).exp()
    total = share.sum()
    mean = share @ points / total
    return float(total.log() + top), mean, torch.einsum("n,ni,nj->ij", share / total, points, points)


def mixture_moments(target):
    weights, means = target.log_weights.exp(), target.means
    vectors = (
        torch.eye(means.shape[1]).double().expand(len(means), -1, -1) if target.vectors is None else target.vectors
    )
    covariances = torch.einsum("kde,ke,kfe->kdf", vectors, target.values, vectors)
    mean = weights @ means
    return mean, torch.einsum("k,kij->ij", weights, covariances + means.unsqueeze(2) * means.unsqueeze(1))


# The trapezoid rule with spacing 0.025, at most a third of the narrowest deviation w here, has a relative error of
# exp(-2 (pi w / 0.025)^2) < 1e-30; the mass outside of [-7, 7] is below 1e-20. What remains is rounding.
CASES = [
    (LINE, Matrix(torch.tensor([[0.8]]), sigma=0.3), torch.tensor([0.5])),
    (LINE, Matrix(torch.tensor([[0.8], [-0.5]]), sigma=0.2), torch.tensor([0.4, 0.1])),
    (LINE, Inpaint(torch.tensor([True]), sigma=2.0), torch.tensor([-3.0])),
    (PLANE, Inpaint(torch.tensor([False, True]), sigma=0.1), torch.tensor([0.8])),
    (PLANE, Downsample(2, sigma=0.2), torch.tensor([0.6])),
    (PLANE, Matrix(torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 4.0]]), sigma=0.5), torch.tensor([1.0, 0.1, 2.2])),
]


@pytest.mark.parametrize(
    ("target", "operator", "y"), CASES, ids=lambda v: str(v) if not isinstance(v, torch.Tensor) else ""
)
def test_the_posterior_of_a_mixture_by_quadrature(target, operator, y):
    d = target.means.shape[1]
    line = torch.linspace(-7, 7, 561, dtype=torch.float64)
    points = line.unsqueeze(1) if d == 1 else torch.cartesian_prod(line, line)
    log_density = target.log_prob(points) + log_likelihood(operator, y.double().unsqueeze(0), points)
    log_total, mean, second = moments(points, log_density)
    assert target.log_evidence(operator, y) == pytest.approx(
        log_total + d * math.log(float(line[1] - line[0])), abs=1e-9
    )
    found = mixture_moments(target.posterior(operator, y))
    assert torch.allclose(found[0], mean, rtol=0, atol=1e-9)
    assert torch.allclose(found[1], second, rtol=0, atol=1e-9)
    # the density itself, at points where it is not 0
    x = normal(20, d)
    exact = target.log_prob(x) + log_likelihood(operator, y.double().unsqueeze(0), x) - target.log_evidence(operator, y)
    assert torch.allclose(target.posterior(operator, y).log_prob(x), exact, rtol=1e-9, atol=1e-9)


def test_the_evidence_is_the_density_of_y():
    """Of a Gaussian in closed form, and the average over draws from the prior is Bayes' formula."""
    factor, a = normal(5, 5), normal(3, 5, seed=1)
    covariance, mean, y = factor @ factor.T, normal(5, seed=2), normal(3, seed=3)
    prior = Gaussian(mean, covariance)
    exact = MultivariateNormal(a @ mean, a @ covariance @ a.T + 0.09 * torch.eye(3).double()).log_prob(y)
    assert prior.log_evidence(Matrix(a, sigma=0.3), y) == pytest.approx(float(exact), rel=1e-12)
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + 0.09 * torch.eye(3).double())
    posterior = prior.posterior(Matrix(a, sigma=0.3), y)
    assert torch.allclose(posterior.means[0], mean + gain @ (y - a @ mean), rtol=1e-10, atol=1e-11)
    spread = posterior.vectors[0] * posterior.values[0] @ posterior.vectors[0].T
    assert torch.allclose(spread, covariance - gain @ a @ covariance, rtol=0, atol=1e-11)


def test_without_noise_what_is_seen_is_fixed():
    """sigma = 0 is the limit of small noise; directions of y that no sample has are dropped."""
    a = torch.tensor([[1.0, 0.5], [2.0, 1.0]]).double()  # of rank 1: the second row repeats the first
    y = torch.tensor([0.7, 1.4]).double()
    exact = PLANE.posterior(Matrix(a), y)
    near = PLANE.posterior(Matrix(a, sigma=1e-5), y)
    # the noise moves means and covariances by the order of sigma^2
    assert torch.allclose(exact.means, near.means, rtol=0, atol=1e-8)
    assert torch.allclose(exact.log_weights, near.log_weights, rtol=0, atol=1e-7)
    drawn = exact.sample(200, generator(0))
    assert torch.allclose(drawn @ a.T, y.expand(200, 2), rtol=0, atol=1e-7)  # the root of a variance of rounding size
    assert torch.allclose((exact.values.min(1).values), torch.zeros(3).double(), atol=1e-14)
    assert (exact.values.max(1).values > 0.02).all()
    # the evidence is the density of y along the range of A: of the first number of y, divided by the stretch sqrt(5)
    one = PLANE.log_evidence(Matrix(a[:1]), y[:1])
    assert PLANE.log_evidence(Matrix(a), y) == pytest.approx(one - 0.5 * math.log(5), abs=1e-10)
    assert PLANE.log_evidence(Matrix(a[:1]), y[:1]) == pytest.approx(
        PLANE.log_evidence(Matrix(a[:1], sigma=1e-6), y[:1]), abs=1e-9
    )


DATA = normal(300, 2, 3, seed=7)
ANY = [
    (Tanh(2, scale=2.0, sigma=0.3), torch.tensor([0.5, -0.9])),
    (Quantise(3, sigma=0.8), torch.zeros(2, 3)),
    (Custom(lambda x: (x**2).sum((1, 2)).unsqueeze(1), sigma=0.5), torch.tensor([4.0])),
    (Inpaint(torch.tensor([True, False, True]), sigma=0.4), torch.zeros(4)),
]


@pytest.mark.parametrize(("operator", "y"), ANY, ids=lambda v: str(v) if not isinstance(v, torch.Tensor) else "")
def test_the_posterior_of_a_data_set_is_a_sum(operator, y):
    raw = np.random.default_rng(0).uniform(0, 2, len(DATA))
    prior = Empirical(DATA, raw)
    sums = [
        raw[i] / raw.sum() * math.prod(
            math.exp(-0.5 * ((float(a) - float(b)) / operator.sigma) ** 2) / (operator.sigma * math.sqrt(2 * math.pi))
            for a, b in zip(y.flatten(), operator(row.unsqueeze(0)).flatten(), strict=True)
        )
        for i, row in enumerate(DATA)
    ]  # fmt: skip
    assert prior.log_evidence(operator, y) == pytest.approx(math.log(sum(sums)), rel=1e-11)
    posterior = prior.posterior(operator, y)
    weights = torch.tensor(sums).double() / sum(sums)
    assert torch.allclose(posterior.log_weights.exp(), weights, rtol=1e-9, atol=1e-15)
    node = scoresde.VP()(0.4)
    x = node.alpha * DATA[:5] + node.sigma * normal(5, 2, 3, seed=8)
    for i, row in enumerate(x):
        logs = torch.stack([-((row - node.alpha * each) ** 2).sum() / (2 * node.sigma**2) for each in DATA])
        share = torch.softmax(weights.log() + logs, 0)
        assert torch.allclose(posterior.predict(x, node).x0[i], (share.view(-1, 1, 1) * DATA).sum(0), atol=1e-10)
        density = torch.logsumexp(weights.log() + logs, 0) - 3 * math.log(2 * math.pi * node.sigma**2)
        assert float(posterior.log_prob(x, node)[i]) == pytest.approx(float(density), rel=1e-10)
    # counts of drawn rows, binomial: 5 standard deviations
    drawn = posterior.sample(4000, generator(1)).flatten(1)
    counts = (drawn.unsqueeze(1) == DATA.flatten(1)).all(2).sum(0)
    assert ((counts - 4000 * weights).abs() < 5 * (4000 * weights * (1 - weights)).sqrt() + 1).all()


def test_equal_weights_are_the_default():
    node, x = scoresde.VP()(0.3), normal(4, 2, 3)
    same = Empirical(DATA, [2.0] * 300)
    assert torch.equal(same.predict(x, node).x0, Empirical(DATA).predict(x, node).x0)
    assert torch.equal(same.log_prob(x, node), Empirical(DATA).log_prob(x, node))


@pytest.mark.parametrize("sde", [scoresde.VP(), scoresde.VE(), scoresde.RectifiedFlow()], ids=str)
def test_the_posterior_score_is_the_prior_score_plus_that_of_y_given_x_t(sde):
    """log p(y | x_t) = log p_t(x | y) - log p_t(x) + log p(y), at several nodes, by quadrature and by differences."""
    operator, y = Matrix(torch.tensor([[0.8, -0.4]]), sigma=0.3), torch.tensor([0.5])
    targets = [(PLANE, PLANE.posterior(operator, y))]
    points = PLANE.sample(400, generator(5))
    rows = Empirical(points)
    targets.append((rows, rows.posterior(operator, y)))
    for prior, posterior in targets:
        for share in (0.1, 0.4, 0.8):
            node = sde(sde.t_min + share * (sde.t_max - sde.t_min))
            x = node.alpha * points[:6] + node.sigma * normal(6, 2, seed=6)
            scale = math.hypot(node.alpha, node.sigma)
            step = 1e-4 * scale

            def log_y(x, prior=prior, posterior=posterior, node=node):
                return posterior.log_prob(x, node) - prior.log_prob(x, node)

            shifts = step * torch.eye(2).double()
            # central differences: an error of step^2 times the third derivative, and rounding / step, both below 1e-5
            slopes = torch.stack([(log_y(x + s) - log_y(x - s)) / (2 * step) for s in shifts], 1)
            scores = posterior.denoiser(sde).predict(x, node).score(node) - prior.denoiser(sde).predict(x, node).score(
                node
            )
            assert torch.allclose(scores, slopes, rtol=1e-4, atol=1e-5 / scale)
            if prior is rows:  # p(y | x_t) is the mean of the likelihood over p(x0 | x_t), a sum
                logs = -0.5 * (torch.cdist(x, node.alpha * points) / node.sigma) ** 2
                likelihood = log_likelihood(operator, y.double().unsqueeze(0), points)
                exact = torch.logsumexp(logs + likelihood, 1) - torch.logsumexp(logs, 1)
                assert torch.allclose(log_y(x) + rows.log_evidence(operator, y), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PLANE.posterior(Tanh(2, sigma=0.1), torch.zeros(2)), r"Empirical\(mixture.sample\(n\)\).posterior"),
        (lambda: PLANE.posterior(Downsample(2), torch.zeros(2)), r"got observations of shape \(2,\)"),
        (lambda: PLANE.posterior(Downsample(2), torch.zeros(1, 1)), "got observations of shape"),
        (lambda: PLANE.posterior(Downsample(2), torch.tensor([math.nan])), "the observation is not finite"),
        (lambda: GaussianMixture(DATA, 0.0).posterior(Downsample(3), torch.zeros(2, 1)), "no density of y; give it a"),
        (lambda: Empirical(DATA).posterior(Tanh(2), torch.zeros(2)), "give it a sigma above 0"),
        (lambda: Empirical(DATA, [1.0, 2.0]), "weights must be 300 numbers of at least 0"),
        (lambda: Empirical(DATA, [-1.0] * 300), "weights must be 300 numbers of at least 0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_samples_of_any_shape_and_a_point_of_no_width():
    prior = GaussianMixture(DATA[:4], 0.2)
    posterior = prior.posterior(Downsample(3, sigma=0.1), torch.tensor([[0.1], [0.3]]))
    assert posterior.sample(5).shape == (5, 2, 3)
    assert posterior.predict(normal(5, 2, 3), Node(0.0, 1.0, 0.5)).x0.shape == (5, 2, 3)
    # components without width keep their places, and their weights are those of points
    y, operator = torch.zeros(2, 1), Downsample(3, sigma=0.5)
    sharp, points = GaussianMixture(DATA, 0.0).posterior(operator, y), Empirical(DATA).posterior(operator, y)
    assert torch.allclose(sharp.log_weights, points.log_weights, rtol=0, atol=1e-10)
    assert torch.allclose(sharp.means.view_as(DATA), DATA, rtol=0, atol=1e-12)
