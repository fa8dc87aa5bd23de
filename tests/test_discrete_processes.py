"""Processes of discrete states against each other, their generators, and the equations that reverse rates satisfy."""

import math
from itertools import pairwise

import pytest
import torch
from discrete_problems import dirichlet, end_error, geometric, marginal

import scoresde
import solvers
from scoresde.models.discrete import DiscreteModel
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete import (
    Absorbing,
    Binomial,
    BirthDeath,
    DenseRate,
    DenseSteps,
    DiscretisedGaussian,
    GaussianSteps,
    Hybrid,
    MaskByState,
    MaskReplace,
    RankOne,
    Uniform,
)
from scoresde.paths.discrete.schedules import Constant, Linear
from solvers.conformance.kernels import all_states, end_law, index_of
from solvers.types.process import DiscretePrediction

CONSTANT = Constant()
GENERATOR = ((-1.5, 1.0, 0.5), (0.2, -0.5, 0.3), (0.0, 2.0, -2.0))
STEP = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.3, 0.1, 0.6]])
CLOCKED = [
    Uniform(3, schedule=CONSTANT),
    Absorbing(3),
    Binomial(),
    RankOne((0.5, 0.3, 0.2)),
    MaskReplace(3),
    MaskReplace(3, schedule=Linear(), substitution=Constant(0.5)),
    Hybrid(3, 0.2),
    Hybrid(2, 0.4, gamma=1.5, schedule=CONSTANT),
    MaskByState((0.5, 1.0, 3.0)),
    DenseRate(GENERATOR),
    BirthDeath(4, schedule=CONSTANT),
    DiscretisedGaussian(4, width=2.0, spread=1.5),
]
STEPPED = [DenseSteps(STEP.expand(8, 3, 3)), GaussianSteps(4, steps=8, first=0.5, last=2.0)]
MASKED = [process for process in CLOCKED if process.mask is not None]


def table(transition, values):
    return transition.rows(torch.arange(values)[None])[0]


def generator(process, t):
    return process.generator_rows(torch.arange(process.values)[None], t)[0]


