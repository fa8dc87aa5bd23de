"""Correctors: one step by hand, and the stationary law on targets that are known."""

import math
from itertools import pairwise

import pytest
import torch

import scoresde
import solvers
from solvers import InputError, SeededNoise
from solvers.conformance.convergence import terminal_variance
from solvers.conformance.problems import VP, GaussianData, OrthogonalNoise
from solvers.wrappers.correctors import row_norm

NODE = VP(0.4)


def corrector(spec):
    return solvers.correctors.make(spec)


def draws(count, d):
    """Normal numbers for many samples at once: cheaper than a stream for each."""
    numbers = solvers.generator(7)
    return lambda t=None, s=None: torch.randn(count, d, generator=numbers, dtype=torch.float64)


class Known(GaussianData):
    """Gaussian data with their density."""

    def log_prob(self, x, node):
        var = self.variance(node)
        return (-0.5 * (x**2 / var + math.log(2 * math.pi * var))).flatten(1).sum(1)


@pytest.mark.parametrize("v", [0.0, 0.04, 2.0])
@pytest.mark.parametrize("snr", [0.05, 0.16, 0.5])
def test_the_stationary_variance_of_annealed_langevin(snr, v):
    """x' = (1 - a) x + sqrt(2 a V) z, a = 2 (snr sigma)^2 / V, has the stationary variance V / (1 - a / 2)."""
    problem = GaussianData(VP, v)
    target = problem.variance(NODE)
    a = 2 * (snr * NODE.sigma) ** 2 / target
    count = math.ceil(math.log(1e-12) / (2 * math.log(abs(1 - a)))) if a < 1 else 10
    count = min(count, 3000)
    noise = OrthogonalNoise(count)
    x = torch.zeros(1, count, dtype=torch.float64)
    for _ in range(count):
        x = corrector(f"ald(snr={snr})").correct(problem, x, NODE, noise)
    left = (1 - a) ** (2 * count)  # of the start, at variance 0
    assert float((x**2).mean()) == pytest.approx(target / (1 - a / 2) * (1 - left), rel=1e-9)
    excess = 1 / (1 - a / 2) - 1
    assert 0 < excess <= snr**2 / (1 - snr**2) * (1 + 1e-12)  # as its card says


@pytest.mark.parametrize("v", [0.0, 0.04, 2.0])
@pytest.mark.parametrize("delta", [0.01, 0.2, 1.0])
def test_the_stationary_variance_of_noise_renewal(delta, v):
    """x' = (alpha^2 v + sqrt(1 - delta) sigma^2) x / V + sigma sqrt(delta) z, from the fixed point on: it stays."""
    problem = GaussianData(VP, v)
    target, renewal = problem.variance(NODE), corrector(f"noise_renewal(delta={delta})")
    stationary = renewal.limit_variance(target, NODE)
    noise = OrthogonalNoise(4)
    x = math.sqrt(stationary) * noise(NODE, NODE)
    for _ in range(3):
        x = renewal.correct(problem, x, NODE, noise)
    assert float((x**2).mean()) == pytest.approx(stationary, rel=1e-12)
    lack, share = 1 - stationary / target, NODE.sigma**2 / target
    if delta < 1:  # as its card says, to first order
        assert lack == pytest.approx(delta * (1 - share) / 4, rel=delta, abs=1e-14)


def test_the_stationary_variance_of_langevin_in_high_dimension():
    """The fixed point of step = 2 (snr |z| / |score|)^2: an excess of snr^2, up to 1 / sqrt(d) of the norms."""
    d, snr = 20_000, 0.3
    problem, noise = GaussianData(VP), SeededNoise([1, 2], (d,), torch.float64)
    target = problem.variance(NODE)
    x = math.sqrt(target) * noise.initial()
    found = []
    for i in range(120):
        x = corrector(f"langevin(snr={snr})").correct(problem, x, NODE, noise)
        if i >= 40:
            found.append(float((x**2).mean()) / target)
    # S = (1 - b) ^ 2 S + 2 b V, b = step / V = 2 snr^2 V / (S / V * V): S / V = 1 + snr^2
    # each mean square has a relative spread of sqrt(2 / 40000) = 0.007, and the chain forgets in about 3 steps
    assert sum(found) / len(found) == pytest.approx(1 + snr**2, abs=5 * 0.007 / math.sqrt(80 / 6))


