"""Solvers of discrete states against exact kernels: no draw, so no sampling noise."""

import math
from itertools import pairwise

import pytest
import torch
from discrete_problems import dirichlet, end_error, geometric, marginal

import scoresde
import solvers
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete import Absorbing, Binomial, RankOne, Uniform, process_schedules
from scoresde.paths.discrete.schedules import Constant
from solvers import InputError
from solvers.conformance.kernels import all_states, index_of, kernel
from solvers.noise.uniform import UniformNoise

CONSTANT = Constant()
HEARTBEAT = DiscreteEmpirical(torch.stack([((torch.arange(20) - k) % 5 == 0).long() for k in range(5)]))


def slopes(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize("process", [Uniform(4), Absorbing(4), RankOne((0.5, 0.3, 0.1, 0.1)), Binomial()], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_one_token_is_solved_exactly_by_its_posterior(process, steps):
    target = dirichlet(1.0, process.states, 1)
    nodes = solvers.grid("uniform", process, steps)
    assert end_error(solvers.make("tweedie"), target, process, nodes) < 1e-14


# measured by an independent program on the same laws: total variation at 8, ..., 256 steps
@pytest.mark.parametrize(
    ("spec", "process", "start", "found"),
    [
        ("tweedie", Uniform(3, schedule=CONSTANT), 2.0, (2.05e-3, 6.44e-5)),
        ("tau_hold", Uniform(3, schedule=CONSTANT), 2.0, (5.84e-3, 1.95e-4)),
        ("tweedie", Absorbing(3, schedule=CONSTANT), 4.0, (2.15e-3, 6.78e-5)),
        ("tau_hold(clock=rate)", Absorbing(3, schedule=CONSTANT), 4.0, (1.44e-1, 4.00e-3)),
        ("tau_hold", Absorbing(3, schedule=CONSTANT), 4.0, (2.15e-3, 6.78e-5)),
    ],
)
def test_methods_of_one_evaluation_have_order_one(spec, process, start, found):
    target, solver = dirichlet(20.0, 3, 2), solvers.make(spec)
    errors = [end_error(solver, target, process, geometric(process, n, start, 0.1)) for n in (8, 16, 32, 64, 128, 256)]
    assert (errors[0], errors[-1]) == pytest.approx(found, rel=3e-3)
    assert all(0.9 < slope < 1.15 for slope in slopes(errors)[1:])


@pytest.mark.parametrize("spec", ["tweedie", "tau_hold"])
@pytest.mark.parametrize("process", [Uniform(3), Absorbing(3)], ids=str)
def test_the_draws_follow_the_kernel(spec, process):
    target, solver = dirichlet(2.0, 3, 2), solvers.make(spec)
    problem, (t, s) = Diffusion(target.denoiser(process)), process.nodes([0.8, 0.3])
    space, count = all_states(process.values, 2), 4000
    exact = kernel(lambda x: solver.moves(problem, x, t, s, None), space, process.values)
    for row in (0, len(space) - 1):
        x = space[row].expand(count, 2).contiguous()
        drawn = solver.step(problem, x, t, s, None, UniformNoise(range(count), (2,))).x
        seen = torch.bincount(index_of(drawn, process.values), minlength=len(space)).double()
        wanted = count * exact[row]
        assert bool((seen[wanted == 0] == 0).all())
        some = wanted > 0
        chi2 = float(((seen[some] - wanted[some]) ** 2 / wanted[some]).sum())
        freedom = int(some.sum()) - 1
        assert chi2 < freedom + 5 * math.sqrt(2 * max(1, freedom))


# the fraction of valid sequences at 4, 8, ... steps; 1000 draws have a standard error of at most 0.016
@pytest.mark.parametrize(
    ("process", "fractions"),
    [
        (Absorbing(2), {4: 0.383, 8: 0.631, 16: 0.801, 32: 0.896, 64: 0.948, 128: 0.972}),
        (Binomial(schedule=process_schedules.make("cosine(offset=0)")), {4: 0.796, 8: 0.975, 16: 0.999, 32: 1.0}),
    ],
    ids=str,
)
def test_the_exact_model_of_the_heartbeat_makes_known_shares_of_valid_sequences(process, fractions):
    model = HEARTBEAT.denoiser(process)
    for steps, fraction in fractions.items():
        solver = "tweedie" if steps < 32 or process.mask is None else "mdlm_cache"  # its law, in fewer evaluations
        drawn = scoresde.sample(model, seeds=1000, solver=solver, steps=steps)
        valid, count = torch.isfinite(HEARTBEAT.log_prob(drawn.x)).double().mean(), len(drawn.x)
        assert float(valid) == pytest.approx(fraction, abs=4 * math.sqrt(fraction * (1 - fraction) / count) + 0.005)
        assert drawn.nfe == steps or solver == "mdlm_cache"


def test_one_token_after_the_other_makes_valid_sequences_alone():
    """The heartbeat, and the thermometer of 10 bits: first k times 1, then 0."""
    thermometer = DiscreteEmpirical((torch.arange(10)[None] < torch.arange(11)[:, None]).long())
    for target, tokens in ((HEARTBEAT, 20), (thermometer, 10)):
        drawn = scoresde.sample(target.denoiser(Absorbing(2)), seeds=1100, solver="first_hitting")
        assert torch.isfinite(target.log_prob(drawn.x)).all()
        assert drawn.nfe_per_sample.tolist() == [tokens] * 1100
        # all alike: the squared deviations are a chi-square
        seen = (drawn.x[:, None] == target.data).all(2).sum(0).double()
        wanted, freedom = 1100 / len(seen), len(seen) - 1
        assert float(((seen - wanted) ** 2 / wanted).sum()) < freedom + 4 * math.sqrt(2 * freedom)
    # in parallel steps masks leave wrong thermometers, fewer with each doubling, and bits that are drawn again do not
    cosine = process_schedules.make("cosine(offset=0)")
    for process, most in ((Absorbing(2), None), (Binomial(schedule=cosine), 0.02)):
        shares = []
        for steps in (8, 16, 32):
            drawn = scoresde.sample(thermometer.denoiser(process), seeds=1000, solver="tweedie", steps=steps)
            shares.append(float(torch.isneginf(thermometer.log_prob(drawn.x)).double().mean()))
        if most is None:
            assert all(0.35 < b / a < 0.75 for a, b in pairwise(shares)), shares
        else:
            assert shares[-1] < most, shares


def test_tokens_that_no_point_has_together_stay_as_they_are():
    # 1 at the places 0 and 1: parallel steps may reach it, and no heartbeat has it
    x = torch.full((1, 20), 2)
    x[0, :2] = 1
    process = Absorbing(2)
    x0 = HEARTBEAT.denoiser(process).predict(x, process(0.5)).x0
    assert x0[0, :2].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert torch.allclose(x0[0, 2:], torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64))  # of all the data
    # without the mask nothing is known for sure, and all values remain
    flipped = HEARTBEAT.denoiser(Uniform(2)).predict(x.clamp_max(1), Uniform(2)(0.5)).x0
    assert bool((flipped > 0).all())


def test_a_sample_depends_on_its_seed_alone():
    model = HEARTBEAT.denoiser(Uniform(2))
    batch = scoresde.sample(model, seeds=range(16), steps=6)
    assert batch.x.dtype == torch.int64
    for seed in (0, 7, 15):
        assert torch.equal(scoresde.sample(model, seeds=[seed], steps=6).x[0], batch.x[seed])
    parts = scoresde.sample(model, seeds=range(16), steps=6, batch_size=5)
    assert torch.equal(parts.x, batch.x)


def test_uniform_numbers_have_52_bits_and_are_those_of_their_seed():
    noise = UniformNoise([3, 4], (1000,))
    first = noise.draw()
    assert first.dtype == torch.float64
    assert bool(((first > 0) & (first < 1)).all())
    assert float((first * 2**30 % 1 != 0).double().mean()) > 0.99  # more bits than float32 has
    assert not torch.equal(first, noise.draw())
    chosen = UniformNoise([2, 4], (1000,))
    picked = chosen.select(torch.tensor([1]))
    assert torch.equal(picked.draw()[0], first[1])
    chosen.draw()  # draws of a selection count as draws of its rows
    fresh = UniformNoise([4], (1000,))
    fresh.draw(), fresh.draw()
    assert torch.equal(chosen.select(torch.tensor([1])).draw()[0], fresh.draw()[0])
    assert float(first.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 2000))