@pytest.mark.parametrize("process", CLOCKED + STEPPED, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_one_token_is_solved_exactly_by_its_posterior(process, steps):
    target = dirichlet(1.0, process.states, 1)
    nodes = solvers.grid("uniform", process, steps)
    assert end_error(solvers.make("tweedie"), target, process, nodes) < 1e-14


@pytest.mark.parametrize("process", [p for p in CLOCKED if not isinstance(p, (Uniform, Absorbing, RankOne))], ids=str)
@pytest.mark.parametrize("spec", ["tweedie", "tau_hold", "tau_hold(clock=rate)"])
def test_both_solvers_have_order_one_on_every_process(spec, process):
    target, solver = dirichlet(2.0, process.states, 2), solvers.make(spec)
    errors = []
    for steps in (16, 32):
        nodes = process.nodes([process.t_max * (0.6 - 0.5 * i / steps) for i in range(steps + 1)])
        errors.append(end_error(solver, target, process, nodes))
    assert 0.8 < math.log2(errors[0] / errors[1]) < 1.25


@pytest.mark.parametrize("process", CLOCKED, ids=str)
def test_samples_of_every_process_are_data(process):
    model = dirichlet(1.0, process.states, 2).denoiser(process)
    drawn = scoresde.sample(model, seeds=8, steps=5)
    assert 0 <= int(drawn.x.min()) <= int(drawn.x.max()) < process.states
    if process.mask is not None:  # without masks rates of the whole clock need a finite start
        drawn = scoresde.sample(model, seeds=8, steps=5, solver="tau_hold")
        assert 0 <= int(drawn.x.min()) <= int(drawn.x.max()) < process.states


@pytest.mark.parametrize("process", CLOCKED + STEPPED, ids=str)
def test_a_transition_is_one_matrix_and_the_product_of_its_parts(process):
    values = process.values
    nodes = process.nodes([process.t_max * i / 8 for i in range(9)])
    whole = torch.eye(values, dtype=torch.float64)
    for s, t in pairwise(nodes):
        part = process.transition(s, t, torch.arange(values)[None])
        matrix = table(part, values)
        assert bool((matrix >= 0).all())
        assert torch.allclose(matrix.sum(1), torch.ones((), dtype=torch.float64), atol=1e-14)
        assert torch.allclose(part.columns(torch.arange(values)[None])[0], matrix.T, atol=1e-15)
        law = torch.rand(2, 1, values, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(part.push(law), law @ matrix, atol=1e-14)
        if t.clock < math.inf:  # the start cannot be found again where nothing of it is left
            assert torch.allclose(part.pull(part.push(law)), law, atol=1e-10)
        whole = whole @ matrix
        assert torch.allclose(whole, table(process.transition(process.clean, t, law.argmax(-1)), values), atol=1e-14)
    # the prior is where all values end alike, up to what the schedule leaves of them
    left = whole - process.prior
    reached = process in STEPPED or nodes[-1].clock < math.inf
    assert float(left.abs().max()) < (0.5 if reached else 1e-14)
    assert torch.allclose(whole[: process.states].mean(0), process.prior, atol=0.1 if reached else 1e-14)


@pytest.mark.parametrize("process", CLOCKED + STEPPED, ids=str)
def test_nodes_of_a_batch_are_those_of_its_samples(process):
    times = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64) * process.t_max
    law = torch.rand(3, 2, process.values, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0, 1], [1, 0], [process.values - 1, 0]])
    x0 = torch.nn.functional.pad(torch.softmax(law[..., : process.states], -1), (0, process.values - process.states))
    t, s = process(times), process(times / 2)
    found = process.posterior(x0, x, t, s)
    for i in range(3):
        one, half = process(float(times[i])), process(float(times[i] / 2))
        row = slice(i, i + 1)
        assert torch.allclose(process.posterior(x0[row], x[row], one, half), found[row], atol=1e-14)
        assert torch.allclose(process.marginal(x[row], one), process.marginal(x, t)[row], atol=1e-14)
        if process in CLOCKED:
            assert torch.allclose(process.generator_rows(x[row], one), process.generator_rows(x, t)[row], atol=1e-14)


@pytest.mark.parametrize("process", CLOCKED, ids=str)
@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_generators_are_the_derivatives_of_transitions(process, time):
    t = process(time * process.t_max)
    rates = generator(process, t)
    assert float(rates.sum(1).abs().max()) < 1e-14
    assert bool((rates - torch.diag(rates.diagonal()) >= 0).all())
    x = torch.arange(process.values)[None]
    assert torch.allclose(process.generator_columns(x, t)[0], rates.T, atol=1e-15)
    h = 1e-4 * process.t_max
    nodes = [process(t.t + k * h) for k in (-2, -1, 1, 2)]
    laws = [table(process.transition(process.clean, node, x), process.values) for node in nodes]

    def slope(a, b, c, d):  # at t, of fourth order
        return (a - 8 * b + 8 * c - d) / (12 * h)

    moved = table(process.transition(process.clean, t, x), process.values) @ rates
    clock = slope(*(node.clock for node in nodes))
    assert torch.allclose(slope(*laws), clock * moved, rtol=0, atol=1e-10)


@pytest.mark.parametrize("process", CLOCKED, ids=str)
def test_clocks_have_their_inverses_and_speeds(process):
    for clock in ("natural", "rate"):
        for time in (0.05, 0.3, 0.8, 0.99):
            t = process(time * process.t_max)
            reading = process.reading(t, clock)
            assert process.time_of(reading, clock) == pytest.approx(t.t, rel=1e-9)
            several = torch.tensor([0.5 * reading, reading, 2 * reading], dtype=torch.float64)
            assert process.times_of(several, clock).tolist() == [process.time_of(u, clock) for u in several.tolist()]
            h = 1e-5
            before, after = (process(t.t * (1 + k * h)) for k in (-1, 1))
            fall = process.reading(before, clock) - process.reading(after, clock)
            # differences of second order
            assert process.speed(t, clock) == pytest.approx((after.clock - before.clock) / fall, rel=1e-5)
    first, last = process(process.t_max), process.clean
    assert process.time_of(process.reading(first)) == pytest.approx(process.t_max, rel=1e-14)
    assert process.time_of(process.reading(last)) == 0.0


