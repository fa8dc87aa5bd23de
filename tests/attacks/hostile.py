"""Hostile files and texts: valid ones, edited; ends within a second in one line or in the right value, runs no code."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

from attacks.entrances import ENTRANCES, Entrance
from attacks.guard import Case, Guard
from attacks.tally import Tally

HUGE = "@a very long integer@"  # replaced by its digits after the document is made: json.dumps refuses to write it
TEXTS = (
    "evil:Net", "evil.Net", "path.evil:Net", "os:system", "antigravity:fly", "this:this", "__main__:main",
    "builtins:eval", "pc(predictor=evil:Net)", "picard(solver=evil:Net)", "mlp(evil:Net)", "__import__('evil')",
    "().__class__.__base__.__subclasses__()", "file:/dev/zero", "file:pipe", "file:evil.py", "/dev/zero", "/dev/stdin",
    "../../../../etc/passwd", "\0", "a\0b", "file:a\0b", "$\\frac$", "$x", "\\$", "%s%n", "{0.__class__}", "{{7*7}}",
    "<script>alert(1)</script>", "", " ", "\n", "x\r\ny", "\x1b[2J", "\ud800", "1e999", "nan", "-inf", "None", "True",
    "[" * 20000, "(" * 5000, "mlp(" * 3000, "pc(predictor=" * 500 + "heun" + ")" * 500, "9" * 5000, "a" * 100_000,
    "ddim" * 5000, "heun " * 4000, "é" * 3000, "karras(rho=" + "9" * 5000 + ")", "mlp(width=100000000)",
    "mlp(depth=100000000)", "mlp(width=16, depth=1000000)", "unet(layers=1000000)", "mlp(width=-1)",
    "explicit(times=[" + "1," * 50000 + "])", "karras(rho=1e400)",
    "ddpm_chain(steps=1000000000)", "x:y:z", ":", "a:", ":b", "=", "x(=)", "x(y=)", "x(**{})", "lambda: 0",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 3.5, 2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, 5e-324, float("nan"), float("inf"))
DEEP: Any = json.loads("[" * 400 + "]" * 400)
VALUES: tuple[Any, ...] = (*TEXTS, *NUMBERS, None, True, [], {}, [[]], {"a": 1}, [1, 2, 3], HUGE, DEEP)
SPECIAL = ("pipe", "device", "folder", "loop", "missing", "huge")
FIELDS = ("seed", "device", "sde", "model.network", "model.predicts", "model.time_label", "model.num_train_timesteps",
          "model.sigma_data", "data.name", "data.path", "data.bin_width", "data.labels", "data.classes",
          "data.size", "data.resize", "data.crop", "data.channels", "data.augmentation",
          "training.loss", "training.weighting",
          "training.times", "training.learning_rate", "training.clip", "training.warmup", "sampling.solver",
          "sampling.grid", "sampling.noise", "likelihood.solver", "likelihood.dequantiser", "likelihood.bound",
          "likelihood.divergence", "likelihood.tolerance", "nonsense", "training")  # fmt: skip
SPECS = ("heun", "karras(rho=7)", "pc(predictor=ddim, corrector=langevin(snr=0.1))", "vp(beta_min=0.1, beta_max=20)",
         "mlp(width=256, depth=3)", "explicit(times=[1.0, 0.5, 0.01])", "DPM++ 2M Karras", "hutchinson(probes=4)",
         "lognormal(mean=-1.0, std=1.2)", "dpmpp_2m_sde(eta=0.5)", "file:program.json", "afs(solver=ddim)")  # fmt: skip
ARGUMENTS = (
    "--solver=",
    "--grid=",
    "--steps=",
    "--seeds=",
    "--nfe=",
    "--config.sampling.noise=",
    "--",
    "--x",
    "--out=",
)


class _Evil:
    """An object whose pickle writes a marker when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import evil",)


def _crafted() -> tuple[bytes, ...]:
    """Files that claim what they do not contain, or that contain code."""
    found = [b"", b"\0", b"PK\x03\x04", pickle.dumps(_Evil()), b"\x80\x04", b"\x93NUMPY", b"\x1f\x8b\x08\0"]
    for shape, kind in (((10**12,), "<f8"), ((2**62, 4), "|u1"), ((-1,), "<f8"), ((2, 2), "|O"), ((2, 2), "<c16"),
                        ((3, 0), "<f4"), ((1,) * 60, "<f4"), ((6, 3), "<M8[s]"), ((6, 3), "|S1000000000")):  # fmt: skip
        header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
        header += b" " * (-(len(header) + 11) % 64) + b"\n"
        found.append(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + b"\0" * 72)
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Evil(), _Evil()], dtype=object), allow_pickle=True)
    found.append(buffer.getvalue())
    for name, content in (("x.npy", buffer.getvalue()), ("../../up.npy", found[7]), ("x.npy", found[7])):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr(name, content)
        found.append(archive.getvalue())
    archive = io.BytesIO()
    packed = zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1)  # quickly
    with packed as made, made.open("x.npy", "w", force_zip64=True) as file:
        header = repr({"descr": "<f8", "fortran_order": False, "shape": (2**25, 4)}).encode().ljust(117) + b"\n"
        file.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)
        zeros = bytes(2**24)
        for _ in range(64):
            file.write(zeros)  # a gigabyte of them is five megabytes
    found.append(archive.getvalue())
    found.append(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 8, 8) + bytes(2**28), 1))
    found += [
        b"\0\0\x08\x03" + struct.pack(">3I", *sizes) + bytes(64) for sizes in ((2**32 - 1,) * 3, (0, 8, 8), (1, 8, 8))
    ]
    for header in (b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', b"[" * 100_000,
                   b'{"__metadata__":{"step":"24"}}', b'{"a":' * 50_000, b"{}"):  # fmt: skip
        found.append(struct.pack("<Q", len(header)) + header + bytes(16))
    found.append(struct.pack("<Q", 2**63) + b"{}")
    return tuple(found)