@pytest.mark.parametrize("process", [Uniform(3), Absorbing(3), RankOne((0.2, 0.5, 0.3))], ids=str)
def test_laws_of_a_process_agree_with_each_other(process):
    target, size = dirichlet(1.0, 3, 2), 2
    s, t = process.nodes([0.3, 0.7])
    space = all_states(process.values, size)
    law = marginal(target, process, t)
    problem = Diffusion(target.denoiser(process))
    reached = law > 0
    x = space[reached]
    found = problem.predict(x, t)
    # the concrete score is the ratio of probabilities
    ratios = process.ratios(found, x, t)
    for i in range(size):
        for y in range(process.values):
            other = x.clone()
            other[:, i] = y
            exact = law[index_of(other, process.values)] / law[reached]
            possible = process.generator_columns(x, t)[:, i, y] > 0  # a token may come from y
            assert torch.allclose(ratios[possible, i, y], exact[possible], rtol=1e-12, atol=1e-14)
    # posteriors are laws, and the conversions of predictions are inverse to each other
    assert torch.allclose(process.posterior(found.x0, x, t, s).sum(-1), torch.ones(()).double(), rtol=1e-13)
    again = process.x0_of_loo(process.loo_of_x0(found.x0, x, t), x, t)
    assert torch.allclose(again, found.x0, atol=1e-14)
    assert torch.allclose(process.x0_of_ratios(ratios, x, t), found.x0, atol=1e-12)


