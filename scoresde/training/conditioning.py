"""What training does to conditions: some samples lose theirs, and some get the network's own estimate."""

from __future__ import annotations

from dataclasses import dataclass

from solvers import InputError
from solvers.noise.draws import Draws

from ..data.conditions import Condition, dropped
from ..data.rows import Batch


@dataclass(frozen=True)
class Conditioning:
    """A change of a batch, for ``prepared(changes=...)``; each sample has numbers of its own in [0, 1).

    Attributes:
        conditions: those that a sample may lose.
        dropout: the probability that it loses all together, see ``dropped``.
        self_conditioning: half of the samples get the network's own estimate (Chen et al. 2023, arXiv:2208.04202,
            algorithm 1), see ``SelfConditioned``.
        dropout_each: the probability that it loses one alone, for each of several.

    Raises:
        InputError: a probability is outside [0, 1), or there is nothing to lose.
    """

    conditions: tuple[Condition, ...]
    dropout: float = 0.0
    self_conditioning: bool = False
    dropout_each: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("condition_dropout", self.dropout), ("condition_dropout_each", self.dropout_each)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must lie in [0, 1), got {value!r}")
            if value and not self.conditions:
                raise InputError(f"{name}={value:g}, but the data have no conditions: set data.labels")
        if self.dropout_each and len(self.conditions) == 1:
            raise InputError(
                f"condition_dropout_each={self.dropout_each:g} is for several conditions, the data have "
                f"{self.conditions[0].name} alone: use condition_dropout"
            )

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        conditions = dropped(batch.conditions, self.conditions, self.dropout, draws, self.dropout_each)
        if self.self_conditioning:
            chosen = draws.uniform("conditions", 2)[:, 1] < 0.5
            conditions["with_estimate"] = chosen.to(batch.x)
        return Batch(batch.x, conditions)
