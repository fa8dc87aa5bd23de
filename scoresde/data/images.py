"""Folders of images: read as they are or as options say, never converted without a word.

Grey images have one channel, coloured ones three; 8 bits give 255 as the largest level, grey images of 16 bits 65535.
The files are in the order of their names. A folder with sub-folders ``train`` and ``test`` (or ``val``) has its own
split. Sub-folders are classes if the column ``label`` is asked for, or if the folder contains nothing else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from solvers import InputError
from solvers.errors import unknown
from solvers.libraries import library

from .columns import CLASS, is_file, pick
from .image_files import Facts, ImageFiles, facts_of
from .prefetch import read_ahead
from .storage import DamagedSample, ImageOptions, Numbers, Part, Raw, Request

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm")
FILTERS = ("nearest", "box", "bilinear", "bicubic", "lanczos")
CROPS = ("center", "none")
WORKERS = min(8, os.cpu_count() or 1)  # threads that decode
_TESTS = ("test", "val", "valid", "validation")  # names of the folder of a held-out split
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def size_of(text: str | None) -> tuple[int, int] | None:
    """The height and width of a text such as "64" or "64x48".

    >>> size_of("64"), size_of("64x48"), size_of(None)
    ((64, 64), (64, 48), None)

    Raises:
        InputError: any other text.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split("x")]
    if len(parts) > 2 or not all(part.isdecimal() and 0 < len(part) < 6 and int(part) for part in parts):
        raise InputError(f"data.size must be a height and width such as 64 or 64x48, got {text!r}")
    return int(parts[0]), int(parts[-1])


def check_options(options: ImageOptions) -> None:
    """Rejects options that are not known.

    Raises:
        InputError: the message names the option and the accepted values.
    """
    if options.resize not in FILTERS:
        raise unknown("filter for data.resize", options.resize, FILTERS)
    if options.crop not in CROPS:
        raise unknown("way of data.crop", options.crop, CROPS)
    if options.channels not in (None, *_CHANNELS):
        raise InputError(f"data.channels must be 1 (grey), 3 (colours) or 4 (and opacity), got {options.channels!r}")


def folder(request: Request) -> Raw:
    """A folder of images, see above."""
    check_options(request.images)
    for name in ("PIL.Image", "PIL.ImageOps"):  # here: a thread would see what another one has half imported
        library(name)
    place = Path(request.path)
    roots, notes = _split_folders(place)
    files = [_files(root) for root in roots]
    for root, found in zip(roots, files, strict=True):
        if not found:
            raise InputError(f"no images in {str(root)!r}; expected files that end with {', '.join(ENDINGS)}")
    asked = [column for column in request.columns if not is_file(column)]
    for column in asked:
        pick(column, [CLASS], "a folder of images")
    by_class = bool(asked) or (request.auto and all(len(file.parts) > 1 for found in files for file in found))
    names = sorted({file.parts[0] for found in files for file in found}) if by_class else []
    options, left, parts = request.images, list[str](), list[Part]()
    facts = []
    for split, root in enumerate(roots):
        files[split], headers, damaged = _headers(root, files[split], options.skip_corrupt)
        left += damaged
        facts.append(headers)
    every = [(root / file, fact) for root, found, each in zip(roots, files, facts, strict=True)
             for file, fact in zip(found, each, strict=True)]  # fmt: skip
    mode, depth = _mode(every, options)
    size, sizes = _size(every, options)
    for root, found, each in zip(roots, files, facts, strict=True):
        x = ImageFiles([root / file for file in found], each, mode, depth, size, options)
        parts.append(Part(x, {asked[0] if asked else CLASS: _classes(root, found, names)} if by_class else {}))
    notes += [*_notes(every), *sizes, *([f"classes: {', '.join(names)}"] if by_class else [])]
    if left:
        notes.append(
            f"files that cannot be read, {len(left)} left out: {', '.join(left[:3])}{', ...' * (len(left) > 3)}"
        )
    held = parts[1] if len(parts) > 1 else None
    return Raw(parts[0], held, 2**depth - 1, tuple(notes), options.skip_corrupt, WORKERS)


def holds_images(place: Path) -> bool:
    """Whether a folder contains an image, at any depth."""
    return any(name.lower().endswith(ENDINGS) for _, _, names in _walk(place) for name in names)


def _walk(root: Path) -> Any:
    """``os.walk`` in the order of names, through links, each folder once; without hidden folders."""
    seen = set()
    for where, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        yield where, folders, [] if real in seen else sorted(name for name in names if not name.startswith("."))
        seen.add(real)


def _files(root: Path) -> list[Path]:
    """The images in a folder at any depth, relative to it, in the order of their names."""
    found = [
        Path(os.path.relpath(os.path.join(where, name), root))
        for where, _, names in _walk(root)
        for name in names
        if name.lower().endswith(ENDINGS) and os.path.isfile(os.path.join(where, name))
    ]
    return sorted(found, key=lambda path: path.parts)


