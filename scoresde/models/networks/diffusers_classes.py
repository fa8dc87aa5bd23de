"""Networks of diffusers, which is imported when the first one is made."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from solvers import InputError
from solvers.libraries import without_traces

LABELS = 1000.0  # diffusers' sinusoids are spaced for steps 0 .. 1000
# packages that diffusers imports if they are there
_OPTIONAL = ("torchvision", "transformers", "accelerate", "flash_attn", "xformers", "peft", "bitsandbytes")


def of_diffusers(network: str, name: str, options: Mapping[str, Any], module: str = "diffusers") -> Any:
    """An object of a class of diffusers.

    Args:
        network: the name of the recipe, for messages.
        name: the name of the class.

    Raises:
        InputError: diffusers is not installed, or cannot be imported.
    """
    try:
        with without_traces():
            make = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise _broken(network, error) from error
        raise InputError(f'the network {network!r} needs diffusers: pip install "scoresde[images]"') from None
    except Exception as error:  # of any package that diffusers looks at
        raise _broken(network, error) from error
    return make(**options)


def _broken(network: str, error: Exception) -> InputError:
    """The error for an environment in which diffusers is installed and cannot be imported."""
    first: BaseException = error
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    text = f"{error} {first} {_files(first)}"
    packages = [package for package in _OPTIONAL if package in text]
    culprit = packages[0] if packages else "one of its packages"
    version = " of a version that fits this torch" if packages else ""
    return InputError(
        f"the network {network!r} needs diffusers, which cannot be imported because {culprit} is broken in this "
        f"environment ({type(first).__name__}: {first}): uninstall {culprit} (scoresde does not need it), or install "
        f"it{version}"
    )


def _files(error: BaseException) -> str:
    """The files through which an error passed."""
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return " ".join(found)
