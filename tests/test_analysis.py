"""What is read off a program's numbers, against closed forms and against runs."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import solvers
from solvers import InputError, grid, trace
from solvers.conformance.convergence import terminal_variance
from solvers.conformance.problems import EDM, VP, GaussianData

pytestmark = pytest.mark.quick

STOCHASTIC = [name for name in solvers.names() if (s := solvers.make(name)).stochastic and s.linear]


class Known:
    """A model that answers with numbers of its own, whatever it is asked; and such draws."""

    output = solvers.Output("eps")

    def __init__(self, size):
        self.answers = torch.randn(size, 4, generator=solvers.generator(3), dtype=torch.float64)
        self.asked, self.drawn = [], []

    def raw(self, x, node):
        self.asked.append(x.clone())
        return self.answers[len(self.asked) - 1].view(1, 4)

    def __call__(self, t, s):
        self.drawn.append(self.answers[-1 - len(self.drawn)].view(1, 4))
        return self.drawn[-1]


@pytest.mark.parametrize("spec", ["ddim", "uni_pc", "dpmpp_3m_sde", "seeds_3", "restart"])
def test_the_response_is_that_of_a_run(spec):
    """The outcome and every state that the model is shown are the rows times the inputs."""
    program = trace(spec, grid("logsnr", VP, 6), VP, "eps")
    known, x = Known(200), torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    with torch.no_grad():
        outcome = program.run(known, x, known)
    inputs = torch.cat([x, known.answers[: program.nfe], *known.drawn])
    rows = solvers.response(program)
    assert torch.allclose(torch.from_numpy(rows.states[-1:]) @ inputs, outcome, rtol=1e-12, atol=1e-12)
    assert torch.allclose(torch.from_numpy(rows.evaluated) @ inputs, torch.cat(known.asked), rtol=1e-12, atol=1e-12)
    assert np.array_equal(
        np.triu(rows.evaluated[:, 1 : 1 + program.nfe]), np.zeros((program.nfe, program.nfe))
    )  # causal


def test_difference_tells_where_two_programs_part():
    nodes = grid("logsnr", VP, 5)
    one = trace("ddim", nodes)
    assert solvers.difference(one, trace("ddim", nodes)) == 0
    assert solvers.difference(one, trace("heun", nodes)) == math.inf
    assert solvers.difference(trace("ddpm", nodes), trace("ddim", nodes)) == math.inf  # draws, and none
    moved = (*nodes[:2], VP(nodes[2].t * 1.01), *nodes[3:])
    assert solvers.difference(one, trace("ddim", moved)) > 1e-4
    assert not solvers.equal(one, trace("ddim", moved))
    # the last weight alone
    *others, last = trace("dpmpp_2m", nodes).instructions
    terms = (*last.terms[:-1], (last.terms[-1][0], last.terms[-1][1] * (1 + 1e-9)))
    changed = solvers.Program("changed", one.output, nodes, (*others, last._replace(terms=terms)), one.states)
    original = trace("dpmpp_2m", nodes)
    changed = solvers.Program(original.solver, original.output, original.nodes, changed.instructions, original.states)
    assert 1e-12 < solvers.difference(original, changed) < 1e-8


def test_programs_of_different_outputs_are_one_method():
    nodes = grid("logsnr", EDM, 6)
    programs = [trace("uni_pc", nodes, EDM, output) for output in ("x0", "eps", "v", "score", "velocity", "edm")]
    assert all(solvers.equal(programs[0], other) for other in programs[1:])


def test_draws_for_other_intervals_are_told_apart():
    nodes = grid("logsnr", VP, 3)
    program = trace("ddpm", nodes)
    swapped = tuple(
        i._replace(s=i.t) if isinstance(i, solvers.program.instructions.Draw) else i for i in program.instructions
    )
    fresh = solvers.Program(program.solver, program.output, program.nodes, swapped, program.states)
    assert solvers.difference(program, fresh) == pytest.approx(nodes[1].lam - nodes[0].lam)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_terminal_covariance_is_the_recursion_of_variances(eta):
    nodes, v = grid("logsnr", VP, 25), 0.3
    variance = nodes[0].alpha ** 2 * v + nodes[0].sigma ** 2
    for t, s in pairwise(nodes):
        fresh = eta**2 * s.sigma**2 * (1 - (s.ratio / t.ratio) ** 2)
        total = t.alpha**2 * v + t.sigma**2
        gain = s.alpha * t.alpha * v / total + math.sqrt(s.sigma**2 - fresh) * t.sigma / total
        variance = gain**2 * variance + fresh
    program = trace(f"ddim(eta={eta})", nodes)
    assert float(solvers.terminal_covariance(program, v)) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("spec", STOCHASTIC)
def test_terminal_covariance_is_that_of_a_run_on_orthogonal_draws(spec):
    nodes = grid("logsnr", VP, 12)
    for v in (0.04, 0.3):
        run = terminal_variance(solvers.make(spec), GaussianData(VP, v), nodes)
        assert float(solvers.terminal_covariance(trace(spec, nodes, VP, "eps"), v)) == pytest.approx(run, rel=1e-11)


def test_terminal_covariance_of_a_matrix_is_that_of_its_axes():
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    program = trace("dpmpp_2m_sde", grid("karras", VP, 9), VP)
    axes = torch.stack([solvers.terminal_covariance(program, v) for v in (0.5, 0.01)])
    covariance = turn @ torch.diag(torch.tensor([0.5, 0.01], dtype=torch.float64)) @ turn.T
    assert torch.allclose(
        solvers.terminal_covariance(program, covariance), turn @ torch.diag(axes) @ turn.T, atol=1e-13
    )


def test_the_exact_ode_keeps_the_law_of_gaussian_data():
    """Of order 2, on a grid of 400 steps: the terminal variance is the data's, but for the error of the method."""
    nodes = grid("logsnr", VP, 400)
    left = float(solvers.terminal_covariance(trace("heun", nodes, VP), 0.25))
    assert left == pytest.approx(nodes[-1].alpha ** 2 * 0.25 + nodes[-1].sigma ** 2, rel=2e-4)


@pytest.mark.parametrize(
    "bad", [-1.0, math.nan, torch.zeros(2, 3), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.zeros(2)]
)
def test_what_is_no_covariance_is_refused(bad):
    with pytest.raises(InputError, match="a covariance"):
        solvers.terminal_covariance(trace("ddpm", grid("logsnr", VP, 3)), bad)
