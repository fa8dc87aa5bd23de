"""What training does to conditions: some samples lose theirs, and some get the network's own estimate."""

from __future__ import annotations

from dataclasses import dataclass

from solvers import InputError
from solvers.noise.draws import Draws

from ..data.conditions import Condition, dropped
from ..data.rows import Batch


@dataclass(frozen=True)
class Conditioning:
    """A change of a batch, for ``prepared(changes=...)``; each sample has two numbers of its own in [0, 1).

    Attributes:
        conditions: those that a sample loses together.
        dropout: the probability of that, see ``dropped``.
        self_conditioning: half of the samples get the network's own estimate (Chen et al. 2023, arXiv:2208.04202,
            algorithm 1), see ``SelfConditioned``.

    Raises:
        InputError: the probability is outside [0, 1), or there is nothing to lose.
    """

    conditions: tuple[Condition, ...]
    dropout: float = 0.0
    self_conditioning: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise InputError(f"condition_dropout must lie in [0, 1), got {self.dropout!r}")
        if self.dropout and not self.conditions:
            raise InputError(f"condition_dropout={self.dropout:g}, but the data have no conditions: set data.labels")

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        conditions = dropped(batch.conditions, self.conditions, self.dropout, draws)
        if self.self_conditioning:
            chosen = draws.uniform("conditions", 2)[:, 1] < 0.5
            conditions["with_estimate"] = chosen.to(batch.x)
        return Batch(batch.x, conditions)
