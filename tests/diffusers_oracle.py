"""diffusers' schedulers as an oracle: both sides on the scheduler's own grid, with one network and one set of draws.

A scheduler keeps its sigmas in float32 and computes its coefficients from them in float32 too, so its states hold about
six digits, less where its formulas cancel. Given the same sigmas as float64 (``exact``), those that do not cast the
state agree with us to rounding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers import Node, Prediction, Solver, make, solve

TOLERANCE = 1e-4  # of schedulers as they are, with float32 sigmas; measured: 3e-5 at worst, 1e-6 for most
EXACT = 2e-8  # of those with float64 sigmas; measured: 4e-9 at worst (SA-Solver of order 4), 1e-12 for most
STEPS = (10, 25)
Network = Callable[[Tensor, float], Tensor]


def _tanh(x: Tensor, tau: float) -> Tensor:
    return 0.9 * torch.tanh(0.8 * x + 0.4 * x.roll(1, -1) + math.cos(tau)) - 0.2 * x * math.sin(tau)


def _sine(x: Tensor, tau: float) -> Tensor:
    return torch.sin(0.7 * x + 0.5 * tau) + 0.3 * x.roll(1, -1) * math.cos(2 * tau)


def _rational(x: Tensor, tau: float) -> Tensor:
    return (x - 0.3 * tau) / (1 + 0.5 * x**2) + 0.2 * x.roll(2, -1)


NETWORKS = {"epsilon": _tanh, "v_prediction": _sine, "flow_prediction": _sine, "sample": _rational, "score": _rational}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def network(reading: str, rate: float = 0.003) -> Network:
    """A smooth nonlinear function of (x, t), in float64, one for each reading; rate t is a number of order one."""
    function = NETWORKS[reading]
    return lambda x, t: function(x.double(), rate * float(t))


# what an output says of x at a node: (x0, eps)
READINGS: dict[str, Callable[[Tensor, Tensor, Node], tuple[Tensor, Tensor]]] = {
    "epsilon": lambda out, x, n: ((x - n.sigma * out) / n.alpha, out),
    "sample": lambda out, x, n: (out, (x - n.alpha * out) / n.sigma),
    "v_prediction": lambda out, x, n: (n.alpha * x - n.sigma * out, n.sigma * x + n.alpha * out),
    "flow_prediction": lambda out, x, n: (x - n.sigma * out, x + n.alpha * out),
    "score": lambda out, x, n: ((x + n.sigma**2 * out) / n.alpha, -n.sigma * out),
}


class Path(NamedTuple):
    """Where a node lies for one of the scheduler's sigmas, and the scheduler's state there as ours."""

    node: Callable[[float, float], Node]
    state: Callable[[Tensor, Node], Tensor] = lambda x, n: x


def angle(t: float, sigma: float) -> Node:
    """The variance-preserving node of sigma / alpha = ``sigma``."""
    return Node(t, 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma))


VP = Path(angle)
SCALED = Path(angle, lambda x, n: n.alpha * x)  # a state that is divided by sqrt(1 + sigma^2) before the network
VE = Path(lambda t, sigma: Node(t, 1.0, sigma))
FLOW = Path(lambda t, sigma: Node(t, 1 - sigma, sigma, -1.0, 1.0))


class Model:
    """A problem: the scheduler's path and the network, read as the scheduler reads it.

    ``time`` is the network's time for a sigma between two nodes, ``data`` the data's deviation where the network is
    preconditioned as in EDM.
    """

    def __init__(
        self, path: Path, net: Network, reading: str, time: Callable[[float], float] | None = None, data: float = 0.0
    ) -> None:
        self.path, self.net, self.reading, self.time, self.data = path, net, reading, time, data

    def node(self, t: float) -> Node:
        raise NotImplementedError

    def node_of_lam(self, lam: float) -> Node:
        assert self.time is not None
        return self.path.node(self.time(math.exp(-lam)), math.exp(-lam))

    def predict(self, x: Tensor, node: Node) -> Prediction:
        if not self.data:
            return Prediction(*READINGS[self.reading](self.net(x, node.t), x, node))
        scale = math.hypot(node.sigma, self.data)
        sign = -1 if self.reading == "v_prediction" else 1
        x0 = (self.data / scale) ** 2 * x + (sign * node.sigma * self.data / scale) * self.net(x / scale, node.t)
        return Prediction(x0, (x - x0) / node.sigma)


class Chain(Model):
    """The same on the scheduler's alphas_cumprod, whose times are integers."""

    def __init__(self, scheduler: Any, net: Network, reading: str) -> None:
        super().__init__(VP, net, reading)
        self.squares = scheduler.alphas_cumprod

    def node(self, t: float) -> Node:
        square = float(self.squares[int(t)])
        return angle(t, math.sqrt((1 - square) / square))


