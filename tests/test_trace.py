"""Tracing: a program holds the solver's own numbers, whatever the model puts out, and as few of them as it needs."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

import scoresde
import solvers
from solvers import InputError, SeededNoise, Solver, Step, grid, solve, trace
from solvers.conformance.problems import EDM, PATHS, VP, Mixture
from solvers.program.instructions import Combine, Draw, Evaluate
from solvers.types.model_output import PREDICTS

pytestmark = pytest.mark.quick

LINEAR = [name for name in solvers.names() if solvers.make(name).linear]
NESTED = [
    "pc(predictor=churn(solver=heun), corrector=annealed_langevin, corrector_steps=2)",
    "churn(solver=dpm_2)",
    "restart(solver=dpmpp_2s)",
    "final(solver=uni_pc, last=heun, steps=2)",
    "picard(sweeps=3, window=4)",
    "picard(solver=churn, sweeps=2, window=3)",
]


def start(nodes, rows=3, dtype=torch.float64):
    return math.hypot(nodes[0].alpha, nodes[0].sigma) * SeededNoise(range(rows), (2,), dtype).initial()


def draws(rows=3, dtype=torch.float64):
    return SeededNoise(range(rows), (2,), dtype)


def test_the_program_of_eulers_method_is_its_formula():
    nodes = grid("quadratic", VP, 3)
    program = trace("euler", nodes, output="eps")
    for k, (t, s) in enumerate(pairwise(nodes)):
        asked, moved = program.instructions[2 * k : 2 * k + 2]
        assert asked == Evaluate(x=2 * k, node=k)
        ((x, keep), (eps, weight)) = moved.terms
        assert (x, eps) == (2 * k, 2 * k + 1)
        assert keep == pytest.approx(s.alpha / t.alpha, rel=1e-15)
        assert weight == pytest.approx(s.alpha * (s.ratio - t.ratio), rel=1e-14)
    assert program.nfe == 3
    assert program.grid == nodes


def test_the_program_of_ancestral_sampling_draws_for_its_intervals():
    nodes = grid("logsnr", VP, 3)
    program = trace("ddpm", nodes)
    assert [i for i in program.instructions if isinstance(i, Draw)] == [Draw(k, k + 1) for k in range(3)]
    (t, s), sums = nodes[:2], [i for i in program.instructions if isinstance(i, Combine)]
    noise = sums[0].terms[-1][1]
    assert noise == pytest.approx(s.sigma * math.sqrt(1 - (s.ratio / t.ratio) ** 2), rel=1e-14)


@dataclass(frozen=True)
class Network:
    """A problem whose model has an output of its own, a smooth function."""

    schedule: object
    output: solvers.Output

    def node(self, t):
        return self.schedule(t)

    def node_of_lam(self, lam):
        return self.schedule.node_of_lam(lam)

    def raw(self, x, node):
        return 0.4 * torch.tanh(x + 0.1 * node.like(x).lam) + 0.1 * x

    def predict(self, x, node):
        return self.output.read(self.raw(x, node), x, node.like(x))


@pytest.mark.parametrize("output", PREDICTS)
@pytest.mark.parametrize("spec", ["ddim", "heun", "dpmpp_2m", "uni_pc", "lms", "dpmpp_2m_sde", "er_sde", *NESTED])
def test_programs_in_terms_of_any_output_give_the_numbers_of_the_steps(spec, output):
    solver = solvers.make(spec)
    for schedule in (VP, EDM):
        nodes = grid("logsnr", schedule, 9)
        problem = Network(schedule, solvers.Output(output))
        x = start(nodes)
        eager = solve(solver, problem, x, nodes, draws()).x
        program = trace(solver, nodes, schedule, output)
        with torch.no_grad():
            assert torch.allclose(program.run(problem, x, draws()), eager, rtol=1e-12, atol=1e-12 * eager.abs().max())


@pytest.mark.parametrize("output", PREDICTS)
def test_a_program_asks_the_model_for_its_own_output_and_others_for_predictions(output):
    nodes, x = grid("logsnr", VP, 5), start(grid("logsnr", VP, 5))
    problem = Network(VP, solvers.Output(output))
    found = [trace("dpmpp_2m", nodes, VP, other).run(problem, x) for other in PREDICTS]
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", LINEAR + NESTED)
def test_a_program_has_the_same_length_in_every_step(spec):
    """Twenty more steps are twenty times one more: no row grows with the number of steps."""
    if "restart" in spec or "picard" in spec:
        pytest.skip("its steps are not alike")
    counts = []
    for steps in (40, 60, 80):
        program = trace(spec, grid("logsnr", VP, steps), VP)
        terms = sum(len(i.terms) for i in program.instructions if isinstance(i, Combine))
        counts.append((len(program.instructions), terms, peak(program)))
    (a, b, c) = counts
    slack = 8 if spec == "dpm_fast" else 0  # its last steps depend on the remainder by three
    for i in (0, 1):
        assert abs((c[i] - b[i]) - (b[i] - a[i])) <= slack
    assert a[2] == b[2] == c[2]


def peak(program):
    """The most registers that are alive at once."""
    alive, most = {0}, 1
    for k, dying in enumerate(program.last_use, 1):
        alive.add(k)
        most = max(most, len(alive))
        alive -= set(dying)
    return most


@pytest.mark.parametrize(("spec", "registers"), [("ddim", 3), ("dpmpp_2m", 4), ("lms", 6), ("uni_pc", 6), ("heun", 4)])
def test_as_few_registers_as_the_method_has_to_remember(spec, registers):
    # the state, the model's output, what the method keeps of the steps before, the next state
    assert (
        peak(trace(spec, grid("logsnr", VP, 30), VP, "eps" if spec in ("lms", "heun", "ddim") else "x0")) <= registers
    )


@dataclass(frozen=True)
class Clipped(Solver):
    order, stochastic, linear, adaptive, evaluations, nonlinear = 1.0, False, True, False, 1, ""

    def step(self, problem, x, t, s, carry, noise):
        eps = problem.predict(x, t).eps
        return Step((s.alpha * (x / t.alpha + (s.ratio - t.ratio) * eps)).clamp(-3, 3))


@dataclass(frozen=True)
class Squared(Clipped):
    def step(self, problem, x, t, s, carry, noise):
        return Step(x * x)


@dataclass(frozen=True)
class Exponential(Clipped):
    def step(self, problem, x, t, s, carry, noise):
        return Step(torch.exp(x))


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("pc", "pc has no program: Langevin's step is set by the norms"),
        ("rk45", "rk45 has no program: it chooses each sample's steps"),
        ("picard", "it sweeps until the samples agree"),
        ("scipy(method=LSODA)", "another library takes the steps"),
        ("step_doubling", "its error estimate is a norm"),
        ("pc(predictor=ddpm, corrector=mala)", "a proposal is accepted or not"),
        (Clipped(), "its steps are not linear, they use 'clamp'"),
        (Squared(), "its steps are not linear, they use 'a product with a Linear'"),
        (Exponential(), "its steps are not linear, they use 'exp'"),
    ],
    ids=str,
)
def test_what_is_not_linear_is_told_by_name(solver, message):
    with pytest.raises(InputError, match="has no program") as error:
        trace(solver, grid("logsnr", VP, 3), VP)
    assert message in str(error.value)


def test_a_solver_that_looks_between_the_nodes_needs_the_schedule():
    nodes = grid("logsnr", VP, 3)
    assert trace("dpmpp_2m", nodes).nfe == 3
    with pytest.raises(InputError, match="evaluates the path between the grid's nodes: pass the schedule"):
        trace("dpm_2", nodes)
    assert trace("dpm_2", nodes, VP).nfe == 6


def test_bad_input():
    nodes = grid("logsnr", VP, 3)
    with pytest.raises(InputError, match=r"no prediction type 'epsilon'; did you mean eps\?|prediction type 'epsilon'"):
        trace("ddim", nodes, output="epsilon")
    with pytest.raises(InputError, match="did you mean ddim"):
        trace("ddimm", nodes)
    with pytest.raises(InputError, match="has 1 node"):
        trace("ddim", nodes[:1])
    with pytest.raises(InputError, match="cannot encode"):
        trace("ddpm", nodes[::-1])


@pytest.mark.parametrize("spec", ["heun", "dpmpp_2m", "uni_pc", "lms(start=runge_kutta)"])
def test_programs_run_from_data_to_noise_too(spec):
    nodes = grid("logsnr", EDM, 12)[::-1]
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).view(3, 2)
    eager = solve(solvers.make(spec), Mixture(EDM), x, nodes).x
    assert torch.allclose(trace(spec, nodes, EDM).run(Mixture(EDM), x), eager, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", [scoresde.VP(), scoresde.SubVP(), scoresde.Cosine(), scoresde.RectifiedFlow()], ids=str)
def test_float32_loses_no_digits_to_a_conversion(sde):
    """A network's own output goes into the sum as it is. At low noise eps is found from x0 by a difference of nearly
    equal numbers, (x - alpha x0) / sigma, which the program never takes."""
    nodes = grid("logsnr", sde, 200)
    problem = Network(sde, solvers.Output("x0"))
    program = trace("lms", nodes, sde, "x0")
    with torch.no_grad():
        exact = program.run(problem, start(nodes))
        single = program.run(problem, start(nodes, dtype=torch.float32))
    assert float((single.double() - exact).abs().max() / exact.abs().max()) < 2e-6


def test_every_path_has_the_same_program_in_its_own_coordinates():
    """On x / alpha against sigma / alpha every path is the same ODE: the weights of the outcome agree across paths."""
    ratios = [5.0, 2.0, 0.7, 0.2]
    outcome = []
    for path in PATHS:
        nodes = [path(path.t_of_lam(-math.log(ratio))) for ratio in ratios]
        states = solvers.response(trace("dpmpp_3m", nodes, path, "x0")).states[-1] / nodes[-1].alpha
        states[0] *= nodes[0].alpha
        outcome.append(torch.from_numpy(states))
    for other in outcome[1:]:
        assert torch.allclose(other, outcome[0], rtol=0, atol=1e-12)
