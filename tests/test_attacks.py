"""Attacks on the long commands and on everything that opens a file, see ``attacks``.

``make test`` tries a hundredth of some, ``make test-all`` all; ``benchmarks/checks/reliability.py`` writes down the
counts.
"""

import os

import pytest
from attacks.decoys import CARELESS, DECOYS, careless
from attacks.entrances import EVIL, MARKER
from attacks.everything import PARTS, Scratch, attacks
from attacks.guard import Case, Guard
from attacks.kills import kills, measured
from attacks.processes import run

pytestmark = pytest.mark.long

FEW, ALL = 0.01, float(os.environ.get("ATTACKS", "1"))  # fractions of the full counts
# what stands for the rest: a command that resumes and one that replaces; JSON, tensors, an archive, text
FILES = ("a run's config", "a checkpoint, train", "a program", "an archive .npz", "a spec", "an argument")


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


def test_a_process_that_opens_hostile_files_sees_what_they_do(tmp_path):
    folder = tmp_path / "files"
    (folder / "path").mkdir(parents=True)
    (folder / "evil.py").write_text(EVIL.format(marker=str(folder / MARKER)))
    (folder / "path" / "evil.py").write_text(EVIL.format(marker=str(folder / MARKER)))
    (folder / "tuned.json").write_text("{}")
    guard = Guard(folder)
    ends = {decoy.name: guard.open(Case(decoy.name, "", "text")) for decoy in DECOYS}
    guard.close()
    assert {name: end for name, end in ends.items() if end[0] != "fault"} == {}
    assert "evil" in ends["_evaluates"][1]
    assert "MemoryError" in ends["_believes_a_claim"][1]


def test_kills_find_a_command_that_mixes_two_results(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    assert run(careless, base, 0).status == 0
    found = kills(measured(CARELESS, base, tmp_path / "measured"), tmp_path / "killed", 8, seed=0)
    assert any("neither that of before nor the new one" in failure for failure in found.failures)


@pytest.mark.parametrize("part", PARTS)
def test_a_hundredth_of_the_attacks(scratch, part):
    check(scratch, part, FEW, FILES if part == "inputs" else ("train", "sample"))


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_all_attacks(scratch, part):
    check(scratch, part, ALL, ("",))
