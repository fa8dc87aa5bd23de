"""``Denoiser``: converts the output of a network to the prediction (x0, eps) with x = alpha x0 + sigma eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Prediction, Solver
from solvers.errors import positive_integer
from solvers.time_grids.network_steps import train_timesteps
from solvers.types.answers import call, fault
from solvers.types.model_output import Output

from ..data.conditions import Condition
from ..paths.base import SDE, as_sde
from . import time_labels as labels
from .condition_noise import KEYS, ConditionNoise, missing_keys, noise_of, noised, of_keys
from .counting import add_forwards
from .known_networks import default_label, evaluations
from .model import Model, condition_error
from .reachable import reachable_modules


@dataclass(frozen=True)
class Denoiser(Model):
    """A network that was trained on an SDE, with all that is needed to read its output as a prediction.

    Args:
        network: called as ``network(x, label, **conditions)`` and returns (B, *). x (B, *) has ``dtype``; label (B,)
            has the same dtype, or float32 if that has 16 bits.
        sde: the path that it was trained on, or its spec such as "vp".
        predicts: its output: "x0", "eps", "v" (alpha eps - sigma x0), "score", "velocity" (dx/dt of the ODE), or
            "edm" (the raw network F inside EDM's preconditioning).
        time_label: the time label that it receives, a name in ``scoresde.models.time_labels``: "t", "999t", "1000t",
            "index", "index+1", "reversed_index", "(N-1)t", "Nt", "sigma", "log_sigma", "c_noise"
            (log(sigma / alpha) / 4) or "1000sigma". The default is "c_noise" for "edm", "index" on the path of a chain,
            and "t" otherwise; ``known_networks.default_label`` has the exceptions.
        sigma_data: standard deviation of the data, for "edm".
        num_train_timesteps: N, the steps of a network trained in discrete time, for the labels that count them. The
            default is the number of nodes of the SDE if it is a chain's path, else 1000. Step i of 0..N-1 is at
            t = t_min + i / (N - 1) (t_max - t_min); on VP's range [0.001, 1] with N = 1000, t = (i + 1) / 1000. The
            discrete grids of ``solvers`` (leading, trailing, linspace, ...) place their nodes at these times, so that
            the network receives exact integers.
        compile: run the network through ``torch.compile``.
        round_labels: pass the nearest label that the network was trained on, for labels that count steps.
        learned_variance: the network returns (B, 2 C, ...) for x (B, C, ...): its output and then v in [-1, 1].
            ``predict`` then returns nu = (v + 1) / 2 as well (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15);
            ``raw`` omits v.
        clip: a bound c > 0: x0 is clamped to [-c, c], and eps becomes (x - alpha x0) / sigma. ``output`` is then "x0"
            for every ``predicts``.
        shape: the shape of one sample, if it is known.
        data_range: the least and the greatest number of its training data, if they are known.
        conditions: the conditions that the network takes, if they are known: those that are passed are checked.
        null: the rows (1, *) that mean "no condition", by name, if they are others than ``Condition.empty``.
        condition_noise: the noise of its conditions, or its spec; a prediction then needs the condition ``KEYS`` of
            ``models.condition_noise``, which ``sample`` makes from the seeds.
        dtype: the dtype in which the network receives x, for a network with parameters of several dtypes. The default
            is the dtype of most of its numbers, or that of x if it has no parameters.

    Raises:
        InputError: ``predicts`` or ``time_label`` is unknown; the network has no default label; there are fewer than
            two steps; a label that counts steps leaves the N steps somewhere on the SDE's range; ``round_labels`` is
            set for a label that does not count steps; ``clip`` is not positive; ``dtype`` is not a float type.
    """

    network: Callable[..., Tensor] = field(repr=False)
    sde: SDE
    predicts: str = "eps"
    time_label: str | None = None
    sigma_data: float = 0.5
    num_train_timesteps: int | None = None
    compile: bool = False
    round_labels: bool = False
    learned_variance: bool = False
    clip: float | None = None
    shape: tuple[int, ...] | None = None
    data_range: tuple[float, float] | None = None
    conditions: tuple[Condition, ...] = ()
    null: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    condition_noise: ConditionNoise | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if isinstance(self.network, (SDE, type)) or not callable(self.network):
            shown = f"the class {self.network.__name__}" if isinstance(self.network, type) else repr(self.network)
            raise InputError(f"the first argument of Denoiser is a network, called as network(x, label), got {shown}")
        object.__setattr__(self, "sde", as_sde(self.sde))
        self._native.check()
        if positive_integer("num_train_timesteps", self.train_timesteps) < 2:
            raise InputError(f"num_train_timesteps must be at least 2, got {self.train_timesteps!r}")
        own = self.sde.num_train_timesteps or self.train_timesteps
        if own != self.train_timesteps:
            raise InputError(f"num_train_timesteps={self.train_timesteps}, but the chain of {self.sde} has {own} steps")
        labels.checked(self.label, self.sde, self.train_timesteps)
        if self.round_labels:
            labels.rounded(self.label, 0.0, self.train_timesteps)  # raises an error if the label does not count steps
        if self.clip is not None and not (isinstance(self.clip, (int, float)) and 0 < self.clip < math.inf):
            raise InputError(f"clip must be a positive number, got {self.clip!r}")
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise InputError(f"dtype must be a float type, such as torch.bfloat16, got {self.dtype!r}")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "condition_noise", noise_of(self.condition_noise))
        if self.condition_noise is not None:
            self.condition_noise.check(self.sde, self.conditions)
        if self.compile and not hasattr(self.network, "_orig_mod"):
            object.__setattr__(self, "network", torch.compile(self.network))

    @property
    def checked(self) -> bool:
        return True

    def cost(self, node: Node) -> int:
        """Evaluations of the network that one prediction takes: two if it receives its own estimate."""
        return self._evaluations

    @cached_property
    def _evaluations(self) -> int:
        return evaluations(self.modules)

    @property
    def output(self) -> Output:
        """The kind of output that ``raw`` returns: the network's, or x0 if the denoiser clips."""
        return Output("x0") if self.clip is not None else self._native

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return reachable_modules(self.network)

    @cached_property
    def label(self) -> str:
        """The name of the time label that the network receives."""
        return self.time_label or default_label(self.network, self.predicts, self.sde, self.train_timesteps)

    @property
    def train_timesteps(self) -> int:
        """The number N of steps of a network trained in discrete time."""
        return train_timesteps(self.sde, self.num_train_timesteps)

    @property
    def _native(self) -> Output:
        return Output(self.predicts, self.sigma_data)

    def predict(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Prediction:
        """Evaluates the network once and returns the pair (x0, eps), with nu if the network learned its variance.

        Args:
            x: (B, *). The network receives it in the dtype of its parameters; the prediction has the dtype of x.
            node: the node of one time, or of the times (B,).
            conditions: keyword arguments for the network.

        Raises:
            InputError: the network rejects the shape of x, or returns a different shape.
        """
        out, nu = self._evaluate(x, node, conditions)
        found = self.output.read(out, x, node.like(x))
        return found if nu is None else Prediction(found.x0, found.eps, nu)

    def raw(self, x: Tensor, node: Node | Node[Tensor], **conditions: Tensor) -> Tensor:
        """Evaluates the network once and returns the kind ``output``, (B, *) in the dtype of x; see ``predict``."""
        return self._evaluate(x, node, conditions)[0]

    def _evaluate(
        self, x: Tensor, node: Node | Node[Tensor], conditions: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The network's output of the kind ``output``, and nu or None: each (B, *) in the dtype of x."""
        dtype, scaled, nu = self._dtype(x), x, None
        if self.condition_noise is not None:
            conditions = self._noised(self.condition_noise, node, conditions)
        if self.predicts == "edm":
            wide = node.like(x)
            scaled = x / (wide.alpha * (wide.ratio**2 + self.sigma_data**2) ** 0.5)
        # a conversion that changes nothing still costs a microsecond
        out = self._call(scaled if x.dtype == dtype else scaled.to(dtype), self._labels(node, dtype, x), conditions)
        out = out if out.dtype == x.dtype else out.to(x.dtype)
        if self.learned_variance:
            out, v = out.chunk(2, 1)
            nu = (v + 1) / 2
        if self.clip is not None:
            out = self._native.read(out, x, node.like(x)).x0.clamp(-self.clip, self.clip)
        return out, nu

    def _noised(self, noise: ConditionNoise, node: Any, conditions: dict[str, Tensor]) -> dict[str, Tensor]:
        """The conditions as the network receives them: with noise, and without the keys that it follows from."""
        given = dict(conditions)
        if (keys := given.pop(KEYS, None)) is None:
            raise missing_keys(noise)
        dtype = next((given[c.name].dtype for c in self.conditions if c.kind != "class"), torch.float32)
        return noised(noise, given, self.conditions, node, self.sde, of_keys(noise, keys, dtype))

    def check_solver(self, solver: Solver) -> None:
        if self.condition_noise is not None:
            self.condition_noise.check_solver(solver)

    def check_density(self) -> None:
        if self.condition_noise is not None:
            raise missing_keys(self.condition_noise)

    def evaluate_network(self, x: Tensor, label: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """The network's own output (B, *) at x (B, *) and label (B,), without a learned variance, in the dtype of x."""
        dtype = self._dtype(x)
        label = label.to(torch.float32 if dtype.itemsize < 4 else dtype)
        out = self._call(x.to(dtype), label, conditions).to(x.dtype)
        return out.chunk(2, 1)[0] if self.learned_variance else out

    def _labels(self, node: Node | Node[Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
        """The labels (B,) on the device of x (B, *)."""
        label = self._exact_label(node)
        if self.round_labels:
            label = labels.rounded(self.label, label, self.train_timesteps)
        # in 16 bits, neighbouring times would get the same label: 988.49 is 988 in bfloat16
        precise = torch.float32 if dtype.itemsize < 4 else dtype
        if isinstance(label, Tensor):
            return label.flatten().to(precise).to(x.device).expand(len(x))
        # filled on the device: no copy, no wait
        return torch.full((x.shape[0],), label, dtype=precise, device=x.device)

    def label_shift(self, node: Node | Node[Tensor]) -> float:
        """The distance by which rounding moves the label at a node (with tensors: the largest); 0 without rounding."""
        if not self.round_labels:
            return 0.0
        exact = self._exact_label(node)
        shift = abs(labels.rounded(self.label, exact, self.train_timesteps) - exact)
        return float(shift.max()) if isinstance(shift, Tensor) else float(shift)

    def _exact_label(self, node: Node | Node[Tensor]) -> Any:
        return labels.LABELS[self.label].of(node, self.sde, self.train_timesteps)

    def _call(self, x: Tensor, label: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        add_forwards(len(x), self._evaluations)
        try:
            out = call("the network", self.network, x, label, conditions)
        except TypeError as error:
            raise condition_error(error, self.network, conditions) from error
        except (InputError, torch.cuda.OutOfMemoryError):  # its message also contains the word "size"
            raise
        except RuntimeError as error:
            if any(word in str(error) for word in ("shape", "size", "channels", "dimension")):
                line = str(error).partition("\n")[0]
                called = f"it was called with x {tuple(x.shape)} and label {tuple(label.shape)}"
                if x.ndim > 2 and x.shape[0] == x.shape[1]:
                    called += f"; is the shape of one sample {tuple(x.shape[2:])}, without the number of samples?"
                raise InputError(
                    f"the network rejects samples of shape {tuple(x.shape[1:])}: {line}; {called}"
                ) from error
            if any(word in str(error) for word in ("dtype", "scalar type")):
                line = str(error).partition("\n")[0]
                raise InputError(
                    f"the network rejects samples in {x.dtype} with labels in {label.dtype}: {line}; "
                    "Denoiser(dtype=...) sets the dtype of the samples"
                ) from error
            raise
        if not isinstance(out, Tensor):
            out = getattr(out, "sample", out)  # diffusers' backbones return an object
        twice = (len(x), 2 * x.shape[1], *x.shape[2:]) if self.learned_variance else None
        if wrong := fault(out, x, twice):
            wanted = f"; with a learned variance it must return {twice}" if self.learned_variance else ""
            if twice is None and isinstance(out, Tensor) and out.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
                wanted = ": twice as many channels are a learned variance, pass learned_variance=True"
            raise InputError(f"the network returns {wrong} for samples {tuple(x.shape)}{wanted}")
        # a network that enables gradients itself must not keep its graph alive in the solve
        found: Tensor = out.detach() if out.requires_grad and not torch.is_grad_enabled() else out
        return found

    def _dtype(self, x: Tensor) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return x.dtype if self._typical is None else self._typical.dtype

    @cached_property
    def _typical(self) -> Tensor | None:
        """A parameter with the dtype of most of the network's numbers; it shows when the network is converted."""
        sizes: dict[torch.dtype, int] = {}
        typical: dict[torch.dtype, Tensor] = {}
        if isinstance(self.network, nn.Module):
            for parameter in self.network.parameters():
                if (
                    parameter.is_floating_point() and parameter.dtype.itemsize > 1
                ):  # not the codes of a quantised network
                    sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
                    typical.setdefault(parameter.dtype, parameter)
        return typical[max(sizes, key=lambda dtype: sizes[dtype])] if sizes else None


def time_labels(denoiser: Denoiser, nodes: Sequence[Node]) -> list[float]:
    """The time labels that the network receives at the nodes of a solve.

    They are rounded to the dtype of the network's parameters, or to float32 if it has none or they have 16 bits. A
    clean node (sigma = 0) is omitted, because no solver evaluates the network there.

    >>> import solvers, scoresde
    >>> denoiser = Denoiser(lambda x, label: x, scoresde.VP(), time_label="index")
    >>> time_labels(denoiser, solvers.grid("trailing", denoiser.sde, steps=4))
    [999.0, 749.0, 499.0, 249.0]
    """
    one = torch.empty(1, dtype=torch.float32)
    return [float(denoiser._labels(node, denoiser._dtype(one), one)) for node in nodes if node.sigma > 0]


def label_shift(denoiser: Denoiser, nodes: Sequence[Node]) -> float | None:
    """The largest distance by which rounding moves a label at the nodes of a solve; None without rounding.

    A clean node (sigma = 0) is omitted. Solvers also evaluate the network between the nodes: ``Sample.label_shift``
    reports the largest shift over all evaluations of a solve.

    >>> import solvers, scoresde
    >>> denoiser = Denoiser(lambda x, label: x, scoresde.VP(), time_label="index", round_labels=True)
    >>> round(label_shift(denoiser, solvers.grid("uniform", denoiser.sde, steps=2)), 9)  # the middle is 499.5
    0.5
    """
    if not denoiser.round_labels:
        return None
    return max((denoiser.label_shift(node) for node in nodes if node.sigma > 0), default=0.0)
