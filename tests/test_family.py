"""``tune_family``: one table for several models, and a family of exact models made by formulas."""

import math

import pytest
import torch

import scoresde
import solvers
from benchmarks.tuning import learned_family, model_family
from solvers import InputError
from solvers.tuning.family import Case, tune_family
from solvers.tuning.table import Table

EDM = model_family.PATH
STARTS = [("ipndm", "kl_optimal"), ("ddim", "karras")]


def cases(seeds, samples=24):
    return [model_family.case(seed, samples, steps=24) for seed in seeds]


def mean_error(table, some):
    """The geometric mean over cases of the root-mean-square error, by the table's program."""
    program = table.program(EDM)
    errors = []
    for problem, truth in some:
        outcome = program.run(problem, truth.states[0])
        errors.append(math.sqrt(float((outcome - truth.states[-1]).square().mean()) + 1e-8))
    return math.exp(sum(map(math.log, errors)) / len(errors))


def test_a_tuned_table_is_better_on_models_that_decided_nothing():
    found = tune_family(STARTS, 5, cases(range(8)), cases(range(50, 54)), iterations=60, batch=4)
    start = Table.of(solvers.trace(found.solver, cases([0])[0].truth.place(found.grid, 5), EDM))
    unseen = cases(range(90, 96))
    assert mean_error(start, cases(range(50, 54))) == pytest.approx(found.start, rel=1e-4)
    assert mean_error(found.table, cases(range(50, 54))) == pytest.approx(found.best, rel=1e-4)
    assert found.best < 0.9 * found.start
    assert mean_error(found.table, unseen) < mean_error(start, unseen)


@pytest.mark.parametrize("seed", range(12))
def test_the_fast_models_of_the_family_are_the_exact_ones(seed):
    made = model_family.member(seed)
    exact, fast = made.target.denoiser(EDM), model_family.Fast(made.target)
    draw = torch.Generator().manual_seed(seed)
    for level in (80.0, 1.0, 0.05, 0.003):
        noise = torch.randn(16, made.dimension, dtype=torch.float64, generator=draw)
        x = made.target.sample(16, draw).double() + level * noise
        one, other = (model.predict(x, EDM(level)) for model in (exact, fast))
        assert torch.allclose(one.x0, other.x0, rtol=0, atol=1e-8)
    numbers = made.target.sample(4000, draw)
    assert 0.6 < float(numbers.square().mean().sqrt()) < 2.2  # 0.7 to 2, with the error of 4,000 draws


@pytest.mark.parametrize("seed", [300_003, 300_005])
def test_the_networks_of_the_family_learn_their_data(seed, tmp_path):
    """At a middle noise level they are nearer to the exact denoiser than the best linear one. A seed gives one."""
    target = model_family.member(seed).target
    model, states = learned_family.kept(seed, 8, tmp_path)
    again, same = learned_family.kept(seed, 8, tmp_path)  # from the file
    assert torch.equal(states, same)
    draw, node = torch.Generator().manual_seed(seed), EDM(1.0)
    x0 = target.sample(512, draw).double().flatten(1)
    x = x0 + torch.randn(x0.shape, dtype=torch.float64, generator=draw)
    exact, found = target.denoiser(EDM).predict(x, node).x0, model.predict(x, node).x0
    linear = x0.mean(0) + x0.var() / (x0.var() + 1) * (x - x0.mean(0))
    assert (found - exact).square().mean() < 0.9 * (linear - exact).square().mean()
    assert torch.equal(found, again.predict(x, node).x0)


def test_bad_input_is_one_clear_line():
    some = cases([0], 4)
    with pytest.raises(InputError, match="at least one case"):
        tune_family(STARTS, 5, [], some)
    with pytest.raises(InputError, match="no start spends 4 evaluations"):
        tune_family([("heun", "karras")], 4, some, some)
    other = Case(
        *scoresde.trajectory(model_family.member(0).target.denoiser(scoresde.EDM(t_max=60.0)), None, range(4), 8)
    )
    with pytest.raises(InputError, match="one range of noise levels"):
        tune_family(STARTS, 5, some, [other])
