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

from ..paths.base import SDE
from ..sampling.width import Entry, warn_of_width
from .diffusers_config import PREDICTIONS, Reading, config_of, limited, origin_of
from .foreign_loop import ForeignRun, amplification, scale_before
from .k_diffusion import linear_solver, working
from .timesteps import Timesteps, evaluated, value

# options of other schedulers that pipelines pass to step, with the values that have no effect
NEUTRAL: dict[str, tuple[Any, ...]] = {"s_noise": (1.0,), "s_tmax": (math.inf,)}
OPTIONS = ("grid", "prediction_type", "time_label", "num_train_timesteps")
# the largest coefficient of a program that begins at the noise of a flow: methods that are finite there have at most 4,
# others sigma / alpha = 1e6 of its node or a part of it
AMPLIFIED = 10.0


@dataclasses.dataclass
class SolverOutput(BaseOutput):  # type: ignore[misc]
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
            where lam is not finite, 1 - 1e-6 stands for it, or 0.999 for methods that are not accurate there.
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
        with origin_of(grid, source).limits():
            self._reading = Reading.of(config, source if isinstance(source, SDE) else None)
            if config.get("grid") is not None:
                config["grid"] = str(solvers.grids.make(config["grid"]))
                if self._reading.shift is not None:
                    config["use_flow_sigmas"] = True  # so that flow pipelines leave the levels to this class
        config["solver"] = str(self._solver)
        config["num_train_timesteps"] = self._reading.num_train_timesteps
        words = {ours: word for word, ours in PREDICTIONS.items()} | (
            {"edm": "v_prediction"} if self._reading.sign < 0 else {}
        )
        config["prediction_type"] = words.get(self._reading.output.name, self._reading.output.name)
        self.register_to_config(**config)
        self.num_inference_steps: int | None = None
        self._generator: Any = None
        self._run: ForeignRun | None = None
        self._begin_index: int | None = None
        self._broken_off: int | None = None  # the place of the run that was copied, if this is a copy
        self.timesteps, self.sigmas = self._reading.table()

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, trust: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler from a config of this class, or from a config of diffusers with ``solver=...``.

        Keywords replace entries of the config. ``trust`` allows the config to name classes of other modules, whose
        import runs code; keywords may name them anyway. ``from_pretrained`` takes it as well.

        Raises:
            InputError: there is no solver, or the config has no counterpart here, or names a module and is not trusted.
        """
        if not isinstance(config, Mapping):
            raise InputError("from_config needs a config; from_pretrained reads a folder")
        solver = kwargs.pop("solver", None)
        with origin_of(solver, *kwargs.values(), trust=trust).limits():
            solver = solver or config.get("solver")
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
        if not self.num_inference_steps:
            return self._reading.sde.prior().std
        own = self._solver.nodes  # a program with a grid of its own may scale the start before its first evaluation
        node, scale = (own[0], scale_before(self._program)) if own else (self._entries.nodes[0], 1.0)
        return scale * math.hypot(node.alpha, node.sigma)

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
            num_inference_steps: steps of the grid; a program in a file has its own grid.
            device: the device of ``timesteps``.
            sigmas: levels instead of a grid, one per step, descending; a last 0 is optional. Those of a flow are
                shifted.
            timesteps: labels instead of a grid, one per step, descending.
            mu: the parameter of a flow with dynamic shifting.

        Raises:
            InputError: none of steps, sigmas and timesteps is given, or they lie outside the path.
        """
        self.num_inference_steps = self._run = self._begin_index = self._broken_off = None
        config = self.config
        own = self._solver.nodes if sigmas is timesteps is None else None
        if own is None or num_inference_steps not in (None, len(own) - 1):
            own = self._reading.nodes(config, config.get("grid"), num_inference_steps, sigmas, timesteps, mu)
        self._place(own, device)
        entry = Entry(
            "DiffusersScheduler",
            solver="DiffusersScheduler({!r})",
            nodes=lambda rule, steps: (
                f"DiffusersScheduler(grid={str(rule)!r})" + ("" if steps is None else f" and set_timesteps({steps})")
            ),
            place=lambda rule, steps: self._reading.nodes(config, str(rule), steps),
        )
        warn_of_width(self._solver, tuple(self._program.grid), self._reading.sde, self._reading.output, entry)

    def _place(self, nodes: Sequence[Node], device: str | torch.device | None) -> None:
        """Traces the solver on the nodes."""
        self._program = self._trace(nodes)
        if self._reading.begins_at_noise(nodes) and amplification(self._program) > AMPLIFIED:
            nodes = self._reading.moved(nodes)
            self._program = self._trace(nodes)
        self._entries = Timesteps.of(self._program, self._reading.label_of, device)
        self.timesteps = self._entries.shown
        levels = [self._reading.level(node) for node in (*self._entries.nodes, self._program.end)]
        self.sigmas = torch.tensor(levels, dtype=torch.float32)
        self.num_inference_steps = len(nodes) - 1

    def _trace(self, nodes: Sequence[Node]) -> Program:
        return solvers.trace(self._solver, nodes, self._reading.sde, self._reading.output)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None, **ignored: Any) -> Tensor:
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
            InputError: a call out of order; a shape that differs from the output's or the
                run's; a timestep that is not in ``timesteps``; a copy that was made in the middle of a run; an option
                that would have an effect.
        """
        for name, given in ignored.items():
            neutral = (None, False, 0, *NEUTRAL.get(name, ()))
            if isinstance(given, Tensor) or given not in neutral:
                raise InputError(f"step({name}={given!r}) is not supported by {self._solver}: set options in its spec")
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
        signed = -model_output if self._reading.sign < 0 else model_output
        out: Tensor | Prediction = signed.to(state.dtype)
        x0 = None
        limit = limited(self.config)
        if limit is not None or return_dict:
            x0 = run.program.output.read(out, state, node).x0
        if limit is not None and x0 is not None:
            x0 = limit(x0)
            out = Prediction(x0, (state - node.alpha * x0) / node.sigma)
        following = run.answer(out, sample)
        if run.place == len(self._entries):
            self._run = None
        if not return_dict:
            return (following,)
        return SolverOutput(following, x0 if x0 is None else x0.to(sample.dtype))

    def _run_at(self, timestep: float | Tensor, sample: Tensor) -> ForeignRun:
        """The current run if this timestep is its next, or else a new run that begins at this timestep."""
        if self.num_inference_steps is None:  # the timesteps are then all of the network's
            self._place(self._reading.all_nodes(self.config), self.timesteps.device)
        places = self._entries.places(timestep)
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
                f"out of order: step expects {self._entries.entry([self._run.place])} of timesteps, got "
                f"{self._entries.entry(places) if places else f'{value(timestep):g}'}; set_timesteps starts a new run"
            )
        if not places:
            raise InputError(f"the timestep {value(timestep):g} is not in timesteps")
        if self._broken_off is not None and begin not in places:
            raise InputError(
                f"this scheduler was copied in the middle of a run, at {self._entries.entry([self._broken_off])} of "
                "timesteps, and a copy cannot continue it; set_timesteps starts a new run"
            )
        self._broken_off = None
        place = next((i for i in places if self._entries.begins(i)), places[0])
        return ForeignRun(self._program_from(place), sample, self._draw(sample), place)

    def _program_from(self, place: int) -> Program:
        """The program that begins at the evaluation ``place`` of the whole program.

        Raises:
            InputError: a solve that begins there needs other evaluations than the rest of the whole program.
        """
        program = self._program
        if place:
            if self._entries.begins(place):
                program = self._trace(program.grid[self._entries.steps[place] :])
            if not self._entries.begins(place) or evaluated(program) != self._entries.nodes[place:]:
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
        x0, eps = working(original_samples), working(noise.to(original_samples.dtype))
        node = Node.stack(self._nodes_of(torch.as_tensor(timesteps).flatten())).like(x0)
        return (node.alpha * x0 + node.sigma * eps).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha eps - sigma x0 (B, *) of data ``sample`` at the labels ``timesteps``, one or B of them."""
        x0, eps = working(sample), working(noise.to(sample.dtype))
        node = Node.stack(self._nodes_of(torch.as_tensor(timesteps).flatten())).like(x0)
        return (node.alpha * eps - node.sigma * x0).to(sample.dtype)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 (N,) at the network's steps 0..N-1, in float32; only on variance-preserving paths.

        Raises:
            AttributeError: alpha^2 + sigma^2 is not 1 on this path.
        """
        return self._kept().float()

    @property
    def betas(self) -> Tensor:
        """1 - alpha_i^2 / alpha_(i-1)^2 (N,) at the network's steps, in float32; see ``alphas_cumprod``."""
        kept = self._kept()
        return (1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])).float()

    def _kept(self) -> Tensor:
        node = self._reading.every()
        if not torch.allclose(node.alpha**2 + node.sigma**2, torch.ones_like(node.alpha), rtol=0, atol=1e-9):
            raise AttributeError(f"{self._reading.sde} is not variance-preserving, so it has no alphas_cumprod")
        return (node.alpha**2).flip(0)

    def _nodes_of(self, timesteps: Tensor) -> list[Node]:
        """The node of each label: the node of an evaluation if it has this label, else the node of the path."""
        nodes = []
        for label in timesteps.detach().cpu():
            places = self._entries.places(label) if self.num_inference_steps else []
            nodes.append(self._entries.nodes[places[0]] if places else self._reading.node_of_label(float(label)))
        return nodes

    def __len__(self) -> int:
        return self._reading.num_train_timesteps

    def __getstate__(self) -> dict[str, Any]:
        # a run contains a generator, which cannot be copied; a copy records that it must start a new run
        place = self._broken_off if self._run is None else self._run.place
        return {**self.__dict__, "_run": None, "_generator": None, "_broken_off": place}


# pipelines save the module of a scheduler's class: the one that users import
DiffusersScheduler.__module__ = "scoresde.interop"
