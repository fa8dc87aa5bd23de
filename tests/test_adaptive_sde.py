"""Gotta Go Fast: its formula, its weak convergence, and a Brownian motion that rejections keep."""

import math

import pytest
import torch

import solvers
from solvers import SeededNoise, grid, solve
from solvers.adaptive.gotta_go_fast import Increments
from solvers.conformance.problems import EDM, VP, GaussianData


def start(nodes, count=9):
    return math.hypot(nodes[0].alpha, nodes[0].sigma) * torch.linspace(-2, 2, count, dtype=torch.float64).view(-1, 1)


def test_a_rejected_increment_is_split_and_kept():
    drawn = []

    def draw(t, s):
        drawn.append((t.t, s.t))
        return torch.full((1, 1), float(len(drawn)), dtype=torch.float64)

    a, b, c, d = (EDM(t) for t in (4.0, 3.0, 2.0, 1.0))
    path = Increments(draw)
    whole = float(path.take(a, c, torch.float64))
    assert whole == pytest.approx(math.sqrt(2.0))  # the first draw is 1, over an interval of length 2
    path.settle(False)
    half = float(path.take(a, b, torch.float64))
    assert half == pytest.approx(0.5 * whole + math.sqrt(0.5 * 0.5 * 2) * 2)  # the bridge, with the second draw
    path.settle(True)
    rest = float(path.take(b, d, torch.float64))  # what is left of the first interval, and a new one
    assert rest == pytest.approx(whole - half + 3.0)
    path.settle(False)
    assert float(path.take(b, d, torch.float64)) == pytest.approx(rest)  # asked again, nothing is drawn
    assert drawn == [(4.0, 2.0), (3.0, 3.0), (2.0, 1.0)]  # disjoint intervals, and an empty one for the bridge


def test_increments_of_any_splitting_are_brownian():
    """After a rejection at random both parts have the variance of their lengths and are uncorrelated."""
    generator = torch.Generator().manual_seed(0)
    path = Increments(lambda t, s: torch.randn(1, 40000, generator=generator, dtype=torch.float64))
    a, b, c = EDM(3.0), EDM(2.3), EDM(1.0)
    path.take(a, c, torch.float64)
    path.settle(False)
    first = path.take(a, b, torch.float64).flatten()
    path.settle(True)
    second = path.take(b, c, torch.float64).flatten()
    error = math.sqrt(2 / 40000)  # standard error of a variance of unit normals; of a correlation it is 0.005
    assert float(first.var()) == pytest.approx(0.7, abs=4 * 0.7 * error)
    assert float(second.var()) == pytest.approx(1.3, abs=4 * 1.3 * error)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 * 0.005


# each sample takes its own steps and costs as much, whatever its coordinates; many coordinates hide what a step does to
# the noise that it chose: with fresh draws after a rejection (VP, 100, 24) gives -0.138 instead of -0.093
@pytest.mark.parametrize(
    ("path", "count", "width"),
    [
        (VP, 100, 24),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((EDM, 50, 192), (VP, 400, 24), (EDM, 400, 24))),
    ],
    ids=str,
)
def test_gotta_go_fast_converges_weakly_as_its_tolerance_falls(path, count, width):
    """Mean and variance on N(0, 0.04), from the exact law; 50 samples of 192 equal coordinates are 9600 draws."""
    problem, nodes = GaussianData(path), grid("uniform", path, 1)
    biases = []
    for rtol in (0.3, 0.03):
        noise = SeededNoise(range(count), (width,), torch.float64)
        x = math.sqrt(problem.variance(nodes[0])) * noise.initial()
        found = solve(solvers.make(f"gotta_go_fast(rtol={rtol}, atol={rtol})"), problem, x, nodes, noise)
        wanted = problem.variance(nodes[-1])
        assert abs(float(found.x.mean())) < 4 * math.sqrt(wanted / (width * count))
        biases.append(float(found.x.var()) / wanted - 1)
        assert (found.rejected <= 2 * found.accepted).all()
    error = math.sqrt(2 / (width * count))  # standard error of a relative variance
    assert abs(biases[1]) < 3 * error + 0.02
    assert abs(biases[1]) < abs(biases[0])


def test_gotta_go_fast_is_its_paper_in_one_step():
    """Jolicoeur-Martineau et al. 2021, algorithm 1, with the same z in both stages."""
    t, s = VP(1.0), VP(0.8)
    problem, x = GaussianData(VP), start((t,), 4)
    z = SeededNoise(range(4), (1,), torch.float64)(t, s)
    h = t.t - s.t

    def stage(y, node):
        drift = -node.f * y + node.g2 * problem.predict(y, node).score(node)
        return h * drift + math.sqrt(h * node.g2) * z

    first = x + stage(x, t)
    second = x + stage(first, s)
    noise = SeededNoise(range(4), (1,), torch.float64)
    held = "rtol=1e9, atol=1e9, first_step=inf"
    found = solve(solvers.make(f"gotta_go_fast({held})"), problem, x, (t, s), noise)
    assert torch.allclose(found.x, (first + second) / 2, rtol=1e-13, atol=1e-13)
    noise = SeededNoise(range(4), (1,), torch.float64)
    plain = solve(solvers.make(f"gotta_go_fast({held}, extrapolate=False)"), problem, x, (t, s), noise)
    assert torch.allclose(plain.x, first, rtol=1e-13, atol=1e-13)
    assert torch.allclose(found.error, ((second - first) / 2).abs().flatten(), rtol=1e-10, atol=1e-14)


def test_a_noise_source_without_rows_still_serves():
    nodes = grid("uniform", VP, 1)
    found = solve(
        solvers.make("gotta_go_fast"), GaussianData(VP), start(nodes), nodes, lambda t, s: torch.zeros(9, 1).double()
    )
    assert torch.isfinite(found.x).all()