@pytest.mark.parametrize("process", CLOCKED, ids=str)
def test_reverse_rates_undo_the_process(process):
    """p (R + R^) = 0, and p changes as -p R^ with the clock; the score of the exact model is the ratio of p."""
    target, size = dirichlet(1.0, process.states, 2), 2
    space = all_states(process.values, size)
    t = process(0.4 * process.t_max)
    law = marginal(target, process, t)
    reached = law > 0
    x = space[reached]
    problem = Diffusion(target.denoiser(process))
    found = problem.predict(x, t)
    forward = space_rates(process.generator_rows(space, t), space, process.values)
    reverse = torch.zeros_like(forward)
    reverse[reached] = space_rates(process.rates(found, x, t, "rate"), x, process.values)
    assert float((law @ (forward + reverse)).abs().max()) < 1e-15
    h = 1e-4 * process.t_max
    nodes = [process(t.t + k * h) for k in (-2, -1, 1, 2)]

    def slope(a, b, c, d):  # of fourth order, so that rounding prevails: 1e-16 / h
        return (a - 8 * b + 8 * c - d) / (12 * h)

    change = slope(*(marginal(target, process, node) for node in nodes))
    clock = slope(*(node.clock for node in nodes))
    assert float((change + clock * (law @ reverse)).abs().max()) < 1e-11
    # per unit of the natural clock the rates differ by the ratio of the clocks alone
    natural = space_rates(process.rates(found, x, t), x, process.values)
    assert torch.allclose(natural, process.speed(t) * reverse[reached], rtol=1e-12, atol=1e-14)
    ratios = process.ratios(found, x, t)
    for i in range(size):
        for y in range(process.values):
            other = x.clone()
            other[:, i] = y
            exact = law[index_of(other, process.values)] / law[reached]
            possible = process.generator_columns(x, t)[:, i, y] > 0  # a token may come from y
            assert torch.allclose(ratios[possible, i, y], exact[possible], rtol=1e-13, atol=1e-15)


def space_rates(rates, x, values):
    """The generator (n, N) of whole states, of rates (n, d, S) of single tokens."""
    size = x.shape[1]
    found = torch.zeros(len(x), values**size, dtype=torch.float64)
    for i in range(size):
        for y in range(values):
            other = x.clone()
            other[:, i] = y
            away = torch.where(x[:, i] == y, 0.0, rates[:, i, y])
            found.scatter_add_(1, index_of(other, values)[:, None], away[:, None])
            found.scatter_add_(1, index_of(x, values)[:, None], -away[:, None])
    return found


def test_the_rates_of_discrete_flow_matching_satisfy_the_same_equation_with_fewer_jumps():
    process, target = Uniform(3, schedule=CONSTANT), dirichlet(1.0, 3, 2)
    space, t = all_states(3, 2), process(0.7)
    law = marginal(target, process, t)
    found = Diffusion(target.denoiser(process)).predict(space, t)
    reverse = space_rates(process.rates(found, space, t), space, 3)
    alpha = math.exp(-t.clock)
    flow = space_rates(alpha / (1 - alpha) * found.x0, space, 3)  # kappa' / (1 - kappa) per unit of the clock
    assert torch.allclose(law @ flow, law @ reverse, atol=1e-15)
    assert float((flow - reverse).abs().max()) > 0.5
    # the mean number of moves; a published measurement of such a target gives about 2.0
    exits = [float(law @ -rates.diagonal()) for rates in (reverse, flow)]
    assert 1.5 < exits[0] / exits[1] < 2.5


