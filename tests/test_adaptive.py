"""Per-sample steps: each sample alone, tolerances that mean something, and a Brownian motion that rejections keep."""

import dataclasses
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import scoresde
import solvers
from solvers import InputError, SeededNoise, grid, solve
from solvers.adaptive.base import Progress, coarse, pid
from solvers.adaptive.embedded_pairs import BOGACKI_SHAMPINE, DORMAND_PRINCE, TSITOURAS
from solvers.conformance.problems import EDM, PATHS, RECTIFIED_FLOW, SUB_VP, VE, VP, Mixture, exact_solution

ODE = ["rk45", "rk23", "tsit5", "dpm_adaptive", "dpm_adaptive(order=2)", "adams_adaptive", "adams_adaptive(order=3)"]
ALL = [*ODE, "gotta_go_fast"]
LOOSE = "gotta_go_fast(rtol=0.05, atol=0.05)"  # for what its tolerance has no part in: a fraction of the steps


def start(nodes, count=9):
    return math.hypot(nodes[0].alpha, nodes[0].sigma) * torch.linspace(-2, 2, count, dtype=torch.float64).view(-1, 1)


@dataclass(frozen=True)
class Uneven:
    """Data of another spread for each sample: N(0, v_i), which needs other steps; ``asked`` counts rows per call."""

    schedule: object
    v: Tensor
    asked: list = field(default_factory=list)

    def node(self, t):
        return self.schedule(t)

    def node_of_lam(self, lam):
        return self.schedule(self.schedule.t_of_lam(lam))

    def predict(self, x, node):
        self.asked.append(len(x))
        node, v = node.like(x), self.v.view(-1, 1)
        gap = x / (node.alpha**2 * v + node.sigma**2)
        return solvers.Prediction(node.alpha * v * gap, node.sigma * gap)

    def select(self, rows):
        return Uneven(self.schedule, self.v[rows], self.asked)


# samples are their own


@pytest.mark.parametrize("spec", [*ODE, LOOSE])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_sample_has_the_same_steps_and_bits_alone_and_among_64(spec, steps):
    solver, nodes = solvers.make(spec), grid("logsnr", VP, steps)
    v = torch.logspace(-4, 1, 64, dtype=torch.float64)

    def run(rows):
        noise = SeededNoise(rows, (3,), torch.float64)
        x = math.hypot(nodes[0].alpha, nodes[0].sigma) * noise.initial()
        return solve(solver, Uneven(VP, v[list(rows)]), x, nodes, noise)

    whole = run(range(64))
    assert len(set(whole.nfe.tolist())) >= 3
    for i in (0, 31, 63):
        alone = run([i])
        for name in ("x", "nfe", "accepted", "rejected", "error"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[i]), name


@pytest.mark.parametrize("spec", ALL)
def test_evaluations_are_those_of_accepted_and_rejected_steps(spec):
    solver, nodes = solvers.make(spec), grid("uniform", VE, 1)
    problem = Uneven(VE, torch.tensor([1e-4, 1.0, 30.0], dtype=torch.float64))
    x = start(nodes, 3)
    found = solve(solver, problem, x, nodes, SeededNoise(range(3), (1,), torch.float64))
    assert (found.accepted >= 1).all()
    assert int(found.accepted.max()) > 5
    assert found.nfe.sum() == sum(problem.asked)
    if solver.reuses:  # the first stage is the last one of the step before
        wanted = 1 + solver.evaluations * (found.accepted + found.rejected)
    else:  # the first stage outlives a rejection
        wanted = solver.evaluations * found.accepted + (solver.evaluations - 1) * found.rejected
    assert torch.equal(found.nfe, wanted)
    assert found.calls <= int((found.accepted + found.rejected).max()) * solver.evaluations + 1 + int(
        found.rejected.sum() * (not solver.reuses)
    )


