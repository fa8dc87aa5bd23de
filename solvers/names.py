"""What people type, turned into canonical names."""

from __future__ import annotations

import re

# grids that front ends append to a sampler's label, as in "DPM++ 2M Karras"
_GRID_SUFFIXES = {
    "karras": "karras",
    "ka": "karras",
    "exponential": "logsnr",
}


def normalise(name: str) -> str:
    """A label as a name: lower case, ``++`` as ``pp``, words joined by ``_``, CamelCase split, prefixes dropped.

    >>> [normalise(n) for n in ("DPM++ 2M", "Euler a", "sample_heun", "k_lms", "HeunDiscreteScheduler")]
    ['dpmpp_2m', 'euler_ancestral', 'heun', 'lms', 'heundiscretescheduler']
    """
    text = re.sub(r"[\s\-.]+", "_", name.strip().replace("++", "pp").lower())
    text = re.sub(r"^(sample_|k_)", "", text)
    text = re.sub(r"_gpu$", "", text)
    return re.sub(r"_a$", "_ancestral", text)


def split_grid(label: str) -> tuple[str, str | None]:
    """A sampler's label without its grid, and the grid that it names, if any.

    >>> split_grid("DPM++ 2M Karras"), split_grid("heun")
    (('DPM++ 2M', 'karras'), ('heun', None))
    """
    head, separator, options = label.partition("(")
    words = re.split(r"[\s_]+", head.strip())
    grid = _GRID_SUFFIXES.get(words[-1].lower()) if len(words) > 1 else None
    if grid is None:
        return label, None
    return head.strip()[: -len(words[-1])].rstrip(" _") + separator + options, grid
