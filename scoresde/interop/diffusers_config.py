"""Reads a diffusers scheduler's config: the model's path, its output, its time labels and its grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import solvers
from solvers import InputError, Node, Output
from solvers.errors import unknown
from solvers.foreign import diffusers as diffusers_labels
from solvers.time_grids.rules import Explicit

from ..models import time_labels
from ..paths.base import SDE, make_sde
from ..paths.chain_paths import ChainSDE
from ..paths.standard import EDM, RectifiedFlow
from .k_diffusion import numbers

# diffusers' words for the network's output
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
# lam is -inf at sigma = 1 of a flow; closer than FLOW_START, methods in eps amplify rounding by sigma / alpha
FLOW_END, FLOW_START = 1 - 1e-6, 0.999
# flags that change the network's output or its path in ways that have no counterpart here
REFUSED: dict[str, tuple[Any, ...]] = {
    "thresholding": (True,),
    "timestep_type": ("continuous",),
    "variance_type": ("learned", "learned_range"),
    "invert_sigmas": (True,),
    "stochastic_sampling": (True,),
}
GRID_FLAGS = (
    "num_train_timesteps",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_lu_lambdas",
    "use_beta_sigmas",
    "rho",
    "sigma_schedule",
    "timestep_spacing",
    "steps_offset",
    "final_sigmas_type",
)


def config_of(source: Any) -> dict[str, Any]:
    """The complete config of a source: an SDE or its spec, a scheduler, or a scheduler's config.

    Raises:
        InputError: the source is none of these.
    """
    if isinstance(source, (SDE, str)):
        return {"sde": str(make_sde(source))}
    config = getattr(source, "config", source)
    if not isinstance(config, Mapping):
        raise InputError(
            f"source must be an SDE, its spec, a scheduler or a scheduler's config, got {type(source).__name__}"
        )
    name = config.get("_class_name") or (type(source).__name__ if source is not config else None)
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    if "solver" in known:  # one of ours
        return known
    return {**_completed(name, known), "source_class": name}


def _completed(name: str | None, config: dict[str, Any]) -> dict[str, Any]:
    """The config, completed with the defaults of its scheduler class."""
    import diffusers

    made = getattr(diffusers, name, None) if name else None
    if name and made is None:
        raise unknown("scheduler class of diffusers", name, diffusers_labels.CLASSES)
    full = {**made.from_config(dict(config)).config, **config} if made else config
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in full.items()}
    return {key: value for key, value in plain.items() if not key.startswith("_")}


@dataclass(frozen=True)
class Reading:
    """The meaning of a config: path, output and time label of the model.

    Attributes:
        sde: the path.
        output: the network's output.
        label: the name of its time label, one of ``scoresde.models.time_labels``.
        num_train_timesteps: N of the labels that count the network's steps.
        shift: the shift of a flow's sigmas, as in FlowMatchEulerDiscreteScheduler; None on other paths.
    """

    sde: SDE
    output: Output
    label: str
    num_train_timesteps: int
    shift: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], given: SDE | None = None) -> Reading:
        """The reading of a complete config; ``given`` is the SDE that it names, if the caller has that object.

        Raises:
            InputError: an entry of the config has no counterpart here.
        """
        for key, values in REFUSED.items():
            if config.get(key) in values:
                raise InputError(f"the config's {key}={config[key]!r} has no counterpart here")
        sde, output, label, shift = _path(config, given)
        count = sde.num_train_timesteps or config.get("num_train_timesteps", 1000)
        word = config.get("prediction_type") or output
        if sde.t_max == FLOW_END and word in ("v_prediction", "v"):
            raise InputError("the config's prediction_type='v_prediction' has no counterpart on a flow's path")
        if "sde" not in config and isinstance(sde, EDM):
            if word not in ("epsilon", "edm"):
                raise InputError(
                    f"the config's prediction_type={word!r} has no counterpart inside EDM's preconditioning"
                )
            word = "edm"
        made = Output(PREDICTIONS.get(word, word), float(config.get("sigma_data") or 0.5)).check()
        chosen = config.get("time_label") or ("c_noise" if made.name == "edm" else label)
        return cls(sde, made, time_labels.checked(chosen, sde, int(count)), int(count), shift)

    def label_of(self, node: Node) -> float:
        """The label that the network was trained to see at a node."""
        return float(time_labels.LABELS[self.label].of(node, self.sde, self.num_train_timesteps))

    def node_of_label(self, label: float) -> Node:
        """The node of a label.

        Raises:
            InputError: the label is outside the path's range of labels.
        """
        return time_labels.node_of_label(self.label, label, self.sde, self.num_train_timesteps)

    def level(self, node: Node) -> float:
        """What diffusers calls sigma at a node: sigma on a flow, sigma / alpha on other paths."""
        return node.sigma if self.shift is not None else node.ratio

    def nodes(
        self,
        config: Mapping[str, Any],
        grid: str | None,
        steps: int | None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> tuple[Node, ...]:
        """The nodes of a solve: at the given sigmas or timesteps and then at sigma = 0, or else those of a grid.

        The levels of a flow are shifted as the config says, as in FlowMatchEulerDiscreteScheduler. A first level of 1
        is moved to 0.999, or to half-way between the second level and 1 if that is closer to 1.

        Raises:
            InputError: none of steps, sigmas and timesteps is given, or they lie outside the path.
        """
        given = timesteps if sigmas is None else sigmas
        if sigmas is not None and timesteps is not None:
            raise InputError("pass sigmas or timesteps, not both")
        if given is None:
            if steps is None:
                raise InputError("pass num_inference_steps, sigmas or timesteps")
            if grid is not None or self.shift is None or "sde" in config:
                return self._gridded(grid or self.spacing(config), steps)
            levels = self._plain_levels(config, solvers.errors.positive_integer("num_inference_steps", steps))
        else:
            name = "timesteps" if sigmas is None else "sigmas"
            levels = numbers(given) or []
            if name == "sigmas" and levels and levels[-1] == 0:
                levels.pop()
            if not levels or not all(map(math.isfinite, levels)):
                raise InputError(f"{name} must be a list of finite numbers, at least one")
            if steps not in (None, len(levels)):
                raise InputError(f"got {len(levels)} {name} for num_inference_steps={steps}; the numbers must agree")
            if name == "timesteps":
                return self._listed([self.node_of_label(label).t for label in levels])
        if self.shift is None:
            return self._listed([self._time(level) for level in levels])
        return self._listed(self._shifted(config, levels, mu))

    def spacing(self, config: Mapping[str, Any]) -> str:
        """The grid that the config's flags name, on a path that is not a flow; karras for an SDE."""
        if "sde" in config:
            return "karras"
        flags = {key: config[key] for key in GRID_FLAGS if config.get(key) is not None}
        flags["num_train_timesteps"] = self.num_train_timesteps
        name = config.get("source_class")
        if name not in diffusers_labels.CLASSES or name == "PNDMScheduler":  # the solver makes PNDM's repeated steps
            name = "DDIMScheduler"
        text = ", ".join(f"{key}={value!r}" for key, value in flags.items())
        default = f"trailing(num_train_timesteps={self.num_train_timesteps})"
        return diffusers_labels.read(name, text)[1] or ("karras" if isinstance(self.sde, EDM) else default)

    def _gridded(self, grid: str, steps: int) -> tuple[Node, ...]:
        """The nodes of a grid; on a flow they start at 0.999, since rules in lam would put them near lam = -inf."""
        return solvers.grid(grid, self.sde, steps, t_max=FLOW_START if self.sde.t_max == FLOW_END else None)

    def _listed(self, times: Sequence[float]) -> tuple[Node, ...]:
        if self.shift is not None and times[0] >= FLOW_END:
            times = [max([FLOW_START, *((1 + t) / 2 for t in times[1:2])]), *times[1:]]
        return Explicit(times=tuple(times), end="zero").nodes(self.sde, None)

    def _time(self, ratio: float) -> float:
        low, high = self.sde(self.sde.t_min), self.sde(self.sde.t_max)
        if not 0.999 * low.ratio <= ratio <= 1.001 * high.ratio:
            raise InputError(f"sigma={ratio:g} is outside [{low.ratio:g}, {high.ratio:g}], the path's range")
        return min(max(self.sde.t_of_lam(-math.log(ratio)), low.t), high.t)

    def _plain_levels(self, config: Mapping[str, Any], steps: int) -> list[float]:
        """The levels before their shift, as diffusers places them.

        Those of FlowMatchEulerDiscreteScheduler end at a shifted 1 / N, those of classes with flow sigmas one step
        before 1 / N.
        """
        least = 1 / self.num_train_timesteps
        if config.get("use_flow_sigmas"):
            return [float(u) for u in np.linspace(1, least, steps + 1)[:-1]]
        least = least if config.get("use_dynamic_shifting") else _shift(self.shift or 1.0, least)
        return [float(u) for u in np.linspace(1, least, steps)]

    def _shifted(self, config: Mapping[str, Any], levels: list[float], mu: float | None) -> list[float]:
        if bad := [level for level in levels if not 0 < level <= 1]:
            raise InputError(f"the sigmas of a flow must lie in (0, 1], got {bad[0]:g}")
        factor = self.shift or 1.0
        if config.get("use_dynamic_shifting"):
            if mu is None:
                raise InputError("the config says use_dynamic_shifting: pass mu")
            factor = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        shifted = [_shift(factor, level) for level in levels]
        terminal = config.get("shift_terminal")
        if terminal:
            stretch = (1 - terminal) / (1 - shifted[-1])
            shifted = [1 - (1 - level) * stretch for level in shifted]
        return [min(level, self.sde.t_max) for level in shifted]


