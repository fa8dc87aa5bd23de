"""Distances against closed forms, their own definitions, and scipy; intervals against repeated experiments."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from scoresde.benchmark.metrics import DISTANCES, Estimate, bootstrap, compare, frechet, mmd, sliced_wasserstein
from solvers import InputError, generator


def normal(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=generator(seed, 9), dtype=dtype)


def matched(n, mean, root, seed):
    """n points whose mean and covariance (N - 1) are exactly ``mean`` and root root'."""
    z = normal(n, len(mean), seed)
    q, _ = torch.linalg.qr(z - z.mean(0))
    return mean + math.sqrt(n - 1) * q @ root.T


def gaussian_frechet(m1, c1, m2, c2):
    """The closed form, by symmetric square roots."""

    def root(c):
        values, vectors = torch.linalg.eigh(c)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    cross = root(root(c1) @ c2 @ root(c1))
    return float((m1 - m2).square().sum() + torch.trace(c1 + c2 - 2 * cross))


ROOTS = [
    torch.tensor([[1.0, 0, 0], [0.5, 2, 0], [0, 0.3, 0.7]], dtype=torch.float64),
    torch.diag(torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)),
]


@pytest.mark.parametrize(("n", "m"), [(50, 50), (40, 73)])
def test_frechet_of_sets_with_known_moments_is_the_closed_form(n, m):
    means = torch.tensor([[1.0, -2, 0.5], [0.2, 0, 0.1]], dtype=torch.float64)
    x, y = matched(n, means[0], ROOTS[0], 0), matched(m, means[1], ROOTS[1], 1)
    exact = gaussian_frechet(means[0], ROOTS[0] @ ROOTS[0].T, means[1], ROOTS[1] @ ROOTS[1].T)
    assert frechet(x, y) == pytest.approx(exact, rel=1e-12)


def test_frechet_with_fewer_samples_than_dimensions():
    x, y = normal(6, 30, 0), 0.5 + 2 * normal(9, 30, 1)
    exact = gaussian_frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet(x, y) == pytest.approx(exact, rel=1e-6)  # square roots of rounded zeros limit the formula, not us


def test_frechet_converges_to_the_population_value():
    shift = torch.tensor([0.5, 0, 0], dtype=torch.float64)
    exact = gaussian_frechet(shift, ROOTS[0] @ ROOTS[0].T, 0 * shift, ROOTS[1] @ ROOTS[1].T)
    errors = []
    for n in (100, 1600, 25600):
        pairs = [(shift + normal(n, 3, 2 * k) @ ROOTS[0].T, normal(n, 3, 2 * k + 1) @ ROOTS[1].T) for k in range(200)]
        errors.append(math.sqrt(np.mean([(frechet(x, y) - exact) ** 2 for x, y in pairs])))
    assert errors[2] < 0.02 * exact
    assert 3.2 < errors[0] / errors[1] < 5.2  # the rate is n^{-1/2}: 4 each time
    assert 3.2 < errors[1] / errors[2] < 5.2


def test_sliced_wasserstein_of_a_shift_is_analytic():
    delta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = normal(50, 3, 0)
    theta = torch.randn(64, 3, dtype=torch.float64, generator=generator(5, 0))
    theta /= theta.norm(dim=1, keepdim=True)
    expected = float((theta @ delta).square().mean().sqrt())
    assert sliced_wasserstein(x, x + delta, projections=64, seed=5) == pytest.approx(expected, rel=1e-12)
    # over all directions the mean of (theta . delta)^2 is |delta|^2 / d
    many = sliced_wasserstein(x, x + delta, projections=20000)
    assert many == pytest.approx(float(delta.norm()) / math.sqrt(3), rel=0.02)


def test_sliced_wasserstein_in_one_dimension_is_the_best_assignment():
    x, y = normal(40, 1, 0), 0.3 + 2 * normal(40, 1, 1)
    cost = (x - y.T).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    assert sliced_wasserstein(x, y) == pytest.approx(math.sqrt(cost[rows, columns].mean()), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 4), (5, 7), (2, 9)])
def test_sliced_wasserstein_of_unequal_sizes_repeats_every_sample(n, m):
    """Sets of n and m points are the same laws as m-fold and n-fold copies, which have one size."""
    x, y = normal(n, 2, n), normal(m, 2, m)
    copies = sliced_wasserstein(x.repeat(m, 1), y.repeat(n, 1))
    assert sliced_wasserstein(x, y) == pytest.approx(copies, rel=1e-12)
    assert copies > 0.1


