"""What the variance of the reverse chain does to Gaussian data: the sixth of the equalities of test_ddpm_and_sde.py."""

from itertools import pairwise

import pytest
from test_ddpm_and_sde import VP, linear, power, scaled_betas

import solvers
from scoresde.paths.chains import DDPMChain
from solvers import Node
from solvers.one_step.ancestral import DDPM, forward_kernel, posterior

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("variance", "solver", "errors"),
    [
        (0.25, "ddpm(variance=beta)", (1.6e-1, 3.5e-2, 3.4e-3)),
        (0.25, "ddpm", (-3.5e-1, -1.2e-1, -1.6e-2)),
        (0.25, "reverse_diffusion", (2.9e-1, 6.2e-2, 5.9e-3)),
    ],
)
def test_the_variance_that_a_chain_leaves(variance, solver, errors):
    # the last step adds noise here as all others do, to the data's variance and not to that at sigma = 0
    for count, error in zip((25, 100, 1000), errors, strict=True):
        assert spread_of(DDPMChain(scaled_betas(count)), variance, solver) / variance - 1 == pytest.approx(
            error, rel=0.04
        )


def spread_of(chain, variance, solver):
    """The variance at the data of a chain that draws noise in its last step too."""
    nodes = (*chain.nodes[::-1], Node(0.0, 1.0, 0.0))
    total = 1.0
    if solver == "reverse_diffusion":
        for t, s in pairwise(nodes):
            alpha_ts, var = forward_kernel(t, s)
            scale = 2 - alpha_ts
            total = (scale - var / (t.alpha**2 * variance + t.sigma**2)) ** 2 * total + var
        return total
    kernel = solvers.make(solver)
    for t, s in pairwise(nodes):
        q = posterior(t, s)
        gain = t.alpha * variance / (t.alpha**2 * variance + t.sigma**2)  # x0 predicted = gain x
        total = (q.on_x + q.on_x0 * gain) ** 2 * total + kernel.variance_of(t, s)
    return total


@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_the_optimal_variance_reproduces_gaussian_data(variance):
    # what is left is the terminal mismatch, alpha_T^2 |variance - 1| carried back, of which betas this large leave less
    for count in (25, 100, 1000):
        chain = DDPMChain(scaled_betas(count))
        kernel = DDPM(variance="optimal", eps_power=power(chain, variance))
        assert abs(spread_of(chain, variance, kernel) / variance - 1) < 1e-9
        # and between nodes as a program
        program = solvers.trace(kernel, chain.nodes[::-1])
        exact = chain.node(0).alpha ** 2 * variance + chain.node(0).sigma ** 2
        assert linear(program, variance) == pytest.approx(exact, rel=1e-9)
    if variance == 1:
        assert spread_of(VP.chain(25), 1.0, "ddpm(variance=beta)") == pytest.approx(1, abs=1e-14)


def test_the_optimal_variance_lies_between_its_bounds():
    chain = VP.chain(50)
    for i in range(1, 50):
        t, s = chain.node(i), chain.node(i - 1)
        low, high = posterior(t, s).variance, chain.betas[i] / (1 - chain.betas[i])
        found = [
            DDPM(variance="optimal", eps_power=((t.lam - 1, m), (t.lam + 1, m))).variance_of(t, s)
            for m in (1.0, t.sigma**2, 0.0)  # a point mass; N(0, I), Gamma = 1; nothing known
        ]
        assert found[0] == pytest.approx(low, rel=1e-12)
        assert found[1] == pytest.approx(chain.betas[i], rel=1e-9)
        assert low < found[1] < found[2]
        assert found[2] == pytest.approx(high, rel=1e-9)
