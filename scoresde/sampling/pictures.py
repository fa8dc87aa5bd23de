"""Samples as a grid of pictures, and as files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from solvers import InputError
from solvers.files import write_atomically

from ..io.result_files import write_arrays

if TYPE_CHECKING:
    from PIL import Image


def image_grid(samples: Tensor, low: float, high: float, columns: int | None = None, tile: int = 64) -> Image.Image:
    """Pictures in a grid on white, two pixels apart, each enlarged by the largest integer that fits ``tile``.

    Args:
        samples: (N, 1, H, W) or (N, 3, H, W); values outside [low, high] are clamped, NaN is black.
        low, high: the values of black and white.
        columns: pictures in a row; by default the square root of N, rounded up.
        tile: the target size of a picture in pixels; larger pictures keep their size.

    >>> import torch
    >>> image_grid(torch.zeros(5, 1, 8, 8), -1, 1).size
    (196, 130)

    Raises:
        InputError: samples of a different shape, no samples, or low not below high.
    """
    from PIL import Image  # here, so that only those who draw wait for it

    if not is_image(samples) or not len(samples):
        raise InputError(f"a picture grid needs samples (N, 1, H, W) or (N, 3, H, W), got {tuple(samples.shape)}")
    if not low < high:
        raise InputError(f"low={low:g} must be less than high={high:g}")
    scaled = (samples.detach().cpu().double() - low) * (255 / (high - low))
    pixels = scaled.nan_to_num(nan=0.0).clamp(0, 255).round().byte().movedim(1, 3).numpy()
    count, height, width, channels = pixels.shape
    factor = max(1, tile // max(height, width))
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    step = (height * factor + 2, width * factor + 2)
    canvas = np.full((math.ceil(count / columns) * step[0] - 2, columns * step[1] - 2, channels), 255, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * step[0], i % columns * step[1]
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def is_image(samples: Tensor) -> bool:
    """Whether samples (N, *) are grey or colour pictures."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3)


def listing(texts: Sequence[str], seeds: Sequence[int]) -> str:
    """Texts one below the other, each below a line with its seed.

    >>> print(listing(["ab", "cd"], [3, 4]), end="")
    === seed 3 ===
    ab
    === seed 4 ===
    cd
    """
    return "".join(f"=== seed {seed} ===\n{text}\n" for text, seed in zip(texts, seeds, strict=True))


def save_samples(
    path: str | Path,
    arrays: Mapping[str, Tensor | np.ndarray[Any, Any]],
    pictures: Tensor,
    low: float,
    high: float,
    columns: int | None = None,
) -> None:
    """Writes samples to a file: ``.npz`` contains all arrays, ``.npy`` their ``x``, ``.png`` a grid of the pictures.

    Args:
        pictures, low, high, columns: see ``image_grid``.

    Raises:
        InputError: a different ending; samples that are not pictures; a folder that does not exist.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".npy", ".png"):
        raise InputError(f"cannot save samples as {path.name!r}: the name must end with .npz, .npy or .png")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    numbers = {name: value.detach().cpu() if isinstance(value, Tensor) else value for name, value in arrays.items()}
    if path.suffix == ".npz":
        write_arrays(path, **numbers)
        return
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, np.asarray(numbers["x"]))
    else:
        image_grid(pictures, low, high, columns).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
