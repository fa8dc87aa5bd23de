"""LearnedVP: a monotone gamma between exact ends, in every use of a path; its weights in training and in runs."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import bent
from test_train import assert_same_end, final
from torch import nn

import scoresde
from scoresde.bounds.decoders import Gaussian
from scoresde.cli.parser import main
from scoresde.models.learned_path import WithSchedule, with_network, with_schedule
from scoresde.paths.learned_vp import LearnedVP
from scoresde.runs.run import load_run
from scoresde.training.bound_losses import ContinuousBound
from scoresde.training.loop import train
from scoresde.training.losses import DSM
from scoresde.training.options import TrainingOptions
from solvers import InputError, generator

FLAT = scoresde.targets.GaussianMixture(torch.tensor([[0.3, -0.2]]), torch.tensor([[0.25, 0.04]]))


PATHS = [bent("linear"), bent(seed=1), bent(seed=2, width=40)]


@pytest.mark.parametrize("sde", PATHS, ids=["linear", "narrow", "wide"])
def test_gamma_rises_from_end_to_end_exactly(sde):
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    gamma = sde.gamma(t)
    assert (gamma[1:] > gamma[:-1]).all()
    assert (gamma[0].item(), gamma[-1].item()) == (-11.0, 8.0)
    node = sde(t)
    assert float((node.alpha**2 + node.sigma**2 - 1).abs().max()) < 4e-16
    assert (-2 * node.lam - gamma).abs().max().item() < 1e-13
    low, high = sde(0.0), sde(1.0)
    assert math.isclose(low.sigma**2, 1 / (1 + math.exp(11.0)), rel_tol=1e-14)
    assert math.isclose(high.alpha**2, 1 / (1 + math.exp(8.0)), rel_tol=1e-14)


def test_the_bent_paths_of_these_tests_are_bent():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for sde in PATHS[1:]:
        assert (sde.share(t)[0] - t).abs().max().item() > 0.05


def test_untrained_schedules_are_lines():
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert torch.equal(LearnedVP("linear").share(t)[0], t)
    assert (LearnedVP("monotone").share(t)[0] - t).abs().max().item() < 1e-3
    first, second = LearnedVP(), LearnedVP()  # and the same lines: nothing is drawn
    assert torch.equal(first.gamma(t), second.gamma(t))


def test_an_end_moves_alone_and_the_ends_never_cross():
    sde = LearnedVP("linear", -6.0, 2.0)
    with torch.no_grad():
        sde.module.stretch.copy_(torch.tensor([math.log(2.0), 0.0]))
    assert [round(end.item(), 5) for end in sde.ends()] == [-10.0, 2.0]
    with torch.no_grad():
        sde.module.stretch.fill_(-20.0)
    low, high = sde.ends()
    assert -2.001 < low < -2 < high < -1.999


@pytest.mark.parametrize("sde", PATHS, ids=["linear", "narrow", "wide"])
def test_derivatives_are_those_of_alpha_and_sigma(sde):
    h = 1e-5
    for t in (0.1, 0.37, 0.5, 0.81):
        node, after, before = sde(t), sde(t + h), sde(t - h)
        # central differences err by h^2 f''' / 6 ~ 1e-10 (slopes up to 50) and by 1e-16 / h
        assert math.isclose(node.dalpha, (after.alpha - before.alpha) / (2 * h), rel_tol=1e-6, abs_tol=1e-8)
        assert math.isclose(node.dsigma, (after.sigma - before.sigma) / (2 * h), rel_tol=1e-6, abs_tol=1e-8)
        # g^2 = sigma^2 gamma'
        high, low = sde.gamma(torch.tensor([t + h, t - h], dtype=torch.float64)).tolist()
        slope = (high - low) / (2 * h)
        assert math.isclose(node.g2, node.sigma**2 * slope, rel_tol=1e-6)


@pytest.mark.parametrize("sde", PATHS, ids=["linear", "narrow", "wide"])
def test_times_of_noise_levels_are_inverse(sde):
    for t in np.linspace(0, 1, 57):
        rate = sde.share(torch.tensor([t], dtype=torch.float64))[1].item()
        # lam is good to 1e-15 of its size, 5, and t to that over the slope
        assert abs(sde.t_of_lam(sde(float(t)).lam) - t) < 2e-15 * (1 + 1 / rate)
    assert (sde.t_of_lam(50.0), sde.t_of_lam(-50.0)) == (0.0, 1.0)


def test_a_node_of_many_times_is_that_of_each():
    sde = PATHS[1]
    times = [0.0, 0.2, 0.7, 1.0]
    for node, t in zip(sde.nodes(times), times, strict=True):
        # sums over the weights may be added up in another order
        one = sde(t)
        assert max(abs(a - b) for a, b in zip(node._numbers, one._numbers, strict=True)) < 1e-13
    single = sde(torch.tensor(times))
    assert single.alpha.dtype == torch.float32
    assert torch.equal(single.alpha, sde(torch.tensor(times).double()).alpha.float())
    assert not sde(torch.tensor(times)).alpha.requires_grad  # a path is constant for whoever solves on it


@pytest.mark.parametrize("sde", PATHS, ids=["linear", "narrow", "wide"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "uni_pc", "heun"])
def test_solvers_follow_the_flow_of_a_gaussian(sde, solver):
    """For N(m, v) the ODE carries x = alpha m + sqrt(alpha^2 v + sigma^2) z with z fixed."""
    mean, variance = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.25, 0.04]).double()
    start, end = sde(1.0), sde(0.0)

    def state(node, z):
        return node.alpha * mean + (node.alpha**2 * variance + node.sigma**2).sqrt() * z

    z = torch.randn(5, 2, generator=generator(3), dtype=torch.float64)
    errors = []
    for steps in (40, 80):
        found = scoresde.sample(
            FLAT.denoiser(sde), (2,), range(5), solver, "logsnr", steps, x_init=state(start, z), dtype=torch.float64
        )
        errors.append(float((found.x - state(end, z)).abs().max()))
    assert errors[1] < 2e-3
    assert errors[1] < errors[0] / 3  # order 2: a quarter, less what is left of the first steps


@pytest.mark.parametrize("sde", PATHS, ids=["linear", "narrow", "wide"])
def test_log_prob_is_the_density_of_the_smoothed_data(sde):
    x = FLAT.sample(20, generator(1))
    found = scoresde.log_prob(FLAT.denoiser(sde), x, "heun", steps=160, divergence="exact")
    smooth = scoresde.targets.GaussianMixture(
        torch.tensor([[0.3, -0.2]]), torch.tensor([[0.25, 0.04]]).double() + sde(0.0).ratio ** 2
    )
    # the prior N(0, 1) stands for N(alpha m, alpha^2 v + sigma^2) at alpha^2 = 3e-4: of order alpha |m z|
    assert float((found.nats - smooth.log_prob(x)).abs().max()) < 2e-2
    exact_prior = scoresde.log_prob(
        FLAT.denoiser(sde), x, "heun", steps=160, divergence="exact",
        prior=lambda z: FLAT.log_prob(z, sde(1.0)),
    )  # fmt: skip
    assert float((exact_prior.nats - smooth.log_prob(x)).abs().max()) < 3e-3


def test_samples_do_not_depend_on_the_interior_but_through_the_grid():
    """On a grid in log SNR a solver sees the same nodes, whatever the times are called."""
    drawn = [
        scoresde.sample(FLAT.denoiser(sde), (2,), range(4), "dpmpp_2m", "logsnr", 12, dtype=torch.float64).x
        for sde in PATHS
    ]
    for other in drawn[1:]:
        assert float((other - drawn[0]).abs().max()) < 1e-10


def test_the_spec_is_its_own_name_and_paths_are_equal_only_to_themselves():
    assert str(scoresde.make_sde("learned_vp(schedule=linear, gamma_min=-9.0)")) == (
        "learned_vp(schedule=linear, gamma_min=-9.0)"
    )
    one, other = LearnedVP(), LearnedVP()
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2
    copied = copy.deepcopy(PATHS[1])
    assert copied != PATHS[1]
    assert copied(0.3) == PATHS[1](0.3)
    with torch.no_grad():
        copied.module.stretch += 0.1
    assert copied(0.3) != PATHS[1](0.3)


def test_a_path_cut_short_is_the_same_path():
    sde = PATHS[1]
    cut = replace(sde, t_min=0.25)
    assert cut(0.6) == sde(0.6)
    assert (cut.t_of_lam(sde(0.1).lam), cut.module) == (0.25, sde.module)
    assert str(cut) == "learned_vp(t_min=0.25, gamma_min=-11.0, gamma_max=8.0, width=6)"
    with pytest.raises(InputError, match="made for a different schedule"):
        replace(sde, gamma_max=9.0)
    chain = sde.chain(4)
    assert [chain.node(i).lam for i in range(4)] == [sde(t).lam for t in (0.25, 0.5, 0.75, 1.0)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("learned_vp(gamma_min=5, gamma_max=5)", "needs gamma_min < gamma_max, both finite, got 5 and 5"),
        ("learned_vp(gamma_min=3, gamma_max=inf)", "both finite, got 3 and inf"),
        ("learned_vp(schedule=monoton)", "monotone"),
        ("learned_vp(width=0)", "width"),
        ("learned_vp(t_min=0.1, t_max=1.5)", "needs 0 <= t_min < t_max <= 1, got 0.1 and 1.5"),
    ],
)
def test_bad_options_are_one_clear_line(spec, words):
    with pytest.raises(InputError, match=words) as error:
        scoresde.make_sde(spec)
    assert "\n" not in str(error.value)


class Small(nn.Module):
    """A network of three numbers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x, label):
        return self.inner(torch.cat([x, label[:, None]], 1))


