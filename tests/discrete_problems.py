"""Small problems of discrete states whose laws are known exactly at every node."""

import numpy as np
import torch

from scoresde.models.discrete import DiscreteEmpirical
from scoresde.models.problem import Diffusion
from solvers.conformance.kernels import all_states, end_law


def dirichlet(concentration, states, size, seed=1):
    """A target on all states of ``size`` tokens, with a random law: the larger the concentration, the less dependent
    are the tokens."""
    points = all_states(states, size)
    law = np.random.default_rng(seed).dirichlet([concentration] * len(points))
    return DiscreteEmpirical(points, torch.from_numpy(law))


def marginal(target, process, node):
    """The law (N,) of the noisy state at a node, over ``all_states`` of the process."""
    space = all_states(process.values, target.data.shape[1])
    return target.log_prob_at(space, process, node).exp()


def end_error(solver, target, process, nodes):
    """The total variation between the law of a solve from the exact law of its first node and the exact one at its
    last, by the exact kernels of the steps."""
    problem, size = Diffusion(target.denoiser(process)), target.data.shape[1]
    start = marginal(target, process, nodes[0])
    found = end_law(solver, problem, start, size, nodes)
    return 0.5 * float((found - marginal(target, process, nodes[-1])).abs().sum())


def geometric(process, steps, start, end):
    """Nodes at geometrically spaced times."""
    return process.nodes(np.geomspace(start, end, steps + 1).tolist())
