"""Small problems of discrete states whose laws are known exactly at every node."""

from itertools import pairwise

import numpy as np
import torch

from scoresde.bounds.discrete_terms import clock_rate, noisy_law, prior_term, score_entropy, step_term
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


def expected(process, x0, node, value):
    """The exact expectations (n,) of ``value(x0 (m, d), x (m, d))`` over the noisy states of clean states (n, d)."""
    space, law = all_states(process.values, x0.shape[1]), noisy_law(process, x0, node)
    weights = torch.ones(len(x0), len(space), dtype=torch.float64)
    for i in range(x0.shape[1]):
        weights = weights * law[:, i, space[:, i]]
    row, place = weights.nonzero(as_tuple=True)
    found = weights[row, place] * value(x0[row], space[place])
    return torch.zeros(len(x0), dtype=torch.float64).index_add_(0, row, found)


def chain_terms(model, x0, nodes):
    """The exact terms (n,) of a chain's bound along ``nodes``, from noise to data: the prior's, those of the steps."""
    process = model.process
    found = [prior_term(process, x0)]
    for t, s in pairwise(nodes):
        found.append(
            expected(process, x0, t, lambda c, x, t=t, s=s: step_term(process, model.predict(x, t), c, x, t, s))
        )
    return found


def integral(model, x0, start=0.0, points=48):
    """The integrals (n,) of the score entropy of clean states (n, d) over the clock of a process, by Gauss's rule.

    Times are y^4, because the integrand may have a logarithmic singularity at t = 0.
    """
    process, total = model.process, torch.zeros(len(x0), dtype=torch.float64)
    low, high = start**0.25, process.t_max**0.25
    for node, weight in zip(*np.polynomial.legendre.leggauss(points), strict=True):
        y = 0.5 * (low + high) + 0.5 * (high - low) * float(node)
        at, rate = process(y**4), float(clock_rate(process, torch.tensor([y**4], dtype=torch.float64)))
        found = expected(process, x0, at, lambda c, x, at=at: score_entropy(process, model.predict(x, at), c, x, at))
        total += 0.5 * (high - low) * float(weight) * 4 * y**3 * rate * found
    return total
