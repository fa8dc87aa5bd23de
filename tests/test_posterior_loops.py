"""Posterior methods that are no denoisers: replacement, ILVR, RePaint, SDEdit, DDRM, DAPS, split Gibbs.

For Gaussian data every one of them is a chain that is linear in the state, the observation and the noise, so the mean
and the variance of its draws follow, coordinate by coordinate, from a recursion over the levels, which is written here
for each method from its paper.
"""

import math
from itertools import pairwise

import pytest
import torch

import scoresde
import solvers
from scoresde.benchmark.posterior_problems import mixture_problem
from scoresde.models.targets import Gaussian
from scoresde.operators.linear import Downsample, Inpaint, Matrix
from scoresde.operators.nonlinear import Custom
from scoresde.posterior.base import Task, posteriors
from scoresde.posterior.conditional import conditional
from solvers.noise.seeded import SeededNoise

DTYPE = torch.float64
ROOT = math.sqrt(0.5)
PATHS = ["vp", "ve(sigma_min=0.01, sigma_max=50)", "rectified_flow"]
VP = scoresde.VP()


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def geometric(high, low, count):
    return [high * (low / high) ** (i / (count - 1)) for i in range(count)] if count > 1 else [high]


def grid(count, high=45.0, low=0.0106, sde=VP):
    """Nodes of geometric levels sigma / alpha, and the data."""
    return (*sde.nodes_of_lam([-math.log(r) for r in geometric(high, low, count)]), sde.clean)


def task(prior, operator, y, nodes, solver, sde=VP, seeds=None, dtype=DTYPE):
    y = y.to(dtype)
    shape = tuple(prior.means.shape[1:])
    seeds = range(len(y)) if seeds is None else seeds
    return Task(prior.denoiser(sde), operator, y, shape, solvers.make(solver), nodes, list(seeds))


def draw(method, prior, operator, y, nodes, solver=None, *args, **options):
    solver = solver or ("ddim" if method.startswith("ddrm") else "ddpm")
    with torch.no_grad():
        return posteriors.make(method).draw(task(prior, operator, y, nodes, solver, *args, **options))


# ---- Gaussian data: recursions of the mean and the variance. The prior is N(0, I) in two dimensions, of which the
# first is observed with the singular value S. All levels are those of x / alpha.
S, NOISE, Y, COUNT = 0.8, 0.4, 0.9, 4000
STANDARD = Gaussian(torch.zeros(2, dtype=DTYPE), 1.0)
ONE = Matrix(torch.tensor([[S, 0.0]], dtype=DTYPE), sigma=NOISE)


class Law:
    """The mean and the variance of one coordinate."""

    def __init__(self, mean, variance):
        self.mean, self.variance = mean, variance

    def then(self, scale, shift=0.0, noise=0.0):
        return Law(scale * self.mean + shift, scale**2 * self.variance + noise**2)

    def ancestral(self, levels):
        """Steps of the reverse chain with the exact x0 = z / (1 + r^2), between levels and to the data."""
        for a, b in pairwise([*levels, 0.0]):
            self = self.step(a, b)
        return self

    def step(self, a, b):
        fall = (b / a) ** 2
        return self.then(fall + (1 - fall) / (1 + a * a), noise=b * math.sqrt(1 - fall))

    def euler(self, levels):
        for a, b in pairwise([*levels, 0.0]):
            self = self.then((1 + a * b) / (1 + a * a))
        return self

    def given_y(self, rho, seen):
        """A draw of N(z, rho^2) N(y; S z, NOISE^2) around the state."""
        if not seen:
            return self.then(1.0, noise=rho)
        gain = S * rho**2 / (NOISE**2 + S**2 * rho**2)
        return self.then(1 - gain * S, gain * Y, rho * NOISE / math.sqrt(NOISE**2 + S**2 * rho**2))


def start(high):
    return Law(0.0, 1 + high**2)


def replaced(levels, seen, repeats=1):
    if seen:
        return Law(Y / S, 0.0)
    law = start(levels[0])
    for a, b in pairwise(levels):
        for k in range(repeats):
            law = (law.then(1.0, noise=math.sqrt(a * a - b * b)) if k else law).step(a, b)
    return law.ancestral(levels[-1:])


def edited(levels, seen, level):
    return Law(Y / S if seen else 0.0, level**2).ancestral([level, *(r for r in levels if r < level)])


