"""Solvers of discrete states: their orders, exact solvers, counted evaluations, and names shared with other solvers.

Total variations of exact kernels are compared with those of an independent program on the same laws, to three digits.
"""

import logging
import math
from itertools import pairwise

import pytest
import torch
from discrete_problems import dirichlet, end_error, geometric, marginal

import scoresde
import solvers
from scoresde.cli import benchmarking
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete import Absorbing, Hybrid, MaskReplace, Uniform
from scoresde.paths.discrete.schedules import Constant
from solvers import InputError
from solvers.conformance.discrete import law_error, measured_order, p_value
from solvers.conformance.kernels import all_states, end_law, index_of, kernel, matrix_of
from solvers.conformance.processes import ABSORBING, BIRTH_DEATH, ExactDiscrete, SmallProcess, birth_death
from solvers.discrete.base import OneOf
from solvers.discrete.exact import unmasked
from solvers.discrete.rates import TauLeaping, moved
from solvers.types.process import DiscretePrediction

UNIFORM, MASKS = Uniform(3, schedule=Constant()), Absorbing(3, schedule=Constant())
HEARTBEAT = DiscreteEmpirical(torch.stack([((torch.arange(20) - k) % 5 == 0).long() for k in range(5)]))


def slopes(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


def errors_of(spec, process, concentration, start, end, counts, size=2):
    target, solver = dirichlet(concentration, 3, size), solvers.make(spec)
    return [end_error(solver, target, process, geometric(process, n, start, end)) for n in counts]


@pytest.mark.parametrize(
    ("spec", "order", "found"),
    [
        ("tau_euler", 1, (3.42e-3, 1.72e-3, 8.60e-4, 4.31e-4)),
        ("theta_rk2", 1, (4.89e-3, 2.48e-3, 1.25e-3, 6.26e-4)),
        ("tau_reject", 1, (8.51e-3, 4.46e-3, 2.28e-3, 1.15e-3)),
        ("euler_dfm", 1, (1.81e-3, 9.02e-4, 4.50e-4, 2.25e-4)),
        ("theta_trapezoidal", 2, (3.13e-4, 7.40e-5, 1.79e-5, 4.38e-6, 1.08e-6)),
    ],
)
def test_orders_on_tokens_that_are_drawn_again(spec, order, found):
    errors = errors_of(spec, UNIFORM, 20.0, 2.0, 0.1, (8, 16, 32, 64, 128)[: len(found)])
    assert errors == pytest.approx(found, rel=4e-3)
    assert all(order - 0.1 < slope < order + 0.15 for slope in slopes(errors)[1:])


@pytest.mark.parametrize(("spec", "order"), [("tweedie", 1), ("theta_rk2(theta=0.25)", 1), ("theta_trapezoidal", 2)])
def test_the_divergence_falls_with_twice_the_order(spec, order):
    target, found = dirichlet(20.0, 3, 2), []
    for steps in (16, 32):
        nodes = geometric(UNIFORM, steps, 2.0, 0.1)
        start, exact = (marginal(target, UNIFORM, node) for node in (nodes[0], nodes[-1]))
        law = end_law(solvers.make(spec), Diffusion(target.denoiser(UNIFORM)), start, 2, nodes)
        found.append(float((exact * (exact / law).log()).sum()))
    # the reference's band of order 2 is 1.9 to 2.15, and its divergence falls twice as fast
    assert all(2 * order - 0.2 < slope < 2 * order + 0.3 for slope in slopes(found))


def clamped_mass(concentration, steps):
    target = dirichlet(concentration, 3, 2)
    nodes = tuple(geometric(UNIFORM, steps, 2.0, 0.05))
    plan = scoresde.Plan(solvers.make("theta_trapezoidal"), None, nodes, UNIFORM)
    start = torch.multinomial(
        marginal(target, UNIFORM, nodes[0]), 2000, True, generator=torch.Generator().manual_seed(0)
    )
    return scoresde.sample(target.denoiser(UNIFORM), seeds=2000, plan=plan, x_init=all_states(3, 2)[start]).error


def test_the_order_falls_to_one_where_rates_are_clamped_and_the_clamped_mass_says_so():
    counts = (8, 16, 32, 64)
    clamped = errors_of("theta_trapezoidal", UNIFORM, 0.3, 2.0, 0.05, counts)
    signed = errors_of("theta_trapezoidal(clamp=False)", UNIFORM, 0.3, 2.0, 0.05, counts)
    assert clamped == pytest.approx([9.70e-3, 3.37e-3, 1.34e-3, 5.87e-4], rel=4e-3)
    assert signed == pytest.approx([5.86e-3, 1.40e-3, 3.42e-4, 8.44e-5], rel=4e-3)
    assert slopes(clamped)[-1] < 1.3
    assert slopes(signed)[-1] == pytest.approx(2.02, abs=0.05)
    weak, strong = clamped_mass(20.0, 16), clamped_mass(0.3, 16)
    assert float(weak.max()) == 0
    assert float(strong.min()) >= 0
    assert 1e-3 < float(strong.mean()) < 0.1  # of the size of the error, 3.4e-3: each part of it is a wrong probability


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("theta_trapezoidal(clock=rate)", (1.09e-2, 2.72e-3, 6.79e-4)),
        ("theta_trapezoidal(clock=rate, kernel=euler)", (2.77e-2, 1.54e-2, 8.15e-3)),
        ("theta_trapezoidal(clock=rate, kernel=reject)", (5.40e-2, 2.19e-2, 9.77e-3)),
    ],
)
def test_on_masks_the_kernel_of_the_first_stage_decides_the_order(spec, found):
    errors = errors_of(spec, MASKS, 20.0, 4.0, 0.1, (8, 16, 32))
    assert errors == pytest.approx(found, rel=4e-3)
    # at 32 steps; at 128 the two of order one are at .98 and 1.04
    assert slopes(errors)[-1] == pytest.approx(solvers.make(spec).order, abs=0.2)