def test_steps_are_rejected_where_they_were_too_long():
    nodes = grid("uniform", VE, 1)
    for spec in ("rk45(first_step=inf)", "dpm_adaptive(first_step=inf)", "gotta_go_fast(first_step=inf)"):
        noise = SeededNoise(range(9), (1,), torch.float64)
        assert (solve(solvers.make(spec), Mixture(VE), start(nodes), nodes, noise).rejected >= 1).all()


def test_an_easy_sample_does_not_pay_for_a_stiff_neighbour():
    solver, nodes = solvers.make("rk45"), grid("uniform", VP, 1)
    x = start(nodes, 2)
    easy, stiff = 1e-14, 1e-2  # of a point mass the solution is a line
    alone = solve(solver, Uneven(VP, torch.tensor([easy], dtype=torch.float64)), x[:1], nodes)
    both = Uneven(VP, torch.tensor([easy, stiff], dtype=torch.float64))
    together = solve(solver, both, x, nodes)
    assert together.nfe[0] == alone.nfe[0] < together.nfe[1] / 2
    assert torch.equal(together.x[0], alone.x[0])
    # while both are on their way a call holds both; afterwards the stiff one alone
    assert both.asked == [2] * int(alone.nfe[0]) + [1] * int(together.nfe[1] - alone.nfe[0])


def test_conditions_follow_their_rows_and_a_float32_network_is_asked_in_float32():
    seen = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, label, shift):
            seen.append((x.dtype, label.dtype, len(x), len(shift), len(label)))
            return torch.tanh(self.w * x + label.view(-1, 1)) + shift.view(-1, 1)

    denoiser = scoresde.Denoiser(Network(), scoresde.VP(), predicts="x0")
    shift = torch.tensor([-3.0, 0.5, 40.0])
    for spec in (*ODE, LOOSE):
        whole = scoresde.sample(denoiser, (2,), range(3), solver=spec, condition={"shift": shift})
        assert whole.x.dtype == torch.float32
        assert whole.accepted.shape == whole.rejected.shape == whole.error.shape == (3,)
        assert whole.calls < int(whole.nfe_per_sample.sum())
        for i in range(3):
            alone = scoresde.sample(denoiser, (2,), [i], solver=spec, condition={"shift": shift[i : i + 1]})
            assert torch.equal(whole.x[i], alone.x[0])
            assert (whole.accepted[i], whole.rejected[i]) == (alone.accepted[0], alone.rejected[0])
    assert {entry[:2] for entry in seen} == {(torch.float32, torch.float32)}
    assert all(len(set(entry[2:])) == 1 for entry in seen)


# tableaux


@pytest.mark.parametrize(
    ("tableau", "order"), [(DORMAND_PRINCE, 5), (BOGACKI_SHAMPINE, 3), (TSITOURAS, 5)], ids=["rk45", "rk23", "tsit5"]
)
def test_both_results_of_a_pair_meet_their_order_conditions(tableau, order):
    """b and b_hat are quadratures of their degree, stages are consistent, and b . A c = 1/6, b . A c^2 = 1/12."""
    c = torch.tensor(tableau.c, dtype=torch.float64)
    size = len(c)
    a = torch.zeros(size, size, dtype=torch.float64)
    for i, row in enumerate(tableau.a, start=1):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    b = a[-1]
    lower = b - torch.tensor(tableau.e, dtype=torch.float64)
    assert torch.allclose(a.sum(1), c, rtol=0, atol=1e-13)
    for weights, degree in ((b, order), (lower, order - 1)):
        for k in range(degree):
            assert float(weights @ c**k) == pytest.approx(1 / (k + 1), abs=1e-12)
        if degree >= 3:
            assert float(weights @ a @ c) == pytest.approx(1 / 6, abs=1e-12)
        if degree >= 4:
            assert float(weights @ a @ c**2) == pytest.approx(1 / 12, abs=1e-12)
            assert float((weights * c) @ a @ c) == pytest.approx(1 / 8, abs=1e-12)
            assert float(weights @ a @ a @ c) == pytest.approx(1 / 24, abs=1e-12)
        # one degree more would make the error estimate vanish
    assert abs(float(lower @ c ** (order - 1)) - 1 / order) > 1e-4


