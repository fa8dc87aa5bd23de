"""Other libraries' integrators: every method by name, its order, its tolerance, and each sample on its own."""

import math
import warnings

import pytest
import torch
from torchdiffeq._impl.odeint import SOLVERS

import scoresde
import solvers
from solvers import InputError, SeededNoise, grid, solve
from solvers.adaptive.other_libraries import SCIPY, TORCHDIFFEQ
from solvers.conformance.convergence import measured_order
from solvers.conformance.problems import EDM, RECTIFIED_FLOW, VP, Mixture, exact_solution

ADAPTIVE = [f"torchdiffeq(method={name})" for name, method in TORCHDIFFEQ.items() if method.adaptive]
FIXED = [f"torchdiffeq(method={name})" for name, method in TORCHDIFFEQ.items() if not method.adaptive]
# many times as expensive as the others
COSTLY = ("torchdiffeq(method=fixed_adams)", "torchdiffeq(method=implicit_adams)")
IMPLICIT = ("Radau", "BDF", "LSODA")


def start(nodes, count=3):
    return math.hypot(nodes[0].alpha, nodes[0].sigma) * torch.linspace(-2, 1.7, count, dtype=torch.float64).view(-1, 1)


def test_every_method_of_torchdiffeq_has_a_row():
    assert set(TORCHDIFFEQ) == set(SOLVERS)
    # the orders that the library itself keeps; its Adams methods start, and here stay, with a fourth-order step
    for name, cls in SOLVERS.items():
        if name != "scipy_solver":
            assert TORCHDIFFEQ[name].order == cls.order


@pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=pytest.mark.slow if spec in COSTLY else ()) for spec in FIXED]
)
def test_fixed_step_methods_take_an_interval_as_one_step(spec):
    solver, nodes = solvers.make(spec), grid("uniform", VP, 5)
    assert not solver.adaptive
    assert solvers.evaluations(solver, VP, nodes) == 5 * solver.evaluations
    order, _ = measured_order(solver, VP)
    assert order == pytest.approx(solver.order, abs=0.2)
    finer = solve(solvers.make(spec.replace(")", ", step_size=0.01)")), Mixture(VP), start(nodes), nodes)
    whole = solve(solver, Mixture(VP), start(nodes), nodes)
    exact = exact_solution(Mixture(VP), start(nodes), nodes[0], nodes[-1])
    assert (finer.x - exact).abs().max() < 0.2 * (whole.x - exact).abs().max()
    assert finer.nfe[0] > whole.nfe[0]


def test_the_midpoint_rule_is_its_formula():
    nodes = (VP(0.9), VP(0.6))
    problem, x = Mixture(VP), start(nodes)
    h, middle = -0.3, VP(0.75)
    half = x + h / 2 * problem.predict(x, nodes[0]).velocity(nodes[0])
    wanted = x + h * problem.predict(half, middle).velocity(middle)
    found = solve(solvers.make("torchdiffeq(method=midpoint)"), problem, x, nodes).x
    assert torch.allclose(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("spec", [*ADAPTIVE, *(f"scipy(method={name})" for name in SCIPY), "dopri5"])
@pytest.mark.parametrize("path", [EDM, RECTIFIED_FLOW], ids=str)
def test_adaptive_methods_hold_their_tolerance_in_both_directions(spec, path):
    tolerance = 1e-4
    head = spec[:-1] + ", " if spec.endswith(")") else spec + "("
    solver, nodes, problem = (
        solvers.make(f"{head}rtol={tolerance}, atol={tolerance})"),
        grid("uniform", path, 1),
        Mixture(path),
    )
    assert solver.adaptive
    x = start(nodes, 2)
    found = solve(solver, problem, x, nodes)
    # errors of the steps add up, and those of backward differences are the estimates' own size
    assert (found.x - exact_solution(problem, x, nodes[0], nodes[-1])).abs().max() < 200 * tolerance
    back = solve(solver, problem, found.x, nodes[::-1])
    assert (back.x - x).abs().max() < 2000 * tolerance  # on the way to noise an error grows with x: by 8 on EDM
    assert (found.nfe > 5).all()


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("scipy(method=RK23)", marks=pytest.mark.slow),  # of the default, see test_conformance
        pytest.param("torchdiffeq(method=bosh3)", marks=pytest.mark.slow),
        pytest.param("torchdiffeq(method=adaptive_heun)", marks=pytest.mark.slow),
    ],
)
def test_the_order_of_one_step_per_interval(spec):
    solver = solvers.make(spec)
    order, _ = measured_order(solver, RECTIFIED_FLOW)
    assert order > solver.order - 0.2


