"""Conditions: what a network receives in addition to the sample and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from solvers import InputError
from solvers.errors import positive_integer, unknown

if TYPE_CHECKING:
    from solvers.noise.draws import Draws

KINDS = ("class", "vector", "image", "tokens")
_TAKEN = ("x",)  # the argument that every network has


@dataclass(frozen=True)
class Condition:
    """What a condition is. Its rows enter the network as the argument ``name``.

    A row may be empty, for samples without the condition: the class ``classes``, or numbers that are all NaN.

    Attributes:
        name: the network's argument.
        kind: "class", integers (B,) in 0 .. classes - 1; "vector", floats (B, n); "image", floats (B, C, *) of the
            height and width of the sample (of samples (C, L) or (d,), its length or no further dimension); "tokens",
            floats (B, L, n).
        shape: the shape of one row: () of a class.
        classes: how many classes there are; 0 for the other kinds.

    Raises:
        InputError: a name that is no argument of a function, an unknown kind, a shape that does not suit it, or no
            classes.
    """

    name: str
    kind: Literal["class", "vector", "image", "tokens"]
    shape: tuple[int, ...] = ()
    classes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of condition", self.kind, KINDS)
        if not (isinstance(self.name, str) and self.name.isidentifier()) or self.name in _TAKEN:
            raise InputError(f"a condition's name is an argument of the network other than x, got {self.name!r}")
        object.__setattr__(self, "shape", tuple(self.shape))
        lengths = {"class": (0,), "vector": (1,), "image": (1, 2, 3), "tokens": (2,)}[self.kind]
        if len(self.shape) not in lengths:
            raise InputError(
                f"the condition {self.name}: a row of the kind {self.kind} has {lengths[-1]} dimensions, "
                f"got the shape {self.shape}"
            )
        for length in self.shape:
            positive_integer(f"every length of the condition {self.name}", length)
        if self.kind == "class":
            positive_integer(f"the number of classes of {self.name}", self.classes)

    def __str__(self) -> str:
        """For people.

        >>> str(Condition("digit", "class", classes=10)), str(Condition("angle", "vector", (2,)))
        ('digit: 10 classes', 'angle: vector (2,)')
        """
        return (
            f"{self.name}: {self.classes} classes" if self.kind == "class" else f"{self.name}: {self.kind} {self.shape}"
        )

    def empty(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Rows (count, *) of samples without the condition.

        >>> Condition("digit", "class", classes=10).empty(2).tolist()
        [10, 10]
        """
        if self.kind == "class":
            return torch.full((count,), self.classes, dtype=torch.long, device=device)
        return torch.full((count, *self.shape), torch.nan, device=device)

    def emptied(self, rows: Tensor, where: Tensor) -> Tensor:
        """The rows (B, *), of which those at ``where`` (B,), booleans, are empty."""
        chosen = where.to(rows.device).view(-1, *(1,) * (rows.ndim - 1))
        return rows.masked_fill(chosen, self.classes if self.kind == "class" else torch.nan)

    def check(self, rows: Tensor) -> None:
        """Checks rows (B, *) of this condition; on a GPU this waits for the device.

        Raises:
            InputError: they have another shape or dtype; a class is outside 0 .. classes; a row is partly NaN, or
                infinite.
        """
        if tuple(rows.shape[1:]) != self.shape:
            raise InputError(f"the condition {self.name} has rows of shape {self.shape}, got {tuple(rows.shape[1:])}")
        if self.kind != "class":
            self._check_numbers(rows)
            return
        if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
            raise InputError(f"the condition {self.name} has whole numbers, the classes, got {rows.dtype}")
        outside = rows[(rows < 0) | (rows > self.classes)]
        if len(outside):
            raise InputError(
                f"the condition {self.name} has the classes 0 to {self.classes - 1}, and {self.classes} for no class; "
                f"got {int(outside[0])}"
            )

    def _check_numbers(self, rows: Tensor) -> None:
        if not rows.is_floating_point():
            raise InputError(f"the condition {self.name} has floats, got {rows.dtype}")
        flat = rows.flatten(1)
        bad = ~(flat.isfinite().all(1) | flat.isnan().all(1))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise InputError(
                f"row {row} of the condition {self.name} is not finite; only a row that is NaN throughout is empty"
            )


def check_conditions(given: Mapping[str, Tensor], known: Sequence[Condition]) -> None:
    """Checks that conditions are those that a network was made for.

    Raises:
        InputError: a name is missing or unknown; see also ``Condition.check``.
    """
    check_names(given, [condition.name for condition in known])
    for condition in known:
        condition.check(given[condition.name])


def check_names(given: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Checks that conditions have these names.

    Raises:
        InputError: a name is missing or unknown.
    """
    for name in given:
        if name not in names:
            raise unknown("condition of the network", name, names)
    for name in names:
        if name not in given:
            raise InputError(f"the network needs the condition {name!r}: pass condition={{{name!r}: ...}}")


def condition_of(name: str, rows: Tensor) -> Condition:
    """The condition that rows (N, *) look like: integers are classes from 0 to the largest; floats, by their shape, a
    vector (N, n), tokens (N, L, n) or an image (N, C, H, W).

    >>> str(condition_of("digit", torch.tensor([0, 9, 4]))), str(condition_of("angle", torch.zeros(3, 2)))
    ('digit: 10 classes', 'angle: vector (2,)')

    Raises:
        InputError: they look like none.
    """
    if rows.ndim == 1 and not rows.is_floating_point() and rows.dtype != torch.bool and int(rows.min()) >= 0:
        return Condition(name, "class", classes=int(rows.max()) + 1)
    kind: Literal["vector", "tokens", "image"] | None
    kind = {2: "vector", 3: "tokens", 4: "image"}.get(rows.ndim)  # type: ignore[assignment]
    if kind is None or not rows.is_floating_point():
        raise InputError(
            f"the condition {name} must have classes (N,) of at least 0, or floats (N, n), (N, L, n) or (N, C, H, W), "
            f"for dropout and noise; got {tuple(rows.shape)}, {rows.dtype}"
        )
    return Condition(name, kind, tuple(rows.shape[1:]))


def dropped(
    given: Mapping[str, Tensor], known: Sequence[Condition], probability: float, draws: Draws, each: float = 0.0
) -> dict[str, Tensor]:
    """The conditions (B, *) of a batch, of which each sample loses some with given probabilities.

    It loses all together with ``probability``, and each one alone with ``each``, independently. This trains a network
    with and without conditions, as classifier-free guidance needs (Ho and Salimans 2022, arXiv:2207.12598, algorithm
    1), and with some of several, as their composition does (Liu et al. 2022, arXiv:2206.01714). Each sample has numbers
    of its own in the stream "conditions" of ``draws``: the first is that of all together, and those of single
    conditions follow after the second.
    """
    if not (probability or each) or not known:
        return dict(given)
    numbers = draws.uniform("conditions", 2 + len(known) if each else 2)
    found, lost = dict(given), numbers[:, 0] < probability
    for i, c in enumerate(known):
        if c.name in given:
            found[c.name] = c.emptied(given[c.name], lost | (numbers[:, 2 + i] < each) if each else lost)
    return found
