"""Training: losses, the training loop, averaged weights and checkpoints."""

from .bound_losses import ChainBound, ContinuousBound, Hybrid
from .checkpoint import Checkpoint
from .loop import train
from .losses import DSM, Loss, Sliced
from .options import TrainingOptions

__all__ = ["DSM", "ChainBound", "Checkpoint", "ContinuousBound", "Hybrid", "Loss", "Sliced", "TrainingOptions", "train"]
