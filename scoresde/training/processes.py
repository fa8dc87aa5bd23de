"""The processes that train one network together: which rows each computes, and what they agree on.

A launcher (``accelerate launch``, ``torchrun``) starts the processes and tells each its place. accelerate reads that,
connects them (gloo on CPUs, nccl on GPUs), chooses each its device, and wraps the network so that their gradients are
averaged. A process without a launcher is alone: then there is nothing to connect or to wrap, and accelerate is not
imported.

What one process finds out alone, such as a file that it cannot read, ends all of them: each waits for the others, and a
process that leaves without a word would keep the others waiting.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from solvers import InputError

from ..io.result_files import exclusive

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torch's launcher, of MPI's
T = TypeVar("T")
F = TypeVar("F")
_PATIENCE = timedelta(hours=2)  # how long a process waits for another, which may evaluate or write meanwhile


class Elsewhere(InputError):
    """Another process of the same training reports an error; that process says which."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as one of them sees them.

    Attributes:
        index: the number of this process, from 0.
        count: how many there are.
        accelerator: accelerate's object; None for a process that is alone.
    """

    index: int = 0
    count: int = 1
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Whether this is process 0, which alone writes files and lines."""
        return self.index == 0

    def places(self, batch: int) -> range:
        """The places in a batch of the rows that this process computes: every ``count``-th."""
        return range(self.index, batch, self.count)

    def wrapped(self, module: nn.Module, unused: bool) -> nn.Module:
        """The module as it is called in training: it averages the gradients of all processes during backward.

        Args:
            module: what returns the loss.
            unused: it has parameters on which the loss does not depend.
        """
        if self.count == 1:
            return module
        self.accelerator.ddp_handler.find_unused_parameters = unused
        made: nn.Module = self.accelerator.prepare_model(module)
        return made

    def without_exchange(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A block in which a backward pass keeps its gradients to itself, because more are to be added."""
        if self.count == 1:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(module)  # type: ignore[no-any-return]

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """A block in which an error of the connection is reported in words.

        Raises:
            InputError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            words = ("gloo", "nccl", "connection", "process group", "processgroup")
            if self.count == 1 or not any(word in str(error).lower() for word in words):
                raise
            raise InputError(
                f"process {self.index} of {self.count} lost another, which has ended (a process that is killed, as "
                "when memory is short, says nothing); the same command resumes"
            ) from error

    def each(self, act: Callable[[], T]) -> T:
        """Calls a function in every process; if it fails in one, it fails in all.

        Raises:
            Elsewhere: it failed in another process.
        """
        if self.count == 1:
            return act()
        error, result = None, None
        try:
            result = act()
        except Exception as found:
            error = found
        said: list[str | None] = [None] * self.count
        torch.distributed.all_gather_object(said, None if error is None else f"{type(error).__name__}: {error}")
        first = next((index for index, text in enumerate(said) if text is not None), None)
        if first is not None:
            if error is not None and first == self.index:
                raise error
            raise Elsewhere(f"process {first} of {self.count} ended: {said[first]}")
        return result  # type: ignore[return-value]

    def first(self, act: Callable[[], object]) -> None:
        """Calls a function in the main process, for which the others wait; if it fails, all fail.

        Raises:
            Elsewhere: it failed, and this is another process.
        """
        self.each(act if self.main else lambda: None)

    def shared(self, facts: F, groups: Mapping[str, Mapping[str, Tensor]]) -> tuple[F, dict[str, Mapping[str, Tensor]]]:
        """What the main process passes: plain facts, and groups of tensors by name, on the CPU of every process."""
        if self.count == 1:
            return facts, dict(groups)
        shapes = {group: {n: (t.shape, t.dtype) for n, t in tensors.items()} for group, tensors in groups.items()}
        plain = [facts, shapes]
        torch.distributed.broadcast_object_list(plain)
        found: dict[str, Mapping[str, Tensor]] = {}
        for group, forms in plain[1].items():  # type: ignore[attr-defined]
            found[group] = {name: self._tensor(groups.get(group, {}).get(name), *form) for name, form in forms.items()}
        return plain[0], found  # type: ignore[return-value]

    def _tensor(self, given: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        device = self.accelerator.device
        tensor = given.to(device) if self.main and given is not None else torch.empty(shape, dtype=dtype, device=device)
        torch.distributed.broadcast(tensor, 0)
        return tensor.cpu()

    @contextlib.contextmanager
    def holding(self, folder: Path) -> Iterator[None]:
        """A block in which these processes hold a folder, see ``result_files.exclusive``.

        Raises:
            InputError: others hold it, or it cannot be written to.
        """
        with contextlib.ExitStack() as held:
            self.first(lambda: held.enter_context(exclusive(folder)))
            yield

    def refuse_more_than(self, samples: int, what: str) -> None:
        """Refuses to share out fewer samples than there are processes.

        Raises:
            InputError: there are more processes than samples.
        """
        if self.count > samples:
            raise InputError(
                f"{self.count} processes were launched for {what} {samples} sample{'s' * (samples != 1)}: launch fewer "
                "(--num_processes of accelerate launch, --nproc-per-node of torchrun)"
            )


@contextlib.contextmanager
def launched(device: torch.device | str, precision: str | None = None) -> Iterator[Processes]:
    """A block in which this process is connected with the others of its launcher; without a launcher it is alone.

    Afterwards the processes are disconnected, if it was this block that connected them.

    Args:
        device: where the network is trained; with "cuda", each process takes the GPU of its number on its machine.
        precision: that of the training, which a launcher's own setting must not contradict.

    Raises:
        InputError: the launcher started processes that cannot be connected on such a device.
    """
    count, device = _count(), torch.device(device)
    if count == 1:
        yield Processes()
        return
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import InitProcessGroupKwargs

    _say_if_other(precision)
    there, connected = _states(), torch.distributed.is_initialized()
    handlers = [InitProcessGroupKwargs(timeout=_PATIENCE), DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    try:
        made = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"the {count} processes of the launcher cannot be connected: {line}") from error
    if made.num_processes != count:
        raise InputError(f"the launcher started {count} processes, which cannot train together on {device.type}")
    if str(made.distributed_type.value) not in ("MULTI_CPU", "MULTI_GPU"):
        raise InputError(
            f"the launcher's {made.distributed_type.value} is not supported: use several processes on CPUs or GPUs, "
            "without sharding the weights"
        )
    try:
        yield Processes(made.process_index, count, made)
    finally:
        if not connected and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for state, content in zip((PartialState, AcceleratorState, GradientState), there, strict=True):
            state._shared_state.clear()
            state._shared_state.update(content)


def _count() -> int:
    """How many processes the launcher of this one started; 1 without a launcher."""
    found = [(name, os.environ[name]) for name in _SIZES if name in os.environ]
    if not found:
        return 1
    try:
        return max(1, int(found[0][1]))
    except ValueError:
        raise InputError(f"{found[0][0]}, which a launcher sets, is {found[0][1]!r}, no number of processes") from None


def _states() -> list[dict[str, Any]]:
    """What accelerate remembers of an earlier use in this process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    return [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)]


def _say_if_other(precision: str | None) -> None:
    """Warns of a precision that the launcher was given, because only the one of the options counts."""
    names = {"no": "float32"}
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision is not None and names.get(wanted, wanted) not in ("float32", precision):
        warnings.warn(
            f"the launcher's mixed precision {wanted} is not used: the training's precision is {precision}",
            stacklevel=3,
        )
