"""Power averages reconstructed from snapshots: the algebra in closed form, real trainings, the commands, bad input."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import SMALL, contents, fails
from test_train import OPTIONS, assert_same_end, make, run

import scoresde
from scoresde.cli.parser import main
from scoresde.runs.run import load_run
from scoresde.training import checkpoint, posthoc
from scoresde.training.averages import Averages, gamma_of
from scoresde.training.posthoc import Profile, average_of, coefficients, inner, reachable
from solvers import InputError

pytestmark = pytest.mark.quick
PAIR = ("power(std=0.05)", "power(std=0.1)")  # those of the paper


def pair(times):
    return [Profile(time, gamma_of(std)) for time in times for std in (0.05, 0.1)]


def products(profiles, others):
    def column(of, field):
        return torch.tensor([getattr(p, field) for p in of], dtype=torch.float64)

    return inner(column(profiles, "time")[:, None], column(profiles, "gamma")[:, None],
                 column(others, "time"), column(others, "gamma"))  # fmt: skip


def of_updates(profile, count):
    """The weight of each of the first ``count`` updates in an average, in closed form."""
    edge = (torch.arange(count + 1, dtype=torch.float64) / profile.time).clamp(max=1) ** (profile.gamma + 1)
    return edge.diff()


def test_inner_products_are_the_published_ones():
    a, b = Profile(300, gamma_of(0.05)), Profile(400, gamma_of(0.1))
    c, d = Profile(400, gamma_of(0.05)), Profile(300, gamma_of(0.1))
    # numbers of the authors' program (NVlabs/edm2, training/phema.py) for the same arguments
    assert products([a], [b]).item() == pytest.approx(0.0019458974566833908, rel=1e-12)
    assert products([c], [d]).item() == pytest.approx(0.00010848267738173237, rel=1e-12)
    assert products([c], [c]).item() == pytest.approx(0.02310813380964941, rel=1e-12)


def test_inner_products_are_integrals():
    one, other = Profile(3.0, gamma_of(0.2)), Profile(4.0, gamma_of(0.1))
    tau = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 100_000  # the middles of cells, none across an end
    densities = [(p, (p.gamma + 1) * tau**p.gamma / p.time ** (p.gamma + 1) * (tau < p.time)) for p in (one, other)]
    for (p, f), (q, g) in ((x, y) for x in densities for y in densities):
        # the midpoint rule's error is h^2 / 24 times a derivative of order 100
        assert products([p], [q]).item() == pytest.approx(float((f * g).sum()) / 100_000, rel=1e-8)


@pytest.mark.parametrize("std", [0.02, 0.07, 0.15, 0.25])
def test_coefficients_are_the_best_ones_of_sum_one(std):
    profiles, wanted = pair(range(100, 900, 100)), Profile(800, gamma_of(std))
    found, error = coefficients(profiles, wanted)
    c = torch.tensor(found, dtype=torch.float64)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    a, b, p = products(profiles, profiles), products(profiles, [wanted])[:, 0], products([wanted], [wanted]).item()
    distance = p - 2 * c @ b + c @ a @ c
    assert math.sqrt(distance / p) == pytest.approx(error, rel=1e-6)
    # the derivative along every change that keeps the sum vanishes
    slope = a @ c - b
    assert (slope - slope.mean()).abs().max() < 1e-10 * b.abs().max()
    # nearly the authors' solution, which is of any sum and is then divided by it
    if std == 0.07:
        theirs = [0.007252178024206802, -0.01940544199435594, 0.04239791331066494, -0.10864094698057446]
        assert found[-6:] == pytest.approx([*theirs, 0.38708213040015466, 0.693127414770172], abs=2e-3)


def test_squared_errors_fall_like_the_fourth_power_of_the_number_of_times_as_the_paper_states():
    """Karras et al. 2024, figure 4: the mean squared error of the profile is O(1 / n^4), from a few dozen times on."""

    def error(times, std):
        return coefficients(pair(range(1, times + 1)), Profile(times, gamma_of(std)))[1]

    # the order between n and 2 n times approaches 4 from below: 3.83 to 3.99 here, and 3.94 to 4.00
    for std in (0.03, 0.04, 0.07, 0.15, 0.2):
        assert 3.8 < 2 * math.log2(error(32, std) / error(64, std)) < 4.05
    for std in (0.015, 0.07, 0.2):
        assert 3.9 < 2 * math.log2(error(128, std) / error(256, std)) < 4.05
    # tau^0.72, the profile of 0.25, has an infinite slope at 0, which averages of higher powers do not have: what they
    # miss is the square of tau^gamma over the first 1 / n of the time
    found = 2 * math.log2(error(64, 0.25) / error(128, 0.25))
    assert found == pytest.approx(2 * gamma_of(0.25) + 1, abs=0.01)


@pytest.mark.parametrize(("times", "narrow", "wide"), [(64, 0.003, 0.024), (80, 0.0019, 0.016), (256, 0.00019, 0.0027)])
def test_errors_in_the_papers_setting(times, narrow, wide):
    """The pair at as many times as the paper stored (80 to 256) and published (64), over the widths that it names.

    The paper calls this nearly perfect and gives no number (appendix C.5). The limits are those of the module's
    docstring; no error is larger than that of the authors' algorithm 3.
    """
    profiles = pair(range(1, times + 1))
    products_of_pairs = products(profiles, profiles)
    errors = {}
    for std in (0.015, 0.03, 0.07, 0.2, 0.25):
        wanted = Profile(times, gamma_of(std))
        error = errors[std] = coefficients(profiles, wanted)[1]
        # theirs solves A x = b and divides x by its sum
        b, length = products(profiles, [wanted])[:, 0], products([wanted], [wanted]).item()
        x = torch.linalg.solve(products_of_pairs, b)
        x = x / x.sum()
        theirs = float((length - 2 * x @ b + x @ products_of_pairs @ x) / length) ** 0.5
        # squares of 2e-10 and more, as differences of numbers of the order 1, lose all but 6 digits
        assert error < theirs * (1 + 1e-5)
    assert 0.9 * narrow < max(errors[std] for std in (0.03, 0.07, 0.2)) < narrow
    assert 0.9 * wide < max(errors.values()) < wide


@pytest.mark.parametrize("std", [0.015, 0.03, 0.07, 0.15, 0.2, 0.25])
def test_weights_in_the_papers_setting(std):
    """Of a random walk of weights, averages that were stored at 80 times give the average that is tracked directly."""
    times, every = 80, 32
    steps = times * every
    walk = torch.randn(steps, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0)
    profiles, wanted = pair(range(every, steps + 1, every)), Profile(steps, gamma_of(std))
    found, error = coefficients(profiles, wanted)
    stored = torch.stack([of_updates(profile, steps) for profile in profiles]) @ walk
    tracked = of_updates(wanted, steps) @ walk
    off = float((torch.tensor(found, dtype=torch.float64) @ stored - tracked).norm())
    # the bound of the module's docstring
    length = math.sqrt(products([wanted], [wanted]).item())
    assert off < error * length * float((walk - tracked).square().sum().sqrt())
    # in numbers: what a profile misses oscillates between the times, and weights change little in between
    assert off < {0.015: 2e-4, 0.25: 2e-3}.get(std, 5e-5) * float(tracked.norm())
    assert off < 0.2 * error * float((walk[-1] - tracked).norm())


def test_a_stored_profile_is_itself():
    profiles = pair([50, 100])
    assert coefficients(profiles, profiles[2]) == ([0.0, 0.0, 1.0, 0.0], 0.0)


def test_the_reach_of_snapshots():
    low, high = reachable(pair(range(25, 225, 25)), 200)
    assert 0.02 < low < 0.05 < 0.1 < high < 0.25
    for std, inside in ((low, True), (low / 1.1, False), (high, True), (high * 1.1, False)):
        error = coefficients(pair(range(25, 225, 25)), Profile(200, gamma_of(std)))[1]
        assert (error <= posthoc.LARGEST_ERROR) == inside


STEPS, EVERY = 128, 8
LONG = replace(OPTIONS, steps=STEPS, averages=PAIR, snapshot_every=EVERY, checkpoint_every=64, bin_width=None)


def flat(tensors):
    return torch.cat([v.double().flatten() for n, v in sorted(tensors.items()) if v.is_floating_point()])


STDS = (0.03, 0.05, 0.07, 0.15, 0.2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that stored the pair at 16 times, its weights after every update, and averages of the same run tracked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, network, path = tmp_path_factory.mktemp("pair"), make(), []
    update = Averages.update

    def recorded(averages):
        update(averages)
        path.append(flat(network.state_dict()).clone())

    direct = tuple(f"power(std={std})" for std in STDS)
    with pytest.MonkeyPatch.context() as patch:
        run(replace(LONG, workdir=folder))
        patch.setattr(Averages, "update", recorded)
        other = tmp_path_factory.mktemp("direct")
        run(replace(LONG, averages=direct, snapshot_every=None, checkpoint_every=STEPS, workdir=other), network)
    torch.set_num_threads(threads)
    return folder, path, checkpoint.load(checkpoint.latest(other)).averages


@pytest.mark.parametrize("std", STDS)
def test_a_reconstruction_is_the_average_of_the_same_training(trained, std):
    folder, path, tracked = trained
    last = checkpoint.load(checkpoint.latest(folder))
    tensors, chosen = average_of(folder, last, std)
    direct = tracked[f"power(std={std})"].tensors
    assert int(tensors["norm.num_batches_tracked"]) == STEPS
    off = float((flat(tensors) - flat(direct)).norm())
    if std == 0.05:  # stored
        assert chosen == ("power(std=0.05)", 1, 0.0)
        assert off == 0
        return
    assert chosen.stored == 2 * STEPS // EVERY
    thetas = torch.stack(path)
    profile = Profile(STEPS, gamma_of(std))
    # the average in closed form, which both approach: float32 rounds each of 128 updates by at most 2^-24
    exact = of_updates(profile, STEPS) @ thetas
    scale = float(exact.norm())
    assert float((flat(direct) - exact).norm()) < STEPS * 2.0**-24 * scale
    # the bound of the module's docstring; the coefficients of at most 11 in sum multiply the rounding of what is stored
    length = math.sqrt(products([profile], [profile]).item())
    spread = float((thetas - exact).square().sum().sqrt())
    assert off < chosen.error * length * spread + 12 * STEPS * 2.0**-24 * scale
    # in numbers: the profile's error of a few per cent or less shows in the weights as less than that of their spread
    assert off < chosen.error * float((thetas[-1] - exact).norm())
    assert chosen.error < {0.03: 0.04, 0.07: 0.004, 0.15: 0.01, 0.2: 0.03}[std]


def test_a_width_that_is_far_off_would_be_seen(trained):
    """The averages that the test above compares differ by a hundred times its tolerance."""
    _, path, tracked = trained
    one, other = (flat(tracked[f"power(std={std})"].tensors) for std in (0.07, 0.15))
    assert float((one - other).norm()) > 100 * 0.01 * 0.05 * float((path[-1] - other).norm())


def test_snapshots_of_lost_work_are_removed_and_made_again(tmp_path):
    options = replace(LONG, steps=36, checkpoint_every=15, snapshot_every=12)
    run(replace(options, workdir=tmp_path / "whole"))
    folder = tmp_path / "stopped"
    run(replace(options, steps=30, workdir=folder))
    shutil.rmtree(checkpoint.latest(folder))  # as if the process had been killed before it was written
    lost = folder / "snapshots" / "step_00000024" / "average_0.safetensors"
    lost.write_bytes(b"of lost work")
    (folder / "snapshots" / ".tmp_step_00000036.1").mkdir()
    run(replace(options, workdir=folder), make(seed=9))
    assert_same_end(tmp_path / "whole", folder)
    kept = [{file.relative_to(top): data for file, data in contents(top / "snapshots").items()}
            for top in (tmp_path / "whole", folder)]  # fmt: skip
    assert kept[0] == kept[1]
    assert [p.name for p in sorted((folder / "snapshots").iterdir())] == [f"step_000000{k}" for k in (12, 24, 36)]


def test_bad_input_is_one_line(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    last = checkpoint.load(checkpoint.latest(folder))
    for std in (0.0, -1.0, 0.29, math.nan, math.inf, 1e-300):
        with pytest.raises(InputError, match=r"sampling\.ema is a standard deviation in \[1e-06, 0\.2887\), got"):
            average_of(folder, last, std)
    reach = (
        r"profile error of 0\.\d+, more than 0\.1, from the 32 stored .*; within reach: 0\.0\d+ to 0\.2\d*\. A small"
    )
    for std in (0.001, 0.285):
        with pytest.raises(InputError, match=reach):
            average_of(folder, last, std)
    file = folder / "snapshots" / "step_00000040" / "average_1.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"step_00000040.average_1\.safetensors' is damaged: \d+ bytes instead"):
        average_of(folder, last, 0.07)
    file.unlink()
    with pytest.raises(InputError, match=r"cannot read .*step_00000040.average_1\.safetensors'"):
        average_of(folder, last, 0.07)
    shutil.rmtree(file.parent)  # a snapshot that is not there costs accuracy, which the error shows
    fewer = average_of(folder, last, 0.07)[1]
    assert fewer.stored == 30
    assert fewer.error > average_of(trained[0], last, 0.07)[1].error
    for left in (folder / "snapshots").iterdir():
        shutil.rmtree(left)
    with pytest.raises(InputError, match="from the 2 stored averages"):
        average_of(folder, last, 0.2)
    average = checkpoint.AverageState(5, {**last.averages[PAIR[0]].tensors, "last.bias": torch.zeros(1)})
    posthoc.save(folder, 5, {PAIR[0]: average})
    with pytest.raises(InputError, match=r"step_00000005' is of a different network .*: last\.bias is not the same"):
        average_of(folder, last, 0.07)
    without = replace(last, averages={"ema(decay=0.9)": last.averages[PAIR[0]]})
    with pytest.raises(InputError, match=r"sampling\.ema=0\.07 needs power averages, and .* has ema\(decay=0\.9\): tr"):
        average_of(folder, without, 0.07)
    with pytest.raises(InputError, match="snapshot_every stores power averages, and averages names none"):
        replace(OPTIONS, snapshot_every=5)


def test_the_commands_take_any_average(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32))
    averages = f"--config.training.averages=ema(decay=0.9), {', '.join(PAIR)}"
    arguments = ["--config.data.name=file", "--config.data.path=x.npy", "--config.training.steps=40", averages]
    arguments += ["--config.training.snapshot_every=4", *SMALL]
    assert main(["train", "--config=digits_vp", "--workdir=run", *arguments]) == 0
    kept = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    weights = {
        None: kept.averages["ema(decay=0.9)"].tensors,
        0.1: kept.averages["power(std=0.1)"].tensors,
        0.07: average_of(tmp_path / "run", kept, 0.07)[0],
    }
    for std, expected in weights.items():
        found = scoresde.load("run", ema=std).network.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert load_run(tmp_path / "run").average == ("ema(decay=0.9)", 1, 0.0)
    first = {name: value.clone() for name, value in scoresde.load("run").network.state_dict().items()}
    assert any(not torch.equal(first[name], weights[0.07][name]) for name in first)
    capsys.readouterr()
    line = r"weights: power(std=0.07), reconstructed from 20 stored averages with a profile error of 0.0"
    for command, file in (
        (["sample", "--seeds=2", "--steps=2"], "samples.json"),
        (["likelihood", "--limit=2", "--steps=4", "--split=test"], "likelihood.json"),
        (["benchmark", "--solvers=ddim", "--nfe=2", "--seeds=4"], "results.json"),
    ):
        out = f"--out={command[0]}"
        assert main([*command, "--workdir=run", out, "--config.sampling.ema=0.07"]) == 0
        assert line in capsys.readouterr().out
        document = json.loads((tmp_path / command[0] / file).read_text())
        average = document.get("average") or document["header"]["average"]
        assert (average["spec"], average["stored"]) == ("power(std=0.07)", 20)
        assert 0 < average["error"] < 0.02
    fails(capsys, ["likelihood", "--workdir=run", "--out=likelihood", "--limit=2", "--steps=4"], "the weights is")
    fails(capsys, ["sample", "--workdir=run", "--out=b", "--config.sampling.ema=0.5"], "0.2887), got 0.5")
    with pytest.raises(InputError, match=r"ema=0\.1 chooses an average of a run"):
        scoresde.load("diffusers:run", ema=0.1)
