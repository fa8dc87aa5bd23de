"""Every registered solver passes the conformance suite, and the suite can fail.

The broken solvers below are each one mistake away from a right one; the check that names the mistake must be the one
that fails.
"""

import math
from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch

import scoresde
import solvers
from solvers import Solver, Step
from solvers.conformance.checks import CHECKS, check, check_mean, check_order, check_round_trip
from solvers.conformance.convergence import measured_order, terminal_variance
from solvers.conformance.problems import PATHS, VE, VP, GaussianData, Mixture, exact_solution
from solvers.multistep.dpm_solver import DPMpp2M
from solvers.one_step.ancestral import DDIM
from solvers.one_step.runge_kutta import Euler, Heun, Tableau

VARIANTS = [
    "adams(order=3, start=lower)",  # these three come late to their order
    "adams(order=5)",
    "uni_pc(order=4)",
    "adams(quantity=velocity, coordinate=flow, start=lower, order=2)",
    "adams(quantity=v, coordinate=angle)",
    "afs(solver=heun)",
    "afs(solver=ddpm)",
    "ddim(eta=1)",
    "ddim(eta=0.5)",
    "ddpm(variance=beta)",
    "ddpm(variance=interpolated, interpolation=0.5)",
    "dpmpp_2m(variant=heun)",
    "dpmpp_2m(lower_order_final=True)",
    "dpmpp_2m_sde(eta=0.5)",
    "dpmpp_2s(mode=grid, eta=1)",
    "dpmpp_2s(variant=taylor)",
    "dpmpp_2s_ancestral(eta=0.5)",
    "dpmpp_3m(start=runge_kutta)",
    "dpmpp_3m(variant=released, start=lower)",
    "dpmpp_3m_sde(variant=flipped)",
    "dpmpp_3s(mode=grid)",
    "dpmpp_sde(eta=0.5)",
    "dpmpp_sde(noise=independent)",
    "dpm_solver_2(mode=grid)",
    "dpm_solver_2m(eta=1)",
    "dpm_solver_3(mode=grid)",
    "er_sde(noise_scale=ode)",
    "euler_maruyama(eta=0)",
    "euler_maruyama(eta=0.5)",
    "heun(quantity=velocity)",
    "lms(start=runge_kutta)",
    "pc(corrector=annealed_langevin)",
    "pc(corrector=noise_renewal)",
    "pc(predictor=dpmpp_2m)",
    "rho_rk(tableau=kutta3)",
    "sa_solver(eta=0)",
    "sa_solver(pece=True)",
    "sa_solver(predictor_order=2, corrector_order=1)",
    "sa_solver(variant=few_steps)",
    "seeds_3(quantity=eps)",
    "uni_pc(lower_order_final=True)",
    "uni_pc(quantity=eps)",
]


# one of each kind, for an answer in seconds
QUICK = ["ddim", "heun", "dpmpp_2s", "res_2s", "deis", "dpmpp_2m", "uni_pc", "rk23", "ddpm", "dpmpp_sde", "pc", "churn"]
LIBRARIES = ["dopri5", "torchdiffeq"]  # as scipy: one sample at a time; see also test_other_libraries
EVERY_CHECK = ("order", "alone and in a batch", "float32", "few steps to sigma > 0", "few steps to sigma = 0")


def cases():
    """Every solver and variant on every path. ``make test`` runs the registered ones on VP, of each kind one on VE, and
    of other libraries' integrators one; the rest is slow."""
    made = []
    for spec, path in product(solvers.names("gaussian") + VARIANTS, PATHS):
        quick = spec not in VARIANTS + LIBRARIES and (path is VP or (path is VE and spec in QUICK and spec != "rk23"))
        marks = [] if quick else [pytest.mark.slow]
        marks += [pytest.mark.quick] if spec in QUICK and path is VP else []
        marks += [pytest.mark.long] if solvers.make(spec).adaptive else []
        made.append(pytest.param(spec, path, marks=marks, id=f"{spec}-{path}"))
    return made


