"""``Network``: a recipe for a network; and the registry of recipes.

Every module is called as ``module(x, label, **conditions)`` with x (B, *) and label (B,), and returns (B, *). The label
is a real number of order 1, such as t or log(sigma / alpha) / 4; the time embeddings here are made for that range. A
module of tokens gets x (B, *), int64, and returns a number for each value of each token, (B, *, S).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from solvers import InputError, Registry
from solvers.registry.options import Options

from ...data.conditions import Condition
from .conditioning import Concatenated
from .factory import of_callable
from .one_hot import OneHot, one_hot_shape


class Network(Options):
    """A recipe for a network. Each recipe is a frozen dataclass; its fields are its options."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of conditions that ``backbone`` accepts, in addition to images, which are concatenated to its input."""
    tokens: ClassVar[bool] = False
    """Whether ``build_tokens`` makes a network of tokens itself, and there is no other; else tokens enter one-hot."""

    def build(self, shape: tuple[int, ...], outputs: int = 1, conditions: Sequence[Condition] = ()) -> nn.Module:
        """Builds a new module for samples of ``shape`` (C, *); its weights are drawn from torch's global generator.

        With ``outputs`` = 2, as a learned variance needs, the module returns (B, 2 C, *). It takes each of the
        conditions as the argument of its name.

        Raises:
            InputError: the network does not support that shape or one of the conditions.
        """
        if self.tokens:
            raise InputError(
                f"the network {self} takes tokens, the states of a process: set config.process, or use mlp"
            )
        for condition in conditions:
            if condition.kind != "image" and condition.kind not in self.kinds:
                raise InputError(
                    f"the network {self} takes conditions of the kinds {', '.join((*self.kinds, 'image'))}; "
                    f"{condition.name} is of the kind {condition.kind}"
                )
        if len({condition.name for condition in conditions}) < len(conditions):
            raise InputError(f"conditions need different names, got {', '.join(c.name for c in conditions)}")
        self.check(tuple(shape))
        images = [condition for condition in conditions if condition.kind == "image"]
        for image in images:
            if image.shape[1:] != tuple(shape[1:]):
                raise InputError(
                    f"the condition {image.name} {image.shape} must have the height and width of samples {tuple(shape)}"
                )
        # a channel for each image says where it is empty
        channels = shape[0] + sum(image.shape[0] + 1 for image in images)
        rest = [condition for condition in conditions if condition.kind != "image"]
        backbone = self.backbone((channels, *shape[1:]), outputs * shape[0], rest)
        return Concatenated(backbone, images, [c.name for c in conditions]) if images else backbone

    def build_tokens(
        self, shape: tuple[int, ...], values: int, conditions: Sequence[Condition] = (), time: bool = True
    ) -> nn.Module:
        """Builds a new module for tokens (B, *) of ``shape`` with so many values, called as ``module(x, label)``.

        Without ``time`` it is called as ``module(x)``. It returns (B, *, values).

        Raises:
            InputError: see ``build``.
        """
        wide = one_hot_shape(tuple(shape), values)
        return OneHot(self.build(wide, conditions=conditions), tuple(shape), values)

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks the shape of samples.

        Raises:
            InputError: the network does not support it.
        """

    def backbone(self, shape: tuple[int, ...], channels: int, conditions: Sequence[Condition]) -> nn.Module:
        """Builds the module from inputs (B, C, *) of ``shape`` (C, *) to (B, channels, *)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return networks.format(self)


networks: Registry[Network] = Registry("network", Network, of_callable=lambda made: of_callable(made, Network))
