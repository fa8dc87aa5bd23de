"""A scheduler object for diffusers' pipelines, around any linear solver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import solvers
from solvers import InputError, Node, Prediction, Program, Solver
from solvers.program.instructions import Evaluate
from solvers.program.program import shares

from ..paths.base import SDE
from .diffusers_config import PREDICTIONS, Reading, config_of
from .foreign_loop import ForeignRun
from .k_diffusion import linear_solver, steps_of_evaluations, working

# options of other schedulers that pipelines pass to step, with the values that have no effect
NEUTRAL: dict[str, tuple[Any, ...]] = {"s_noise": (1.0,), "s_tmax": (math.inf,)}
OPTIONS = ("grid", "prediction_type", "time_label", "num_train_timesteps")


@dataclasses.dataclass
class SolverOutput(BaseOutput):
    """The result of ``step``.

    Attributes:
        prev_sample: the state (B, *) at the next evaluation of the model, or the result of the solve.
        pred_original_sample: the model's x0 (B, *) at this evaluation.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class DiffusersScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A linear solver of the registry as a scheduler of diffusers' pipelines.

    ``timesteps`` lists the label of every model evaluation, in order, so a two-stage method has about two for each step
    of the grid. ``step`` takes the model's output at one evaluation and returns the state for the next. The state is
    x_t = alpha x0 + sigma eps on every path. For a config with betas it is variance-preserving: ``init_noise_sigma`` is
    1 and ``scale_model_input`` changes nothing. For a flow's config alpha = 1 - t and sigma = t. ``sigmas`` contains
    sigma / alpha, or sigma on a flow. Networks inside EDM's preconditioning get their input scaled.

    States of 16 bits are carried in float32 and returned in the dtype of the input. Stochastic solvers draw with the
    generator that the pipeline passes, one draw for each draw of the program. A run begins at the first timestep (or
    that of ``set_begin_index``); its last step and ``set_timesteps`` discard its state. If a loop begins at a later
    timestep (image-to-image), the solver starts at that node of the grid.

    Args:
        solver: a spec, a label ("DPM++ 2M Karras"), or a solver.
        source: an SDE or its spec; or a diffusers scheduler, or its config.
        grid: by default the grid of the solver's label, else the spacing of the config, ``trailing`` if it names none,
            and ``karras`` for an SDE. A flow's config uses its own shifted levels. Where these begin at sigma = 1,
            where lam is not finite, the first level is moved to 0.999.
        prediction_type: the network's output: "epsilon", "sample", "v_prediction", "flow_prediction" or one of
            ``Denoiser``'s words; by default the config's, else "epsilon", or "flow_prediction" on a flow.
        time_label: the network's time label, one of ``scoresde.models.time_labels``. By default "Nt"
            (num_train_timesteps t) on a flow, "c_noise" inside EDM's preconditioning, and otherwise "index".
        num_train_timesteps: N of the labels; by default the config's, else 1000.

    >>> scheduler = DiffusersScheduler("heun", "vp", grid="trailing")
    >>> scheduler.set_timesteps(3)
    >>> scheduler.timesteps.tolist()
    [999, 666, 666, 332, 332]

    Raises:
        InputError: a solver that has no program, or a config that has no counterpart here.
    """

    def __init__(
        self,
        solver: str | Solver,
        source: Any,
        grid: str | None = None,
        *,
        prediction_type: str | None = None,
        time_label: str | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        self._solver, named = linear_solver(solver)
        config = config_of(source)
        options = (grid or named, prediction_type, time_label, num_train_timesteps)
        config.update({name: value for name, value in zip(OPTIONS, options, strict=True) if value is not None})
        self._reading = Reading.of(config, source if isinstance(source, SDE) else None)
        if config.get("grid") is not None:
            config["grid"] = str(solvers.grids.make(config["grid"]))
            if self._reading.shift is not None:
                config["use_flow_sigmas"] = True  # so that flow pipelines leave the levels to this class
        config["solver"] = str(self._solver)
        config["num_train_timesteps"] = self._reading.num_train_timesteps
        words = {ours: word for word, ours in PREDICTIONS.items()}
        config["prediction_type"] = words.get(self._reading.output.name, self._reading.output.name)
        self.register_to_config(**config)  # type: ignore[no-untyped-call]
        self.num_inference_steps: int | None = None
        self._generator: Any = None
        self._run: ForeignRun | None = None
        self._begin_index: int | None = None
        self._broken_off: int | None = None  # the place of the run that was copied, if this is a copy
        every = torch.arange(self._reading.num_train_timesteps - 1, -1, -1)
        self.timesteps, self.sigmas = every, torch.zeros(len(every) + 1)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from a config of this class, or from a config of diffusers with ``solver=...``.

        Keywords replace entries of the config.

        Raises:
            InputError: there is no solver, or the config has no counterpart here.
        """
        if not isinstance(config, Mapping):
            raise InputError("from_config needs a config; from_pretrained reads a folder")
        solver = kwargs.pop("solver", None) or config.get("solver")
        if solver is None:
            raise InputError('the config names no solver: from_config(config, solver="dpmpp_2m")')
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        made = cls(solver, {**config, **kwargs}, **options)
        return (made, {}) if return_unused_kwargs else made

    @property
    def order(self) -> int:
        """Model evaluations per step; pipelines that begin at a later timestep count with it."""
        return self._solver.evaluations

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the first state for data of unit variance: 1 on variance-preserving paths."""
        sde = self._reading.sde
        node = self._evaluated[0] if self.num_inference_steps else sde(sde.t_max)
        return math.hypot(node.alpha, node.sigma)

    @property
    def begin_index(self) -> int | None:
        """The index in ``timesteps`` at which the loop begins, if ``set_begin_index`` set it."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The current index in ``timesteps``; None outside a run."""
        return None if self._run is None else self._run.place

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the index in ``timesteps`` at which the loop will begin."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Makes the grid and traces the solver on it; a current run is discarded.

        Args:
            num_inference_steps: steps of the grid.
            device: the device of ``timesteps``.
            sigmas: levels instead of a grid, one per step, descending; a last 0 is optional. Those of a flow are
                shifted.
            timesteps: labels instead of a grid, one per step, descending.
            mu: the parameter of a flow with dynamic shifting.

        Raises:
            InputError: none of steps, sigmas and timesteps is given, or they lie outside the path.
        """
        self.num_inference_steps = None
        self._run = self._begin_index = self._broken_off = None
        config = self.config
        nodes = self._reading.nodes(config, config.get("grid"), num_inference_steps, sigmas, timesteps, mu)
        self._program = self._trace(nodes)
        self._evaluated = evaluated(self._program)
        self._steps = steps_of_evaluations(self._program)
        labels = torch.tensor([self._reading.label_of(node) for node in self._evaluated], dtype=torch.float64)
        whole = bool((labels == labels.round()).all())
        self._labels = labels.to(torch.int64 if whole else torch.float32)  # on the CPU, for look-ups
        self.timesteps = self._labels.to(device or "cpu", copy=True)
        levels = [self._reading.level(node) for node in (*self._evaluated, self._program.end)]
        self.sigmas = torch.tensor(levels, dtype=torch.float32)
        self.num_inference_steps = len(nodes) - 1

    def _trace(self, nodes: Sequence[Node]) -> Program:
        return solvers.trace(self._solver, nodes, self._reading.sde, self._reading.output)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The network's input (B, *): the state, which is scaled only inside EDM's preconditioning."""
        if self._reading.output.name != "edm":
            return sample
        if timestep is None:
            raise InputError("scale_model_input needs the timestep inside EDM's preconditioning")
        (node,) = self._nodes_of(torch.as_tensor(timestep).flatten()[:1])
        return sample / (node.alpha * math.hypot(node.ratio, self._reading.output.sigma_data))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> SolverOutput | tuple[Tensor]:
        """The state at the next evaluation of the model, or, after the last evaluation, the result of the solve.

        Args:
            model_output: the network's output at ``sample`` (B, *), of the same shape.
            timestep: the entry of ``timesteps``.
            sample: the state (B, *) at which the network was evaluated. If it is not the state that the last step
                returned, it replaces that state.
            generator: the generator of the noise, or a list with one for each sample.
            return_dict: whether to return an object with ``prev_sample``, or a tuple of it.
            ignored: options of other schedulers' steps, at values that have no effect.

        Raises:
            InputError: a call out of order or before ``set_timesteps``; a shape that differs from the output's or the
                run's; a timestep that is not in ``timesteps``; a copy that was made in the middle of a run; an option
                that would have an effect.
        """
        for name, value in ignored.items():
            neutral = (None, False, 0, *NEUTRAL.get(name, ()))
            if isinstance(value, Tensor) or value not in neutral:
                raise InputError(f"step({name}={value!r}) is not supported by {self._solver}: set options in its spec")
        if not isinstance(sample, Tensor) or not sample.is_floating_point():
            raise InputError(
                f"sample must be a floating-point tensor, got {getattr(sample, 'dtype', type(sample).__name__)}"
            )
        if not isinstance(model_output, Tensor) or model_output.shape != sample.shape:
            shown = tuple(model_output.shape) if isinstance(model_output, Tensor) else type(model_output).__name__
            raise InputError(
                f"model_output is {shown} for samples {tuple(sample.shape)}; if the network also returns a variance, "
                "remove it first"
            )
        self._generator = generator
        run = self._run = self._run_at(timestep, sample)
        node, state = run.request.node, run.state(sample)
        out: Tensor | Prediction = model_output.to(state.dtype)
        x0 = None
        if self.config.get("clip_sample"):
            x0 = run.program.output.read(out, state, node).x0.clamp(-self._clip_range, self._clip_range)
            out = Prediction(x0, (state - node.alpha * x0) / node.sigma)
        elif return_dict:
            x0 = run.program.output.read(out, state, node).x0
        following = run.answer(out, sample)
        if run.place == len(self._evaluated):
            self._run = None
        if not return_dict:
            return (following,)
        return SolverOutput(following, x0 if x0 is None else x0.to(sample.dtype))

    @property
    def _clip_range(self) -> float:
        return float(self.config.get("clip_sample_range", 1.0))

    def _run_at(self, timestep: float | Tensor, sample: Tensor) -> ForeignRun:
        """The current run if this timestep is its next, or else a new run that begins at this timestep."""
        if self.num_inference_steps is None:
            raise InputError("call set_timesteps before step")
        places = self._places(timestep)
        if self._run is not None and self._run.place in places:
            if sample.shape != self._run.shape:
                raise InputError(
                    f"sample is {tuple(sample.shape)} in a run of {tuple(self._run.shape)}; "
                    "set_timesteps starts a new run"
                )
            return self._run
        begin = 0 if self._begin_index is None else self._begin_index
        if self._run is not None and begin not in places:
            raise InputError(
                f"out of order: step expects {self._entry([self._run.place])} of timesteps, got "
                f"{self._entry(places) if places else f'{_value(timestep):g}'}; set_timesteps starts a new run"
            )
        if not places:
            raise InputError(f"the timestep {_value(timestep):g} is not in timesteps")
        if self._broken_off is not None and begin not in places:
            raise InputError(
                f"this scheduler was copied in the middle of a run, at {self._entry([self._broken_off])} of timesteps, "
                "and a copy cannot continue it; set_timesteps starts a new run"
            )
        self._broken_off = None
        place = next((i for i in places if self._begins(i)), places[0])
        return ForeignRun(self._program_from(place), sample, self._draw(sample), place)

    def _entry(self, places: list[int]) -> str:
        return f"entry {' or '.join(map(str, places))} ({self._labels[places[0]]:g})"

    def _begins(self, place: int) -> bool:
        """Whether a step of the grid begins with that evaluation."""
        return place == 0 or self._steps[place] > self._steps[place - 1]

    def _places(self, timestep: float | Tensor) -> list[int]:
        """The indices of an entry in ``timesteps``, found by its memory address (no device transfer) or its value."""
        if isinstance(timestep, Tensor):
            if timestep.numel() == 1 and shares(timestep, self.timesteps):
                return [int(timestep.storage_offset())]
            values = timestep.detach().cpu().flatten()
            if not len(values) or (values != values[0]).any():
                raise InputError(f"step takes one timestep for all samples, got {values.tolist()}")
            labels = self._labels.to(values.dtype) if values.is_floating_point() else self._labels
            return [int(i) for i in (labels == values[0]).nonzero()]
        return [int(i) for i in (self._labels.float() == torch.tensor(_value(timestep))).nonzero()]

    def _program_from(self, place: int) -> Program:
        """The program that begins at the evaluation ``place`` of the whole program.

        Raises:
            InputError: a solve that begins there needs other evaluations than the rest of the whole program.
        """
        program = self._program
        if place:
            if self._begins(place):
                program = self._trace(program.grid[self._steps[place] :])
            if not self._begins(place) or evaluated(program) != self._evaluated[place:]:
                raise InputError(
                    f"{self._solver} cannot begin at entry {place} of timesteps: from there it needs other evaluations "
                    "than are left; use a solver whose steps all have the same number of evaluations"
                )
        return program

    def _draw(self, sample: Tensor) -> Any:
        """The noise source of a run, which draws from the generator of the current call of ``step``."""
        shape, device, dtype = tuple(sample.shape), sample.device, working(sample[:0]).dtype

        def noise(t: Node, s: Node) -> Tensor:
            drawn: Tensor = randn_tensor(shape, generator=self._generator, device=device, dtype=dtype)
            return drawn

        return noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps (B, *) at the labels ``timesteps``, one or B of them."""
        nodes = self._nodes_of(torch.as_tensor(timesteps).flatten())
        x0, eps = working(original_samples), working(noise.to(original_samples.dtype))
        shape = (-1,) + (1,) * (x0.ndim - 1)
        alpha, sigma = (
            torch.tensor(values, dtype=x0.dtype, device=x0.device).view(shape)
            for values in ([node.alpha for node in nodes], [node.sigma for node in nodes])
        )
        return (alpha * x0 + sigma * eps).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def _nodes_of(self, timesteps: Tensor) -> list[Node]:
        """The node of each label: the node of an evaluation if it has this label, else the node of the path."""
        nodes = []
        for label in timesteps.detach().cpu():
            places = self._places(label) if self.num_inference_steps else []
            nodes.append(self._evaluated[places[0]] if places else self._reading.node_of_label(float(label)))
        return nodes

    def __len__(self) -> int:
        return self._reading.num_train_timesteps

    def __getstate__(self) -> dict[str, Any]:
        # a run contains a generator, which cannot be copied; a copy records that it must start a new run
        place = self._broken_off if self._run is None else self._run.place
        return {**self.__dict__, "_run": None, "_generator": None, "_broken_off": place}


def _value(timestep: Any) -> float:
    try:
        return float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
    except (TypeError, ValueError):
        raise InputError(f"timestep must be an entry of timesteps, got {timestep!r}") from None


def evaluated(program: Program) -> list[Node]:
    """The node of each evaluation, in order."""
    return [
        program.nodes[instruction.node] for instruction in program.instructions if isinstance(instruction, Evaluate)
    ]


# pipelines save the module of a scheduler's class: the one that users import
DiffusersScheduler.__module__ = "scoresde.interop"
