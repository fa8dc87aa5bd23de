"""Scoring a data set: the likelihood of each shard is computed and saved, then the shards are joined and written.

A shard is a batch of ``likelihood.batch_size`` samples; when it is done it is a file such as ``shards/00003.npz``. The
seed of a sample is its index in the split. The value of a sample therefore does not depend on interruptions or on the
process that computes it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from solvers import InputError, grids, make, resolve
from solvers.errors import positive_integer
from solvers.files import read_bytes, write_atomically
from solvers.libraries import without_traces
from solvers.registry.spec import Spec, parse

from ..bounds.chain import chain_bound
from ..bounds.continuous import continuous_bound
from ..bounds.decoders import Discretised
from ..data.dataset import DataCard
from ..io.progress import bar as progress_bar
from ..io.result_files import environment, fingerprint, write_arrays, write_json
from ..likelihood.dequantisation import dequantisers
from ..likelihood.divergence import divergences
from ..likelihood.inputs import deterministic, positive
from ..likelihood.log_prob import GRID, default_solver, dequantise, log_prob
from ..likelihood.result import LogProb, error_of_mean, uncertainty
from ..models.discrete.denoiser import DiscreteDenoiser
from ..sampling.batches import batches_of
from ..sampling.failures import report
from . import build, discrete
from .config import flat
from .run import Run
from .shards import join, read_shard, refuse_other_evaluation, refuse_other_parts, write_shard

COSTS = ("nfe", "forwards", "vjps", "calls", "seconds")  # of a result
# the fields of the config that decide a value; all others act through the weights
_DECIDES = ("sde", "process", "model", "likelihood", "device", "data.dequantise")


class Unfinished(NamedTuple):
    """How many of an evaluation's shards are done, while shards of other processes are missing."""

    done: int
    total: int


def evaluate(
    run: Run,
    x: Tensor,
    split: str,
    folder: Path | None = None,
    share: tuple[int, int] = (1, 1),
    conditions: Mapping[str, Tensor] | None = None,
    ode: bool = True,
) -> dict[str, LogProb] | Unfinished:
    """Computes the likelihood of data (N, *) with a run's ``likelihood`` section.

    Args:
        folder: a folder that stores the shards; existing shards of the same evaluation are not computed again.
        share: (k, n): compute only every n-th shard, from the k-th.
        conditions: the conditions of the data, each (N, *).
        ode: whether to solve the ODE; without it, the config names a bound, which alone is computed.

    Returns:
        The likelihood of all samples in order, under ``ode``, and the bound under ``bound`` if there is one;
        ``Unfinished`` while shards of others are missing.

    Raises:
        InputError: see ``log_prob``; also data outside the model's levels, and shards of a different evaluation.
    """
    options = options_of(run) if ode else None
    facts = facts_of(run, x, split, conditions) | ({} if ode else {"the ODE": "not solved"})
    check_range(x, run.card, split)
    shards = dict(enumerate(batches_of(len(x), run.config.likelihood.batch_size)))
    done: dict[int, dict[str, LogProb]] = {}
    if folder is not None:
        folder.mkdir(exist_ok=True)
        refuse_other_evaluation(folder, facts)
    elif share != (1, 1):
        raise InputError("processes that share the shards need a folder for them")
    files = {} if folder is None else {k: folder / f"{k:05d}.npz" for k in shards}
    mine = [k for k in shards if k % share[1] == share[0] - 1]
    kept = [k for k in mine if k in files and files[k].exists()]
    sizes = {k: rows.stop - rows.start for k, rows in shards.items()}
    total, before = sum(sizes[k] for k in mine), sum(sizes[k] for k in kept)
    try:
        with progress_bar(total=total, initial=before, desc=f"{split} samples") as bar:
            for k in mine:
                if k not in kept:
                    done[k] = _values(run, x, shards[k], options, conditions or {})
                    if folder is not None:
                        write_shard(files[k], facts, shards[k], done[k])
                    bar.update(sizes[k])
    except KeyboardInterrupt:
        there = sum(file.exists() for file in files.values())
        note = f"{there} of {len(shards)} shards are in {folder}; the same command resumes" if there else ""
        raise KeyboardInterrupt(note) from None
    missing = [k for k in shards if k not in done and not (k in files and files[k].exists())]
    if missing:
        return Unfinished(len(shards) - len(missing), len(shards))
    whole = [done[k] if k in done else read_shard(files[k], facts, shards[k]) for k in shards]
    refuse_other_parts([files.get(k) for k in shards], whole)
    found = {name: join([shard[name] for shard in whole]) for name in whole[0]}
    for result in found.values():
        report(result.failures, len(x), "warn", f"{result.solver} on {result.grid}")
    return found


def summary(run: Run, x: Tensor, split: str, found: Mapping[str, LogProb]) -> str:
    """The results of ``evaluate`` as text."""
    with without_traces():
        from ..show.likelihood_page import block  # here, so that only those who draw wait for matplotlib

    result, bound = _main_of(found)
    return "\n".join([_title(run, x, split), block(result), *([] if bound is None else [str(bound)])])