OPTIONS = TrainingOptions(steps=12, batch_size=8, learning_rate=0.02, warmup=0, averages="ema(decay=0.9)", seed=1)


def trained(loss, sde, options=OPTIONS):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = with_schedule(Small(), sde)
    denoiser = scoresde.Denoiser(network, sde, "eps", "c_noise")
    rows = FLAT.sample(30, generator(0)).float()
    return denoiser, train(denoiser, network, rows, loss, options, progress=False)


@pytest.mark.parametrize("schedule", ["linear", "monotone"])
def test_training_moves_the_live_path_and_its_average_follows(schedule):
    sde = LearnedVP(schedule, -6.0, 3.0, 5)
    before = copy.deepcopy(sde)
    # numbers with which no end turns back on the way, which the last line needs
    denoiser, result = trained(ContinuousBound(Gaussian()), sde, replace(OPTIONS, seed=2))
    assert denoiser.sde is sde
    assert result.network.schedule is sde.module
    t = torch.tensor([0.0, 0.4, 1.0])
    moved = (sde.gamma(t) - before.gamma(t)).abs()
    assert float(moved.min().detach()) > 1e-3
    assert result.ema.schedule is not sde.module
    average = with_network(denoiser, result.ema)
    assert average.sde.module is result.ema.schedule
    assert average.network is result.ema
    behind = (average.sde.gamma(t) - before.gamma(t)).abs().detach()
    assert (behind > 1e-4).all()
    assert (behind < moved.detach()).all()  # an average of where it was on the way