def test_mmd_is_its_double_loop():
    x, y = normal(7, 3, 0), 0.5 + normal(5, 3, 1)

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert mmd(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_mmd_is_unbiased():
    values = np.array([mmd(normal(20, 4, 2 * k), normal(30, 4, 2 * k + 1)) for k in range(1500)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert values.min() < 0  # as it must be, to average to 0
    # N(m, 1) in one dimension: E k = 1 + 3 ab + 3 (ab)^2 + (ab)^3 over independent a, b gives, for m = 1 against m = 0,
    # sum_j C(3, j) (E a^j - E b^j)^2 = 3 * 1 + 3 * (2 - 1)^2 + 1 * (4 - 0)^2 = 22
    values = np.array([mmd(1 + normal(20, 1, 2 * k), normal(30, 1, 2 * k + 1)) for k in range(1500)])
    assert abs(values.mean() - 22) < 4 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("name", DISTANCES)
def test_equal_sets_and_symmetry(name):
    metric = DISTANCES[name]
    x, y = normal(30, 5, 0), 1 + normal(40, 5, 1)
    assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-12)
    assert metric(x[torch.randperm(30, generator=generator(0, 3))], y) == pytest.approx(metric(x, y), rel=1e-12)
    if name != "mmd":
        assert metric(x, x) == pytest.approx(0, abs=1e-12)
    images = x[:, :4].reshape(30, 1, 2, 2), y[:, :4].reshape(40, 1, 2, 2)
    assert metric(*images) == metric(x[:, :4], y[:, :4])
    assert metric(x, y, features=lambda v: 3 * v[:, :2]) == metric(3 * x[:, :2], 3 * y[:, :2])


# where the laws differ, and where they are the same: mmd's law is there another, a sum of squares
@pytest.mark.parametrize(
    ("name", "shift"),
    [
        pytest.param(name, shift, marks=() if shift or name == "mmd" else pytest.mark.slow)
        for name, shift in product(DISTANCES, (0.6, 0.0))
    ],
)
def test_intervals_cover_the_expectation(name, shift):
    """The target is the estimator's expectation at these sizes, bias included, from many independent pairs."""
    d, n, m, trials = 4, 60, 81, 120
    metric = DISTANCES[name]
    if name == "sliced_wasserstein":

        def metric(x, y):
            return sliced_wasserstein(x, y, projections=16)

    def pair(k):
        return shift + (1 + shift / 2) * normal(n, d, 2 * k), normal(m, d, 2 * k + 1)

    values = [metric(*pair(10_000 + k)) for k in range(1500)]
    expectation, spread = np.mean(values), np.std(values)
    estimates = [bootstrap(metric, *pair(k), repeats=30, seed=k) for k in range(trials)]
    covered = sum(e.low <= expectation <= e.high for e in estimates)
    # 0.9 rather than 0.95: the metrics are skewed at these sizes; below, the chance of a false alarm is 1e-4
    assert covered >= binom.ppf(1e-4, trials, 0.9)
    # and not by being wide: for different laws the half-width is what a normal interval of the known spread has
    width = np.mean([e.high - e.low for e in estimates]) / (2 * 1.96 * spread)
    assert 0.8 < width < (1.35 if shift else 2.0)


def test_an_interval_is_the_value_and_the_spread_over_halves():
    x, y = normal(9, 2, 0), normal(12, 2, 1)
    seen = []

    def spy(a, b):
        seen.append((a, b))
        return float(a.mean() - b.mean())

    estimate = bootstrap(spy, x, y, repeats=7, seed=3, level=0.9)
    halves, whole = seen[:-1], seen[-1]
    assert torch.equal(whole[0], x)
    assert torch.equal(whole[1], y)
    assert {(len(a), len(b)) for a, b in halves} == {(4, 6)}
    assert all(len(a.unique(dim=0)) == 4 and len(b.unique(dim=0)) == 6 for a, b in halves)
    spread = np.std([float(a.mean() - b.mean()) for a, b in halves], ddof=1)
    reach = 1.9431802805153022 * spread  # Student's 95 % quantile with 6 degrees of freedom
    value = float(x.mean() - y.mean())
    assert estimate.value == value
    assert estimate.low == pytest.approx(value - reach, rel=1e-12)
    assert estimate.high == pytest.approx(value + reach, rel=1e-12)
    assert bootstrap(spy, x, y, repeats=7, seed=3, level=0.9) == estimate
    assert bootstrap(spy, x, y, repeats=7, seed=4, level=0.9) != estimate


def test_compare_applies_features_once_and_bounds_distances_at_zero():
    x, y = normal(40, 3, 0), normal(50, 3, 1)
    calls = []

    def features(v):
        calls.append(len(v))
        return v**2

    found = compare(x, y, ["mmd", "frechet"], features)
    assert calls == [40, 50]
    assert list(found) == ["mmd", "frechet"]
    assert found["frechet"] == bootstrap(frechet, x**2, y**2, floor=0.0)
    assert found["mmd"] == bootstrap(mmd, x**2, y**2)
    assert compare(x, x, ["frechet"])["frechet"].low == 0
    assert compare(x, y, ["mmd"])["mmd"].low < 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(5, 2), "at least two samples"),
        (torch.zeros(5), torch.zeros(5), "at least two samples"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "2 numbers in x, 3 in y"),
        (torch.zeros(5, 2), torch.full((5, 2), math.inf), "5 of the 5 samples of y are not finite"),
        (torch.zeros(3, 2), torch.zeros(5, 2), "at least four samples"),
    ],
)
def test_bad_sets_are_one_clear_line(x, y, message):
    with pytest.raises(InputError, match=message) as caught:
        compare(x, y)
    assert "\n" not in str(caught.value)


def test_bad_options_are_one_clear_line():
    x = normal(8, 2, 0)
    with pytest.raises(InputError, match="no metric 'frechett'; did you mean frechet"):
        compare(x, x, ["frechett"])
    with pytest.raises(InputError, match="features gave 3 rows for the 8 samples of x"):
        compare(x, x, features=lambda v: v[:3])
    with pytest.raises(InputError, match="projections"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(InputError, match="level"):
        bootstrap(frechet, x, x, level=95)
    with pytest.raises(InputError, match="repeats"):
        bootstrap(frechet, x, x, repeats=1)
    assert isinstance(bootstrap(frechet, x, x), Estimate)
