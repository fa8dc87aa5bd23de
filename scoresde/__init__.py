"""Score-based diffusion models: paths, denoisers, training, sampling, likelihood, bounds and a solver benchmark.

The first use of a public name imports all of them, see ``scoresde.public``. Until then nothing is imported, not even
torch, so that ``scoresde --help`` needs no second.
"""

TYPE_CHECKING = False  # type checkers take it as true; no import, so that python -m runs no typing.py that lies around
__version__ = "0.1.0"

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        """Imports a public name, or a room such as ``scoresde.training``, at its first use."""
        from importlib import import_module
        from importlib.util import find_spec

        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        public = import_module(f"{__name__}.public")
        if name not in ("__all__", *public.__all__):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(public, name)
        return found

    def __dir__() -> list[str]:
        from .public import __all__

        return sorted({*globals(), *__all__})
