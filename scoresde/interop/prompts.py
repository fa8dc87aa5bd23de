"""Prompts: the conditions that a network of diffusers receives for a text, or for the number or name of a class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.errors import unknown

from ..data.conditions import Condition
from ..io.inputs import shown

Prompt = str | int
TEXT = "encoder_hidden_states"  # the condition that a text becomes


@dataclass(frozen=True)
class Texts:
    """Prompts that are texts: the last hidden states of a text encoder, one for each token.

    Each text is encoded alone, so that its numbers do not depend on the other texts.

    Attributes:
        tokenizer: a tokenizer of transformers.
        encoder: a CLIPTextModel.
        length: the number L of tokens of every text; shorter ones are padded, longer ones cut.
    """

    tokenizer: Any = field(repr=False)
    encoder: Any = field(repr=False)
    length: int

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.encoder,)

    @property
    def condition(self) -> Condition:
        """``encoder_hidden_states``, tokens (L, n)."""
        return Condition(TEXT, "tokens", (self.length, int(self.encoder.config.hidden_size)))

    @property
    def null(self) -> dict[str, Tensor]:
        """The condition of the empty text, one row."""
        return self.encode([""])

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The condition (B, L, n) of B texts, in the dtype of the encoder.

        A text that is too long is cut, with a warning that contains what was cut.

        Raises:
            InputError: a prompt is not a text.
        """
        if bad := [prompt for prompt in prompts if not isinstance(prompt, str)]:
            raise InputError(f"a prompt of this pipeline is a text, got {shown(bad[0])}")
        texts = list(dict.fromkeys(prompts))
        with torch.no_grad():
            rows = torch.cat([self.encoder(self._tokens(str(text)))[0] for text in texts])
        return {TEXT: rows[[texts.index(prompt) for prompt in prompts]]}

    def _tokens(self, text: str) -> Tensor:
        """The numbers (1, L) of the text's tokens, on the device of the encoder."""
        every = self.tokenizer(text, verbose=False).input_ids
        if len(every) > self.length:
            cut = self.tokenizer.decode(every[self.length - 1 : -1])
            warnings.warn(
                f"a prompt has {len(every)} tokens with its start and end, the text encoder reads {self.length}; this "
                f"was cut off: {cut!r}",
                stacklevel=2,
            )
        given = self.tokenizer(
            text, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        found: Tensor = given.to(self.encoder.device)
        return found

    def __str__(self) -> str:
        return f"texts of at most {self.length} tokens"


@dataclass(frozen=True)
class Classes:
    """Prompts that are classes, by their number or by one of their names.

    Attributes:
        count: how many classes there are; the number ``count`` stands for no class.
        names: the number of each name.
        device_of: a module on the device of the network.
    """

    count: int
    names: Mapping[str, int] = field(repr=False)
    device_of: nn.Module = field(repr=False)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return ()

    @property
    def condition(self) -> Condition:
        """``class_labels``, a class."""
        return Condition("class_labels", "class", classes=self.count)

    @property
    def null(self) -> dict[str, Tensor]:
        """The condition of no class, one row."""
        return {self.condition.name: self.condition.empty(1, self._device)}

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The condition (B,), int64, of B classes.

        Raises:
            InputError: there is no such class.
        """
        rows = torch.tensor([self._number(prompt) for prompt in prompts], device=self._device)
        return {self.condition.name: rows}

    def _number(self, prompt: Prompt) -> int:
        if isinstance(prompt, str):
            if prompt not in self.names:
                raise unknown("class of this pipeline", prompt, self.names)
            return self.names[prompt]
        if isinstance(prompt, bool) or not isinstance(prompt, int) or not 0 <= prompt < self.count:
            raise InputError(
                f"a prompt of this pipeline is a class, 0 to {self.count - 1} or a name, got {shown(prompt)}"
            )
        return prompt

    @property
    def _device(self) -> torch.device:
        return next(self.device_of.parameters()).device

    def __str__(self) -> str:
        return f"{self.count} classes"
