"""Samples as their source stores them: arrays in memory, or objects that read some of the samples from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solvers import InputError

Array = np.ndarray[Any, Any]


class DamagedSample(InputError):
    """A sample that cannot be read; its message names it. A data set may be read without it."""


class Stored:
    """N samples (N, *) in files, of which only those that are indexed are in memory.

    Attributes:
        shape: (N, *).
        dtype: the type of the numbers.
        made: how the numbers were made of what the files contain, in words; empty if they are those of the files.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    made: str = ""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Array) -> Array:
        """The samples of an index (B,).

        Raises:
            DamagedSample: one of them cannot be read.
        """
        raise NotImplementedError

    def content(self, index: Array, samples: Array) -> bytes:
        """What identifies the content of these samples, which were just read."""
        return samples.tobytes()


Numbers = Array | Stored


@dataclass(frozen=True)
class Part:
    """The samples of a source, or of one of its splits.

    Attributes:
        x: (N, *).
        columns: by name, what belongs to the samples and may be a condition, each with N rows.
    """

    x: Numbers
    columns: Mapping[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """What a source contains.

    Attributes:
        train: its samples.
        test: the held-out samples if it has its own split.
        levels: the largest level K; None to look at the numbers.
        notes: what was changed in reading, in words.
        skip: leave out samples that cannot be read.
        workers: how many threads read samples.
        symbols: of a text, what its tokens 0, 1, ... stand for.
    """

    train: Part
    test: Part | None = None
    levels: int | None = None
    notes: tuple[str, ...] = ()
    skip: bool = False
    workers: int = 0
    symbols: str = ""

    @property
    def parts(self) -> list[Part]:
        """The splits that there are."""
        return [self.train] if self.test is None else [self.train, self.test]


@dataclass(frozen=True)
class Request:
    """What a source is asked for.

    Attributes:
        path: the file or folder; empty if none was given.
        columns: the names of the columns that become conditions.
        auto: read the classes of a source that has them for certain; only folders of images do.
        images: how files of images become arrays of one shape.
        tokens: how samples become tokens; None if they are numbers.
    """

    path: str = ""
    columns: Sequence[str] = ()
    auto: bool = True
    images: ImageOptions = field(default_factory=lambda: ImageOptions())
    tokens: TokenOptions | None = None


@dataclass(frozen=True)
class ImageOptions:
    """How files of images become arrays of one shape; what is None is taken from the images, which must agree.

    Attributes:
        size: the height and width.
        resize: the filter of a change of size: bicubic, bilinear, lanczos, box or nearest, each with antialiasing.
        crop: "center", resize so that the shorter side fits and cut the middle out; "none", stretch.
        channels: 1 grey, 3 colours, 4 colours and opacity.
        skip_corrupt: leave out images that cannot be read.
    """

    size: tuple[int, int] | None = None
    resize: str = "bicubic"
    crop: str = "center"
    channels: int | None = None
    skip_corrupt: bool = False


@dataclass(frozen=True)
class TokenOptions:
    """How samples become tokens 0, ..., S - 1, the states of a discrete process.

    Attributes:
        length: tokens of a sample of a text, by default 64, or of the heartbeat, 20.
        period: of the heartbeat: every so manieth token is 1.
        levels: into how many levels of the same width those of the source are joined; None to keep them.
        states: S of whole numbers; None for one more than the largest that occurs.
        symbols: the vocabulary by which a text is read; empty to find it in the text.
        test_fraction: the share of a text, at its end, that is held out.
    """

    length: int | None = None
    period: int = 5
    levels: int | None = None
    states: int | None = None
    symbols: str = ""
    test_fraction: float = 1 / 6
