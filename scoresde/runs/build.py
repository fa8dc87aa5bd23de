"""Objects built from a config: data, denoiser, loss, decoder, training options, plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from solvers import InputError, Solver
from solvers.noise.seeded import global_seed

from ..bounds.decoders import Decoder, Discretised, Gaussian
from ..data.augmentations import Unchanged, augmentations
from ..data.conditions import Condition
from ..data.dataset import DataCard, Dataset
from ..data.images import size_of
from ..data.loading import load
from ..data.storage import ImageOptions
from ..guidance.base import NULL
from ..guidance.guide import with_label
from ..guidance.guided import Guided
from ..io import inputs
from ..models.classifier import Classifier, Pooled
from ..models.condition_noise import noise_of
from ..models.denoiser import Denoiser
from ..models.discrete.denoiser import DiscreteDenoiser
from ..models.learned_path import with_schedule
from ..models.model import as_model
from ..models.networks import Network, networks
from ..models.networks.conditioning import Augmented, SelfConditioned, own_estimate
from ..paths.base import ModelLike, make_sde
from ..paths.time_samplers import times
from ..posterior.tilted import tilt_default
from ..sampling.plan import Plan, PlanRequest, default_of
from ..training import bound_losses, discrete_losses  # noqa: F401  (register their losses)
from ..training.loop import Change
from ..training.losses import CrossEntropy, Loss, losses
from ..training.objective import Conditioning
from ..training.options import TrainingOptions
from ..training.weightings import weightings
from ..training.weights import state_of
from . import discrete


def load_data(config: ConfigDict, card: DataCard | None = None) -> Dataset:
    """The data set that a config names.

    Raises:
        InputError: it cannot be read, or its samples do not have the shape of the card.
    """
    given = config.data
    data = load(
        given.name, given.path, config.seed, bin_width=given.bin_width, card=card,
        labels=given.labels, classes=given.classes,
        images=ImageOptions(size_of(given.size), given.resize, given.crop, given.channels, given.skip_corrupt),
        tokens=discrete.token_options(config),
    )  # fmt: skip
    if card is not None and data.card.shape != card.shape:
        raise InputError(f"the data are of shape {data.card.shape}, the model was trained on {card.shape}")
    if card is not None and data.card.conditions != card.conditions:
        found, trained = ("; ".join(map(str, each.conditions)) or "none" for each in (data.card, card))
        raise InputError(f"the conditions of the data are {found}, the model was trained with {trained}")
    return data


def device_of(config: ConfigDict) -> torch.device:
    """The device that a config names.

    Raises:
        InputError: it is not a device, or this machine does not have it.
    """
    return inputs.device_of(config.device)


def build_model(config: ConfigDict, card: DataCard) -> tuple[Denoiser | DiscreteDenoiser | Classifier, nn.Module]:
    """The denoiser of a config, or its classifier, and the network inside it, with weights drawn from the seed.

    It is a ``DiscreteDenoiser`` if the config names a process.

    If the config has no ``sigma_data``, it is the standard deviation of the data, rounded to two digits.

    Raises:
        InputError: see ``Denoiser``; also for data that are constant, and for settings that a classifier does not have.
    """
    if config.process is None and config.model.sigma_data is None and not card.deviation:
        raise InputError(f"all numbers of the training data are equal, {card.mean:g} after scaling: nothing to learn")
    if not 0 <= config.seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {config.seed}")
    model, shape, device = config.model, card.shape, device_of(config)
    if config.process is not None:
        process = discrete.process_of(config, card)
        with global_seed(config.seed, device):
            network = discrete.network_of(config, card, process).to(device)
        return discrete.denoiser_of(config, card, process, network), network
    with global_seed(config.seed, device):
        network, sde = _bare_network(config, card), make_sde(config.sde)
    network = with_schedule(network, sde).to(device)
    sigma_data = float(f"{card.deviation:.2g}") if model.sigma_data is None else model.sigma_data
    if is_classifier(config):
        return Classifier(network, sde, _classes(card), sigma_data, shape, (card.low, card.high)), network
    denoiser = Denoiser(
        network,
        sde,
        model.predicts,
        model.time_label,
        sigma_data,
        model.num_train_timesteps,
        round_labels=model.round_labels,
        learned_variance=model.learned_variance,
        shape=shape,
        data_range=(card.low, card.high),
        conditions=card.conditions,
        condition_noise=noise_of(model.condition_noise),
    )
    return denoiser, network


def is_classifier(config: ConfigDict) -> bool:
    """Whether the model of a config is a classifier, which its loss decides."""
    return isinstance(losses.make(config.training.loss), CrossEntropy)


def _classes(card: DataCard) -> Condition:
    """The condition whose classes a classifier learns.

    Raises:
        InputError: the data have none, or more than one.
    """
    found = [condition for condition in card.conditions if condition.kind == "class"]
    if len(found) != 1:
        there = "; ".join(map(str, card.conditions)) or "none"
        raise InputError(f"a classifier needs data with one condition of classes; theirs: {there} (set data.labels)")
    return found[0]


def _classifier_network(config: ConfigDict, card: DataCard) -> nn.Module:
    """The network of a classifier: that of the config, with a channel for each class, and a mean over the places.

    Raises:
        InputError: the config has settings that only a denoiser has, or a network of the user's.
    """
    model, recipe = config.model, networks.make(config.model.network)
    for name in ("condition_dropout", "condition_dropout_each", "self_conditioning", "learned_variance"):
        if model[name]:
            raise InputError(f"training.loss is classifier, which has no model.{name}, got {model[name]!r}")
    if noise_of(model.condition_noise) is not None:
        raise InputError("training.loss is classifier, which has no model.condition_noise: leave it at none")
    if type(recipe).backbone is Network.backbone:
        names = ", ".join(networks.names())
        raise InputError(f"the network {model.network} cannot be a classifier: use one of {names}")
    recipe.check(card.shape)
    return Pooled(recipe.backbone(card.shape, _classes(card).classes, []))


def _bare_network(config: ConfigDict, card: DataCard) -> nn.Module:
    """The network of a config without the schedule of a learned path."""
    if is_classifier(config):
        return _classifier_network(config, card)
    recipe, given = networks.make(config.model.network), dict[str, Any]()
    own, done = own_estimate(card.shape), augmentations.make(config.data.augmentation).condition
    conditions = (*card.conditions, *([done] if done else []), *([own] if config.model.self_conditioning else []))
    if conditions:
        given["conditions"] = conditions
    if config.model.learned_variance:
        given["outputs"] = 2
    network = recipe.build(card.shape, **given)
    network = network if done is None else Augmented(network, done)
    return SelfConditioned(network, card.shape) if config.model.self_conditioning else network


_LAYERS = ("depth", "layers")  # options of networks that count layers


def refuse_other_shapes(config: ConfigDict, card: DataCard, state: Mapping[str, Tensor]) -> None:
    """Refuses weights that do not fit the network of a config, before memory is allocated for the network.

    Raises:
        RuntimeError: the network has more layers than there are weights, a tensor that is not among them, or one of a
            different shape.
    """
    recipe = networks.make(config.model.network)
    options: Any = recipe
    for name in (field.name for field in fields(options)):  # before a million layers are made, even without memory
        value = getattr(options, name)
        count = len(value) if isinstance(value, tuple) else value or 0 if name in _LAYERS else 0
        if count > len(state):
            raise RuntimeError(f"it has {name}={value!r:.60}, but the checkpoint has {len(state)} tensors")
    with torch.device("meta"), global_seed(0):  # where tensors have shapes only; a network of the user's may draw
        try:
            if config.process is None:
                made = with_schedule(_bare_network(config, card), make_sde(config.sde))
            else:
                made = discrete.network_of(config, card, discrete.process_of(config, card))
            shapes = state_of(made)
        except InputError:
            raise
        except Exception:  # a network of the user's that cannot be made like this
            return
    for name, tensor in shapes.items():
        there = tuple(state[name].shape) if name in state else "missing"
        if there != tuple(tensor.shape):
            raise RuntimeError(f"{name} is {there} in the checkpoint, and {tuple(tensor.shape)} in the network")


def build_loss(config: ConfigDict, card: DataCard) -> Loss:
    """The training loss of a config.

    The loss is made from its spec. ``training.weighting`` and ``training.times`` replace those of the spec where they
    are given. The data decide the decoder if the spec names none.

    Raises:
        InputError: a weighting or times are given for a loss that does not use them.
    """
    loss: Any = losses.make(config.training.loss)
    names = [field.name for field in fields(loss)]
    given = {name: config.training[name] for name in ("weighting", "times") if config.training[name] is not None}
    for name, value in given.items():
        if name not in names:
            raise InputError(
                f"the loss {losses.info_of(loss).name} does not use training.{name}, got {value!r}; "
                f"its options: {', '.join(names)}"
            )
    if "times" in given:
        given["times"] = times.make(given["times"])
    if "weighting" in given:
        given["weighting"] = weightings.make(given["weighting"])
    if "decoder" in names and loss.decoder is None:
        given["decoder"] = build_decoder(config, card)
    made: Loss = replace(loss, **given)
    return made


def build_decoder(config: ConfigDict, card: DataCard) -> Decoder:
    """The decoder of a bound: a bin's probability for discrete data that are not dequantised, otherwise a density."""
    if card.bin_width is None or config.data.dequantise:
        return Gaussian()
    return Discretised(card.bin_width, card.low, card.high)


