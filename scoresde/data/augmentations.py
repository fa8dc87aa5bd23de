"""Augmentations: random changes of images that are trained on, functions of (seed, step, place) alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from solvers import InputError, Registry
from solvers.noise.draws import Draws
from solvers.registry.options import Options
from solvers.registry.ranges import Fraction, NonNegative

from .conditions import Condition
from .rows import Batch

LABELS = "augment_labels"  # the condition that says what was done to a sample


class Augmentation(Options):
    """A random change of a batch of images; images among its conditions change with their samples."""

    @property
    def condition(self) -> Condition | None:
        """The condition that it adds to every batch; zeros, "unchanged", are what to sample with. None if none."""
        return None

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks the shape of samples.

        Raises:
            InputError: they are not images (C, H, W).
        """
        if len(shape) != 3:
            raise InputError(f"the augmentation {self} changes images (C, H, W); the samples have shape {shape}")

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        """The changed batch. A row does not depend on the other rows.

        Raises:
            InputError: see ``check``.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return augmentations.format(self)


augmentations: Registry[Augmentation] = Registry("augmentation", Augmentation)


@augmentations.register("none")
@dataclass(frozen=True)
class Unchanged(Augmentation):
    """No change."""

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        return batch


@augmentations.register("flip")
@dataclass(frozen=True)
class Flip(Augmentation):
    """Half of the images are mirrored, left and right exchanged; the model then draws both kinds alike."""

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        self.check(tuple(batch.x.shape[1:]))
        flipped = draws.uniform("augmentation")[:, 0] < 0.5
        return _changed(batch, lambda x: _where(flipped, x.flip(-1), x))


@augmentations.register("edm", reference="Karras et al. 2022, arXiv:2206.00364, appendix F.2 and table 6")
@dataclass(frozen=True)
class NonLeaking(Augmentation):
    """EDM's non-leaking augmentation: the network receives what was done, and samples are drawn without it.

    Horizontal flips are drawn for every image. Each other group is drawn for a share ``probability`` of the images:
    vertical flips, scaling by s^a with a ~ N(0, 1), rotation by a ~ U(-pi, pi), anisotropy (a direction a ~ U(-pi, pi)
    is stretched by s^b, b ~ N(0, 1), and the other one squeezed), translation by N(0, 1) times a share of the size.
    They are done in this order. Angles turn a displayed image counter-clockwise; translations go right and down.

    The label (B, 9) has the two flips, a of the scaling, cos a - 1 and sin a of the rotation, b cos a and b sin a of
    the anisotropy, and the two translations; all are zero for what was not done.

    The distributions are those of table 6, the signs those of the authors' program, which differs in this: half of its
    anisotropies have the direction 0; it filters with sym6 wavelets at twice the resolution, where this class
    interpolates cubically and does not filter before it makes an image smaller; and it mirrors at the middle of the
    outermost pixels, this class at their edge. Images that are at most flipped keep their values.

    Attributes:
        probability: the share of images for each group: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2.
        scale, anisotropy: s, of the scaling and of the anisotropy, as powers of two.
        translation: the standard deviation of a translation, as a share of the height and width.
    """

    probability: Fraction = 0.12
    scale: NonNegative = 0.2
    anisotropy: NonNegative = 0.2
    translation: NonNegative = 0.125

    @property
    def condition(self) -> Condition:
        """The label's condition."""
        return Condition(LABELS, "vector", (9,))

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        self.check(tuple(batch.x.shape[1:]))
        labels, angle = self._drawn(draws)
        flips, geometry = labels[:, :2] > 0, labels[:, 2:].ne(0).any(1)
        matrices = self.matrices(labels, angle)

        def change(x: Tensor) -> Tensor:
            x = _where(flips[:, 0], x.flip(-1), x)
            x = _where(flips[:, 1], x.flip(-2), x)
            if not geometry.any():
                return x
            moved = x.clone()
            moved[geometry.to(x.device)] = resampled(x[geometry.to(x.device)], matrices[geometry])
            return moved

        changed = _changed(batch, change)
        label = labels.to(batch.x.device, batch.x.dtype)
        return Batch(changed.x, {**changed.conditions, LABELS: label})

    def _drawn(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """The labels (B, 9) and the directions of the anisotropies (B,), float64."""
        u = draws.uniform("augmentation", 13)
        on = (u[:, 8:] < self.probability).double()  # y-flip, scaling, rotation, anisotropy, translation
        normal, angle = torch.special.ndtri(u[:, 2:6]), (2 * u[:, 6:8] - 1) * math.pi
        flips = torch.stack([(u[:, 0] < 0.5).double(), (u[:, 1] < 0.5) * on[:, 0]], 1)
        scaling, turn, stretch = normal[:, 0] * on[:, 1], angle[:, 0] * on[:, 2], normal[:, 1] * on[:, 3]
        shift = normal[:, 2:] * on[:, 4:]
        circle = torch.stack([scaling, turn.cos() - 1, turn.sin(), stretch * angle[:, 1].cos(),
                              stretch * angle[:, 1].sin()], 1)  # fmt: skip
        return torch.cat([flips, circle, shift], 1), angle[:, 1]

    def matrices(self, labels: Tensor, angle: Tensor) -> Tensor:
        """The maps (B, 2, 3) of points (x, y, 1) that labels name, without the flips.

        Points are measured from the middle, x to the right and y down; translations are shares of the size.

        Args:
            labels: (B, 9).
            angle: the directions of the anisotropies (B,).
        """
        size = 2.0 ** (self.scale * labels[:, 2])
        turn = torch.stack([labels[:, 3] + 1, labels[:, 4], -labels[:, 4], labels[:, 3] + 1], 1).reshape(-1, 2, 2)
        stretch = labels[:, 5] * angle.cos() + labels[:, 6] * angle.sin()
        axes = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
        powers = torch.stack([2.0 ** (self.anisotropy * stretch), 2.0 ** (-self.anisotropy * stretch)], 1)
        linear = axes @ (powers[:, :, None] * axes.mT) @ turn * size[:, None, None]
        return torch.cat([linear, self.translation * labels[:, 7:, None]], 2)


def resampled(x: Tensor, matrices: Tensor) -> Tensor:
    """Images (B, C, H, W) under maps (B, 2, 3) of their points, see ``NonLeaking.matrices``.

    The height and width are the unit of a translation; lengths along both axes are in pixels otherwise.
    """
    height, width = x.shape[2:]
    linear, shift = matrices[:, :, :2].double(), matrices[:, :, 2:].double()
    # where the value of a point comes from: p = L^-1 (q - t), in coordinates that are 2 over the width and the height
    inverse = torch.linalg.inv(linear)
    ratio = torch.tensor([[1.0, height / width], [width / height, 1.0]], dtype=torch.float64, device=linear.device)
    pull = inverse * ratio
    theta = torch.cat([pull, -2 * pull @ shift], 2).to(x.device, x.dtype)
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _where(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(rows.to(x.device)[:, None, None, None], x, y)


def _changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with its samples, and images of their size among its conditions, changed."""
    images = {
        name: change(value) if value.ndim == 4 and value.shape[2:] == batch.x.shape[2:] else value
        for name, value in batch.conditions.items()
    }
    return Batch(change(batch.x), images)
