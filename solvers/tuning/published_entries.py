"""The numbers and settings of another project's table, checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..errors import InputError, number, shown

Numbers = np.ndarray[Any, np.dtype[np.float64]]

# the names by which a kind is recognised, and where its loop is defined
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "amed": (("r",), "Zhou et al. 2024, arXiv:2312.00094, section 3"),
    "dyweight": (("hybrid_weights",), "Zhao et al. 2026, arXiv:2603.11607, section 3"),
    "epd": (("r_params", "weight_s"), "Zhu et al. 2025, arXiv:2507.14797, section 3"),
    "gits": (("t_steps",), "Chen et al. 2024, arXiv:2405.11326, section 4"),
    "ld3": (("best_t_steps",), "Tong et al. 2024, arXiv:2405.15506, section 4"),
}
SETTINGS = (
    *("afs", "fcn", "num_steps", "sampler_stu", "scale_dir", "scale_time"),
    *("schedule_rho", "schedule_type", "sigma_max", "sigma_min", "t_steps"),
)
_LAST = 1e-3  # the last time of VP in these projects
_LARGEST = 1000  # steps; the largest published table has 20


class Entries:
    """The numbers and settings of a file, checked as they are read.

    Attributes:
        used: the settings that were read.
        assumed: the names of those that were not there, whose values are defaults.
    """

    def __init__(self, kind: str, entries: Mapping[str, Any]) -> None:
        self.kind = kind
        self.entries = {str(name).removeprefix("module."): value for name, value in entries.items()}
        self.used: dict[str, Any] = {}
        self.assumed: list[str] = []

    def need(self, *choices: str) -> str:
        """The first of the names that is there."""
        for name in choices:
            if self.entries.get(name) is not None:
                return name
        there = ", ".join(sorted(name for name, value in self.entries.items() if value is not None)[:8]) or "nothing"
        other = [kind for kind, (names, _) in KINDS.items() if all(name in self.entries for name in names)]
        tail = f"; this looks like a table of {other[0]}" if other and other[0] != self.kind else ""
        raise InputError(f"a table of {self.kind} has {' or '.join(choices)}, and this one has {there}{tail}")

    def array(self, name: str, *shape: int | None) -> Numbers:
        """An array of a shape, None for any length from 1 to ``_LARGEST``; a scale may also be a flat list."""
        value = self.entries[name]
        try:
            found = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value).astype(np.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise InputError(f"{name} of a table of {self.kind} is not an array of numbers") from None
        fits = found.ndim == len(shape) and all(
            1 <= n <= _LARGEST if known is None else n == known for n, known in zip(found.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("N" if n is None else str(n) for n in shape)
            raise InputError(f"{name} of a table of {self.kind} has the shape ({wanted}), and this one {found.shape}")
        if not np.isfinite(found).all():
            raise InputError(f"{name} of a table of {self.kind} has numbers that are not finite")
        return found

    def number(self, name: str, default: float | None = None, low: float = 0.0) -> float:
        """A setting that is a finite number from ``low`` on."""
        made = number(f"the setting {name}", self._setting(name, default, "VALUE"))
        if not low <= made < math.inf:
            raise InputError(f"the setting {name} must be a finite number from {low:g} on, got {made:g}")
        self.used[name] = made
        return made

    def flag(self, name: str, default: bool | None) -> bool:
        """A setting that is true or false."""
        value = self._setting(name, default, "true or =false")
        if not isinstance(value, (bool, int, np.bool_)) or value not in (True, False):
            raise InputError(f"the setting {name} must be true or false, got {shown(value)}")
        self.used[name] = bool(value)
        return bool(value)

    def word(self, name: str, default: str) -> str:
        """A setting that is a text."""
        value = self._setting(name, default, "VALUE")
        if not isinstance(value, str):
            raise InputError(f"the setting {name} must be a text, got {shown(value)}")
        self.used[name] = value
        return value

    def _setting(self, name: str, default: Any, example: str) -> Any:
        value = self.entries.get(name)
        if value is not None:
            return value
        if default is None:
            raise InputError(f"the numbers of a table of {self.kind} need the setting {name}: add {name}={example}")
        self.assumed.append(name)
        return default

    def times(self, steps: int | None) -> list[float]:
        """The nodes' times, steps + 1: those in the entries, or those of a schedule."""
        if self.entries.get("t_steps") is not None:
            found = self.array("t_steps", None if steps is None else steps + 1).tolist()
            self.used["t_steps"] = found
            return self.falling(found)
        if steps is None:
            self.need("t_steps")
        assert steps is not None
        if self.entries.get("num_steps") is not None and self.number("num_steps") != steps + 1:
            raise InputError(f"num_steps={self.used['num_steps']:g} does not suit the numbers of {steps} steps")
        return self.falling(self._placed(steps))

    def _placed(self, steps: int) -> list[float]:
        """The times of a schedule by name.

        ``polynomial``: Karras et al. 2022, arXiv:2206.00364, eq. 5. ``logsnr``: log t in equal steps. ``time_uniform``:
        t = (e^{beta_d u^2 / 2 + beta_min u} - 1)^{1/2} of a VP path (table 1 there), u^{1/rho} in equal steps from 1 to
        0.001^{1/rho}, where beta_d and beta_min follow from sigma_max and sigma_min at the ends.
        """
        kind = self.word("schedule_type", "polynomial")
        if kind not in ("polynomial", "logsnr", "time_uniform"):
            raise InputError(
                f"the nodes of schedule_type={shown(kind)} depend on the network: add t_steps=[...], its {steps + 1} "
                "times; polynomial, logsnr and time_uniform need none"
            )
        high, low = self.number("sigma_max", 80.0, 1e-12), self.number("sigma_min", 0.002, 1e-12)
        share = np.arange(steps + 1) / steps
        if kind == "logsnr":
            times = np.exp(math.log(high) + share * math.log(low / high))
        else:
            power = 1 / self.number("schedule_rho", 7.0, 1e-3)
            if kind == "polynomial":
                times = (high**power + share * (low**power - high**power)) ** (1 / power)
            else:
                u = (1 + share * (_LAST**power - 1)) ** (1 / power)
                whole, least = math.log1p(high**2), math.log1p(low**2)  # the integrals of beta up to 1 and _LAST
                slope = 2 * (least / _LAST - whole) / (_LAST - 1)
                times = np.sqrt(np.expm1(slope / 2 * u**2 + (whole - slope / 2) * u))
        return [high, *times[1:-1].tolist(), low]

    def falling(self, times: Sequence[float]) -> list[float]:
        if len(times) < 2 or times[-1] < 0 or any(s >= t for t, s in pairwise(times)):
            raise InputError(
                f"the times of a table of {self.kind} must be positive and decrease, got {list(times)[:6]}"
            )
        return list(times)