@pytest.mark.parametrize(
    ("spec", "concentration", "size", "found"),
    [
        ("tweedie", 20.0, 2, (4.98e-3, 2.58e-3, 1.30e-3, 6.5e-4, 3.3e-4, 1.6e-4)),
        ("theta_trap_hazard", 20.0, 2, (8.46e-4, 1.53e-4, 2.02e-5, 2.56e-6, 3.2e-7, 4.0e-8)),
        ("tweedie", 5.0, 3, (3.7e-2, 2.0e-2, 1.0e-2, 5.1e-3)),
        ("theta_trap_hazard", 5.0, 3, (8.6e-3, 2.5e-3, 7.2e-4, 2.4e-4)),
        ("tweedie", 0.3, 2, (8.4e-2, None, None, None, None, 2.8e-3)),
        ("theta_trap_hazard", 0.3, 2, (6.8e-2, None, None, None, None, 2.1e-3)),
    ],
)
def test_the_exact_hazard_beats_the_posterior_at_equal_cost(spec, concentration, size, found):
    """At 4, 8, ... evaluations; where tokens depend on each other strongly, its order is 1."""
    known = {(4 << i) // solvers.make(spec).evaluations: error for i, error in enumerate(found) if error is not None}
    errors = errors_of(spec, MASKS, concentration, 4.0, 0.05, tuple(known), size)
    assert errors == pytest.approx(list(known.values()), rel=3e-2)  # two digits, as printed


def test_sums_of_moves_of_ordered_values_are_those_of_poisson_numbers():
    rates = torch.tensor([[0.4, 0.0, 1.3, 0.2], [0.0, 0.7, 0.0, 2.5]], dtype=torch.float64)
    x, duration = torch.tensor([1, 2]), 0.8
    found = TauLeaping().law(rates, x, duration)
    counts = torch.arange(40, dtype=torch.float64)
    for row in range(2):
        sums = {0: 1.0}
        for y in range(4):
            mean = duration * float(rates[row, y])
            chances = torch.exp(counts * math.log(max(mean, 1e-300)) - mean - torch.lgamma(counts + 1))
            step, after = y - int(x[row]), {}
            for total, chance in sums.items():
                for n in range(40):
                    after[total + n * step] = after.get(total + n * step, 0.0) + chance * float(chances[n])
            sums = after
        wanted = torch.zeros(4, dtype=torch.float64)
        for total, chance in sums.items():
            wanted[min(3, max(0, int(x[row]) + total))] += chance
        assert torch.allclose(found[row], wanted, atol=1e-14)
    # rates at which 12 moves are expected or a million give the same law, and more tokens than fit at once no other
    assert torch.allclose(TauLeaping().law(1e6 * rates, x, 1.0), TauLeaping().law(1e3 * rates, x, 1.0), atol=1e-14)
    many = TauLeaping().law(rates.repeat(9000, 1)[None], x.repeat(9000)[None], duration)
    assert torch.allclose(many[0].view(9000, 2, 4), found, atol=1e-15)


def test_leaps_of_ordered_values_have_order_one():
    problem = ExactDiscrete(SmallProcess("birth_death", birth_death(5), ordinal=True))
    errors = [
        law_error(solvers.make("tau_leaping"), problem, geometric(problem.path, n, 2.0, 0.1)) for n in (8, 16, 32)
    ]
    assert all(0.8 < slope < 1.1 for slope in slopes(errors))  # towards 1 from below
    order, _ = measured_order(solvers.make("theta_trapezoidal"), BIRTH_DEATH)
    assert order > 1.85
    with pytest.raises(InputError, match=r"^tau_leaping adds differences of tokens, which mean nothing on uniform"):
        scoresde.sample(HEARTBEAT.denoiser(Uniform(2)), seeds=2, solver="tau_leaping", steps=2)


def test_unmasking_one_token_after_the_other_is_exact():
    target, size = dirichlet(0.5, 3, 3), 3
    model, space = target.denoiser(MASKS), all_states(4, size)
    law = torch.zeros(len(space), dtype=torch.float64)
    law[-1] = 1.0  # all masked
    for t in (4.0, 1.0, 0.2):  # at any times
        x0 = model.predict(space, MASKS(t)).x0
        law = law @ matrix_of(OneOf(unmasked(x0, space, MASKS.mask), space), 4)
    exact = torch.zeros_like(law).index_put_((index_of(target.data, 4),), target.weights)
    assert float((law - exact).abs().sum()) < 1e-14


def total_variation(x, law, values):
    """The total variation between draws and a law, and its mean for draws of the law."""
    seen = torch.bincount(index_of(x, values), minlength=len(law)) / len(x)
    floor = 0.5 * math.sqrt(2 / math.pi) * float((law * (1 - law) / len(x)).sqrt().sum())
    return 0.5 * float((seen - law).abs().sum()), floor


def test_events_at_random_times_are_exact():
    target, count = dirichlet(20.0, 3, 2), 100_000
    nodes = tuple(geometric(UNIFORM, 6, 2.0, 0.1))
    start = torch.multinomial(
        marginal(target, UNIFORM, nodes[0]), count, True, generator=torch.Generator().manual_seed(0)
    )
    plan = scoresde.Plan(solvers.make("uniformization"), None, nodes, UNIFORM)
    found = scoresde.sample(target.denoiser(UNIFORM), seeds=count, plan=plan, x_init=all_states(3, 2)[start])
    error, floor = total_variation(found.x, marginal(target, UNIFORM, nodes[-1]), 3)
    assert error < 1.5 * floor
    # the largest rate of two tokens, from x that is not their value c to c and to the third value, is (1 / rho + 1) / 3
    # each; the number of candidates is Poisson, with a mean that 100,000 draws give to 1 %
    alphas = [(math.exp(-s.t), t.t - s.t) for t, s in pairwise(nodes)]
    wanted = sum(2 / 3 * ((1 + 2 * a) / (1 - a) + 1) * span for a, span in alphas)
    assert float(found.nfe_per_sample.double().mean()) == pytest.approx(wanted, rel=0.01)
    moves = found.accepted.double().mean()
    assert 0 < moves < 3
    assert torch.equal(found.accepted + found.rejected, found.nfe_per_sample)


def test_exact_solvers_reach_the_data_from_any_grid():
    """Tokens that depend on each other strongly. One in a thousand right solvers would fail each of four tests."""
    for process, solver in ((Uniform(2), "uniformization"), (Absorbing(2), "first_hitting")):
        target = dirichlet(0.3, 2, 3)
        for grid in (None, "uniform"):
            options = {"grid": grid, "steps": 3} if grid else {}
            found = scoresde.sample(target.denoiser(process), seeds=4000, solver=solver, **options)
            assert p_value(found.x, target.weights, 2) > 1e-3, (solver, grid)
            if solver == "first_hitting":
                assert found.nfe_per_sample.tolist() == [3] * 4000
    with pytest.raises(
        InputError, match=r"^first_hitting chooses its own steps, so steps=4 cannot be set; name a grid"
    ):
        scoresde.sample(target.denoiser(process), seeds=4, solver="first_hitting", steps=4)
    with pytest.raises(InputError, match=r"^first_hitting chooses its own steps, so nfe=4 cannot be set$"):
        scoresde.sample(target.denoiser(process), seeds=4, solver="first_hitting", nfe=4)


def test_candidates_come_as_often_as_the_tokens_of_a_state_may_move():
    """Masked tokens alone may move: at a rate up to a / (1 - a) at the end of a part, a being alpha, and so the number
    of candidates for each token is that rate times the integral of 1 - a over the clock of the part."""
    target, nodes = dirichlet(0.5, 2, 3), MASKS.nodes([4.0, 2.0, 0.9, 0.3])
    plan = scoresde.Plan(solvers.make("uniformization"), None, tuple(nodes), MASKS)
    start = torch.multinomial(marginal(target, MASKS, nodes[0]), 4000, True, generator=torch.Generator().manual_seed(0))
    found = scoresde.sample(target.denoiser(MASKS), seeds=4000, plan=plan, x_init=all_states(4, 3)[start])
    assert p_value(found.x, marginal(target, MASKS, nodes[-1]), 4) > 1e-3
    parts = [(4.0, 2.0), (2.0, 1.0), (1.0, 0.9), (0.9, 0.45), (0.45, 0.3)]
    masked = [t - s + math.exp(-t) - math.exp(-s) for t, s in parts]
    wanted = 3 * sum(share / math.expm1(s) for share, (_, s) in zip(masked, parts, strict=True))
    count = found.nfe_per_sample.double()
    assert float(count.mean()) == pytest.approx(wanted, abs=4 * float(count.std()) / math.sqrt(4000))


@pytest.mark.parametrize("process", [MaskReplace(3), Hybrid(3)], ids=str)
def test_events_are_exact_where_tokens_are_masked_and_replaced(process):
    target = dirichlet(0.3, 3, 2)
    found = scoresde.sample(target.denoiser(process), seeds=300, solver="uniformization")
    assert p_value(found.x, target.weights, 3) > 1e-3
    alone = scoresde.sample(target.denoiser(process), seeds=[7], solver="uniformization")
    assert torch.equal(alone.x[0], found.x[7])


class TooFast(type(HEARTBEAT.denoiser(UNIFORM))):
    """A model whose concrete score is a hundred times the right one."""

    def predict(self, x, node):
        found = super().predict(x, node)
        return DiscretePrediction(found.x0, 100 * self.process.ratios(found, x, node))


def test_rates_beyond_their_bound_are_logged(caplog):
    process = Uniform(2)
    with caplog.at_level(logging.WARNING):
        scoresde.sample(HEARTBEAT.denoiser(process), seeds=1, solver="uniformization(last=0.5)")
        assert not caplog.records
        scoresde.sample(TooFast(HEARTBEAT, process), seeds=1, solver="uniformization(last=0.5)")
    assert "exceeds its bound" in caplog.text


def corrected_error(steps, moves):
    """The error of ``tau_hold`` with moves of half a step, by a power of their kernel: they pass nothing on."""
    target, nodes = dirichlet(0.3, 3, 2), geometric(UNIFORM, steps, 2.0, 0.05)
    problem, space = Diffusion(target.denoiser(UNIFORM)), all_states(3, 2)
    solver, law = solvers.make("discrete_pc(predictor=tau_hold, size=0.5)"), marginal(target, UNIFORM, nodes[0])

    def move(x):
        x = yield from solver.corrected(problem, x, *step)
        return solvers.Step(x)

    for step in pairwise(nodes):
        law = law @ kernel(lambda x, step=step: solver.predictor.moves(problem, x, *step, None), space, 3)
        law = law @ torch.linalg.matrix_power(kernel(move, space, 3), moves)
    return 0.5 * float((law - marginal(target, UNIFORM, nodes[-1])).abs().sum())


def test_corrections_help_more_the_more_there_are_and_never_at_equal_cost():
    """The reference: one move halves the error of 8 steps; 72 evaluations are best spent on 72 steps without any."""
    errors = [corrected_error(8, moves) for moves in (0, 1, 2, 4, 8)]
    assert all(a > b for a, b in pairwise(errors))
    assert errors[1] == pytest.approx(0.5 * errors[0], rel=0.01)
    found = [corrected_error(72, 0), corrected_error(36, 1), errors[4]]
    assert found == pytest.approx([9.3e-3, 1.03e-2, 1.31e-2], rel=5e-3)  # digits as printed
    whole = errors_of("discrete_pc(predictor=tau_hold, size=0.5)", UNIFORM, 0.3, 2.0, 0.05, (8,))[0]
    assert whole == pytest.approx(errors[1], rel=1e-10)


def test_a_correction_leaves_the_law_of_its_time_as_it_is():
    """With a fine size, to first order: the error of one move of duration h is of order h^2."""
    target, node = dirichlet(1.0, 3, 2), UNIFORM(0.5)
    problem, space = Diffusion(target.denoiser(UNIFORM)), all_states(3, 2)
    law, gaps = marginal(target, UNIFORM, node), []
    for duration in (0.02, 0.01):
        solver = solvers.make("discrete_pc")

        def step(x, solver=solver, duration=duration):
            rates = solver._rates(problem, x, node)
            x = yield solvers.discrete.Product(moved(rates, x, duration), x)
            return solvers.Step(x)

        gaps.append(float((law @ kernel(step, space, 3) - law).abs().sum()))
    assert gaps[0] / gaps[1] == pytest.approx(4, abs=0.3)


def test_a_prediction_is_reused_while_a_sample_does_not_change():
    model = HEARTBEAT.denoiser(Absorbing(2))
    each = scoresde.sample(model, seeds=64, solver="tweedie", steps=100)
    cached = scoresde.sample(model, seeds=64, solver="mdlm_cache", steps=100)
    assert torch.equal(each.x, cached.x)
    assert each.nfe_per_sample.tolist() == [100] * 64
    assert int(cached.nfe_per_sample.max()) <= 20
    alone = scoresde.sample(model, seeds=[7], solver="mdlm_cache", steps=100)
    assert torch.equal(alone.x[0], cached.x[7])
    assert int(alone.nfe) == int(cached.nfe_per_sample[7])
    with pytest.raises(InputError, match=r"^mdlm_cache needs a model without time on a process with a mask"):
        scoresde.sample(HEARTBEAT.denoiser(Uniform(2)), seeds=2, solver="mdlm_cache", steps=4)


@pytest.mark.parametrize("spec", ["tau_hold", "tau_euler", "tau_reject", "theta_trapezoidal", "theta_rk2"])
def test_a_step_from_pure_noise_draws_from_the_posterior(spec):
    """There the clock of the linear schedule is infinite, and rates have no duration; one token is then exact."""
    process, target = Uniform(3), dirichlet(1.0, 3, 1)
    assert math.isinf(process(1.0).clock)
    assert end_error(solvers.make(spec), target, process, process.nodes([1.0, 0.4])) < 1e-14


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("euler", "tau_euler"),
        ("Ancestral", "tweedie"),
        ("heun", "theta_trapezoidal"),
        ("trapezoidal(theta=0.4)", "theta_trapezoidal(theta=0.4)"),
        ("pc", "discrete_pc"),
        ("pc(predictor=euler, corrector_steps=2)", "discrete_pc(predictor=tau_euler, corrector_steps=2)"),
        ("tau_hold(clock=rate)", "tau_hold(clock=rate)"),
    ],
)
def test_names_that_the_spaces_share_mean_the_solver_of_the_model(given, meant):
    model = HEARTBEAT.denoiser(Uniform(2))
    assert str(scoresde.plan(model, given, steps=4).solver) == meant
    benchmarking._check_commas([given], "discrete")  # as a benchmark reads them


