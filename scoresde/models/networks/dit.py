"""``dit``: diffusers' diffusion transformer for images, in published sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.registry.ranges import Count, Fraction, Positive

from ...data.conditions import Condition, check_names
from .base import Network, networks
from .conditioning import ConditionEmbedding
from .diffusers_classes import LABELS, of_diffusers

_FREQUENCIES = 256  # sines and cosines of the label
_PARTS = "diffusers.models.embeddings"
_INITIAL = 0.02  # the deviation of embeddings before training


class Size(NamedTuple):
    """The options of a transformer, see ``DiT``."""

    depth: int
    width: int
    heads: int


# Peebles and Xie 2022 (arXiv:2212.09748), table 1
SIZES = {"tiny": Size(4, 128, 4), "S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16)}
SIZES["XL"] = Size(28, 1152, 16)


@networks.register("dit", reference="Peebles and Xie 2022, arXiv:2212.09748")
@dataclass(frozen=True)
class DiT(Network):
    """diffusers' DiTTransformer2DModel for square images (C, H, H); an untrained one returns 0.

    The embeddings of classes and vectors are added to that of the time. In diffusers' own class, each block has its own
    embeddings and drops a tenth of the classes while training. Here, all blocks share one embedding, and blocks start
    as the identity, both as in the paper, and nothing is dropped. Unlike in the paper, x, eps and the other outputs are
    trained as everywhere in this library, without a learned variance unless the config asks for it.

    Attributes:
        size: "S", "B", "L" or "XL" of the paper, or "tiny", for 8x8 to 32x32 images on a CPU.
        patch: the height and width of a patch, which becomes a token.
        depth, width, heads: the number of blocks, the length of a token, and the number of heads; by default those of
            the size.
        dropout: the probability of dropping an activation while training.
        label_scale: multiplies the label: 0.001 for networks whose labels are the indices 0 .. 999.
    """

    kinds: ClassVar[tuple[str, ...]] = ("class", "vector")

    size: Literal["tiny", "S", "B", "L", "XL"] = "S"
    patch: Count = 2
    depth: Count | None = field(default=None, kw_only=True)
    width: Count | None = field(default=None, kw_only=True)
    heads: Count | None = field(default=None, kw_only=True)
    dropout: Fraction = field(default=0.0, kw_only=True)
    label_scale: Positive = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        made = self.settings
        if made.width % made.heads or made.width % 4:
            raise InputError(f"dit: width={made.width} must be a multiple of heads={made.heads} and of 4")

    @property
    def settings(self) -> Size:
        """The options, with those of the size where they are left out."""
        given = {name: getattr(self, name) for name in ("depth", "width", "heads")}
        return SIZES[self.size]._replace(**{name: value for name, value in given.items() if value is not None})

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or min(shape) < 1 or shape[1] != shape[2]:
            raise InputError(f"dit needs samples of shape (C, H, H), got {shape}")
        if shape[1] % self.patch:
            raise InputError(f"dit with patches of {self.patch} needs H divisible by {self.patch}, got {shape}")

    def backbone(self, shape: tuple[int, ...], channels: int, conditions: Sequence[Condition]) -> nn.Module:
        made = self.settings
        options: dict[str, Any] = {
            "num_attention_heads": made.heads,
            "attention_head_dim": made.width // made.heads,
            "in_channels": shape[0],
            "out_channels": channels,
            "num_layers": made.depth,
            "dropout": self.dropout,
            "sample_size": shape[1],
            "patch_size": self.patch,
            "num_embeds_ada_norm": 1,  # replaced by the shared embedding
        }
        waves = {"num_channels": _FREQUENCIES, "flip_sin_to_cos": True, "downscale_freq_shift": 1}
        features = of_diffusers("dit", "Timesteps", waves, _PARTS)
        layers = {"in_channels": _FREQUENCIES, "time_embed_dim": made.width}
        embedding = of_diffusers("dit", "TimestepEmbedding", layers, _PARTS)
        backbone = of_diffusers("dit", "DiTTransformer2DModel", options)
        return LabelledDiT(backbone, features, embedding, self.label_scale, conditions)


class _Given(nn.Module):
    """Replaces the embedding of a block: the shared embedding, which diffusers passes on as class labels."""

    def forward(self, timestep: Any, class_labels: Tensor, hidden_dtype: torch.dtype | None = None) -> Tensor:
        return class_labels


class LabelledDiT(nn.Module):
    """The module that ``DiT`` builds: scales labels of order 1 to 0 .. 1000, the range of diffusers' embedding.

    Args:
        backbone: diffusers' network.
        features: the sines and cosines of a label.
        embedding: the embedding of these.
        scale: multiplies the label.
        conditions: those whose embeddings are added.
    """

    def __init__(
        self,
        backbone: Any,
        features: nn.Module,
        embedding: Any,
        scale: float = 1.0,
        conditions: Sequence[Condition] = (),
    ) -> None:
        super().__init__()
        self.features, self.embedding, self.scale = features, embedding, LABELS * scale
        self.names = [condition.name for condition in conditions]
        width = embedding.linear_2.out_features
        self.conditions = ConditionEmbedding(conditions, width, _INITIAL) if conditions else None
        self.backbone = backbone
        # the paper's section 3.2, adaLN-Zero, and its appendix A
        for part in (embedding.linear_1, embedding.linear_2):
            nn.init.normal_(part.weight, std=_INITIAL)
        for block in backbone.transformer_blocks:
            block.norm1.emb = _Given()
            nn.init.zeros_(block.norm1.linear.weight)
            nn.init.zeros_(block.norm1.linear.bias)
        for last in (backbone.proj_out_1, backbone.proj_out_2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, label: Tensor, /, **conditions: Tensor) -> Tensor:
        check_names(conditions, self.names)
        embedded = self.embedding(self.features(self.scale * label).to(x.dtype))
        if self.conditions is not None:
            embedded = embedded + self.conditions(conditions)
        out: Tensor = self.backbone(x, timestep=label, class_labels=embedded).sample
        return out
