"""Metrics by neighbours, exact transport, classifiers and known laws: closed forms, scikit-learn, SciPy and POT."""

import math
from dataclasses import replace

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import scoresde
from scoresde.benchmark.known_laws import log_density, mode_weights, wasserstein
from scoresde.benchmark.metrics import HIGHER, METRICS, Estimate, FewSamples, compare, sliced_wasserstein
from scoresde.benchmark.neighbours import classifier, coverage, density, precision, recall
from scoresde.benchmark.rows import Row
from scoresde.benchmark.runner import benchmark
from scoresde.benchmark.ties import difference, leaders, marks
from solvers import InputError, generator


def normal(n, d, seed, shift=0.0):
    return shift + torch.randn(n, d, generator=generator(seed, 9), dtype=torch.float64)


def radii(y, k):
    """scikit-learn's: the first neighbour of a sample is the sample itself."""
    return NearestNeighbors(n_neighbors=k + 1).fit(y).kneighbors(y)[0][:, k]


@pytest.mark.parametrize(("n", "m", "shift"), [(40, 60, 0.0), (70, 50, 1.0)])
def test_neighbours_are_those_of_scikit_learn(n, m, shift):
    x, y = normal(n, 3, 0, shift), normal(m, 3, 1)
    apart = np.linalg.norm(x.numpy()[:, None] - y.numpy()[None], axis=2)
    for k in (1, 3, 5):
        balls, own = radii(y.numpy(), k), radii(x.numpy(), k)
        assert precision(x, y, k=k) == pytest.approx((apart <= balls).any(1).mean(), abs=1e-12)
        assert recall(x, y, k=k) == pytest.approx((own >= apart.T).any(1).mean(), abs=1e-12)
        assert density(x, y, k=k) == pytest.approx((apart <= balls).sum() / (k * n), abs=1e-12)
        assert coverage(x, y, k=k) == pytest.approx((apart <= balls).any(0).mean(), abs=1e-12)


def test_neighbours_tell_what_is_missing_from_what_is_wrong():
    y = torch.cat([normal(100, 2, 0), normal(100, 2, 1, 50.0)])
    half, wrong = normal(100, 2, 2), torch.cat([y[:100] + 0.01, normal(100, 2, 3, -50.0)])
    assert precision(half, y) > 0.85 > 0.55 > recall(half, y) > 0.4  # one of two modes is missing
    assert 0.55 > precision(wrong, y) > 0.4  # half of the samples are wrong
    assert density(torch.zeros(50, 2), y) > 1.1  # samples at a mode alone


@pytest.mark.parametrize("d", [1, 6])
def test_coverage_of_one_law_has_its_expectation(d):
    """Naeem et al. 2020, lemma 2: independent of the dimension and of the law."""
    n, k, trials = 60, 5, 200
    expected = 1 - math.prod((n - i) / (2 * n - 1 - i) for i in range(k))
    values = [coverage(normal(n, d, 2 * j), normal(n, d, 2 * j + 1)) for j in range(trials)]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(trials)


def test_the_classifier_is_that_of_scikit_learn():
    x, y = normal(60, 3, 0, 0.7), normal(50, 3, 1)
    draws, half = generator(4, 3), 25
    parts = [z[torch.randperm(len(z), generator=draws)[: 2 * half]].numpy() for z in (x, y)]
    labels = np.repeat([1, 0], half)
    model = KNeighborsClassifier(7).fit(np.concatenate([p[:half] for p in parts]), labels)  # 7 is floor(sqrt(50))
    right = model.score(np.concatenate([p[half:] for p in parts]), labels)
    assert classifier(x, y, seed=4) == pytest.approx(right, abs=1e-12)
    assert 0.6 < right < 1
    assert classifier(normal(400, 3, 2, 9.0), y) == 1


