"""The prior of a path against the scale of the data: a start that is too wide gives samples that are too wide."""

import math
import warnings

import pytest
import torch

import scoresde
from scoresde.models.faults import data_faults, prior_faults

pytestmark = pytest.mark.quick

SMALL = "ve(sigma_min=1e-05, sigma_max=0.08)"  # a path scaled like data of deviation 0.001


def gaussian(deviation, d=2):
    return scoresde.targets.Gaussian(torch.zeros(d, dtype=torch.float64), deviation**2)


@pytest.mark.parametrize(
    ("path", "deviation", "factor"),
    [
        (SMALL, 0.001, 12.5),
        ("ve(sigma_max=2)", 0.5, 1.08),
        ("ve(sigma_max=2)", 5.0, 0.415),
        ("vp(beta_max=5)", 0.2, 1.04),
    ],
)
def test_the_factor_of_the_start_is_that_of_the_samples_and_is_told(path, deviation, factor):
    """For Gaussian data the ODE is linear: with the same noise, its result is off by the factor of its start."""
    sde = scoresde.make_sde(path)
    (fault,) = prior_faults(sde, deviation)
    told = float(fault.text.partition("samples start ")[2].split(" ")[0])
    assert told == pytest.approx(factor, rel=0.01)
    denoiser = gaussian(deviation).denoiser(sde)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scoresde.sample(denoiser, (2,), 2000, "dpmpp_2m", steps=60, dtype="float64").x
    # 4000 numbers have a deviation exact to 1.1 %; 60 steps err by less
    assert float(found.std()) / deviation == pytest.approx(told, rel=0.04)


@pytest.mark.parametrize("path", ["vp", "subvp", "ve", "edm", "cosine", "rectified_flow"])
def test_the_default_paths_fit_all_data_of_order_one(path):
    for deviation in (1e-3, 0.05, 0.5, 1.0, 2.0):
        assert prior_faults(scoresde.make_sde(path), deviation) == []


def test_what_passes_unnoticed_costs_little():
    """Just below the limit, the divergence of the starting law from the prior is at most 4.1e-4 nats per dimension."""
    sde = scoresde.make_sde("ve(sigma_max=4.5)")
    for deviation in (0.05, 0.5, 1.0, 1.3):
        if not prior_faults(sde, deviation):
            ratio = (deviation**2 + 4.5**2) / (1 + 4.5**2)
            assert 0.5 * (ratio - 1 - math.log(ratio)) < 4.1e-4
    assert prior_faults(sde, 0.05) != []  # 1.024 times too wide


def test_training_data_are_compared_with_the_prior():
    x = 0.001 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    model = scoresde.Denoiser(lambda x, label: x, SMALL)
    assert any("samples start 12.5 times as wide" in fault.text for fault in data_faults(model, x))
    assert not any(
        fault.what == "prior" for fault in data_faults(scoresde.Denoiser(lambda x, label: x, "edm"), 500 * x)
    )


@pytest.mark.parametrize("call", ["sample", "log_prob"])
def test_a_stated_deviation_is_compared_with_the_prior(call):
    def network(x, label):
        return 0.1 * x

    def run(denoiser, **more):
        if call == "sample":
            return scoresde.sample(denoiser, (2,), 4, steps=4, **more)
        return scoresde.log_prob(denoiser, 0.001 * torch.ones(4, 2), steps=4)

    with pytest.warns(
        UserWarning, match=r"data of deviation 0.001 have 0.08 at t_max: samples start 12.5 times as wide"
    ):
        run(scoresde.Denoiser(network, SMALL, predicts="edm", sigma_data=0.001))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(scoresde.Denoiser(network, "edm", predicts="edm", sigma_data=0.5))
        if call == "sample":  # a given start is not the prior
            x = 0.08 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
            run(scoresde.Denoiser(network, SMALL, predicts="edm", sigma_data=0.001), x_init=x)
