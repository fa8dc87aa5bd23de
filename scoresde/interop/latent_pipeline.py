"""``LatentPipeline``: a denoiser of latents, with the prompts before it and the autoencoder behind it.

``sample`` is ``scoresde.sample`` of the denoiser, or of a guided one, with the prompts as conditions; its latents are
decoded to images. Everything else that takes a denoiser takes ``denoiser``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from solvers import Grid, InputError, Solver

from ..guidance.base import NEGATIVE, Guidance, guidances
from ..guidance.guide import guide
from ..io.inputs import Seeds, device_of, dtype_of, seeds_of, shown, tensor_of
from ..models.denoiser import Denoiser
from ..models.model import Model
from ..sampling.sample import Sample, sample
from .prompts import Classes, Prompt, Texts

_OUTSIDE = 1.01  # images range from -1 to 1; larger numbers have another scale


@dataclass(frozen=True, repr=False)
class LatentSample(Sample):
    """The result of ``LatentPipeline.sample``: ``x`` are images (B, 3, H, W) in -1..1.

    Attributes:
        latents: the latents (B, *) that were decoded.
    """

    latents: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class LatentPipeline:
    """A latent diffusion model with its prompts and its autoencoder; ``scoresde.load`` makes one.

    Attributes:
        denoiser: the denoiser of latents, a ``Denoiser`` with the condition ``encoder_hidden_states`` or
            ``class_labels``.
        prompts: what turns prompts into that condition: ``Texts`` or ``Classes``.
        vae: the AutoencoderKL of diffusers.
        resizable: whether the network takes latents of other sizes than its own.
    """

    denoiser: Denoiser
    prompts: Texts | Classes
    vae: Any = field(repr=False)
    resizable: bool = True

    @property
    def null(self) -> dict[str, Tensor]:
        """The condition without a prompt, one row: that of the empty text, or of no class."""
        return self.prompts.null

    def encode_text(self, prompts: Prompt | Iterable[Prompt]) -> dict[str, Tensor]:
        """The conditions of prompts: texts, or classes by number or name; one row for each.

        A text that is too long is cut, with a warning.

        Raises:
            InputError: there are no prompts, or one that is not a text, or not a class.
        """
        return self.prompts.encode(_listed(prompts))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents (B, C, h, w): the decoder of latents / ``scaling_factor`` + ``shift_factor``.

        Numbers may lie a little outside -1..1; ``sample`` clamps them. Each image is decoded alone, so that neither
        the memory nor the image depends on the batch.
        """
        scale, shift = self._scale
        inner = (latents / scale + shift).to(self.vae.dtype)
        return torch.cat([self.vae.decode(row[None], return_dict=False)[0] for row in inner]).to(latents.dtype)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in -1..1: the means of the encoder's distributions.

        Raises:
            InputError: they are no such images, or their sides are no multiples of the autoencoder's factor.
        """
        x, channels = tensor_of("images", images), int(self.vae.config.in_channels)
        if not x.is_floating_point() or x.ndim != 4 or x.shape[1] != channels or not len(x):
            raise InputError(f"images must be floats (B, {channels}, H, W), got {x.dtype} of shape {tuple(x.shape)}")
        self._latent_size(x.shape[2:])
        if not bool((x.abs() <= _OUTSIDE).all()):
            raise InputError(f"images must range from -1 to 1, got {float(x.min()):.3g} to {float(x.max()):.3g}")
        scale, shift = self._scale
        inner = x.to(self.vae.device, self.vae.dtype)
        means = torch.cat([self.vae.encode(row[None]).latent_dist.mode() for row in inner]).to(x.dtype)
        return (means - shift) * scale

    def guided(
        self, guidance: str | Guidance | None = None, negative_prompt: Prompt | Iterable[Prompt] | None = None
    ) -> Model:
        """The denoiser with a guidance, see ``scoresde.guide``; the denoiser itself without one.

        A negative prompt replaces the empty one. Several, one for each sample, need the guidance ``negative``.

        Raises:
            InputError: a negative prompt without a guidance; several for a guidance that takes one; see also
                ``scoresde.guide``.
        """
        if guidance is None:
            if negative_prompt is not None:
                raise InputError("negative_prompt needs a guidance, such as guidance='cfg(scale=7)'")
            return self.denoiser
        rule = guidances.make(guidance)
        if negative_prompt is None:
            return guide(self.denoiser, rule)
        prompts = _listed(negative_prompt)
        if NEGATIVE in rule.roles:
            return guide(self.denoiser, rule, negative=self.encode_text(prompts))
        if len(set(prompts)) > 1:
            raise InputError(
                f"{rule} takes one negative prompt for all seeds; guidance='negative(scale=7)' takes several"
            )
        return guide(self.denoiser, rule, null=self.encode_text(prompts[:1]))

    def sample(
        self,
        prompt: Prompt | Iterable[Prompt],
        seeds: Seeds | None = None,
        solver: str | Solver | None = None,
        grid: str | Grid | None = None,
        steps: int | None = None,
        *,
        guidance: str | Guidance | None = None,
        negative_prompt: Prompt | Iterable[Prompt] | None = None,
        size: Sequence[int] | None = None,
        **options: Any,
    ) -> LatentSample:
        """Draws one image per seed; image i depends only on its seed and its prompt.

        Args:
            prompt: a text, or a class by number or name, for all seeds; or a list with one for each seed.
            seeds: see ``scoresde.sample``; by default one for each prompt.
            solver, grid, steps: see ``scoresde.plan``.
            guidance: a spec such as "cfg(scale=7)", see ``scoresde.guide``. None evaluates only the network with the
                prompt.
            negative_prompt: a prompt that replaces the empty one in the guidance; with the guidance
                "negative(scale=7)", also one for each seed.
            size: height and width of the images; by default the network's own.
            options: the other arguments of ``scoresde.sample``, such as ``nfe``, ``plan``, ``batch_size``, ``hooks``,
                ``progress``, and ``x_init``, which are latents.

        Raises:
            InputError: there are more or fewer prompts than seeds; a size that the network does not take; see also
                ``scoresde.sample``.
        """
        several = not isinstance(prompt, Prompt)
        prompts = _listed(prompt)
        numbers = seeds_of(len(prompts) if seeds is None else seeds)
        for kind, given in (("prompts", prompt), ("negative prompts", negative_prompt)):
            if given is not None and not isinstance(given, Prompt) and (many := len(_listed(given))) != len(numbers):
                raise InputError(f"there are {many} {kind} for {len(numbers)} seeds; give one, or one per seed")
        shape = None if size is None else (int(self.vae.config.latent_channels), *self._latent_size(size, own=True))
        condition = self.encode_text(prompts if several else prompts * len(numbers))
        found = sample(
            self.guided(guidance, negative_prompt),
            shape,
            numbers,
            solver,
            grid,
            steps,
            condition=condition,
            device=self.device,
            **options,
        )
        with torch.no_grad():
            images = self.decode(found.x).clamp(-1, 1)
        values = {one.name: getattr(found, one.name) for one in fields(found)}
        return LatentSample(**{**values, "x": images}, latents=found.x)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(parameter.device for module in self.denoiser.modules for parameter in module.parameters())

    def to(self, device: torch.device | str, dtype: torch.dtype | str | None = None) -> LatentPipeline:
        """Moves all networks to a device, and converts them to a dtype if one is given; returns the pipeline.

        Raises:
            InputError: there is no such device or dtype.
        """
        where, kind = device_of(device), None if dtype is None else dtype_of(dtype)
        for module in (*self.denoiser.modules, *self.prompts.modules, self.vae):
            nn.Module.to(module, where, kind)  # diffusers' own prints a line about layers that there are not
        return self

    @property
    def _scale(self) -> tuple[float, float]:
        """The factor and the shift between the autoencoder's numbers and the latents of the network."""
        return float(self.vae.config.scaling_factor), float(self.vae.config.get("shift_factor") or 0.0)

    @property
    def _factor(self) -> int:
        """How many pixels of an image lie along one side of a number of its latents."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def _latent_size(self, size: Any, own: bool = False) -> tuple[int, int]:
        """Height and width of the latents of images with these sides.

        Args:
            own: whether the network must take them.

        Raises:
            InputError: they are no multiples of the factor, or not the network's own where it takes no others.
        """
        factor = self._factor
        sides = list(size) if isinstance(size, (list, tuple)) else []
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 and side % factor == 0 for side in sides):
            raise InputError(f"the height and width of images are multiples of {factor}, got {shown(size)}")
        found = sides[0] // factor, sides[1] // factor
        if own and not self.resizable and found != (known := (self.denoiser.shape or ())[1:]):
            images = tuple(factor * side for side in known)
            raise InputError(f"the network makes images of size {images} only, got {tuple(sides)}")
        return found

    def __str__(self) -> str:
        return f"LatentPipeline: {self.prompts}, latents {self.denoiser.shape}, on {self.denoiser.sde}"


def _listed(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """The prompts as a list.

    Raises:
        InputError: there are none.
    """
    given = prompts.tolist() if isinstance(prompts, Tensor) else prompts
    if not isinstance(given, (Prompt, Iterable)):
        raise InputError(f"a prompt is a text or a class, or a list of them, got {shown(prompts)}")
    found = [given] if isinstance(given, Prompt) else list(given)
    if not found:
        raise InputError("there are no prompts; at least one is needed")
    return found
