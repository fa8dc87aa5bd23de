"""Scores of the posterior methods that are no denoisers, on mixtures whose posterior is known; and bad input."""

import pytest
import torch
from test_posterior_loops import DTYPE, PROBLEM, TANH, VP, draw, grid

import scoresde
from scoresde.benchmark.posterior_problems import mixture_problem
from scoresde.operators.base import Operator
from scoresde.operators.linear import Inpaint, Matrix
from scoresde.operators.nonlinear import Quantise
from scoresde.posterior.base import posteriors
from solvers import InputError, generator

# ---- scores on mixtures. Bands are around numbers that were measured with 250 draws of other seeds; a quick row has 50
# draws of each of the 8 observations, whose small number adds about 0.03 to SW and TV.

FULL = mixture_problem(4, 0.1)
# method, solver, steps, top and end of the grid: SW, TV, chi2
ROWS = [
    ("replace", "ddpm", 100, 100.0, 0.0106, (0.291, 0.634, 5.65)),
    ("ddrm(renoise=fixed)", "ddim", 100, 100.0, 0.0106, (0.136, 0.353, 0.87)),
    ("ddrm(renoise=fixed, eta=1)", "ddim", 100, 100.0, 0.0106, (0.112, 0.253, 1.18)),
    ("sdedit(level=0.3)", "dpmpp_2m_sde", 50, 100.0, 0.0106, (0.622, None, None)),
]
LONG = [
    ("replace", "dpmpp_2m", 100, 100.0, 0.0106, (0.420, 0.759, 9.9)),
    ("sdedit(level=3)", "dpmpp_2m_sde", 50, 100.0, 0.0106, (1.04, None, None)),
    ("repaint(jump=1)", "ddpm", 100, 100.0, 0.0106, (0.120, 0.161, 2.17)),
    ("daps", "ddim", 100, 10.0, 0.02, (0.121, 0.300, 1.58)),
    ("split_gibbs", "ddpm", 100, 100.0, 0.0106, (0.133, 0.347, 1.02)),
    ("split_gibbs(sweeps=240)", "ddpm", 100, 100.0, 0.0106, (0.098, 0.256, 0.97)),
]


def row(problem, method, solver, steps, high, low, draws):
    y = problem.y.repeat_interleave(draws, 0)
    found = draw(method, problem.prior, problem.operator, y, grid(steps, high, low), solver).x
    return problem.scores(found.view(len(problem.y), draws, 8), problem.draws(500, generator(1)))


def check_row(found, wanted, sw, tv, chi2):
    assert found["failed"] == 0
    for name, value, band in zip(("sw", "tv", "chi2"), wanted, (sw, tv, chi2), strict=True):
        assert value is None or found[name] == pytest.approx(value, **band), (name, found)


@pytest.mark.quick
@pytest.mark.parametrize(("method", "solver", "steps", "high", "low", "wanted"), ROWS)
def test_scores_on_a_mixture(method, solver, steps, high, low, wanted):
    check_row(row(FULL, method, solver, steps, high, low, 50), wanted, {"rel": 0.2}, {"abs": 0.1}, {"rel": 0.35})


@pytest.mark.slow
@pytest.mark.parametrize(("method", "solver", "steps", "high", "low", "wanted"), ROWS + LONG)
def test_scores_on_a_mixture_in_full(method, solver, steps, high, low, wanted):
    check_row(row(FULL, method, solver, steps, high, low, 125), wanted, {"rel": 0.15}, {"abs": 0.06}, {"rel": 0.25})


@pytest.mark.slow
def test_ddrm_does_not_depend_on_the_number_of_steps_but_with_fixed_renoising():
    ours, fixed = (
        [row(FULL, method, "ddim", n, 100.0, 0.0106, 125)["sw"] for n in (100, 400)]
        for method in ("ddrm", "ddrm(renoise=fixed)")
    )
    assert ours[1] == pytest.approx(ours[0], rel=0.1)  # 0.33
    assert fixed[1] < 0.8 * fixed[0]  # 0.136 and 0.092


# ---- bad input


class Unknown(Operator):
    """A linear operator without a decomposition."""

    linear = True

    def shape(self, shape):
        return (2,)

    def __call__(self, x):
        return x[:, :2]

    def svd(self, shape):
        return None

    def __str__(self):
        return "unknown"


