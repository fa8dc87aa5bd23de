"""What the server of processes imports once, so that a command in a forked process starts at once."""

import sys
import threading
from importlib import import_module

import torch
import tqdm

import scoresde
from scoresde.show import training_figures

for name in (
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.datasets", "torch._dynamo", "filelock"),
    *("accelerate", "torch.nn.parallel.distributed"),
    *("scoresde.cli.commands", "scoresde.cli.solver_commands", "scoresde.show.likelihood_page", "scoresde.show.page"),
    *("attacks.long_commands", "attacks.guard"),
):
    import_module(name)
scoresde.sample  # noqa: B018  (imports all that is public)
# fonts are looked up when the first figure is drawn
training_figures.loss([{"step": 1, "loss": 0.1}, {"step": 2, "loss": 30.0}], [])
# tqdm's own lock is a semaphore, which all forked processes would share, also with one that was killed and held it
tqdm.tqdm.set_lock(threading.RLock())
torch.set_num_threads(1)
sys.dont_write_bytecode = True
