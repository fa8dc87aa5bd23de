"""``mlp``: a residual multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.registry.ranges import Count, Positive

from ...data.conditions import Condition, check_names
from .base import Network, networks
from .conditioning import ConditionEmbedding

# angular frequencies: the slowest is monotone over labels in [-4, 4], the fastest separates labels 0.01 apart
_SLOWEST, _FASTEST = 0.25, 64.0


@networks.register("mlp")
@dataclass(frozen=True)
class MLP(Network):
    """Residual multilayer perceptron on flattened samples; an untrained one returns 0.

    The embeddings of classes and vectors are added to that of the time.

    Attributes:
        width: the width of the hidden layers.
        depth: the number of residual blocks.
        time_features: the number of sines and cosines of the label, together.
        label_scale: multiplies the label: 0.004 scales the indices 0 .. 999 to the range of the features.
    """

    kinds: ClassVar[tuple[str, ...]] = ("class", "vector")

    width: Count = 256
    depth: Count = 3
    time_features: Count = 64
    label_scale: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_features % 2:
            raise InputError(f"mlp: time_features must be even, got {self.time_features}")

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape or math.prod(shape) < 1:
            raise InputError(f"mlp needs samples of at least one dimension and one number, got shape {shape}")

    def backbone(self, shape: tuple[int, ...], channels: int, conditions: Sequence[Condition]) -> nn.Module:
        return ResidualMLP(shape, channels, self, conditions)


class FourierFeatures(nn.Module):
    """Cosines and sines of a label at geometrically spaced frequencies: (B,) -> (B, features)."""

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        exponents = torch.linspace(math.log(_SLOWEST), math.log(_FASTEST), features // 2, dtype=torch.float64)
        self.register_buffer("frequencies", exponents.exp().float(), persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        phase = label.unsqueeze(1) * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], 1)


class ResidualBlock(nn.Module):
    """The residual block h + W_2 silu(W_1 norm(h) + W_t emb), for h and emb (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.time, self.second = (nn.Linear(width, width) for _ in range(3))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        inner = nn.functional.silu(self.first(self.norm(h)) + self.time(emb))
        out: Tensor = h + self.second(inner)
        return out


class ResidualMLP(nn.Module):
    """The module that ``MLP`` builds: maps x (B, C, *) and label (B,) to (B, channels, *)."""

    def __init__(
        self, shape: tuple[int, ...], channels: int, recipe: MLP, conditions: Sequence[Condition] = ()
    ) -> None:
        super().__init__()
        width, self.channels, self.scale = recipe.width, channels, recipe.label_scale
        self.features = FourierFeatures(recipe.time_features)
        self.embed = nn.Sequential(nn.Linear(recipe.time_features, width), nn.SiLU())
        self.enter = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(recipe.depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, channels * math.prod(shape[1:]))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.conditions = ConditionEmbedding(conditions, width) if conditions else None

    def forward(self, x: Tensor, label: Tensor, /, **conditions: Tensor) -> Tensor:
        emb = self.embed(self.features(self.scale * label).to(x.dtype))
        if self.conditions is None:
            check_names(conditions, ())
        else:
            emb = emb + self.conditions(conditions)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.leave(nn.functional.silu(self.norm(h)))
        return out.view(len(x), self.channels, *x.shape[2:])
