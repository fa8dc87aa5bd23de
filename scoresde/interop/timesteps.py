"""The list of a scheduler's timesteps: for every evaluation of the model its label, its node and its step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import InputError, Node, Program
from solvers.program.instructions import Evaluate
from solvers.program.program import shares

from .k_diffusion import steps_of_evaluations


def evaluated(program: Program) -> list[Node]:
    """The node of each evaluation, in order."""
    return [
        program.nodes[instruction.node] for instruction in program.instructions if isinstance(instruction, Evaluate)
    ]


@dataclass(frozen=True)
class Timesteps:
    """The timesteps of a program, in the order of its evaluations.

    Attributes:
        labels: the network's labels (M,), on the CPU: int64 if all are whole, else float32.
        shown: the same labels, on the device of the pipeline.
        nodes: the M nodes.
        steps: the step of the grid to which each evaluation belongs.
    """

    labels: Tensor
    shown: Tensor
    nodes: list[Node]
    steps: list[int]

    @classmethod
    def of(cls, program: Program, label_of: Callable[[Node], float], device: str | torch.device | None) -> Timesteps:
        """The timesteps of a program, for a network that sees ``label_of`` a node."""
        nodes = evaluated(program)
        exact = torch.tensor([label_of(node) for node in nodes], dtype=torch.float64)
        labels = exact.to(torch.int64 if bool((exact == exact.round()).all()) else torch.float32)
        return cls(labels, labels.to(device or "cpu", copy=True), nodes, steps_of_evaluations(program))

    def __len__(self) -> int:
        return len(self.nodes)

    def begins(self, place: int) -> bool:
        """Whether a step of the grid begins with that evaluation."""
        return place == 0 or self.steps[place] > self.steps[place - 1]

    def places(self, timestep: float | Tensor) -> list[int]:
        """The indices of an entry, found by its memory address (no device transfer) or by its value.

        Raises:
            InputError: the timestep is neither a number nor a tensor of equal numbers.
        """
        if isinstance(timestep, Tensor):
            if timestep.numel() == 1 and shares(timestep, self.shown):
                return [int(timestep.storage_offset())]
            values = timestep.detach().cpu().flatten()
            if not len(values) or (values != values[0]).any():
                raise InputError(f"step takes one timestep for all samples, got {values.tolist()}")
            labels = self.labels.to(values.dtype) if values.is_floating_point() else self.labels
            return [int(i) for i in (labels == values[0]).nonzero()]
        return [int(i) for i in (self.labels.float() == torch.tensor(value(timestep))).nonzero()]

    def entry(self, places: list[int]) -> str:
        """The places in words, with their label."""
        return f"entry {' or '.join(map(str, places))} ({self.labels[places[0]]:g})"


def value(timestep: Any) -> float:
    """The number of a timestep.

    Raises:
        InputError: it has none.
    """
    try:
        return float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
    except (TypeError, ValueError):
        raise InputError(f"timestep must be an entry of timesteps, got {timestep!r}") from None
