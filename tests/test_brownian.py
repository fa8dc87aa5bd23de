"""Brownian noise: the increments of one path per seed, whatever the grid."""

import functools
import math
from itertools import pairwise, product

import pytest
import torch

import solvers
from solvers import Node, SeededNoise, grid, solve
from solvers.conformance.problems import RECTIFIED_FLOW, VP, GaussianData, Mixture
from solvers.noise.brownian import DEPTH, LIMIT, BrownianNoise, _above, _leaf, _weights, clock


def at(lam):
    return Node(0.0, 1.0, math.exp(-lam))


def path(lams, seeds=range(4), shape=(5,)):
    noise = BrownianNoise(seeds, shape, torch.float64)
    return [noise(at(a), at(b)) for a, b in pairwise(lams)]


LAMS = [-2.3, -1.91, -0.7, -0.69, 0.0, 1.25, 1.251, 2.9]


def test_the_increments_of_nested_grids_compose():
    """sqrt(c_u - c_t) z(t, u) = sqrt(c_s - c_t) z(t, s) + sqrt(c_u - c_s) z(s, u), here over a whole grid at once."""
    total = sum(math.sqrt(clock(a, b)) * z for (a, b), z in zip(pairwise(LAMS), path(LAMS), strict=True))
    whole = math.sqrt(clock(LAMS[0], LAMS[-1])) * path([LAMS[0], LAMS[-1]])[0]
    assert torch.allclose(total, whole, rtol=1e-9, atol=1e-9)
    for i in range(len(LAMS) - 2):
        a, b, c = LAMS[i : i + 3]
        first, second = path([a, b, c])
        composed = math.sqrt(clock(a, b) / clock(a, c)) * first + math.sqrt(clock(b, c) / clock(a, c)) * second
        assert torch.allclose(composed, path([a, c])[0], rtol=0, atol=1e-9)


def test_an_increment_depends_on_its_ends_alone():
    """Not on what was asked before, nor on the order: bit for bit."""
    noise, intervals = BrownianNoise(range(3), (2,), torch.float64), [(-1.0, 0.5), (2.0, 2.2), (-3.0, 4.0), (0.5, 0.7)]
    there = [noise(at(a), at(b)) for a, b in intervals]
    back = [noise(at(a), at(b)) for a, b in reversed(intervals)][::-1]
    for (a, b), one, other in zip(intervals, there, back, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, path([a, b], range(3), (2,))[0])
        assert torch.equal(-one, noise(at(b), at(a)))


def test_a_row_depends_on_its_seed_alone():
    batch = path(LAMS, [5, 2, 9])
    for i, seed in enumerate([5, 2, 9]):
        for whole, alone in zip(batch, path(LAMS, [seed]), strict=True):
            assert torch.equal(whole[[i]], alone)
    noise = BrownianNoise([5, 2, 9], (5,), torch.float64)
    part = noise.select(torch.tensor([2, 0]))
    assert part.seeds == [9, 5]
    assert torch.equal(part(at(LAMS[0]), at(LAMS[1])), batch[0][[2, 0]])
    assert torch.equal(part.select(slice(1, 2))(at(LAMS[0]), at(LAMS[1])), batch[0][[0]])
    # fresh draws share the generators: the second of row 0 is its second, wherever the first was made
    stream = SeededNoise([5], (5,), torch.float64)
    assert torch.equal(part(at(0.0), at(0.0))[[1]], stream(at(0.0), at(0.0)))
    assert torch.equal(noise(at(0.0), at(0.0))[[0]], stream(at(0.0), at(0.0)))


def test_a_time_per_sample_is_each_samples_own_interval():
    noise = BrownianNoise([5, 2, 9], (5,), torch.float64)
    t, s = [at(-1.0), at(0.1), at(2.0)], [at(0.3), at(0.2), at(2.5)]
    found = noise(Node.stack(t), Node.stack(s))
    for i, seed in enumerate([5, 2, 9]):
        alone = BrownianNoise([seed], (5,), torch.float64)(t[i], s[i])
        assert torch.allclose(found[[i]], alone, rtol=0, atol=1e-9)  # the nodes' lam differ by rounding
    assert torch.allclose(noise(t[0], Node.stack(s))[0], found[0], rtol=0, atol=1e-9)


