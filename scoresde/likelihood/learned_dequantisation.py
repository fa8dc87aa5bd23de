"""Variational dequantisation: a learned law q(u | levels) of the noise within the bins, which tightens the bound.

The bound is log P(k) >= E_q[log p(x_k + u) - log q(u | x_k)], with equality if q equals the law of p within the bin. q
is a flow of affine couplings (Ho et al. 2019, arXiv:1902.00275, section 3.1) conditioned on the levels:

    z = logit(v),  v uniform;    z <- exp(a) z + b, layer by layer;    u = bin_width (sigmoid(z) - 1/2).

In the first layer, a and b depend only on the levels. In each later layer they also depend on one half of z and move
the other half; the halves alternate. An untrained flow is the identity, so q is uniform.

``save_dequantiser(trained, "dequantiser.safetensors")`` writes a trained flow to one file. The spec
``variational(path="dequantiser.safetensors")`` names this file in ``log_prob(dequantiser=...)``, and in a config under
``config.likelihood.dequantiser``.

>>> import scoresde
>>> target = scoresde.targets.GaussianMixture(torch.tensor([[0.06]]), 0.002)
>>> levels, denoiser = torch.zeros(16, 1).double(), target.denoiser(scoresde.VP())
>>> trained = fit_dequantiser(denoiser, levels, 0.25, iterations=40, batch=16, rate=0.05)
>>> options = {"steps": 40, "bin_width": 0.25, "divergence": "exact"}
>>> learned, plain = (
...     float(scoresde.log_prob(denoiser, levels, dequantiser=law, **options).nats.mean())
...     for law in (trained, "uniform")
... )
>>> learned > plain + 0.3
True
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as write_tensors
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import solvers
from solvers import Grid, InputError, Node, Solver, errors
from solvers.errors import positive_integer
from solvers.files import parse_json, write_atomically
from solvers.noise.seeded import global_seed

from ..io.array_files import read_tensors
from ..io.inputs import Array
from ..models.evaluation import gradients
from ..paths.base import ModelLike
from ..sampling.batches import batch_of
from .dequantisation import Dequantiser, dequantisers
from .divergence import Divergence
from .log_prob import log_prob

FORMAT = "scoresde dequantiser 1"  # the format in the metadata of the file
_FIT = 8  # label of the generator's stream
_STEEPEST = 4.0  # bound on a layer's |a|
_OCTAVES = 3  # the networks also receive sines and cosines of the levels, so that they can separate neighbours


class VariationalDequantiser(nn.Module, Dequantiser):
    """A conditional flow within the bins, for ``log_prob(dequantiser=...)``.

    Args:
        shape: the shape of one sample.
        layers: the number of couplings after the first, elementwise layer; 0 suffices if the noise is independent
            between dimensions.
        width: the width of each layer's network.

    Raises:
        InputError: ``layers`` is not an integer of at least 0, or there are couplings but only one number per sample.
    """

    def __init__(self, shape: Sequence[int], layers: int = 2, width: int = 64) -> None:
        super().__init__()
        self.shape, d = tuple(shape), math.prod(shape)
        self.layers, self.width = layers, width
        if layers and d < 2:
            raise InputError(f"couplings need at least two numbers per sample, {self.shape} has {d}: pass layers=0")
        self.networks = nn.ModuleList()
        for _ in range(1 + (positive_integer("layers", layers) if layers else 0)):
            last = nn.Linear(positive_integer("width", width), 2 * d)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            hidden = nn.Linear(width, width)
            self.networks.append(
                nn.Sequential(nn.Linear((2 + 2 * _OCTAVES) * d, width), nn.SiLU(), hidden, nn.SiLU(), last)
            )

    def spread(self, x: Tensor, u: Tensor, bin_width: float, node: Node) -> tuple[Tensor, Tensor]:
        """Computes noise and its log-density, see ``Dequantiser``; both can be differentiated by the parameters.

        Raises:
            InputError: the samples have a different shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the dequantiser was made for samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        weight = next(self.parameters())
        # the flow is in float64 if the device has it; only its networks are in the dtype of the weights
        wide = torch.float32 if weight.device.type == "mps" else torch.float64
        levels, v = x.flatten(1).to(weight.device, wide), u.flatten(1).clamp(1e-12, 1 - 1e-12)
        angles = [math.pi * 2**k * levels for k in range(_OCTAVES)]
        seen = [levels, *map(torch.sin, angles), *map(torch.cos, angles)]
        z = torch.logit(v).to(weight.device, wide)
        law = logsigmoid(z) + logsigmoid(-z)  # the log-density of the logistic law
        for i, network in enumerate(self.networks):
            # the first layer moves all of z; a later one moves the odd or the even half, given the other half
            moved = torch.ones_like(z) if i == 0 else (torch.arange(z.shape[1], device=z.device) + i) % 2
            known = torch.cat([*seen, (1 - moved) * torch.tanh(z / 4)], 1)
            a, b = network(known.to(weight)).to(wide).chunk(2, 1)
            a = moved * _STEEPEST * torch.tanh(a / _STEEPEST)
            z = torch.exp(a) * z + moved * b
            law = law - a
        law = law - logsigmoid(z) - logsigmoid(-z) - math.log(bin_width)
        noise = bin_width * (torch.sigmoid(z) - 0.5)
        return noise.view(x.shape), law.sum(1)

    def __str__(self) -> str:
        return f"variational ({len(self.networks) - 1} couplings)"

    __hash__ = nn.Module.__hash__


