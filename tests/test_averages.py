"""Averages: their decays against the published formulas, their profiles in closed form, several at once, resumption."""

import math
from dataclasses import replace

import pytest
import torch
from test_train import OPTIONS, assert_same_end, final, make, run
from torch import nn

from scoresde.training import checkpoint
from scoresde.training.averages import WIDEST, Averages, decays, gamma_of, std_of
from solvers import InputError

pytestmark = pytest.mark.quick


def test_the_warm_up_of_ema():
    ema = decays.make("ema(decay=0.999)")
    assert [ema.at(n, 1) for n in (1, 8, 80)] == [2 / 11, 9 / 18, 81 / 90]
    assert ema.at(10**6, 1) == 0.999


def test_the_half_life_counts_samples():
    decay = decays.make("half_life(samples=1000, ramp=0.05)")
    # after the ramp, 1000 samples halve a weight, in batches of any size
    assert decay.at(10**6, 1) ** 1000 == pytest.approx(0.5, rel=1e-12)
    assert decay.at(10**6, 50) ** 20 == pytest.approx(0.5, rel=1e-12)
    # in the ramp, a twentieth of the 100 * 8 samples so far
    assert decay.at(100, 8) == pytest.approx(0.5 ** (8 / 40), rel=1e-12)
    assert decays.make("half_life(samples=1000, ramp=inf)").at(1, 10) == pytest.approx(0.5**0.01, rel=1e-12)


@pytest.mark.parametrize("std", [1e-4, 0.01, 0.05, 0.1, 0.2, 0.28, 0.2886])
def test_the_exponent_of_a_standard_deviation(std):
    gamma = gamma_of(std)
    assert std_of(gamma) == pytest.approx(std, rel=1e-12)
    assert gamma > 0
    # the deviation of the density (g + 1) x^g on [0, 1], by its moments (g + 1) / (g + 1 + k)
    first, second = ((gamma + 1) / (gamma + 1 + k) for k in (1, 2))
    assert std**2 == pytest.approx(second - first**2, rel=1e-6)


def test_the_published_exponents():
    # Karras et al. 2024, section 3.2: the standard deviations 0.05 and 0.10
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("std", [-0.1, 0.0, 1e-7, WIDEST, math.nan])
def test_standard_deviations_without_a_profile(std):
    with pytest.raises(InputError, match=r"power: std must lie in \[1e-06, 0\.288675\), got"):
        decays.make(f"power(std={std})" if std == std else decays.info("power").cls(std))


def walk(network, values):
    for value in values:
        with torch.no_grad():
            network.weight.fill_(value)
        yield value


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25])
def test_a_power_average_of_a_ramp_is_its_profile_at_every_step(std):
    network = nn.BatchNorm1d(1).double()
    averages, gamma = Averages(network, f"power(std={std})", 1), gamma_of(std)
    for t in walk(network, range(1, 201)):
        averages.update()
        # (g + 1) / t^(g + 1) times the integral of tau^g ceil(tau): t - sum over s < t of (s / t)^(g + 1)
        exact = t - math.fsum((s / t) ** (gamma + 1) for s in range(1, t))
        # each of t updates rounds by at most 2^-53 of the value
        assert averages.first.module.weight.item() == pytest.approx(exact, rel=1e-13)
    # a continuous ramp has the mean (g + 1) / (g + 2); the steps add between 0 and 1
    assert 0 < exact - 200 * (gamma + 1) / (gamma + 2) < 1


def test_weights_of_every_update_in_closed_form():
    """The weight of update s in the average after n: that of the response to a single 1 among zeros."""
    count, batch = 40, 8
    forms = {
        "power(std=0.1)": lambda s: (
            (s ** (gamma_of(0.1) + 1) - (s - 1) ** (gamma_of(0.1) + 1)) / count ** (gamma_of(0.1) + 1)
        ),
    }
    for spec in ("ema(decay=0.9)", "half_life(samples=100, ramp=0.1)"):
        decay = decays.make(spec)
        bs = [0.0, *(decay.at(n, batch) for n in range(1, count))]
        forms[spec] = lambda s, bs=bs: (1 - bs[s - 1]) * math.prod(bs[s:])
    for s in (1, 2, 17, 40):
        network = nn.BatchNorm1d(1).double()
        averages = Averages(network, list(forms), batch)
        for _ in walk(network, [float(k == s) for k in range(1, count + 1)]):
            averages.update()
        for spec, form in forms.items():
            canonical = str(decays.make(spec))
            assert averages[canonical].module.weight.item() == pytest.approx(form(s), rel=1e-12, abs=1e-300)