@functools.cache
def crafted() -> tuple[bytes, ...]:
    """The crafted files, made once."""
    return _crafted()


@st.composite
def edited_bytes(draw: st.DrawFn, data: bytes, others: tuple[bytes, ...]) -> bytes:
    """Bytes after a few edits: flipped bits, cuts, insertions, repeats, and parts of other files."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        kind, at = draw(st.integers(0, 6)), draw(st.integers(0, max(0, len(made) - 1)))
        length = draw(st.integers(1, 64))
        if kind == 0 and made:
            made[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del made[at:]
        elif kind == 2:
            made[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == 3:
            del made[at : at + length]
        elif kind == 4:
            made[at : at + 4] = draw(st.sampled_from((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"    ", b"9999")))
        elif kind == 5:
            made[at:at] = made[at : at + length] * draw(st.integers(1, 20))
        else:
            other = draw(st.sampled_from(others))
            made[at:] = other[min(at, len(other)) :]
    return bytes(made)


@st.composite
def edited_json(draw: st.DrawFn, text: bytes) -> bytes:
    """A JSON document whose values change type and size, and whose names vanish, repeat or are new."""
    document = [json.loads(text)]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.integers(0, 5))
        if kind <= 2:
            holder[key] = draw(st.sampled_from(VALUES))
        elif kind == 3 and holder is not document:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[draw(st.sampled_from(TEXTS))] = holder[key]
        else:
            holder[key] = [holder[key]] if draw(st.booleans()) else {"a": holder[key]}
    made = json.dumps(document[0]).replace(json.dumps(HUGE), "7" * 5000)
    return made.encode()


def _places(value: Any) -> Any:
    """The places of a document: a list or an object, and an index or a name in it."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], (list, dict)) and value[key] is not DEEP:
            yield from _places(value[key])


def texts() -> st.SearchStrategy[str]:
    """Specs: hostile ones, valid ones after edits, and any text."""
    return st.one_of(
        st.sampled_from(TEXTS),
        st.text(max_size=40),
        st.builds("{}{}{}".format, st.sampled_from(SPECS), st.sampled_from(TEXTS), st.sampled_from(SPECS)),
        st.builds(
            lambda spec, at, length, new: spec[:at] + new + spec[at + length :],
            st.sampled_from(SPECS), st.integers(0, 30), st.integers(0, 8),
            st.one_of(st.text(max_size=6), st.sampled_from(TEXTS)),
        ),
    )  # fmt: skip


def cases(entrance: Entrance, folder: Path) -> st.SearchStrategy[Case]:
    """The cases of an entrance."""
    if not entrance.files:
        made = texts()
        if entrance.name != "a spec":  # what is typed may name a module
            made = made.filter(lambda text: not any(name in text for name in ("evil", "antigravity", "this:")))
        if entrance.name == "a config field":
            made = st.builds("{}={}".format, st.sampled_from(FIELDS), made)
        if entrance.name == "an argument":
            made = st.builds("{}{}".format, st.sampled_from(ARGUMENTS), made)
        return made.map(lambda text: Case(entrance.name, "", text))
    valid = {name: (folder / name).read_bytes() for name in entrance.files}
    others = (*valid.values(), *crafted())

    def of_file(name: str) -> st.SearchStrategy[Case]:
        contents = [edited_bytes(valid[name], others), st.sampled_from(crafted())]
        if name.endswith(".json"):
            contents += [edited_json(valid[name])] * 3
        whole = st.builds(Case, st.just(entrance.name), st.just(name), st.one_of(*contents), st.just(entrance.sealed))
        special = st.builds(Case, st.just(entrance.name), st.just(name), st.sampled_from(SPECIAL))
        return st.integers(0, 19).flatmap(lambda k: special if k == 0 else whole)

    return st.sampled_from(entrance.files).flatmap(of_file)


def hostile(entrance: Entrance, folder: Path, count: int, seed: int) -> Tally:
    """Opens hostile inputs at an entrance, ``count`` of them."""
    tally, guard = Tally(f"hostile input: {entrance.name}"), Guard(folder)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(cases(entrance, folder))
    def attack(case: Case) -> None:
        end, detail = guard.open(case)
        tally.tried += 1
        tally.ends[end] += 1
        if end == "fault":
            tally.failures.append(f"{case}: {detail}")

    try:
        attack()
    finally:
        guard.close()
    return tally.done()


def shares(count: int) -> dict[str, int]:
    """How many of ``count`` cases each entrance gets, by its weight."""
    whole = sum(entrance.weight for entrance in ENTRANCES)
    return {entrance.name: max(1, round(count * entrance.weight / whole)) for entrance in ENTRANCES}
