"""What processes that train together do, see ``work``: each scenario is a function, whose result is written down."""

import json
import math
import os
import signal
import sys
import traceback
from dataclasses import replace

import torch
from torch import nn

import scoresde
from scoresde.data.rows import TensorRows
from scoresde.models.networks import MLP
from scoresde.training.loop import train
from scoresde.training.losses import DSM, losses
from scoresde.training.options import TrainingOptions
from scoresde.training.processes import launched
from solvers import InputError

SDE = scoresde.VP()
OPTIONS = TrainingOptions(
    steps=8, batch_size=10, learning_rate=3e-3, weight_decay=0.01, warmup=5, seed=5, log_every=1, checkpoint_every=4,
    bin_width=0.1,
)  # fmt: skip
COUNT = 37


class Recorded(TensorRows):
    """Rows that remember which of them were asked for, and of which one may be broken."""

    def __init__(self, broken=None):
        x = torch.linspace(-1, 1, COUNT)[:, None] * torch.tensor([1.0, -0.5, 0.25])
        super().__init__(x)
        self.seen, self.broken = [], broken

    def batch(self, index):
        if self.broken is not None and self.broken in index.tolist():
            raise InputError(f"row {self.broken} cannot be read")
        self.seen.append(index.tolist())
        return super().batch(index)


def network(kind="mlp"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MLP(width=8, depth=1).build((3,))
        if kind == "unused":
            made.more = nn.Linear(2, 2)
        if kind == "statistics":
            made = Statistics(made)
    return made


class Statistics(nn.Module):
    """A network with running statistics."""

    def __init__(self, inside):
        super().__init__()
        self.inside, self.norm = inside, nn.BatchNorm1d(3)

    def forward(self, x, label):
        return self.norm(self.inside(x, label))


class Mishap(DSM):
    """A loss with something that happens once, in one process."""

    def at(self, step, places, act):
        self.__dict__["act"] = (step, places, act)
        return self

    def __call__(self, denoiser, x0, draws, *state, **conditions):
        values = super().__call__(denoiser, x0, draws, *state, **conditions)
        step, place, act = self.__dict__["act"]
        if draws.step == step and place in draws.places:
            values = act(values, [*draws.places].index(place))
        return values


def run(options, net=None, rows=None, loss=None):
    net, rows = net or network(), rows or Recorded()
    result = train(scoresde.Denoiser(net, SDE), net, rows, loss or DSM(), options, progress=False)
    return result, rows


def ended(options, **given):
    """How a run ends: its error, or the number of updates."""
    try:
        return run(options, **given)[0].step
    except (InputError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"


def weights(result):
    return [p.detach().flatten().tolist() for p in (*result.network.parameters(), *result.ema.parameters())]


def same_as_one(folder):
    """A run of each kind, and its weights."""
    found = {}
    for name, change in KINDS.items():
        workdir = folder / f"{name} {os.environ['WORLD_SIZE']}"
        result, _ = of_kind(name, replace(OPTIONS, workdir=workdir, **change))
        found[name] = weights(result)
    return found


KINDS = {"mlp": {}, "accumulate": {"accumulate": 2}, "unused": {}, "bf16": {"precision": "bf16"}, "learned": {}}
LEARNED = "dsm(weighting=edm2, times=adaptive)"  # it learns a weight, and remembers losses


def of_kind(name, options):
    return run(options, network(name), loss=losses.make(LEARNED) if name == "learned" else None)


def first_part(folder):
    """Updates 1 to 3 of a run."""
    return run(replace(OPTIONS, steps=3, workdir=folder / "shared"))[1].seen


def last_part(folder):
    """Updates 9 to 14 of that run, after another process made those between."""
    return run(replace(OPTIONS, steps=14, workdir=folder / "shared"))[1].seen


def errors(folder):
    """What happens in one process ends all."""
    found = {}
    found["broken"] = ended(replace(OPTIONS, workdir=folder / "broken"), rows=Recorded(broken=3))

    def spoiled(values, row):
        return values * torch.where(torch.arange(len(values)) == row, math.nan, 1.0)

    found["nan"] = ended(replace(OPTIONS, workdir=folder / "nan"), loss=Mishap().at(5, 7, spoiled))

    def terminated(values, row):
        signal.raise_signal(signal.SIGTERM)
        return values

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    found["signal"] = ended(replace(OPTIONS, workdir=folder / "signal"), loss=Mishap().at(5, 7, terminated))
    signal.signal(signal.SIGTERM, before)
    found["time"] = ended(replace(OPTIONS, workdir=folder / "time", max_minutes=1e-9))
    found["batch"] = ended(replace(OPTIONS, batch_size=1))
    found["parts"] = ended(replace(OPTIONS, accumulate=9))
    found["data"] = ended(OPTIONS, rows=TensorRows(torch.zeros(1, 3)))
    (folder / "file").touch()
    found["folder"] = ended(replace(OPTIONS, workdir=folder / "file"))
    found["statistics"] = ended(replace(OPTIONS, workdir=folder / "statistics"), net=network("statistics"))
    return found


def one_dies(folder):
    """The last process ends without a word; it is the last scenario of a launch."""
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def dies(values, row):
        for name in ("one_dies", "connected"):
            (folder / f"{name}_{os.environ['RANK']}.json").write_text("false")
        os._exit(1)

    loss = Mishap().at(2, 9, dies) if last else DSM()
    return ended(replace(OPTIONS, workdir=folder / "dies", checkpoint_every=1), loss=loss)


def work(folder, scenarios, environment, path):
    """Runs scenarios in one of several processes, with a launcher's variables and some folders first on the path.

    What a scenario returns is written to NAME_INDEX.json, and what goes wrong to error_INDEX.txt.
    """
    os.environ.update(environment)
    sys.path[:0] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "accelerate"]:
        del sys.modules[name]  # it is imported anew, from this path
    index = environment["RANK"]
    try:
        torch.set_num_threads(1)
        with launched("cpu"):
            for name in scenarios:
                (folder / f"{name}_{index}.json").write_text(json.dumps(globals()[name](folder)))
        (folder / f"connected_{index}.json").write_text(json.dumps(torch.distributed.is_initialized()))
    except BaseException:
        (folder / f"error_{index}.txt").write_text(traceback.format_exc())
        os._exit(1)