def changes_of(config: ConfigDict, card: DataCard) -> list[Change]:
    """What training does to each batch: its augmentation, and then what happens to its conditions.

    Raises:
        InputError: an augmentation of what are no images; see also ``Conditioning``.
    """
    model, augmentation = config.model, augmentations.make(config.data.augmentation)
    changes: list[Change] = []
    if not isinstance(augmentation, Unchanged):
        augmentation.check(card.shape)
        changes.append(augmentation)
    dropout, each = model.condition_dropout, model.condition_dropout_each
    if dropout or each or model.self_conditioning:
        changes.append(Conditioning(card.conditions, dropout, model.self_conditioning, each))
    return changes


_ELSEWHERE = (
    "loss",
    "weighting",
    "times",
    "evaluate_likelihood",
)  # fields of the section that are no options of `train`


def build_options(config: ConfigDict, card: DataCard, workdir: Path | None) -> TrainingOptions:
    """The training options of a config."""
    training = {k: v for k, v in config.training.items() if k not in _ELSEWHERE}
    width = card.bin_width if config.data.dequantise else None
    return TrainingOptions(**training, seed=config.seed, bin_width=width, workdir=workdir)


def guided_by(denoiser: Any, section: ConfigDict, config: ConfigDict) -> tuple[ModelLike, str | Solver | None]:
    """The denoiser with the guidance of a config's section ``sampling``, if it names one, and the solver's name.

    Raises:
        InputError: the guidance needs predictions without conditions, which the network was not trained for; see also
            ``scoresde.guide``.
    """
    guided, solver = with_label(denoiser, section.get("guidance") or None, section.solver or None)
    if isinstance(guided, Guided) and NULL in guided.roles and not config.model.condition_dropout:
        raise InputError(
            f"{guided.guidance} needs predictions without conditions, but this run was trained with "
            "model.condition_dropout=0: train with 0.1"
        )
    return guided, solver


