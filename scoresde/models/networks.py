"""Network recipes: each builds a module from its options and the shape of a sample.

Every module is called as ``module(x, label)`` with x (B, *) and label (B,), and returns (B, *). The label is a real
number of order 1, such as t or log(sigma / alpha) / 4; the time embeddings here are designed for that range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Registry
from solvers.libraries import without_traces
from solvers.registry.options import Options
from solvers.registry.ranges import Count, Positive

# angular frequencies: the slowest is monotone over labels in [-4, 4], the fastest separates labels 0.01 apart
_SLOWEST, _FASTEST = 0.25, 64.0
_DIFFUSERS_LABELS = 1000.0  # diffusers' sinusoids are spaced for steps 0 .. 1000


class Network(Options):
    """A recipe for a network. Each recipe is a frozen dataclass; its fields are its options."""

    def build(self, shape: tuple[int, ...], outputs: int = 1) -> nn.Module:
        """Builds a new module for samples of ``shape`` (C, *); its weights are drawn from torch's global generator.

        With ``outputs`` = 2, as a learned variance needs, the module returns (B, 2 C, *).

        Raises:
            InputError: the network does not support that shape.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return networks.format(self)


networks: Registry[Network] = Registry("network", Network)


@networks.register("mlp")
@dataclass(frozen=True)
class MLP(Network):
    """Residual multilayer perceptron on flattened samples; an untrained one returns 0.

    Attributes:
        width: the width of the hidden layers.
        depth: the number of residual blocks.
        time_features: the number of sines and cosines of the label, together.
        label_scale: multiplies the label: 0.004 scales the indices 0 .. 999 to the range of the features.
    """

    width: Count = 256
    depth: Count = 3
    time_features: Count = 64
    label_scale: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_features % 2:
            raise InputError(f"mlp: time_features must be even, got {self.time_features}")

    def build(self, shape: tuple[int, ...], outputs: int = 1) -> nn.Module:
        size = math.prod(shape)
        if not shape or size < 1:
            raise InputError(f"mlp needs samples of at least one dimension and one number, got shape {tuple(shape)}")
        return ResidualMLP(size, self.width, self.depth, self.time_features, outputs, self.label_scale)


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
    """The module that ``MLP`` builds: maps x (B, C, *), ``size`` numbers each, and label (B,) to (B, outputs C, *)."""

    def __init__(
        self, size: int, width: int, depth: int, time_features: int, outputs: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.outputs, self.scale = outputs, scale
        self.features = FourierFeatures(time_features)
        self.embed = nn.Sequential(nn.Linear(time_features, width), nn.SiLU())
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs * size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        emb = self.embed(self.features(self.scale * label).to(x.dtype))
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.leave(nn.functional.silu(self.norm(h)))
        return out.view(len(x), self.outputs * x.shape[1], *x.shape[2:])


@networks.register("unet", reference="Ho et al. 2020, arXiv:2006.11239, appendix B")
@dataclass(frozen=True)
class UNet(Network):
    """diffusers' UNet2DModel for images (C, H, W).

    Attributes:
        channels: the channels of each resolution, the finest first; every further resolution halves H and W.
        layers: the number of residual blocks per resolution.
        attention: use self-attention at the coarsest resolution.
        groups: the number of groups of the group normalisation.
        label_scale: multiplies the label: 0.001 for networks whose labels are the indices 0 .. 999.
    """

    channels: tuple[Count, ...] = (32, 64)
    layers: Count = 1
    attention: bool = False
    groups: Count = 8
    label_scale: Positive = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        super().__post_init__()
        if not self.channels:
            raise InputError("option 'channels' of unet needs at least one number")
        # the time embedding adds one number per channel; normalising a group of one channel would subtract it again
        if self.groups >= min(self.channels):
            raise InputError(
                f"unet: groups={self.groups} must be less than the fewest channels, {min(self.channels)}: "
                "normalising single channels makes the network blind to time"
            )
        for count in self.channels:
            if count % self.groups:
                raise InputError(f"unet: channels={list(self.channels)} must be multiples of groups={self.groups}")

    def build(self, shape: tuple[int, ...], outputs: int = 1) -> nn.Module:
        factor = 2 ** (len(self.channels) - 1)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"unet needs samples of shape (C, H, W), got {tuple(shape)}")
        if shape[1] % factor or shape[2] % factor:
            levels = len(self.channels)
            raise InputError(f"unet with {levels} resolutions needs H and W divisible by {factor}, got {tuple(shape)}")
        try:
            with without_traces():
                import diffusers

                make: Any = diffusers.UNet2DModel
        except ImportError:
            raise InputError("the network 'unet' needs diffusers: pip install \"scoresde[images]\"") from None
        plain = len(self.channels) - self.attention
        backbone = make(
            sample_size=tuple(shape[1:]),
            in_channels=shape[0],
            out_channels=outputs * shape[0],
            layers_per_block=self.layers,
            block_out_channels=self.channels,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * self.attention,
            up_block_types=("AttnUpBlock2D",) * self.attention + ("UpBlock2D",) * plain,
            add_attention=self.attention,
            attention_head_dim=self.channels[-1],  # one head: it fits any number of channels
            norm_num_groups=self.groups,
        )
        return LabelledUNet(backbone, self.label_scale)


class LabelledUNet(nn.Module):
    """The module that ``UNet`` builds: scales labels of order 1 to 0 .. 1000, the range of diffusers' embedding."""

    def __init__(self, backbone: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, _DIFFUSERS_LABELS * scale

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.backbone(x, self.scale * label).sample
        return out
