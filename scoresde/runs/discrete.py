"""What a config of discrete states becomes: the process, its network and denoiser, and the bound of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict
from torch import Tensor, nn

from solvers import InputError
from solvers.errors import positive_integer
from solvers.registry.spec import Spec
from solvers.types.process import Process

from ..bounds.discrete import discrete_bound
from ..data.dataset import DataCard
from ..data.storage import TokenOptions
from ..likelihood.result import LogProb
from ..models.discrete.denoiser import DiscreteDenoiser
from ..models.networks import networks
from ..paths.discrete.base import processes

_OF_TOKENS = ("length", "levels", "states")  # fields of ``data`` that only tokens have
_OF_NUMBERS = ("learned_variance", "self_conditioning", "sigma_data", "num_train_timesteps", "round_labels")
_EXACT = ("solver", "nfe", "tolerance", "divergence", "bound")  # fields of ``likelihood`` that discrete states lack
_DRAWS = 64  # evaluations of a bound, by default


def token_options(config: ConfigDict) -> TokenOptions | None:
    """How a config's data become tokens; None if it names no process.

    Raises:
        InputError: it names none, and has settings of tokens.
    """
    data = config.data
    if config.process is not None:
        return TokenOptions(data.length, data.period, data.levels, data.states)
    for name in _OF_TOKENS:
        if data[name] is not None:
            raise InputError(f"data.{name}={data[name]} is for tokens: set config.process, such as absorbing")
    return None


def process_of(config: ConfigDict, card: DataCard) -> Process:
    """The process that a config names, with the number of states of the data if it leaves that out.

    Raises:
        InputError: the name or an option is unknown; it has another number of states than the data.
    """
    spec = processes.read(config.process)
    if "states" in processes.info(spec.name).options and not spec.args and "states" not in dict(spec.kwargs):
        spec = Spec(spec.name, (), (("states", card.states), *spec.kwargs))
    process = processes.make(spec)
    if process.states != card.states:
        raise InputError(
            f"config.process={process} has {process.states} states, but the tokens of the data have {card.states} "
            "values: leave the states out of the process, or set data.states or data.levels"
        )
    return process


def network_of(config: ConfigDict, card: DataCard, process: Process) -> nn.Module:
    """The network of a config of discrete states, with weights drawn from torch's global generator.

    Raises:
        InputError: the config has settings that such a network does not have; see also ``Network.build_tokens``.
    """
    model = config.model
    for name in _OF_NUMBERS:
        if model[name]:
            raise InputError(f"config.process names discrete states, which have no model.{name}, got {model[name]!r}")
    if model.condition_noise != "none":
        raise InputError("config.process names discrete states, which have no model.condition_noise: leave it at none")
    if config.data.augmentation != "none":
        raise InputError("data.augmentation changes numbers, and config.process names tokens: leave it at none")
    recipe = networks.make(model.network)
    return recipe.build_tokens(card.shape, process.values, card.conditions, model.time)


def denoiser_of(config: ConfigDict, card: DataCard, process: Process, network: nn.Module) -> DiscreteDenoiser:
    """The denoiser of a network."""
    return DiscreteDenoiser(network, process, config.model.predicts, config.model.time, card.shape, card.conditions)


def bound_options(config: ConfigDict) -> dict[str, Any]:
    """The section ``likelihood`` of a config as arguments of ``discrete_bound``.

    Raises:
        InputError: it asks for an exact likelihood, or numbers are not positive.
    """
    section = config.likelihood
    for name in _EXACT:
        if section[name] is not None:
            raise InputError(
                f"likelihood.{name}={section[name]}: discrete states have no exact likelihood, only a bound, whose "
                "settings are steps, grid, draws and bound_indices"
            )
    options: dict[str, Any] = {
        "steps": section.steps,
        "draws": positive_integer("likelihood.bound_indices", section.bound_indices or _DRAWS),
        "importance": positive_integer("likelihood.draws", section.draws),
    }
    return options if section.grid is None else {**options, "grid": section.grid}


def bound_of(
    denoiser: DiscreteDenoiser,
    x: Tensor,
    seeds: Sequence[int],
    conditions: Mapping[str, Tensor],
    options: Mapping[str, Any],
    card: DataCard,
    progress: bool = False,
) -> LogProb:
    """The bound of tokens (B, *), in bits per character of a text and per dimension of everything else."""
    found = discrete_bound(
        denoiser, x, seeds=seeds, condition=conditions or None, progress=progress, on_failure="keep", **options
    )
    return replace(found, unit="character" if card.symbols else "dim")