def fixed_ddrm(levels, seen, eta):
    nsr, kept = NOISE / S, math.sqrt(1 - eta**2)
    law = Law(Y / S, levels[0] ** 2 - nsr**2) if seen else start(levels[0])
    for a, b in pairwise([*levels, 0.0]):
        shrink = 1 / (1 + a * a)
        if not seen:
            law = law.then(shrink + kept * b / a * (1 - shrink), noise=eta * b)
        elif b >= nsr:
            law = Law(Y / S, b * b - nsr**2)
        else:
            law = law.then(shrink * (1 - kept * b / nsr), kept * b / nsr * Y / S, eta * b)
    return law


def ddrm(levels, seen):
    nsr = NOISE / S
    if not seen:
        return start(levels[0]).ancestral(levels)
    for a, b in pairwise([*levels, 0.0]):
        if b >= nsr:  # y and the noise of the rest of the level
            law = Law(Y / S, b * b - nsr**2)
        elif a > nsr:  # from y, at its level, with the x0 of the state above it
            fall = (b / nsr) ** 2
            law = law.then((1 - fall) / (1 + a * a), fall * Y / S, b * math.sqrt(1 - fall))
        else:
            law = law.step(a, b)
    return law


def annealed(levels, seen, outer, inner):
    law = start(levels[0])
    rounds = geometric(levels[0], levels[-1], outer)
    for r, following in zip(rounds, [*rounds[1:], 0.0], strict=True):
        below = [r] if r < 1.01 * levels[-1] else geometric(r, levels[-1], inner)
        law = law.euler(below).given_y(r, seen).then(1.0, noise=following)
    return law


def gibbs(levels, seen, sweeps, inner):
    law = Law(0.0, 1.0)
    falling = geometric(10.0, 0.1, math.ceil(2 * sweeps / 3))
    for rho in [*falling, *[0.1] * (sweeps - len(falling))]:
        law = law.given_y(rho, seen).ancestral(geometric(rho, levels[-1], inner))
    return law


CHAINS = [
    ("replace", "ddpm", 40, replaced),
    ("repaint(jump=1, repeats=3)", "ddpm", 12, lambda levels, seen: replaced(levels, seen, 3)),
    ("sdedit(level=0.7)", "ddpm", 40, lambda levels, seen: edited(levels, seen, 0.7)),
    ("ddrm", "ddim", 40, ddrm),
    ("ddrm(renoise=fixed)", "ddim", 40, lambda levels, seen: fixed_ddrm(levels, seen, 0.85)),
    ("ddrm(renoise=fixed, eta=0.3)", "ddim", 40, lambda levels, seen: fixed_ddrm(levels, seen, 0.3)),
    ("daps(outer=20)", "ddim", 40, lambda levels, seen: annealed(levels, seen, 20, 5)),
    ("split_gibbs(sweeps=15, inner=8)", "ddpm", 40, lambda levels, seen: gibbs(levels, seen, 15, 8)),
]


@pytest.mark.quick
@pytest.mark.parametrize(("method", "solver", "steps", "law"), CHAINS, ids=[c[0] for c in CHAINS])
def test_draws_of_gaussian_data_follow_the_recursion(method, solver, steps, law):
    found = draw(method, STANDARD, ONE, torch.full((COUNT, 1), Y), grid(steps), solver).x
    for i, seen in enumerate((True, False)):
        wanted = law(geometric(45.0, 0.0106, steps), seen)
        # five standard errors; 1e-6 where the variance is 0
        assert abs(float(found[:, i].mean()) - wanted.mean) < 5 * math.sqrt(wanted.variance / COUNT) + 1e-6
        assert abs(float(found[:, i].var()) / (wanted.variance or 1.0) - bool(wanted.variance)) < 5 * math.sqrt(
            2 / COUNT
        )


def deviations(found, covariance, operator, y):
    """Errors of the mean, in posterior deviations, and of the covariance, against N(m + K y, C - K A C)."""
    a = operator.matrix(tuple(found.shape[1:]))
    gain = (
        covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + operator.sigma**2 * torch.eye(len(a), dtype=DTYPE))
    )
    left = covariance - gain @ a @ covariance
    return (
        float((found.mean(0) - gain @ y).norm() / left.trace().sqrt()),
        float((torch.cov(found.T) - left).norm() / left.norm()),
    )


