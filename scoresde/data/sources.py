"""Sources of data: what is at a path, read as arrays."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from solvers import InputError
from solvers.errors import near
from solvers.libraries import library

from ..io.array_files import array_place, read_array, read_arrays, read_images, read_labels, tensor_places
from .cifar import cifar, kind_of
from .columns import ALIASES, CLASS, is_file, pick, picked
from .file_arrays import FileArray, whole
from .foreign import HUB, huggingface, saved_by_huggingface
from .images import ENDINGS, folder, holds_images
from .storage import Numbers, Part, Raw, Request
from .tokens import bytes_of, heartbeat, text

_SPLITS = (("train", "test"), ("x_train", "x_test"))  # names of the arrays of two splits
_COMPARED = 1000  # names of a folder that are compared with a mistyped one
_TABLE = "save its numbers as an array, such as numpy.save('x.npy', numpy.loadtxt(FILE, delimiter=',', skiprows=1))"
_PACKED = "unpack it and give the folder"
_PICKLED = "reading it could run code, so save the array by numpy.save"
_ADVICE = {
    **dict.fromkeys((".csv", ".txt", ".tsv"), _TABLE),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz"), _PACKED),
    **dict.fromkeys((".pt", ".pth", ".pkl", ".pickle"), _PICKLED),
}


def digits(request: Request) -> Raw:
    """scikit-learn's 1797 images (1, 8, 8), with the column ``label``."""
    if request.path:
        raise InputError(f"the data set 'digits' comes with scikit-learn and takes no path, got {request.path!r}")
    try:
        load_digits = library("sklearn.datasets").load_digits
    except ImportError:
        raise InputError("the data set 'digits' needs scikit-learn: pip install \"scoresde[metrics]\"") from None
    found = load_digits()
    return Raw(Part(found.images[:, None], picked(request.columns, {CLASS: found.target}, "digits")), levels=16)


def idx(request: Request) -> Raw:
    """Images (1, H, W) in MNIST's file format, plain or gzipped: a file, or a folder; with the column ``label``."""
    place = existing("idx", request.path)
    if not place.is_dir():
        return Raw(_idx_part(place, request), levels=255)
    # one entry per image file; if the folder contains it both plain and gzipped, the plain one
    found: dict[str, Path] = {}
    for file in sorted(place.glob("*images*idx3-ubyte*")):
        if file.name.endswith(("ubyte", ".gz")):
            found.setdefault(file.name.removesuffix(".gz"), file)
    if not found:
        raise InputError(
            f"no IDX images in {request.path!r}; expected files like train-images-idx3-ubyte, plain or with .gz"
        )
    if len(found) == 1:
        return Raw(_idx_part(next(iter(found.values())), request), levels=255)
    train = [file for name, file in found.items() if "train" in name]
    test = [file for name, file in found.items() if "t10k" in name]
    if len(train) != 1 or len(test) != 1:
        raise InputError(f"{request.path!r} contains several sets of images; name one file: {', '.join(sorted(found))}")
    return Raw(_idx_part(train[0], request), _idx_part(test[0], request), levels=255)


def _idx_part(file: Path, request: Request) -> Part:
    """Images (N, 1, H, W), uint8, from an IDX file, and their labels from the file next to it."""
    columns: dict[str, Numbers] = {}
    for column in request.columns:
        if is_file(column):
            continue
        pick(column, [CLASS], "idx")
        name = file.name.replace("images", "labels").replace("idx3", "idx1")
        places = [file.with_name(form) for form in (name, name.removesuffix(".gz"), f"{name}.gz")]
        there = [path for path in places if path != file and path.exists()]
        if not there:
            raise InputError(f"no labels of {str(file)!r}: expected {places[0].name} next to it")
        columns[column] = read_labels(there[0], "labels")
    return Part(read_images(file, "data")[:, None], columns)


def arrays(request: Request) -> Raw:
    """An array (N, *) in a .npy file; or in a .npz or .safetensors file under the key "x", under its only key, or under
    "train" and "test"; its other keys are columns.

    A .npz file is read into memory. Of the others, a large array stays in its file.
    """
    file = existing("file", request.path)
    wanted = [column for column in request.columns if not is_file(column)]
    source = repr(request.path)
    if file.suffix == ".npy":
        if wanted:
            raise InputError(f"{source} has one array and no column {wanted[0]!r}; labels may be a .npy file")
        place = array_place(file, "data")
        return Raw(Part(read_array(file, "data") if place.fortran else FileArray(file, place)))
    if file.suffix == ".safetensors":
        places = tensor_places(file, "data")
        keys = keys_of(list(places), wanted, source)
        numbers = {key: FileArray(file, places[key]) for row in keys for key in row}
        read = {key: whole(numbers[key]) for row in keys for key in row[1:]}
        return _noted(parts_of({**numbers, **read}, keys, wanted), list(places), keys, request)
    if file.suffix != ".npz":
        raise InputError(f"cannot read {source}; expected a .npy, .npz or .safetensors file{_advice(file)}")
    there: list[str] = []
    chosen: list[list[str]] = []

    def needed(names: list[str]) -> list[str]:
        there.extend(names)
        chosen.extend(keys_of(names, wanted, source))
        return [key for row in chosen for key in row]

    return _noted(parts_of(read_arrays(file, "data", pick=needed), chosen, wanted), there, chosen, request)


