"""What it costs to draw tokens independently, and the grids on which that costs least, against closed forms."""

from itertools import pairwise

import pytest
import torch
from discrete_problems import dirichlet, end_error, geometric, marginal

import scoresde
import solvers
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete.schedules import Constant
from solvers import InputError
from solvers.conformance.kernels import all_states, kernel
from solvers.tuning import decoding_costs, jump_your_steps

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
