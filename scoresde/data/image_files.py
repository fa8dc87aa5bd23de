"""Images in files: what their headers say, and their pixels, decoded when they are asked for."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from solvers import InputError
from solvers.files import open_regular, read_bytes
from solvers.libraries import library

from .storage import Array, DamagedSample, ImageOptions, Stored

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # Pillow opens no others, some of which run programs
LARGEST = 2**30  # bytes of a file
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_GREY = ("1", "L", "LA", "La")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_COLOURED = ("P", "PA", "RGB", "RGBA", "RGBa")


class Facts(NamedTuple):
    """What the header of an image's file says: the kind of its colours, height and width as seen, the orientation."""

    kind: str
    size: tuple[int, int]
    orientation: int
    moving: bool


def facts_of(file: Path) -> Facts:
    """What the header of an image's file says.

    Raises:
        DamagedSample: it cannot be read, or is larger than Pillow's limit.
    """
    image_of = library("PIL.Image")
    try:
        with open_regular(file, "image", LARGEST) as (stream, _), image_of.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if image_of.MAX_IMAGE_PIXELS is not None and width * height > image_of.MAX_IMAGE_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than Pillow's limit")
            kind, moving = _kind(image), getattr(image, "n_frames", 1) > 1
            turn = _orientation(image, stream)
            size = (width, height) if turn in _TURNED else (height, width)
            return Facts(kind, size, turn, moving)
    except Exception as error:  # Pillow's readers raise many kinds about files that nobody wrote with them
        raise _damaged(file, error) from None


def _orientation(image: Any, stream: BinaryIO) -> int:
    """The EXIF orientation of an image, 1 to 8."""
    if image.format == "PNG":  # Pillow decodes the whole image to look for it: only where there is one
        stream.seek(0)
        content = stream.read()
        if not any(mark in content for mark in (b"eXIf", b"exif", b"Orientation")):
            return 1
        stream.seek(0)
    turn = image.getexif().get(0x0112, 1)
    return turn if turn in range(1, 9) else 1


def _kind(image: Any) -> str:
    """The kind of an image's colours: grey, grey of 16 bits, colours, or one that is not read without being told to."""
    raw = str(image.tile[0][3]) if image.tile else ""
    if image.mode in _DEEP and (image.mode != "I" or image.format == "PNG"):
        return "grey of 16 bits"
    if ";16" in raw:
        return "colours of 16 bits"
    if image.mode in _GREY:
        return "grey"
    return "colours" if image.mode in _COLOURED else f"{image.mode} colours"


def _damaged(file: Path, error: Exception) -> DamagedSample:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, InputError):
        reason = reason.rpartition("': ")[2]
    if "cannot identify image file" in reason:
        reason = "it is not an image"
    return DamagedSample(
        f"cannot read the image {str(file)!r}: {reason}; --config.data.skip_corrupt=True, in Python "
        "ImageOptions(skip_corrupt=True), leaves out images that cannot be read"
    )


class ImageFiles(Stored):
    """Images (N, C, H, W) that are decoded when they are asked for; unsigned integers of 8 or 16 bits.

    Args:
        files: the files.
        facts: what their headers say.
        mode: Pillow's mode to which they are brought.
        depth: how many bits a number has.
        size: their height and width.
        options: how they are brought there.
    """

    def __init__(
        self,
        files: Sequence[Path],
        facts: Sequence[Facts],
        mode: str,
        depth: int,
        size: tuple[int, int],
        options: ImageOptions,
    ) -> None:
        self.files, self.facts, self.mode, self.size, self.options = list(files), list(facts), mode, size, options
        channels = {"RGB": 3, "RGBA": 4}.get(mode, 1)
        self.shape, self.dtype = (len(files), channels, *size), np.dtype(np.uint16 if depth == 16 else np.uint8)
        change = f" {options.resize} {options.crop}" if any(each.size != size for each in facts) else ""
        self.made = f"images {mode} {size[0]}x{size[1]}{change}"
        self._digests = [b""] * len(files)

    def __getitem__(self, index: Array) -> Array:
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        for row, place in enumerate(index.tolist()):
            found[row] = self._pixels(place)
        return found

    def content(self, index: Array, samples: Array) -> bytes:
        """The hashes of the files: how a decoder rounds does not matter."""
        return b"".join(self._digests[place] for place in index.tolist())

    def _pixels(self, place: int) -> Array:
        file = self.files[place]
        try:
            content = read_bytes(file, "image", LARGEST)
            self._digests[place] = hashlib.sha256(content).digest()
            with library("PIL.Image").open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                turned = self.facts[place].orientation != 1  # exif_transpose copies all images
                shaped = self._converted(library("PIL.ImageOps").exif_transpose(image) if turned else image, file)
        except _Transparent as error:
            raise InputError(str(error)) from None
        except Exception as error:  # see ``facts_of``
            raise _damaged(file, error) from None
        pixels = np.asarray(shaped)
        if pixels.shape[:2] != self.size:
            raise InputError(f"the image {str(file)!r} has changed since its header was read")
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)

    def _converted(self, image: Any, file: Path) -> Any:
        """The image in the mode and size of the data set."""
        if self.mode == "I;16":
            pixels = np.asarray(image).astype(np.float32)
            if image.size == self.size[::-1]:
                return pixels.astype(np.uint16)
            found = np.asarray(self._resized(library("PIL.Image").fromarray(pixels)))
            return np.clip(np.rint(found), 0, 65535).astype(np.uint16)
        if image.mode not in ("RGBA", "LA") and (image.mode in ("PA", "RGBa", "La") or "transparency" in image.info):
            image = image.convert("RGBA")
        seen_through = image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema()[0] < 255
        if seen_through and self.mode != "RGBA":
            if self.options.channels is None:
                raise _Transparent(
                    f"the image {str(file)!r} is transparent: --config.data.channels=4 keeps the opacity, "
                    "--config.data.channels=3 (or 1) puts the images on white"
                )
            ground = library("PIL.Image").new("RGBA", image.size, (255, 255, 255, 255))
            ground.alpha_composite(image.convert("RGBA"))
            image = ground
        return self._resized(image.convert(self.mode))

    def _resized(self, image: Any) -> Any:
        """The image in the size of the data set."""
        (height, width), (wide, high) = self.size, image.size
        if (wide, high) == (width, height):
            return image
        box = (0.0, 0.0, float(wide), float(high))
        if self.options.crop == "center":  # the largest part of this form in the middle
            part = min(wide / width, high / height)
            left, top = (wide - part * width) / 2, (high - part * height) / 2
            box = (max(0.0, left), max(0.0, top), min(wide, left + part * width), min(high, top + part * height))
        kind = library("PIL.Image").Resampling[self.options.resize.upper()]
        return image.resize((width, height), kind, box=box)


class _Transparent(Exception):
    """An image has transparent parts, and nobody said what to make of them."""
