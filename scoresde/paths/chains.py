"""DDPM's and SMLD's discrete chains, and the chains that papers derive from a continuous path.

The embeddings "song" and "ho" differ from the path by O(1 / N); "exact", in ``chain``, does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers import InputError, Node
from solvers.time_grids import beta_schedules
from solvers.time_grids.beta_schedules import Array

from .base import SDE
from .chain import EMBEDDINGS, Chain
from .chain_paths import ChainSDE, SMLDChainSDE


class DDPMChain(Chain):
    """DDPM's chain: x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z; Ho et al. 2020, arXiv:2006.11239, eq. 2.

    Args:
        betas: (N,), or the name of a schedule: "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid" (of beta),
            "sigmoid_alpha" (of alpha^2).
        options: options of a named schedule: beta_start, beta_end, num_train_timesteps, zero_terminal_snr; see
            ``ChainSDE``.

    >>> chain = DDPMChain("linear", num_train_timesteps=1000)
    >>> str(chain.sde()), round(float(chain.betas[-1]), 12)
    ('ddpm_chain', 0.02)

    Raises:
        InputError: see ``ChainSDE``.
    """

    def __init__(self, betas: str | Sequence[float] | Array, **options: Any) -> None:
        if isinstance(betas, str):
            path = ChainSDE(betas, **options)
        else:
            path = ChainSDE(betas=_numbers("betas", betas), **options)
        super().__init__(path, path.num_train_timesteps)


class SMLDChain(Chain):
    """SMLD's chain: x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z; Song et al. 2021, arXiv:2011.13456, eq. 20.

    Args:
        sigmas: (N,), increasing.

    Raises:
        InputError: see ``SMLDChainSDE``.
    """

    def __init__(self, sigmas: Sequence[float] | Array) -> None:
        path = SMLDChainSDE(sigmas=_numbers("sigmas", sigmas))
        super().__init__(path, path.num_train_timesteps)


def _numbers(name: str, values: Sequence[float] | Array) -> tuple[float, ...]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 1 or not array.size:
        raise InputError(f"{name} must be a list of at least three numbers")
    return tuple(array.tolist())


def _song(sde: SDE, count: int) -> Chain:
    """The embedding "song": beta_i = beta(t_i) / N; on VE, geometric sigmas.

    Song et al. 2021, arXiv:2011.13456, appendix B.
    """
    times = torch.arange(1, count + 1, dtype=torch.float64) / count
    node = sde(sde.t_max * times)
    if bool((node.alpha == 1).all()):
        return SMLDChain(beta_schedules.sigmas(sde(sde.t_min).sigma, sde(sde.t_max).sigma, count))
    _require_preserving(sde, node, "song")
    return _linear(sde, "song", node.g2.numpy() * sde.t_max / count)


def _ho(sde: SDE, count: int) -> Chain:
    """The embedding "ho": betas on a line from beta(0) / N to beta(t_max) / N, both ends included.

    For the VP path with beta from 0.1 to 20 and N = 1000 these are the betas of Ho et al. 2020, 1e-4 to 0.02.
    """
    ends = sde(sde.t_max * torch.tensor([0.0, 1.0], dtype=torch.float64))
    start, end = (-2 * ends.f * sde.t_max / count).tolist()
    _require_preserving(sde, sde(torch.tensor([sde.t_max], dtype=torch.float64)), "ho")
    return _linear(sde, "ho", beta_schedules.betas("linear", count, start, end))


def _linear(sde: SDE, embedding: str, betas: Array) -> Chain:
    if not betas.max() < 1 - 1e-9:  # at N = beta_max it is 1 up to rounding
        raise InputError(
            f"{len(betas)} nodes are too few for the embedding {embedding!r} of {sde}: beta_i would be "
            f"{betas.max():.3g}; use more than {len(betas) * betas.max():.4g} nodes, or 'exact' with any number"
        )
    return DDPMChain(betas)


def _require_preserving(sde: SDE, node: Node[Tensor], embedding: str) -> None:
    if not torch.allclose(node.alpha**2 + node.sigma**2, torch.ones_like(node.t)):
        raise InputError(f"the embedding {embedding!r} needs a variance-preserving path; for {sde} use 'exact'")


EMBEDDINGS.update(song=_song, ho=_ho)