@pytest.mark.quick
def test_ddrm_is_exact_for_data_of_one_variance_under_any_operator():
    operator, y, identity = Matrix(0.5 * normal(3, 6, seed=2), sigma=0.3), normal(3, seed=4), torch.eye(6, dtype=DTYPE)
    standard, ys = Gaussian(torch.zeros(6, dtype=DTYPE), 1.0), y.expand(2000, 3)
    coarse, fine = (
        deviations(draw("ddrm", standard, operator, ys, grid(n)).x, identity, operator, y) for n in (30, 200)
    )
    # sampling noise is 0.024 and 0.05 at 2000 draws; the chain's own error is of order one in the step
    assert fine[0] < 0.05
    assert fine[1] < 0.12 < coarse[1]
    fixed = deviations(draw("ddrm(renoise=fixed)", standard, operator, ys, grid(60)).x, identity, operator, y)
    assert min(fixed) > 0.12  # 0.17 and 0.32
    narrow = deviations(draw("ddrm(eta=0)", standard, operator, ys, grid(60)).x, identity, operator, y)
    assert narrow[0] > 0.1  # 0.15


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "hidden", "blind"),
    [  # the variance that N(0, 1) ends with in a direction that A does not see, and in one of sigma = 1e9
        ("ddrm(renoise=fixed, eta=1)", 0.478, 0.478),  # one half in the limit
        ("ddrm(renoise=fixed)", 0.729, 0.342),
        ("ddrm", 1.0, 1.0),
        ("ddrm(eta=0.5)", 1.0, 1.0),
        ("ddrm(eta_b=0.5)", 1.0, 1.0),
    ],
)
def test_ddrm_without_information_keeps_the_prior_but_for_fixed_renoising(method, hidden, blind):
    first = Inpaint(torch.tensor([True, False]), sigma=1e9)
    sde = scoresde.make_sde("ve(sigma_min=0.01, sigma_max=100)")
    found = draw(method, STANDARD, first, normal(COUNT, 1), grid(100, 100.0, 0.01, sde), sde=sde).x
    for i, variance in enumerate((blind, hidden)):
        # five standard errors, and the chain's own error of order one in the step
        assert abs(float(found[:, i].var()) / variance - 1) < 5 * math.sqrt(2 / COUNT) + 0.01
        assert abs(float(found[:, i].mean())) < 5 * math.sqrt(variance / COUNT)


@pytest.mark.quick
def test_ddrm_denoises_right_at_every_number_of_steps_but_not_with_fixed_renoising():
    noisy = Inpaint(torch.tensor([True, True]), sigma=0.5)
    ys = torch.full((COUNT, 2), 0.7, dtype=DTYPE)
    found = {
        (method, n): draw(method, STANDARD, noisy, ys, grid(n, 100.0)).x
        for method in ("ddrm", "ddrm(renoise=fixed)", "ddrm(renoise=fixed, eta=1)")
        for n in (20, 100)
    }
    # N(0, 1), sigma 0.5, y 0.7: mean 0.56, variance 0.2
    coarse, fine = found["ddrm", 20], found["ddrm", 100]
    assert abs(float(fine.mean()) - 0.56) < 0.03
    # the chain's error is of order one in the step, log(1e4) / 100 = 0.09 in lam, with a factor of 2
    assert abs(float(fine.var()) / 0.2 - 1) < 0.25 < 0.4 < abs(float(coarse.var()) / 0.2 - 1)
    # as released: 0.057 falls, and 0.30 goes past the posterior's to one half
    for method, first, last in (("ddrm(renoise=fixed)", 0.057, 0.017), ("ddrm(renoise=fixed, eta=1)", 0.30, 0.46)):
        assert float(found[method, 20].var()) == pytest.approx(first, rel=0.1)
        assert float(found[method, 100].var()) == pytest.approx(last, rel=0.1)


@pytest.mark.quick
@pytest.mark.parametrize("method", ["ddrm", "ddrm(eta_b=0.5)", "ddrm(renoise=fixed)", "ddrm(eta=0)"])
def test_ddrm_at_a_level_that_is_the_noise_of_y(method):
    """Where r = sigma / s no case may be missing: draws are those of almost equal noise."""
    nodes = (*VP.nodes_of_lam([-math.log(r) for r in (4.0, 1.0, 0.5, 0.25, 0.0625)]), VP.clean)
    ratio = nodes[2].ratio
    exact, near = (
        draw(method, STANDARD, Matrix(torch.eye(2, dtype=DTYPE), sigma=noise), torch.full((50, 2), 0.7), nodes).x
        for noise in (ratio, ratio * (1 - 1e-12))
    )
    assert torch.isfinite(exact).all()
    assert torch.allclose(exact, near, rtol=0, atol=1e-4)  # sqrt(r^2 - (sigma / s)^2) is 1e-6 r there


