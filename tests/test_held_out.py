"""The error of a model at each noise level, against closed forms."""

import math

import pytest
import torch

import scoresde
from scoresde import InputError
from scoresde.data.rows import Batch
from scoresde.models.model import as_model
from scoresde.runs.held_out import error_by_noise

pytestmark = pytest.mark.quick

PATHS = ("vp", "subvp", "ve", "edm", "cosine", "rectified_flow")


def gaussian(count, deviation=0.5, size=3):
    x = torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * deviation
    return (x - x.mean()) / x.std(correction=0) * deviation  # exactly this deviation


@pytest.mark.parametrize("path", PATHS)
def test_the_exact_model_of_gaussian_data_has_the_closed_form_error(path):
    """It is the predictor that knows only mean and variance: E|eps - eps_model|^2 = 1 / (1 + r^2 / s^2)."""
    x = gaussian(2000)
    model = as_model(
        scoresde.targets.Gaussian(torch.zeros(3, dtype=torch.float64), 0.25).denoiser(scoresde.make_sde(path))
    )
    found = error_by_noise(model, Batch(x), seed=3, bins=8)
    for error, stderr, trivial, level in zip(found.error, found.stderr, found.trivial, found.log_snr, strict=True):
        assert trivial == pytest.approx(1 / (1 + math.exp(-level) / 0.25), rel=1e-9)
        assert abs(error - trivial) < 5 * stderr  # a deviation of five standard errors has probability 6e-7
        # the standard error of a mean of 6000 squares of normal numbers is about sqrt(2 / 6000) of it
        assert stderr == pytest.approx(trivial * math.sqrt(2 / 6000), rel=0.15)
    assert found.log_snr == sorted(found.log_snr)
    ends = model.sde(model.sde.t_max).lam, model.sde(model.sde.t_min).lam
    width = (ends[1] - ends[0]) / 8
    assert found.log_snr[0] == pytest.approx(2 * (ends[0] + width / 2))
    assert found.log_snr[-1] == pytest.approx(2 * (ends[1] - width / 2))


def test_a_model_of_a_mixture_is_better_than_mean_and_variance_where_the_parts_separate():
    """Of two narrow parts at -1 and 1, almost all variance is known once the noise is below their distance."""
    target = scoresde.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.0025)
    x = target.sample(500, torch.Generator().manual_seed(1))
    found = error_by_noise(as_model(target.denoiser(scoresde.VP())), Batch(x), seed=0, bins=20)
    ratios = {level: e / t for level, e, t in zip(found.log_snr, found.error, found.trivial, strict=True)}
    # at lambda = 4 the noise is 0.14: the parts are known, and only the variance within each, 1/400 of the whole, is
    # not, of which the state's noise 0.018 leaves 0.0025 * 0.018 / (0.0205): a share of 0.122 of mean and variance's
    level = min(ratios, key=lambda value: abs(value - 4))
    noise = math.exp(-level)
    expected = (0.0025 * noise / (0.0025 + noise)) / (1.0025 * noise / (1.0025 + noise))
    assert ratios[level] == pytest.approx(expected, rel=0.3)  # 500 samples: 6 % standard error, four of them
    assert ratios[min(ratios)] == pytest.approx(1, abs=0.05)  # nothing is known in pure noise


def test_the_numbers_do_not_depend_on_the_division_into_batches():
    x = gaussian(50)
    model = as_model(scoresde.targets.Gaussian(torch.zeros(3, dtype=torch.float64), 0.25).denoiser(scoresde.VP()))
    whole, parts = (error_by_noise(model, Batch(x), 0, 4, size) for size in (None, 7))
    assert whole == parts
    assert whole != error_by_noise(model, Batch(x), 1, 4)


def test_conditions_reach_the_model_with_their_rows():
    """A model that is given x0 as a condition has no error; with the rows of other samples it has."""

    def network(x, label, data):
        return data

    model = as_model(scoresde.Denoiser(network, scoresde.VP(), predicts="x0", time_label="t"))
    x = gaussian(20).float()
    found = error_by_noise(model, Batch(x, {"data": x}), 0, 4, batch_size=6)
    # eps = (x - alpha x0) / sigma in float32: an error of 1e-7 alpha / sigma, 1e-5 at the clean end
    assert max(found.error) < 1e-8
    assert min(error_by_noise(model, Batch(x, {"data": x.flip(0)}), 0, 4).error) > 1e-4


def test_bad_input_is_one_clear_line():
    model = as_model(scoresde.targets.Gaussian(torch.zeros(3), 0.25).denoiser(scoresde.VP()))
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        error_by_noise(model, Batch(gaussian(1)), 0)
    with pytest.raises(InputError, match="bins must be a positive integer"):
        error_by_noise(model, Batch(gaussian(2)), 0, bins=0)