@pytest.mark.parametrize("name", process_schedules.names())
def test_schedules_start_at_one_and_have_their_inverse(name):
    schedule = process_schedules.make(name)
    times = torch.linspace(0, schedule.t_max, 9, dtype=torch.float64)[:-1]
    clock = schedule.clock(times)
    assert float(clock[0]) == 0
    assert bool((clock.diff() > 0).all())
    assert [schedule.time_of(float(c)) for c in clock] == pytest.approx(times.tolist(), abs=1e-9)
    step = 1e-6 * schedule.t_max
    slope = (schedule.clock(times[1:] + step) - schedule.clock(times[1:] - step)) / (2 * step)
    assert torch.allclose(schedule.rate(times[1:]), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"solver": "dpmpp_2m"},
            r"^dpmpp_2m solves for gaussian states, but the model has discrete states; use one of .*tweedie",
        ),
        ({"grid": "karras"}, "^discrete states have no noise level sigma / alpha: use a grid in t"),
        ({"noise": "brownian"}, "^discrete states have seeded noise only, got 'brownian'"),
        ({"x_init": torch.zeros(4, 20)}, "^x_init must be whole numbers, the tokens of uniform"),
        ({"x_init": torch.full((4, 20), 2)}, r"^x_init has the value 2, but uniform\(.*\) has the values 0 to 1"),
    ],
)
def test_bad_input_is_told_in_one_line(given, message):
    with pytest.raises(InputError, match=message):
        scoresde.sample(HEARTBEAT.denoiser(Uniform(2)), seeds=4, **{"steps": 4, **given})


def test_the_two_spaces_are_not_confused():
    gaussian = scoresde.targets.Gaussian(torch.zeros(2), 1.0).denoiser(scoresde.VP())
    with pytest.raises(InputError, match=r"^tweedie solves for discrete states, but the model has gaussian states"):
        scoresde.sample(gaussian, seeds=2, solver="tweedie", steps=4)
    with pytest.raises(InputError, match=r"has discrete states, but gaussian states are needed here"):
        scoresde.log_prob(HEARTBEAT.denoiser(Uniform(2)), torch.zeros(2, 20))
