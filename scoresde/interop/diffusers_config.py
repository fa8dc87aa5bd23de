"""Reads a diffusers scheduler's config: the model's path, its output, its time labels and its grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import solvers
from solvers import InputError, Node, Output
from solvers.errors import unknown
from solvers.foreign import diffusers as diffusers_labels
from solvers.libraries import without_traces
from solvers.registry.outside import Origin
from solvers.registry.registry import outside_names
from solvers.time_grids.base import End
from solvers.time_grids.network_steps import time_of_index
from solvers.time_grids.rules import Explicit

from ..models import time_labels
from ..paths.base import SDE, make_sde
from ..paths.chain_paths import ChainSDE
from ..paths.standard import EDM, RectifiedFlow
from .k_diffusion import numbers

T = TypeVar("T", float, Tensor)

# diffusers' words for the network's output
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
# lam is -inf at sigma = 1 of a flow, so FLOW_END stands for 1; beyond FLOW_START some methods in eps amplify rounding
# by sigma / alpha
FLOW_END, FLOW_START = 1 - 1e-6, 0.999
# flags that change the network's output or its path in ways that have no counterpart here
REFUSED: dict[str, tuple[Any, ...]] = {
    "timestep_type": ("continuous",),
    "variance_type": ("learned", "learned_range"),
    "invert_sigmas": (True,),
    "stochastic_sampling": (True,),
}
# classes whose flow sigmas begin below 1
FROM_BELOW = ("DPMSolver", "DEIS", "SASolver")
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
    "set_alpha_to_one",
)


def origin_of(*given: Any, trust: bool = False) -> Origin:
    """The limits of a config: classes that the arguments ``given`` name were typed."""
    typed = (outside_names(text) for text in given if isinstance(text, str))
    return Origin("the scheduler's config", frozenset().union(*typed), trust)


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
    with without_traces():
        import diffusers.schedulers as classes

        made = getattr(classes, name, None) if name else None
        if name and not (isinstance(made, type) and issubclass(made, classes.SchedulerMixin)):
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
        sign: -1 if the network inside EDM's preconditioning returns -F, which diffusers calls v_prediction; else 1.
    """

    sde: SDE
    output: Output
    label: str
    num_train_timesteps: int
    shift: float | None = None
    sign: float = 1.0

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
        sign = 1.0
        if "sde" not in config and isinstance(sde, EDM):
            if word not in ("epsilon", "v_prediction", "edm"):
                raise InputError(
                    f"the config's prediction_type={word!r} has no counterpart inside EDM's preconditioning"
                )
            sign, word = -1.0 if word == "v_prediction" else 1.0, "edm"
        made = Output(PREDICTIONS.get(word, word), float(config.get("sigma_data") or 0.5)).check()
        chosen = config.get("time_label") or ("c_noise" if made.name == "edm" else label)
        return cls(sde, made, time_labels.checked(chosen, sde, int(count)), int(count), shift, sign)

    def label_of(self, node: Node) -> float:
        """The label that the network was trained to see at a node."""
        if self.begins_at_noise((node,)) and self.label == "Nt":
            return float(self.num_train_timesteps)
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
        """The nodes of a solve: at the given sigmas or timesteps and then at the config's end, or else those of a grid.

        The levels of a flow are shifted as the config says, as in FlowMatchEulerDiscreteScheduler.

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
            if name == "sigmas" and levels and self._is_end(levels[-1], config):
                levels.pop()
            if not levels or not all(map(math.isfinite, levels)):
                raise InputError(f"{name} must be a list of finite numbers, at least one")
            if steps not in (None, len(levels)):
                raise InputError(f"got {len(levels)} {name} for num_inference_steps={steps}; the numbers must agree")
            if name == "timesteps":
                return self._listed([self.node_of_label(label).t for label in levels], config)
        if self.shift is None:
            return self._listed([self._time(level) for level in levels], config)
        return self._listed(self._shifted(config, levels, mu), config)

    def every(self) -> Node[Tensor]:
        """All N steps of the network, the noisiest first, as a node of tensors (N,) in float64.

        Those of a flow are the levels i / N, shifted as the config says unless the shift is dynamic.
        """
        places = torch.arange(self.num_train_timesteps - 1, -1, -1, dtype=torch.float64)
        if self.shift is None:
            return self.sde(time_of_index(self.sde, places, self.num_train_timesteps))
        return self.sde(_shift(self.shift, (places + 1) / self.num_train_timesteps).clamp(max=self.sde.t_max))

    def table(self) -> tuple[Tensor, Tensor]:
        """The labels (N,) of all steps of the network, the noisiest first, and their levels (N + 1,), the last 0."""
        node = self.every()
        labels = time_labels.LABELS[self.label].of(node, self.sde, self.num_train_timesteps)
        if self.sde.t_max == FLOW_END and self.label == "Nt":
            labels[0] = self.num_train_timesteps
        whole = bool((labels == labels.round()).all())
        levels = node.sigma if self.shift is not None else node.ratio
        return labels.to(torch.int64 if whole else torch.float32), torch.cat([levels, levels.new_zeros(1)]).float()

    def all_nodes(self, config: Mapping[str, Any]) -> tuple[Node, ...]:
        """The nodes of a solve over all steps of the network, to the config's end."""
        return self._listed(self.every().t.tolist(), config)

    def begins_at_noise(self, nodes: Sequence[Node]) -> bool:
        """Whether a flow's nodes begin at sigma = 1, to rounding."""
        return self.shift is not None and nodes[0].t == FLOW_END

    def moved(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """The nodes of a flow with the first at 0.999, or half-way between the second and 1 if that is closer to 1."""
        return self.sde(max(FLOW_START, (1 + nodes[1].t) / 2)), *nodes[1:]

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

    def _end(self, config: Mapping[str, Any]) -> End:
        return "zero" if "sde" in config else diffusers_labels.ending(config.get("source_class") or "", config)

    def _is_end(self, level: float, config: Mapping[str, Any]) -> bool:
        """Whether a level is that of the config's end: 0, or the least of the path where that is the end."""
        least = self.sde(self.sde.t_min).ratio
        to_least = self.shift is None and self._end(config) == "repeat"
        return level == 0 or (to_least and math.isclose(level, least, rel_tol=1e-4))  # of a float32 chain

    def _listed(self, times: Sequence[float], config: Mapping[str, Any]) -> tuple[Node, ...]:
        """The nodes at the times and the config's end; a flow that repeats a level repeats the last of the times."""
        end = self._end(config)
        last = times[-1] if self.shift is not None and end == "repeat" else None
        return Explicit(times=tuple(times), end=end).nodes(self.sde, None, t_min=last)

    def _time(self, ratio: float) -> float:
        low, high = self.sde(self.sde.t_min), self.sde(self.sde.t_max)
        if not 0.999 * low.ratio <= ratio <= 1.001 * high.ratio:
            raise InputError(f"sigma={ratio:g} is outside [{low.ratio:g}, {high.ratio:g}], the path's range")
        return min(max(self.sde.t_of_lam(-math.log(ratio)), low.t), high.t)

    def _plain_levels(self, config: Mapping[str, Any], steps: int) -> list[float]:
        """The levels before their shift, as diffusers places them.

        Those of FlowMatchEulerDiscreteScheduler go from 1 to a shifted 1 / N. Of the classes with flow sigmas, UniPC
        begins at 1 and ends one step before 1 / N, the others begin at 1 - 1 / N and end one step before 0.
        """
        least = 1 / self.num_train_timesteps
        if config.get("use_flow_sigmas"):
            first, last = (1 - least, 0) if str(config.get("source_class")).startswith(FROM_BELOW) else (1, least)
            return [float(u) for u in np.linspace(first, last, steps + 1)[:-1]]
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


def limited(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What the config does to x0 (B, *) after each evaluation: a function, or None if it leaves x0 as it is.

    ``clip_sample`` clips x0 to ``clip_sample_range``. ``thresholding`` clips each sample to a quantile of its |x0| and
    divides by it, if it exceeds 1: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """
    share, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
    limit = float(config.get("clip_sample_range", 1.0))

    def threshold(x0: Tensor) -> Tensor:
        bound = x0.flatten(1).abs().quantile(share, 1).clamp(1, most).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-bound, bound) / bound

    if config.get("thresholding"):
        return threshold
    return (lambda x0: x0.clamp(-limit, limit)) if config.get("clip_sample") else None


def _shift(factor: float, level: T) -> T:
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
