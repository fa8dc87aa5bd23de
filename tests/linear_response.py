"""The numbers of linear solvers in tests, read off their programs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import solvers
from solvers import Node, Schedule, Solver
from solvers.conformance.problems import VP
from solvers.program.instructions import Evaluate


def coefficients(
    solver: Solver, nodes: Sequence[Node], schedule: Schedule = VP
) -> tuple[Tensor, list[tuple[Node, Tensor]]]:
    """The final state's coefficients (1 + P + Q,) over (x_T, eps_1..eps_P, z_1..z_Q), and for every evaluation in
    turn its node and the coefficients (1 + P + Q,) of the state that the model was shown."""
    program = solvers.trace(solver, nodes, schedule, "eps")
    asked, states = (torch.from_numpy(rows) for rows in solvers.response(program)[1:])
    places = [program.nodes[i.node] for i in program.instructions if isinstance(i, Evaluate)]
    return states[-1], list(zip(places, asked, strict=True))


def distance(one: Solver, other: Solver, nodes: Sequence[Node], schedule: Schedule = VP) -> float:
    """``solvers.difference`` of the two programs."""
    return solvers.difference(*(solvers.trace(solver, nodes, schedule) for solver in (one, other)))
