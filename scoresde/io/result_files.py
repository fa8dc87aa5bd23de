"""Result files: a record of the software and hardware that produced them, and atomic writing."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError, __version__
from solvers.files import flush_folder, write_atomically

from .interrupts import uninterrupted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOCK = ".lock"  # the file in a folder that the process which writes there holds locked


def environment(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """The software and hardware that computed a result: versions, platform, device, dtype."""
    device = torch.device(device)
    return {
        "scoresde": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": str(torch.get_num_threads()),
        "dtype": str(dtype).removeprefix("torch."),
    }


def fingerprint(x: Tensor) -> str:
    """The first 16 digits of the SHA-256 of a tensor's shape, dtype and numbers, which identify its content."""
    numbers = x.detach().cpu().contiguous()
    found = hashlib.sha256(f"{tuple(numbers.shape)} {numbers.dtype} ".encode())
    found.update(numbers.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: NumPy has no bfloat16
    return found.hexdigest()[:16]


def writable(folder: Path) -> Path:
    """Returns ``folder``, created if needed.

    Raises:
        InputError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # its name is its own: processes that ask at once do not meet
            pass
    except FileExistsError:
        raise InputError(f"cannot write to {folder}: it is a file, not a folder") from None
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    except ValueError:  # a zero in the name
        raise InputError(f"cannot write to {str(folder)!r}: this is not the name of a folder") from None
    return folder


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a folder, created if needed, for this process alone; the lock ends with the process, however it ends.

    Raises:
        InputError: another process, or another thread of this one, holds the folder; or it cannot be written to.
    """
    from filelock import FileLock, Timeout  # here, because only those who train need it

    path = writable(folder) / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder} is in use: another process{_holder(path)} trains in it") from None
    except (OSError, NotImplementedError) as error:
        raise InputError(f"cannot lock {folder}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """The process that holds a lock, as part of a sentence; empty where the system does not say it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode and int(words[4]) > 0:
                return f" ({words[4]})"
    return ""


@contextlib.contextmanager
def replacing(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A block that gets a folder aside; the files written there then replace an earlier result in ``folder``, together.

    A result is complete if its last file is there, its record: the record is removed first and comes last. A process
    that is killed, or a disk that is full, therefore leaves the earlier result, the new one, or files without a record.
    Processes that replace a result at the same time wait for one another.

    Args:
        folder: a folder that exists.
        names: the files that a result may have, the record last. Those that the new result lacks are removed.

    Raises:
        OSError: a file cannot be written; before the block has ended nothing is replaced.
    """
    from filelock import FileLock  # here, because only those who write need it

    *others, record = names
    aside = Path(tempfile.mkdtemp(prefix=".new_", dir=folder))
    try:
        yield aside
        with FileLock(folder / ".result.lock"):
            (folder / record).unlink(missing_ok=True)
            flush_folder(folder)
            for name in others:
                if (aside / name).exists():
                    os.replace(aside / name, folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            flush_folder(folder)
            os.replace(aside / record, folder / record)
            flush_folder(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: str | Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON file; values that JSON does not support are written as ``str(value)``."""
    write_atomically(path, json.dumps(document, indent=1, default=str) + "\n")


def write_csv(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file whose columns are the keys of all records, in the order in which they first appear."""
    table = io.StringIO()
    columns = dict.fromkeys(key for record in records for key in record)
    writer = csv.DictWriter(table, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(path, table.getvalue())


def write_arrays(path: str | Path, **arrays: Tensor | np.ndarray[Any, Any]) -> None:
    """Writes arrays to a compressed .npz file."""
    buffer = io.BytesIO()
    with uninterrupted():  # in the middle of a zip file, zipfile turns Ctrl-C into a ValueError
        np.savez_compressed(buffer, **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def write_figure(path: str | Path, figure: Figure, dpi: int = 130) -> None:
    """Writes a figure to a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    write_atomically(path, buffer.getvalue())
