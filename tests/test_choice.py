"""``solvers.tuning.choose``: the search of a solver and a grid by successive halving, against the full search."""

import math

import pytest
import torch

import scoresde
import solvers
from solvers import InputError
from solvers.conformance.problems import VP, Mixture
from solvers.tuning import choose
from solvers.tuning.choice import resampled

PROBLEM = Mixture(VP)
AMONG = ("ddim", "dpmpp_2m", "ipndm", "deis", "uni_pc", "heun", "gradient_estimation", "plms", "lms", "res_2m")
ON = ("karras", "logsnr", "uniform", "quadratic", "kl_optimal", "flow_shift")


@pytest.fixture(scope="module")
def reference():
    x = torch.randn(256, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return solvers.trajectory(PROBLEM, x, VP, "logsnr(end=zero)")


def in_full(reference, nfe):
    """The squared errors (N,) of every setting on all samples."""
    found = {}
    for name in AMONG:
        for spec in ON:
            rule, solver = reference.rule(spec), solvers.make(name)
            steps = solvers.steps_of_nfe(solver, rule, VP, nfe, *reference.range)
            found[str(solver), str(rule)] = reference.errors(solver, PROBLEM, reference.place(rule, steps))
    return found


@pytest.mark.parametrize("nfe", [6, 10])
def test_the_choice_is_that_of_the_full_search_at_under_a_quarter_of_its_cost(reference, nfe):
    choice, every = choose(PROBLEM, nfe, reference, AMONG, ON), in_full(reference, nfe)
    least = min(every, key=lambda key: float(every[key].mean()))
    mine = every[choice.best.solver, choice.best.grid]
    assert 0.9 * 256 * nfe * len(every) < choice.full <= 256 * nfe * len(every)  # some solvers leave one evaluation
    assert choice.evaluations < 0.25 * choice.full
    assert choice.best.error == pytest.approx(math.sqrt(float(mine.mean())), rel=1e-12)
    gap = (resampled(mine[None]) - resampled(every[least][None]))[0]
    assert gap.quantile(0.025) <= 0  # the least error of all is not clearly less than the choice's
    for one in choice.settings:
        own = every[one.solver, one.grid]
        if one.samples == 256:
            assert one.error == pytest.approx(math.sqrt(float(own.mean())), rel=1e-12)
        else:  # the samples where solvers differ most
            assert one.error**2 < float(own.sum()) / one.samples * (1 + 1e-12)


def test_samples_near_a_divide_come_first():
    """Of 256 samples of separate points, the error of good solvers is a few samples that end at another point."""
    points = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    problem, truth = scoresde.trajectory(scoresde.targets.Empirical(points).denoiser(scoresde.VP()), (3,), range(256))
    choice, full = (choose(problem, 10, truth, AMONG, ON, first=first) for first in (24, 256))
    assert choice.evaluations < 0.25 * full.evaluations
    assert choice.best.error < 1.1 * full.best.error
    partial = [one for one in choice.settings if one.samples < 256]
    whole = {(one.solver, one.grid): one.error for one in full.settings}
    # on the samples that come first, most settings have more than the error that they have on all
    assert sum(one.error > 1.2 * whole[one.solver, one.grid] for one in partial) > 0.6 * len(partial)


def test_ties_are_settings_that_the_samples_do_not_tell_apart(reference):
    choice = choose(PROBLEM, 8, reference, ["ddim", "ipndm"], ["karras"])
    assert [s.solver for s in choice.settings] == ["ipndm", "ddim"]
    assert len(choice.tied) == 1
    twice = choose(PROBLEM, 8, reference, ["dpmpp_2m", "DPM++ 2M Karras"], ["karras"])
    assert len(twice.settings) == 1
    same = choose(PROBLEM, 8, reference, ["ddim", "dpm_solver_1"], ["karras"])  # one program by two names
    assert len(same.settings) == 1
    low, high = choice.best.interval
    assert low < choice.best.error < high


def test_intervals_cover_the_error_of_many_samples(reference):
    x = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    many = solvers.trajectory(PROBLEM, x, VP, "logsnr(end=zero)")
    choice = choose(PROBLEM, 8, reference, ["dpmpp_2m"], ["karras"])
    error = float(many.errors("dpmpp_2m", PROBLEM, many.place("karras", 8)).mean().sqrt())
    low, high = choice.best.interval
    assert low < error < high < 2 * low


@pytest.mark.parametrize(
    ("nfe", "among", "on", "message"),
    [
        (6, ["ddpm"], None, "draws noise"),
        (6, ["rk45"], None, "chooses its own steps"),
        (6, ["dimm"], None, "did you mean"),
        (6, None, ["karas"], "did you mean"),
        (0, None, None, "positive integer"),
        (6, [], None, "at least one solver"),
    ],
)
def test_bad_input_is_one_clear_line(reference, nfe, among, on, message):
    with pytest.raises(InputError, match=message) as found:
        choose(PROBLEM, nfe, reference, among, on)
    assert "\n" not in str(found.value)


def test_a_budget_below_every_solvers_least_is_an_error():
    x = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    to_t_min = solvers.trajectory(PROBLEM, x, VP)
    with pytest.raises(InputError, match="nfe=3 is too small for rk4: one step takes 4"):
        choose(PROBLEM, 3, to_t_min, ["rk4"])
