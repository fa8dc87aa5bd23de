"""Attacks on the long commands and on everything that opens a file, see ``attacks``.

``make test`` tries a hundredth of each, ``make test-all`` all; ``benchmarks/reliability.py`` writes down the counts.
"""

import os

import pytest
from attacks.everything import PARTS, Scratch, attacks

FEW, ALL = 0.01, float(os.environ.get("ATTACKS", "1"))  # fractions of the full counts


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return Scratch(tmp_path_factory.mktemp("attacks"))


def check(scratch, part, fraction, commands=()):
    """Makes the attacks of a part, or those on some commands."""
    reasons = []
    for attack in attacks(scratch, fraction):
        if attack.part == part and attack.name.startswith(tuple(commands)):
            try:
                attack.start().check(attack.count)
            except PermissionError as reason:  # to mount a file system needs a right that not everybody has
                reasons.append(str(reason))
    if reasons:
        pytest.skip(reasons[0])


@pytest.mark.parametrize("part", PARTS)
def test_a_hundredth_of_the_attacks(scratch, part):
    # two commands stand for all where each attempt takes seconds
    check(scratch, part, FEW, ("",) if part in ("kills", "inputs") else ("train", "sample"))


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_all_attacks(scratch, part):
    check(scratch, part, ALL, ("",))
