"""A solver as a function with the signature of k-diffusion's samplers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Node, Output, Prediction, Problem, Program, Solver, grids
from solvers.program.instructions import Evaluate
from solvers.program.program import evaluator
from solvers.types.answers import call, drawn, fault

from ..io.progress import bar as progress_bar
from ..paths.standard import EDM
from ..sampling.failures import Seen
from ..sampling.width import Entry, warn_of_width

NoiseSampler = Callable[[Tensor, Tensor], Tensor]

# a path wider than any list of sigmas: solvers need nodes between the sigmas, and churn needs nodes above them
PATH = EDM(t_min=1e-12, t_max=1e12)
# k-diffusion's functions for the grids that a warning may name, and the least sigma of their lists, if the caller's
# list has none that is less: most networks know it
FUNCTIONS = {"karras": "get_sigmas_karras", "logsnr": "get_sigmas_exponential"}
LOW = 0.03


def linear_solver(solver: str | Solver) -> tuple[Solver, str | None]:
    """The solver that a spec or a label names, and the grid that a label names, or None.

    Raises:
        InputError: no such solver, or one that has no program.
    """
    named = None
    if isinstance(solver, str):
        solver, named = solvers.resolve(solver)
    method = solvers.make(solver)
    if not method.linear:
        raise InputError(f"{method} cannot be driven step by step: {method.nonlinear}")
    return method, named


def steps_of_evaluations(program: Program) -> list[int]:
    """The step to which each evaluation belongs."""
    ends = [state.register for state in program.states]
    made = [k for k, instruction in enumerate(program.instructions, 1) if isinstance(instruction, Evaluate)]
    return [bisect_left(ends, register) for register in made]


def working(x: Tensor) -> Tensor:
    """x (B, *) in the dtype of the computation: float32 for 16-bit numbers, otherwise unchanged."""
    return x.to(torch.float32) if x.dtype.itemsize < 4 else x


def sample_function(solver: str | Solver) -> Callable[..., Tensor]:
    """The solver as ``sample_fn(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None)``.

    The path is k-diffusion's: x = x0 + sigma eps. ``model(x, sigma, **extra_args)`` returns the denoised x0 (B, *) of x
    (B, *) at sigma (B,). ``sigmas`` (N + 1,) descend from the level of x to the last, which may be 0. After the first
    evaluation of step i, ``callback`` gets a dictionary of x, i, sigma, sigma_hat (the level of the evaluation) and
    denoised. ``noise_sampler(sigma, sigma_next)`` returns the standard normal numbers (B, *) of an interval, by default
    ``torch.randn_like(x)``. A bar shows the steps unless ``disable``. States of 16 bits are carried in float32; the
    result has the dtype of x.

    >>> import torch
    >>> sample = sample_function("DPM++ 2M")
    >>> x = 10 * torch.ones(2, 3)
    >>> sample(lambda x, sigma: 0 * x + 1, x, torch.tensor([10.0, 5.0, 1.0, 0.0]), disable=True).unique().item()
    1.0

    Raises:
        InputError: no such solver, or one that has no program. The returned function raises it for sigmas that are not
            a strictly descending list of at least two, for an x that is not floating point, and for a model that
            returns a different shape.
    """
    method, _ = linear_solver(solver)

    @torch.no_grad()
    def sample_fn(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        nodes = _nodes(sigmas)
        program = solvers.trace(method, nodes, PATH)
        warn_of_width(method, tuple(nodes), PATH, program.output, _entry(nodes))
        work = working(x)
        with progress_bar(total=len(nodes) - 1, disable=disable) as bar:
            evaluate = evaluator(program.output, _Reporting(model, x.dtype, extra_args or {}, callback, program, bar))
            # not program.run, which sums in place: models and callbacks may keep the tensors that they get
            seen = Seen()
            for request in program.steps(work, _Noise(work, noise_sampler)):
                found = evaluate(request.x, request.node)
                seen(found, request.node)
                request.answer(found)
            outcome: Tensor = request.outcome
            return seen.report(outcome.to(x.dtype), str(method))

    sample_fn.__name__ = f"sample_{solvers.solvers.info_of(method).name}"
    sample_fn.__doc__ = f"k-diffusion's sampler signature around {method}; see ``scoresde.interop.sample_function``."
    return sample_fn


def numbers(given: Any) -> list[float] | None:
    """The numbers of a list or a tensor (N,) of any dtype; None for anything else."""
    try:
        return [float(value) for value in (given.tolist() if isinstance(given, Tensor) else given)]
    except (TypeError, ValueError):
        return None


def _nodes(sigmas: Tensor | Sequence[float]) -> list[Node]:
    levels = numbers(sigmas)
    if levels is None or len(levels) < 2:
        raise InputError("sigmas must be a list of at least two noise levels")
    for i, (sigma, following) in enumerate(pairwise(levels)):
        if not sigma > following >= 0:
            raise InputError(
                f"sigmas must strictly descend to at least 0, got {sigma:g} and {following:g} at {i} and {i + 1}"
            )
    return [Node(sigma, 1.0, sigma, 0.0, 1.0) for sigma in levels]


def _entry(nodes: Sequence[Node]) -> Entry:
    """``sample_function`` in a warning: other lists of sigmas are those of k-diffusion's functions."""
    clean, high = nodes[-1].clean, nodes[0].sigma
    low = min(nodes[-2].sigma, LOW) if clean else nodes[-1].sigma

    def place(rule: Grid, steps: int) -> Sequence[Node]:
        return rule.nodes(EDM(t_min=low, t_max=high), steps)

    def words(rule: Grid, steps: int | None) -> str:
        # they return so many levels from high to low, and 0
        count = (len(nodes) - 1 if steps is None else steps) + (not clean)
        name = FUNCTIONS[grids.info_of(rule).name]
        return f"sigmas={name}({count}, {low:.6g}, {high:.6g})" + ("" if clean else "[:-1]")

    return Entry("sample_function", "sample_function({!r})", words, place)