@dequantisers.register("variational", reference="Ho et al. 2019, arXiv:1902.00275, section 3.1")
@dataclass(frozen=True)
class Saved(Dequantiser):
    """A trained ``VariationalDequantiser``, loaded from a file that ``save_dequantiser`` wrote.

    Raises:
        InputError: see ``load_dequantiser``.
    """

    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise InputError(
                "variational needs the file of a trained dequantiser, "
                'variational(path="dequantiser.safetensors"): see fit_dequantiser and save_dequantiser'
            )
        _ = self.network  # reads the file: its faults are reported here

    @cached_property
    def network(self) -> VariationalDequantiser:
        """What the file holds."""
        return load_dequantiser(self.path)

    def spread(self, x: Tensor, u: Tensor, bin_width: float, node: Node) -> tuple[Tensor, Tensor]:
        """Computes noise and its log-density, see ``VariationalDequantiser.spread``."""
        return self.network.to(x.device).spread(x, u, bin_width, node)


def save_dequantiser(dequantiser: VariationalDequantiser, path: str | Path) -> None:
    """Writes the weights, shape, layers and width of a dequantiser to a .safetensors file.

    Raises:
        InputError: the dequantiser is of a different kind, or the file cannot be written.
    """
    if not isinstance(dequantiser, VariationalDequantiser):
        raise InputError(f"only a VariationalDequantiser can be saved, got {dequantiser}")
    made = {"shape": list(dequantiser.shape), "layers": dequantiser.layers, "width": dequantiser.width}
    tensors = {name: value.detach().cpu().contiguous() for name, value in dequantiser.state_dict().items()}
    try:
        write_atomically(path, write_tensors(tensors, {"format": FORMAT, "made": json.dumps(made)}))
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from None


def load_dequantiser(path: str | Path) -> VariationalDequantiser:
    """Loads a dequantiser that ``save_dequantiser`` wrote, on the CPU, in the dtype of its weights; runs no code.

    Raises:
        InputError: the file does not exist, is damaged, or contains something else.
    """
    tensors, facts = read_tensors(path, "dequantiser")
    if facts.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is not a file that save_dequantiser wrote")
    try:
        return _restored(parse_json(facts["made"]), tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"the dequantiser {str(path)!r} is damaged: {str(error).partition(chr(10))[0]}") from None


