"""DPM-Solver and DPM-Solver++, with stages inside the step or on the grid's own nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import InputError
from ..registry.ranges import NonNegative, Share
from ..types.solver import solvers
from .exponential_runge_kutta import (
    ExponentialRungeKutta,
    Kind,
    Scheme,
    Variant,
    check_ordered,
    one_stage,
    three_stages,
    two_stages,
)

Mode = Literal["singlestep", "grid"]
APART = "with eta > 0 its intervals draw noise independently, which limits the order to 1; dpmpp_sde is better"


def _check_mode(solver: ExponentialRungeKutta) -> None:
    if solver.eta and solver.mode != "grid":
        name = solvers.info_of(solver).name
        raise InputError(f"{name}: eta requires mode=grid; use dpmpp_sde(eta={solver.eta:g})")


@dataclass(frozen=True)
class _TwoStages(ExponentialRungeKutta):
    """A method with one stage at the fraction r1 of the step in lam."""

    r1: Share = 0.5
    variant: Variant = "dpmsolver"
    mode: Mode = "singlestep"
    lower_order_final: bool = False
    kind: ClassVar[Kind] = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_mode(self)

    def scheme(self) -> Scheme:
        return two_stages(self.kind, self.r1, self.variant, eta=self.eta)


@dataclass(frozen=True)
class _ThreeStages(ExponentialRungeKutta):
    """A method with stages at the fractions r1 and r2 of the step in lam."""

    r1: Share = 1 / 3
    r2: Share = 2 / 3
    variant: Literal["dpmsolver", "taylor", "published"] = "dpmsolver"
    mode: Mode = "singlestep"
    lower_order_final: bool = False
    kind: ClassVar[Kind] = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ordered(self, "r1", "r2")
        _check_mode(self)

    @property
    def nominal_order(self) -> float:
        # at any other r2 the parabola has a weight on stage 1, whose second-order error limits the order to 2
        return 3.0 if abs(self.r2 - 2 / 3) < 1e-9 else 2.0

    def scheme(self) -> Scheme:
        return three_stages(self.kind, self.r1, self.r2, self.grid_variant(last=True), eta=self.eta)

    def grid_variant(self, last: bool) -> str:
        if self.variant != "published":
            return self.variant
        return "dpmsolver" if last else "taylor"  # stage 2 integrates the line exactly, as within a step


@solvers.register(
    "dpm_solver_1",
    kind="ODE",
    order=1,
    reference="Lu et al. 2022, arXiv:2206.00927, eq. 3.7",
    formula="x_s = (alpha_s / alpha_t) x - sigma_s (e^h - 1) eps",
    equals=("ddim", "euler"),
)
@dataclass(frozen=True)
class DPMSolver1(ExponentialRungeKutta):
    """DPM-Solver-1: eps is constant over the step in lam, which is DDIM."""

    def scheme(self) -> Scheme:
        return one_stage("eps")


@solvers.register(
    "dpm_solver_2",
    kind="ODE",
    order=2,
    evaluations=2,
    reference="Lu et al. 2022, arXiv:2206.00927, algorithm 1",
    formula="x_s = (alpha_s / alpha_t) x - sigma_s (e^h - 1) eps_m, eps_m at the middle of the step in lam",
    equals=("dpm_2",),
    note="mode=grid: the stages are the grid's nodes, 1 evaluation per interval",
)
@dataclass(frozen=True)
class DPMSolver2(_TwoStages):
    """DPM-Solver-2: eps at t and at the fraction r1 of the step in lam, interpolated linearly.

    x_s / alpha_s = x / alpha_t - ratio_s ((e^h - 1) eps + w (eps_1 - eps) / r1), with w = (e^h - 1) / 2
    (``dpmsolver``) or the line's exact integral (e^h - 1) / h - 1 (``taylor``). Raises InputError unless 0 < r1 <= 1.
    """


@solvers.register(
    "dpm_solver_3",
    kind="ODE",
    order=3,
    evaluations=3,
    reference="Lu et al. 2022, arXiv:2206.00927, algorithm 2",
    formula="x_s = (alpha_s / alpha_t) x - sigma_s ((e^h - 1) eps + ((e^h - 1) / h - 1) (eps_2 - eps) / r2)",
    note="mode=grid: the stages are the grid's nodes, 1 evaluation per interval; the last intervals limit the order to "
    "2",
)
@dataclass(frozen=True)
class DPMSolver3(_ThreeStages):
    """DPM-Solver-3: eps at t and at the fractions r1 and r2 of the step in lam.

    ``dpmsolver`` integrates the line through eps and eps_2, ``taylor`` the parabola through all three. Both have order
    3 at r2 = 2/3 and order 2 at any other r2. In ``mode="grid"``, the second interval of a group is ``dpm_solver_2``'s
    of the same variant; with ``published`` it is stage 2 of the paper's step, and the group is that step. Raises
    InputError unless 0 < r1 < r2 <= 1.
    """


@solvers.register(
    "dpm_fast",
    kind="ODE",
    order=2,
    reference="Lu et al. 2022, arXiv:2206.00927, section 3.4",
    formula="dpm_solver_3 over groups of three intervals, dpm_solver_2 and dpm_solver_1 over the last of them",
    equals=("dpm_solver_3(mode=grid, variant=published, lower_order_final=True)",),
    note="1 evaluation per interval of the grid; the last steps, of lower order, limit the order to 2; the paper's "
    "code takes equal steps in lam for every order, so that its last steps are longer",
)
@dataclass(frozen=True)
class DPMFast(ExponentialRungeKutta):
    """DPM-Solver-fast: steps of mixed orders, so that N intervals take N evaluations.

    The stages are the grid's own nodes; on a grid that is uniform in lam they are the stages of DPM-Solver-3, at 1/3
    and 2/3. If N is divisible by 3, the last two groups have orders 2 and 1; otherwise the last has order N mod 3.
    """

    mode = "grid"
    lower_order_final = True

    def scheme(self) -> Scheme:
        return three_stages("eps", 1 / 3, 2 / 3)

    def grid_variant(self, last: bool) -> str:
        return "dpmsolver" if last else "taylor"  # the second stage of DPM-Solver-3 integrates the line exactly


@solvers.register(
    "dpmpp_2s",
    aliases=("dpm++2s",),
    kind="ODE/SDE",
    order=2,
    evaluations=2,
    native="x0",
    reference="Lu et al. 2022, arXiv:2211.01095, algorithm 1",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s phi1(h) x0_m, x0_m at the middle of the step in lam",
    note=f"mode=grid: the stages are the grid's nodes, 1 evaluation per interval; {APART}",
)
@dataclass(frozen=True)
class DPMpp2S(_TwoStages):
    """DPM-Solver++(2S): x0 at t and at the fraction r1 of the step in lam, interpolated linearly.

    x_s / alpha_s = e^-h x / alpha_t + phi1(h) x0 + w (x0_1 - x0) / r1, w = phi1(h) / 2 (``dpmsolver``) or phi2(h)
    (``taylor``). In ``mode="grid"``, eta > 0 solves the reverse SDE: H = (1 + eta^2) h replaces h, and each interval
    draws noise. Raises InputError for r1 outside (0, 1], or for eta without mode=grid.
    """

    eta: NonNegative = 0.0
    kind: ClassVar[Kind] = "x0"


@solvers.register(
    "dpmpp_3s",
    aliases=("dpm++3s",),
    kind="ODE/SDE",
    order=3,
    evaluations=3,
    native="x0",
    reference="Lu et al. 2022, arXiv:2211.01095, appendix B; the stages of arXiv:2206.00927, algorithm 2",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s (phi1(h) x0 + phi2(h) (x0_2 - x0) / r2)",
    equals=("res_3s(c2=0.3333333333333333, c3=0.6666666666666666)",),
    note="mode=grid: the stages are the grid's nodes, 1 evaluation per interval; the last intervals limit the order to "
    "2; " + APART + "; variant=flipped reproduces a defect of a released library and does not converge",
)
@dataclass(frozen=True)
class DPMpp3S(_ThreeStages):
    """DPM-Solver++(3S): x0 at t and at the fractions r1 and r2 of the step in lam.

    ``dpmsolver`` integrates the line through x0 and x0_2, ``taylor`` the parabola through all three. Both have order 3
    at r2 = 2/3 and order 2 at any other r2. In ``mode="grid"``, the second interval of a group is ``dpmpp_2s``'s of the
    same variant; with ``published`` it is stage 2 of the paper's step, and the group is that step. eta > 0 then solves
    the reverse SDE: H = (1 + eta^2) h replaces h, and each interval draws noise. ``flipped``, for the reverse SDE only,
    is ``taylor`` with a wrong sign, as one library released it; it does not converge. Raises InputError unless
    0 < r1 < r2 <= 1, for eta without mode=grid, or for flipped without eta.
    """

    variant: Literal["dpmsolver", "taylor", "published", "flipped"] = "dpmsolver"  # type: ignore[assignment]
    eta: NonNegative = 0.0
    kind: ClassVar[Kind] = "x0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "flipped" and not self.eta:
            raise InputError("dpmpp_3s: variant=flipped requires mode=grid and eta > 0; use variant=taylor")

    @property
    def order(self) -> float:
        # flipped: weights of size 1 multiply a difference of stages with independent noise, of size sqrt(h)
        return 0 if self.variant == "flipped" else super().order
