"""Programs tuned on one model and run on others, and programs between neighbouring budgets:
python -m benchmarks.tuning.transfer --workdir=FOLDER

Three models (see tuned_programs.py): the exact scores of a mixture and of scikit-learn's digits, and the network that
``scoresde demo`` trains on the digits. ``solvers.tune_program`` tunes one program for each of them, on the VP path, at
5 and 8 evaluations, from ``gradient_estimation`` on its tuned grid. Programs of 5 and 8 evaluations then run on
the other models, and on the exact ones on other paths too, by ``Table.program``: VE and flow with the range of
sigma / alpha of VP. At 7 evaluations, one is interpolated between those of 6 and 8 of the same model: their nodes, and
what tuning has added to the solver's coefficients, by position; another one is tuned at 7 for comparison.

The error is the root-mean-square distance per coordinate to the solution of the probability-flow ODE, on held-out
seeds. Ratios, with 95 % intervals over the seeds, are to the program tuned on the model itself, and to the best untuned
solver and grid, chosen in hindsight on the same held-out seeds.

Writes transfer.json to benchmarks/tuning/results after every row, and continues where a run ended.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import scoresde
import solvers
from benchmarks.tuning.tuned_programs import Target, interval, model, references
from scoresde.io.result_files import environment, write_json
from scoresde.models.problem import Diffusion
from solvers import Program, Table
from solvers.tuning.samples import UNTUNED_GRIDS, UNTUNED_SOLVERS

RESULTS = Path(__file__).parent / "results" / "transfer.json"
SOLVER = "gradient_estimation"
TARGETS = (
    Target("mixture", (2048, 512, 2048), 384, 200, 256, 64),
    Target("digits", (384, 128, 256), 64, 150, 128, 48),
    Target("trained", (768, 256, 1024), 192, 200, 128, 64),
)
BETWEEN = ("mixture", "trained")  # the models on which programs are interpolated
VP = scoresde.VP()
RATIO = VP(VP.t_max).ratio
PATHS: dict[str, scoresde.SDE] = {
    "vp": VP,
    "ve": scoresde.VE(VP(VP.t_min).ratio, RATIO),
    "flow": scoresde.RectifiedFlow(t_min=1e-3, t_max=RATIO / (1 + RATIO)),
}


def tuned(target: Target, nfe: int, workdir: Path) -> dict[str, Any]:
    """The row of one tuning."""
    problem, known = references(target, workdir, None)
    part = solvers.Trajectory(known[0].schedule, known[0].nodes, known[0].states[:, : target.grid])
    grid = solvers.tune_grid(SOLVER, problem, nfe, part)
    found = solvers.tune_program(
        SOLVER, problem, nfe, known[0], validation=known[1], held_out=known[2], grid=grid.grid, batch=target.batch,
        iterations=target.iterations,
    )  # fmt: skip
    return {"seconds": found.costs.seconds, "program": json.loads(found.program.to_json())}


@cache
def on_path(target: Target, path: str, workdir: Path) -> tuple[Diffusion, solvers.Trajectory]:
    """The problem on a path, and its held-out reference; the starts x / alpha are those of VP."""
    sde, size = PATHS[path], 8 if target.name == "mixture" else 64
    problem = Diffusion(model(target.name, workdir, None, sde)[0])
    seeds = range(2_000_000, 2_000_000 + target.samples[2])
    y = VP.prior().std * solvers.SeededNoise(seeds, (size,), torch.float64).initial() / VP(VP.t_max).alpha
    return problem, solvers.trajectory(problem, y * sde(sde.t_max).alpha, sde, "logsnr(end=zero)", target.steps)


@cache
def untuned(target: Target, path: str, nfe: int, workdir: Path) -> tuple[str, Tensor]:
    """The untuned solver and grid with the least error, and its squares (B,)."""
    problem, held_out = on_path(target, path, workdir)
    found = {}
    for solver in UNTUNED_SOLVERS:
        for grid in UNTUNED_GRIDS:
            nodes = held_out.place(f"{grid}(end=zero)" if grid == "quadratic" else grid, nfe)
            found[f"{solver} on {grid}"] = held_out.errors(solver, problem, nodes)
    best = min(found, key=lambda name: float(found[name].mean()))
    return best, found[best]


def interpolated(fewer: Table, more: Table, path: scoresde.SDE) -> Table:
    """The table between one of N - 1 and one of N + 1 evaluations.

    Row n stands at the share n / (N - 1) of the rows with an evaluation; the last row stands alone. There log(sigma /
    alpha), and the differences from the solver's own coefficients on the same nodes, are the means of the two tables.
    A row is y_n = a_n y_{n-1} + b_n y + sum_l c_nl D_{n-l}, a_n = ratio_n / ratio_{n-1}; coefficients meet by their
    lag l.
    """
    count = fewer.nfe + 1
    share = np.linspace(0, 1, count)

    def at(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([np.interp(share, np.linspace(0, 1, len(values)), column) for column in values.T]).T

    def own(levels: Tensor) -> Table:
        nodes = [path.node_of_lam(-float(level.log())) for level in levels[1:]]
        return Table.of(solvers.trace(SOLVER, (path(path.t_max), *nodes, path.clean), path))

    def local(table: Table) -> np.ndarray[Any, Any]:
        rows = np.zeros((table.nfe, 1 + count))
        for n in range(1, table.nfe + 1):
            a = float(table.ratios[n] / table.ratios[n - 1])
            steps = table.weights[n] - a * table.weights[n - 1]
            rows[n - 1, 0] = table.start[n] - a * table.start[n - 1]
            lags = min(n, count)
            rows[n - 1, 1 : 1 + lags] = steps[:n].flip(0)[:lags]
        return rows

    def mean(parts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        return np.mean(parts, 0)  # type: ignore[no-any-return]

    pair = (fewer, more)
    ratios = torch.from_numpy(np.exp(mean([at(t.ratios[:-1].log().numpy()[:, None]) for t in pair])[:, 0]))
    shifts = mean([at((t.labels / t.ratios[:-1]).log().numpy()[:, None]) for t in pair])[:, 0]
    ratios[0] = RATIO
    gaps = [local(t) - local(own(t.ratios[:-1])) for t in pair]
    inner = mean([np.array([np.interp(share[1:], np.linspace(0, 1, t.nfe)[1:], c) for c in g[:-1].T]).T
                  for t, g in zip(pair, gaps, strict=True)])  # fmt: skip
    base = own(ratios)
    rows = local(base) + np.concatenate([inner, mean([g[-1:] for g in gaps])])
    start, weights = torch.ones(count + 1, dtype=torch.float64), torch.zeros(count + 1, count, dtype=torch.float64)
    start[0], weights[0] = base.start[0], base.weights[0]
    for n in range(1, count + 1):
        a = base.ratios[n] / base.ratios[n - 1]
        start[n], weights[n] = rows[n - 1, 0] + a * start[n - 1], a * weights[n - 1]
        for lag in range(1, n + 1):
            weights[n, n - lag] += rows[n - 1, lag]
    labels = ratios * torch.from_numpy(np.exp(shifts))
    low = np.exp(-path(path.t_min).lam)
    return Table(RATIO, torch.cat([ratios, base.ratios[-1:]]), labels.clamp(float(low), RATIO), start, weights)


def measured(table: Table, own: Table, target: Target, path: str, workdir: Path) -> dict[str, Any]:
    """The row of one table on one model and path, next to the one tuned on it and the best untuned solver."""
    problem, held_out = on_path(target, path, workdir)
    name, best = untuned(target, path, table.nfe, workdir)
    squares = []
    for one in (table, own):
        program = one.program(PATHS[path], problem.output or "x0")
        squares.append(held_out.squares(program.run(problem, held_out.states[0])))
    errors = [float(s.mean().sqrt()) for s in (*squares, best)]
    return {
        "error": errors[0], "tuned": errors[1], "untuned": errors[2], "best_untuned": name,
        "over_tuned": errors[0] / errors[1], "over_tuned_interval": interval(squares[0], squares[1]),
        "over_untuned": errors[0] / errors[2], "over_untuned_interval": interval(squares[0], best),
    }  # fmt: skip


def cases() -> list[tuple[str, str, str, int]]:
    """The rows: (source, target, path, NFE); the target of a tuning is ""."""
    names = [target.name for target in TARGETS]
    made = {nfe: [(name, "", "vp", nfe) for name in names] for nfe in (5, 8)}
    runs = {nfe: [(s, t, path, nfe) for s in names for t in names for path in PATHS if path == "vp" or t != "trained"]
            for nfe in (5, 8)}  # fmt: skip
    more = [(name, "", "vp", nfe) for name in BETWEEN for nfe in (6, 7)]
    return [*made[5], *runs[5], *made[8], *more, *((name, name, "vp", 7) for name in BETWEEN), *runs[8]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="where the network is trained, or was")
    workdir = parser.parse_args().workdir
    torch.set_num_threads(1)
    document: dict[str, Any] = {"rows": []}
    if RESULTS.exists():
        document = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = {(row["source"], row["target"], row["path"], row["nfe"]): row for row in document["rows"]}
    known = {target.name: target for target in TARGETS}

    def table(name: str, nfe: int) -> Table:
        return Table.of(Program.from_json(json.dumps(rows[name, "", "vp", nfe]["program"])))

    for key in tqdm([case for case in cases() if case not in rows]):
        source, target, path, nfe = key
        if not target:
            found = tuned(known[source], nfe, workdir)
        else:
            run = interpolated(table(source, 6), table(source, 8), VP) if nfe == 7 else table(source, nfe)
            found = measured(run, table(target, nfe), known[target], path, workdir)
        rows[key] = {"source": source, "target": target, "path": path, "nfe": nfe, **found}
        header = {
            **environment(dtype=torch.float64),
            "command": "python -m benchmarks.tuning.transfer --workdir=FOLDER",
            "paths": {name: str(sde) for name, sde in PATHS.items()},
            "models": {name: model(name, workdir, None)[1] for name in known if (name, "", "vp", 5) in rows},
        }
        write_json(RESULTS, {"header": header, "rows": list(rows.values())})


if __name__ == "__main__":
    main()
