"""What it costs to draw tokens independently, and the grids on which that costs least, against closed forms."""

from itertools import combinations, pairwise

import pytest
import torch
from discrete_problems import dirichlet, end_error, geometric, marginal

import scoresde
import solvers
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete.schedules import Constant
from solvers import InputError
from solvers.conformance.kernels import all_states, kernel
from solvers.tuning import bound_costs, decoding_costs, jump_your_steps, tightest_grid

TARGET = dirichlet(0.3, 3, 2)
SLOW = scoresde.Absorbing(3, schedule=Constant())


def total(process, nodes, law=TARGET.weights):
    costs = decoding_costs(process, law, nodes)
    return sum(costs[i, i + 1] for i in range(len(nodes) - 1))


def information():
    """The mutual information of the two tokens of the target, in nats."""
    joint = TARGET.weights.view(3, 3)
    return float((joint * torch.log(joint / joint.sum(1, keepdim=True) / joint.sum(0))).sum())


@pytest.mark.parametrize("steps", [1, 4, 8, 32])
def test_two_masked_tokens_cost_their_information_over_the_number_of_steps(steps):
    # both are filled in one step with the probability 1 / steps
    nodes = solvers.grid("uniform", scoresde.Absorbing(3), steps)
    assert total(scoresde.Absorbing(3), nodes) == pytest.approx(information() / steps, rel=1e-10)


@pytest.mark.parametrize("process", [scoresde.Uniform(3), SLOW, scoresde.MaskReplace(3)], ids=str)
def test_a_cost_is_the_divergence_of_the_true_step_from_tweedies(process):
    t, s = process.nodes([0.7 * process.t_max, 0.2 * process.t_max])
    problem, space = Diffusion(TARGET.denoiser(process)), all_states(process.values, 2)
    drawn = kernel(lambda x: solvers.make("tweedie").moves(problem, x, t, s, None), space, process.values)
    later, earlier = marginal(TARGET, process, t), marginal(TARGET, process, s)
    forward = torch.ones(len(space), len(space), dtype=torch.float64)  # of x_t given x_s
    for i in range(2):
        rows = process.transition(s, t, space).rows(space)[:, i]
        forward *= rows[:, space[:, i]]
    joint = (earlier[:, None] * forward).T  # (x_t, x_s)
    wanted = float(torch.special.xlogy(joint, joint).sum())
    wanted -= float(torch.special.xlogy(joint, later[:, None] * drawn).sum())
    assert decoding_costs(process, TARGET.weights, [t, s])[0, 1] == pytest.approx(wanted, abs=1e-13)


def test_independent_tokens_cost_nothing():
    law = torch.kron(torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1]))
    nodes = solvers.grid("uniform", scoresde.Uniform(3), 3)
    assert total(scoresde.Uniform(3), nodes, law) == pytest.approx(0, abs=1e-7)  # a law of float32


def test_the_best_grid_of_two_masked_tokens_fills_equal_shares():
    # sum_k (alpha_k+1 - alpha_k)^2 is least for equal steps of alpha = 1 - t
    found = jump_your_steps(scoresde.Absorbing(3), TARGET.weights, 4, candidates=16)
    assert found.times == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_the_best_grid_has_the_least_cost_and_a_smaller_error():
    found = jump_your_steps(SLOW, TARGET.weights, 8, t_min=0.05, t_max=4.0, candidates=48)
    nodes = solvers.grid(found, SLOW, 8)
    others = [geometric(SLOW, 8, 4.0, 0.05), solvers.grid("uniform", SLOW, 8, t_min=0.05, t_max=4.0)]
    assert all(total(SLOW, nodes) < total(SLOW, other) for other in others)
    errors = [end_error(solvers.make("tweedie"), TARGET, SLOW, places) for places in (nodes, *others)]
    # measured: 0.0354, 0.0437 and 0.0712
    assert errors[0] < 0.85 * errors[1] < errors[2]
    assert all(a > b for a, b in pairwise(found.times))


