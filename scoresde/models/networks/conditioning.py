"""Modules through which conditions enter a network: embeddings, concatenated images, and the network's own estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...data.conditions import Condition, check_names


class ConditionEmbedding(nn.Module):
    """The sum of the embeddings of classes and vectors: conditions with B rows -> (B, width).

    An empty row has a learned embedding: of a class, the last row of its table.

    Args:
        conditions: of the kinds class and vector.
        width: the length of the embedding.
        deviation: the standard deviation of a class's embedding before training.
    """

    def __init__(self, conditions: Sequence[Condition], width: int, deviation: float = 1.0) -> None:
        super().__init__()
        self.width, self.names = width, [condition.name for condition in conditions]
        self.parts = nn.ModuleList(
            ClassEmbedding(c.classes, width, deviation) if c.kind == "class" else VectorEmbedding(c.shape[0], width)
            for c in conditions
        )

    def forward(self, conditions: Mapping[str, Tensor]) -> Tensor:
        """The embedding (B, width).

        Raises:
            InputError: a condition is missing or unknown.
        """
        check_names(conditions, self.names)
        out: Tensor = sum(part(conditions[name]) for name, part in zip(self.names, self.parts, strict=True))
        return out


class ClassEmbedding(nn.Embedding):
    """A vector for each of the classes 0 .. classes - 1, and one for "no class"."""

    def __init__(self, classes: int, width: int, deviation: float) -> None:
        super().__init__(classes + 1, width)
        nn.init.normal_(self.weight, std=deviation)


class VectorEmbedding(nn.Module):
    """W_2 silu(W_1 c + b_1) + b_2 of vectors c (B, n); a learned vector where c is NaN."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, width), nn.Linear(width, width)
        self.empty = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor) -> Tensor:
        empty = vectors.isnan().any(1, keepdim=True)
        vectors = torch.where(empty, 0.0, vectors).to(self.empty.dtype)
        return torch.where(empty, self.empty, self.second(nn.functional.silu(self.first(vectors))))


class Tokens(nn.Module):
    """Tokens (B, L, n), of which those that are NaN are replaced by a learned token."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(size))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.where(tokens.isnan(), self.empty, tokens.to(self.empty.dtype))


class Concatenated(nn.Module):
    """A network whose input is the sample with images as further channels.

    An image (B, C, *) that is NaN becomes 0. Its last channel is 1 where the image is given, and 0 where it is empty.

    Args:
        backbone: the network.
        images: the conditions of the kind image, in the order of their channels.
        names: the names of all conditions.
    """

    def __init__(self, backbone: nn.Module, images: Sequence[Condition], names: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.names, self.images = backbone, list(names), [image.name for image in images]

    def forward(self, x: Tensor, label: Tensor, /, **conditions: Tensor) -> Tensor:
        check_names(conditions, self.names)
        parts = [x]
        for image in (conditions.pop(name) for name in self.images):
            empty = image.flatten(1).isnan().any(1).view(-1, *(1,) * (x.ndim - 1))
            given = (~empty).to(x.dtype).expand(-1, 1, *x.shape[2:])
            parts += [torch.where(empty, 0.0, image).to(x.dtype), given]
        out: Tensor = self.backbone(torch.cat(parts, 1), label, **conditions)
        return out


class Augmented(nn.Module):
    """A network that receives what was done to a sample as a condition; by default nothing was, which is zeros.

    Args:
        network: the network.
        condition: the condition, see ``data.augmentations``.
    """

    def __init__(self, network: nn.Module, condition: Condition) -> None:
        super().__init__()
        self.network, self.condition = network, condition

    def forward(self, x: Tensor, label: Tensor, /, **conditions: Tensor) -> Tensor:
        unchanged = x.new_zeros(len(x), *self.condition.shape)
        out: Tensor = self.network(x, label, **{self.condition.name: unchanged, **conditions})
        return out


def own_estimate(shape: Sequence[int]) -> Condition:
    """The condition through which a network receives its own estimate of samples of a shape."""
    return Condition("estimate", "image", tuple(shape))


class SelfConditioned(nn.Module):
    """A network that receives its own output as the condition ``estimate`` (Chen et al. 2023, arXiv:2208.04202, 2.3).

    Every call evaluates the network twice at the same state: without an estimate, and then with the output of the first
    evaluation. The paper takes the estimate of the step before instead; this one is a function of the state alone, so
    that every solver, the likelihood and a resumed solve work as they are. One call costs two evaluations.

    In training mode, the samples where ``with_estimate`` (B,) is 1 get the first output, without its gradient; the
    others get none. No sample gets one if ``with_estimate`` is left out.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.network, self.condition = network, own_estimate(shape)

    def forward(self, x: Tensor, label: Tensor, /, with_estimate: Tensor | None = None, **conditions: Tensor) -> Tensor:
        estimate = self.condition.empty(len(x), x.device).to(x.dtype)
        if not self.training or with_estimate is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
                first = self.network(x, label, estimate=estimate, **conditions)[:, : x.shape[1]]
            estimate = first if with_estimate is None else self.condition.emptied(first, with_estimate == 0)
        out: Tensor = self.network(x, label, estimate=estimate, **conditions)
        return out