def test_the_classifiers_interval_holds_its_level():
    """At one law the interval contains 1/2 at least as often as it says; at two, it does not."""
    trials = 300
    found = [
        compare(normal(60, 2, 2 * k), normal(80, 2, 2 * k + 1), ["classifier"])["classifier"] for k in range(trials)
    ]
    assert sum(e.low <= 0.5 <= e.high for e in found) >= binom.ppf(1e-4, trials, 0.95)
    assert sum(e.low > 0.5 for e in found) <= binom.ppf(1 - 1e-4, trials, 0.025)
    far = [
        compare(normal(60, 2, 2 * k, 1.5), normal(80, 2, 2 * k + 1), ["classifier"])["classifier"] for k in range(20)
    ]
    assert all(e.low > 0.5 for e in far)


def test_wasserstein_is_exact():
    x = normal(30, 4, 0)
    delta = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    assert wasserstein(x, x + delta) == pytest.approx(float(delta.norm()), rel=1e-12)  # a shift is the best map
    one, two = normal(40, 1, 1), 0.3 + 2 * normal(40, 1, 2)
    assert wasserstein(one, two) == pytest.approx(sliced_wasserstein(one, two), rel=1e-12)  # sorted, in one dimension
    y = normal(20, 4, 3)
    copies = torch.cdist(x.repeat(2, 1), y.repeat(3, 1)).square().numpy()  # both of 60: the same laws
    rows, columns = linear_sum_assignment(copies)
    assert wasserstein(x, y) == pytest.approx(math.sqrt(copies[rows, columns].mean()), rel=1e-9)
    assert wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    same = ot.emd2([], [], torch.cdist(x, x + y.mean(0)).square().numpy())
    assert wasserstein(x, x + y.mean(0)) == pytest.approx(math.sqrt(same), rel=1e-9)


def test_sliced_wasserstein_is_that_of_pot():
    x, y = normal(50, 3, 0), 0.5 + 2 * normal(70, 3, 1)
    directions = torch.randn(64, 3, dtype=torch.float64, generator=generator(7, 0))
    directions /= directions.norm(dim=1, keepdim=True)
    theirs = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.T.numpy(), p=2)
    assert sliced_wasserstein(x, y, projections=64, seed=7) == pytest.approx(theirs, rel=1e-9)


MIXTURE = scoresde.targets.GaussianMixture(torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0]]), 0.1, [1, 2, 5])


def test_weights_of_modes_are_counted():
    centres = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0]])
    x = torch.cat([centres[0].expand(6, 2), centres[1].expand(2, 2), centres[2].expand(2, 2)]) + 0.01
    metric = mode_weights(centres, [1, 2, 5])
    assert metric(x, x) == pytest.approx(0.5 * (abs(0.6 - 1 / 8) + abs(0.2 - 2 / 8) + abs(0.2 - 5 / 8)), rel=1e-12)
    assert mode_weights(centres)(x, x) == 0
    # the expectation of |share - p| of n draws is about sqrt(2 p (1 - p) / (pi n))
    n, weights = 4000, np.array([1, 2, 5]) / 8
    noise = 0.5 * np.sqrt(2 * weights * (1 - weights) / (math.pi * n)).sum()
    values = [metric(MIXTURE.sample(n, generator(k, 5)), x) for k in range(40)]
    assert np.mean(values) == pytest.approx(noise, rel=0.3)


def test_the_log_density_of_a_gaussian_is_its_closed_form():
    """E log p over N(0, s^2) in d dimensions is -d/2 (log 2 pi + s^2) for p = N(0, 1)."""
    d, n = 3, 20_000
    metric = log_density(scoresde.targets.Gaussian(torch.zeros(d), 1.0))
    x, y = 1.5 * normal(n, d, 0), normal(n, d, 1)
    exact = d / 2 * (1.5**2 - 1)
    spread = math.sqrt(d / 2 * (1.5**4 + 1) / n)
    assert metric(x, y) == pytest.approx(exact, abs=4 * spread)
    assert metric(0 * x, y) > 1  # samples at the mode alone are wrong as well


