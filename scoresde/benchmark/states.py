"""The states of one sample along its solve, as the page of a benchmark shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from solvers import Node, SeededNoise

from ..paths.base import ModelLike
from ..sampling.plan import Plan
from ..sampling.sample import sample

STATES = 9  # of a solve with more, so many are kept: the first, the last, and others at equal distances


def states_of(
    denoiser: ModelLike,
    plan: Plan,
    seed: int,
    shape: Sequence[int],
    *,
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The states (K, *) of one sample of a Gaussian path, from its start to its end, on the CPU.

    Each is divided by sqrt(alpha^2 + sigma^2), so that noise has unit size at every node; the sample itself, at
    sigma = 0, is not changed.

    Args:
        seed: of the sample; its states do not depend on other samples.
        condition: of this sample, each (1, *).
    """
    kept = [SeededNoise([seed], shape, dtype, torch.device(device)).initial()[0]]

    def keep(x: Tensor, node: Node) -> None:
        kept.append(x[0] / (node.alpha**2 + node.sigma**2) ** 0.5)

    sample(
        denoiser, shape, [seed], plan=plan, condition=condition, dtype=dtype, device=device, hooks=[keep],
        on_failure="keep",
    )  # fmt: skip
    places = torch.linspace(0, len(kept) - 1, min(STATES, len(kept)), dtype=torch.float64).round().long()
    return torch.stack([kept[place].cpu() for place in places.tolist()])