def test_other_losses_and_frozen_schedules_leave_the_path_as_it_is():
    for loss, learn in ((DSM(), True), (ContinuousBound(Gaussian()), False)):
        sde = LearnedVP("monotone", -6.0, 3.0, 5, learn)
        before = copy.deepcopy(sde.module.state_dict())
        _, result = trained(loss, sde)
        assert all(torch.equal(value, before[name]) for name, value in sde.module.state_dict().items())
        assert float(result.network.network.inner.weight.detach().std()) > 0


def test_two_halves_are_one_whole_bit_for_bit(tmp_path):
    loss = ContinuousBound(Gaussian())

    def run(steps, name):
        options = replace(OPTIONS, steps=steps, checkpoint_every=4, workdir=tmp_path / name)
        return trained(loss, LearnedVP("monotone", -6.0, 3.0, 5), options)

    run(12, "whole")
    run(7, "halves")
    run(12, "halves")
    assert_same_end(tmp_path / "whole", tmp_path / "halves")
    assert "model.schedule.stretch" in final(tmp_path / "whole")[2]


def test_a_copy_without_a_schedule_is_refused():
    denoiser = scoresde.Denoiser(lambda x, label: x, LearnedVP())
    with pytest.raises(InputError, match="must contain its schedule"):
        with_network(denoiser, Small())
    plain = scoresde.Denoiser(Small(), scoresde.VP())
    other = Small()
    assert with_network(plain, other).network is other
    assert with_schedule(other, scoresde.VP()) is other


