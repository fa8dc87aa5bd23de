"""Analysis of programs: the response to their inputs, the difference of two programs, the covariance of the outcome."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types.model_output import Output
from ..types.node import Prediction
from .instructions import Combine, Evaluate, reads
from .program import Program

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


class Response(NamedTuple):
    """A program's values as rows of coefficients over its inputs x, m_1 .. m_P, z_1 .. z_Q.

    The inputs are the start, the model's P outputs and the Q noise draws, in the order in which the program uses them.

    Attributes:
        registers: every register, the start first (1 + R, 1 + P + Q).
        evaluated: the states at which the model is evaluated (P, 1 + P + Q). Of the outputs, row k, counted from 0,
            depends on m_1 .. m_k only.
        states: the states at the ends of the steps (N, 1 + P + Q); the last one is the outcome.
    """

    registers: Matrix
    evaluated: Matrix
    states: Matrix


def response(program: Program, output: Output | None = None) -> Response:
    """The coefficients of a program's values over its inputs. The model's inputs are of the kind ``output``, which is
    the program's own output if None.

    >>> import scoresde, solvers
    >>> nodes = solvers.grid("uniform", scoresde.VE(0.1, 10), steps=1)
    >>> response(solvers.trace("euler", nodes, output="eps")).states.round(3).tolist()
    [[1.0, -9.9]]
    """
    size = 1 + program.nfe + program.draws
    values: list[Any] = [np.eye(1, size)[0]]
    models, draws = 0, program.nfe
    evaluated = []
    for instruction in program.instructions:
        value = np.zeros(size)
        if isinstance(instruction, Combine):
            for register, c in instruction.terms:
                value = value + c * values[register]
        elif isinstance(instruction, Evaluate):
            models += 1
            state, node = values[instruction.x], program.nodes[instruction.node]
            evaluated.append(state)
            value[models] = 1.0
            if output is not None and output != program.output:
                value = program.output.of(output.read(value, state, node), state, node)
        else:
            draws += 1
            value[draws] = 1.0
        values.append(value)
    states = [values[state.register] for state in program.states]
    return Response(np.array(values), np.array(evaluated).reshape(-1, size), np.array(states))


def difference(one: Program, other: Program) -> float:
    """The largest difference between two programs' numbers; infinite if their numbers of evaluations or draws differ.

    It compares the coefficients, with the model's output as eps, of the outcome and of every state at which the model
    is evaluated, relative to the largest of their row. It also compares the lam of every evaluation and noise draw.

    >>> import scoresde, solvers
    >>> nodes = solvers.grid("karras", scoresde.VP(), steps=8)
    >>> difference(solvers.trace("ddim", nodes), solvers.trace("dpm_solver_1", nodes, output="eps")) < 1e-12
    True
    """
    if (one.nfe, one.draws) != (other.nfe, other.draws):
        return math.inf
    gaps = [0.0]
    mine, its = (response(program, Output("eps")) for program in (one, other))
    for a, b in zip((*mine.evaluated, mine.states[-1]), (*its.evaluated, its.states[-1]), strict=True):
        gaps.append(float(np.abs(a - b).max() / np.abs(a).max()))
    for a_node, b_node in zip(_places(one), _places(other), strict=True):
        gaps.append(0.0 if a_node == b_node else abs(a_node - b_node))
    return max(gaps)


def _places(program: Program) -> list[float]:
    """lam at every evaluation, at the start and end of every draw, and at the last node."""
    nodes = program.nodes
    evaluated = [nodes[i.node].lam for i in program.instructions if isinstance(i, Evaluate)]
    drawn = [nodes[k].lam for i in program.instructions if not isinstance(i, (Combine, Evaluate)) for k in (i.t, i.s)]
    return [*evaluated, *drawn, program.end.lam]


def equal(one: Program, other: Program, tolerance: float = 1e-12) -> bool:
    """Whether two programs are the same method on this grid: ``difference`` is below the tolerance."""
    return difference(one, other) < tolerance


def terminal_covariance(program: Program, covariance: float | Tensor) -> Tensor:
    """The exact covariance of the outcome for data with law N(0, C) and a start with the law of x_t.

    On Gaussian data every prediction is linear in the state. In a basis in which C is diagonal, the outcome is
    therefore a weighted sum of independent normal numbers: the start and the draws. Its variance is the sum of the
    squared weights.

    Args:
        program: the solver on its grid.
        covariance: C (d, d), or a variance.

    Returns:
        The covariance (d, d), or a scalar for a variance; float64.

    >>> import scoresde, solvers
    >>> sde = scoresde.VP()
    >>> program = solvers.trace("ddpm", solvers.grid("logsnr", sde, steps=100))
    >>> end = program.end
    >>> round(float(terminal_covariance(program, 0.25)) / (0.25 * end.alpha**2 + end.sigma**2), 3)
    0.91

    Raises:
        InputError: C is not a symmetric positive semi-definite matrix or variance.
    """
    c = torch.as_tensor(covariance, dtype=torch.float64, device="cpu")
    if c.ndim not in (0, 2) or (c.ndim == 2 and (c.shape[0] != c.shape[1] or not torch.allclose(c, c.T))):
        raise InputError(f"a covariance is a variance or a symmetric matrix (d, d), got shape {tuple(c.shape)}")
    variances, basis = (c.view(1), torch.eye(1, dtype=torch.float64)) if c.ndim == 0 else torch.linalg.eigh(c)
    if not (torch.isfinite(variances).all() and variances.min() >= -1e-12 * variances.abs().max()):
        raise InputError(f"a covariance has no negative or infinite variances, got {variances.tolist()[:4]}")
    left = torch.as_tensor(_variances(program, variances.clamp_min(0).numpy()))
    return left[0] if c.ndim == 0 else (basis * left) @ basis.T


def widening(program: Program, deviation: float) -> float:
    """The deviation of the outcome over the right one, for data N(0, deviation^2) and a start with the law of x_t.

    In few steps it may be far too small, or many times too large, where a method extrapolates too far:

    >>> import scoresde, solvers
    >>> nodes = solvers.grid("karras", scoresde.EDM(), steps=2)
    >>> [round(widening(solvers.trace(name, nodes), 0.5), 1) for name in ("ddim", "heun")]
    [0.0, 80.0]
    """
    right = math.hypot(program.end.alpha * deviation, program.end.sigma)
    return math.sqrt(float(_variances(program, np.array([deviation**2]))[0])) / right


def _variances(program: Program, v: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Any:
    """The variances (K,) of the outcome for data of variances v (K,)."""
    size = 1 + program.draws
    nodes, draws = program.nodes, 0
    start = np.zeros((len(v), size))
    start[:, 0] = np.sqrt(program.start.alpha**2 * v + program.start.sigma**2)
    values: dict[int, Any] = {0: start}
    for k, (instruction, dying) in enumerate(zip(program.instructions, program.last_use, strict=True), 1):
        if isinstance(instruction, Combine):
            value = sum(c * values[register] for register, c in instruction.terms)
        elif isinstance(instruction, Evaluate):
            x, node = values[instruction.x], nodes[instruction.node]
            spread = (node.alpha**2 * v + node.sigma**2)[:, None]
            pair: Any = (node.alpha * v[:, None] / spread * x, node.sigma / spread * x)  # the posterior means
            value = program.output.of(Prediction(*pair), x, node)
        else:
            draws += 1
            value = np.zeros_like(start)
            value[:, draws] = 1.0
        values[k] = value
        for register in dying:
            del values[register]
    return (values[program.states[-1].register] ** 2).sum(1)


def depth(program: Program) -> int:
    """The sequential depth: how many evaluations wait for one another, if those that can be parallel are.

    It is at most ``program.nfe``. A run of this library makes all evaluations one after the other.

    >>> import scoresde, solvers
    >>> nodes = solvers.grid("karras", scoresde.EDM(), steps=5)
    >>> [depth(solvers.trace(name, nodes)) for name in ("ddim", "picard(sweeps=2)")]
    [5, 2]
    """
    found = [0]
    for instruction in program.instructions:
        found.append(max((found[r] for r in reads(instruction)), default=0) + isinstance(instruction, Evaluate))
    return found[program.states[-1].register]