def _shift(factor: float, level: float) -> float:
    return factor * level / (1 + (factor - 1) * level)


def _path(config: Mapping[str, Any], given: SDE | None) -> tuple[SDE, str, str, float | None]:
    """(path, default prediction type, time label, shift) of a config."""
    if "sde" in config:
        sde = given or make_sde(config["sde"])
        return (sde, "velocity", "Nt", 1.0) if isinstance(sde, RectifiedFlow) else (sde, "eps", "index", None)
    name = config.get("source_class") or ""
    flow_like = name.startswith("FlowMatch") or (not name and "base_shift" in config)
    if flow_like or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        shifted = [key for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if config.get(key)]
        if shifted:
            raise InputError(f"the config's {shifted[0]} has no counterpart on a flow's path; name a grid instead")
        shift = float(config.get("shift", config.get("flow_shift")) or 1.0)
        least = min(1.0, shift) ** 2 / int(config.get("num_train_timesteps", 1000))
        return RectifiedFlow(t_min=least, t_max=FLOW_END), "velocity", "Nt", shift
    if "beta_schedule" in config:
        if config.get("snr_shift_scale", 1.0) != 1.0:
            raise InputError("the config's snr_shift_scale has no counterpart here")
        chain = ChainSDE(
            config["beta_schedule"],
            float(config.get("beta_start", ChainSDE.beta_start)),
            float(config.get("beta_end", ChainSDE.beta_end)),
            int(config.get("num_train_timesteps", 1000)),
            tuple(map(float, betas)) if (betas := config.get("trained_betas")) is not None else None,
            bool(config.get("rescale_betas_zero_snr", False)),
        )
        return chain, "epsilon", "index", None
    if "sigma_data" in config:
        edm = EDM(t_min=float(config.get("sigma_min", 0.002)), t_max=float(config.get("sigma_max", 80.0)))
        return edm, "edm", "c_noise", None
    raise InputError(
        f"the config{f' of {name}' if name else ''} names no path: it has neither beta_schedule, nor sigma_data, nor a "
        "flow's shift; pass an SDE as the source"
    )