def test_names_of_the_other_space_stay_as_they_are():
    gaussian = scoresde.targets.Gaussian(torch.zeros(2), 1.0).denoiser(scoresde.VP())
    assert [str(scoresde.plan(gaussian, name, steps=4).solver) for name in ("euler", "pc", "heun", "ancestral")] == [
        "euler", "pc", "heun", "ddpm"
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"^no solver 'trapezoidal'"):
        scoresde.plan(gaussian, "trapezoidal", steps=4)
    with pytest.raises(InputError, match=r"^discrete_pc needs a predictor that draws from laws, such as tweedie"):
        solvers.make("discrete_pc(predictor=first_hitting)")


@pytest.mark.parametrize(
    ("spec", "process", "message"),
    [
        (
            "first_hitting",
            Uniform(2),
            "^first_hitting unmasks tokens, which uniform.* does not mask: use uniformization",
        ),
        ("theta_trap_hazard", Uniform(2), "^theta_trap_hazard unmasks tokens, which .* use theta_trapezoidal"),
        ("tau_hold(clock=rate)", Absorbing(2), None),  # an infinite clock at the start is pure noise
    ],
)
def test_processes_on_which_a_solver_has_no_meaning(spec, process, message):
    model = HEARTBEAT.denoiser(process)
    if message is None:
        assert bool((scoresde.sample(model, seeds=4, solver=spec, steps=4).x < 2).all())
    else:
        with pytest.raises(InputError, match=message):
            scoresde.sample(model, seeds=4, solver=spec)


class NoLaw(type(HEARTBEAT.denoiser(UNIFORM))):
    """A model whose laws sum to two for one of the samples."""

    def predict(self, x, node):
        found = super().predict(x, node).x0
        found[2] *= 2
        return DiscretePrediction(found)


def test_laws_that_are_none_are_an_error():
    with pytest.raises(InputError, match=r"^the model's law of sample 2 at t=1 is none"):
        scoresde.sample(NoLaw(HEARTBEAT, Uniform(2)), seeds=4, steps=4)


def test_masks_of_the_small_process_agree_with_the_process_itself():
    """The process of the checks is defined by matrices, the one of models by formulas."""
    other = Absorbing(2, schedule=Constant())
    problem = ExactDiscrete(ABSORBING)
    target = DiscreteEmpirical(problem.points, problem.law)
    for t in (0.1, 1.0, 3.0):
        assert ABSORBING.reading(ABSORBING(t)) == pytest.approx(other.reading(other(t)), rel=1e-12)
        assert torch.allclose(problem.marginal(ABSORBING(t)), marginal(target, other, other(t)), atol=1e-15)
