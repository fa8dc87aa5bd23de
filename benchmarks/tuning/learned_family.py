"""Networks for tuning one program for many: small perceptrons trained for a short time on the data of model_family.py.

They predict eps, the output of EDM's preconditioning, or the velocity of the straight path, are wide or narrow, and are
trained for hundreds or thousands of updates; all of this is drawn from a seed.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
import solvers
from benchmarks.tuning import model_family
from benchmarks.tuning.model_family import PATH, Draw
from scoresde import targets
from solvers import Prediction, Problem, SeededNoise
from solvers.tuning.family import Case

OUTPUTS = ("eps", "edm", "velocity")
BATCH, EXAMPLES = 256, 4096
_FREQUENCIES = 2.0 ** torch.arange(-2, 3)


class Perceptron(nn.Module):
    """Layers of one width on the scaled state (B, d) and waves of log sigma (B,)."""

    def __init__(self, d: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [d + 2 * len(_FREQUENCIES), *([width] * depth)]
        inner = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*inner, nn.Linear(width, d))

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        waves = log_sigma[:, None] * _FREQUENCIES.to(x.dtype)
        return self.layers(torch.cat([x, waves.sin(), waves.cos()], 1))  # type: ignore[no-any-return]


class Learned(Problem):
    """The model of a trained network on ``PATH``.

    Attributes:
        output: what the network predicts, of ``OUTPUTS``.
    """

    def __init__(self, network: Perceptron, kind: str) -> None:
        self.network, self.kind = network, kind

    @property
    def path(self) -> scoresde.EDM:
        return PATH

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The prediction of x0 (B, d) from x (B, d) at noise levels (B,)."""
        r = sigma[:, None]
        scale = (1 + r**2).sqrt()
        out: Tensor = self.network(x / scale, sigma.log())
        if self.kind == "eps":
            return x - r * out
        if self.kind == "edm":  # Karras et al. 2022, arXiv:2206.00364, Table 1, with data of deviation 1
            return x / scale**2 + r / scale * out
        return (x - r * out) / (1 + r)  # on x_t = (1 - t) x0 + t eps, with t = r / (1 + r) and out = eps - x0

    def predict(self, x: Tensor, node: Any) -> Prediction:
        r = torch.as_tensor(node.sigma, dtype=x.dtype).reshape(-1)[:1]
        x0 = self.denoised(x, r.expand(len(x)))
        return Prediction(x0, (x - x0) / r)


def _levels(kind: str, draw: Draw) -> Tensor:
    """Noise levels (BATCH,) at which a network is trained: EDM's, those of DDPM, or those of uniform times."""
    at = torch.rand(BATCH, generator=draw.generator)
    if kind == "edm":
        return (1.2 * torch.randn(BATCH, generator=draw.generator) - 0.5).exp()
    if kind == "eps":
        return (math.log(PATH.t_min) + at * math.log(PATH.t_max / PATH.t_min)).exp()
    t = 0.001 + 0.985 * at
    return t / (1 - t)


def learned(seed: int) -> Learned:
    """The network of a seed, trained on the data of the same seed, in float64 and without gradients of its weights."""
    target, draw = model_family.member(seed).target, Draw(seed + 700_000)
    kind = draw.choice(OUTPUTS)
    if isinstance(target, targets.Empirical):
        data = target.data.flatten(1).float()
    else:
        data = target.sample(EXAMPLES, solvers.generator(seed)).flatten(1).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Perceptron(data.shape[1], draw.choice((64, 128, 256)), draw.choice((2, 3)))
    model, updates = Learned(network, kind), draw.choice((300, 1000, 3000))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    falls = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, updates)
    for _ in range(updates):
        x0 = data[torch.randint(len(data), (BATCH,), generator=draw.generator)]
        sigma = _levels(kind, draw)
        r = sigma[:, None]
        x = x0 + r * torch.randn(x0.shape, generator=draw.generator)
        # the loss in the units of the network's output
        weight = {"eps": 1 / r, "edm": (1 + r**2).sqrt() / r, "velocity": (1 + r) / r}[kind]
        loss = (weight * (model.denoised(x, sigma) - x0)).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        falls.step()
    network.double().requires_grad_(False)
    return model


def solved(model: Learned, seed: int, samples: int, steps: int = 64) -> Case:
    """A network with the exact solutions of its ODE from some starts."""
    dimension = model_family.member(seed).dimension
    starts = SeededNoise(range(1000 * seed, 1000 * seed + samples), (dimension,), torch.float64).initial()
    x = math.hypot(PATH(PATH.t_max).alpha, PATH(PATH.t_max).sigma) * starts
    return Case(model, solvers.trajectory(model, x, PATH, "logsnr(end=zero)", steps))


def kept(seed: int, samples: int, folder: Path) -> tuple[Learned, Tensor]:
    """The network of a seed and the ends of its exact solutions; both are kept in a folder."""
    path = folder / f"network_{seed}_{samples}.pt"
    if not path.exists():
        model = learned(seed)
        states = solved(model, seed, samples).truth.states[[0, -2, -1]]
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"kind": model.kind, "weights": model.network.state_dict(), "states": states}, path)
    found = torch.load(path, weights_only=True)
    weights = found["weights"]
    shapes = [value.shape for name, value in weights.items() if name.endswith("weight")]
    network = Perceptron(shapes[-1][0], shapes[0][0], len(shapes) - 1).double().requires_grad_(False)
    network.load_state_dict(weights)
    return Learned(network, found["kind"]), found["states"]
