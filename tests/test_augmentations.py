"""Augmentations: exact flips, closed forms of the geometry, shares, labels, and that a row is its own."""

import math

import pytest
import torch

from scoresde.data import Batch
from scoresde.data.augmentations import LABELS, NonLeaking, augmentations, resampled
from solvers import InputError
from solvers.noise.draws import Draws

pytestmark = pytest.mark.quick

COUNT = 4000


def images(count, height=8, width=8, channels=2, seed=0):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def ramp(height, width, a, b):
    """An image a x + b y of the coordinates of its pixels, measured from the middle, in pixels."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return (a * x + b * y)[None, None]


@pytest.mark.parametrize("spec", ["flip", "edm", "edm(probability=0.5)"])
def test_a_row_depends_on_seed_step_and_place_alone(spec):
    change, x = augmentations.make(spec), images(24)
    condition = images(24, channels=1, seed=1)
    draws = Draws.of(3, 7, 24)
    whole = change(Batch(x, {"mask": condition, "label": torch.arange(24)}), draws)
    assert torch.equal(whole.conditions["label"], torch.arange(24))
    for rows in (slice(0, 5), slice(5, 24), slice(1, 24, 2)):
        part = change(Batch(x[rows], {"mask": condition[rows]}), draws.part(rows))
        assert torch.equal(part.x, whole.x[rows])
        assert torch.equal(part.conditions["mask"], whole.conditions["mask"][rows])
    other = change(Batch(x), Draws.of(3, 8, 24))
    assert not torch.equal(other.x, whole.x)


def test_half_of_the_images_are_mirrored_with_their_conditions():
    x = images(COUNT, 2, 3)
    batch = augmentations.make("flip")(Batch(x, {"mask": x + 1, "vector": x[:, 0, 0]}), Draws.of(0, 0, COUNT))
    flipped = (batch.x == x.flip(-1)).flatten(1).all(1)
    kept = (batch.x == x).flatten(1).all(1)
    assert (flipped ^ kept).all()
    # five standard errors of a share of one half
    assert abs(float(flipped.double().mean()) - 0.5) < 5 * 0.5 / COUNT**0.5
    assert torch.equal(batch.conditions["mask"], batch.x + 1)
    assert torch.equal(batch.conditions["vector"], x[:, 0, 0])


def test_none_changes_nothing_and_only_images_are_changed():
    batch = Batch(torch.zeros(3, 5))
    assert augmentations.make("none")(batch, Draws.of(0, 0, 3)) is batch
    for name in ("flip", "edm"):
        with pytest.raises(InputError, match=r"changes images \(C, H, W\); the samples have shape \(5,\)"):
            augmentations.make(name)(batch, Draws.of(0, 0, 3))
    with pytest.raises(InputError, match=r"probability must lie in \[0, 1\], got 1.5"):
        augmentations.make("edm(probability=1.5)")
    assert augmentations.make("flip").condition is None
    assert augmentations.make("edm").condition.shape == (9,)


def test_labels_say_what_was_done_and_zeros_say_nothing():
    x = images(COUNT, 4, 5)
    batch = NonLeaking(0.3)(Batch(x), Draws.of(1, 2, COUNT))
    labels = batch.conditions[LABELS]
    assert (labels.shape, labels.dtype) == ((COUNT, 9), torch.float32)
    unchanged = (labels == 0).all(1)
    assert unchanged.any()
    assert torch.equal(batch.x[unchanged], x[unchanged])
    changed = (batch.x != x).flatten(1).any(1)
    assert torch.equal(changed, ~unchanged)
    only = (labels[:, 0] == 1) & (labels[:, 1:] == 0).all(1)
    assert torch.equal(batch.x[only], x[only].flip(-1))
    upside = (labels[:, 1] == 1) & (labels[:, 2:] == 0).all(1) & (labels[:, 0] == 0)
    assert upside.any()
    assert torch.equal(batch.x[upside], x[upside].flip(-2))
    shares = [labels[:, columns].ne(0).any(1).double().mean() for columns in ([0], [1], [2], [3, 4], [5, 6], [7, 8])]
    for share, wanted in zip(shares, (0.5, 0.15, 0.3, 0.3, 0.3, 0.3), strict=True):
        assert abs(float(share) - wanted) < 5 * (wanted * (1 - wanted) / COUNT) ** 0.5


def off(values, cdf):
    """The Kolmogorov distance of values to a distribution, in units in which 1.95 is exceeded once in a thousand."""
    found = cdf(values.double().sort().values)
    places = torch.arange(len(found) + 1) / len(found)
    return float(torch.maximum(found - places[:-1], places[1:] - found).max()) * len(found) ** 0.5


def test_parameters_have_the_distributions_of_table_6():
    """Karras et al. 2022, appendix F.2: each parameter where it is drawn, and how often it is drawn."""
    count = 20_000
    made = augmentations.make("edm")
    assert made == NonLeaking(probability=0.12, scale=0.2, anisotropy=0.2, translation=0.125)  # as table 6 for CIFAR-10
    labels = made(Batch(images(count, 2, 2, 1)), Draws.of(0, 0, count)).conditions[LABELS].double()
    flips, a, turn, stretch, moves = labels.split([2, 1, 2, 2, 2], 1)
    drawn = [part.ne(0).any(1) for part in (flips[:, :1], flips[:, 1:], a, turn, stretch, moves)]
    shares = [0.5, 0.06, 0.12, 0.12, 0.12, 0.12]
    for found, share in zip(drawn, shares, strict=True):
        assert abs(float(found.double().mean()) - share) < 4 * (share * (1 - share) / count) ** 0.5
    for k, one in enumerate(drawn):  # independent of each other: the share of both is the product
        for other, both in zip(drawn[:k], (shares[k] * share for share in shares), strict=False):
            assert abs(float((one & other).double().mean()) - both) < 4 * both**0.5 / count**0.5
    normal = torch.special.ndtr
    assert off(a[drawn[2], 0], normal) < 1.95
    angle = torch.atan2(turn[:, 1], turn[:, 0] + 1)[drawn[3]]
    assert off(angle, lambda x: x / (2 * math.pi) + 0.5) < 1.95
    # b of a direction a is drawn with both signs; (b, a) and (-b, a + pi) are the same, and have one label
    assert off(stretch[drawn[4]].norm(dim=1), lambda b: 2 * normal(b) - 1) < 1.95
    assert off(torch.atan2(stretch[:, 1], stretch[:, 0])[drawn[4]], lambda x: x / (2 * math.pi) + 0.5) < 1.95
    assert off(moves[drawn[5], 0], normal) < 1.95
    assert off(moves[drawn[5], 1], normal) < 1.95


def test_a_map_is_that_of_the_authors_program():
    label = (0, 0, -0.5, math.cos(2.0) - 1, math.sin(2.0), -0.8 * math.cos(0.4), -0.8 * math.sin(0.4), 0.2, 0.3)
    label, angle = torch.tensor([label], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    # numbers of NVlabs/edm, training/augment.py, for these parameters: the inverse of its G_inv, moves as shares
    theirs = [[-0.42824149671706896, 0.7569852382179694, 0.025], [-0.9502694919781672, -0.3530965277745244, 0.0375]]
    found = NonLeaking().matrices(label, angle)[0]
    assert torch.allclose(found, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-12)


def test_with_probability_zero_only_flips_remain():
    x = images(64)
    batch = NonLeaking(0.0)(Batch(x), Draws.of(0, 0, 64))
    labels = batch.conditions[LABELS]
    assert (labels[:, 1:] == 0).all()
    assert torch.equal(batch.x, torch.where(labels[:, 0, None, None, None] > 0, x.flip(-1), x))


@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 32)])
@pytest.mark.parametrize(
    "label",
    [
        (0.9, 0, 0, 0, 0, 0, 0),
        (0, math.cos(0.7) - 1, math.sin(0.7), 0, 0, 0, 0),
        (0, 0, 0, 1.5 * math.cos(0.4), 1.5 * math.sin(0.4), 0, 0),
        (0, 0, 0, 0, 0, 0.6, -0.3),
        (-0.5, math.cos(-2.0) - 1, math.sin(-2.0), -0.8 * math.cos(0.4), -0.8 * math.sin(0.4), 0.2, 0.3),
    ],
)
def test_a_ramp_is_moved_as_the_label_says(height, width, label):
    """The image f(p) of a linear f becomes f(L^-1 (p - t)), where L scales, turns by R(-a) and stretches."""
    made = NonLeaking()
    scaling, c, s, first, second, right, down = label
    labels, angle = torch.tensor([(0.0, 0.0, *label)]).double(), torch.tensor([0.4]).double()
    stretch = math.hypot(first, second) * (1 if first >= 0 else -1)
    axes = torch.tensor([[math.cos(0.4), math.sin(0.4)], [-math.sin(0.4), math.cos(0.4)]]).double()
    powers = torch.diag(torch.tensor([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch)]).double())
    turn = torch.tensor([[c + 1, s], [-s, c + 1]]).double()
    linear = axes @ powers @ axes.T @ turn * 2 ** (0.2 * scaling)
    a, b = 0.3, -0.7
    pulled = torch.linalg.inv(linear)
    slopes = torch.tensor([a, b]).double() @ pulled
    shift = torch.tensor([0.125 * right * width, 0.125 * down * height]).double()
    wanted = ramp(height, width, *slopes.tolist()) - float(slopes @ shift)
    found = resampled(ramp(height, width, a, b).double(), made.matrices(labels, angle))
    # near the edges the image is mirrored: compare the middle, whose sources lie inside for these maps
    middle = (slice(None), slice(None), slice(height // 2 - 4, height // 2 + 4), slice(width // 2 - 4, width // 2 + 4))
    error = found[middle] - wanted[middle].double()
    # torch's cubic kernel (A = -0.75) gives a ramp of slope 1 an error of u (1 - u) (1 - 2 u) / 2 between two pixels
    # at the fraction u, at most 0.0482; both axes add, and the signs cancel in the mean but for translations
    assert error.abs().max() < 0.0482 * (abs(a) + abs(b)) * (1 + 1e-3)
    assert abs(error.mean()) < 0.01 or not any(label[:5])