def test_several_averages_are_those_of_one_each():
    specs = ["ema(decay=0.7)", "half_life(samples=30.0, ramp=0.05)", "power(std=0.2)"]
    network = nn.BatchNorm1d(1).double()
    together, alone = Averages(network, specs, 4), [Averages(network, spec, 4) for spec in specs]
    for n in range(30):
        with torch.no_grad():
            network.weight.fill_(math.sin(n))
            network.running_mean.fill_(math.cos(n))
            network.num_batches_tracked.fill_(n)
        for averages in (together, *alone):
            averages.update()
    assert list(together.states()) == specs
    for spec, one in zip(specs, alone, strict=True):
        module, single = together[spec].module, one.first.module
        assert module.weight.item() == single.weight.item()
        assert module.running_mean.item() == single.running_mean.item()
        assert int(module.num_batches_tracked) == 29
    # by hand, also the buffer
    mean = buffer = None
    for n in range(30):
        d = min(0.7, (1 + n) / (10 + n))
        mean = math.sin(n) if n == 0 else d * mean + (1 - d) * math.sin(n)
        buffer = math.cos(n) if n == 0 else d * buffer + (1 - d) * math.cos(n)
    assert together.first.module.weight.item() == pytest.approx(mean, rel=1e-12)
    assert together.first.module.running_mean.item() == pytest.approx(buffer, rel=1e-12)
    assert together.first.updates == 30


SEVERAL = ("power(std=0.1)", "ema(decay=0.9)", "half_life(samples=50.0, ramp=0.05)")


def test_a_resumed_run_has_every_average_with_its_own_counter(tmp_path):
    """In score_models the averages begin again, and the averaged weights replace the network's."""
    options = replace(OPTIONS, averages=SEVERAL)
    whole = run(replace(options, workdir=tmp_path / "whole"))
    run(replace(options, steps=11, workdir=tmp_path / "halves"))
    halves = run(replace(options, workdir=tmp_path / "halves"), make(seed=9))
    assert_same_end(tmp_path / "whole", tmp_path / "halves")
    _, updates, tensors = final(tmp_path / "halves")
    assert updates == dict.fromkeys(SEVERAL, 24)
    assert torch.equal(halves.network.last.weight, whole.network.last.weight)
    assert torch.equal(halves.network.last.weight, tensors["model.last.weight"])
    assert torch.equal(halves.ema.last.weight, tensors["average_0.last.weight"])
    weights = [tensors[f"{name}.last.weight"] for name in ("model", "average_0", "average_1", "average_2")]
    assert all(not torch.equal(one, other) for k, one in enumerate(weights) for other in weights[:k])


def test_a_counter_is_restored_and_not_the_step(tmp_path):
    """An average that was updated less often than the network goes on from its own counter."""
    options = replace(OPTIONS, averages=SEVERAL, steps=8, workdir=tmp_path)
    run(options)
    kept = checkpoint.load(checkpoint.latest(tmp_path))
    spec = "power(std=0.1)"
    fewer = {**kept.averages, spec: kept.averages[spec]._replace(updates=3)}
    checkpoint.save(tmp_path, replace(kept, step=7 + 2, averages=fewer))
    before = {name: value.clone() for name, value in fewer[spec].tensors.items()}
    run(replace(options, steps=10))
    after = checkpoint.load(checkpoint.latest(tmp_path))
    assert [average.updates for average in after.averages.values()] == [4, 9, 9]
    decay = decays.make(spec).at(3, options.batch_size)
    expected = decay * before["last.weight"] + (1 - decay) * after.model["last.weight"]
    torch.testing.assert_close(after.averages[spec].tensors["last.weight"], expected)


def test_other_averages_do_not_resume(tmp_path):
    run(replace(OPTIONS, averages=SEVERAL, steps=4, workdir=tmp_path))
    for averages in ("ema(decay=0.9)", SEVERAL[::-1]):
        with pytest.raises(
            InputError, match=r"step_00000004': its averages are power\(std=0\.1\), .*, not (ema|half_life)"
        ):
            run(replace(OPTIONS, averages=averages, workdir=tmp_path))
