"""``unet``: diffusers' U-Nets for images, in published sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from solvers import InputError
from solvers.registry.ranges import Count, Fraction, Positive

from ...data.conditions import Condition, check_names
from .base import Network, networks
from .conditioning import ConditionEmbedding, Tokens
from .diffusers_classes import LABELS, of_diffusers


class Size(NamedTuple):
    """The options of a U-Net, see ``UNet``; also the width of its time embedding, and ADM's residual blocks."""

    channels: tuple[int, ...]
    layers: int
    attention: tuple[int, ...]
    groups: int
    head_channels: int | None = None
    dropout: float = 0.0
    embedding: int | None = None  # by default four times the channels of the finest resolution
    adm: bool = False


SIZES = {
    "small": Size((32, 64), 1, (), 8),
    # Karras et al. 2022 (arXiv:2206.00364), table 7, "DDPM++"
    "cifar": Size((256, 256, 256), 4, (1,), 32, dropout=0.13, embedding=512),
    # Dhariwal and Nichol 2021 (arXiv:2105.05233), appendix I, ImageNet 64
    "adm64": Size((192, 384, 576, 768), 3, (1, 2, 3), 32, head_channels=64, dropout=0.1, adm=True),
}


@networks.register("unet", reference="Ho et al. 2020, arXiv:2006.11239, appendix B")
@dataclass(frozen=True)
class UNet(Network):
    """diffusers' U-Net for images (C, H, W): UNet2DModel, or UNet2DConditionModel where there are tokens.

    The size decides all options that are left out:

    - "small", for 8x8 to 32x32 images on a CPU.
    - "cifar", for 32x32 images: the widths, depths, attention and dropout of EDM's DDPM++. diffusers' blocks differ
      from it: no factor 1 / sqrt 2 after a residual block, convolutions instead of residual blocks between resolutions,
      attention after each block on the way up, no augmentation labels unless the data have them.
    - "adm64", for 64x64 images: ADM's, with as many weights, 295.9 million with 1000 classes and the empty one less.
      With tokens, convolutions instead of residual blocks change the resolution.

    The embeddings of classes and vectors are added to that of the time. Tokens enter by cross-attention after each
    self-attention, and in the middle of the network in every case.

    Attributes:
        channels: the channels of each resolution, the finest first; every further resolution halves H and W.
        layers: the number of residual blocks per resolution.
        attention: the resolutions with self-attention, 0 for the finest; the middle has it if one of them does.
        groups: the number of groups of the group normalisation.
        label_scale: multiplies the label: 0.001 for networks whose labels are the indices 0 .. 999.
        size: "small", "cifar" or "adm64".
        head_channels: the channels of each head of the attention; by default all channels are one head.
        dropout: the probability of dropping an activation in a residual block while training.
    """

    kinds: ClassVar[tuple[str, ...]] = ("class", "vector", "tokens")

    channels: tuple[Count, ...] | None = None
    layers: Count | None = None
    attention: tuple[int, ...] | None = None
    groups: Count | None = None
    label_scale: Positive = 1.0
    size: Literal["small", "cifar", "adm64"] = field(default="small", kw_only=True)
    head_channels: Count | None = field(default=None, kw_only=True)
    dropout: Fraction | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("channels", "attention"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(given))
        super().__post_init__()
        made, levels = self.settings, len(self.settings.channels)
        if not levels:
            raise InputError("option 'channels' of unet needs at least one number")
        for level in made.attention:
            if not 0 <= level < levels:
                raise InputError(f"unet: attention={list(made.attention)} must be of the resolutions 0 to {levels - 1}")
        # the time embedding adds one number per channel; normalising a group of one channel would subtract it again
        if made.groups >= min(made.channels):
            raise InputError(
                f"unet: groups={made.groups} must be less than the fewest channels, {min(made.channels)}: "
                "normalising single channels makes the network blind to time"
            )
        heads = [(f"head_channels={made.head_channels}", made.head_channels, [*made.attention, -1])]
        for what, divisor, at in [(f"groups={made.groups}", made.groups, range(levels)), *heads]:
            if divisor is not None and any(made.channels[level] % divisor for level in at):
                raise InputError(f"unet: channels={list(made.channels)} must be multiples of {what}")

    @property
    def settings(self) -> Size:
        """The options, with those of the size where they are left out."""
        size = SIZES[self.size]
        given = {n: getattr(self, n) for n in ("channels", "layers", "attention", "groups", "head_channels", "dropout")}
        made = size._replace(**{name: value for name, value in given.items() if value is not None})
        if self.attention is None:  # a network of fewer resolutions
            made = made._replace(attention=tuple(n for n in made.attention if n < len(made.channels)))
        return made

    def check(self, shape: tuple[int, ...]) -> None:
        levels = len(self.settings.channels)
        factor = 2 ** (levels - 1)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"unet needs samples of shape (C, H, W), got {shape}")
        if shape[1] % factor or shape[2] % factor:
            raise InputError(f"unet with {levels} resolutions needs H and W divisible by {factor}, got {shape}")

    def backbone(self, shape: tuple[int, ...], channels: int, conditions: Sequence[Condition]) -> nn.Module:
        tokens = [condition for condition in conditions if condition.kind == "tokens"]
        added = [condition for condition in conditions if condition.kind != "tokens"]
        if len(tokens) > 1:
            raise InputError(f"unet takes one condition of tokens, got {', '.join(c.name for c in tokens)}")
        options = self._options(shape, channels, tokens[0].shape[1] if tokens else None)
        if added:  # embeddings are added as they are
            options["class_embed_type"] = "identity"
        backbone = of_diffusers("unet", "UNet2DConditionModel" if tokens else "UNet2DModel", options)
        return LabelledUNet(backbone, self.label_scale, added, tokens)

    def _options(self, shape: tuple[int, ...], channels: int, tokens: int | None) -> dict[str, Any]:
        """The arguments of diffusers' classes; ``tokens`` is the length of a token."""
        made, cross = self.settings, tokens is not None
        adm = made.adm and not cross
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if adm else ("DownBlock2D", "UpBlock2D")
        attends = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if cross else ("AttnDownBlock2D", "AttnUpBlock2D")
        kinds = [attends if level in made.attention else plain for level in range(len(made.channels))]
        options: dict[str, Any] = {
            "sample_size": tuple(shape[1:]),
            "in_channels": shape[0],
            "out_channels": channels,
            "layers_per_block": made.layers,
            "block_out_channels": made.channels,
            "down_block_types": tuple(down for down, _ in kinds),
            "up_block_types": tuple(up for _, up in reversed(kinds)),
            "norm_num_groups": made.groups,
            "dropout": made.dropout,
            "resnet_time_scale_shift": "scale_shift" if made.adm else "default",
        }
        if made.embedding is not None and self.channels is None:
            options["time_embedding_dim"] = made.embedding
        if cross:  # here diffusers' attention_head_dim is the number of heads
            heads = tuple(1 if made.head_channels is None else c // made.head_channels for c in made.channels)
            return {**options, "attention_head_dim": heads, "cross_attention_dim": tokens}
        resampling = {"downsample_type": "resnet", "upsample_type": "resnet"} if adm else {}
        return {
            **options,
            **resampling,
            "add_attention": bool(made.attention),
            "attention_head_dim": made.head_channels,  # None is one head
        }


class LabelledUNet(nn.Module):
    """The module that ``UNet`` builds: scales labels of order 1 to 0 .. 1000, the range of diffusers' embedding.

    Args:
        backbone: diffusers' network.
        scale: multiplies the label.
        added: the conditions whose embeddings are added to that of the time.
        tokens: the condition of the kind tokens, or none.
    """

    def __init__(
        self,
        backbone: Any,
        scale: float = 1.0,
        added: Sequence[Condition] = (),
        tokens: Sequence[Condition] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, LABELS * scale
        self.names = [condition.name for condition in (*added, *tokens)]
        width = backbone.time_embedding.linear_2.out_features
        self.conditions = ConditionEmbedding(added, width) if added else None
        self.tokens = Tokens(tokens[0].shape[1]) if tokens else None

    def forward(self, x: Tensor, label: Tensor, /, **conditions: Tensor) -> Tensor:
        check_names(conditions, self.names)
        out: Tensor = self.backbone(x, self.scale * label, **self._given(conditions)).sample
        return out

    def _given(self, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The conditions as arguments of diffusers' network."""
        given: dict[str, Tensor] = {}
        rest = dict(conditions)
        if self.tokens is not None:
            given["encoder_hidden_states"] = self.tokens(rest.pop(self.names[-1]))
        if self.conditions is not None:
            given["class_labels"] = self.conditions(rest)
        return given
