"""Where the registry says that two names are one method, their numbers agree: every coefficient of the final state and
of every state that the model is shown, and the nodes at which it is asked."""

import pytest
from linear_response import distance

import solvers
from solvers.analytic import EDM, RECTIFIED_FLOW, SUB_VP, VP


def claims():
    """(left, right) specs: ``equals`` holds the other side, or "left = right" where this side has options."""
    for name in solvers.names():
        for claim in solvers.info(name).equals:
            left, sign, right = claim.rpartition(" = ")
            yield (left if sign else name), right


@pytest.mark.parametrize("path", [VP, SUB_VP, EDM, RECTIFIED_FLOW], ids=str)
@pytest.mark.parametrize(("left", "right"), list(claims()), ids=lambda spec: spec)
def test_methods_that_are_said_to_be_one_have_the_same_numbers(left, right, path):
    # logsnr ends at sigma > 0; uneven steps, so that weights for even ones would show
    nodes = solvers.grid("quadratic", path, 7)
    assert distance(solvers.make(left), solvers.make(right), nodes, path) < 1e-12


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
    assert len(list(claims())) >= 20
