"""Weights in 16 bits and in several dtypes, and checkpoints of networks inside the wrappers of torch."""

from dataclasses import replace

import pytest
import torch
from test_train import OPTIONS, SDE, assert_same_end, final, make, rows, run
from torch import nn

import scoresde
from scoresde.models.networks import MLP
from scoresde.training import checkpoint, weights
from scoresde.training.averages import Averages
from scoresde.training.loop import train
from scoresde.training.losses import DSM
from solvers import InputError

pytestmark = pytest.mark.quick


class Mixed(nn.Module):
    """A network with float32 parts before bfloat16 ones, as diffusers keeps some in float32."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.enter, self.leave = nn.Linear(3, 8).bfloat16(), nn.Linear(8, 3).bfloat16()

    def forward(self, x, label):
        return self.leave(torch.tanh(self.enter(x) + self.time(label[:, None]).to(torch.bfloat16)))


def build(kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Mixed() if kind == "mixed" else MLP(width=16, depth=1).build((3,)).to(kind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_the_average_has_at_least_float32(dtype):
    network = nn.BatchNorm1d(1).to(dtype)
    averages = Averages(network, "ema(decay=0.999)", 1)
    averages.update()
    average = averages.first
    average.updates = 20000  # after the warm-up
    nn.init.constant_(network.weight, 1.5)
    network.running_mean.fill_(-0.5)
    for _ in range(3000):
        averages.update()
    assert average.module.weight.dtype == dtype  # the network's own
    exact = 0.999**3000
    state = average.state().tensors
    # 3000 roundings of float32, all in one direction at worst, move the average by 3000 2^-24
    assert state["weight"].item() == pytest.approx(1.5 - 0.5 * exact, abs=2e-4)
    assert state["running_mean"].item() == pytest.approx(-0.5 + 0.5 * exact, abs=2e-4)
    assert state["weight"].dtype == torch.promote_types(dtype, torch.float32)
    assert average.module.weight.item() == state["weight"].to(dtype).item()


def test_an_average_of_buffers_that_a_forward_pass_replaces():
    network = nn.Module()
    network.register_buffer("level", torch.zeros(1))
    averages = Averages(network, "ema(decay=0.5)", 1)
    for value in (1.0, 2.0):
        network.level = torch.full((1,), value)
        averages.update()
    assert averages.first.module.level.item() == pytest.approx((2 / 11) * 1 + (9 / 11) * 2)  # the warm-up's decay


@pytest.mark.parametrize("kind", [torch.bfloat16, "mixed"], ids=str)
def test_updates_below_the_resolution_of_bfloat16_are_not_lost(kind):
    # AdamW's first updates have the length of the learning rate; 1e-5 is below half an ulp of most of these weights
    options = replace(
        OPTIONS, steps=60, learning_rate=1e-5, warmup=0, weight_decay=0.0, bin_width=None, averages="ema(decay=0.0)"
    )
    network = build(kind)
    before = {name: p.detach().float().clone() for name, p in network.named_parameters()}
    average = run(options, network).ema
    assert {p.dtype for p in network.parameters()} == {p.dtype for p in average.parameters()}
    name = "leave.weight"
    start, end = before[name], dict(network.named_parameters())[name].detach().float()
    reference = build(kind).float()
    reference.load_state_dict(before)

    class Wide(nn.Module):  # the same network computed in float32: what the training should do
        def __init__(self):
            super().__init__()
            self.network = reference

        def forward(self, x, label):
            return self.network(x, label)

    if kind == torch.bfloat16:
        run(options, Wide())
        moved = dict(reference.named_parameters())[name].detach() - start
        # 60 updates of 1e-5: six times 2^-14, half an ulp of a weight in [2^-6, 2^-5]; zero weights move at once
        assert (end - start).abs().max() > 1e-4
        assert float((end - start - moved).norm()) < 0.5 * float(moved.norm())
    else:
        assert not torch.equal(end, start)


@pytest.mark.parametrize("kind", [torch.bfloat16, "mixed"], ids=str)
def test_a_resumed_run_in_16_bits_has_the_same_bits(tmp_path, kind):
    options = replace(OPTIONS, learning_rate=1e-4)
    run(replace(options, workdir=tmp_path / "whole"), build(kind))
    run(replace(options, workdir=tmp_path / "halves", steps=11), build(kind))
    run(replace(options, workdir=tmp_path / "halves"), build(kind, seed=9))
    assert_same_end(tmp_path / "whole", tmp_path / "halves")
    assert {v.dtype for v in final(tmp_path / "whole")[2].values()} == {torch.float32}


def test_float16_is_refused_with_a_reason():
    with pytest.raises(InputError, match=r"float16, in which small gradients become 0: train it in float32 under"):
        run(OPTIONS, build(torch.float16))


def test_a_network_of_several_dtypes_is_evaluated_as_it_is():
    network, x = build("mixed"), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    denoiser = scoresde.Denoiser(network, SDE)
    own = network(x.bfloat16(), torch.full((4,), 0.3))
    assert torch.equal(denoiser.predict(x, SDE(0.3)).eps, own.float())  # bfloat16: most of its numbers
    assert torch.isfinite(scoresde.sample(denoiser, (3,), [0, 1], "ddim", steps=3).x).all()
    with pytest.raises(InputError, match=r"rejects samples in torch\.float32 with .*Denoiser\(dtype=\.\.\.\) sets"):
        replace(denoiser, dtype=torch.float32).predict(x, SDE(0.3))
    with pytest.raises(InputError, match="dtype must be a float type, such as"):
        replace(denoiser, dtype="bfloat16")
    one = scoresde.Denoiser(build(torch.float32), SDE)
    assert one.predict(x, SDE(0.3)).eps.abs().max() == 0  # an untrained one
    one.network.bfloat16()  # converted after it was evaluated
    assert one.predict(x, SDE(0.3)).eps.dtype == torch.float32


class Compiled(nn.Module):
    """What torch.compile returns, as far as names go, without compiling."""

    def __init__(self, network):
        super().__init__()
        self._orig_mod = network

    def forward(self, x, label):
        return self._orig_mod(x, label)


class Outer(nn.Module):
    """A network with a compiled part."""

    def __init__(self, inner):
        super().__init__()
        self.part = inner

    def forward(self, x, label):
        return self.part(x, label)


WRAPPERS = {
    "compiled": Compiled,
    "parallel": nn.DataParallel,
    "both": lambda network: nn.DataParallel(Compiled(network)),
}


def test_the_stand_in_has_the_names_of_a_compiled_network():
    network = make()
    assert list(torch.compile(network).state_dict()) == list(Compiled(network).state_dict())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_run_goes_between_wrapped_and_plain_networks(tmp_path, wrapper):
    wrap = WRAPPERS[wrapper]
    run(replace(OPTIONS, workdir=tmp_path / "plain"))
    run(replace(OPTIONS, workdir=tmp_path / "there", steps=11), wrap(make()))
    assert sorted(checkpoint.load(checkpoint.latest(tmp_path / "there")).model) == sorted(
        checkpoint.load(checkpoint.latest(tmp_path / "plain")).model
    )
    run(replace(OPTIONS, workdir=tmp_path / "there"), make(seed=9))
    assert_same_end(tmp_path / "plain", tmp_path / "there")
    run(replace(OPTIONS, workdir=tmp_path / "back", steps=11))
    run(replace(OPTIONS, workdir=tmp_path / "back"), wrap(make(seed=9)))
    assert_same_end(tmp_path / "plain", tmp_path / "back")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_states_with_prefixes_are_read(wrapper):
    source, target = make(), make(seed=9)
    weights.load_state(target, WRAPPERS[wrapper](source).state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    nested, target = Outer(Compiled(source)), Outer(make(seed=9))
    weights.load_state(target, nested.state_dict())
    assert torch.equal(target.part.first.weight, source.first.weight)
    assert list(weights.state_of(nested)) == list(target.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        weights.load_state(Outer(make()), make().state_dict())


def test_a_submodule_named_module_keeps_its_name():
    network = nn.Sequential()
    network.add_module("module", nn.Linear(1, 1))
    assert list(weights.state_of(network)) == ["module.weight", "module.bias"]
    weights.load_state(network, weights.state_of(network))


def test_training_a_compiled_denoiser_counts_its_network_as_inside(tmp_path):
    network = make()
    result = train(
        scoresde.Denoiser(Compiled(network), SDE), network, rows(), DSM(), replace(OPTIONS, steps=3), progress=False
    )
    assert result.step == 3