# ---- all methods

METHODS = [
    ("replace", "ddpm"),
    ("replace", "dpmpp_2m"),
    ("ilvr(factor=2, until=0.3)", "dpmpp_2m_sde"),
    ("repaint(jump=3, repeats=2)", "dpmpp_2m_sde"),
    ("repaint(jump=2, repeats=2)", "heun"),
    ("sdedit(level=1.5)", "dpmpp_2m_sde"),
    ("ddrm", "ddim"),
    ("ddrm(eta_b=0.7, eta=0.5)", "ddim"),
    ("ddrm(renoise=fixed)", "ddim"),
    ("daps(outer=4, langevin=6)", "heun"),
    ("split_gibbs(sweeps=3, inner=4, langevin=6)", "dpmpp_2m_sde"),
]
PROBLEM = mixture_problem(4, 0.1, observations=3)
TANH = Custom(lambda x: torch.tanh(x[:, :4]), sigma=0.1)
CASES = [(*case, PROBLEM.operator) for case in METHODS] + [(*case, TANH) for case in METHODS[-2:]]
NAMES = [f"{method}-{solver}-{'tanh' if operator is TANH else 'linear'}" for method, solver, operator in CASES]


@pytest.mark.quick
@pytest.mark.parametrize(("method", "solver", "operator"), CASES, ids=NAMES)
def test_a_batch_is_its_rows_and_a_path_is_its_levels(method, solver, operator):
    y, seeds, found = PROBLEM.operator(PROBLEM.x) if operator is not TANH else TANH(PROBLEM.x), [3, 11, 4], {}
    for path in PATHS:
        sde = scoresde.make_sde(path)
        for dtype in (torch.float32, DTYPE):
            nodes = grid(7, 20.0, 0.02, sde)
            whole = draw(method, PROBLEM.prior, operator, y, nodes, solver, sde, seeds, dtype)
            assert whole.x.dtype == dtype
            assert torch.isfinite(whole.x).all()
            for i in (0, 2) if dtype == DTYPE else (1,) if path == "vp" else ():
                alone = draw(method, PROBLEM.prior, operator, y[i : i + 1], nodes, solver, sde, seeds[i : i + 1], dtype)
                assert torch.equal(alone.x[0], whole.x[i])
                assert alone.nfe == whole.nfe[i]
            found[path, dtype] = whole.x
    # the same numbers, since no formula has more of a path than sigma / alpha; Langevin steps may part at a rejection
    if operator is not TANH:
        for path in PATHS[1:]:
            assert torch.allclose(found[path, DTYPE], found["vp", DTYPE], rtol=0, atol=1e-7)


@pytest.mark.quick
@pytest.mark.parametrize("method", ["replace", "repaint(jump=2, repeats=2)", "ddrm", "ddrm(renoise=fixed)"])
def test_observations_without_noise_are_reproduced(method):
    clean = Matrix(PROBLEM.operator.matrix((8,)))
    y = clean(PROBLEM.x)
    found = draw(method, PROBLEM.prior, clean, y, grid(10)).x
    assert float((clean(found) - y).abs().max()) < 1e-12


@pytest.mark.quick
def test_ilvr_gives_block_means_and_lets_go_of_them_below_until():
    standard, whole = Gaussian(torch.zeros(4, dtype=DTYPE), 1.0), Matrix(torch.eye(4, dtype=DTYPE))
    low = Downsample(2)
    y = normal(500, 4, seed=8)
    for operator, seen in ((whole, y), (low, low(y))):
        found = draw("ilvr(factor=2)", standard, operator, seen, grid(10)).x
        assert float((low(found) - low(y)).abs().max()) < 1e-12
    # then the chain of each mean goes on alone from the last level above: a mean of two has half of the variance
    ys = torch.full((COUNT, 4), Y, dtype=DTYPE)
    found = low(draw("ilvr(factor=2, until=0.5)", standard, whole, ys, grid(40)).x) / ROOT
    levels = geometric(45.0, 0.0106, 40)
    last = min(r for r in levels if r >= 0.5)
    wanted = Law(Y / ROOT, last**2).ancestral([r for r in levels if r <= last])
    assert abs(float(found.mean()) - wanted.mean) < 5 * math.sqrt(wanted.variance / (2 * COUNT))
    assert abs(float(found.var()) / wanted.variance - 1) < 5 * math.sqrt(1 / COUNT)


