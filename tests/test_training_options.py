"""Precision, parts of a batch, schedules, compilation, the time limit and watchers, in one process."""

import functools
import io
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from test_train import OPTIONS, SDE, assert_same_end, final, log, make, rows, run, without_time
from torch import nn
from tqdm import tqdm
from trained_together import LEARNED, Mishap

import scoresde
from scoresde.data.rows import Rows, TensorRows
from scoresde.io.progress import memory_of
from scoresde.models.networks import MLP
from scoresde.training import checkpoint
from scoresde.training.loop import prepared, train
from scoresde.training.losses import DSM, losses
from scoresde.training.options import TrainingOptions
from solvers import InputError


def mlp():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(width=16, depth=1).build((3,))


def parameters(result):
    return [p.detach().clone() for p in result.network.parameters()]


@pytest.mark.quick
def test_schedules_are_their_formulas():
    options = TrainingOptions(steps=100, warmup=20, learning_rate=2.0)
    rates = {
        name: [replace(options, schedule=name).learning_rate_at(step) for step in (0, 9, 19, 20, 60, 99)]
        for name in ("constant", "cosine", "cosine(end=0.5)", "inverse_sqrt(after=15)")
    }
    assert rates["constant"] == pytest.approx([0.1, 1.0, 2, 2, 2, 2])
    tail = 1 + math.cos(math.pi * 79 / 80)
    assert rates["cosine"] == pytest.approx([0.1, 1.0, 2, 2, 1, tail])
    assert rates["cosine(end=0.5)"] == pytest.approx([0.1, 1.0, 2, 2, 1.5, 1 + tail / 2])
    for name in ("cosine", "cosine(end=0.5)"):  # a rate that has reached its end stays there
        end = replace(options, schedule=name).learning_rate_at
        assert end(100) == end(150) == pytest.approx({"cosine": 0, "cosine(end=0.5)": 1}[name])
    roots = [2 / math.sqrt(k / 15) for k in (19, 20, 60, 99)]
    assert rates["inverse_sqrt(after=15)"] == pytest.approx([0.1, 1.0, *roots])


@pytest.mark.quick
@pytest.mark.parametrize("accumulate", [2, 3, 10])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(accumulate):
    options = replace(OPTIONS, steps=10)
    whole = run(options, mlp())
    parts = run(replace(options, accumulate=accumulate), mlp())
    # sums of float32 in another order
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(parameters(whole), parameters(parts), strict=True))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_computes_in_16_bits_and_keeps_the_weights_in_32(tmp_path, precision):
    seen, network = [], mlp()
    linear = next(part for part in network.modules() if isinstance(part, nn.Linear))
    linear.register_forward_hook(lambda part, given, out: seen.append(out.dtype) if part.training else None)
    options = replace(OPTIONS, precision=precision, workdir=tmp_path / precision, log_every=1)
    result = run(options, network)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert all(p.dtype == torch.float32 for p in network.parameters())
    whole = run(replace(options, precision="float32", workdir=None), mlp())
    # a product in bfloat16 has an error of 2^-9, of which an update makes at most its own size
    moved = max(float((a - b).abs().max()) for a, b in zip(parameters(whole), parameters(result), strict=True))
    assert 0 < moved < 24 * 3e-3
    assert result.loss == pytest.approx(whole.loss, rel=0.1)
    # the scale of the loss goes on where it was
    run(replace(options, steps=11, workdir=tmp_path / "halves"), mlp())
    run(replace(options, workdir=tmp_path / "halves"), mlp())
    assert_same_end(tmp_path / precision, tmp_path / "halves")
    assert without_time(log(tmp_path / precision)) == without_time(log(tmp_path / "halves"))


@pytest.mark.quick
def test_what_a_loss_learns_and_remembers_is_part_of_a_checkpoint(tmp_path):
    for name, ends in (("whole", [24]), ("halves", [11, 24])):
        for steps in ends:
            network = mlp()
            options = replace(OPTIONS, steps=steps, workdir=tmp_path / name)
            train(scoresde.Denoiser(network, SDE), network, rows(), losses.make(LEARNED), options, progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "halves")
    names = {key.partition(".")[0] for key in final(tmp_path / "whole")[2]}
    assert names == {"model", "average_0", "optimizer", "loss"}
    trained = [key for key in final(tmp_path / "whole")[2] if key.startswith("optimizer.loss/")]
    assert trained  # the weight has moments of its own