def test_annealed_langevin_is_the_step_of_its_card():
    problem, x = GaussianData(VP), SeededNoise([5], (4,), torch.float64).initial()
    z = SeededNoise([6], (4,), torch.float64)(NODE, NODE)
    size = 2 * (0.2 * NODE.sigma) ** 2
    by_hand = x - size * x / problem.variance(NODE) + math.sqrt(2 * size) * z
    found = corrector("annealed_langevin(snr=0.2)").correct(problem, x, NODE, SeededNoise([6], (4,), torch.float64))
    assert torch.allclose(found, by_hand, rtol=1e-13, atol=0)


@pytest.mark.parametrize("step", [0.3, 1.0])
@pytest.mark.parametrize("d", [1, 8])
def test_mala_keeps_the_exact_law_where_unadjusted_langevin_does_not(d, step):
    """Started from the law of 6000 samples, after 60 steps their variance is still the target's, within 4 standard
    errors of sqrt(2 / (6000 d)); and without the decision the same step's excess would be seen."""
    problem, count = Known(VP, 0.0), 6000
    target = problem.variance(NODE)
    noise = draws(count, d)
    x = math.sqrt(target) * noise()
    stayed = 0
    for _ in range(60):
        moved = corrector(f"mala(step={step})").correct(problem, x, NODE, noise)
        stayed += int((moved == x).all(1).sum())
        x = moved
    spread = math.sqrt(2 / (count * d))
    assert abs(float((x**2).mean()) / target - 1) < 4 * spread
    # the same step without the decision: a = step / d^(1/3), excess 1 / (1 - a / 2) - 1
    assert 1 / (1 - step / d ** (1 / 3) / 2) - 1 > 4 * spread
    assert 0.005 < stayed / (60 * count) < 0.5


def test_mala_finds_the_law_from_a_wrong_start():
    problem, count = Known(VP), 4000
    noise = draws(count, 2)
    x = 2 * math.sqrt(problem.variance(NODE)) * noise()
    for _ in range(80):
        x = corrector("mala(step=1)").correct(problem, x, NODE, noise)
    assert abs(float((x**2).mean()) / problem.variance(NODE) - 1) < 4 * math.sqrt(2 / 8000)


def test_mala_on_a_mixture_of_the_library():
    """Two modes of unequal weight, started from the law: the mean and the second moment stay."""

    class Target:
        def __init__(self):
            means = torch.tensor([[-1.0], [0.5]], dtype=torch.float64)
            self.target = scoresde.targets.GaussianMixture(means, 0.1, [0.3, 0.7])
            self.predict, self.log_prob = self.target.predict, self.target.log_prob

    problem, count = Target(), 6000
    noise = draws(count, 1)
    x0 = problem.target.sample(count, torch.Generator().manual_seed(0))
    x = NODE.alpha * x0 + NODE.sigma * noise()
    for _ in range(30):
        x = corrector("mala(step=0.8)").correct(problem, x, NODE, noise)
    mean = NODE.alpha * (0.3 * -1.0 + 0.7 * 0.5)
    second = NODE.alpha**2 * (0.3 * 1.0 + 0.7 * 0.25 + 0.1) + NODE.sigma**2
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt((second - mean**2) / count)
    assert abs(float((x**2).mean()) - second) < 4 * float((x**2).std()) / math.sqrt(count)


@pytest.mark.parametrize("spec", ["mala", "langevin", "annealed_langevin"])
def test_a_row_is_corrected_alone_as_in_a_batch(spec):
    problem = Known(VP)
    batch = None
    for seeds in ([3, 1, 4], [1]):
        noise = SeededNoise(seeds, (3, 2), torch.float64)
        x = noise.initial()
        for _ in range(5):
            x = corrector(spec).correct(problem, x, NODE, noise)
        batch = x if batch is None else batch
    assert torch.equal(x, batch[[1]])
    assert row_norm(batch).shape == (3, 1, 1)