@pytest.mark.parametrize("process", MASKED, ids=str)
def test_rates_in_the_natural_clock_have_a_limit_where_all_is_masked(process):
    masked = torch.full((1, 2), process.mask)
    x0 = torch.zeros(1, 2, process.values, dtype=torch.float64)
    x0[..., : process.states] = torch.linspace(1, 2, process.states, dtype=torch.float64)
    found = DiscretePrediction(x0 / x0.sum(-1, keepdim=True))
    start = process(process.t_max)
    rates = process.rates(found, masked, start)
    assert bool(rates.isfinite().all())
    near = process.rates(found, masked, process(process.t_max * (1 - 1e-9)))
    assert torch.allclose(rates, near, rtol=1e-4, atol=1e-7)  # hybrid changes with the root of the distance
    assert float(rates.sum()) > 0.1


def test_an_absorbing_process_fills_masks_at_constant_rates_in_its_natural_clock():
    target = dirichlet(1.0, 3, 2)
    for process, weights in (
        (Absorbing(3), torch.ones(3)),
        (MaskReplace(3), torch.ones(3)),
        (MaskByState((0.5, 1.0, 3.0)), torch.tensor([0.5, 1.0, 3.0])),
    ):
        masked = torch.full((1, 2), 3)
        for time in (0.2, 0.6, 0.9):
            t = process(time)
            found = Diffusion(target.denoiser(process)).predict(masked, t)
            rates = process.rates(found, masked, t)
            if isinstance(process, MaskReplace):  # to any value at rate 1 in all
                assert torch.allclose(rates.sum(-1), torch.ones(1, 2, dtype=torch.float64), rtol=1e-12)
            else:
                assert torch.allclose(rates[..., :3], weights * found.x0[..., :3], rtol=1e-12)