@pytest.mark.parametrize("spec", [*ADAPTIVE, *FIXED, "scipy(method=DOP853)", "scipy(method=LSODA)"])
def test_a_sample_is_the_same_alone_and_in_a_batch(spec):
    solver, nodes = solvers.make(spec), grid("logsnr", VP, 2)
    noise = SeededNoise(range(5), (3,), torch.float64)
    x = noise.initial()
    whole = solve(solver, Mixture(VP), x, nodes)
    for i in (0, 4):
        alone = solve(solver, Mixture(VP), x[i : i + 1], nodes)
        assert torch.equal(alone.x[0], whole.x[i])
        assert alone.nfe[0] == whole.nfe[i]


def test_dopri5_is_torchdiffeqs_default():
    nodes = grid("uniform", VP, 1)
    runs = [solve(solvers.make(spec), Mixture(VP), start(nodes), nodes) for spec in ("dopri5", "torchdiffeq")]
    assert torch.equal(runs[0].x, runs[1].x)
    assert torch.equal(runs[0].nfe, runs[1].nfe)
    assert solvers.info("dopri5").equals == ("torchdiffeq(method=dopri5)",)


def test_facts_follow_the_method():
    facts = {
        spec: solvers.make(spec)
        for spec in ("scipy(method=RK23)", "torchdiffeq(method=rk4)", "torchdiffeq(method=dopri8)")
    }
    assert [(s.order, s.evaluations, s.adaptive) for s in facts.values()] == [
        (3, 3, True),
        (4, 4, False),
        (8, 13, True),
    ]
    assert all(str(solver) == spec for spec, solver in facts.items())


@pytest.mark.parametrize("spec", ["scipy(method=RK45)", "torchdiffeq(method=rk4)", "torchdiffeq(method=bosh3)"])
def test_a_float32_network_is_asked_in_float32(spec):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, label):
            assert x.dtype == label.dtype == torch.float32
            return torch.tanh(self.w * x)

    denoiser = scoresde.Denoiser(Network(), scoresde.VP(), predicts="x0")
    steps = 20 if "rk4)" in spec else None
    found = scoresde.sample(denoiser, (2,), range(2), solver=spec, grid="uniform" if steps else None, steps=steps)
    assert found.x.dtype == torch.float32
    assert torch.isfinite(found.x).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scipy(method=RK54)", "no method of scipy 'RK54'; did you mean RK45"),
        ("torchdiffeq(method=dopri6)", "no method of torchdiffeq 'dopri6'; did you mean dopri"),
        ("torchdiffeq(method=rk4, first_step=0.1)", "first_step is an option of adaptive methods, not of rk4"),
        (
            "torchdiffeq(method=scipy_solver, first_step=0.1)",
            "first_step is an option of adaptive methods, not of scipy",
        ),
        ("torchdiffeq(step_size=0.1)", "step_size is an option of fixed-step methods, not of dopri5"),
        ("torchdiffeq(method=euler, step_size=0)", "torchdiffeq: step_size must be positive, got 0"),
        ("torchdiffeq(method=rk4, max_step=0.1)", "max_step is an option of adaptive methods, not of rk4"),
        ("torchdiffeq(max_num_steps=0)", "torchdiffeq: max_num_steps must be a positive integer, got 0"),
        ("scipy(rtol=0)", "scipy: rtol must be positive, got 0"),
        ("dopri5(atol=-1)", "dopri5: atol must be positive, got -1"),
    ],
)
def test_bad_options_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        solvers.make(spec)


def test_a_solve_that_fails_is_told():
    nodes = grid("uniform", VP, 1)
    with pytest.raises(
        InputError, match=r"^torchdiffeq\(.*max_num_steps=2\): sample 0: stopped at t=.*max_num_steps exceeded"
    ):
        solve(solvers.make("torchdiffeq(max_num_steps=2)"), Mixture(VP), start(nodes), nodes)

    class Lost(Mixture):
        def predict(self, x, node):
            return solvers.Prediction(x * math.nan, x * math.nan)

    for spec in ("scipy", "scipy(method=LSODA)", "dopri5", "torchdiffeq(method=bosh3)"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(InputError, match="not finite"):
                solve(solvers.make(spec), Lost(VP), start(nodes), nodes)
