"""Files are read as data, within limits, and written whole."""

import json
import os
import signal

import numpy as np
import pytest

from scoresde.io.result_files import write_arrays
from solvers import InputError
from solvers.files import parse_json, read_bytes, read_json, read_text, write_atomically

pytestmark = pytest.mark.quick


def test_a_pipe_a_device_a_folder_and_a_missing_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match=r"cannot read the grid .* it is a pipe or a device"):
            read_bytes(name, "grid")
    with pytest.raises(InputError, match="Is a directory"):
        read_bytes(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_bytes(tmp_path / "none")
    with pytest.raises(InputError, match="not the name of a file"):
        read_bytes("a\0b")
    with pytest.raises(InputError, match=r"'a.ud800': this is not the name of a file"):
        read_bytes("a\ud800")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # no block of it is on the disk
    with pytest.raises(InputError, match=r"it has 1,099,511,627,776 bytes, and a program has at most"):
        read_text(tmp_path / "large", "program")


def test_a_file_that_exceeds_the_memory_is_one_line(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**43)
    with pytest.raises(InputError, match=r"cannot read the dequantiser .*: 8,796,093,022,208 bytes exceed the memory"):
        read_bytes(tmp_path / "large", "dequantiser")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{", "not JSON"),
        ("9" * 5000, "not JSON"),
        ('{"a": 1, "a": 2}', "occurs twice"),
        ("", "not JSON"),
    ],
)
def test_hostile_json_is_one_error(tmp_path, text, reason):
    with pytest.raises(InputError, match=reason):
        parse_json(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=f"x.json' is not a grid: .*{reason}"):
        read_json(tmp_path / "x.json", "grid")


def test_text_that_is_not_utf_8_is_an_error(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="it is not text"):
        read_json(tmp_path / "x.json")


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    write_atomically(tmp_path / "x.json", "{}")
    assert done == ["fsync", "rename", "fsync"]
    assert read_json(tmp_path / "x.json") == {}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_atomically(tmp_path / "x.json", json.dumps([1]))
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "x.json", json.dumps([2]))
    assert read_json(tmp_path / "x.json") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_the_middle_of_a_zip_file_is_ctrl_c_and_writes_nothing(tmp_path, monkeypatch):
    """zipfile turns it into a ValueError there, and prints a second one when the file is collected."""
    write_array, written = np.lib.format.write_array, []

    def interrupted(file, array, **options):
        signal.raise_signal(signal.SIGINT)
        write_array(file, array, **options)
        written.append(array)

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_arrays(tmp_path / "x.npz", x=np.ones(3), y=np.ones(2))
    assert len(written) == 2
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
