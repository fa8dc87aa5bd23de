"""What people type, turned into canonical names."""

from __future__ import annotations

import re


def normalise(name: str) -> str:
    """A label as a name: lower case, ``++`` as ``pp``, words joined by ``_``, prefixes dropped, ``_a`` spelled out.

    >>> [normalise(n) for n in ("DPM++ 2M", "Euler a", "sample_heun", "k_lms", "HeunDiscreteScheduler")]
    ['dpmpp_2m', 'euler_ancestral', 'heun', 'lms', 'heundiscretescheduler']
    """
    text = re.sub(r"[\s\-.]+", "_", name.strip().replace("++", "pp").lower())
    text = re.sub(r"^(sample_|k_)", "", text)
    text = re.sub(r"_gpu$", "", text)
    return re.sub(r"_a$", "_ancestral", text)
