"""Where the registry says that two names are one method, their programs are equal: every coefficient of the final state
and of every state that the model is shown, the nodes at which it is asked, the intervals whose noise is drawn."""

import pytest
import torch
from linear_response import distance

import solvers
from scoresde.show.solver_cards import equalities
from solvers.conformance.problems import EDM, RECTIFIED_FLOW, SUB_VP, VP, Mixture

pytestmark = pytest.mark.quick

CLAIMS = equalities()
LINEAR = [pair for pair in CLAIMS if all(solvers.make(spec).linear for spec in pair)]


@pytest.mark.parametrize("path", [VP, SUB_VP, EDM, RECTIFIED_FLOW], ids=str)
@pytest.mark.parametrize(("left", "right"), LINEAR, ids=lambda spec: spec)
def test_methods_that_are_said_to_be_one_have_equal_programs(left, right, path):
    # logsnr ends at sigma > 0; uneven steps, so that weights for even ones would show
    nodes = solvers.grid("quadratic", path, 7)
    # from other outputs too: what a network puts out changes the numbers, and not the method
    one, other = solvers.trace(left, nodes, path, "x0"), solvers.trace(right, nodes, path, "v")
    assert solvers.equal(one, other)


@pytest.mark.parametrize(("left", "right"), [pair for pair in CLAIMS if pair not in LINEAR])
def test_methods_without_programs_give_equal_samples(left, right):
    nodes = solvers.grid("uniform", VP, 2)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(5, 1)
    one, other = (solvers.solve(solvers.make(spec), Mixture(VP), x, nodes) for spec in (left, right))
    assert torch.equal(one.x, other.x)
    assert one.nfe.tolist() == other.nfe.tolist()


# one option away from an equivalence: the comparison above can fail
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("dpmpp_2m", "dpmpp_2m(variant=heun)"),
        ("dpmpp_3m(start=lower)", "dpmpp_3m"),
        ("dpmpp_3m(start=lower)", "dpmpp_3m(variant=released, start=lower)"),
        ("ipndm", "ipndm_v"),
        ("uni_pc(order=2)", "uni_pc_bh2(order=2)"),
        ("deis(variant=tab)", "deis(variant=rhoab)"),
        ("ddim(eta=0.9)", "ddpm"),
        ("er_sde(noise_scale=power_1_5, order=1)", "ddpm"),
    ],
)
def test_methods_that_differ_are_told_apart(left, right):
    nodes = solvers.grid("quadratic", VP, 7)
    assert distance(solvers.make(left), solvers.make(right), nodes, VP) > 1e-4


def test_names_that_share_a_method_are_many():
    assert len(LINEAR) >= 20
