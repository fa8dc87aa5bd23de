"""Files of arrays, read as data: .npy, .npz and .safetensors files, and images in MNIST's format (IDX).

Such a file may come from anybody. What its header claims is compared with the bytes that are there, before memory is
allocated; pickled objects are refused; what is decompressed is limited by the size of the file.
"""

from __future__ import annotations

import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor

from solvers import InputError
from solvers.files import open_regular, parse_json, read_bytes

LARGEST = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else 2**36  # the memory
LARGEST_UNPACKED = 2**30  # bytes of an unpacked archive; a hundred times the archive, if that is more
LARGEST_HEADER = 16 * 2**20  # bytes of the header of a safetensors file
_RATIO = 1032  # the most bytes that one compressed byte can stand for: deflate's limit
_PIECE = 2**20  # bytes that are read at once
_KINDS = "biufcSU"  # numbers and text
_TENSORS = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "V2", "BOOL": "?", "I8": "<i1", "U8": "<u1"},
    **{"I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"},
}
_UBYTE = 0x08  # IDX: the code of unsigned bytes
# what the readers of zipfile, zlib, NumPy, safetensors and torch raise about files that nobody wrote with them
FAULTS = (
    *(ArithmeticError, EOFError, LookupError, MemoryError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(SafetensorError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_Array = np.ndarray[Any, Any]


class ArrayPlace(NamedTuple):
    """An array in a file: its shape and dtype as stored, its first byte, and whether its first axis varies fastest.

    bfloat16 numbers, which NumPy does not have, are stored as V2.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    fortran: bool


def array_place(path: str | Path, what: str = "file") -> ArrayPlace:
    """Where the array of a .npy file is in it; only its header is read.

    Raises:
        InputError: the file cannot be read, is not a .npy file, contains objects, or has more or fewer bytes than its
            header claims.
    """
    with open_regular(path, what) as (file, size):
        try:
            return _header(file, size)
        except InputError as error:
            raise _damaged(path, what, error) from None


def read_array(path: str | Path, what: str = "file", limit: int = LARGEST) -> _Array:
    """The array of a .npy file, in the byte order of this machine.

    Args:
        what: the kind of file, for messages.
        limit: the most bytes that such a file has; by default those of this machine's memory.

    Raises:
        InputError: the file cannot be read, is not a .npy file, contains objects, or has more or fewer bytes than its
            header claims.
    """
    with open_regular(path, what, limit) as (file, size):
        try:
            return _array(file, size)
        except InputError as error:
            raise _damaged(path, what, error) from None


def read_arrays(
    path: str | Path,
    what: str = "file",
    limit: int | None = None,
    pick: Callable[[list[str]], Iterable[str]] = list,
) -> dict[str, _Array]:
    """The arrays of a .npz file by name, in the byte order of this machine.

    Args:
        what: the kind of file, for messages.
        limit: the most bytes of all arrays together; None for ``LARGEST_UNPACKED``, or a hundred times the size of the
            file if that is more.
        pick: from the names in the file, those to read; by default all.

    Raises:
        InputError: the file cannot be read, is not a .npz file, is damaged, contains a name twice, contains objects
            where an array is read, or claims other sizes than it has.
    """
    with open_regular(path, what) as (file, size):
        try:
            return _members(file, size, limit or min(LARGEST, max(LARGEST_UNPACKED, 100 * size)), pick)
        except OSError:
            raise
        except InputError as error:
            raise _damaged(path, what, error) from None
        except FAULTS as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise _damaged(path, what, f"its archive is damaged ({reason})") from None


def read_tensors(path: str | Path, what: str = "file", limit: int | None = None) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a .safetensors file by name, and its metadata (a mapping of texts).

    Args:
        what: the kind of file, for messages.
        limit: the most bytes that such a file has.

    Raises:
        InputError: the file cannot be read, is not a .safetensors file, or is damaged.
    """
    try:
        return tensors_in(read_bytes(path, what, limit))
    except InputError as error:
        raise error if str(error).startswith("cannot read") else _damaged(path, what, error) from None


def tensors_in(content: bytes) -> tuple[dict[str, Tensor], Any]:
    """The tensors by name and the metadata of a .safetensors file with this content.

    Raises:
        InputError: it is not the content of such a file, or it is damaged.
    """
    try:
        facts = _tensor_header(io.BytesIO(content), len(content)).get("__metadata__")
        return tensors_of(content), dict(facts or {})
    except FAULTS as error:
        raise InputError(str(error).partition("\n")[0]) from None


def read_shapes(path: str | Path, what: str = "file") -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a .safetensors file by name; only its header is read.

    Raises:
        InputError: the file cannot be read, or its header is not that of a .safetensors file.
    """
    with open_regular(path, what) as (file, size):
        try:
            header = _tensor_header(file, size)
            return {name: tuple(map(int, facts["shape"])) for name, facts in header.items() if name != "__metadata__"}
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, what, error if isinstance(error, InputError) else "its header is damaged") from None


def tensor_places(path: str | Path, what: str = "file") -> dict[str, ArrayPlace]:
    """Where the tensors of a .safetensors file are in it, by name; only its header is read.

    Raises:
        InputError: the file cannot be read, its header is not that of a .safetensors file, or a tensor is not where the
            header says.
    """
    with open_regular(path, what) as (file, size):
        try:
            header = _tensor_header(file, size)
            begin, found = file.tell(), dict[str, ArrayPlace]()
            for name, facts in header.items():
                if name == "__metadata__":
                    continue
                shape, kind = tuple(map(int, facts["shape"])), _TENSORS.get(facts["dtype"])
                first, last = map(int, facts["data_offsets"])
                if kind is None:
                    raise InputError(f"{name!r} is a tensor of {facts['dtype']!r:.20}, which is not read")
                dtype = np.dtype(kind)
                if min((0, *shape)) < 0 or not 0 <= first <= last <= size - begin:
                    raise InputError(f"its header claims bytes {first:,} to {last:,} of {size - begin:,} for {name!r}")
                if last - first != math.prod(shape) * dtype.itemsize:
                    raise InputError(f"its header claims {last - first:,} bytes for {facts['dtype']} {shape}")
                found[name] = ArrayPlace(shape, dtype, begin + first, False)
            return found
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, what, error if isinstance(error, InputError) else "its header is damaged") from None


def read_images(path: str | Path, what: str = "file", limit: int = LARGEST) -> _Array:
    """Images (N, H, W) of unsigned bytes from an IDX file, plain or, if its name ends with .gz, gzipped.

    The format: two zero bytes, the type, the number of dimensions, the big-endian sizes, then the pixels.

    Args:
        what: the kind of file, for messages.
        limit: the most pixels.

    Raises:
        InputError: the file cannot be read, is not such a file, or has more or fewer pixels than its header claims.
    """
    return _read_idx(path, what, limit, 3, "images", "pixels")


def read_labels(path: str | Path, what: str = "file", limit: int = LARGEST) -> _Array:
    """Labels (N,), unsigned bytes, from an IDX file; see ``read_images``.

    Raises:
        InputError: the file cannot be read, is not such a file, or has more or fewer labels than its header claims.
    """
    return _read_idx(path, what, limit, 1, "labels", "labels")


def _read_idx(path: str | Path, what: str, limit: int, dimensions: int, kind: str, unit: str) -> _Array:
    """An array of unsigned bytes from an IDX file."""
    packed = Path(path).suffix == ".gz"
    begin = 4 + 4 * dimensions
    with open_regular(path, what) as (file, size):
        stream = _Inflated(file) if packed else file
        try:
            head = np.zeros(begin, np.uint8)
            if _fill(stream, head) < begin or (head[:4] != (0, 0, _UBYTE, dimensions)).any():
                count = {1: "one dimension", 3: "three dimensions"}[dimensions]
                raise InputError(f"{str(path)!r} is not an IDX file of {kind} (unsigned bytes in {count})")
            sizes = struct.unpack(f">{dimensions}I", head[4:].tobytes())
            most = size * _RATIO if packed else size - begin
            if math.prod(sizes) > min(most, limit):
                raise _damaged(path, what, f"it claims {math.prod(sizes):,} {unit} {sizes} in {size:,} bytes")
            numbers = np.empty(sizes, np.uint8)
            found = _fill(stream, numbers)
            if found < numbers.size or stream.read(1):
                there = f"{found:,}" if found < numbers.size else "more bytes"
                raise _damaged(path, what, f"{there} for {numbers.size:,} {unit} {sizes}")
        except zlib.error as error:
            raise _damaged(path, what, error) from None
    return numbers


def _damaged(path: str | Path, what: str, reason: object) -> InputError:
    return InputError(f"cannot read the {what} {str(path)!r}: {reason}")


def _tensor_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """The header of a .safetensors file of ``size`` bytes: its length in eight bytes, then a JSON object."""
    (length,) = struct.unpack("<Q", file.read(8)) if size > 8 else (0,)
    if not 0 < length <= min(size - 8, LARGEST_HEADER):
        raise InputError(f"its header claims {length:,} bytes, and {max(size - 8, 0):,} are there")
    try:
        header = parse_json(file.read(length).decode())
    except UnicodeDecodeError:
        raise InputError("its header is not text") from None
    if not isinstance(header, dict):
        raise InputError("its header is not an object")
    return header


def _members(file: BinaryIO, size: int, limit: int, pick: Callable[[list[str]], Iterable[str]]) -> dict[str, _Array]:
    """The picked arrays of an archive of ``size`` bytes."""
    found: dict[str, _Array] = {}
    with zipfile.ZipFile(_Pieces(file)) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise InputError("it contains a name twice")
        chosen = {name: members[name] for name in pick(list(members))}
        if sum(member.compress_size for member in members.values()) > size:
            raise InputError("its members claim more bytes than the file has")
        if (total := sum(member.file_size for member in chosen.values())) > limit:
            raise InputError(f"it claims {total:,} bytes, unpacked; at most {limit:,} are read from such a file")
        for name, member in chosen.items():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{name!r} is compressed in a way that NumPy does not use")
            if member.file_size > _RATIO * member.compress_size:
                raise InputError(f"{name!r} claims {member.file_size:,} bytes in {member.compress_size:,}")
            with archive.open(member) as stream:
                try:
                    found[name] = _array(stream, member.file_size)
                except InputError as error:
                    raise InputError(f"{name!r}: {error}") from None
    return found


def _header(stream: Any, size: int) -> ArrayPlace:
    """Where the array of a stream of ``size`` bytes in NumPy's format is; the stream is then at its start."""
    before = io.BytesIO(stream.read(min(size, 12)))  # magic, version, length of the header
    try:
        version = npy.read_magic(before)
        wide = version != (1, 0)
        (length,) = struct.unpack("<I" if wide else "<H", before.getvalue()[8 : 12 if wide else 10])
        if version not in ((1, 0), (2, 0)) or length > 10_000:
            raise ValueError("not a header of numbers")
        start = 12 if wide else 10
        content = before.getvalue() + stream.read(min(size, start + length) - len(before.getvalue()))
        header = io.BytesIO(content)
        npy.read_magic(header)
        shape, fortran, dtype = (npy.read_array_header_2_0 if wide else npy.read_array_header_1_0)(header)
    except FAULTS as error:
        reason = str(error).partition("\n")[0][:100]
        raise InputError(f"it is not an array in NumPy's format ({reason})") from None
    if dtype.hasobject:
        raise InputError("it contains pickled objects, which are refused")
    if dtype.kind not in _KINDS or dtype.itemsize == 0 or any(length < 0 for length in shape):
        raise InputError(f"it is an array {shape} of {dtype}, not of numbers or text")
    claimed, there = math.prod(shape) * dtype.itemsize, size - header.tell()
    if claimed != there:
        raise InputError(f"its header claims {claimed:,} bytes for {dtype} {shape}, and {there:,} are there")
    return ArrayPlace(shape, dtype, header.tell(), fortran)


def _array(stream: Any, size: int) -> _Array:
    """The array that a stream of ``size`` bytes in NumPy's format contains."""
    shape, dtype, start, fortran = _header(stream, size)
    claimed = size - start
    try:
        flat = np.empty(math.prod(shape), dtype)
        found = _fill(stream, flat)
        array = flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, MemoryError, OverflowError) as error:  # more dimensions than NumPy has, or than there is memory
        raise InputError(str(error)) from None
    if found < claimed:
        raise InputError(f"it ends after {found:,} of {claimed:,} bytes")
    letters = np.dtype(np.uint32).newbyteorder(dtype.byteorder)
    if dtype.kind == "U" and flat.size and flat.view(letters).max() > 0x10FFFF:
        raise InputError("its text is damaged")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _fill(stream: Any, array: _Array) -> int:
    """Reads an array's bytes; returns how many there were."""
    flat: Any = array.reshape(-1)
    place, start = memoryview(flat).cast("B") if array.size else memoryview(bytearray()), 0
    while start < len(place) and (piece := stream.read(min(_PIECE, len(place) - start))):
        place[start : start + len(piece)] = piece
        start += len(piece)
    return start


class _Pieces(io.BufferedReader):
    """A file that is read in pieces: the directory of an archive, which is read at once, may not be larger."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(io.FileIO(file.fileno(), closefd=False))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _PIECE:
            raise InputError(f"its directory claims {size:,} bytes")
        return super().read(_PIECE if size is None or size < 0 else size)


class _Inflated:
    """The decompressed content of a gzip file, of one or several members, as a stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._pieces = self._inflate(file)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        while not self._rest:
            if (piece := next(self._pieces, None)) is None:
                return b""
            self._rest = piece
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    @staticmethod
    def _inflate(file: BinaryIO) -> Iterator[bytes]:
        inflate, packed, inside = zlib.decompressobj(wbits=31), b"", False
        while packed := packed or file.read(_PIECE // 16):
            yield inflate.decompress(packed, _PIECE)
            inside = not inflate.eof
            packed = inflate.unconsumed_tail if inside else inflate.unused_data
            if not inside:  # perhaps another member follows
                inflate = zlib.decompressobj(wbits=31)
        if inside:
            raise zlib.error("it ends early")