def test_dpm_solver_pairs_are_the_papers_steps():
    """Lu et al. 2022, algorithms 1 and 2, on x itself; the error is the difference of two of them."""
    t, s = VP(1.0), VP(0.7)
    problem, x = Mixture(VP), start((t,), 5)
    h = s.lam - t.lam

    def eps(x, node):
        return problem.predict(x, node).eps

    def move(x, node, share, extra=0.0):  # alpha_m / alpha_t x - sigma_m (e^(share h) - 1) eps_t + extra
        return (node.alpha / t.alpha) * x - node.sigma * math.expm1(share * h) * eps(x, t) + extra

    def second(r):
        middle = VP(VP.t_of_lam(t.lam + r * h))
        d = eps(move(x, middle, r), middle) - eps(x, t)
        return move(x, s, 1, -(s.sigma / (2 * r)) * math.expm1(h) * d)

    m1, m2 = (VP(VP.t_of_lam(t.lam + r * h)) for r in (1 / 3, 2 / 3))
    d1 = eps(move(x, m1, 1 / 3), m1) - eps(x, t)
    u2 = move(x, m2, 2 / 3, -m2.sigma * 2 * (math.expm1(2 / 3 * h) / (2 / 3 * h) - 1) * d1)
    third = move(x, s, 1, -1.5 * s.sigma * (math.expm1(h) / h - 1) * (eps(u2, m2) - eps(x, t)))
    for order, high, low in ((2, second(0.5), move(x, s, 1)), (3, third, second(1 / 3))):
        solver = solvers.make(f"dpm_adaptive(order={order}, rtol=1e9, atol=1e9, first_step=inf)")
        found = solve(solver, problem, x, (t, s))
        assert torch.allclose(found.x, high, rtol=1e-13, atol=1e-13)
        assert torch.allclose(found.error, (high - low).abs().flatten(), rtol=1e-10, atol=1e-13)


def test_controllers():
    assert pid((0.5,), 3, 0.0, 1.0, 0.0) == pytest.approx(0.5 ** (-1 / 3))
    wanted = (0.5**-0.9 * 0.25**0.6 * 0.1**-0.2) ** (1 / 3)  # p = 0.2, i = 0.5, d = 0.2
    assert pid((0.5, 0.25, 0.1), 3, 0.2, 0.5, 0.2) == pytest.approx(wanted)
    dpm, here = solvers.make("dpm_adaptive"), Progress(VP(0.5))
    assert dpm.control((1.0,), here) == (True, 1.0)
    accept, factor = dpm.control((1.99,), here)  # 1 + atan(w - 1) = 0.81 at w = 1 + tan(-0.19), E = w^-3 = 1.898
    assert not accept
    assert dpm.control((1.89,), here)[0]
    assert factor == pytest.approx(1 + math.atan(1.99 ** (-1 / 3) - 1))
    rk45 = solvers.make("rk45")
    assert rk45.control((32.0,), here) == (False, pytest.approx(0.45))
    assert rk45.control((1e9,), here) == (False, 0.2)
    assert rk45.control((1e-10,), here) == (True, pytest.approx(min(10.0, 0.9 * 1e10**0.08)))
    assert rk45.control((1e-10,), Progress(VP(0.5), retried=True)) == (True, 1.0)
    go = solvers.make("gotta_go_fast")
    assert go.control((2.0,), here) == (False, pytest.approx(0.9 * 2**-0.9))
    assert [coarse(h) for h in (1.0, 1.06, 0.99, 3e-7)] == [1.0, 1.0, 31 / 32, math.ldexp(20 / 32, -21)]


