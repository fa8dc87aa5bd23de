"""Plans that make samples far too wide or narrow are never silent, and the remedy that the warning names is one."""

import math
import re
import warnings
from itertools import product

import pytest
import torch

import scoresde
import solvers
from scoresde.models.targets import Gaussian
from scoresde.sampling.plan import FEW_STEPS, SAMPLER
from scoresde.sampling.width import LEAST, LIMIT, WrongWidth
from solvers import InputError, Output, terminal_covariance

GRIDS = ("karras", "logsnr", "uniform", "leading", "trailing", "linspace", "quadratic", "kl_optimal", "vp", "ays")
LINEAR = [name for name in solvers.names("gaussian") if solvers.make(name).linear]


def denoiser_on(path):
    return Gaussian(torch.tensor([0.3, -0.7], dtype=torch.float64), 0.25).denoiser(scoresde.make_sde(path))


def planned(path, solver, grid, steps):
    """The exact deviation of samples of data with deviation 1/2, over the right one, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = scoresde.plan(denoiser_on(path), solver, grid, steps)
        plan.warn_of_width(Output("x0"))
    program = plan.program()
    end = program.end
    wide = math.sqrt(float(terminal_covariance(program, 0.25)) / (0.25 * end.alpha**2 + end.sigma**2))
    return wide, [str(warning.message) for warning in caught if warning.category is WrongWidth]


def remedied(path, solver, grid, steps, message):
    """The same after the change that the message names."""
    changed = re.search(r"; with (?:solver='(.*)'|grid='(.*?)'(?:, steps=(\d+))?) it would be [\d.]+ times$", message)
    return planned(path, changed[1] or solver, changed[2] or grid, int(changed[3] or steps))


@pytest.mark.parametrize(
    ("path", "solver", "grid", "steps", "deviation"),
    [
        ("vp", "dpmpp_3m_sde", "leading", 40, 1.62),
        ("vp", "sa_solver", "leading", 40, 1.87),
        ("vp", "dpmpp_2m_sde", "leading", 40, 0.617),
        ("vp", "dpmpp_3m_sde", "linspace", 40, 1.66),
        ("edm", "heun", "karras", 2, 40.0),
        ("flow", "heun", "karras", 2, 499.0),
        ("edm", "ddim", "uniform", 20, 0.0641),
        ("edm", "dpmpp_2m", "uniform", 20, 0.233),
    ],
)
def test_what_was_silent_warns_and_its_remedy_is_one(path, solver, grid, steps, deviation):
    wide, messages = planned(path, solver, grid, steps)
    assert wide / 2 == pytest.approx(deviation, rel=0.02)  # two or three digits
    assert len(messages) == 1
    assert f"of data with deviation 0.5, theirs is {wide:.3g} times the right one;" in messages[0]
    better, silent = remedied(path, solver, grid, steps, messages[0])
    assert 1 / LIMIT <= better <= LIMIT
    assert silent == []


def test_sample_warns_and_the_samples_are_as_wide_as_it_says():
    with pytest.warns(WrongWidth, match=r"^heun makes samples too wide in these 3 steps") as caught:
        samples = scoresde.sample(denoiser_on("edm"), (2,), range(500), "heun", "uniform", 3).x
    said = float(re.search(r"is ([\d.]+) times", str(caught[0].message))[1])
    assert said > 2
    assert float(samples.std()) == pytest.approx(said / 2, rel=0.1)  # 1000 numbers: four times their scatter


def cases():
    """Every linear solver; ``make test`` runs it on one path and three grids."""
    quick = [("vp", "leading", 20), ("vp", "karras", 2), ("vp", "uniform", 5)]
    rest = [
        case
        for case in product(("vp", "ve", "sub_vp", "edm", "flow", "cosine"), GRIDS, (2, 3, 5, 10, 20))
        if case not in quick
    ]
    return [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in rest)]


@pytest.mark.parametrize(("path", "grid", "steps"), cases())
def test_no_solver_is_too_wide_or_narrow_in_silence(path, grid, steps):
    found = 0
    end = "zero" if scoresde.plan(denoiser_on(path), "ddim", grid, steps).nodes[-1].clean else "t_min"
    for solver in LINEAR:
        try:
            wide, messages = planned(path, solver, grid, steps)
        except InputError:  # this grid has no such number of steps, or the solver needs more
            continue
        expected = wide > LIMIT
        if wide < LEAST:  # expected if a grid with as many steps is right
            others = [planned(path, solver, f"{name}(end={end})", steps)[0] for name in ("karras", "logsnr")]
            expected = any(1 / LIMIT <= other <= LIMIT for other in others)
        assert len(messages) == expected, (solver, wide)
        for message in messages:
            found += 1
            better, _ = remedied(path, solver, grid, steps, message)
            # reverse_diffusion, of order one, needs more than the 16 times as many steps that are tried
            assert (1 / LIMIT if wide < LEAST else 0) <= better <= 1.05 * LIMIT, (solver, message)
    assert found or (path, grid, steps) != ("vp", "leading", 20)  # a check that something is found


@pytest.mark.parametrize("path", ["vp", "ve", "sub_vp", "edm", "flow", "cosine"])
@pytest.mark.parametrize(("solver", "grid"), [SAMPLER, (FEW_STEPS, FEW_STEPS), ("dpmpp_2m", "karras")])
def test_the_default_solver_and_grid_never_warn(path, solver, grid):
    for steps in (2, 3, 5, 10, 20):
        assert planned(path, solver, grid, steps)[1] == []


@pytest.mark.parametrize("path", ["vp", "ve", "sub_vp", "edm", "flow", "cosine"])
def test_the_usual_price_of_few_steps_is_no_warning(path):
    """Methods of order one are narrow on every grid."""
    for solver, steps in product(("ddim", "ddpm", "dpmpp_sde"), (1, 2, 5, 10, 20)):
        wide, messages = planned(path, solver, "logsnr(end=zero)", steps)
        assert messages == [] or wide > LIMIT, (solver, steps)


def test_few_sweeps_of_picard_are_not_its_solver():
    """With a fixed number of sweeps the outcome is not that of the solver inside, which is right in these steps."""
    denoiser, said = denoiser_on("edm"), {}
    for solver in ("heun", "picard(solver=heun)", "picard(solver=heun, sweeps=2)"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scoresde.plan(denoiser, solver, "karras", 18).warn_of_width(Output("x0"))
        said[solver] = [str(warning.message) for warning in caught]
    assert [len(messages) for messages in said.values()] == [0, 0, 1]
    samples = scoresde.sample(denoiser, (2,), 200, solver, "karras", 18, dtype=torch.float64).x
    wide = float(re.search(r"theirs is ([\d.e+]+) times", said[solver][0])[1])
    assert wide > 100
    assert float(samples.std()) == pytest.approx(wide / 2, rel=0.2)  # 400 numbers: more than five times their scatter
