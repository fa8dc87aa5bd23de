"""Trained models by the folder that they lie in."""

from __future__ import annotations

from pathlib import Path

from solvers import InputError

from ..models.denoiser import Denoiser

DIFFUSERS = "diffusers:"


def load(source: str | Path) -> Denoiser:
    """The denoiser of a trained model: averaged weights, in evaluation, on the CPU or where the run's config says.

    Args:
        source: the folder of a run of ``scoresde train``; or "diffusers:FOLDER", a folder that diffusers' DDPMPipeline
            or DDIMPipeline was saved to, see ``scoresde.interop.diffusers_folder``. Nothing is fetched from a network,
            and of diffusers' folders nothing is unpickled. ``denoiser.shape`` is the shape of a sample where the folder
            says it; ``denoiser.network`` is a module, which moves to another device as any.

    Raises:
        InputError: the folder is neither, or holds what has no counterpart here.
    """
    text = str(source)
    if text.startswith(DIFFUSERS):
        from ..interop import diffusers_folder  # which needs diffusers

        return diffusers_folder.read(Path(text.removeprefix(DIFFUSERS)))
    path = Path(source)
    if (path / "model_index.json").is_file():
        raise InputError(f"{path} is a pipeline of diffusers: load('{DIFFUSERS}{path}')")
    if not path.is_dir():
        raise InputError(f"no folder {text!r}; load takes the folder of a run, or {DIFFUSERS}FOLDER")
    from .run import load_run  # which needs what the command line needs

    return load_run(path).denoiser