NEVER = Constant(1e-300)  # a clock that stays at 0 in float64
SAME = [
    (MaskReplace(3, schedule=NEVER, substitution=CONSTANT), Uniform(3, schedule=CONSTANT)),
    (MaskReplace(3, schedule=Linear(), substitution=None), Absorbing(3)),
    (MaskReplace(3, schedule=Linear(), substitution=NEVER), Absorbing(3)),
    (Hybrid(3, 0.0), Absorbing(3)),
    (Hybrid(3, 0.0, schedule=CONSTANT), Absorbing(3, schedule=CONSTANT)),
    (MaskByState((1.0, 1.0, 1.0)), Absorbing(3)),
    (Binomial(), Uniform(2)),
    (RankOne((1.0, 1.0, 1.0)), Uniform(3)),
    (DenseRate(((-0.5, 0.5), (0.5, -0.5)), schedule=CONSTANT), Binomial(schedule=CONSTANT)),
    (DenseRate(torch.full((4, 4), 0.25) - torch.eye(4)), Uniform(4)),
    (DenseSteps(torch.stack([(1 - b) * torch.eye(3).double() + b / 3 for b in (0.25, 1 / 3, 0.5, 1.0)])), Uniform(3)),
    (MaskReplace(2, schedule=NEVER, substitution=CONSTANT), Binomial(schedule=CONSTANT)),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_processes_that_contain_each_other_are_equal(one, other):
    target, steps = dirichlet(1.0, other.states, 2), 4
    values = other.values
    space = all_states(values, 2)
    nodes = [solvers.grid("uniform", process, steps) for process in (one, other)]
    for k, ((t, s), (t2, s2)) in enumerate(zip(pairwise(nodes[0]), pairwise(nodes[1]), strict=True)):
        x = torch.arange(values)[None]
        a = table(one.transition(s, t, x), one.values)[:values, :values]
        b = table(other.transition(s2, t2, x), values)
        assert torch.allclose(a, b, atol=1e-14)
        found = Diffusion(target.denoiser(other)).predict(space, t2)
        wide = DiscretePrediction(torch.nn.functional.pad(found.x0, (0, one.values - values)))
        a, b = one.posterior(wide.x0, space, t, s)[..., :values], other.posterior(found.x0, space, t2, s2)
        assert torch.allclose(a, b, atol=1e-14)
        if not isinstance(one, DenseSteps) and k:  # at t_max rates of the whole clock are 0 times infinity
            clock = "natural" if one.mask == other.mask else "rate"
            a = one.rates(wide, space, t, clock)[..., :values]
            assert torch.allclose(a, other.rates(found, space, t2, clock), rtol=1e-12, atol=1e-14)
    assert torch.allclose(one.prior[:values], other.prior, atol=1e-14)


@pytest.mark.parametrize("process", CLOCKED + STEPPED, ids=str)
def test_predictions_of_all_kinds_give_the_same_laws(process):
    target, size = dirichlet(1.0, process.states, 2), 2
    t = process(0.25 * process.t_max)
    space = all_states(process.values, size)
    x = space[marginal(target, process, t) > 0]
    found = Diffusion(target.denoiser(process)).predict(x, t)
    loo = process.loo_of_x0(found.x0, x, t)
    ratios = process.ratios(found, x, t)
    networks = {
        "x0_logits": torch.log(found.x0),
        "x0_loo_logits": torch.log(loo),
        "log_score": torch.log(ratios),
    }
    for predicts, output in networks.items():
        model = scoresde.DiscreteDenoiser(lambda x, t, output=output: output, process, predicts=predicts)
        seen = model.predict(x, t)
        assert torch.allclose(seen.x0, found.x0, atol=1e-12)
        assert torch.allclose(process.ratios(seen, x, t), ratios, rtol=1e-12)
    if process.mask is None:
        assert float((loo - found.x0).abs().max()) > 0.05


class Mistaken(DiscreteModel):
    """The exact model whose law that sees its own token is read as the one that does not."""

    def __init__(self, exact):
        self.exact, self.process = exact, exact.process

    def predict(self, x, node):
        return DiscretePrediction(self.process.x0_of_loo(self.exact.predict(x, node).x0, x, node))


def mistaken_error(target, process, steps):
    problem, nodes = Diffusion(Mistaken(target.denoiser(process))), geometric(process, steps, 2.0, 0.05)
    found = end_law(solvers.make("tweedie"), problem, marginal(target, process, nodes[0]), 2, nodes)
    return 0.5 * float((found - marginal(target, process, nodes[-1])).abs().sum())


def test_a_law_read_as_the_wrong_one_has_an_error_that_does_not_fall_with_the_steps():
    target, tweedie = dirichlet(0.5, 3, 2, seed=2), solvers.make("tweedie")
    # measured by an independent program: .266 at 32 steps and .268 at 256, and .0060 at 32 if read rightly
    process = Uniform(3, schedule=CONSTANT)
    assert mistaken_error(target, process, 32) == pytest.approx(0.266, abs=5e-4)
    assert mistaken_error(target, process, 256) == pytest.approx(0.268, abs=5e-4)
    assert end_error(tweedie, target, process, geometric(process, 32, 2.0, 0.05)) == pytest.approx(0.0060, abs=5e-5)
    # masked tokens carry no information of their own
    process = Absorbing(3, schedule=CONSTANT)
    right = end_error(tweedie, target, process, geometric(process, 16, 2.0, 0.05))
    assert mistaken_error(target, process, 16) == pytest.approx(right, abs=1e-15)


def test_numbers_of_a_process_may_be_tensors():
    for made, same in (
        (MaskByState(torch.tensor([0.5, 1.0, 3.0])), MaskByState((0.5, 1.0, 3.0))),
        (RankOne(torch.tensor([0.5, 0.25, 0.25])), RankOne((0.5, 0.25, 0.25))),
        (DenseRate(torch.tensor(GENERATOR, dtype=torch.float64)), DenseRate(GENERATOR)),
    ):
        assert (str(made), hash(made)) == (str(same), hash(same))
        assert made == same
        target = dirichlet(1.0, 3, 1)
        nodes = solvers.grid("uniform", made, 2)
        assert end_error(solvers.make("tweedie"), target, made, nodes) < 1e-14