@pytest.mark.parametrize(("spec", "path"), cases())
def test_every_registered_solver_passes_every_check(spec, path):
    verdicts = check(solvers.make(spec), (path,))
    assert {verdict.name for verdict in verdicts} >= {"spec round trip", *(f"{name} on {path}" for name in EVERY_CHECK)}
    failed = [str(verdict) for verdict in verdicts if not verdict.passed]
    assert not failed, "\n".join(failed)


# what measures rates, on hundreds of steps: a rate is one of the formula, which VP shows too. What VE has of its own,
# no slope of alpha, and levels of sigma up to 10, shows in few steps
RATES = {check_order, check_mean, check_round_trip}


@pytest.mark.parametrize(
    "spec", [n for n in solvers.names("gaussian") if n not in QUICK and not solvers.make(n).adaptive]
)
def test_every_registered_solver_passes_the_checks_of_few_steps_on_ve(spec):
    solver = solvers.make(spec)
    verdicts = [verdict for verify in CHECKS if verify not in RATES for verdict in verify(solver, (VE,))]
    assert {verdict.name for verdict in verdicts} >= {f"{name} on ve" for name in EVERY_CHECK[1:]}
    assert [str(verdict) for verdict in verdicts if not verdict.passed] == []


class Declared(Solver):
    """What a registration would declare; class attributes, so not fields of the dataclass."""

    order, stochastic, linear, adaptive, evaluations = 1.0, False, True, False, 1


@dataclass(frozen=True)
class WrongWeight(Declared):
    def step(self, problem, x, t, s, carry, noise):
        eps = problem.predict(x, t).eps
        return Step(s.alpha * (x / t.alpha + 0.9 * (s.ratio - t.ratio) * eps))


@dataclass(frozen=True)
class LopsidedHeun(Heun):
    """The weights sum to one, so a constant prediction is solved; but they are not the trapezoid's."""

    order, stochastic, linear, adaptive, evaluations = 2.0, False, True, False, 2
    tableau = Tableau((0.0, 1.0), ((), (1.0,)), (0.7, 0.3))


@dataclass(frozen=True)
class Coupled(Declared):
    def step(self, problem, x, t, s, carry, noise):
        eps = problem.predict(x, t).eps
        eps = eps * (1 + 1e-4 * (t.ratio - s.ratio) * torch.tanh(x.mean()))
        return Step(s.alpha * (x / t.alpha + (s.ratio - t.ratio) * eps))


@dataclass(frozen=True)
class Miscounted(Declared):
    def step(self, problem, x, t, s, carry, noise):
        problem.predict(x, t)
        return Euler().step(problem, x, t, s, carry, noise)


@dataclass(frozen=True)
class OwnNoise(Declared):
    stochastic = True

    def step(self, problem, x, t, s, carry, noise):
        return DDIM(eta=1.0).step(problem, x, t, s, carry, lambda t, s: torch.randn_like(x))


@dataclass(frozen=True)
class NeighboursNoise(Declared):
    """Every row gets the draw of the row mirrored in the batch: right in law, wrong in ownership."""

    stochastic, linear = True, False

    def step(self, problem, x, t, s, carry, noise):
        return DDIM(eta=1.0).step(problem, x, t, s, carry, lambda t, s: noise(t, s).flip(0))


@dataclass(frozen=True)
class Remembering(Declared):
    """Takes every seventh step of its life a little shorter."""

    def step(self, problem, x, t, s, carry, noise):
        taken = getattr(self, "taken", 0)
        object.__setattr__(self, "taken", taken + 1)
        weight = 1 - 1e-3 * (taken % 7 == 0)
        eps = problem.predict(x, t).eps
        return Step(s.alpha * (x / t.alpha + weight * (s.ratio - t.ratio) * eps))


@dataclass(frozen=True)
class Keeping(Declared):
    """Multistep with its history on itself instead of in the carry: what peers' schedulers do."""

    order = 2.0

    def step(self, problem, x, t, s, carry, noise):
        moved, kept, _ = DPMpp2M().step(problem, x, t, s, getattr(self, "kept", None), noise)
        object.__setattr__(self, "kept", kept)
        return Step(moved)


@dataclass(frozen=True)
class Undeclared(DPMpp2M):
    """A multistep method that says that a step leaves nothing to the next."""

    restartable = True