def guided_plan(denoiser: Any, section: ConfigDict, config: ConfigDict) -> tuple[ModelLike, Plan]:
    """The denoiser and the plan of a config's section ``sampling``, with its guidance.

    Raises:
        InputError: see ``guided_by`` and ``scoresde.plan``.
    """
    guided, solver = guided_by(denoiser, section, config)
    section = ConfigDict({**section, "solver": solver})
    default = tilt_default(as_model(guided, None), None, section.nfe, section.get("forwards"))
    return guided, plan_of(guided, section, default)


def plan_of(
    denoiser: ModelLike,
    section: ConfigDict,
    default: tuple[str, str | None] | None = None,
    end_at_t_min: bool = False,
) -> Plan:
    """The plan of a config's section ``sampling`` or ``likelihood``.

    Args:
        section: the section.
        default: the solver and the grid to use if the section names none; by default those of ``scoresde.plan``.
        end_at_t_min: end at t_min even if the grid would continue to sigma = 0.

    Raises:
        InputError: see ``scoresde.plan``.
    """
    forwards = section.get("forwards")  # a likelihood has no such budget
    request = PlanRequest(section.solver or None, section.grid or None, section.steps, section.nfe, forwards=forwards)
    asked = request.in_space(as_model(denoiser, None).space)
    return Plan.make(denoiser, asked.or_default(default or default_of(denoiser)), end_at_t_min)
