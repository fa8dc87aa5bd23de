"""Tokens: whole numbers 0, ..., S - 1, the states of discrete processes; from texts, arrays, and levels of images.

They are stored in one, two or four bytes each, and delivered as int64. The letters of a text are tokens in the order of
their code points; the vocabulary is part of the data card, and another text is read by it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from solvers import InputError
from solvers.errors import positive_integer
from solvers.files import read_bytes

from ..io.result_files import fingerprint
from .assembly import check_part, conditions_of, contents, left_out, orders_of, surveys_of
from .dataset import DataCard, Dataset
from .rows import Column, Rows, StoredRows
from .storage import Array, Part, Raw, Request, TokenOptions

_LENGTH, _BEAT = 64, 20  # tokens of a sample of a text and of the heartbeat, by default
_SHOWN = 8  # unknown symbols that an error shows
MOST_STATES = 2**20  # a larger number is not that of a token
_LARGEST = 2**30  # bytes of a text
BYTES = bytes(range(256)).decode("latin-1")  # the symbols of bytes: Latin-1 has one for each


def text(request: Request) -> Raw:
    """A text file in UTF-8, whose tokens are its characters; a sample is a window of ``length`` of them.

    The end of the text is held out, in windows one after the other. Those that train start at every character.
    """
    content = _content(request, "text")
    try:
        letters = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise InputError(
            f"the text {request.path!r} is not UTF-8 (byte {byte:#04x} at {error.start}): read it as data.name=bytes"
        ) from None
    points = np.frombuffer(letters.encode("utf-32-le"), np.uint32)
    found, counts = np.unique(points, return_counts=True)
    own = found.astype("<u4").tobytes().decode("utf-32-le")
    symbols = _options(request).symbols or own
    if unknowns := [(-count, own[i]) for i, count in enumerate(counts.tolist()) if own[i] not in symbols]:
        shown = ", ".join(f"{letter!r} ({-count}x)" for count, letter in sorted(unknowns)[:_SHOWN])
        more = f" and {len(unknowns) - _SHOWN} more" * (len(unknowns) > _SHOWN)
        raise InputError(
            f"the text {request.path!r} has symbols that are not among the {len(symbols)} of the vocabulary: "
            f"{shown}{more}"
        )
    order = np.array([symbols.index(letter) for letter in own])
    return _windows(order[np.searchsorted(found, points)], symbols, request)


def bytes_of(request: Request) -> Raw:
    """Any file, whose tokens are its bytes; windows as of a text."""
    return _windows(np.frombuffer(_content(request, "file of bytes"), np.uint8), BYTES, request)


def heartbeat(request: Request) -> Raw:
    """The binary heartbeat of Sohl-Dickstein et al. 2015 (arXiv:1503.03585): bits, of which every fifth is 1.

    There are as many sequences as the period is long, and both splits have all of them.
    """
    options = _options(request)
    if request.path:
        raise InputError(f"the data set 'heartbeat' is made by its definition and takes no path, got {request.path!r}")
    if request.columns:
        raise InputError(f"the data set 'heartbeat' has no column {request.columns[0]!r}: leave out data.labels")
    length = positive_integer("data.length", _BEAT if options.length is None else options.length)
    period = positive_integer("data.period", options.period)
    if not 2 <= period <= length:
        raise InputError(f"heartbeat: data.period must lie between 2 and the length {length}, got {period}")
    beats = (np.arange(length)[None] % period == np.arange(period)[:, None]).astype(np.uint8)
    note = f"all {period} sequences are in both splits, whose entropy is {math.log2(period):.4g} bits"
    return Raw(Part(beats), Part(beats), levels=1, notes=(note,))


def _options(request: Request) -> TokenOptions:
    if request.tokens is None:
        raise InputError("these data are tokens, for discrete states: set config.process, such as absorbing")
    return request.tokens


def _content(request: Request, what: str) -> bytes:
    if request.columns:
        raise InputError(f"a text has no column {request.columns[0]!r}: leave out data.labels")
    if not request.path:
        raise InputError(f"the data set {what!r} needs a path")
    if not (content := read_bytes(request.path, what, _LARGEST)):
        raise InputError(f"the {what} {request.path!r} is empty")
    return content


def _windows(tokens: Array, symbols: str, request: Request) -> Raw:
    """The windows of a text's tokens (N,): those that train are a view of it, and need no memory of their own."""
    options = _options(request)
    length = positive_integer("data.length", _LENGTH if options.length is None else options.length)
    held = max(length, round(len(tokens) * options.test_fraction))
    if len(tokens) - held < length:
        raise InputError(
            f"the text {request.path!r} has {len(tokens)} symbols, too few for windows of {length} to train and to "
            "test: lower data.length"
        )
    small: Array = tokens.astype(_type_of(len(symbols)))
    end = small[len(tokens) - held :]
    train = sliding_window_view(small[: len(tokens) - held], length)
    test = end[: held // length * length].reshape(-1, length)
    share = np.bincount(small, minlength=len(symbols)) / len(small)
    entropy = -float((share[share > 0] * np.log2(share[share > 0])).sum())
    note = f"{len(tokens):,} symbols of {len(symbols)}, whose frequencies have the entropy {entropy:.4g} bits"
    return Raw(Part(train), Part(test), notes=(note,), symbols=symbols)


def _type_of(states: int) -> type:
    """The smallest type of tokens with so many values."""
    return np.uint8 if states <= 2**8 else np.int16 if states <= 2**15 else np.int32


def tokenised(
    name: str,
    raw: Raw,
    source: str,
    options: TokenOptions,
    seed: int = 0,
    test_fraction: float = 1 / 6,
    card: DataCard | None = None,
    classes: int | None = None,
) -> Dataset:
    """The data set of tokens that a source becomes; see ``load``.

    Args:
        source: what it is, for messages.

    Raises:
        InputError: the numbers are no tokens: floats, negative, or beyond the number of states.
    """
    _check(raw, source)
    shape, orders = raw.train.x.shape[1:], orders_of(raw, seed, test_fraction, source)
    notes = list(raw.notes)
    if raw.symbols:
        arrays = [np.asarray(part.x) for part in raw.parts]
        digests, (low, high) = [_digest(array) for array in arrays], (0, len(raw.symbols) - 1)
    else:
        found = surveys_of(raw, orders, source, True)
        arrays, digests = [np.asarray(part.samples) for part in found], [part.digest.hex() for part in found]
        low, high = int(min(part.low for part in found)), int(max(part.high for part in found))
        notes += left_out(found)
    states, joined = _states(raw, (low, high), options, card, source)
    if joined is not None:
        notes.append(f"{joined} levels joined into {states}")
        arrays = [array.astype(np.int64) * states // joined for array in arrays]
    if not raw.symbols:
        arrays = [array.astype(_type_of(states)) for array in arrays]
    conditions = conditions_of(raw, shape, classes, card, source)
    splits, prints = list[Rows](), list[str]()
    for place, order in enumerate(orders):
        own = min(place, len(arrays) - 1)
        columns = {each.condition.name: each.columns[own] for each in conditions}
        splits.append(StoredRows(Column(arrays[own], _long), columns, order, shape))
        parts = [f"{shape} {states} {joined} {raw.symbols}", digests[own], fingerprint(order)]
        parts += [f"{each.condition.name} {contents(each, place, order)}" for each in conditions]
        prints.append(hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16])
    mean, deviation = _moments(arrays[0], orders[0])
    new = DataCard(
        shape, 0.0, float(states - 1), None, mean, deviation, None, samples=(len(splits[0]), len(splits[1])),
        fingerprints=(prints[0], prints[1]), conditions=tuple(each.condition for each in conditions), states=states,
        symbols=raw.symbols,
    )  # fmt: skip
    return Dataset(name, splits[0], splits[1], new, (0.0, states - 1.0), (*notes, *(each.note for each in conditions)))


def _check(raw: Raw, source: str) -> None:
    """Rejects a source whose numbers are no tokens.

    Raises:
        InputError: they are floats, or samples of two shapes.
    """
    shape = raw.train.x.shape[1:]
    for part in raw.parts:
        check_part(part, source)
        if part.x.dtype.kind == "f" and raw.levels is None:
            raise InputError(
                f"{source}: floats ({part.x.dtype}), but a discrete process needs whole numbers, its tokens: save them "
                "as integers, such as x.astype(int)"
            )
        if part.x.shape[1:] != shape:
            raise InputError(f"{source}: samples are {shape} in train but {part.x.shape[1:]} in test")


def _states(
    raw: Raw, ends: tuple[int, int], options: TokenOptions, card: DataCard | None, source: str
) -> tuple[int, int | None]:
    """The number of values of a token, and of how many levels they were joined or None.

    Raises:
        InputError: a number is no token; the options do not suit the source.
    """
    low, high = ends
    if low < 0:
        raise InputError(f"{source}: tokens are whole numbers from 0 on, got {low}")
    given = options.states if options.states is None else positive_integer("data.states", options.states)
    known = len(raw.symbols) or (None if raw.levels is None else raw.levels + 1)
    if given is not None and known not in (None, given):
        raise InputError(f"{source}: tokens of {known} values; leave out data.states={given}")
    if options.levels is not None:
        levels, there = positive_integer("data.levels", options.levels), known or given or high + 1
        if raw.symbols or not 2 <= levels <= there:
            what = f"symbols of {source}" if raw.symbols else f"{there} levels of {source} into {levels}"
            raise InputError(f"data.levels={levels}: the {what} cannot be joined")
        _refuse_outside(high, there, source)
        return levels, there
    states = known or given or (card.states if card is not None and card.states else high + 1)
    if states > MOST_STATES:
        raise InputError(f"{source}: {states:,} values of a token, more than {MOST_STATES:,}")
    if states < 2 and given is None:
        raise InputError(f"{source}: all tokens are 0, and a process needs at least two values; set data.states")
    _refuse_outside(high, states, source)
    return states, None


def _refuse_outside(high: int, states: int, source: str) -> None:
    if high == states:
        raise InputError(
            f"{source}: the token {high}, where {states} values 0 to {states - 1} are known: {high} is what a process "
            "with masks uses as the mask, which data must not have"
        )
    if high > states:
        raise InputError(f"{source}: the token {high}, where {states} values 0 to {states - 1} are known")


def _long(numbers: Array) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))


def _digest(windows: Array) -> str:
    """The hash of a text's windows (N, L), of which neighbours may share memory."""
    shared = windows.strides[0] == windows.itemsize
    parts: Sequence[Array] = (windows[0], windows[1:, -1]) if shared else (windows,)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def _moments(tokens: Array, order: Tensor) -> tuple[float, float]:
    """The mean and the deviation of tokens (N, *), from at most ten thousand of the rows."""
    step = max(1, len(order) // 10_000)
    some = tokens[order[::step].numpy()].astype(np.float64)
    return float(some.mean()), float(some.std())


def requested_tokens(name: str, options: TokenOptions, card: DataCard | None, test_fraction: float) -> TokenOptions:
    """The options for a data set, with the vocabulary of the data that a model was trained on.

    Raises:
        InputError: a length is given for data that have one.
    """
    if options.length is not None and name not in ("text", "bytes", "heartbeat"):
        raise InputError(f"data.length is for the data sets text, bytes and heartbeat; {name!r} does not use it")
    return replace(options, symbols=card.symbols if card else "", test_fraction=test_fraction)
