"""Wrappers: what each adds to the solver inside, by hand; its order; what it refuses."""

import math
from itertools import pairwise

import pytest
import torch

import scoresde
import solvers
from solvers import InputError, Node, Prediction, SeededNoise, grid, solve
from solvers.conformance.checks import check
from solvers.conformance.convergence import measured_order, terminal_variance
from solvers.conformance.problems import EDM, PATHS, VP, GaussianData, Mixture, exact_solution
from solvers.noise.brownian import BrownianNoise, clock

make = solvers.make


def run(spec, nodes, noise=None, schedule=VP, problem=None, seeds=range(4), shape=(3,)):
    noise = noise or SeededNoise(seeds, shape, torch.float64)
    x = math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial()
    return solve(make(spec), problem or Mixture(schedule), x, nodes, noise)


@pytest.mark.parametrize(
    "path", [PATHS[0], *(pytest.param(path, marks=pytest.mark.slow) for path in PATHS[2::2])], ids=str
)
@pytest.mark.parametrize(
    "spec",
    [
        "churn(solver=euler, s_churn=10)",
        "churn(s_churn=0)",
        "final(solver=heun, last=euler, steps=2)",
        "final(solver=ddpm, last=euler)",
        "step_doubling(solver=ddim)",
        "step_doubling(solver=dpmpp_2m)",
        "step_doubling(solver=ddpm)",
        "step_doubling(extrapolate=True)",
        "restart(solver=dpmpp_2m)",
        "restart(intervals=[])",
        "restart(intervals=[[4, 1, 1, 3], [3, 2, 0.06, 0.3]])",
    ],
)
def test_wrapped_solvers_pass_conformance(spec, path):
    failed = [str(verdict) for verdict in check(make(spec), (path,)) if not verdict.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(
    ("spec", "whether"),
    [("ddim", True), ("heun", True), ("ddpm", True), ("pc", True), ("dpmpp_2m", False), ("churn", True)],
)
def test_which_solvers_take_single_steps(spec, whether):
    assert make(spec).restartable is whether


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("churn(solver=dpmpp_2m)", "churn: dpmpp_2m carries state from step to step; take a single-step solver"),
        ("churn(solver=rk45)", "churn: rk45 chooses its own steps; take a solver of fixed steps"),
        ("churn(s_churn=-1)", "churn: s_churn must be at least 0, got -1"),
        ("churn(s_tmin=2, s_tmax=1)", "churn: s_tmin=2 is above s_tmax=1"),
        ("restart(solver=ddpm)", "restart: ddpm draws noise; take a deterministic solver"),
        (
            "restart(intervals=[[3, 2, 0.3, 0.06]])",
            r"restart: an interval is \[n, K, ratio_min, ratio_max\].* got \[3, ",
        ),
        ("restart(intervals=[[1, 2, 0.06, 0.3]])", r"restart: an interval is .* got \[1, 2, 0.06, 0.3\]"),
        ("restart(intervals=[[3, 2, 0.06]])", r"restart: an interval is .* got \[3, 2, 0.06\]"),
        ("restart(s_noise=-1)", "restart: s_noise must be at least 0, got -1"),
        ("step_doubling(solver=rk45)", "step_doubling: rk45 chooses its own steps"),
        ("step_doubling(solver=ddpm, extrapolate=True)", r"step_doubling\(extrapolate=True\): ddpm draws noise"),
        ("step_doubling(solver=dpmpp_2m, extrapolate=True)", "dpmpp_2m carries state from step to step"),
        ("final(steps=0)", "final: steps must be a positive integer, got 0"),
        ("final(last=rk45)", "final: rk45 chooses its own steps"),
        ("pc(corrector_steps=0)", "pc: corrector_steps must be a positive integer, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        make(spec)
    assert "\n" not in str(caught.value)


# churn


def test_churn_raises_the_level_and_steps_down_from_there():
    t, s = VP(1.0), VP(0.8)
    x, noise = torch.tensor([[0.4, -1.0]], dtype=torch.float64), SeededNoise([3], (2,), torch.float64)
    z = SeededNoise([3], (2,), torch.float64)(t, t)
    gamma = 2.0 / 10
    up = VP.t_of_lam(t.lam - math.log(1 + gamma))
    up = VP(up)
    y = x / t.alpha + 1.1 * t.ratio * math.sqrt((1 + gamma) ** 2 - 1) * z
    by_hand = make("euler").step(Mixture(VP), up.alpha * y, up, s, None, None).x
    churn = make("churn(solver=euler, s_churn=2, s_noise=1.1)")
    found = churn.step(Mixture(VP), x, t, s, churn.init(Mixture(VP), x, (t,) * 11), noise)
    assert torch.allclose(found.x, by_hand, rtol=1e-12, atol=0)


def test_churn_is_at_most_the_square_root_of_two_and_only_between_its_levels():
    nodes = grid("logsnr", EDM, 8)
    problem = _Asked(Mixture(EDM))
    run("churn(solver=euler, s_churn=1000, s_tmin=0.2, s_tmax=2)", nodes, problem=problem)
    for node, asked in zip(nodes, problem.nodes, strict=False):
        factor = math.sqrt(2) if 0.2 <= node.ratio <= 2 else 1
        assert asked.ratio == pytest.approx(factor * node.ratio, rel=1e-12)
    assert torch.equal(run("churn(s_churn=0)", nodes).x, run("heun", nodes).x)


def test_churn_stops_at_the_schedules_end():
    """A schedule that has no noisier node than the first: nothing is added there."""

    class Ending(Mixture):
        def node_of_lam(self, lam):
            return super().node_of_lam(max(lam, math.log(0.1)))

    t, s = EDM(10.0), EDM(5.0)
    x = torch.tensor([[3.0]], dtype=torch.float64)
    found = make("churn").step(Ending(EDM), x, t, s, (10, None), SeededNoise([0], (1,), torch.float64)).x
    assert torch.equal(found, make("heun").step(Mixture(EDM), x, t, s, None, None).x)


class _Asked:
    def __init__(self, problem):
        self.problem, self.nodes = problem, []
        self.node, self.node_of_lam = problem.node, problem.node_of_lam

    def predict(self, x, node):
        self.nodes.append(node)
        return self.problem.predict(x, node)


# restart


def test_restart_on_gaussian_data_is_the_recursion_of_variances():
    """Euler's gain over a step on N(0, v), in y: 1 + (ratio_s - ratio_t) ratio_t / (v + ratio_t^2); noise between."""
    v, nodes = GaussianData(EDM).v, grid("logsnr", EDM, 12)

    def down(variance, ratios):
        for t, s in pairwise(ratios):
            variance *= (1 + (s - t) * t / (v + t**2)) ** 2
        return variance

    ratios = [node.ratio for node in nodes]
    at = min(range(len(ratios)), key=lambda i: abs(ratios[i] - 0.5))
    variance = down(v + ratios[0] ** 2, ratios[: at + 1])
    crossed = sum(ratios[at] < r <= 4 for r in ratios)
    steps = 2 * max(1, crossed // 2)
    levels = [(4 ** (1 / 7) + i / steps * (ratios[at] ** (1 / 7) - 4 ** (1 / 7))) ** 7 for i in range(steps + 1)]
    for _ in range(3):
        variance = down(variance + 1.1**2 * (4**2 - ratios[at] ** 2), levels)
    variance = down(variance, ratios[at:])
    solver = make("restart(solver=euler, intervals=[[3, 3, 0.5, 4]], s_noise=1.1)")
    assert terminal_variance(solver, GaussianData(EDM), nodes) == pytest.approx(variance, rel=1e-12)


def test_restart_as_published_for_cifar_takes_43_evaluations():
    """18 steps of Karras' grid from 80 to 0.002: 35 evaluations, and 2 rounds of 2 Heun steps, 8 more."""

    class Wide:
        t_min, t_max, clean = 0.002, 80.0, Node(0.0, 1.0, 0.0)

        def __call__(self, t):
            return Node(t, 1.0, t, 0.0, 1.0)

        def t_of_lam(self, lam):
            return math.exp(-lam)

    assert solvers.evaluations(make("restart"), Wide(), grid("karras", Wide(), 18)) == 43


def test_a_restart_begins_at_the_node_nearest_to_its_level():
    """19.35 is a published level: the sixth of 18 nodes of Karras' grid, rounded from 19.35245."""
    wide = scoresde.EDM()
    nodes = grid("karras", wide, 18)
    problem = _Asked(Mixture(wide))
    run("restart(solver=euler, intervals=[[3, 1, 19.35, 40.79]])", nodes, problem=problem)
    levels = [node.ratio for node in nodes[:-1]]
    at = min(range(len(levels)), key=lambda i: abs(levels[i] - 19.35))
    assert levels[at] > 19.35 > levels[at + 1]  # the first node below it would be another
    asked = [node.ratio for node in problem.nodes]
    assert asked[:at] == pytest.approx(levels[:at], rel=1e-12)
    assert asked[at] == pytest.approx(40.79, rel=1e-12)  # up again after the step to that node
    assert asked[at + 2 :] == pytest.approx(levels[at:], rel=1e-12)


def test_restart_contracts_an_error_of_the_start():
    """What it is for: a wrong scale of the start is forgotten, by noise; the ODE alone keeps it."""
    problem, nodes = GaussianData(EDM), grid("logsnr", EDM, 200)

    def off(spec):
        ends = []
        for scale in (1.0, 1.5):
            noise = SeededNoise(range(2), (2,), torch.float64)
            x = scale * nodes[0].sigma * noise.initial()
            ends.append(solve(make(spec), problem, x, nodes, noise).x)
        return float((ends[0] - ends[1]).abs().max() / ends[0].abs().max())

    plain, restarted = off("heun"), off("restart(intervals=[[5, 2, 0.06, 2]])")
    # each round brings the difference down by sqrt((v + 0.06^2) / (v + 2^2)) = 0.1
    assert restarted < 0.05 * plain


# final


def test_final_hands_over_to_the_last_solver():
    nodes = grid("karras", VP, 9)
    first = run("heun", nodes[:-3])
    rest = solve(make("euler"), Mixture(VP), first.x, nodes[-4:])
    whole = run("final(solver=heun, last=euler, steps=3)", nodes)
    assert torch.equal(whole.x, rest.x)
    assert whole.nfe.tolist() == [2 * 6 + 3] * 4
    # a grid of fewer steps is all the last solver's, and a multistep one starts anew
    assert torch.equal(run("final(solver=heun, last=euler, steps=9)", nodes).x, run("euler", nodes).x)
    late = solve(make("dpmpp_2m"), Mixture(VP), first.x, nodes[-4:])
    assert torch.equal(run("final(solver=heun, last=dpmpp_2m, steps=3)", nodes).x, late.x)


def test_one_last_step_of_order_one_keeps_order_two():
    order, _ = measured_order(make("final(solver=heun, last=euler)"), VP)
    assert 1.8 < order < 2.2
    assert make("final(solver=step_doubling(extrapolate=True), last=euler)").order == 2


# step doubling


@pytest.mark.parametrize("spec", ["heun", "dpmpp_2m"])
def test_doubled_steps_are_those_of_the_halved_grid(spec):
    nodes = grid("logsnr", VP, 10)
    found, halved = run(f"step_doubling(solver={spec})", nodes), run(spec, grid("logsnr", VP, 20))
    assert torch.allclose(found.x, halved.x, rtol=0, atol=1e-12)
    assert found.nfe.tolist() == [30 * make(spec).evaluations] * 4


def test_the_estimate_is_the_error_of_the_step():
    """On one short step of a smooth problem: the estimate over the true error of the half steps tends to 1."""
    problem = Mixture(VP, v=0.5)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(5, 1)
    for spec in ("euler", "heun", "step_doubling(extrapolate=True)"):
        for length, slack in ((0.1, 0.75), (0.02, 0.15)):  # the next term is of relative order h
            t = problem.node_of_lam(0.5)
            s = problem.node_of_lam(0.5 + length)
            solver = make(f"step_doubling(solver={spec})")
            step = solver.step(problem, x, t, s, None, None)
            true = (step.x - exact_solution(problem, x, t, s)).abs().flatten()
            assert true.numel() == step.error.numel() == 5
            big = true > 0.2 * true.max()  # where the leading term does not happen to vanish
            assert torch.allclose(step.error[big], true[big], rtol=slack, atol=1e-13)


def test_a_solution_sums_the_estimates():
    nodes = grid("logsnr", VP, 40)
    solution = run("step_doubling(solver=euler)", nodes)
    exact = exact_solution(Mixture(VP), nodes[0].alpha * 0 + _start(nodes), nodes[0], nodes[-1])
    true = (solution.x - exact).pow(2).mean(1).sqrt()
    assert solution.error.shape == (4,)
    assert bool((true < 3 * solution.error).all())  # the estimates bound what the path lets them grow to


def _start(nodes):
    return math.hypot(nodes[0].alpha, nodes[0].sigma) * SeededNoise(range(4), (3,), torch.float64).initial()


def test_the_coarse_step_sees_the_noise_of_the_half_steps():
    """ddpm on constant x0 is exact along its path, so that both agree and the estimate vanishes."""

    class Constant(Mixture):
        def predict(self, x, node):
            return Prediction(0 * x + 0.3, (x - 0.3 * node.alpha) / node.sigma)

    nodes = grid("logsnr", VP, 6)
    for noise in (None, BrownianNoise(range(4), (3,), torch.float64)):
        solution = run("step_doubling(solver=ddpm)", nodes, noise, problem=Constant(VP))
        assert float(solution.error.max()) < 1e-13
    assert float(run("step_doubling(solver=ddpm)", nodes).error.min()) > 1e-4  # on other data it does not


def test_the_composed_noise_is_the_brownian_paths():
    from solvers.wrappers.step_doubling import _Recorded

    noise = BrownianNoise(range(4), (3,), torch.float64)
    a, b, c = (Node(0.0, 1.0, math.exp(-lam)) for lam in (-0.5, 0.1, 0.9))
    record = _Recorded(lambda t, s: noise(t, s))
    record(a, b)
    record(b, c)
    assert torch.allclose(record.composed(a, c), noise(a, c), rtol=0, atol=1e-9)
    assert clock(a.lam, c.lam) == pytest.approx(clock(a.lam, b.lam) + clock(b.lam, c.lam), rel=1e-14)
    with pytest.raises(InputError, match="use BrownianNoise"):
        record.composed(a, Node(0.0, 1.0, math.exp(-0.5)))


# pc


def test_pc_counts_what_its_corrector_takes():
    assert make("pc(corrector=mala, corrector_steps=2)").evaluations == 1 + 2 * 2
    assert make("pc(corrector=annealed_langevin)").linear
    assert not make("pc").linear
    # of order 1 towards the corrector's law, whatever the predictor: measured in test_conformance.py
    assert make("pc(predictor=dpmpp_2m)").order == 1
    assert make("churn(solver=pc(predictor=heun))").order == 1


@pytest.mark.parametrize("inner", ["pc({})", "picard(solver=pc({}))", "final(solver=pc({}))"])
def test_the_limit_of_a_wrapper_is_that_of_its_corrector(inner):
    node = VP(VP.t_max)
    langevin, annealed = (make(inner.format(f"corrector={name}")) for name in ("langevin", "annealed_langevin"))
    assert langevin.limit_variance(0.3, node) == pytest.approx(0.3 * (1 + 0.16**2), rel=1e-15)
    assert annealed.limit_variance(0.3, node) == pytest.approx(0.3 / (1 - 0.16**2 * node.sigma**2 / 0.3), rel=1e-15)
    assert make("churn").limit_variance(0.3, node) == 0.3


# what plans from the whole grid


@pytest.mark.parametrize(
    "inner",
    [
        "picard",
        "restart",
        "restart(intervals=[[3, 2, 0.5, 0.9]])",
        "final",
        "dpm_fast",
        "dpm_solver_3(mode=grid)",
        "dpmpp_2s(mode=grid)",
        "pc(predictor=picard)",
    ],
)
def test_step_doubling_refuses_what_plans_from_the_whole_grid(inner):
    with pytest.raises(InputError, match="plans its steps from the whole grid; take a solver that steps from t to s"):
        make(f"step_doubling(solver={inner})")


def test_churn_of_churn_raises_the_level_twice():
    nodes = grid("logsnr", EDM, 8)
    problem = _Asked(Mixture(EDM))
    run("churn(solver=churn(solver=euler, s_churn=0.8), s_churn=1.6)", nodes, problem=problem)
    assert problem.nodes[0].ratio == pytest.approx(nodes[0].ratio, rel=1e-12)  # the path goes no higher
    for node, asked in list(zip(nodes, problem.nodes, strict=False))[1:]:
        assert asked.ratio == pytest.approx(1.2 * 1.1 * node.ratio, rel=1e-12)


@pytest.mark.parametrize(
    ("spacing", "interval", "reached"),
    [
        ("logsnr", "[3, 2, 1e-6, 0.3]", False),  # below the last node
        ("karras", "[3, 2, 1e-6, 0.3]", False),  # below the last node of sigma > 0
        ("logsnr", "[3, 2, 500, 600]", False),  # above the first
        ("logsnr", "[3, 2, 0.06, 0.3]", True),
    ],
)
def test_a_restart_that_no_node_triggers_is_refused(spacing, interval, reached):
    nodes, solver = grid(spacing, EDM, 18), make(f"restart(intervals=[{interval}])")
    if reached:
        assert solver.init(Mixture(EDM), torch.zeros(1, 1), nodes)[0] == 0
        return
    with pytest.raises(InputError, match=r"restart: the interval \[3, 2, .*\] is never reached: .* go from .* to "):
        solver.init(Mixture(EDM), torch.zeros(1, 1), nodes)


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_coarse_grid_may_pass_over_a_restart(spacing, steps):
    assert bool(run("restart", grid(spacing, VP, steps)).x.isfinite().all())
