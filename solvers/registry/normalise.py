"""Conversion of the labels that people type to canonical names."""

from __future__ import annotations

import re


def is_title(name: str) -> bool:
    """Whether a label is written as a program shows it to people, with capitals or spaces: "KL Optimal"."""
    return any(letter.isupper() or letter.isspace() for letter in name.strip())


def normalise(name: str) -> str:
    """Converts a label to a name.

    The name is in lower case, with ``++`` as ``pp``, words joined by ``_``, no prefixes, and ``_a`` as ``_ancestral``.

    >>> [normalise(n) for n in ("DPM++ 2M", "Euler a", "sample_heun", "k_lms", "HeunDiscreteScheduler")]
    ['dpmpp_2m', 'euler_ancestral', 'heun', 'lms', 'heundiscretescheduler']
    """
    text = re.sub(r"[\s\-.]+", "_", name.strip().replace("++", "pp").lower())
    text = re.sub(r"^(sample_|k_)", "", text)
    text = re.sub(r"_gpu$", "", text)
    return re.sub(r"_a$", "_ancestral", text)
