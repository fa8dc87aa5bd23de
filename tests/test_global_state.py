"""No function leaves the process changed, nor the network that it was given: measured in a new process."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import scoresde
import solvers
from scoresde.cli.arguments import HELP

# what training is for, and leaves: the network in evaluation mode, with other numbers and without gradients
TRAINED = {"mode", "numbers", "places", "gradients"}
FAILED = TRAINED - {"mode"}


def measured(run, given):
    """What each call has changed, and its error, by the name of the call, see ``global_state.results``."""
    diffusers = pytest.importorskip("diffusers")
    (given / "run").symlink_to(run)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(given / "pipe")
    script = Path(__file__).with_name("global_state.py")
    done = subprocess.run([sys.executable, script, given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


# one test, so that one process measures: a fixture would be made again in every process that got one of its tests
@pytest.mark.long
def test_no_function_and_no_command_changes_the_process_or_its_network(run, tmp_path):
    found = measured(run, tmp_path)
    every_public_function_and_every_command_is_called(found)
    changed = {name: what for name, (what, _) in found.items() if what and not name.startswith("train")}
    assert changed == {}
    training_changes_only_what_it_trains(found)


def every_public_function_and_every_command_is_called(found):
    public = {name for room in (scoresde, solvers) for name in room.__all__ if inspect.isroutine(getattr(room, name))}
    assert public - found.keys() == set()
    assert {f"scoresde {name}" for name in HELP} - found.keys() == set()
    # and the calls do what they are for
    assert {name: error for name, (_, error) in found.items() if error and not name.endswith("failing")} == {}
    failing = {name for name, (_, error) in found.items() if error and "the network fails" in error}
    assert len(failing) >= 15


def training_changes_only_what_it_trains(found):
    assert set(found["train"][0]) == TRAINED
    after = {name: pair[1] for name, pair in found["train"][0].items()}
    assert "True" not in after["mode"]
    assert set(found["train failing"][0]) <= FAILED
    for what in (found["train"][0], found["train failing"][0]):  # it may fail before it has any
        assert what.get("gradients", ["", str([False] * 6)])[1] == str([False] * 6)