# tolerances


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("spec", ["rk45", "tsit5", "rk23", "adams_adaptive"])
def test_the_error_follows_the_tolerance(path, spec):
    """Over three decades a local tolerance bounds the error, and the error falls about in proportion.

    The flow magnifies an error by 5 at most, near the modes' borders, and there are tens of steps. A step of the higher
    result errs by h^p, as does the estimate, so the exponent is 1, up to the scatter of few and coarse steps.
    """
    nodes, problem = grid("uniform", path, 1), Mixture(path)
    x = start(nodes)
    exact = exact_solution(problem, x, nodes[0], nodes[-1])
    errors = []
    for tolerance in (1e-4, 1e-5, 1e-6, 1e-7):
        found = solve(solvers.make(f"{spec}(rtol={tolerance}, atol={tolerance})"), problem, x, nodes)
        errors.append(float((found.x - exact).abs().max()))
        assert errors[-1] < 100 * tolerance
    slope = math.log10(errors[0] / errors[-1]) / 3
    assert 0.7 < slope < 1.4


@pytest.mark.parametrize("spec", ["rk45(rtol=1e-9, atol=1e-9)", "tsit5(rtol=1e-9, atol=1e-9)"])
@pytest.mark.parametrize("path", [VP, EDM], ids=str)
def test_scipys_answer_is_the_same(spec, path):
    nodes, problem = grid("uniform", path, 1), Mixture(path)
    x = start(nodes, 3)
    mine = solve(solvers.make(spec), problem, x, nodes)
    theirs = solve(solvers.make("scipy(method=RK45, rtol=1e-9, atol=1e-9)"), problem, x, nodes)
    assert torch.allclose(mine.x, theirs.x, rtol=0, atol=5e-7)
    assert mine.nfe.max() < theirs.nfe.max()  # r suits the equation better than t


@pytest.mark.parametrize("spec", ODE)
@pytest.mark.parametrize("path", [SUB_VP, RECTIFIED_FLOW], ids=str)
def test_codes_return(spec, path):
    solver = dataclasses.replace(solvers.make(spec), rtol=1e-5, atol=1e-5)
    nodes = grid("uniform", path, 1)
    x = nodes[-1].alpha * torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).view(9, 1)
    code = solve(solver, Mixture(path), x, nodes[::-1]).x
    back = solve(solver, Mixture(path), code, nodes).x
    assert (code - exact_solution(Mixture(path), x, nodes[-1], nodes[0])).abs().max() < 1e-3
    assert (back - x).abs().max() < 1e-3


@pytest.mark.parametrize("spec", ODE)
def test_a_grid_within_the_range_changes_little(spec):
    """The controller goes on from one interval to the next: many intervals cost what one step each costs at least."""
    problem = Mixture(VP)
    one, many = (
        solve(solvers.make(spec), problem, start(nodes), nodes) for nodes in (grid("logsnr", VP, n) for n in (1, 4))
    )
    assert int(many.rejected.max()) <= int(one.rejected.max()) + 4
    assert int(many.nfe.max()) <= int(one.nfe.max()) + 4 * 2 * solvers.make(spec).evaluations
    # and a hook that moves the state is heeded
    nodes = grid("logsnr", VP, 4)
    moved = solve(solvers.make(spec), problem, start(nodes), nodes, hooks=[lambda x, node: torch.zeros_like(x)])
    assert torch.equal(moved.x, torch.zeros(9, 1, dtype=torch.float64))


def test_the_error_that_is_reported_is_of_the_size_of_the_error():
    nodes, problem = grid("uniform", VP, 1), Mixture(VP)
    x = start(nodes)
    found = solve(solvers.make("rk45"), problem, x, nodes)
    true = (found.x - exact_solution(problem, x, nodes[0], nodes[-1])).abs().flatten()
    assert (found.error > 0.1 * true).all()  # local errors summed, of the lower result: above the global error
    assert (found.error < 1e-2).all()