@dataclass(frozen=True)
class Planning(Declared):
    """Euler's method, but for its last step where the grid ends at the data: planned, and not declared."""

    def init(self, problem, x, nodes):
        return 1 - 0.01 * (nodes[-1].sigma == 0)

    def step(self, problem, x, t, s, carry, noise):
        eps = problem.predict(x, t).eps
        return Step((s.alpha * carry) * (x / t.alpha + (s.ratio - t.ratio) * eps), carry)


@dataclass(frozen=True)
class SinglePrecision(Declared):
    def step(self, problem, x, t, s, carry, noise):
        h = torch.tensor(s.ratio, dtype=torch.float32) - torch.tensor(t.ratio, dtype=torch.float32)
        return Step(s.alpha * (x / t.alpha + float(h) * problem.predict(x, t).eps))


@dataclass(frozen=True)
class Cancelling(Declared):
    """Right in float64; in float32 it loses what the difference of two large numbers loses."""

    def step(self, problem, x, t, s, carry, noise):
        eps = problem.predict(x, t).eps
        large = 100 * eps + s.alpha * (x / t.alpha + (s.ratio - t.ratio) * eps)
        return Step(large - 100 * eps)


@dataclass(frozen=True)
class Upcasting(Declared):
    linear = False

    def step(self, problem, x, t, s, carry, noise):
        return Euler().step(problem, x.double(), t, s, carry, noise)


@dataclass(frozen=True)
class OneWay(Declared):
    def step(self, problem, x, t, s, carry, noise):
        eps = problem.predict(x, t).eps
        return Step(s.alpha * (x / t.alpha - abs(s.ratio - t.ratio) * eps))


@dataclass(frozen=True)
class NoLastStep(DPMpp2M):
    order, stochastic, linear, adaptive, evaluations = 2.0, False, True, False, 1

    def to_data(self, problem, x, t, s, carry, noise):
        return self.step(problem, x, t, s, carry, noise)


@dataclass(frozen=True)
class Doubling(Declared):
    """An option that changes on its way through the constructor has no spec that makes it again."""

    strength: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "strength", 2 * self.strength)

    def step(self, problem, x, t, s, carry, noise):
        return Euler().step(problem, x, t, s, carry, noise)


@dataclass(frozen=True)
class Raising(Declared):
    def step(self, problem, x, t, s, carry, noise):
        raise ZeroDivisionError("a step of no length")


def failed(solver):
    return {verdict.name for verdict in check(solver, (VP,)) if not verdict.passed}