def huge(values, row):
    """A loss whose gradient leaves the range of a scaled float16, though the loss itself does not."""
    return values + (values - values.detach()) * 1e36


def test_an_overflow_of_fp16_skips_its_update_and_is_logged(tmp_path):
    options = replace(OPTIONS, precision="fp16", workdir=tmp_path / "whole", log_every=5)
    network, loss = mlp(), Mishap().at(7, 0, huge)
    result = train(scoresde.Denoiser(network, SDE), network, rows(), loss, options, progress=False)
    lines = {line["step"]: line for line in log(tmp_path / "whole")}
    assert lines[8]["skipped"] is True  # although only every fifth is logged
    assert lines[8]["grad_norm"] is None
    assert lines[8]["scale"] == 2.0**15
    assert [step for step, line in lines.items() if "skipped" in line] == [8]
    assert all(torch.isfinite(p).all() for p in parameters(result))
    assert {int(v) for k, v in final(tmp_path / "whole")[2].items() if k.endswith(".step")} == {23}
    # the scale that the overflow left is part of a checkpoint
    halves = replace(options, workdir=tmp_path / "halves")
    for steps in (11, 24):
        again = mlp()
        train(scoresde.Denoiser(again, SDE), again, rows(), loss, replace(halves, steps=steps), progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "halves")
    assert float(final(tmp_path / "halves")[2]["scaler.scale"]) == 2.0**15


def test_overflows_that_are_not_in_a_row_are_survived(tmp_path):
    class Alternate(DSM):
        def __call__(self, denoiser, x0, draws, *given, **conditions):
            values = super().__call__(denoiser, x0, draws, *given, **conditions)
            # d sqrt(0) is infinite, times zero: 30 overflows, more than a run survives in a row
            return values if draws.step % 2 else values + 0 * (values - values).clamp_min(0).sqrt()

    network = mlp()
    options = replace(OPTIONS, steps=60, precision="fp16", workdir=tmp_path)
    assert train(scoresde.Denoiser(network, SDE), network, rows(), Alternate(), options, progress=False).step == 60
    assert sum("skipped" in line for line in log(tmp_path)) == 30


def test_a_gradient_that_no_scale_makes_finite_stops_fp16(tmp_path):
    class Always(DSM):
        def __call__(self, *given, **conditions):
            values = super().__call__(*given, **conditions)
            return values + 0 * (values - values).clamp_min(0).sqrt()  # d sqrt(0) is infinite, times zero

    network = mlp()
    options = replace(OPTIONS, steps=60, precision="fp16", workdir=tmp_path)
    with pytest.raises(InputError, match="the gradient is not finite at step 26"):
        train(scoresde.Denoiser(network, SDE), network, rows(), Always(), options, progress=False)


@pytest.mark.quick
def test_the_error_of_a_loss_that_is_not_finite_names_the_rows_and_their_noise(tmp_path):
    class Bad(TensorRows):
        def batch(self, index):
            found = super().batch(index)
            return replace(found, x=torch.where((index == 11)[:, None], math.inf, found.x))

    network = mlp()
    options = replace(OPTIONS, workdir=tmp_path, checkpoint_every=1)
    with pytest.raises(InputError) as error:
        train(scoresde.Denoiser(network, SDE), network, Bad(rows()), DSM(), options, progress=False)
    last = checkpoint.latest(tmp_path)
    step = 1 if last is None else checkpoint.load(last).step + 1
    kept = "" if last is None else f"; the last good checkpoint is {last.name}"
    assert f"the loss is not finite at step {step}: rows of the data and their noise levels" in str(error.value)
    assert " sigma / alpha: 11 at " in str(error.value)
    assert f"{kept}; try a lower" in str(error.value)


def test_a_time_limit_writes_a_checkpoint_and_the_result_says_so(tmp_path):
    options = replace(OPTIONS, workdir=tmp_path / "limited", max_minutes=1e-9)
    for step in (1, 2):
        result = run(options)
        assert (result.step, result.complete) == (step, False)
        assert checkpoint.latest(tmp_path / "limited").name == f"step_{step:08d}"
    result = run(replace(options, max_minutes=None))
    assert (result.step, result.complete) == (24, True)
    run(replace(OPTIONS, workdir=tmp_path / "whole"))
    assert_same_end(tmp_path / "whole", tmp_path / "limited")
    assert not run(replace(options, workdir=None)).complete


