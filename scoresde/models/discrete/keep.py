"""``keep``: a model of the tokens that are not known, given those that are.

>>> import scoresde, torch
>>> from scoresde.models.discrete import DiscreteEmpirical
>>> from scoresde.paths.discrete import Absorbing
>>> words = DiscreteEmpirical(torch.tensor([[0, 1, 2], [0, 2, 1], [1, 2, 2]]))
>>> model = keep(words.denoiser(Absorbing(3)), [-1, 2, -1])
>>> x = scoresde.sample(model, seeds=50, solver="first_hitting").x
>>> sorted(set(map(tuple, x.tolist())))  # of the words, those with 2 in the middle
[(0, 2, 1), (1, 2, 2)]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.discrete.entropy_bounded import at_masked_share
from solvers.types.process import DiscretePrediction, Process
from solvers.types.transition import one_hot

from ...io.inputs import Array, tensor_of
from ..model import ModelWrapper
from .model import DiscreteModel

KNOWN, FREE = "known_tokens", -1


class Kept(ModelWrapper):
    """A model of tokens some of which are known; these travel with the samples, as the condition "known_tokens".

    Args:
        model: the model of all tokens.
        known: (*) for all samples, or (B, *) with one row for each: the known tokens, and -1 where a token is not
            known.
    """

    space = "discrete"

    def __init__(self, model: DiscreteModel, known: Array) -> None:
        super().__init__(model)  # type: ignore[arg-type]  # a model of discrete states
        rows = _rows(known, self.process, self.shape)
        self.shape = tuple(rows.shape[1:])
        self.given = {**self.given, KNOWN: rows}

    @property
    def process(self) -> Process:
        """The process of the model."""
        path: Any = self.sde
        process: Process = path
        return process

    @property
    def time_free(self) -> bool:
        return self.model.time_free

    def predict(self, x: Tensor, node: Any, **conditions: Tensor) -> Any:
        given = {**self.given, **conditions}
        known = given.pop(KNOWN).to(x.device).expand_as(x)
        fixed, process = known != FREE, self.process
        at, seen = node, x
        if process.mask is not None and process.mixture:  # the known tokens leave fewer masks than the node's time
            seen = torch.where(fixed, known, x)
            at = at_masked_share(process, seen)
        found: Any = self.model.predict(seen, at, **given)
        sure = one_hot(known.clamp_min(0), found.x0)
        x0 = torch.where(fixed[..., None], sure, found.x0)
        own = None if found.own is None else torch.where(fixed[..., None], sure, found.own)
        return DiscretePrediction(process.possible(x0, x, node), own=own)


def keep(model: DiscreteModel, known: Array) -> Kept:
    """A model of the free tokens given known ones: ``sample`` takes it, with any solver.

    Where the process masks tokens, the network sees the known ones from the start, and the model is exactly that of the
    conditional law. On other processes the known tokens follow their own noisy path to their values, and the network
    sees only that: this is the replacement heuristic, whose samples do not follow the conditional law at any number of
    steps.

    Args:
        model: a model of discrete states.
        known: (*) for all samples, or (B, *) with one row for each: whole numbers, the known tokens, and -1 where a
            token is free.

    Raises:
        InputError: the model is not one of discrete states; ``known`` does not fit it.
    """
    return Kept(model, known)


def _rows(known: Array, process: Process, shape: tuple[int, ...] | None) -> Tensor:
    """The known tokens as rows (B, *) or (1, *).

    Raises:
        InputError: they are no whole numbers, no tokens of the data, or of another shape than samples.
    """
    rows = tensor_of("known", known)
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool or not rows.numel():
        raise InputError(f"known must be whole numbers, tokens and {FREE} where a token is free, got {rows.dtype}")
    if rows.ndim == (1 if shape is None else len(shape)):
        rows = rows[None]
    if rows.ndim < 2 or shape not in (None, tuple(rows.shape[1:])):
        raise InputError(f"known has the shape {tuple(tensor_of('known', known).shape)}, but samples have {shape}")
    low, high = int(rows.min()), int(rows.max())
    if low < FREE or high >= process.states:
        wrong = low if low < FREE else high
        raise InputError(
            f"known has the value {wrong}, but {process} has the values 0 to {process.states - 1}, and {FREE} is free"
        )
    return rows.long()