def test_mala_within_pc():
    problem = Known(VP)
    nodes = solvers.grid("logsnr", VP, 10)
    noise = SeededNoise(range(3), (2,), torch.float64)
    solution = solvers.solve(solvers.make("pc(corrector=mala)"), problem, noise.initial(), nodes, noise)
    assert solution.nfe.tolist() == [30] * 3


def test_pc_with_annealed_langevin_tends_to_the_stationary_law_of_its_corrector():
    """However fine the grid; the rest is of order one in the step."""
    problem, solver = GaussianData(VP), solvers.make("pc(corrector=annealed_langevin)")
    end, errors = VP(VP.t_min), []
    limit = problem.variance(end) / (1 - (0.16 * end.sigma) ** 2 / problem.variance(end))
    for steps in (1280, 2560, 5120):
        nodes = solvers.grid("logsnr", VP, steps)
        errors.append(terminal_variance(solver, problem, nodes) / limit - 1)
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


def test_mala_without_a_density_is_refused():
    noise = SeededNoise(range(3), (2,), torch.float64)
    nodes = solvers.grid("logsnr", VP, 2)
    with pytest.raises(InputError, match=r"^mala needs the target's density: GaussianData has no log_prob"):
        solvers.solve(solvers.make("pc(corrector=mala)"), GaussianData(VP), noise.initial(), nodes, noise)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mala(step=0)", "mala: step must be positive, got 0"),
        ("ald(snr=1)", r"annealed_langevin: snr must lie in \(0, 1\), got 1"),
        ("ald(snr=0)", r"annealed_langevin: snr must lie in \(0, 1\), got 0"),
        ("langevine", "no corrector 'langevine'; did you mean .*langevin"),
    ],
)
def test_bad_options_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        corrector(spec)


class Silent:
    """A model whose output is zero."""

    def __init__(self):
        self.node, self.node_of_lam = VP, lambda lam: VP(VP.t_of_lam(lam))

    def predict(self, x, node):
        return solvers.Prediction((1 / node.alpha) * x, 0 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_langevin_leaves_a_sample_of_score_zero_where_it_is(dtype):
    noise = SeededNoise(range(2), (4,), dtype)
    x = noise.initial()
    assert torch.equal(corrector("langevin").correct(Silent(), x, NODE, noise), x)
    tiny = GaussianData(VP)
    near = corrector("langevin").correct(tiny, 1e-30 * x, NODE, noise)
    assert bool(near.isfinite().all())
    solution = solvers.solve(solvers.make("pc"), Silent(), x, solvers.grid("karras", VP, 5), noise)
    assert bool(solution.x.isfinite().all())


def test_a_budget_of_evaluations_with_mala():
    """1 of the predictor and 2 of the corrector: 6 steps of 3 and the last, to sigma = 0, of 1 are 19."""
    target = scoresde.targets.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.1, [1.0])
    solver = solvers.make("pc(corrector=mala)")
    assert solvers.steps_of_nfe(solver, solvers.grids.make("karras"), VP, 20) == 7
    result = scoresde.sample(target.denoiser(scoresde.VP()), (2,), range(3), solver, "karras", nfe=20)
    assert int(torch.as_tensor(result.nfe).max()) == 19


@pytest.mark.parametrize("inner", ["mala", "langevin"])
def test_correctors_within_picard(inner):
    nodes, problem = solvers.grid("logsnr", VP, 6), Known(VP)
    ends = []
    for spec in (f"picard(solver=pc(corrector={inner}))", f"pc(corrector={inner})"):
        noise = SeededNoise(range(3), (2,), torch.float64)
        ends.append(solvers.solve(solvers.make(spec), problem, noise.initial(), nodes, noise).x)
    assert torch.allclose(*ends, rtol=0, atol=1e-9)