def test_watchers_look_at_intervals_and_at_the_end_before_the_checkpoint(tmp_path):
    seen = []

    def watcher(training):
        last = checkpoint.latest(tmp_path)
        seen.append((training.step, last and last.name))
        with torch.no_grad():
            training.averages.first.module.eval()(torch.zeros(2, 3), torch.ones(2))
        torch.randn(3)

    network = make()
    options = replace(OPTIONS, evaluate_every=10, workdir=tmp_path)
    training = prepared(scoresde.Denoiser(network, SDE), network, rows(), DSM(), options)
    training.run(progress=False, watchers=[watcher])
    assert seen == [(10, "step_00000008"), (20, "step_00000016"), (24, "step_00000016")]
    run(replace(options, workdir=tmp_path / "unwatched"))
    assert_same_end(tmp_path / "unwatched", tmp_path)


def test_changes_are_functions_of_the_place_and_the_step():
    seen = []

    def change(batch, draws):
        seen.append((draws.step, list(draws.places), batch.x.clone()))
        return replace(batch, x=-batch.x)

    class Asked(DSM):
        def __call__(self, denoiser, x0, draws, *state, **conditions):
            asked.append(x0.clone())
            return super().__call__(denoiser, x0, draws, *state, **conditions)

    asked, network = [], mlp()
    options = replace(OPTIONS, steps=2, accumulate=2)
    prepared(scoresde.Denoiser(network, SDE), network, rows(), Asked(), options, changes=[change]).run(False)
    assert [(step, places) for step, places, _ in seen] == [(0, list(range(10))), (1, list(range(10)))]
    assert torch.equal(torch.cat(asked), -torch.cat([x for _, _, x in seen]))


def test_a_batch_that_cannot_be_read_ends_the_run_at_its_update(tmp_path):
    class Broken(Rows):
        shape, read = (3,), 0

        def __len__(self):
            return 40

        def batch(self, index):
            self.read += 1
            if self.read > 5:  # the first is the check of the data
                raise InputError("photo.png cannot be read")
            return TensorRows(torch.zeros(40, 3)).batch(index)

    network = mlp()
    options = replace(OPTIONS, workdir=tmp_path, checkpoint_every=1, batch_size=4)
    with pytest.raises(InputError, match=r"photo\.png cannot be read"):
        train(scoresde.Denoiser(network, SDE), network, Broken(), DSM(), options, progress=False)
    assert checkpoint.latest(tmp_path).name == "step_00000004"


def test_compile_runs_the_network_compiled_and_leaves_it_as_it_was(monkeypatch):
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain, compiled = mlp(), mlp()
    options = replace(OPTIONS, steps=6)
    ours, theirs = run(options, plain), run(replace(options, compile=True), compiled)
    assert calls
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(parameters(ours), parameters(theirs), strict=True))
    assert compiled._compiled_call_impl is None
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "no precision 'fp8'; accepted: bf16, float32, fp16"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"schedule": "cosine(end=2)"}, r"end must lie in \[0, 1\]"),
        ({"accumulate": 0}, "accumulate must be a positive integer"),
        ({"accumulate": 11}, "accumulate=11: a batch of 10 has fewer samples than parts"),
        ({"max_minutes": 0}, "max_minutes must be positive or None"),
        ({"evaluate_every": -1}, "evaluate_every must be"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(InputError, match=message):
        replace(OPTIONS, **change)


def test_the_bar_shows_rate_time_left_loss_and_memory(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("scoresde.training.loop.memory_of", lambda device: {"memory": "1.5 GiB"})  # no GPU is here
    monkeypatch.setattr(
        "tqdm.std.tqdm.__init__", functools.partialmethod(tqdm.__init__, mininterval=0, miniters=1, ncols=120)
    )
    network = make()
    denoiser = scoresde.Denoiser(network, SDE)
    result = train(denoiser, network, rows(), DSM(), replace(OPTIONS, steps=3), progress=True)
    frames = re.findall(r"train: +67%.*2/3 \[\d\d:\d\d<\d\d:\d\d, .*\]", sys.stderr.getvalue())
    assert frames, sys.stderr.getvalue()
    assert re.search(r"it/s|s/it", frames[-1])
    assert re.search(r"loss=[\d.]+, memory=1.5 GiB", frames[-1])
    assert math.isfinite(result.loss)


def test_a_gpu_s_memory_is_the_most_that_tensors_took(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    assert memory_of(torch.device("cuda")) == {"memory": "1.5 GiB"}
    assert memory_of(torch.device("cpu")) == {}
