"""``transformer``: a bidirectional transformer of tokens, from torch's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.registry.ranges import Count, Fraction, Positive

from ...data.conditions import Condition, check_names
from .base import Network, networks
from .conditioning import ConditionEmbedding
from .mlp import FourierFeatures

_INITIAL = 0.02  # the standard deviation of embeddings before training
_FEATURES = 64  # sines and cosines of the label, together


@networks.register("transformer", reference="Vaswani et al. 2017, arXiv:1706.03762")
@dataclass(frozen=True)
class Transformer(Network):
    """Transformer of tokens, in which each one sees all others; an untrained one returns 0.

    Samples of any shape are sequences of all their tokens. Each layer normalises before its attention and before its
    two linear maps (torch's ``TransformerEncoderLayer``). The embeddings of a token and its place are added. The time
    is a token of its own before the others, and so are the classes and vectors together (Bao et al. 2022,
    arXiv:2209.12152). Added to every token they would hide the tokens, and a network of uniform noise would learn
    little more than frequencies.

    Attributes:
        width: the width of the layers; their inner width is four times as large.
        depth: the number of layers.
        heads: the number of heads of each attention; they divide the width.
        dropout: the probability of dropping an activation while training.
        label_scale: multiplies the label.
    """

    kinds: ClassVar[tuple[str, ...]] = ("class", "vector")
    tokens: ClassVar[bool] = True

    width: Count = 128
    depth: Count = 4
    heads: Count = 4
    dropout: Fraction = 0.0
    label_scale: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise InputError(f"transformer: width={self.width} must be a multiple of heads={self.heads}")

    def build_tokens(
        self, shape: tuple[int, ...], values: int, conditions: Sequence[Condition] = (), time: bool = True
    ) -> nn.Module:
        for condition in conditions:
            if condition.kind not in self.kinds:
                raise InputError(
                    f"the network {self} takes conditions of the kinds {', '.join(self.kinds)}; {condition.name} is of "
                    f"the kind {condition.kind}"
                )
        return TokenTransformer(math.prod(shape), values, self, conditions, time)


class TokenTransformer(nn.Module):
    """The module that ``Transformer`` builds: maps tokens x (B, *), int64, to (B, *, values)."""

    def __init__(
        self, length: int, values: int, recipe: Transformer, conditions: Sequence[Condition] = (), time: bool = True
    ) -> None:
        super().__init__()
        width, self.length, self.scale = recipe.width, length, recipe.label_scale
        self.token, self.place = nn.Embedding(values, width), nn.Embedding(length, width)
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=_INITIAL)
        self.time: nn.Module | None = None
        if time:
            self.time = nn.Sequential(
                FourierFeatures(_FEATURES), nn.Linear(_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
            )
        self.conditions = ConditionEmbedding(conditions, width, _INITIAL) if conditions else None
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, recipe.heads, 4 * width, recipe.dropout, nn.functional.gelu, batch_first=True, norm_first=True
            )
            for _ in range(recipe.depth)
        )
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, values)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, label: Tensor | None = None, /, **conditions: Tensor) -> Tensor:
        """The output (B, *, values) at x (B, *).

        Raises:
            InputError: the samples have another number of tokens; the label is missing, or not wanted.
        """
        flat = x.flatten(1)
        if flat.shape[1] != self.length:
            raise InputError(f"this transformer is for {self.length} tokens, got {flat.shape[1]}")
        h = self.token(flat) + self.place(torch.arange(self.length, device=x.device))
        first = []
        if self.time is not None:
            if label is None:
                raise InputError("this transformer takes a time: build it with time=False, or call it with a label")
            first.append(self.time(self.scale * label))
        if self.conditions is None:
            check_names(conditions, ())
        else:
            first.append(self.conditions(conditions))
        h = torch.cat([*(token[:, None] for token in first), h], 1)
        for layer in self.layers:
            h = layer(h)
        out: Tensor = self.leave(self.norm(h[:, len(first) :]))
        return out.view(*x.shape, -1)