def _noted(raw: Raw, names: Sequence[str], chosen: list[list[str]], request: Request) -> Raw:
    """A source with a note on the arrays that nobody asked for or declined: they may be labels that were meant."""
    left = [name for name in names if all(name not in row for row in chosen)]
    if not left or not request.auto:
        return raw
    return replace(raw, notes=(f"not read: {', '.join(left)} (--config.data.labels names the conditions)",))


def keys_of(names: list[str], columns: list[str], source: str) -> list[list[str]]:
    """For each split of a file of named arrays, the name of its samples and those of its columns.

    Raises:
        InputError: it is not clear which array contains the samples, or a column is missing.
    """
    for train, test in _SPLITS:
        if {train, test} <= set(names):
            return [
                [key, *(pick(column, names, source, split) for column in columns)]
                for key, split in ((train, "train"), (test, "test"))
            ]
    columns = [pick(column, names, source) for column in columns]
    others = [name for name in names if name not in (*columns, *ALIASES)]
    if "x" in others or len(others) == 1:
        return [["x" if "x" in others else others[0], *columns]]
    raise InputError(f"it needs one array, or the key 'x', or 'train' and 'test'; it has {', '.join(names) or 'none'}")


def parts_of(found: Mapping[str, Numbers], chosen: list[list[str]], columns: list[str]) -> Raw:
    """The splits of named arrays, see ``keys_of``."""
    parts = [Part(found[x], dict(zip(columns, (found[key] for key in keys), strict=True))) for x, *keys in chosen]
    return Raw(parts[0], parts[1] if len(parts) > 1 else None)


def existing(name: str, path: str) -> Path:
    """The path of a source.

    Raises:
        InputError: none was given, or nothing is there.
    """
    if not path:
        raise InputError(f"the data set {name!r} needs a path")
    place = Path(path)
    if not os.path.exists(place):  # also False for a name that is too long
        raise InputError(f"the path {path!r} does not exist{_meant(place)}")
    if name == "file" and place.is_dir():
        raise InputError(f"{path!r} is a folder; the data set 'file' needs a .npy, .npz or .safetensors file")
    return place


def _meant(place: Path) -> str:
    """A question about the existing paths that are nearest to one that does not exist."""
    if os.path.exists(home := os.path.expanduser(place)):
        return f"; did you mean {home!r}?"
    try:
        names = [each.name for each in itertools.islice(place.parent.iterdir(), _COMPARED)]
    except (OSError, ValueError):  # no such folder, or a name that none can have
        return ""
    found = [repr(str(place.parent / name)) for name in near(place.name, sorted(names))]
    return f"; did you mean {', '.join(found)}?" if found else ""


def _advice(file: Path) -> str:
    """What to do with a file of a kind that is not read, as the end of a message; empty if nothing is known."""
    ending = file.suffix.lower()
    if ending in ENDINGS:
        return "; give the folder that contains the images"
    return f"; {_ADVICE[ending]}" if ending in _ADVICE else ""


def images(request: Request) -> Raw:
    """A folder of images, see ``data.images``; with the column ``label`` if it has sub-folders."""
    place = existing("images", request.path)
    if not place.is_dir():
        raise InputError(f"{request.path!r} is a file; the data set 'images' needs a folder")
    return folder(request)


def cifar10(request: Request) -> Raw:
    """CIFAR-10 or CIFAR-100, see ``data.cifar``."""
    existing("cifar", request.path)
    return cifar(request)


SOURCES: dict[str, Callable[[Request], Raw]] = {
    "digits": digits,
    "idx": idx,
    "cifar": cifar10,
    "images": images,
    "file": arrays,
    "huggingface": huggingface,
    "text": text,
    "bytes": bytes_of,
    "heartbeat": heartbeat,
}

PATHLESS = ("digits",)  # names of data sets that need no path


def source_of(path: str) -> str:
    """The name of the source at a path: what its files are.

    Raises:
        InputError: nothing is there, it is of no kind that is read, or of several; the message names them.
    """
    if path.startswith(HUB):
        return "huggingface"
    place = existing("auto", path)
    if not place.is_dir():
        if place.suffix in (".npy", ".npz", ".safetensors"):
            return "file"
        if "idx3-ubyte" in place.name:
            return "idx"
        raise InputError(
            f"cannot read {path!r}; expected a .npy, .npz, .safetensors or idx3-ubyte file, or a folder of images, of "
            f"CIFAR's or of MNIST's files{_advice(place)}"
        )
    kinds = {
        "idx": any(place.glob("*images*idx3-ubyte*")),
        "cifar": kind_of(place) is not None,
        "huggingface": saved_by_huggingface(place),
        "images": holds_images(place),
    }
    found = [name for name, there in kinds.items() if there]
    arrays = sorted(file.name for file in place.iterdir() if file.suffix in (".npy", ".npz", ".safetensors"))
    if len(found) > 1 or (found and arrays):
        several = ", ".join([*found, *(["file"] if arrays else [])])
        raise InputError(f"{path!r} contains data of several kinds ({several}): name one with --config.data.name")
    if not found:
        advice = f"name one file: {', '.join(arrays[:5])}" if arrays else "expected images, CIFAR's or MNIST's files"
        raise InputError(f"the folder {path!r} contains no data that can be read; {advice}")
    return found[0]