@pytest.mark.quick
@pytest.mark.parametrize("method", ["replace", "ilvr(factor=2)", "repaint", "sdedit", "ddrm"])
def test_nonlinear_operators_are_refused(method):
    with pytest.raises(InputError, match=r"needs a linear operator, which .* is not; these take it: .*daps"):
        draw(method, PROBLEM.prior, TANH, PROBLEM.y, grid(12))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "solver", "operator", "message"),
    [
        ("daps", "ddim", Matrix(PROBLEM.operator.matrix((8,))), "daps divides by the noise .* sigma above 0"),
        ("split_gibbs", "ddpm", Matrix(PROBLEM.operator.matrix((8,))), "split_gibbs divides by the noise"),
        ("ddrm", "heun", None, r"leave out heun, and set ddrm\(eta="),
        ("daps", "ddpm", None, "daps solves an ODE from each level, and ddpm draws noise: take ddim"),
        ("split_gibbs", "ddim", None, "split_gibbs draws x0 given .* ddim is deterministic: take ddpm"),
        ("split_gibbs(rho_min=0.001)", "ddpm", None, r"rho_min=0.001 is outside \[0.0106, 45\]"),
        ("split_gibbs(rho_min=60, rho_max=70)", "ddpm", None, "rho_min=60 is outside"),
        ("sdedit(level=100)", "ddpm", None, r"level=100 is outside \[0.0106, 45\], the levels of the grid"),
        ("repaint(jump=12)", "ddpm", None, "jump=12 is more than the 11 steps of the grid"),
        ("ilvr(factor=3)", "ddpm", None, "the factor 3 does not divide samples of shape"),
    ],
)
def test_bad_input_is_one_clear_line(method, solver, operator, message):
    with pytest.raises(InputError, match=message) as caught:
        draw(method, PROBLEM.prior, operator or PROBLEM.operator, PROBLEM.y, grid(12), solver)
    assert "\n" not in str(caught.value)


@pytest.mark.quick
def test_operators_without_what_a_method_needs_are_refused():
    y = torch.zeros(1, 2, dtype=DTYPE)
    with pytest.raises(InputError, match=r"ddrm needs the singular values of unknown, unknown for samples \(8,\)"):
        draw("ddrm", PROBLEM.prior, Unknown(sigma=0.1), y, grid(5))
    with pytest.raises(InputError, match="no pseudo-inverse"):
        draw("replace", PROBLEM.prior, Unknown(), y, grid(5))
    with pytest.raises(InputError, match="gradient of the residual, which is 0 for quantise"):
        draw("daps", PROBLEM.prior, Quantise(4, sigma=0.1), torch.zeros(1, 8, dtype=DTYPE), grid(5), "ddim")
    with pytest.raises(InputError, match=r"rho_min=1 is above rho_max=0.5"):
        posteriors.make("split_gibbs(rho_min=1, rho_max=0.5)")
    # without singular values daps takes Langevin steps
    assert torch.isfinite(draw("daps(outer=3)", PROBLEM.prior, Unknown(sigma=0.1), y, grid(5), "ddim").x).all()
    with pytest.raises(InputError, match="boolean"):
        Inpaint(torch.ones(8))


@pytest.mark.quick
def test_restore_takes_the_solver_of_each_method_and_refuses_budgets_of_others():
    model = PROBLEM.prior.denoiser(VP)
    for method, solver in (("ddrm", "ddim"), ("daps(outer=3)", "ddim"), ("split_gibbs(sweeps=2)", "ddpm")):
        found = scoresde.restore(model, PROBLEM.operator, PROBLEM.y, method, samples=2, steps=6, dtype=DTYPE)
        alone = scoresde.restore(model, PROBLEM.operator, PROBLEM.y[2], method, seeds=[1], steps=6, dtype=DTYPE)
        assert found.solver == solver
        assert torch.equal(found.x[2, 1], alone.x[0, 0])
    for method in ("repaint", "daps", "split_gibbs"):
        with pytest.raises(InputError, match=f"{method} makes evaluations of its own"):
            scoresde.restore(model, PROBLEM.operator, PROBLEM.y, method, nfe=50)
    with pytest.raises(InputError, match=r"scoresde\.restore"):
        scoresde.condition(model, PROBLEM.operator, PROBLEM.y[0], "repaint")