def test_metrics_of_your_own_are_columns_of_a_row():
    model, reference = MIXTURE.denoiser(scoresde.VP()), MIXTURE.sample(300, generator(0, 7))
    metrics = {"modes": mode_weights(MIXTURE.means, [1, 2, 5]), "density_of_data": log_density(MIXTURE)}
    rows = benchmark(model, reference, ["heun"], [1, 31], range(200), shape=(2,), metrics=metrics, progress=False)
    assert [list(row.metrics) for row in rows] == [["modes", "density_of_data"]] * 2
    assert rows[1].metrics["modes"].value < 0.15 < rows[0].metrics["modes"].value
    for name in ("frechet", "error", "two words"):
        with pytest.raises(InputError, match="needs a free name"):
            compare(reference, reference, {name: precision})


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_paired_interval_of_a_difference_holds_its_level(shift):
    """Of two samplers of one law it contains 0; of two that differ in law, their expected difference."""
    trials = 100

    def once(k):
        y = normal(80, 2, 3 * k + 100_000)
        a, b = (compare(normal(60, 2, 3 * k + j, j * shift), y, ["frechet"], repeats=20)["frechet"] for j in (0, 1))
        return difference(b, a)[0]

    found = [once(k) for k in range(trials)]
    expected = np.mean([e.value for e in found]) if shift else 0.0
    # 0.93: Student's quantile of a skewed estimate; the chance of a false alarm is 1e-4
    assert sum(e.low <= expected <= e.high for e in found) >= binom.ppf(1e-4, trials, 0.93)
    if shift:
        assert np.mean([e.low > 0 for e in found]) > 0.25


def scored(solver, metric, estimate):
    return Row(solver, "karras", 5, 5, 5, False, 200, metrics={metric: estimate})


def test_pairs_distinguish_what_intervals_do_not():
    """Two maps of the same starts: their errors share the noise of the samples."""
    x, y = normal(200, 2, 0), normal(300, 2, 1)
    one, two = (compare(x * scale, y, ["sliced_wasserstein"])["sliced_wasserstein"] for scale in (1.15, 1.2))
    assert one.low < two.value < one.high  # the intervals overlap
    apart, paired = difference(two, one)
    assert paired
    assert apart.low > 0
    rows = [scored("a", "sliced_wasserstein", one), scored("b", "sliced_wasserstein", two)]
    assert leaders(rows, "sliced_wasserstein") == {5: [0]}
    assert marks(rows) == [["sliced_wasserstein"], []]
    alone = [scored(name, "mmd", replace(e, again=())) for name, e in (("a", one), ("b", two))]
    assert leaders(alone, "mmd") == {5: [0, 1]}


def test_the_best_of_what_should_be_large_is_the_largest():
    assert {"precision", "recall", "density", "coverage"} == HIGHER
    values = (("a", 0.5), ("b", 0.9), ("c", 0.895))
    rows = [scored(name, "recall", Estimate(v, v - 0.01, v + 0.01)) for name, v in values]
    assert leaders(rows, "recall") == {5: [1, 2]}


def test_bad_input_is_one_clear_line():
    x, y = normal(9, 2, 0), normal(9, 3, 1)
    for name in ("precision", "density", "coverage", "classifier", "wasserstein"):
        with pytest.raises(InputError, match="different sizes: 2 numbers in x, 3 in y"):
            METRICS[name](x, y)
    with pytest.raises(InputError, match="the 5 nearest neighbours need more than 5 samples, got 5 in y"):
        density(x, x[:5])
    with pytest.raises(InputError, match="a data set has no density"):
        log_density(scoresde.targets.Empirical(x))
    with pytest.raises(InputError, match="a weight of at least 0 for each of 9 centres"):
        mode_weights(x, [1, 2])
    with pytest.raises(InputError, match="the samples have 3 numbers, and the centres 2"):
        mode_weights(x)(y, y)
    with pytest.warns(FewSamples, match="a published FID or KID uses 50,000"):
        compare(x, x, ["frechet"], features=lambda v: v)
