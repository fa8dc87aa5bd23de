"""Exact targets against densities, integrals and sums done another way."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import scoresde
from scoresde import InputError
from scoresde.models.targets import Empirical, Gaussian, GaussianMixture
from solvers import Node, generator

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.VE(), scoresde.RectifiedFlow(), scoresde.SubVP()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=str)
MEANS = torch.tensor([[-1.0, 0.5], [1.2, -0.3], [0.0, 1.5]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]], [[0.05, 0.0], [0.0, 0.05]]], dtype=torch.float64
)
EYE = torch.eye(2, dtype=torch.float64)
WEIGHTS = [0.5, 0.3, 0.2]
MIXTURE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def nodes(sde):
    return [sde(sde.t_min + share * (sde.t_max - sde.t_min)) for share in (0.0, 0.1, 0.5, 1.0)]


def points(node, n=50):
    x = torch.randn(n, 2, generator=generator(0), dtype=torch.float64)
    return 1.5 * math.hypot(node.alpha, node.sigma) * x


@each_sde
def test_the_density_is_the_mixtures(sde):
    for node in [None, *nodes(sde)]:
        alpha, sigma = (1.0, 0.0) if node is None else (node.alpha, node.sigma)
        x = points(node or Node(0.0, 1.0, 0.0))
        terms = [
            math.log(w) + MultivariateNormal(alpha * m, alpha**2 * c + sigma**2 * EYE).log_prob(x)
            for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
        ]
        exact = torch.logsumexp(torch.stack(terms), 0)
        assert torch.allclose(MIXTURE.log_prob(x, node), exact, rtol=1e-11, atol=1e-11)


@each_sde
def test_the_score_is_the_gradient_of_the_density(sde):
    for node in nodes(sde):
        x = points(node).requires_grad_()
        (gradient,) = torch.autograd.grad(MIXTURE.log_prob(x, node).sum(), x)
        prediction = MIXTURE.denoiser(sde).predict(x.detach(), node)
        scale = float(gradient.abs().max())
        assert float((prediction.score(node) - gradient).abs().max()) < 1e-11 * scale
        back = node.alpha * prediction.x0 + node.sigma * prediction.eps
        assert float((back - x).detach().abs().max()) < 1e-13 * float(x.detach().abs().max())


def test_the_density_integrates_to_one():
    # the trapezoid rule on [-8, 8]^2 with spacing 0.04, a fifth of the least deviation: it converges faster than any
    # power, exp(-2 (pi 0.22 / 0.04)^2) < 1e-100 here, and the mass outside is below erfc(6 / 0.64) < 1e-38
    line = torch.linspace(-8, 8, 401, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    assert float(MIXTURE.log_prob(x).exp().sum()) * 0.04**2 == pytest.approx(1, abs=1e-12)
    node = scoresde.VP()(0.2)
    assert float(MIXTURE.log_prob(x, node).exp().sum()) * 0.04**2 == pytest.approx(1, abs=1e-12)


def test_the_moments_of_samples():
    n = 40000
    x = MIXTURE.sample(n, generator(1))
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    mean = weights @ MEANS
    second = (weights.view(3, 1, 1) * (COVARIANCES + MEANS.unsqueeze(2) * MEANS.unsqueeze(1))).sum(0)
    covariance = second - torch.outer(mean, mean)
    # 5 standard errors: sqrt(C_ii / n) for means; for products at most sqrt(E x_i^4) / sqrt(n), and E x^4 < 6 here
    assert ((x.mean(0) - mean).abs() < 5 * torch.sqrt(covariance.diagonal() / n)).all()
    assert ((x.T.cov() - covariance).abs() < 5 * math.sqrt(6 / n)).all()
    # the shares of the components, by the nearest in density; a binomial count each
    shares = torch.stack([MultivariateNormal(m, c).log_prob(x) for m, c in zip(MEANS, COVARIANCES, strict=True)])
    posterior = torch.softmax(shares + torch.tensor(WEIGHTS).log().unsqueeze(1), 0).mean(1)
    assert ((posterior - weights).abs() < 5 * torch.sqrt(weights * (1 - weights) / n)).all()
    assert torch.equal(MIXTURE.sample(3, generator(1)), MIXTURE.sample(3, generator(1)))


@each_sde
def test_the_prediction_is_the_posterior_mean_by_quadrature(sde):
    means, deviations, weights = np.array([-1.0, 0.4]), np.array([0.3, 0.6]), np.array([0.3, 0.7])
    target = GaussianMixture(torch.tensor(means).unsqueeze(1), torch.tensor(deviations**2), torch.tensor(weights))
    x0 = np.linspace(-7, 7, 140001)  # spacing 1e-4, below a fiftieth of the narrowest likelihood here
    prior = sum(w * np.exp(-0.5 * ((x0 - m) / d) ** 2) / d for m, d, w in zip(means, deviations, weights, strict=True))
    for node in nodes(sde)[1:]:
        scale = math.hypot(node.alpha, node.sigma)
        for x in (-1.5 * scale, 0.1 * scale, 2.0 * scale):
            exponent = -0.5 * ((x - node.alpha * x0) / node.sigma) ** 2
            posterior = prior * np.exp(exponent - exponent.max())
            exact = float((posterior * x0).sum() / posterior.sum())
            found = target.predict(torch.tensor([[x]], dtype=torch.float64), node)
            assert float(found.x0) == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_covariances_may_be_given_in_every_form():
    node, x = scoresde.VP()(0.3), points(scoresde.VP()(0.3))
    means = MEANS[:2]
    for given, matrices in [
        (0.2, [0.2 * torch.eye(2)] * 2),
        (torch.tensor([[0.2, 0.5], [0.1, 0.3]]), [torch.diag(torch.tensor(v)) for v in ([0.2, 0.5], [0.1, 0.3])]),
    ]:
        full = GaussianMixture(means, torch.stack(matrices).double())
        assert torch.allclose(GaussianMixture(means, given).log_prob(x, node), full.log_prob(x, node), rtol=1e-6)
    three = GaussianMixture(MEANS, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    full = GaussianMixture(MEANS, torch.stack([v * torch.eye(2, dtype=torch.float64) for v in (0.1, 0.2, 0.3)]))
    assert torch.allclose(three.predict(x, node).x0, full.predict(x, node).x0, rtol=1e-12, atol=1e-12)


def test_weights_are_normalised_and_may_be_zero():
    x, node = points(Node(0.0, 1.0, 0.5)), Node(0.5, 0.9, 0.5)
    scaled = GaussianMixture(MEANS, COVARIANCES, [5.0, 3.0, 2.0])
    assert torch.allclose(scaled.log_prob(x), MIXTURE.log_prob(x), rtol=1e-12)
    two = GaussianMixture(MEANS, COVARIANCES, [1.0, 1.0, 0.0])
    alone = GaussianMixture(MEANS[:2], COVARIANCES[:2])
    assert torch.allclose(two.log_prob(x), alone.log_prob(x), rtol=1e-12)
    assert torch.allclose(two.predict(x, node).x0, alone.predict(x, node).x0, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(1,), (6,), (2, 3), (1, 2, 3)], ids=str)
def test_samples_may_have_any_shape(shape):
    d, node = math.prod(shape), scoresde.VP()(0.3)
    means = torch.randn(2, *shape, generator=generator(2), dtype=torch.float64)
    factor = torch.randn(2, d, d, generator=generator(3), dtype=torch.float64)
    covariances = factor @ factor.transpose(1, 2) + 0.1 * torch.eye(d)
    shaped, flat = GaussianMixture(means, covariances), GaussianMixture(means.flatten(1), covariances)
    x = torch.randn(7, *shape, generator=generator(4), dtype=torch.float64)
    assert shaped.sample(7, generator(5)).shape == (7, *shape)
    assert torch.equal(shaped.sample(7, generator(5)).flatten(1), flat.sample(7, generator(5)))
    assert torch.equal(shaped.log_prob(x, node), flat.log_prob(x.flatten(1), node))
    assert torch.equal(shaped.predict(x, node).x0.flatten(1), flat.predict(x.flatten(1), node).x0)
    assert shaped.predict(x, node).eps.shape == x.shape


def test_a_gaussian_is_linear_regression():
    # E[x0 | x] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m)
    mean, covariance = MEANS[0], COVARIANCES[0]
    for node in nodes(scoresde.VP()):
        x = points(node)
        gain = node.alpha * covariance @ torch.linalg.inv(node.alpha**2 * covariance + node.sigma**2 * EYE)
        exact = mean + (x - node.alpha * mean) @ gain.T
        assert torch.allclose(Gaussian(mean, covariance).predict(x, node).x0, exact, rtol=1e-11, atol=1e-11)
    x = points(Node(0.0, 1.0, 0.0))
    normal = torch.distributions.Normal(mean, math.sqrt(0.25)).log_prob(x).sum(1)
    assert torch.allclose(Gaussian(mean, 0.25).log_prob(x), normal, rtol=1e-13)
    diagonal = torch.tensor([0.25, 4.0], dtype=torch.float64)
    normal = torch.distributions.Normal(mean, diagonal.sqrt()).log_prob(x).sum(1)
    assert torch.allclose(Gaussian(mean, diagonal).log_prob(x), normal, rtol=1e-13)
    assert torch.allclose(Gaussian(mean).log_prob(x), Gaussian(mean, 1.0).log_prob(x), rtol=1e-15)


DATA = torch.randn(40, 2, 3, generator=generator(7), dtype=torch.float64)


@each_sde
def test_a_data_set_is_a_sum_of_point_masses(sde):
    for node in nodes(sde)[1:]:
        pick = DATA[:9] * node.alpha + node.sigma * torch.randn(9, 2, 3, generator=generator(8), dtype=torch.float64)
        # word for word: weights exp(-|x - alpha x_i|^2 / (2 sigma^2)) (2 pi sigma^2)^(-d / 2) / N
        for i, x in enumerate(pick):
            logs = torch.stack([-((x - node.alpha * row) ** 2).sum() / (2 * node.sigma**2) for row in DATA])
            density = torch.logsumexp(logs, 0) - math.log(40) - 3 * math.log(2 * math.pi * node.sigma**2)
            mean = (torch.softmax(logs, 0).view(-1, 1, 1) * DATA).sum(0)
            found = Empirical(DATA).denoiser(sde).predict(pick, node)
            assert float(Empirical(DATA).log_prob(pick, node)[i]) == pytest.approx(float(density), rel=1e-11)
            assert torch.allclose(found.x0[i], mean, rtol=1e-10, atol=1e-11)
            assert torch.allclose(found.eps[i], (x - node.alpha * mean) / node.sigma, rtol=1e-9, atol=1e-9)


def test_a_data_set_is_a_mixture_of_no_width():
    node, sharp = scoresde.VP()(0.4), GaussianMixture(DATA, 1e-14)
    x = points(node, 30).repeat(1, 3).view(30, 2, 3)
    # a variance of 1e-14 shifts logs and means by 1e-14 alpha^2 / sigma^2 times |x|^2 / sigma^2: below 1e-10
    assert torch.allclose(Empirical(DATA).log_prob(x, node), sharp.log_prob(x, node), rtol=0, atol=1e-9)
    assert torch.allclose(Empirical(DATA).predict(x, node).x0, sharp.predict(x, node).x0, rtol=0, atol=1e-9)


def test_rows_in_chunks_and_at_times_of_their_own():
    sde = scoresde.VP()
    times = torch.linspace(0.1, 0.9, 11, dtype=torch.float64)
    x = torch.randn(11, 2, 3, generator=generator(9), dtype=torch.float64)
    for target in (Empirical(DATA), Empirical(DATA, chunk=4), GaussianMixture(DATA, 0.1)):
        together, log_prob = target.predict(x, sde(times)), target.log_prob(x, sde(times))
        for i, t in enumerate(times.tolist()):
            alone = target.predict(x[i : i + 1], sde(t))
            assert torch.allclose(together.x0[i], alone.x0[0], rtol=1e-11, atol=1e-12)
            assert torch.allclose(together.eps[i], alone.eps[0], rtol=1e-11, atol=1e-12)
            assert float(log_prob[i]) == pytest.approx(float(target.log_prob(x[i : i + 1], sde(t))), rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (25, 8), (40, 50)])
def test_a_row_has_the_bits_that_it_has_alone(size, dtype):
    """Products of matrices round differently for other numbers of rows, which a test of a few rows may miss."""
    means = torch.randn(*size, generator=generator(3))
    root = torch.randn(*size, size[1], generator=generator(4))
    x = torch.randn(70, size[1], generator=generator(5)).to(dtype)
    targets = (
        GaussianMixture(means, 0.1),
        GaussianMixture(means, root @ root.mT + 0.1 * torch.eye(size[1])),
        Empirical(means.repeat(5, 1) + 0.1),
    )
    for target, t in itertools.product(targets, (0.1, 0.9)):
        node = scoresde.VP()(t)
        whole, densities = target.predict(x, node), target.log_prob(x, node)
        for first, count in ((0, 1), (11, 1), (5, 2), (30, 33), (69, 1)):
            rows = slice(first, first + count)
            alone = target.predict(x[rows], node)
            assert torch.equal(alone.x0, whole.x0[rows]), (target, count)
            assert torch.equal(alone.eps, whole.eps[rows]), (target, count)
            assert torch.equal(target.log_prob(x[rows], node), densities[rows]), (target, count)


def test_draws_of_a_data_set_are_its_rows():
    drawn = Empirical(DATA).sample(4000, generator(0))
    matches = (drawn.flatten(1).unsqueeze(1) == DATA.flatten(1)).all(2)
    assert (matches.sum(1) == 1).all()
    counts = matches.sum(0).double()
    # multinomial with 100 expected each: 5 standard deviations of sqrt(100)
    assert ((counts - 100).abs() < 50).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GaussianMixture(MEANS, torch.ones(3, 5)),
            r"covariances of shape \(3, 5\) do not fit 3 means of size 2",
        ),
        (lambda: GaussianMixture(MEANS, torch.ones(2)), r"covariances of shape \(2,\) do not fit"),
        (lambda: GaussianMixture(MEANS, -0.1), "a covariance is not positive semi-definite"),
        (lambda: GaussianMixture(MEANS, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]] * 3)), "not positive semi-definite"),
        (lambda: GaussianMixture(MEANS, math.nan), "not positive semi-definite"),
        (lambda: GaussianMixture(MEANS, 1.0, [1.0, 1.0]), "weights must be 3 numbers of at least 0"),
        (lambda: GaussianMixture(MEANS, 1.0, [1.0, 1.0, -1.0]), "weights must be 3 numbers"),
        (lambda: GaussianMixture(MEANS, 1.0, [0.0, 0.0, 0.0]), "weights must be 3 numbers"),
        (lambda: GaussianMixture(MEANS, 1.0, [1.0, math.nan, 1.0]), "weights must be 3 numbers"),
        (lambda: MIXTURE.log_prob(torch.zeros(4, 3)), "the target has 2 dimensions, x has 3"),
        (lambda: MIXTURE.predict(torch.zeros(4, 1), scoresde.VP()(0.5)), "the target has 2 dimensions, x has 1"),
        (lambda: Empirical(torch.zeros(0, 3)), "the data set is empty"),
        (lambda: Empirical(torch.tensor([[1.0, math.inf]])), "contains numbers that are not finite"),
        (lambda: Empirical(DATA).log_prob(DATA), "a density only at a node with sigma > 0"),
        (lambda: Empirical(DATA).log_prob(DATA, scoresde.VP().clean), "a density only at a node with sigma > 0"),
        (lambda: Empirical(DATA).predict(torch.zeros(4, 5), scoresde.VP()(0.5)), "has 6 dimensions, x has 5"),
        (lambda: GaussianMixture(torch.tensor([[math.nan, 0.0]]), 1.0), "finite"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("form", ["one", "each", "diagonal"])
def test_diagonal_covariances_are_not_rotated(form):
    # the same mixture with matrices goes through the eigenbases; both are exact, so they differ by rounding
    d, node = 24, scoresde.VP()(0.05)
    means = torch.randn(5, d, generator=generator(6), dtype=torch.float64)
    variances = {"one": torch.full((5, d), 0.3), "each": torch.tensor([[0.1], [0.2], [0.3], [0.4], [0.5]]).expand(5, d)}
    full = variances.get(form, 0.1 + torch.rand(5, d, generator=generator(7))).double()
    given = {"one": full[0, 0], "each": full[:, 0], "diagonal": full}[form]
    plain, rotated = GaussianMixture(means, given), GaussianMixture(means, torch.stack([torch.diag(v) for v in full]))
    assert plain.vectors is None  # nothing to multiply with, and no memory of K d^2
    x = node.alpha * plain.sample(40, generator(8)) + node.sigma * torch.randn(40, d, generator=generator(9)).double()
    assert torch.allclose(plain.log_prob(x, node), rotated.log_prob(x, node), rtol=1e-12)
    for mine, other in zip((plain.predict(x, node).x0, plain.predict(x, node).eps),
                           (rotated.predict(x, node).x0, rotated.predict(x, node).eps), strict=True):  # fmt: skip
        assert torch.allclose(mine, other, rtol=1e-11, atol=1e-12)


def test_an_isotropic_mixture_keeps_its_accuracy_at_low_noise():
    # |x - m|^2 expanded into products would lose every digit in float32: |m|^2 is 1e7 times the variance
    means = 3 * torch.randn(4, 64, generator=generator(10), dtype=torch.float64)
    target, node = GaussianMixture(means, 1e-5), Node(0.0, 1.0, 1e-3)
    x = means + 3e-3 * torch.randn(4, 64, generator=generator(11), dtype=torch.float64)
    narrow = x.float()
    exact, found = target.predict(narrow.double(), node), target.predict(narrow, node)
    # one rounding of a number of order 10 over a standard deviation of 3e-3
    assert float((exact.eps - found.eps).abs().max()) < 10 * 2**-23 / 3e-3
    assert float((target.log_prob(narrow, node) - target.log_prob(narrow.double(), node)).abs().max()) < 0.2
