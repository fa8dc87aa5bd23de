"""Scores of posterior draws on cases whose value is known, and the problems with exact posteriors."""

import math

import pytest
import torch

from scoresde import InputError
from scoresde.benchmark import posterior_metrics as metrics
from scoresde.benchmark.posterior_problems import DIGITS, digits_problem, mixture_problem
from scoresde.models.targets import Empirical, Gaussian, GaussianMixture
from scoresde.operators import Inpaint, Matrix
from solvers import generator

pytestmark = pytest.mark.quick


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


WIDE = GaussianMixture(
    4 * normal(5, 3, seed=2), torch.tensor([0.01, 0.02, 0.01, 0.03, 0.02]), [1.0, 2.0, 3.0, 4.0, 0.0]
)


def test_the_sliced_distance_of_a_shift():
    """W1 of x and x + c is |c . v| along each direction v, its mean over the sphere in 3 dimensions |c| / 2."""
    x, c = normal(500, 3), torch.tensor([0.3, -0.4, 1.2]).double()
    # uniform on [0, |c|] over directions in 3 dimensions: 4 standard errors of 64 of them
    assert metrics.sliced_w1(x, x + c) == pytest.approx(0.65, abs=4 * 1.3 / math.sqrt(12 * 64))
    line = normal(500, 1)
    assert metrics.sliced_w1(line, line + 0.7) == pytest.approx(0.7, abs=1e-12)
    assert metrics.sliced_w1(line, line[torch.randperm(500, generator=generator(1))]) == 0
    # of samples of different sizes: points 0 and 1 against 0, 0, 1
    assert metrics.sliced_w1(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [1.0]])) == pytest.approx(1 / 6)
    # two Gaussians: the shift, within 4 standard errors of the mean difference, sqrt(2 / n)
    assert metrics.sliced_w1(normal(9000, 1), normal(9000, 1, seed=1) + 2) == pytest.approx(
        2, abs=4 * math.sqrt(2 / 9000)
    )


def test_total_variation_of_known_shares():
    index = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    assert metrics.total_variation(index, torch.tensor([0.3, 0.2, 0.5]).double()) == pytest.approx(0, abs=1e-7)
    assert metrics.total_variation(index, torch.tensor([0.1, 0.2, 0.5, 0.2])) == pytest.approx(0.2)
    assert metrics.total_variation(index, torch.tensor([0.0, 0.0, 0.0, 1.0])) == pytest.approx(1)
    weights = torch.tensor([0.1, 0.4, 0.5])
    assert metrics.class_weights(torch.tensor([1, 0, 1]), weights).tolist() == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_chi2_of_scaled_draws(factor):
    """Draws with ``factor`` times the deviation about their component have chi2 = factor^2."""
    n = 4000
    drawn = WIDE.sample(n, generator(3))
    index, chi2 = metrics.assign(WIDE, drawn)
    means = WIDE.means[index]
    found = metrics.assign(WIDE, means + factor * (drawn - means))
    assert torch.equal(found.component, index)  # the components lie far apart
    # 4 standard errors: chi2 of d dimensions over d has the variance 2 / d
    assert float(found.chi2.mean()) == pytest.approx(factor**2, abs=4 * factor**2 * math.sqrt(2 / 3 / n))
    assert torch.allclose(found.chi2, factor**2 * chi2, rtol=1e-9)
    assert metrics.total_variation(index, WIDE.log_weights.exp()) < 4 * 0.5 * 4 * math.sqrt(0.25 / n)
    assert not (index == 4).any()  # the component of weight 0


def test_the_log_density_gap_of_a_gaussian():
    """Of draws shifted by c: |c|^2 / 2 v; of draws scaled by f: d (f^2 - 1) / 2; exactly on symmetric sets."""
    half = normal(400, 3)
    truth = torch.cat([half, -half])
    truth = truth / truth.square().mean().sqrt()  # mean 0 and mean square exactly 1
    target = Gaussian(torch.zeros(3).double(), 1.0)
    c = torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64)
    assert metrics.log_density_gap(target, truth + c, truth) == pytest.approx(0.125, abs=1e-12)
    assert metrics.log_density_gap(target, 0.8 * truth, truth) == pytest.approx(1.5 * (0.64 - 1), abs=1e-12)


def test_the_residual_in_units_of_the_noise():
    operator = Matrix(normal(3, 5), sigma=0.2)
    x = normal(2000, 5, seed=1)
    noise = normal(2000, 3, seed=2)
    y = operator(x) + 0.2 * noise
    assert metrics.residual(operator, y, x) == pytest.approx(float(noise.square().mean()), rel=1e-12)
    assert metrics.residual(operator, operator(x), x) == 0


def test_the_effective_size():
    assert float(metrics.effective_size(torch.full((8,), -900.0))) == pytest.approx(8)
    one, two = metrics.effective_size(torch.tensor([[0.0, -math.inf, -math.inf], [math.log(2.0), 0.0, 0.0]]))
    assert float(one) == pytest.approx(1)
    assert float(two) == pytest.approx(16 / 6)  # weights 2, 1, 1