# exactly these checks, no others: a check that fires on everything tells nothing
@pytest.mark.parametrize(
    ("solver", "names"),
    [
        (LopsidedHeun(), {"order on vp", "encode and decode on vp"}),
        (Miscounted(), {"evaluations"}),
        (NeighboursNoise(), {"alone and in a batch on vp"}),
        (SinglePrecision(), {"constant prediction on vp"}),
        (Upcasting(), {"float32 on vp"}),
        (OneWay(), {"encode and decode on vp"}),
        (NoLastStep(), {"few steps to sigma = 0 on vp"}),
        (Cancelling(), {"few steps to sigma > 0 on vp", "few steps to sigma = 0 on vp"}),
        (Doubling(strength=1.0), {"spec round trip"}),
        (Undeclared(), {"restartable"}),
        (Planning(), {"steps of any grid"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_mistake_fails_its_own_check_and_no_other(solver, names):
    assert failed(solver) == names


@pytest.mark.parametrize(
    ("solver", "names"),
    [
        (WrongWeight(), {"order on vp", "constant prediction on vp"}),
        (Coupled(), {"alone and in a batch on vp"}),
        (OwnNoise(), {"alone and in a batch on vp"}),
        (Remembering(), {"alone and in a batch on vp"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_mistake_with_several_symptoms_fails_at_least_these(solver, names):
    assert failed(solver) >= names


def test_a_declared_order_that_is_too_high_fails():
    class Proud(Euler):
        order, stochastic, linear, adaptive, evaluations = 2.0, False, True, False, 1

    (verdict,) = check_order(Proud(), (VP,))
    assert not verdict.passed
    assert "declared 2" in str(verdict)
    assert str(verdict).startswith("FAIL  order on vp: measured 0.9")


@pytest.mark.parametrize("solver", [Keeping(), Raising()], ids=lambda value: type(value).__name__)
def test_a_solver_that_raises_is_a_failed_check_and_not_a_traceback(solver):
    verdicts = check(solver, (VP,))
    assert not all(verdict.passed for verdict in verdicts)


def test_a_raised_error_is_told_in_the_verdict():
    details = [verdict.detail for verdict in check(Raising(), (VP,)) if not verdict.passed]
    assert any("a step of no length" in detail for detail in details)


# what the checks compare with, against closed forms of their own


@pytest.mark.parametrize("path", [VP, VE], ids=str)
def test_the_reference_solution_is_exact_on_gaussian_data(path):
    problem = Mixture(path, (0.0,), (1.0,), 0.09)
    start, end = path(path.t_max), path(path.t_min)
    x = torch.tensor([[-1.3], [0.2], [2.0]], dtype=torch.float64)
    variance = [node.alpha**2 * 0.09 + node.sigma**2 for node in (start, end)]
    exact = x * math.sqrt(variance[1] / variance[0])  # the ODE keeps the quantile of a Gaussian
    assert torch.allclose(exact_solution(problem, x, start, end), exact, rtol=1e-11, atol=0)


@pytest.mark.parametrize("path", [VP, VE], ids=str)
def test_the_checks_mixture_agrees_with_the_librarys(path):
    problem = Mixture(path)
    means = torch.tensor(problem.means, dtype=torch.float64).unsqueeze(1)
    target = scoresde.targets.GaussianMixture(means, problem.v, torch.tensor(problem.weights, dtype=torch.float64))
    x = torch.linspace(-4, 4, 33, dtype=torch.float64).unsqueeze(1)
    for t in (path.t_min, 0.5 * (path.t_min + path.t_max), path.t_max):
        mine, theirs = problem.predict(x, path(t)), target.predict(x, path(t))
        # rounding of exponents up to 1e3, which softmax passes on: 1e3 times 1e-16, and then over sigma = 0.05
        assert torch.allclose(mine.x0, theirs.x0, rtol=0, atol=1e-11)
        assert torch.allclose(mine.eps, theirs.eps, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_terminal_variance_is_the_recursion_of_variances(eta):
    problem = GaussianData(VP)
    nodes = solvers.grid("logsnr", VP, 25)
    variance = problem.variance(nodes[0])
    for t, s in pairwise(nodes):
        fresh = eta**2 * s.sigma**2 * (1 - (s.ratio / t.ratio) ** 2)
        total = t.alpha**2 * problem.v + t.sigma**2
        gain = s.alpha * t.alpha * problem.v / total + math.sqrt(s.sigma**2 - fresh) * t.sigma / total
        variance = gain**2 * variance + fresh
    assert terminal_variance(DDIM(eta=eta), problem, nodes) == pytest.approx(variance, rel=1e-12)


def test_a_method_that_comes_late_to_its_order_is_measured_on_finer_grids():
    solver = solvers.make("uni_pc(correct=False)")
    order, points = measured_order(solver, VP)
    slopes = [math.log2(before / after) for (_, before), (_, after) in pairwise(points)]
    assert slopes[2] < 1.8 < slopes[-1]  # at 336 steps, and where it was stopped
    assert order > 1.8
    assert [nfe for nfe, _ in points] == [42 * 2**k for k in range(len(points))]


@pytest.mark.parametrize(("spec", "order"), [("dpmpp_3m(variant=released, start=runge_kutta)", 3), ("euler", 1.5)])
def test_finer_grids_do_not_help_a_lower_order(spec, order, monkeypatch):
    solver = solvers.make(spec)
    monkeypatch.setattr(type(solver), "order", order)
    (verdict,) = check_order(solver, (VP,))
    assert not verdict.passed


def test_the_measured_order_is_a_slope_of_the_reported_points():
    order, points = measured_order(Heun(), VP)
    assert [nfe for nfe, _ in points] == [84, 168, 336, 672]
    # over the finer three, equally spaced in log, the least-squares slope is that of the two ends
    assert order == pytest.approx(math.log2(points[1][1] / points[3][1]) / 2, rel=1e-10)