def test_the_law_is_that_of_independent_standard_normal_increments():
    """Over 3000 seeds and 4 coordinates: mean, variance, fourth moment, and correlation between intervals."""
    rows = torch.stack([z.flatten() for z in path(LAMS, range(3000), (4,))])
    n = rows.shape[1]
    for row in rows:
        assert abs(float(row.mean())) < 5 / math.sqrt(n)
        assert abs(float(row.var()) - 1) < 5 * math.sqrt(2 / n)  # Var of the sample variance of n normals: 2 / n
        assert abs(float((row**4).mean()) - 3) < 5 * math.sqrt(96 / n)  # Var x^4 = 105 - 9
    correlations = torch.corrcoef(rows)[tuple(torch.triu_indices(len(rows), len(rows), 1))]
    assert float(correlations.abs().max()) < 5 / math.sqrt(n)
    start = BrownianNoise(range(3000), (4,), torch.float64).initial().flatten()
    assert float((rows @ start).abs().max()) / n < 5 / math.sqrt(n)  # and of the start


def test_the_start_is_that_of_seeded_noise():
    assert torch.equal(BrownianNoise([3, 1], (4,)).initial(), SeededNoise([3, 1], (4,)).initial())


EDGES = [
    (0.3, 0.3),  # no length
    (0.3, math.nextafter(0.3, 1)),
    (0.0, math.nextafter(0.0, -1)),
    (LIMIT, math.nextafter(LIMIT, 99)),  # one unit outside
    (-LIMIT, math.nextafter(-LIMIT, -99)),
    (math.nextafter(LIMIT, 0), LIMIT),
    (20.0, 25.0),  # all outside
    (-25.0, -20.0),
    (-LIMIT, LIMIT),
    (-20.0, 20.0),
    (15.0, 20.0),
    (15.9, LIMIT),
    (0.0, 0.5),  # nodes of the tree
    (0.5, 0.0),
    (0.1, 0.1 + 2 * LIMIT / 2**DEPTH),  # one leaf on
]


@pytest.mark.parametrize(("a", "b"), EDGES)
def test_every_interval_has_the_standard_normal_law(a, b):
    z = BrownianNoise(range(400), (25,), torch.float64)(at(a), at(b))
    assert abs(float(z.mean())) < 5 / math.sqrt(1e4)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / 1e4)


def test_the_last_interval_to_the_data_is_an_increment_too():
    data = Node(0.0, 1.0, 0.0)
    z = BrownianNoise(range(400), (25,), torch.float64)(at(5.0), data)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / 1e4)


def test_an_interval_of_no_length_is_a_fresh_draw():
    noise, stream = BrownianNoise([3], (4,)), SeededNoise([3], (4,))
    for _ in range(3):
        assert torch.equal(noise(at(1.0), at(1.0)), stream(at(1.0), at(1.0)))


def test_memory_is_bounded_by_the_depth_of_the_tree():
    noise = BrownianNoise(range(2), (3,))
    for a, b in pairwise(-3 + 6 * i / 3000 for i in range(3001)):
        noise(at(a), at(b))
    # every tensor that it holds, wherever it may keep it
    stored, found = list(vars(noise).values()), []
    while stored:
        value = stored.pop()
        if isinstance(value, torch.Tensor):
            found.append(value.numel())
        elif isinstance(value, dict | list | tuple):
            stored += value.values() if isinstance(value, dict) else value
    # the numbers above the last end, the leaf's own and the far end's, in fours; and four words of key per seed
    assert sum(found) <= (DEPTH + 2) * 2 * 4 + 4 * 2


def test_the_weights_of_an_increment_are_those_of_a_standard_normal_sum():
    """Their squares add up to 1, for any interval, and disjoint intervals share no variance."""

    def increment(a, b):
        weights = dict.fromkeys([*_above(_leaf(a)), *_above(_leaf(b))], 0.0)
        for lam, sign in ((a, -1), (b, 1)):
            for place, weight in zip(_above(_leaf(lam)), _weights(lam, _leaf(lam)), strict=True):
                weights[place] += sign * weight / math.sqrt(clock(a, b))
        return weights

    ends = [-LIMIT, -9.3, -2.0, -1.999, 0.0, 0.3, 0.3011, 7.7, math.nextafter(9.5, 0), LIMIT]
    found = [increment(a, b) for a, b in pairwise(ends)]
    for i, one in enumerate(found):
        # rounding of the path's value, at most 1 / sqrt(2 (b - a)) = 30 times that of the increment: 30 * 20 * 1e-16
        assert sum(w * w for w in one.values()) == pytest.approx(1, abs=1e-11)
        for other in found[:i]:
            assert sum(w * other.get(place, 0.0) for place, w in one.items()) == pytest.approx(0, abs=1e-11)


def test_float32_and_float64_are_the_same_path():
    narrow = BrownianNoise(range(30), (8,))(at(0.0), at(1.0))
    assert narrow.dtype == torch.float32
    # up to 36 summands, each with the rounding of test_noise.py
    wide = BrownianNoise(range(30), (8,), torch.float64)(at(0.0), at(1.0))
    assert torch.allclose(narrow.double(), wide, rtol=0, atol=1e-5)


