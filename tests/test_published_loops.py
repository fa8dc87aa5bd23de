"""Solvers against loops written from the formulas of published programs, on a nonlinear model."""

import math
from itertools import pairwise

import pytest
import torch
from linear_response import distance

import solvers
from solvers import grid, make, solve
from solvers.conformance.problems import EDM, VE, VP, Mixture


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("end", ["zero", "t_min"])
def test_the_taylor_variant_is_k_diffusions_loop(eta, end):
    """The update of k-diffusion's sample_dpmpp_3m_sde from its formula, in sigma; its eta is the square of eta here."""
    nodes = grid(f"karras(rho=3, end={end})", EDM, 7)
    problem, theirs = Mixture(EDM), solvers.convert_eta(eta, "sde", "dpmpp_3m_sde")
    draws = torch.randn(len(nodes), 5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start = nodes[0].sigma * torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1)
    past, steps = [], []
    for i, (t, s) in enumerate(pairwise(nodes)):
        denoised = problem.predict(x, t).x0
        if s.clean:
            x = denoised
            break
        h = math.log(t.sigma / s.sigma)
        total = h * (1 + theirs)
        moved = math.exp(-total) * x + (1 - math.exp(-total)) * denoised
        linear = (math.exp(-total) - 1) / total + 1  # the integral of u / h against the exponential
        if len(past) == 1:
            moved = moved + linear * (denoised - past[0]) * h / steps[0]
        elif len(past) >= 2:
            newer, older = (denoised - past[0]) * h / steps[0], (past[0] - past[1]) * h / steps[1]
            r0, r1 = steps[0] / h, steps[1] / h
            first = newer + (newer - older) * r0 / (r0 + r1)
            moved = moved + linear * first - (linear / total - 0.5) * (newer - older) / (r0 + r1)
        x = moved + s.sigma * math.sqrt(1 - math.exp(-2 * h * theirs)) * draws[i]
        past, steps = [denoised, *past], [h, *steps]
    drawn = iter(draws)
    spec = f"dpmpp_3m_sde(variant=taylor, eta={eta})"
    found = solve(make(spec), problem, start, nodes, lambda t, s: next(drawn)).x
    assert torch.allclose(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [VP, VE], ids=str)
@pytest.mark.parametrize("steps", [6, 7, 8])
@pytest.mark.parametrize("end", ["zero", "t_min"])
@pytest.mark.parametrize("name", ["dpmpp_3s", "dpm_solver_3"])
def test_the_published_step_of_order_3_on_the_grids_own_nodes(name, end, steps, schedule):
    """Groups of three intervals, each a step of the papers' algorithm with r1 and r2 from its nodes; the last groups
    have orders 2 and 1. Lu et al. 2022: DPM-Solver's algorithm 2, and its form in x0 (DPM-Solver++, appendix B)."""
    nodes = grid(f"karras(rho=3, end={end})", schedule, steps)
    problem, plus = Mixture(schedule), name == "dpmpp_3s"
    x = start = math.hypot(nodes[0].alpha, nodes[0].sigma) * torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1)

    def predict(x, node):
        prediction = problem.predict(x, node)
        return prediction.x0 if plus else prediction.eps

    def move(x, t, s, first, *bends):
        """The linear part and the constant prediction, and multiples of differences of predictions."""
        h = s.lam - t.lam
        added = sum((weight * bend for weight, bend in bends), abs(math.expm1(-h if plus else h)) * first)
        return s.sigma / t.sigma * x + s.alpha * added if plus else s.alpha / t.alpha * x - s.sigma * added

    def curve(h):  # the integral of u / h
        return 1 - (1 - math.exp(-h)) / h if plus else (math.exp(h) - 1) / h - 1

    whole, rest = divmod(steps, 3)
    sizes = [3] * (whole - 1) + [2, 1] if rest == 0 else [3] * whole + [rest]
    at = 0
    for size in sizes:
        part = nodes[at : at + size + 1]
        t, s, at = part[0], part[-1], at + size
        first = predict(x, t)
        if s.clean and size == 1:
            x = s.alpha * problem.predict(x, t).x0
        elif size == 1:
            x = move(x, t, s, first)
        elif size == 2 and s.clean:
            x = move(x, t, part[1], first)
            x = s.alpha * problem.predict(x, part[1]).x0
        elif size == 2:
            h, r = s.lam - t.lam, (part[1].lam - t.lam) / (s.lam - t.lam)
            second = predict(move(x, t, part[1], first), part[1])
            x = move(x, t, s, first, (abs(math.expm1(-h if plus else h)) / (2 * r), second - first))
        else:
            h, one, two = s.lam - t.lam, part[1].lam - t.lam, part[2].lam - t.lam
            second = predict(move(x, t, part[1], first), part[1])
            third = predict(move(x, t, part[2], first, (two / one * curve(two), second - first)), part[2])
            x = move(x, t, s, first, (h / two * curve(h), third - first))
    assert at == steps
    found = solve(make(f"{name}(mode=grid, variant=published, lower_order_final=True)"), problem, start, nodes).x
    assert torch.allclose(found, x, rtol=0, atol=1e-12)


def test_dpm_fast_is_the_published_step_on_the_grids_own_nodes():
    for steps in (5, 6, 7):
        nodes = grid("karras(rho=3)", VP, steps)
        for other in solvers.info("dpm_fast").equals:
            assert distance(make("dpm_fast"), make(other), nodes) < 1e-12
