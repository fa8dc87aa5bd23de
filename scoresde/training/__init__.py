"""Training: losses, the training loop, averaged weights and checkpoints."""

from .bound_losses import ChainBound, ContinuousBound, Hybrid
from .checkpoint import Checkpoint
from .discrete_losses import DiscreteBound, FlowKL, Masked, Reweighted, ScoreEntropy, Sundae, TokenCrossEntropy
from .loop import train
from .losses import DSM, Loss, Sliced
from .options import TrainingOptions

__all__ = [
    "DSM",
    "ChainBound",
    "Checkpoint",
    "ContinuousBound",
    "DiscreteBound",
    "FlowKL",
    "Hybrid",
    "Loss",
    "Masked",
    "Reweighted",
    "ScoreEntropy",
    "Sliced",
    "Sundae",
    "TokenCrossEntropy",
    "TrainingOptions",
    "train",
]
