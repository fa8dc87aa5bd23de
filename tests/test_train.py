"""Training: exact resumption however a run ends, the data's order, the average, the log, and refusals."""

import json
import math
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
from commands import forked
from torch import nn

import scoresde
from scoresde.models.networks import MLP
from scoresde.paths.time_samplers import LogSNR
from scoresde.training import checkpoint
from scoresde.training.loop import train
from scoresde.training.losses import DSM
from scoresde.training.options import TrainingOptions
from solvers import InputError
from solvers.noise.draws import Draws

SDE = scoresde.VP()
OPTIONS = TrainingOptions(
    steps=24, batch_size=10, learning_rate=3e-3, weight_decay=0.01, warmup=15, averages="ema(decay=0.9)", seed=5,
    log_every=3, checkpoint_every=8, keep=2, bin_width=0.1,
)  # fmt: skip


class Stateful(nn.Module):
    """Everything that a checkpoint could forget: dropout, running statistics, a counter; and a hook for mishaps."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout(0.2)
        self.calls, self.mishap = 0, {}

    def forward(self, x, label):
        self.calls += self.training  # the check before the first update does not count
        out = self.last(self.drop(self.norm(self.first(torch.cat([x, label[:, None]], 1)).relu())))
        return self.mishap.get(self.calls, lambda out: out)(out) if self.training else out


def rows(count=37):
    return torch.linspace(-1, 1, count)[:, None] * torch.tensor([1.0, -0.5, 0.25])


def make(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Stateful()


def run(options, network=None, data=None):
    network = network or make()
    return train(scoresde.Denoiser(network, SDE), network, rows() if data is None else data, DSM(), options, False)


def final(workdir):
    """The last checkpoint: its step, the counter of each average, and the bits of all its tensors.

    Those of the averages are called ``average_0.NAME``, ...
    """
    found = checkpoint.load(checkpoint.latest(workdir))
    averages = {f"average_{k}": average.tensors for k, average in enumerate(found.averages.values())}
    parts = {"model": found.model, **averages, "optimizer": found.optimizer, **found.others}
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    return found.step, {spec: average.updates for spec, average in found.averages.items()}, tensors


def assert_same_end(one, other):
    (step_a, updates_a, a), (step_b, updates_b, b) = final(one), final(other)
    assert (step_a, updates_a) == (step_b, updates_b)
    assert sorted(a) == sorted(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def log(workdir):
    return [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]


def without_time(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_run_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    for name in ("a", "b"):
        torch.randn(len(name) + 3)  # whatever was drawn before does not matter
        run(replace(OPTIONS, workdir=tmp_path / name))
    run(replace(OPTIONS, workdir=tmp_path / "c", seed=6))
    assert_same_end(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(final(tmp_path / "a")[2]["model.last.bias"], final(tmp_path / "c")[2]["model.last.bias"])
    torch.random.set_rng_state(before)
    run(replace(OPTIONS, steps=2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.quick
@pytest.mark.parametrize("half", [8, 11])  # on and between the epochs' ends and the checkpoints
def test_two_halves_are_one_whole_bit_for_bit(tmp_path, half):
    whole = run(replace(OPTIONS, workdir=tmp_path / "whole"))
    run(replace(OPTIONS, steps=half, workdir=tmp_path / "halves"))
    # other initial weights: everything comes from the checkpoint
    resumed = run(replace(OPTIONS, workdir=tmp_path / "halves"), make(seed=9))
    assert_same_end(tmp_path / "whole", tmp_path / "halves")
    assert whole.step == resumed.step == 24
    assert whole.loss == resumed.loss
    for a, b in ((whole.network, resumed.network), (whole.ema, resumed.ema)):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        assert not a.training
    assert without_time(log(tmp_path / "whole")) == without_time(log(tmp_path / "halves"))
    assert [line["step"] for line in log(tmp_path / "whole")] == [1, 3, 6, 9, 12, 15, 18, 21, 24]
    seconds = [line["seconds"] for line in log(tmp_path / "halves")]
    assert seconds == sorted(seconds)


def test_a_complete_run_is_left_as_it_is(tmp_path):
    options = replace(OPTIONS, workdir=tmp_path)
    first = run(options)
    content = (tmp_path / "train.jsonl").read_bytes()
    again = run(options, make(seed=9))
    assert again.step == 24
    assert math.isnan(again.loss)
    assert torch.equal(first.ema.last.weight, again.ema.last.weight)
    assert (tmp_path / "train.jsonl").read_bytes() == content
    with pytest.raises(InputError, match="step_00000024' is already past steps=5"):
        run(replace(options, steps=5))


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    options = replace(OPTIONS, steps=100, checkpoint_every=7)
    run(replace(options, workdir=tmp_path / "whole"))
    killed, slow = tmp_path / "killed", make()
    for step in range(1, 1000):
        slow.mishap[step] = lambda out: (time.sleep(0.01), out)[1]
    child = forked(lambda: run(replace(options, workdir=killed), slow) and 0)
    deadline = time.monotonic() + 60
    while checkpoint.latest(killed) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.25 * random.random())  # a moment that no one chose
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert 0 < checkpoint.load(checkpoint.latest(killed)).step < 100
    with (killed / "train.jsonl").open("a") as file:
        file.write('{"step": 2, "los')  # as if it had been cut short while writing
    run(replace(options, workdir=killed), make(seed=9))
    assert_same_end(tmp_path / "whole", killed)
    assert without_time(log(tmp_path / "whole")) == without_time(log(killed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_the_update_and_leave_a_checkpoint(tmp_path, number):
    run(replace(OPTIONS, workdir=tmp_path / "whole"))
    both = (signal.SIGINT, signal.SIGTERM)
    other = both[number == both[0]]
    before = [signal.signal(each, signal.default_int_handler) for each in both]  # as the command line has it
    try:
        # once, or once each of both kinds: a launcher sends SIGTERM to processes that Ctrl-C has already reached
        for name, signals in (("stopped", [number]), ("launched", [number, other])):
            network = make()
            network.mishap[13] = lambda out, sent=signals: ([signal.raise_signal(each) for each in sent], out)[1]
            options = replace(OPTIONS, workdir=tmp_path / name)
            with pytest.raises(KeyboardInterrupt):
                run(options, network)
            assert {signal.getsignal(each) for each in both} == {signal.default_int_handler}
            assert checkpoint.latest(options.workdir).name == "step_00000013"
            run(options, make(seed=9))
            assert_same_end(tmp_path / "whole", tmp_path / name)
            assert without_time(log(tmp_path / "whole")) == without_time(log(tmp_path / name))

        # twice: at once, with what the last checkpoint holds
        network = make()
        network.mishap[13] = lambda out: [signal.raise_signal(number) for _ in range(2)]
        options = replace(OPTIONS, workdir=tmp_path / "twice")
        with pytest.raises(KeyboardInterrupt):
            run(options, network)
        assert checkpoint.latest(options.workdir).name == "step_00000008"
        run(options)
        assert_same_end(tmp_path / "whole", tmp_path / "twice")
    finally:
        for each, handler in zip(both, before, strict=True):
            signal.signal(each, handler)


def test_sigterm_leaves_a_checkpoint_of_a_training_from_python(tmp_path):
    """There nobody handles SIGTERM, which ends the process; a handler of the caller's stays in charge."""
    network = make()
    network.mishap[13] = lambda out: (signal.raise_signal(signal.SIGTERM), out)[1]
    before, seen = signal.signal(signal.SIGTERM, signal.SIG_DFL), []
    try:
        with pytest.raises(KeyboardInterrupt):
            run(replace(OPTIONS, workdir=tmp_path / "stopped"), network)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert checkpoint.latest(tmp_path / "stopped").name == "step_00000013"
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        network = make()
        network.mishap[13] = lambda out: (signal.raise_signal(signal.SIGTERM), out)[1]
        run(replace(OPTIONS, workdir=tmp_path / "own"), network)
        assert seen == [signal.SIGTERM]
        assert checkpoint.latest(tmp_path / "own").name == f"step_{OPTIONS.steps:08d}"
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("mishap", "what"),
    [
        (lambda out: out * math.nan, "loss"),
        (lambda out: out + math.inf, "loss"),
        (lambda out: out + 0 * (out - out).clamp_min(0).sqrt(), "gradient"),  # d sqrt(0) is infinite, times zero
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(tmp_path, mishap, what):
    network = make()
    network.mishap[16] = mishap  # the update that would have been written
    options = replace(OPTIONS, workdir=tmp_path)
    with pytest.raises(InputError, match=f"the {what} is not finite at step 16"):
        run(options, network)
    assert checkpoint.latest(tmp_path).name == "step_00000008"
    assert all(torch.isfinite(p).all() for p in network.parameters())
    run(options)
    run(replace(OPTIONS, workdir=tmp_path / "whole"))
    assert_same_end(tmp_path / "whole", tmp_path)


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    options = replace(OPTIONS, workdir=tmp_path)
    run(options)
    network = MLP(width=8, depth=1).build((3,))
    with pytest.raises(InputError, match=r"is a checkpoint of a different network: .*Missing key"):
        run(options, network)
    file = checkpoint.latest(tmp_path) / "average_0.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    more = replace(options, steps=30)
    with pytest.raises(InputError, match=r"average_0\.safetensors' is damaged.*; remove step_00000024 to resume"):
        run(more)
    for part in file.parent.iterdir():
        part.unlink()
    file.parent.rmdir()
    run(more)  # from step 16
    run(replace(more, workdir=tmp_path / "whole"))
    assert_same_end(tmp_path / "whole", tmp_path)


class Recorder(DSM):
    """Remembers what it was asked."""

    def __call__(self, denoiser, x0, draws, state=None, **conditions):
        self.__dict__.setdefault("seen", []).append(x0.clone())
        return super().__call__(denoiser, x0, draws, state, **conditions)


@pytest.mark.parametrize("batch_size", [5, 10, 60])
def test_every_epoch_shows_every_row_once_in_a_new_order(batch_size):
    network, loss = MLP(width=4, depth=1).build((3,)), Recorder()
    options = replace(OPTIONS, steps=60 // batch_size + 1, batch_size=batch_size, bin_width=None)
    train(scoresde.Denoiser(network, SDE), network, rows(20), loss, options, progress=False)
    seen = torch.cat(loss.seen)[:60]
    epochs = [part[:, 0].tolist() for part in seen.split(20)]
    assert all(sorted(epoch) == rows(20)[:, 0].tolist() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_are_spread_over_their_bins():
    seen = []
    for width in (None, 0.1):
        network, loss = MLP(width=4, depth=1).build((3,)), Recorder()
        options = replace(OPTIONS, steps=40, bin_width=width)
        train(scoresde.Denoiser(network, SDE), network, rows(), loss, options, progress=False)
        seen.append(torch.cat(loss.seen))
    shift = (seen[1] - seen[0]) / 0.1
    assert shift.abs().max() <= 0.5 + 1e-5
    assert abs(shift.mean()) < 4.5 / math.sqrt(12 * shift.numel())
    assert abs(shift.var() - 1 / 12) < 4.5 / math.sqrt(180 * shift.numel())


@pytest.mark.quick
def test_learning_rate_and_clipping_are_as_stated(tmp_path):
    options = replace(OPTIONS, steps=20, log_every=1, weight_decay=0.0, workdir=tmp_path)
    run(options)
    assert [line["lr"] for line in log(tmp_path)] == [3e-3 * min(1, k / 15) for k in range(1, 21)]
    assert replace(options, warmup=0).learning_rate_at(0) == 3e-3
    # AdamW's first moment after one update is (1 - 0.9) times the clipped gradient
    run(replace(options, steps=1, clip=1e-3, workdir=tmp_path / "clipped"))
    moments = [v for k, v in final(tmp_path / "clipped")[2].items() if k.endswith(".exp_avg")]
    assert log(tmp_path / "clipped")[0]["grad_norm"] > 1e-2
    assert math.sqrt(sum(float((m**2).sum()) for m in moments)) == pytest.approx(1e-4, rel=1e-3)


def test_training_comes_close_to_the_best_possible_loss():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(width=32, depth=1).build((2,))
    sde, std = scoresde.VP(t_min=0.01), 0.5
    data = std * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    denoiser = scoresde.Denoiser(network, sde, time_label="c_noise")
    loss = DSM(times=LogSNR())
    options = TrainingOptions(steps=500, learning_rate=1e-2, warmup=50, averages="ema(decay=0.99)")
    result = train(denoiser, network, data, loss, options, progress=False)
    test = std * torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    draws = Draws.of(2, 0, 4000)
    with torch.no_grad():
        found = loss(replace(denoiser, network=result.ema), test, draws).mean()
        exact = scoresde.targets.Gaussian(torch.zeros(2), std**2).denoiser(sde)
        best = loss(exact, test, draws).mean()
    # a network that has learnt nothing scores 1
    assert best < 0.6
    assert found - best < 0.03 * (1 - best)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a positive integer"),
        ({"keep": 0}, "keep must be"),
        ({"warmup": -1}, "warmup must be"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"clip": math.nan}, "clip must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"learning_rate": math.inf}, "learning_rate must be positive, got inf"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"clip": None}, "clip must be a number, got None"),
        ({"max_minutes": "3"}, "max_minutes must be a number, got '3'"),
        ({"compile": "no"}, "compile must be True or False, got 'no'"),
        ({"averages": 0.999}, r"averages must be specs such as ema\(decay=0\.999\), got 0\.999"),
        ({"bin_width": 0.0}, "bin_width must be positive or None"),
        ({"averages": "ema(decay=1.0)"}, r"ema: decay must lie in \[0, 1\), got 1"),
        ({"averages": ""}, "averages must name at least one"),
        ({"averages": ("ema", "ema(decay=0.999)")}, r"averages names ema\(decay=0\.999\) twice"),
        ({"averages": "poly"}, "no average 'poly'; accepted: ema, half_life, power"),
        ({"keep_every": 0}, "keep_every must be"),
        ({"seed": -1}, "a seed must be an integer"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(InputError, match=message):
        run(replace(OPTIONS, **change))


def test_bad_data_and_networks(tmp_path):
    for data in (torch.zeros(0, 3), torch.zeros(5), torch.zeros(5, 3, dtype=torch.int64)):
        with pytest.raises(InputError, match=r"training data must be floats \(N, \*\)"):
            run(OPTIONS, data=data)
    with pytest.raises(InputError, match="not finite"):
        run(OPTIONS, data=torch.full((5, 3), math.nan))
    with pytest.raises(InputError, match=r"rejects samples of shape \(2,\)"):
        run(OPTIONS, data=torch.zeros(5, 2))
    one, other = make(), make()
    with pytest.raises(InputError, match="the loss does not depend on the network"):
        train(scoresde.Denoiser(one, SDE), other, rows(), DSM(), OPTIONS, progress=False)
    with pytest.raises(InputError, match="no parameters to train"):
        run(OPTIONS, make().requires_grad_(False))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file: "):
        run(replace(OPTIONS, workdir=tmp_path / "file"))