def _main_of(found: Mapping[str, LogProb]) -> tuple[LogProb, LogProb | None]:
    """The likelihood, and the bound as well if there is one; of discrete states the bound alone."""
    return (found["ode"], found.get("bound")) if "ode" in found else (found["bound"], None)


def write_results(
    out: Path,
    run: Run,
    x: Tensor,
    split: str,
    found: Mapping[str, LogProb],
    command: str,
    conditions: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the results of ``evaluate`` on data x (N, *): likelihood.npz, .json and .html in the folder ``out``."""
    with without_traces():
        from ..show.likelihood_page import page

    result, bound = _main_of(found)
    write_arrays(out / "likelihood.npz", latent=result.latent, **_arrays(result, bound))
    kept = result.finite
    known = _arrays(kept, None if bound is None else bound.finite)  # for the statistics
    document = {
        "command": command,
        "split": split,
        "samples": len(x),
        "failures": [failure._asdict() for failure in result.failures],
        **{name: getattr(result, name) for name in ("kind", "density", "solver", "grid", "divergence", *COSTS)},
        "means": {name: _plain(value.double().mean()) for name, value in known.items()},
        "standard_errors": {name: _plain(error_of_mean(value)) for name, value in known.items()},
        "solver_error_max": None if kept.solver_error is None else _plain(kept.solver_error.max()),
        "uncertainty": {name: _plain(value) for name, value in uncertainty(result).items()},
        "bound": None if bound is None else {"kernel": bound.solver, **{name: getattr(bound, name) for name in COSTS}},
        "evaluation": facts_of(run, x, split, conditions),
        "step": run.step,
        "average": run.average and run.average.facts(),
        "config": run.config.to_dict(),
        "environment": environment(build.device_of(run.config)),
    }
    write_json(out / "likelihood.json", document)
    html = page(_title(run, x, split), summary(run, x, split, found), found, x, run.card, document)
    write_atomically(out / "likelihood.html", html)


def _title(run: Run, x: Tensor, split: str) -> str:
    return f"{run.config.data.name} {split}: {len(x)} samples, step {run.step}"


def options_of(run: Run) -> dict[str, Any]:
    """A run's ``likelihood`` section as arguments of ``log_prob``, or of ``discrete_bound`` for discrete states.

    Without a bin width there is no dequantiser.

    Raises:
        InputError: an unknown name, a tolerance that is not positive, or draws that are not a positive integer; see
            also ``scoresde.plan``.
    """
    with run.origin.limits():
        return _options_of(run)


def _options_of(run: Run) -> dict[str, Any]:
    if isinstance(run.denoiser, DiscreteDenoiser):
        return discrete.bound_options(run.config)
    section, width = run.config.likelihood, run.card.bin_width
    draws = positive_integer("likelihood.draws", section.draws)
    noise = dequantisers.make(section.dequantiser)
    check_bound(section.bound)
    options: dict[str, Any] = {
        "divergence": section.divergence and divergences.make(section.divergence),
        "bin_width": width,
        "dequantiser": None if width is None else noise,
        "draws": draws,
    }
    if section.tolerance is not None:  # which includes the solver error
        if section.steps is not None:
            raise InputError("likelihood.tolerance chooses the steps: leave out likelihood.steps")
        tolerance = positive("tolerance", section.tolerance)
        solver = section.solver and make(resolve(section.solver)[0])
        grid = section.grid and grids.make(section.grid)
        return {**options, "solver": solver, "grid": grid, "nfe": section.nfe, "tolerance": tolerance}
    default = default_solver(section.steps, section.nfe), GRID
    deterministic(section.solver or default[0])  # first, so that this error comes before one about steps
    plan = build.plan_of(run.denoiser, section, default, end_at_t_min=True)
    return {**options, "plan": plan, "error": section.error}


def check_bound(bound: str | None) -> None:
    """Checks the name of a bound.

    Raises:
        InputError: the name is neither ``continuous`` nor a solver.
    """
    if bound in (None, "continuous"):
        return
    try:
        make(bound)
    except InputError as error:
        raise InputError(
            f"likelihood.bound must be continuous, or an ancestral solver such as ddpm(variance=beta): {error}"
        ) from None


def facts_of(run: Run, x: Tensor, split: str, conditions: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Everything that decides the values, as plain JSON types."""
    network = run.denoiser.network
    assert isinstance(network, nn.Module)
    with run.origin.limits():
        noise = dequantisers.make(run.config.likelihood.dequantiser).network
    versions = environment()
    given = {n: v for n, v in flat(run.config.to_dict()) if n in _DECIDES or n.partition(".")[0] in _DECIDES}
    named = {path for value in given.values() if isinstance(value, str) for path in files_in(value)}
    facts = {
        "the checkpoint's step": run.step,
        "the weights": weights_of(network),
        **({"the dequantiser's weights": weights_of(noise)} if noise is not None else {}),
        "the split": split,
        "the number of samples": len(x),
        "the data": fingerprint(x),
        **{f"the condition {name}": fingerprint(rows) for name, rows in sorted((conditions or {}).items())},
        "the bin width": run.card.bin_width,
        "the levels' range": [run.card.low, run.card.high],
        **given,
        **{f"the content of {path}": _content(path) for path in sorted(named)},
        "scoresde": versions["scoresde"],
        "torch": versions["torch"],
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def files_in(text: str) -> list[str]:
    """The files that a spec names: those of ``file:PATH``, and those that are an option ``path`` or have no option.

    >>> import solvers
    >>> path = solvers.__file__
    >>> files_in("karras(rho=7)"), files_in(f"file:{path}") == files_in(f"pc(predictor=file(path={path!r}))") == [path]
    ([], True)
    """
    prefix, _, path = text.strip().partition(":")
    if prefix == "file" and os.path.isfile(path):
        return [path]
    try:
        return _files_of(parse(text), "")
    except InputError:  # a label of another program, which names no file
        return []


def _files_of(value: Any, option: str) -> list[str]:
    if isinstance(value, Spec):
        given = [*(("path", part) for part in value.args), *value.kwargs]
        return [path for name, part in given for path in _files_of(part, name)]
    if isinstance(value, tuple):
        return [path for part in value for path in _files_of(part, option)]
    if not isinstance(value, str):
        return []
    return [value] if option == "path" and os.path.isfile(value) else files_in(value)


def _content(path: str) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]


def weights_of(module: nn.Module) -> str:
    """A fingerprint of a network's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {fingerprint(value)} ".encode())
    return found.hexdigest()[:16]


def check_range(x: Tensor, card: DataCard, split: str) -> None:
    """Rejects discrete data (N, *) outside the range of the model's levels.

    Raises:
        InputError: a number is more than half a bin below the lowest or above the highest level.
    """
    if card.bin_width is None:
        return
    low, high, half = float(x.min()), float(x.max()), 0.5 * card.bin_width
    if low < card.low - half or high > card.high + half:
        raise InputError(
            f"the {split} data range from {low:g} to {high:g}, but the model's levels, {card.bin_width:g} apart, from "
            f"{card.low:g} to {card.high:g}: scale the data like the training data"
        )


def _values(
    run: Run, x: Tensor, rows: slice, options: Mapping[str, Any] | None, conditions: Mapping[str, Tensor]
) -> dict[str, LogProb]:
    """The likelihood of some samples, unless there are no ``options``, and the bound if the config names one."""
    part, seeds = x[rows].to(build.device_of(run.config)), range(rows.start, rows.stop)
    given = {name: value[rows] for name, value in conditions.items()}
    if isinstance(run.denoiser, DiscreteDenoiser):
        return {"bound": discrete.bound_of(run.denoiser, part, seeds, given, options or {}, run.card, progress=True)}
    began, found = time.perf_counter(), dict[str, LogProb]()
    if options is not None:
        result = log_prob(run.denoiser, part, seeds=seeds, condition=given, **options, progress=True, on_failure="keep")
        found["ode"] = replace(result, seconds=time.perf_counter() - began)  # includes the trials of a tolerance
    bound = bound_of(run, part, seeds, given)
    return found if bound is None else {**found, "bound": bound}


def bound_of(
    run: Run, x: Tensor, seeds: Sequence[int], conditions: Mapping[str, Tensor] | None = None
) -> LogProb | None:
    """The bound that a run's ``likelihood.bound`` names, or None: of the reverse chain, or ``continuous``."""
    options, width = run.config.likelihood, run.card.bin_width
    if options.bound is None:
        return None
    decoder = build.build_decoder(run.config, run.card)
    spread = width is not None and not isinstance(decoder, Discretised)
    data = dequantise(x, width, seeds) if spread and width is not None else x
    shared: dict[str, Any] = {"decoder": decoder, "bin_width": width, "seeds": seeds, "progress": True}
    shared |= {"on_failure": "keep", "condition": conditions}
    if options.bound == "continuous":
        return continuous_bound(run.denoiser, data, draws=options.bound_indices or 128, **shared)
    with run.origin.limits():
        kernel = make(options.bound)
    return chain_bound(run.denoiser, data, kernel, indices=options.bound_indices, **shared)


def _arrays(result: LogProb, bound: LogProb | None = None) -> dict[str, Tensor]:
    """The parts of a result, and of a bound, that are one number per sample."""
    arrays = {"nats": result.nats, "stderr": result.stderr, **result.budget}
    arrays |= {"nfe": result.nfe_per_sample} if result.nfe_per_sample is not None else {}
    arrays |= {"solver_error": result.solver_error} if result.solver_error is not None else {}
    arrays |= {"bits_per_dim": result.bits_per_dim} if result.bin_width is not None else {}
    return arrays | {f"bound_{name}": value for name, value in (_arrays(bound) if bound else {}).items()}


def _plain(value: Tensor | float) -> float | None:
    return float(value) if math.isfinite(value) else None