def test_no_rows_draw_nothing():
    noise = BrownianNoise((), (3,))
    assert noise(at(0.0), at(1.0)).shape == (0, 3)
    assert noise(Node.stack([]), Node.stack([])).shape == (0, 3)


SEEDS, SHAPE, FINEST = range(8), (32,), 2048


def strong(solver, schedule, problem, steps):
    noise = BrownianNoise(SEEDS, SHAPE, torch.float64)
    nodes = grid("logsnr", schedule, steps)
    x = math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial()
    return solve(solver, problem, x, nodes, noise).x / nodes[-1].alpha


@functools.cache
def reference(spec, schedule):
    return strong(solvers.make(spec), schedule, Mixture(schedule, v=0.5), FINEST)


# of eta = 1 all have the same limit, that of ddpm; other SDEs have their own
CASES = [
    (spec, "ddpm") for spec in ("ddpm", "ddim(eta=1)", "euler_maruyama", "reverse_diffusion", "step_doubling(ddpm)")
]
CASES += [(spec, "ddpm") for spec in ("dpmpp_sde", "dpmpp_2m_sde", "seeds_2", "sa_solver(eta=1)")]
CASES += [("ddim(eta=0.5)", "ddim(eta=0.5)"), ("er_sde", "er_sde")]


def cases():
    """Every case on both paths; on the second one most are slow."""
    for (spec, limit), schedule in product(CASES, (VP, RECTIFIED_FLOW)):
        quick = schedule is VP or spec == "dpmpp_sde"
        yield pytest.param(spec, limit, schedule, marks=() if quick else pytest.mark.slow, id=f"{spec}-{schedule}")


@pytest.mark.parametrize(("spec", "limit", "schedule"), [*cases()])
def test_halving_the_step_halves_the_error_of_every_path(spec, limit, schedule):
    """Strong order 1, as Euler-Maruyama has with additive noise: against 2048 steps on the same path.

    A normalised increment tells the integral over a step but not where in the step it came about, so that no method has
    more. The reference's own error is about 1/8 of that at 256 steps, which lifts the last ratio to as much as
    (2 - 1/8) / (1 - 1/8) = 2.14; the mean over 256 coordinates spreads it by less than a tenth.
    """
    solver, problem = solvers.make(spec), Mixture(schedule, v=0.5)
    errors = [
        float((strong(solver, schedule, problem, n) - reference(limit, schedule)).abs().mean()) for n in (64, 128, 256)
    ]
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.4
    assert errors[-1] < 0.02


def test_plain_noise_is_not_the_same_path():
    """What the test above would see without the path: no convergence at all."""
    problem, gaps = Mixture(VP), []
    for steps in (64, 256):
        ends = []
        for n in (steps, FINEST):
            noise, nodes = SeededNoise(SEEDS, SHAPE, torch.float64), grid("logsnr", VP, n)
            ends.append(solve(solvers.make("ddpm"), problem, noise.initial(), nodes, noise).x)
        gaps.append(float((ends[0] - ends[1]).pow(2).mean().sqrt()))
    assert min(gaps) > 0.5


def test_the_exact_kernel_of_gaussian_data_is_solved_along_the_path():
    """On N(0, v) the reverse SDE is linear, d(y (1 + v c)) = sqrt-clock noise: its solution is a weighted integral of
    the path, which a fine sum of increments gives."""
    v, problem = 0.04, GaussianData(VP)
    nodes = grid("logsnr", VP, 4096)
    noise = BrownianNoise(range(8), (32,), torch.float64)
    start = noise.initial()
    # dy = -2 (y - D) dlam + sqrt(2) ratio dW, D = v y / (v + r^2); with c = 1 / r^2, G = y (1 + v c) / c has
    # d(y / q) = dB / (c q), q = exp(-int 2 r^2 / (v + r^2) dlam) = (v + 1 / c)
    y, q = start, lambda c: v + 1 / c
    level = [math.exp(2 * n.lam) for n in nodes]
    total = y / q(level[0])
    for (t, s), (a, b) in zip(pairwise(nodes), pairwise(level), strict=True):
        # int dB / (c q)^2 over the interval: 1 / (c q) = 1 / (1 + v c)
        weight = math.sqrt((b - a) / ((1 + v * a) * (1 + v * b)))
        total = total + weight * noise(t, s)
    exact = total * q(level[-1])
    errors = []
    for steps in (128, 256):
        noise, coarse = BrownianNoise(range(8), (32,), torch.float64), grid("logsnr", VP, steps)
        x = nodes[0].alpha * start
        errors.append(
            float(
                (solve(solvers.make("ddpm"), problem, x, coarse, noise).x / coarse[-1].alpha - exact)
                .pow(2)
                .mean()
                .sqrt()
            )
        )
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert errors[1] < 0.02