def test_calibration_of_exact_narrow_and_shifted_draws():
    n, count = 400, 19
    operator, prior = Matrix(normal(2, 3), sigma=0.5), Gaussian(normal(3, seed=4), 1.0)
    source = generator(5)
    x = prior.sample(n, source)
    y = operator(x) + 0.5 * torch.randn(n, 2, dtype=torch.float64, generator=source)
    posteriors = [prior.posterior(operator, row) for row in y]
    draws = torch.stack([p.sample(count, source) for p in posteriors])
    exact = metrics.calibration(x, draws)
    assert exact.ranks.shape == (n, 16)
    # uniform ranks: 3 dimensions of information at least, so 4 standard errors of 400 independent observations
    assert exact.central == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / n))
    assert float(exact.ranks.double().mean()) == pytest.approx(9.5, abs=4 * math.sqrt(33.25 / n))
    assert float(exact.p_values.min()) > 1e-4  # 16 tests: a chance of 2e-3
    centre = draws.mean(1, keepdim=True)
    narrow = metrics.calibration(x, centre + 0.5 * (draws - centre))
    assert narrow.central < 0.65
    assert float(narrow.p_values.max()) < 1e-6
    shifted = metrics.calibration(x, draws + 1)
    assert float(shifted.p_values.min()) < 1e-6


def test_calibration_breaks_ties_evenly():
    """A data set: the true row is often among the draws; its ranks are uniform all the same."""
    rows = normal(6, 2)
    operator, prior = Inpaint(torch.tensor([True, False]), sigma=1.0), Empirical(rows)
    source = generator(6)
    x = prior.sample(1000, source)
    y = operator(x) + torch.randn(1000, 1, dtype=torch.float64, generator=source)
    draws = torch.stack([prior.posterior(operator, row).sample(19, source) for row in y])
    found = metrics.calibration(x, draws)
    assert found.central == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 1000))
    assert float(found.p_values.min()) > 1e-4


def test_draws_that_failed_are_counted():
    prior = Gaussian(torch.zeros(2).double(), 1.0)
    x = normal(50, 2)
    x[3, 1] = math.nan
    assert metrics.scores(prior, x, normal(50, 2, seed=1))["failed"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.assign(Gaussian(torch.zeros(2), torch.tensor([1.0, 0.0])), normal(3, 2)), "is not singular"),
        (lambda: metrics.residual(Matrix(normal(3, 5)), normal(1, 3), normal(2, 5)), "give it a sigma above 0"),
        (lambda: metrics.calibration(normal(3, 2), normal(3, 20, 2)), "a multiple of ten less one draws.*got 20"),
        (lambda: metrics.calibration(normal(3, 2), normal(2, 19, 2)), r"draws must be \(n, L, \*\)"),
        (lambda: mixture_problem(9, 0.1), "m must be one of 1 to 8, got 9"),
        (lambda: digits_problem("blok_means"), "did you mean block_means"),
        (lambda: mixture_problem(4, 0.1).scores(normal(4, 9, 8), normal(8, 9, 8)), r"draws must be \(8, S, \*\)"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# sw and tv of exact draws against exact draws, 8 observations with 250 draws each, measured by other code
TRUTH = {
    (4, 0.1): (0.012, 0.008),
    (1, 0.1): (0.031, 0.022),
}


@pytest.mark.parametrize(("m", "sigma"), list(TRUTH))
def test_the_truth_of_the_mixture_problems(m, sigma):
    problem = mixture_problem(m, sigma)
    source = generator(0)
    truth, other = problem.draws(250, source), problem.draws(250, source)
    found = problem.scores(other, truth)
    # distances of random sets vary by a third; these numbers of another program are one such draw each
    for name, wanted in zip(("sw", "tv"), TRUTH[m, sigma], strict=True):
        assert wanted / 2.5 < found[name] < 1.6 * wanted
    assert found["chi2"] == pytest.approx(1, abs=4 * math.sqrt(2 / 8 / 2000))
    # the expectation is 0; log p varies by sqrt(d / 2) = 2 nats within a component: 4 errors of a difference of means
    assert abs(found["dlogp"]) < 4 * 2 * math.sqrt(2 / 2000)
    # a sample from the prior scores as another program's: 1.154, .953, 29.7 and .918, .880, 25.7
    prior = torch.stack([problem.prior.sample(250, source) for _ in problem.y])
    far = problem.scores(prior, truth)
    wanted = {4: (1.154, 0.953, 29.7, 246), 1: (0.918, 0.880, 25.7, 198)}[m]
    for name, value in zip(("sw", "tv", "chi2", "dlogp"), wanted, strict=True):
        assert far[name] == pytest.approx(value, rel=0.1)  # 10 %: those are one draw of 2000 samples
    again = mixture_problem(m, sigma)
    assert torch.equal(again.y, problem.y)


@pytest.mark.parametrize(
    ("kind", "sw", "tv", "class_tv"),
    [
        ("inpaint", 0.053, 0.22, 0.05),
        ("block_means", 0.100, 0.47, 0.10),
        ("phase", 0.023, 0.05, 0.01),
        ("tanh", 0.092, 0.38, 0.10),
        ("quantise", 0.060, 0.25, 0.06),
    ],
)
def test_the_truth_of_the_digits_problems(kind, sw, tv, class_tv):
    problem = digits_problem(kind)
    source = generator(0)
    truth, other = problem.draws(50, source), problem.draws(50, source)
    found = problem.scores(other, truth)
    # ten observations of 50 draws: shares vary by a tenth, distances of the few rows behind ``phase`` by a half
    assert found["sw"] == pytest.approx(sw, rel=0.5 if kind == "phase" else 0.15)
    assert found["tv"] == pytest.approx(tv, rel=0.2)
    assert found["class_tv"] == pytest.approx(class_tv, abs=0.03)
    assert found["off"] == 0
    # the weights are a posterior: log p(y) is the mean of the likelihood, and the true row counts
    assert set(DIGITS) == {"inpaint", "block_means", "phase", "tanh", "quantise"}
    for posterior, x in zip(problem.posteriors, problem.x, strict=True):
        own = int(metrics.nearest_rows(problem.prior.data, x.unsqueeze(0))[0])
        assert float(posterior.log_weights[own].exp()) > 1e-4