def _split_folders(place: Path) -> tuple[list[Path], list[str]]:
    """The folders of the splits, and the sentences that report them; the folder itself if it has none."""
    there = [name for name in ("train", *_TESTS) if (place / name).is_dir()]
    others = [file for file in sorted(place.iterdir()) if file.suffix.lower() in ENDINGS or file.is_dir()]
    others = [file for file in others if file.name not in there and not file.name.startswith(".")]
    if "train" not in there or len(there) < 2 or others:
        return [place], []
    left = f"; {', '.join(there[2:])} left out" if len(there) > 2 else ""
    return [place / "train", place / there[1]], [f"the folders train and {there[1]} are the splits{left}"]


def _headers(root: Path, files: Sequence[Path], skip: bool) -> tuple[list[Path], list[Facts], list[str]]:
    """The files whose headers can be read, what those say, and the names of the other files."""
    kept, facts, left = [], [], []

    def read(file: Path) -> Facts | DamagedSample:
        try:
            return facts_of(root / file)
        except DamagedSample as error:
            return error

    for file, found in zip(files, read_ahead(read, files, WORKERS), strict=True):
        if isinstance(found, Facts):
            kept.append(file)
            facts.append(found)
        elif skip:
            left.append(str(file))
        else:
            raise found
    if not kept:
        raise InputError(f"none of the {len(files)} files in {str(root)!r} that end like images can be read")
    return kept, facts, left


def _mode(every: list[tuple[Path, Facts]], options: ImageOptions) -> tuple[str, int]:
    """Pillow's mode to which all images are brought, and their bits.

    Raises:
        InputError: the images have different kinds of colours, and no number of channels says what to make of them.
    """
    counts = Counter(facts.kind for _, facts in every)
    examples = {facts.kind: file for file, facts in reversed(every)}
    words = ", ".join(f"{count} with {kind} (such as {examples[kind].name})" for kind, count in counts.most_common())
    deep = [kind for kind in counts if kind.endswith("of 16 bits")]
    if "colours of 16 bits" in deep:
        raise InputError(f"images have {words}: Pillow reads colours of 16 bits as 8; convert them, or save an array")
    if deep and (len(counts) > 1 or options.channels not in (None, 1)):
        raise InputError(f"images have {words}: grey of 16 bits cannot be mixed or become colours; convert them")
    if deep:
        return "I;16", 16
    if options.channels is not None:
        return _CHANNELS[options.channels], 8
    if len(counts) > 1 or next(iter(counts)) not in ("grey", "colours"):
        raise InputError(
            f"images have {words}: --config.data.channels=1 makes all grey, --config.data.channels=3 gives all colours"
        )
    return "L" if "grey" in counts else "RGB", 8


def _size(every: list[tuple[Path, Facts]], options: ImageOptions) -> tuple[tuple[int, int], list[str]]:
    """The height and width of all samples, and the sentence about a change of size.

    Raises:
        InputError: the images have different sizes, and none is asked for.
    """
    sizes = Counter(facts.size for _, facts in every)
    ends = [min(every, key=lambda each: each[1].size), max(every, key=lambda each: each[1].size)]
    words = " to ".join(f"{facts.size[0]}x{facts.size[1]} ({file.name})" for file, facts in ends)
    if options.size is None:
        if len(sizes) > 1:
            raise InputError(
                f"the images have {len(sizes)} different sizes, height x width from {words}: "
                "--config.data.size=64 (or 64x48) resizes the largest part of this form in the middle of each, with "
                "--config.data.crop=none the whole"
            )
        return next(iter(sizes)), []
    changed = sum(count for size, count in sizes.items() if size != options.size)
    if not changed:
        return options.size, []
    larger = sum(count for size, count in sizes.items() if size[0] < options.size[0] or size[1] < options.size[1])
    how = "the middle of each" if options.crop == "center" else "the whole, stretched where its form differs"
    return options.size, [
        f"{changed} images resized to {options.size[0]}x{options.size[1]} by {options.resize}, {how}; they were "
        f"{ends[0][1].size[0]}x{ends[0][1].size[1]} to {ends[1][1].size[0]}x{ends[1][1].size[1]}"
        + (f", {larger} of them enlarged" if larger else "")
    ]


def _classes(root: Path, files: Sequence[Path], names: Sequence[str]) -> Numbers:
    outside = [file for file in files if len(file.parts) == 1]
    if outside:
        raise InputError(
            f"{len(outside)} images, such as {outside[0].name!r}, lie in {str(root)!r} and in none of its sub-folders, "
            "which are the classes"
        )
    number = {name: place for place, name in enumerate(names)}
    return np.array([number[file.parts[0]] for file in files], dtype=np.int64)


def _notes(every: list[tuple[Path, Facts]]) -> list[str]:
    turned = sum(facts.orientation != 1 for _, facts in every)
    moving = sum(facts.moving for _, facts in every)
    notes = [f"{turned} images turned as their EXIF orientation says"] if turned else []
    return notes + ([f"of {moving} files with several pictures the first"] if moving else [])
