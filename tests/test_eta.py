"""One meaning of eta: each convention's number gives the noise that it says, and converting back returns it."""

import math

import pytest
import torch

import solvers
from solvers import InputError, Node
from solvers.conformance.convergence import terminal_variance
from solvers.conformance.problems import VP, GaussianData
from solvers.foreign.eta import CONVENTIONS, convert_eta

pytestmark = pytest.mark.quick

T, S = Node(0.0, 0.6, 0.8), Node(0.0, 0.9, 0.3)
H = S.lam - T.lam
VALUES = [0.0, 0.1, 0.3, 0.7, 1.0, 1.02]


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("nodes", [(None, None), (T, S)], ids=["limit", "step"])
def test_there_and_back(name, nodes):
    for value in VALUES:
        eta = convert_eta(value, name, "sde", *nodes)
        assert convert_eta(eta, "sde", name, *nodes) == pytest.approx(value, rel=1e-13, abs=1e-15)


# the noise's variance over sigma_s^2 in each convention, as its users write it
VARIANCES = {
    "sde": lambda v: -math.expm1(-2 * v**2 * H),
    "ddim": lambda v: v**2 * (1 - (S.ratio / T.ratio) ** 2),
    "dpmpp_2m_sde": lambda v: -math.expm1(-2 * v * H),
    "sa_solver": lambda v: -math.expm1(-2 * v**2 * H),
    "azula_ddim": lambda v: v * (1 - (S.ratio / T.ratio) ** 2),
    "azula_ito": lambda v: -math.expm1(-2 * v**2 * H),
}


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_the_converted_number_asks_for_the_same_noise(source, target):
    for value in VALUES[:-1]:
        found = VARIANCES[target](convert_eta(value, source, target, T, S))
        assert found == pytest.approx(VARIANCES[source](value), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_the_limit_is_that_of_short_steps(source, target):
    near = Node(0.0, 1.0, T.ratio * math.exp(-1e-9))
    for value in VALUES:
        exact = convert_eta(value, source, target, Node(0.0, 1.0, T.ratio), near)
        assert exact == pytest.approx(convert_eta(value, source, target), rel=1e-7, abs=1e-12)


def test_zero_and_one_mean_the_same_everywhere():
    for source in CONVENTIONS:
        for target in CONVENTIONS:
            for value in (0.0, 1.0):
                assert convert_eta(value, source, target, T, S) == pytest.approx(value, rel=1e-13, abs=0)


def test_ddims_step_is_the_sdes_at_the_converted_eta():
    """With x0 constant over the step, y_s = e^{-(1 + eta^2) h} y + (...) x0 + ratio_s sqrt(1 - e^{-2 eta^2 h}) z."""
    ddim = 0.6
    eta = convert_eta(ddim, "ddim", "sde", T, S)
    x, x0, z = (torch.tensor([[v]], dtype=torch.float64) for v in (0.8, 0.3, -1.1))

    class Constant:
        def predict(self, x, node):
            return solvers.Prediction(x0, (x - node.alpha * x0) / node.sigma)

    moved = solvers.make(f"ddim(eta={ddim})").step(Constant(), x, T, S, None, lambda t, s: z).x / S.alpha
    keep = math.exp(-(1 + eta**2) * H)
    exact = keep * x / T.alpha + (1 - keep) * x0 + S.ratio * math.sqrt(-math.expm1(-2 * eta**2 * H)) * z
    assert torch.allclose(moved, exact, rtol=1e-13, atol=0)


def test_the_limit_has_the_marginals_of_the_path():
    """ddim at any eta reaches the data's variance on a fine grid: all members of the family have the same marginals."""
    nodes, problem = solvers.grid("logsnr", VP, 800), GaussianData(VP)
    for eta in (0.3, 0.7):
        variance = terminal_variance(solvers.make(f"ddim(eta={eta})"), problem, nodes)
        assert variance == pytest.approx(problem.variance(nodes[-1]), rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, "dpmpp_2m_sd"), r"^no eta convention 'dpmpp_2m_sd'; did you mean .*dpmpp_2m_sde"),
        ((0.5, "sde", "azula"), r"^no eta convention 'azula'; "),
        ((-0.1, "sde"), r"^eta must be a number of at least 0, got -0.1$"),
        ((math.nan, "sde"), r"^eta must be a number of at least 0, got nan$"),
        ((True, "sde"), r"^eta must be a number of at least 0, got True$"),
        ((1.0, "sde", "ddim", T), r"^give both nodes of the step, or neither$"),
        ((1.0, "sde", "ddim", S, T), r"^a step from noise to data at sigma > 0 is needed, got one of -1.38629 in lam$"),
        ((1.0, "sde", "ddim", T, T), r"^a step from noise to data at sigma > 0 is needed, got one of 0 in lam$"),
        ((1.0, "sde", "ddim", T, Node(0.0, 1.0, 0.0)), r"^a step from noise to data at sigma > 0 is needed"),
        ((1.5, "ddim", "sde", T, S), r"^a per-step eta of 1.5 asks for more noise than a step of 1.38629 in lam"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        convert_eta(*arguments)


def test_other_names():
    assert convert_eta(0.4, "tau") == convert_eta(0.4, "SA-Solver") == 0.4
    assert convert_eta(0.4, "euler_ancestral", "sde", T, S) == convert_eta(0.4, "ddim", "sde", T, S)
