"""Guidance that is linear in the predictions, with weights whose sum is 1.

Such a rule commutes with every output of a network, since each is the same affine function of x0 for all roles. With u
the prediction without conditions, c with them and s the scale: s = 1 is c, s = 0 is u.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from solvers import InputError, Node, Solver
from solvers.registry.ranges import Fraction, Range

from .base import BAD, CLASSIFIED, CONDITION, NEGATIVE, NULL, Guidance, Linear, finite, guidances, only

_SAME = 1e-9  # noise levels closer than this, relative to their size, are those of one node


@dataclass(frozen=True)
class Scaled(Linear):
    """A linear rule with one scale: base + scale (target - base).

    Attributes:
        scale: s; 1 is the conditional prediction.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "scale")

    @property
    def base(self) -> str:
        """The role that the rule moves away from."""
        return NULL

    @property
    def target(self) -> str:
        """The role that the rule moves towards."""
        return CONDITION

    def inside(self) -> Mapping[str, float]:
        return {self.target: self.scale, self.base: 1 - self.scale}


@guidances.register(
    "cfg", kind="linear", formula="u + s (c - u)", evaluations=2,
    reference="Ho and Salimans 2022, arXiv:2207.12598; interval: Kynkaanniemi et al. 2024, arXiv:2404.07724",
    note="samples neither p(x) p(c|x)^s nor any other known law: see docs/guidance.md",
)  # fmt: skip
@dataclass(frozen=True)
class CFG(Scaled):
    """Classifier-free guidance: the conditional prediction, extrapolated away from the unconditional one.

    s = 1 + w of Ho and Salimans.
    """


@guidances.register(
    "negative", kind="linear", formula="n + s (c - n)", evaluations=2, reference="Ho and Salimans 2022, with n for u",
    note="p_c^s / p_n^(s - 1) may lie outside of the data",
)  # fmt: skip
@dataclass(frozen=True)
class Negative(Scaled):
    """The conditional prediction, extrapolated away from that for conditions to be avoided."""

    @property
    def base(self) -> str:
        return NEGATIVE


@guidances.register(
    "autoguidance", kind="linear", formula="b + s (c - b)", evaluations=2,
    reference="Karras et al. 2024, arXiv:2406.02507",
)  # fmt: skip
@dataclass(frozen=True)
class Autoguidance(Scaled):
    """The model's prediction, extrapolated away from that of a worse model under the same conditions."""

    @property
    def base(self) -> str:
        return BAD


@guidances.register(
    "classifier", kind="linear", formula="u + s (sigma^2 / alpha) grad log p(c|x_t)",
    reference="Dhariwal and Nichol 2021, arXiv:2105.05233, algorithm 2; Song et al. 2021, arXiv:2011.13456, eq. 14",
    note="one vector-Jacobian product of the classifier per evaluation; equal to cfg for Bayes' classifier",
)  # fmt: skip
@dataclass(frozen=True)
class Classifier(Scaled):
    """The unconditional prediction, moved by the gradient of a classifier of noisy samples."""

    @property
    def target(self) -> str:
        return CLASSIFIED

    @property
    def outside(self) -> str:
        return NULL


@guidances.register(
    "compose", kind="linear", formula="u + sum_i s_i (c_i - u)", evaluations=2,
    reference="Liu et al. 2022, arXiv:2206.01714, eq. 11", note="one evaluation for each condition, and one without",
)  # fmt: skip
@dataclass(frozen=True)
class Compose(Linear):
    """Several conditions, each with its own scale: c_i is the prediction with the i-th condition alone.

    Attributes:
        scales: s_i, one for each condition.
    """

    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "scales")
        if not self.scales:
            raise InputError("compose: scales has no numbers; give one for each condition of the model")

    def inside(self) -> Mapping[str, float]:
        return {NULL: 1 - sum(self.scales), **{only(i): s for i, s in enumerate(self.scales)}}


@guidances.register(
    "cfgpp", kind="linear", formula="u + lam (c - u), with the eps of u; s = lam / (1 - r_s / r_t)", evaluations=2,
    reference="Chung et al. 2024, arXiv:2406.08070, algorithm 2",
    note="its strength grows with the number of steps: there is no limit of many steps",
)  # fmt: skip
@dataclass(frozen=True)
class CFGPP(Linear):
    """CFG++: cfg whose scale in a step from r_t to r_s is scale / (1 - r_s / r_t), exact for ``ddim``.

    Attributes:
        scale: lam, usually from 0 to 1.
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "scale")

    def inside(self) -> Mapping[str, float]:
        return {CONDITION: self.scale, NULL: 1 - self.scale} if self.scale else {NULL: 1.0}

    def weights(self, ratio: float) -> Mapping[str, float]:
        raise InputError("cfgpp: its scale depends on the steps of a solve; a single prediction has none")

    def asked(self, ratio: float) -> tuple[str, ...]:
        if not self.acts(ratio):
            return (CONDITION,)
        return (CONDITION, NULL) if self.scale else (NULL,)

    def on(self, nodes: Sequence[Node]) -> Guidance:
        return CFGPPOnGrid(self.scale, tuple(node.ratio for node in nodes), interval=self.interval)

    def check_solver(self, solver: Solver) -> None:
        if solver.adaptive:
            raise InputError(f"cfgpp: its scale depends on the steps, but {solver} chooses its own; use cfg")


@dataclass(frozen=True)
class CFGPPOnGrid(CFGPP):
    """CFG++ in a solve whose nodes have the noise levels ``ratios``, in the solve's order."""

    ratios: tuple[float, ...] = ()

    def step(self, ratio: float) -> int:
        """The step that starts at a noise level or contains it; the last one at the end of the solve."""
        down = self.ratios[0] > self.ratios[-1]
        keys = [-r if down else r for r in self.ratios]
        key = -ratio * (1 - _SAME) if down else ratio * (1 + _SAME)
        return min(max(bisect_right(keys, key) - 1, 0), len(keys) - 2)

    def phase(self, ratio: float) -> Hashable:
        return self.acts(ratio) and self.step(ratio)

    def weights(self, ratio: float) -> Mapping[str, float]:
        if not self.acts(ratio):
            return {CONDITION: 1.0}
        k = self.step(ratio)
        s = self.scale / (1 - self.ratios[k + 1] / self.ratios[k])
        return {role: w for role, w in ((CONDITION, s), (NULL, 1 - s)) if w != 0}


@guidances.register(
    "tilt", kind="particles", formula="d log w = s (s - 1) |eps_c - eps_u|^2 d log(alpha / sigma), under cfg(scale=s)",
    evaluations=2, reference="Skreta et al. 2025, arXiv:2503.02819, proposition 3.1",
    note="samples p(x) p(c|x)^s, which cfg does not; particles times the evaluations; for scoresde.sample alone",
)  # fmt: skip
@dataclass(frozen=True)
class Tilt(Guidance):
    """Samples p(x) p(c|x)^s: particles under cfg, with weights for what it does wrong, and one drawn for each sample.

    Attributes:
        scale: s.
        particles: how many for each sample.
        resample: particles are drawn again where their effective number is below this share of them.
    """

    scale: float = 3.0
    particles: Annotated[int, Range(2)] = 64
    resample: Fraction = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "scale")

    @property
    def roles(self) -> tuple[str, ...]:
        return (CONDITION, NULL)

    def weights(self, ratio: float) -> Mapping[str, float]:
        raise InputError(
            "tilt weighs particles, so it is no denoiser: pass it alone to scoresde.sample, or use cfg instead"
        )