class _Noise:
    """A k-diffusion noise sampler, a function of two sigmas, as a noise source, a function of two nodes."""

    def __init__(self, x: Tensor, sampler: NoiseSampler | None) -> None:
        self.x, self.sampler = x, sampler

    def __call__(self, t: Node, s: Node) -> Tensor:
        if self.sampler is None or t.sigma == s.sigma:  # a fresh draw belongs to no interval
            return torch.randn_like(self.x)
        return drawn(self.sampler, self.x.new_tensor(t.sigma), self.x.new_tensor(s.sigma)).to(self.x)  # type: ignore[no-any-return]


class _Reporting(Problem):
    """k-diffusion's model as a problem; it reports every step to the callback and the bar."""

    path = PATH
    output = Output("x0")

    def __init__(
        self,
        model: Callable[..., Tensor],
        dtype: torch.dtype,
        extra_args: Mapping[str, Any],
        callback: Callable[[dict[str, Any]], None] | None,
        program: Program,
        bar: Any,
    ) -> None:
        self.model, self.dtype, self.extra_args, self.callback = model, dtype, extra_args, callback
        self.grid, self.bar = program.grid, bar
        steps = steps_of_evaluations(program)
        self.firsts = iter([i if i not in steps[:k] else None for k, i in enumerate(steps)])

    def predict(self, x: Tensor, node: Node) -> Prediction:
        return self.output.read(self.raw(x, node), x, node)

    def raw(self, x: Tensor, node: Node) -> Tensor:
        state = x.to(self.dtype)
        denoised = call("the model", self.model, state, state.new_full((len(x),), node.sigma), self.extra_args)
        if wrong := fault(denoised, x):
            raise InputError(f"the model returns {wrong} for samples {tuple(x.shape)}")
        i = next(self.firsts)
        if i is not None:
            self.bar.update()
            if self.callback is not None:
                sigma, sigma_hat = x.new_tensor(self.grid[i].sigma), x.new_tensor(node.sigma)
                # a copy, so that a callback may write into it
                self.callback(
                    {"x": state.clone(), "i": i, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": denoised}
                )
        found: Tensor = denoised.to(x.dtype)
        return found