@pytest.mark.parametrize("process", [scoresde.Absorbing(3), scoresde.Uniform(3), scoresde.MaskReplace(3)], ids=str)
def test_estimated_bounds_differ_from_exact_costs_by_what_all_grids_have(process):
    """A node that is left out changes both by the same number. The draws have an error of about 1e-3 nats."""
    nodes = process.nodes([1.0, 0.7, 0.4, 0.15, 0.0])
    data = TARGET.sample(40_000, torch.Generator().manual_seed(0))
    exact, found = decoding_costs(process, TARGET.weights, nodes), bound_costs(TARGET.denoiser(process), data, nodes)
    for i, j, k in combinations(range(5), 3):
        assert found[i, k] - found[i, j] - found[j, k] == pytest.approx(
            exact[i, k] - exact[i, j] - exact[j, k], abs=4e-3
        )
        assert found[i, k] > exact[i, k] + 0.01  # the information about the data


@pytest.mark.parametrize("process", [scoresde.Absorbing(3), scoresde.Uniform(3)], ids=str)
def test_the_tightest_bound_has_about_the_least_cost(process):
    data = TARGET.sample(20_000, torch.Generator().manual_seed(1))
    found = tightest_grid(TARGET.denoiser(process), data, 4, candidates=8)
    best = jump_your_steps(process, TARGET.weights, 4, candidates=8)
    assert total(process, solvers.grid(found, process, 4)) < 1.1 * total(process, solvers.grid(best, process, 4))


def test_the_grid_of_a_network_of_many_tokens_makes_more_valid_samples():
    """Sequences of 20 bits, of which five are possible: a few of the first tokens decide which."""
    beats = DiscreteEmpirical(torch.stack([((torch.arange(20) - k) % 5 == 0).long() for k in range(5)]))
    process = scoresde.Absorbing(2)
    model = scoresde.DiscreteDenoiser(
        lambda x: beats.predict(x, process, process(0.5)).x0[..., :2].log(), process, time=False, shape=(20,)
    )
    found = tightest_grid(model, beats.data.repeat(40, 1), 8, candidates=16)
    shares = []
    for grid in ("uniform", found):
        drawn = scoresde.sample(model, seeds=1000, solver="tweedie", grid=grid, steps=8)
        shares.append(float(torch.isfinite(beats.log_prob(drawn.x)).double().mean()))
    # measured: 0.60 and 0.78, with standard errors of 0.015
    assert shares[1] > shares[0] + 0.1


def test_models_without_a_bound_are_refused():
    process = scoresde.Absorbing(3)
    model, data = TARGET.denoiser(process), TARGET.data
    with pytest.raises(InputError, match=r"^the data must be whole numbers \(B, \*\) from 0 to 2"):
        tightest_grid(model, data + 1, 4)
    with pytest.raises(InputError, match=r"^the data must be whole numbers"):
        tightest_grid(model, data.double(), 4)
    with pytest.raises(InputError, match=r"^bounds of steps are those of discrete states, got a model on"):
        tightest_grid(scoresde.targets.Gaussian(torch.zeros(2), 1.0).denoiser(scoresde.VP()), data, 4)
    sure = scoresde.DiscreteDenoiser(
        lambda x: torch.tensor([0.0, -torch.inf, -torch.inf]).expand(*x.shape, 3), process, time=False
    )
    with pytest.raises(InputError, match=r"^every grid of these times has an infinite bound"):
        tightest_grid(sure, data, 4, candidates=8)


@pytest.mark.parametrize(
    ("law", "given", "message"),
    [
        (torch.ones(8), {}, r"^the law must have 3\^d numbers for d tokens of absorbing.*, got 8"),
        (-torch.ones(9), {}, "^the law must be numbers of at least 0, not all of them 0"),
        (torch.ones(3**7), {}, "^7 tokens of 4 values have more than 4096 states: too many to list"),
        (torch.ones(9), {"candidates": 2}, "^candidates=2 are too few for 4 steps"),
    ],
)
def test_bad_laws_are_refused(law, given, message):
    with pytest.raises(InputError, match=message):
        jump_your_steps(scoresde.Absorbing(3), law, 4, **given)