def _restored(made: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VariationalDequantiser:
    """The dequantiser with these weights; no more memory is allocated than they fill.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the weights do not fit the shape, the layers or the width.
    """
    layers, dtypes = made["layers"], {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise InputError("its weights are not of one dtype of real numbers")
    if type(layers) is not int or len(tensors) != 6 * (1 + layers):  # three maps with weights and offsets each
        raise InputError(f"it has {len(tensors)} tensors for {errors.shown(layers)} layers")
    shape = [positive_integer("every length in shape", length) for length in made["shape"]]
    with torch.device("meta"):
        restored = VariationalDequantiser(shape, layers, positive_integer("width", made["width"]))
    restored.load_state_dict(tensors, assign=True)
    return restored


def fit_dequantiser(
    denoiser: ModelLike,
    levels: Array,
    bin_width: float,
    dequantiser: VariationalDequantiser | None = None,
    *,
    iterations: int = 300,
    batch: int = 64,
    rate: float = 1e-2,
    solver: str | Solver = "dpmpp_2m",
    grid: str | Grid | None = None,
    steps: int = 20,
    divergence: str | Divergence = "hutchinson(probes=1)",
    condition: Mapping[str, Array] | None = None,
    seed: int = 0,
    **options: Any,
) -> VariationalDequantiser:
    """Trains the law of the noise around levels (N, *) by maximising the bound; the model stays fixed.

    Each iteration takes an Adam step up the gradient of the mean of log p(x + u) - log q(u | x) over ``batch`` levels;
    the rate falls to 0 along a half cosine. ``log_prob`` with the result is a valid bound even if training fails.

    Args:
        levels: the levels of the training data.
        dequantiser: a dequantiser to train further; by default a new one, with couplings if a sample has several
            numbers.
        solver, grid, steps, divergence: arguments of ``log_prob`` during the training.
        condition: the conditions of the denoiser, (N, *).
        seed: the seed of the order, the noise, the probes and the initial weights of a new dequantiser.
        options: further arguments of ``log_prob``: prior, t_min, t_max.

    Raises:
        InputError: see ``log_prob``; also if iterations, batch or rate is not positive.
    """
    levels, conditions = batch_of("levels", levels, condition)
    positive_integer("iterations", iterations)
    positive_integer("batch", batch)
    if not 0 < rate < math.inf:
        raise InputError(f"rate must be positive, got {rate!r}")
    with gradients(True):
        noise = _new(tuple(levels.shape[1:]), seed).to(levels.device) if dequantiser is None else dequantiser
    fixed = {"divergence": divergence, "bin_width": bin_width, "dequantiser": noise, "differentiable": True, **options}
    draws = solvers.generator(seed, _FIT)

    def mean() -> Tensor:
        rows = torch.randint(len(levels), (batch,), generator=draws)
        seeds = torch.randint(2**62, (batch,), generator=draws).tolist()
        part = {name: value[rows.to(value.device)] for name, value in conditions.items()}
        x = levels[rows.to(levels.device)]
        return log_prob(denoiser, x, solver, grid, steps, seeds=seeds, condition=part, **fixed).nats.mean()

    with gradients(True):  # in every mode of the caller
        _ascend(mean, list(noise.parameters()), rate, iterations)
    return noise


def _new(shape: tuple[int, ...], seed: int) -> VariationalDequantiser:
    """An untrained dequantiser, with couplings if a sample has several numbers."""
    with global_seed(seed):
        return VariationalDequantiser(shape, 2 if math.prod(shape) > 1 else 0)


def _ascend(value: Callable[[], Tensor], parameters: list[nn.Parameter], rate: float, iterations: int) -> None:
    """Maximises ``value()`` over the parameters by Adam, at a rate that falls to 0 along a half cosine."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        gradients = torch.autograd.grad(-value(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        falling.step()
    optimizer.zero_grad()
