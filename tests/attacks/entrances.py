"""Where files and specs enter the library: each entrance reads what is in the current folder, as a user's call would.

An entrance returns what it read in a form that can be compared. It raises ``InputError``, or is a command that ends
with status 2.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from attacks.long_commands import MODEL, command_line, tune
from attacks.processes import run

STEP = "run/checkpoints/step_00000024"
EVIL = "import pathlib; pathlib.Path({marker!r}).write_text('this ran')\nclass Net: pass\n"
MARKER = "EVIL_RAN"


@dataclass(frozen=True)
class Entrance:
    """An entrance.

    Attributes:
        name: what is opened there.
        files: the files that are replaced by hostile ones; empty if the text itself is hostile.
        read: opens what is in the current folder; an entrance for texts gets the text.
        protected: whether the files are under a digest: what is read is then what was written.
        sealed: a checkpoint whose digests are written again, as someone would who altered it on purpose.
        keeps: the files that must stay as they are; the others may be written.
        weight: how often it is attacked, relative to others: rarely where an attempt is expensive.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[..., object]
    protected: bool = False
    sealed: bool = False
    keeps: tuple[str, ...] = ("",)
    weight: int = 4


class Refused(Exception):
    """A command ended with status 2 and one line."""


def command(*arguments: str) -> str:
    """Runs the command line; returns its output.

    Raises:
        Refused: it reported an error in one line.
        AssertionError: it ended in another way.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command_line(*arguments)
    errors = [line for line in err.getvalue().split("\n") if line.startswith("error: ")]
    if status == 2 and len(errors) == 1:
        raise Refused(errors[0])
    assert status == 0, f"exit status {status}: {err.getvalue()[-500:]}"
    return out.getvalue()


def _weights() -> object:
    import scoresde

    network: Any = scoresde.load("run").network
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def _snapshots() -> object:
    import scoresde

    network: Any = scoresde.load("run", ema=0.07).network
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def _sample() -> object:
    command("sample", "--workdir=run", "--out=out", "--seeds=2", "--steps=2")
    return Path("out/samples.npz").exists()


def _resume() -> object:
    command("train", "--workdir=run", *MODEL)
    return True


def _shards() -> object:
    from scoresde.runs import build
    from scoresde.runs.run import load_run
    from scoresde.runs.score import Unfinished, evaluate

    overrides = ["--config.likelihood.batch_size=3", "--config.likelihood.steps=4"]
    loaded = load_run(Path("run"), overrides)
    x = build.load_data(loaded.config, loaded.card).test.first(6).x
    found = evaluate(loaded, x, "test", Path("scores/shards"))
    assert not isinstance(found, Unfinished)
    result = found["ode"]
    parts = {"nats": result.nats, "stderr": result.stderr, "latent": result.latent, **result.budget}
    return {name: value.numpy().tobytes() for name, value in parts.items()}


def _program() -> object:
    import torch

    import scoresde
    import solvers

    with _from_file("program.json"):
        solver = solvers.make("file:program.json")
        model = scoresde.targets.Gaussian(torch.zeros(2), 0.25).denoiser(scoresde.VP())
        return scoresde.sample(model, (2,), seeds=2, solver=solver).x.shape


def _show() -> object:
    return command("solvers", "file:program.json", "--show", "--out=program.png")


def _grid() -> object:
    import scoresde
    from solvers import grids

    with _from_file("tuned.json"):
        return len(grids.make("file:tuned.json").nodes(scoresde.VP(), None, None, None))


def _data(name: str, path: str, labels: str = "off") -> Callable[[], object]:
    def read() -> object:
        from scoresde.data import load

        data = load(name, path, labels=labels)
        assert data.train.tensor().isfinite().all()
        assert data.test.tensor().isfinite().all()
        return True

    return read


def _images() -> object:
    from scoresde.data import ImageOptions, load

    data = load("images", "photos", images=ImageOptions(size=(8, 8), channels=3))
    assert data.train.tensor().abs().max() <= 1
    return True


def _pipeline() -> object:
    import scoresde

    return scoresde.load("diffusers:pipeline").shape


def _dequantiser() -> object:
    from scoresde.likelihood.learned_dequantisation import load_dequantiser

    return load_dequantiser("noise.safetensors").shape


def _results() -> object:
    from scoresde.benchmark.rows import read

    return len(read("bench")[1])


def _spec(text: str) -> object:
    import scoresde
    from solvers.registry.options import REGISTRIES

    scoresde.sample  # noqa: B018  (registers all)
    made, refused = 0, []
    for registry in REGISTRIES.values():
        try:
            with _from_file("a file"):
                registry.make(text)
            made += 1
        except scoresde.InputError as error:
            refused.append(error)
    if not made:
        raise refused[0]
    return made


def _field(text: str) -> object:
    return command("train", "--workdir=out", *MODEL, "--config.training.steps=1", f"--config.{text}")


def _typed(text: str) -> object:
    return command("sample", "--workdir=run", "--out=out", "--seeds=2", *text.split("|"))


def _from_file(name: str) -> contextlib.AbstractContextManager[None]:
    """A block in which specs come from a file."""
    from solvers.registry.outside import Origin

    return Origin(name).limits()


TENSORS = tuple(f"{STEP}/{name}.safetensors" for name in ("model", "average_0", "average_1", "optimizer"))
RUN_FILES = (f"{STEP}/state.json", *TENSORS)
SNAPSHOT = "run/snapshots/step_00000021"
SNAPSHOT_FILES = tuple(
    f"{SNAPSHOT}/{name}" for name in ("state.json", "average_0.safetensors", "average_1.safetensors")
)
PIPELINE = (
    *("pipeline/model_index.json", "pipeline/scheduler/scheduler_config.json", "pipeline/unet/config.json"),
    "pipeline/unet/diffusion_pytorch_model.safetensors",
)
IMAGES = tuple(f"photos/{name}" for name in ("grey.png", "palette.png", "a.jpg", "b.tiff", "c.gif", "d.webp", "e.bmp"))
ENTRANCES = (
    Entrance("a run's config", ("run/config.json",), _weights),
    Entrance("a run's config, sample", ("run/config.json",), _sample, keeps=("run",), weight=2),
    Entrance("a checkpoint", RUN_FILES, _weights, protected=True),
    Entrance("an altered checkpoint with new digests", RUN_FILES, _weights, sealed=True),
    Entrance("a snapshot", SNAPSHOT_FILES, _snapshots, protected=True, weight=2),
    Entrance("an altered snapshot with new digests", SNAPSHOT_FILES, _snapshots, sealed=True, weight=2),
    Entrance(
        "a checkpoint, train", (*RUN_FILES, "run/train.jsonl", "run/config.json"), _resume, keeps=(STEP,), weight=2
    ),
    Entrance("shards", ("scores/shards/00000.npz", "scores/shards/00001.npz"), _shards, protected=True, weight=3),
    Entrance("a program", ("program.json",), _program),
    Entrance("a program, solvers --show", ("program.json",), _show, weight=1),
    Entrance("a grid", ("tuned.json",), _grid),
    Entrance("an array .npy", ("data.npy",), _data("file", "data.npy")),
    Entrance("an archive .npz", ("data.npz",), _data("file", "data.npz")),
    Entrance("IDX images", ("images-idx3-ubyte",), _data("idx", "images-idx3-ubyte")),
    Entrance("IDX images, gzipped", ("images-idx3-ubyte.gz",), _data("idx", "images-idx3-ubyte.gz")),
    Entrance("IDX labels", ("labels-idx1-ubyte",), _data("idx", "images-idx3-ubyte", "label"), weight=1),
    Entrance("an array .safetensors", ("data.safetensors",), _data("file", "data.safetensors", "label")),
    Entrance("CIFAR's pickles", ("cifar/data_batch_1", "cifar/test_batch"), _data("cifar", "cifar", "label")),
    Entrance("CIFAR's binary files", ("bin/data_batch_1.bin",), _data("cifar", "bin", "label"), weight=1),
    Entrance("an image", IMAGES, _images),
    Entrance("a folder of diffusers", PIPELINE, _pipeline, weight=2),
    Entrance("a dequantiser", ("noise.safetensors",), _dequantiser),
    Entrance("a benchmark's results", ("bench/results.json",), _results),
    Entrance("a spec", (), _spec, weight=8),
    Entrance("a config field", (), _field, weight=2),
    Entrance("an argument", (), _typed, weight=2),
)


def prepared(folder: Path, entrance: Entrance) -> Path:
    """Makes the valid files of an entrance in a folder, those that are not there yet, and modules that leave a marker
    if they are imported."""
    for place in (folder, folder / "path"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "evil.py").write_text(EVIL.format(marker=str(folder / MARKER)), encoding="utf-8")
    for name in ("run", *(Path(file).parts[0] for file in entrance.files or ("program.json",))):
        if not (folder / name).exists():
            function, arguments = MAKERS.get(name, (_make_files, (0,)))
            ended = run(function, folder, *arguments)
            assert ended.status == 0, ended.output
    return folder


def _make_data(rows: Any, labels: Any) -> None:
    """Files of labelled data, and a folder of images in several formats."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    save_file({"x": torch.from_numpy(rows), "label": labels}, "data.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    for folder, ending in (("cifar", ""), ("bin", ".bin"), ("photos", "")):
        Path(folder).mkdir()
        for name in ("data_batch_1", "test_batch") if folder != "photos" else ():
            records = b"".join(bytes([k]) + pixels[k].tobytes() for k in range(3))
            content = records if ending else pickle.dumps({b"data": pixels, b"labels": [0, 1, 2]}, protocol=2)
            (Path(folder) / f"{name}{ending}").write_bytes(content)
    image = Image.fromarray(pixels[0].reshape(32, 32, 3)[:12, :12])
    for file in IMAGES:
        mode = {"grey.png": "LA", "palette.png": "P", "c.gif": "P"}.get(Path(file).name, "RGB")
        image.convert("L" if mode == "LA" else "RGB").convert(mode).save(file)