@pytest.mark.quick
def test_the_groups_of_repaint_are_counted_from_the_last_noisy_node():
    nodes = grid(24)
    found = posteriors.make("repaint(jump=10, repeats=7)").groups(nodes)
    assert [(len(part) - 1, repeats) for part, repeats in found] == [(3, 1), (10, 7), (10, 7), (1, 1)]
    assert [part[0] for part, _ in found[1:]] == [part[-1] for part, _ in found[:-1]]
    done = draw("repaint(jump=10, repeats=7)", PROBLEM.prior, PROBLEM.operator, PROBLEM.y, nodes)
    assert done.nfe.tolist() == [3 + 2 * 70 + 1] * 3


@pytest.mark.quick
def test_hooks_of_the_user_see_every_step():
    for method, solver, steps in (("replace", "ddpm", 6), ("ddrm", "ddim", 6), ("daps(outer=4)", "ddim", 4)):
        seen = []
        job = task(PROBLEM.prior, PROBLEM.operator, PROBLEM.y, grid(6), solver)
        hooked = Task(**{**vars(job), "hooks": [lambda x, node, seen=seen: seen.append((x, node))]})
        with torch.no_grad():
            found = posteriors.make(method).draw(hooked).x
        assert len(seen) == steps
        assert seen[-1][1].clean
        assert torch.allclose(seen[-1][0], found, rtol=0, atol=1e-14)


# ---- the draw of x0 near the model's guess


@pytest.mark.quick
def test_langevin_steps_draw_what_the_exact_step_draws():
    matrix, count = 0.7 * normal(3, 4, seed=5), 2000
    linear, other = Matrix(matrix, sigma=0.3), Custom(lambda x: (x[:, None] * matrix.to(x)).sum(2), sigma=0.3)
    y, centre = normal(3, seed=6).expand(count, 3), normal(4, seed=7).expand(count, 4)
    noise = SeededNoise(range(count), (4,), DTYPE)
    exact = conditional(linear, y, centre, 0.5, noise, 1)
    precision = torch.eye(4, dtype=DTYPE) / 0.5**2 + matrix.T @ matrix / 0.3**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (centre[0] / 0.5**2 + matrix.T @ y[0] / 0.3**2)
    for found in (exact, conditional(other, y, centre, 0.5, noise, 200)):
        # five standard errors
        assert float(((found.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 5 / math.sqrt(count)
        scale = torch.linalg.cholesky(precision).T
        assert float((torch.cov((found @ scale.T).T) - torch.eye(4)).abs().max()) < 5 * math.sqrt(2 / count)


@pytest.mark.quick
def test_split_gibbs_under_a_nonlinear_operator():
    """One number of N(0, 1), y = tanh(2 x) + 0.3 n. At a fixed rho its law is known: by quadrature."""
    rho, y, count = 0.5, 0.8, 2000
    seen, prior = Custom(lambda x: torch.tanh(2 * x), sigma=0.3), Gaussian(torch.zeros(1, dtype=DTYPE), 1.0)
    method = f"split_gibbs(sweeps=15, rho_max={rho}, rho_min={rho}, inner=25, langevin=25)"
    found = draw(method, prior, seen, torch.full((count, 1), y), grid(20)).x
    x = torch.linspace(-6, 6, 2001, dtype=DTYPE)
    likelihood = torch.exp(-0.5 * ((y - torch.tanh(2 * x)) / 0.3) ** 2)
    smooth = (torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) * likelihood).sum(1)  # p(y | x) through z
    weight = torch.exp(-0.5 * x**2) * smooth
    weight /= weight.sum()
    mean = float((weight * x).sum())
    deviation = math.sqrt(float((weight * (x - mean) ** 2).sum()))
    # five standard errors, and the inner chain's error of order one in its step
    assert abs(float(found.mean()) - mean) < (5 / math.sqrt(count) + 0.02) * deviation
    assert abs(float(found.std()) / deviation - 1) < 5 / math.sqrt(2 * count) + 0.03