TINY = [
    "--config=configs/digits_vdm.py",
    "--config.model.network=mlp(width=16, depth=1)",
    "--config.training.checkpoint_every=10",
    "--config.training.batch_size=32",
]


def test_runs_from_the_command_line_train_resume_sample_and_score(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(["train", f"--workdir={whole}", "--config.training.steps=20", *TINY]) == 0
    for steps in (10, 20):
        assert main(["train", f"--workdir={halves}", f"--config.training.steps={steps}", *TINY]) == 0
    assert_same_end(whole, halves)
    saved, run = final(whole)[2], load_run(whole)
    assert isinstance(run.denoiser.network, WithSchedule)
    assert run.denoiser.sde.module is run.denoiser.network.schedule
    # the averaged schedule, not the last one and not the untrained one
    assert torch.equal(run.denoiser.sde.module.stretch, saved["average_0.schedule.stretch"])
    assert not torch.equal(saved["average_0.schedule.stretch"], saved["model.schedule.stretch"])
    assert float(saved["average_0.schedule.stretch"].abs().max()) > 0
    out = tmp_path / "out"
    assert main(["sample", f"--workdir={whole}", "--seeds=0-3", f"--out={out}", "--config.sampling.steps=5"]) == 0
    again = scoresde.sample(run.denoiser, (1, 8, 8), range(4), steps=5)
    assert np.array_equal(np.load(out / "samples.npz")["x"], again.x.numpy())
    options = ["--config.likelihood.steps=4", "--config.likelihood.divergence=hutchinson(probes=1)"]
    assert main(["likelihood", f"--workdir={whole}", "--split=test", "--limit=3", f"--out={out}", *options]) == 0
    assert json.loads((out / "likelihood.json").read_text())["config"]["sde"].startswith("learned_vp(")
    x = scoresde.dequantise(scoresde.data.load("digits").test.first(3).x, 0.125, range(3))
    nats = scoresde.log_prob(run.denoiser, x, steps=4, divergence="hutchinson(probes=1)", bin_width=0.125).nats
    # the network sees float32; the schedule of the last update instead of the average would move this by 4e-3
    assert np.allclose(np.load(out / "likelihood.npz")["nats"], nats.numpy(), rtol=0, atol=1e-4)
    # the bound that it was trained by, at the levels themselves
    levels = scoresde.data.load("digits").test.first(3).x
    decoder = scoresde.bounds.decoders.Discretised(0.125)
    bound = scoresde.continuous_bound(run.denoiser, levels, draws=128, decoder=decoder, seeds=range(3))
    assert np.allclose(np.load(out / "likelihood.npz")["bound_nats"], bound.nats.numpy(), rtol=1e-6, atol=1e-3)