def _make_files(seed: int) -> int:
    import numpy as np
    import torch

    from scoresde.likelihood.learned_dequantisation import VariationalDequantiser, save_dequantiser

    torch.manual_seed(seed)
    rows = torch.randn(6, 3).numpy()
    np.save("data.npy", rows)
    np.savez_compressed("data.npz", train=rows, test=rows[:2])
    images = b"\0\0\x08\x03" + struct.pack(">3I", 4, 8, 8) + bytes(range(256))
    Path("images-idx3-ubyte").write_bytes(images)
    Path("images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
    Path("labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 4) + bytes(range(4)))
    _make_data(rows, torch.arange(6))
    save_dequantiser(VariationalDequantiser((1, 4), 1, 4), "noise.safetensors")
    return 0


def _make_pipeline() -> int:
    diffusers: Any = import_module("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=2,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=20, clip_sample=False))
    pipeline.save_pretrained("pipeline")
    return 0


LIKELIHOOD = ("--out=scores", "--limit=6", "--steps=4", "--config.likelihood.batch_size=3")
MAKERS: dict[str, tuple[Callable[..., int], tuple[Any, ...]]] = {
    "run": (command_line, ("train", "--workdir=run", *MODEL)),
    "scores": (command_line, ("likelihood", "--workdir=run", *LIKELIHOOD)),
    "bench": (command_line, ("benchmark", "--workdir=run", "--out=bench", "--solvers=ddim", "--nfe=4", "--seeds=6")),
    "program.json": (command_line, ("solvers", "dpmpp_2m", "--steps=4", "--json=program.json")),
    "tuned.json": (tune, (0,)),
    "pipeline": (_make_pipeline, ()),
}
"""What makes a file or folder; all others are made by one function, at once."""
