"""The result of a kind of attack: how many were tried, and which succeeded."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The attacks of one kind.

    Attributes:
        kind: what was attacked and how.
        tried: attacks that took place, such as kills of a process that was still running.
        failures: one line for each that succeeded.
        ends: how often each end was seen, such as "refused" and "value" for hostile files.
        seconds: wall time.
    """

    kind: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter, repr=False)

    def done(self) -> Tally:
        """The tally, with its time."""
        self.seconds = time.perf_counter() - self.began
        return self

    def row(self) -> dict[str, object]:
        """The row of a result file."""
        return {
            "kind": self.kind,
            "tried": self.tried,
            "survived": self.tried - len(self.failures),
            "failures": self.failures,
            "ends": dict(sorted(self.ends.items())),
            "seconds": round(self.seconds, 1),
        }

    def check(self, least: int = 1) -> None:
        """Asserts that no attack succeeded, and that so many took place."""
        assert not self.failures, "\n".join([f"{self.kind}: {len(self.failures)} of {self.tried}", *self.failures[:5]])
        assert self.tried >= least, f"{self.kind}: only {self.tried} attacks took place"