class Draws:
    """The normal numbers that a scheduler draws: one a step, whether the step uses it or not."""

    def __init__(self, seed: int, shape: Sequence[int], dtype: torch.dtype, nodes: Sequence[Node]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.values = {n.ratio: torch.randn(*shape, generator=generator, dtype=dtype).double() for n in nodes}

    def __call__(self, t: Node, s: Node) -> Tensor:
        return self.values[t.ratio]


class InOrder:
    """Draws in the order in which they are asked for, where a step takes several."""

    def __init__(self, seed: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.generator, self.shape, self.dtype = torch.Generator().manual_seed(seed), shape, dtype

    def __call__(self, t: Node, s: Node) -> Tensor:
        return torch.randn(*self.shape, generator=self.generator, dtype=self.dtype).double()


def start(shape: Sequence[int] = (3, 6), seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(scheduler: Any, net: Network, x: Tensor, seed: int = 0, **options: Any) -> list[Tensor]:
    """The scheduler's states (B, *), one for every evaluation, from x (B, *)."""
    states = []
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net(scaled, float(t)), t, x, **options).prev_sample
        states.append(x.double())
    return states


def sigma_nodes(scheduler: Any, path: Path, tiny: float = 0.0) -> tuple[Node, ...]:
    """The nodes of a scheduler that keeps sigmas; two-stage schedulers list each sigma twice."""
    sigmas = [sigma for sigma, _ in groupby(scheduler.sigmas.double().tolist())]
    times = scheduler.timesteps.double().tolist()[:: scheduler.order]
    sigmas[-1] = sigmas[-1] or tiny
    return tuple(path.node(t, sigma) for t, sigma in zip([*times, 0.0], sigmas, strict=True))


def chain_nodes(scheduler: Any, times: Sequence[int], last: float, tiny: float = 0.0) -> tuple[Node, ...]:
    """The nodes of a scheduler that keeps alphas_cumprod, with its last value."""
    squares = [*(float(scheduler.alphas_cumprod[t]) for t in times), last]
    sigmas = [math.sqrt((1 - a) / a) for a in squares]
    sigmas[-1] = sigmas[-1] or tiny
    return tuple(angle(float(t), sigma) for t, sigma in zip([*times, -1], sigmas, strict=True))


def time_of_sigma(scheduler: Any) -> Callable[[float], float]:
    """The time at which the network is asked between two of the scheduler's nodes."""
    square = scheduler.alphas_cumprod
    logs = np.log(np.array(((1 - square) / square) ** 0.5))
    return lambda sigma: float(scheduler._sigma_to_t(np.array(sigma), logs))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value; infinite where theirs is not a number."""
    value = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return math.inf if math.isnan(value) else value


def parity(
    scheduler: Any,
    solver: Solver | str,
    steps: int,
    *,
    path: Path = VP,
    reading: str = "",
    net: Network | None = None,
    nodes: tuple[Node, ...] = (),
    problem: Model | None = None,
    draws: torch.dtype | Callable[[Node, Node], Tensor] = torch.float64,
    tiny: float = 0.0,
    data: float = 0.0,
    exact: bool = False,
    **options: Any,
) -> float:
    """The relative difference of the final states of a scheduler and of a solver.

    Args:
        scheduler: its timesteps are set here unless ``nodes`` are given.
        solver, steps: ours, and how many steps.
        path: where the scheduler's sigmas lie.
        reading: the network's prediction type, if not in the scheduler's configuration.
        net: the network, if not the reading's.
        nodes, problem: in place of those made from the scheduler's sigmas.
        draws: the type in which the scheduler draws, or the draws themselves.
        tiny: our last sigma where the scheduler's is 0 and its last step is not Euler's, as ours would be.
        data: the standard deviation of the data, for EDM's preconditioning.
        exact: give the scheduler its sigmas as float64.
        options: of the scheduler's step.
    """
    if not nodes:
        scheduler.set_timesteps(steps)
        if exact:
            scheduler.sigmas = scheduler.sigmas.double()
        nodes = sigma_nodes(scheduler, path, tiny)
    reading = reading or scheduler.config.prediction_type
    net = net or network(reading)
    if problem is None:
        time = time_of_sigma(scheduler) if path is SCALED else None
        problem = Model(path, net, reading, time, data)
    x = start() * (nodes[0].sigma if data else 1)
    theirs = run(scheduler, net, x / nodes[0].alpha if path is SCALED else x, **options)[-1]
    noise = Draws(0, x.shape, draws, nodes) if isinstance(draws, torch.dtype) else draws
    ours = solve(make(solver) if isinstance(solver, str) else solver, problem, x, nodes, noise).x
    return difference(ours, path.state(theirs, nodes[-1]))


def chain_parity(
    scheduler: Any, solver: Solver | str, steps: int, last: float, *, tiny: float = 0.0, **options: Any
) -> float:
    """``parity`` for a scheduler on alphas_cumprod; ``last`` is the value that its last step goes to."""
    scheduler.set_timesteps(steps)
    ascending = getattr(scheduler, "_timesteps", None)
    times = scheduler.timesteps.tolist() if ascending is None else [int(t) for t in ascending[::-1]]
    nodes = chain_nodes(scheduler, times, last, tiny)
    net = network(scheduler.config.prediction_type)
    problem = Chain(scheduler, net, scheduler.config.prediction_type)
    return parity(scheduler, solver, steps, nodes=nodes, problem=problem, net=net, **options)
