"""CUDA graphs of whole trajectories: the model and every sum of a program, launched at once.

A graph replays the same kernels on the same memory. Each call therefore first copies its inputs (the start, the draws,
the conditions) into fixed tensors. A graph saves time where kernels take longer to launch than to run: for small
networks and small batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

import torch
from torch import Tensor

from solvers import InputError, Node, Noise, Program, Solution
from solvers.program.instructions import Draw

from ..models.counting import Count, add, counted
from ..models.problem import Diffusion
from ..paths.base import ModelLike

RUNS = 3  # of a function that is recorded: two to warm up, and the recorded one


class Trajectory:
    """A CUDA graph of a program with its model, recorded for one shape of the state and the conditions.

    Args:
        x: a state (B, *) at the first node, on a CUDA device.
        conditions: the conditions of the network, each (B, *).
    """

    def __init__(self, program: Program, denoiser: ModelLike, x: Tensor, conditions: Mapping[str, Tensor]) -> None:
        self.program = program
        self.x, self.conditions = x.clone(), {name: value.clone() for name, value in conditions.items()}
        self.draws = [torch.zeros_like(x) for _ in range(program.draws)]
        problem = Diffusion(denoiser, self.conditions)
        with counted(passed_on=False) as cost:
            self.replay, self.outcome = record(lambda: program.run(problem, self.x, _tape(self.draws)))
        self.cost = Count(cost.forwards // RUNS, cost.vjps // RUNS, cost.calls // RUNS)

    def __call__(self, x: Tensor, noise: Noise, conditions: Mapping[str, Tensor]) -> Solution:
        """The solution from a new x (B, *) of the recorded shape, with new noise and conditions."""
        self.x.copy_(x)
        for name, value in conditions.items():
            self.conditions[name].copy_(value)
        draws = (i for i in self.program.instructions if isinstance(i, Draw))
        for buffer, draw in zip(self.draws, draws, strict=True):
            buffer.copy_(noise(self.program.nodes[draw.t], self.program.nodes[draw.s]))
        self.replay()
        add(self.cost)
        return self.program.solution(self.outcome.clone())


def _tape(draws: list[Tensor]) -> Noise:
    """A noise that returns the given draws one after the other, in the order of the program."""
    number = count()

    def noise(t: Node, s: Node) -> Tensor:
        return draws[next(number)]

    return noise


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Records what a function launches on the GPU as a graph; returns (the replay, the tensor with its result)."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up: kernels choose their algorithms and workspaces before the recording
        for _ in range(RUNS - 1):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = run()
    return graph.replay, outcome


def runner(
    program: Program | None, denoiser: ModelLike, name: str
) -> Callable[[Tensor, Noise, Mapping[str, Tensor]], Solution]:
    """A solve that records one ``Trajectory`` per batch size, at its first use, and replays it afterwards.

    Raises:
        InputError: there is no program; the message calls the solver ``name``.
    """
    if program is None:
        raise InputError(f"{name} has no program, so cuda_graph=True cannot record it")
    recorded: dict[int, Trajectory] = {}

    def run(x: Tensor, noise: Noise, conditions: Mapping[str, Tensor]) -> Solution:
        if len(x) not in recorded:
            recorded[len(x)] = Trajectory(program, denoiser, x, conditions)
        return recorded[len(x)](x, noise, conditions)

    return run
