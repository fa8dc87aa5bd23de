"""Training: losses, the loop as a function of (seed, step), averages of weights, checkpoints."""

from .bound_losses import ChainBound, ContinuousBound, Hybrid
from .checkpoint import Checkpoint
from .loop import TrainingOptions, train
from .losses import DSM, Loss

__all__ = ["DSM", "ChainBound", "Checkpoint", "ContinuousBound", "Hybrid", "Loss", "TrainingOptions", "train"]
