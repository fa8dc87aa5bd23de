"""All that changes in a training, as a checkpoint and from one, in one process or in several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from solvers import InputError

from . import checkpoint
from .averages import Averages
from .checkpoint import AverageState, Checkpoint
from .optimiser import Optimiser
from .processes import Processes
from .weights import load_state, state_of


@dataclass(frozen=True, eq=False)
class State:
    """All that changes in a training, in addition to the number of updates.

    Attributes:
        network: the network that is trained.
        learned: what the loss learns or remembers; None if that is nothing.
        optimiser: the optimiser of both.
        averages: the averages of the network.
    """

    network: nn.Module
    learned: nn.Module | None
    optimiser: Optimiser
    averages: Averages

    def saved(self, step: int) -> Checkpoint:
        """The state after ``step`` updates."""
        others = {"scaler": self.optimiser.scales()}
        if self.learned is not None:
            others["loss"] = self.learned.state_dict()
        return Checkpoint(
            step=step,
            model=state_of(self.network, self.optimiser.masters),
            averages=self.averages.states(),
            optimizer=self.optimiser.moments(),
            others={name: tensors for name, tensors in others.items() if tensors},
        )

    def load(self, folder: str, saved: Checkpoint) -> None:
        """Replaces the state by a saved one.

        Args:
            folder: the folder of the checkpoint, for messages.
            saved: its content.

        Raises:
            InputError: it is the state of a different network or loss.
        """
        try:
            load_state(self.network, saved.model, self.optimiser.masters)
            self.averages.load(saved.averages)
            self.optimiser.load(saved.optimizer, saved.others.get("scaler", {}), saved.step)
            if self.learned is not None:
                self.learned.load_state_dict(dict(saved.others.get("loss", {})))
        except InputError as error:
            raise InputError(f"cannot resume from {folder!r}: {error}") from None
        except (RuntimeError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())
            raise InputError(f"{folder!r} is a checkpoint of a different network: {line[:200]}") from None


def last_of(workdir: Path, steps: int, processes: Processes) -> tuple[str, Checkpoint] | None:
    """The folder and the content of a run's last checkpoint, which the main process reads for all; None without one.

    Raises:
        InputError: it is damaged, or past ``steps`` updates.
    """
    found = processes.each(lambda: _read(workdir, steps) if processes.main else None)
    if processes.count == 1:
        return found
    facts, groups = None, dict[str, Mapping[str, Tensor]]()
    if found is not None:
        folder, saved = found
        specs = [(spec, average.updates) for spec, average in saved.averages.items()]
        facts = (folder, saved.step, specs, list(saved.others))
        groups = {"model": saved.model, "optimizer": saved.optimizer}
        groups |= {f"average {spec}": average.tensors for spec, average in saved.averages.items()}
        groups |= {f"other {name}": tensors for name, tensors in saved.others.items()}
    facts, groups = processes.shared(facts, groups)
    if facts is None:
        return None
    folder, step, specs, names = facts
    averages = {spec: AverageState(updates, groups[f"average {spec}"]) for spec, updates in specs}
    others = {name: groups[f"other {name}"] for name in names}
    return folder, Checkpoint(step, groups["model"], averages, groups["optimizer"], others)


def _read(workdir: Path, steps: int) -> tuple[str, Checkpoint] | None:
    folder = checkpoint.latest(workdir)
    if folder is None:
        return None
    try:
        saved = checkpoint.load(folder)
    except InputError as error:
        raise InputError(f"cannot resume: {error}; remove {folder.name} to resume from the one before") from None
    if saved.step > steps:
        raise InputError(f"{str(folder)!r} is already past steps={steps}")
    return str(folder), saved
