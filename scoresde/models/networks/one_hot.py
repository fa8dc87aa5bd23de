"""``OneHot``: tokens as the input of a network of numbers, a channel for each value."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneHot(nn.Module):
    """A network of numbers (C, *) as one of tokens: its channels are the values of a token.

    Without a label, the network gets the label 0.

    Args:
        network: of samples of ``one_hot_shape``, which returns as many numbers.
        shape: that of a sample of tokens.
        values: S, the number of values of a token.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], values: int) -> None:
        super().__init__()
        self.network, self.shape, self.values = network, shape, values

    def forward(self, x: Tensor, label: Tensor | None = None, /, **conditions: Tensor) -> Tensor:
        """The output (B, *, S) at tokens x (B, *), int64."""
        label = torch.zeros(len(x), device=x.device) if label is None else label
        channels = nn.functional.one_hot(x, self.values).movedim(-1, 1).to(label.dtype)  # (B, S, *)
        out: Tensor = self.network(
            channels.reshape(len(x), *one_hot_shape(self.shape, self.values)), label, **conditions
        )
        return out.reshape(len(x), self.values, *self.shape).movedim(1, -1)


def one_hot_shape(shape: tuple[int, ...], values: int) -> tuple[int, ...]:
    """The shape (C, *) of one-hot tokens: the values are channels, times those that an image (C, H, W) has.

    >>> one_hot_shape((64,), 27), one_hot_shape((1, 8, 8), 17)
    ((27, 64), (17, 8, 8))
    """
    return (values, *shape) if len(shape) < 3 else (values * shape[0], *shape[1:])