# errors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rk45(rtol=0)", "rk45: rtol must be positive, got 0"),
        ("rk23(atol=-1)", "rk23: atol must be positive, got -1"),
        ("tsit5(first_step=0)", "tsit5: first_step must be positive, got 0"),
        ("rk45(max_steps=0)", "rk45: max_steps must be a positive integer, got 0"),
        ("dpm_adaptive(order=4)", "no value for option 'order' of dpm_adaptive '4'; accepted: 2, 3"),
        ("dpm_adaptive(icoeff=0)", "dpm_adaptive: pcoeff . icoeff . dcoeff must be positive"),
        ("dpm_adaptive(accept_safety=1.5)", r"dpm_adaptive: accept_safety must lie in \(0, 1\], got 1.5"),
        ("adams_adaptive(order=8)", "adams_adaptive: order must be one of 2 to 7, got 8"),
        ("adams_adaptive(order=1)", "adams_adaptive: order must be one of 2 to 7, got 1"),
        ("gotta_go_fast(safety=0)", r"gotta_go_fast: safety must lie in \(0, 1\], got 0"),
        ("gotta_go_fast(exponent=2)", r"gotta_go_fast: exponent must lie in \(0, 1\], got 2"),
    ],
)
def test_bad_options_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        solvers.make(spec)


@dataclass(frozen=True)
class Broken:
    """Predictions that are not finite, of one sample or below one noise level."""

    schedule: object = VP
    below: float = math.inf

    def node(self, t):
        return self.schedule(t)

    def node_of_lam(self, lam):
        return self.schedule(self.schedule.t_of_lam(lam))

    def predict(self, x, node):
        lost = torch.where(node.like(x).ratio < self.below, torch.where(x > 0, math.nan, 1.0), 1.0)
        return solvers.Prediction(0 * x, lost * x)


@pytest.mark.parametrize("spec", ALL)
def test_what_goes_wrong_names_the_solver_the_sample_and_lam(spec):
    nodes = grid("uniform", VP, 1)
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    noise = SeededNoise(range(2), (1,), torch.float64)
    name = spec.partition("(")[0]
    reason = "the model's predictions are not finite at lam=-2.30259, sigma / alpha = 10, after 0 inner steps"
    found = solve(solvers.make(spec), Broken(), x, nodes, noise, strict=False)
    assert found.failed[1] == reason
    assert found.x[1].isnan()
    noise = SeededNoise(range(2), (1,), torch.float64)
    with pytest.raises(InputError, match=rf"^{name}.*: sample {min(found.failed)}: the "):
        solve(solvers.make(spec), Broken(), x, nodes, noise)
    noise = SeededNoise(range(2), (1,), torch.float64)
    solver = dataclasses.replace(solvers.make(spec), max_steps=2)
    with pytest.raises(InputError, match=rf"^{name}.*sample 0: max_steps=2 inner steps end at lam="):
        solve(solver, Mixture(VP), x, nodes, noise)


@pytest.mark.parametrize("spec", ODE)
def test_a_sample_that_fails_leaves_the_others_as_they_are(spec):
    """From its start, from a wall on its way, and in later intervals of the grid."""
    x = torch.tensor([[-1.0], [1.0], [-0.5], [2.0]], dtype=torch.float64)
    for below in (math.inf, 1.0):
        nodes, problem, solver = grid("uniform", VP, 3), Broken(below=below), solvers.make(spec)
        found = solve(solver, problem, x, nodes, strict=False)
        alone = solve(solver, problem, x[::2], nodes)
        assert torch.equal(found.x[::2], alone.x)
        assert torch.equal(found.nfe[::2], alone.nfe)
        assert found.x[1::2].isnan().all()
        assert sorted(found.failed) == [1, 3]
    lost = solve(solvers.make(spec), Broken(), x[1::2], grid("uniform", VP, 1), strict=False)
    assert lost.x.isnan().all()
    assert sorted(lost.failed) == [0, 1]


def test_a_wall_of_predictions_that_are_not_finite_is_an_underflow():
    nodes = grid("uniform", VP, 1)
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    message = r"^rk45: sample 1: the step underflows at lam=.*the model's predictions beyond it are not finite"
    with pytest.raises(InputError, match=message):
        solve(solvers.make("rk45"), Broken(below=1.0), x, nodes)
