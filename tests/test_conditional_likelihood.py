"""log p(x | y) of the handwritten digits, and the classifier that Bayes' rule makes of it."""

import math
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as Fit

import scoresde
from scoresde import log_prob
from scoresde.models.targets import GaussianMixture
from solvers import Prediction

pytestmark = pytest.mark.quick

SDE, HELD = scoresde.VP(), slice(1500, 1600)


@dataclass(frozen=True)
class PerClass:
    """The exact denoiser of a mixture for each class, with the class as its condition ``y`` (B,)."""

    targets: list[GaussianMixture]
    sde: scoresde.SDE = SDE

    def predict(self, x, node, y):
        x0, eps = torch.empty_like(x), torch.empty_like(x)
        for k in y.unique().tolist():
            found = self.targets[k].predict(x[y == k], node)
            x0[y == k], eps[y == k] = found.x0, found.eps
        return Prediction(x0, eps)


@pytest.fixture(scope="module")
def digits():
    """Mixtures of three Gaussians a class, fitted to 1500 digits, and 100 others with their classes."""
    images, labels = load_digits(return_X_y=True)
    x, y, targets = torch.from_numpy(images / 8 - 1), torch.from_numpy(labels), []
    for k in range(10):
        rows = x[:1500][y[:1500] == k].numpy()
        fit = Fit(3, covariance_type="diag", reg_covar=0.05, random_state=0).fit(rows)
        targets.append(GaussianMixture(torch.from_numpy(fit.means_), torch.from_numpy(fit.covariances_), fit.weights_))
    return targets, x[HELD], y[HELD]


def exact(targets, x):
    """log p(x + ratio(t_min) eps | y) (B, 10)."""
    first = SDE(SDE.t_min)
    return torch.stack([t.log_prob(first.alpha * x, first) + 64 * math.log(first.alpha) for t in targets], 1)


def test_the_likelihood_under_an_images_own_class_is_the_mixtures(digits):
    targets, x, y = digits
    far = SDE(SDE.t_max)

    def prior(z):
        return torch.cat([targets[k].log_prob(z[i : i + 1], far) for i, k in enumerate(y[:6].tolist())])

    options = {"divergence": "exact", "condition": {"y": y[:6]}, "prior": prior}
    errors = []
    for steps in (50, 100):
        found = log_prob(PerClass(targets), x[:6], "dpmpp_2m", steps=steps, **options).nats
        errors.append(found - exact(targets, x[:6])[torch.arange(6), y[:6]])
    assert float(errors[1].abs().max()) < 0.3  # of nats that lie some 100 apart between classes
    assert float((errors[0] / errors[1]).mean()) == pytest.approx(4, rel=0.15)  # and falling with the square


def test_it_classifies_like_the_exact_mixtures(digits):
    targets, x, y = digits
    truth = exact(targets, x)
    n, classes = len(x), torch.arange(10).repeat_interleave(len(x))
    # all classes of an image with the same probes
    found = log_prob(
        PerClass(targets), x.repeat(10, 1), "dpmpp_2m", steps=20, seeds=[*range(n)] * 10, condition={"y": classes}
    )
    found = found.nats.view(10, n).T
    assert float((truth.argmax(1) == y).double().mean()) > 0.9  # measured 0.95
    assert float((found.argmax(1) == y).double().mean()) > 0.9
    same = found.argmax(1) == truth.argmax(1)
    assert float(same.double().mean()) >= 0.97
    # where Bayes' rule is sure by more than the steps and probes miss, they say the same
    margin = truth.topk(2, 1).values
    assert same[margin[:, 0] - margin[:, 1] > 15].all()
