"""Solvers of discrete states with exact models, at equal numbers of evaluations: python -m benchmarks.discrete.exact

No network is trained, so that every error is the solver's. Each solver that converges is measured on every problem that
it accepts, at each budget of model evaluations (NFE).

* Small spaces, ``kernels``: the total variation between the law of the end state and the exact one, by the exact
  kernels of the steps, without a draw. A solve begins in the exact law of a noisy state and ends just before the data,
  on times that are evenly spaced in their logarithm. ``first_hitting`` and ``uniformization`` have no kernel of a step:
  their total variation is that of --draws samples, and ``noise`` is where it lies in 95 % of as many exact draws.
* ``heartbeat``: 20 bits of which every fifth is 1, five sequences in all (Sohl-Dickstein et al. 2015). The share of
  invalid samples, with Wilson's 95 % interval.
* ``text``: windows of a text, by default scikit-learn's descriptions of its data sets. The total variation between the
  laws of two and of three characters in a row, in samples and in all windows, with a 95 % interval; the row ``draws``
  has that of as many exact draws. ``uniformization`` would need thousands of evaluations, and is left out.

The last two sample as ``scoresde.sample`` does, from the prior to the data on the default grid.

Writes exact.json and exact.png to benchmarks/discrete/results. Rows that the file has are kept: after an interruption
run the same command again. --only NAME ... measures some solvers again. Takes ten minutes on one core.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import scoresde
import solvers
from benchmarks import only
from scoresde.benchmark.metrics import bootstrap
from scoresde.benchmark.token_metrics import invalid, ngrams, wilson
from scoresde.io.result_files import environment, fingerprint, write_figure, write_json
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete.base import make_process
from solvers.conformance.kernels import all_states, end_law, index_of
from solvers.files import read_json
from solvers.noise.uniform import UniformNoise

RESULTS = Path(__file__).parent / "results"
NFE = (4, 8, 16, 32, 64, 128)
SEEDS = 2048  # samples of a row of the heartbeat
TEXTS = 256  # and of a text
WINDOWS, LENGTH = 512, 32  # of a text
SAMPLED = ("first_hitting", "uniformization")  # which have no kernel of a step
COLUMNS = ("problem", "solver", "nfe_budget")  # which identify a row
Row = dict[str, Any]


class Small(NamedTuple):
    """A problem whose states can be listed: a process, a random law of the data, the times of a solve.

    The larger the concentration of the law, the less dependent are the tokens.
    """

    process: str
    states: int
    size: int
    concentration: float
    start: float
    end: float
    most: int = NFE[-1]  # the largest budget


class Large(NamedTuple):
    """A problem of many tokens: a process, the data and the budgets."""

    process: str
    data: str
    nfe: tuple[int, ...] = NFE[:4]


PROBLEMS: dict[str, Small | Large] = {
    "uniform, 2 tokens of 3": Small("uniform(3, schedule=constant)", 3, 2, 20.0, 2.0, 0.1),
    "uniform, 2 dependent tokens of 3": Small("uniform(3, schedule=constant)", 3, 2, 0.3, 2.0, 0.05),
    "masks, 3 tokens of 3": Small("absorbing(3, schedule=constant)", 3, 3, 5.0, 4.0, 0.05, 64),
    "birth and death, 2 tokens of 6": Small("birth_death(6, schedule=constant)", 6, 2, 5.0, 2.0, 0.1, 64),
    "heartbeat, masks": Large("absorbing(2)", "heartbeat"),
    "heartbeat, uniform": Large("uniform(2, schedule=cosine)", "heartbeat"),
    "text, masks": Large("absorbing(STATES)", "text"),
}
EXACT = "draws"  # the name of rows of draws from the data
SAME = ("mdlm_cache",)  # which has the law of tweedie, and fewer evaluations
LEAST = 3e-6  # the lower end of an axis; errors of rounding alone are below it
SLOW = "uniformization"  # hundreds of evaluations: fewer samples, and no text


def heartbeat() -> DiscreteEmpirical:
    """The five sequences of 20 bits of which every fifth is 1."""
    return DiscreteEmpirical(torch.eye(5, dtype=torch.long).repeat(1, 4))


@functools.cache
def windows(path: Path | None) -> tuple[DiscreteEmpirical, str]:
    """Windows of a text, evenly spaced, and the symbols of its tokens in order."""
    if path is None:
        from sklearn import datasets

        makers = (datasets.load_iris, datasets.load_wine, datasets.load_diabetes, datasets.load_breast_cancer)
        text = " ".join(" ".join(make().DESCR.lower().split()) for make in makers)
    else:
        text = path.read_text(encoding="utf-8")
    symbols = "".join(sorted(set(text)))
    tokens = torch.tensor([symbols.index(letter) for letter in text])
    starts = np.linspace(0, len(tokens) - LENGTH, WINDOWS).astype(int)
    return DiscreteEmpirical(tokens.unfold(0, LENGTH, 1)[starts]), symbols


def data_of(problem: Large, path: Path | None) -> DiscreteEmpirical:
    """The data of a problem."""
    return heartbeat() if problem.data == "heartbeat" else windows(path)[0]


def process_of(problem: Large, data: DiscreteEmpirical) -> Any:
    """The process of a problem, with the number of states of its data."""
    return make_process(problem.process.replace("STATES", str(int(data.data.max()) + 1)))


def contenders() -> list[str]:
    """Every registered solver of discrete states that converges, but not ``sharpened``, which sharpens another one."""
    made = (solvers.make(name) for name in solvers.names())
    return [str(s) for s in made if s.space == "discrete" and s.consistent and only.name_of(str(s)) != "sharpened"]


def small(problem: Small, spec: str, draws: int) -> Iterator[Row]:
    """The rows of a solver on a small space; none if it does not accept the process."""
    solver, process = solvers.make(spec), make_process(problem.process)
    points = all_states(problem.states, problem.size)
    law = np.random.default_rng(1).dirichlet([problem.concentration] * len(points))
    target = DiscreteEmpirical(points, torch.from_numpy(law))
    space = all_states(process.values, problem.size)
    steps = [1] if solver.adaptive else [n // solver.evaluations for n in NFE if n <= problem.most]
    exact = {t: target.log_prob_at(space, process, process(t)).exp() for t in (problem.start, problem.end)}
    denoiser: Any = target.denoiser(process)
    model = Diffusion(denoiser)
    for count in steps:
        nodes = process.nodes(np.geomspace(problem.start, problem.end, count + 1).tolist())
        if only.name_of(spec) in SAMPLED:
            yield sampled(solver, model, nodes, space, exact[problem.start], exact[problem.end], draws)
            continue
        found = end_law(solver, model, exact[problem.start], problem.size, nodes)  # type: ignore[arg-type]
        distance = 0.5 * float((found - exact[problem.end]).abs().sum())
        noise = UniformNoise(range(64), (problem.size,), torch.float64)
        some = solvers.solve(solver, model, drawn(exact[problem.start], space, 64), nodes, noise)
        budget, nfe = None if solver.adaptive else count * solver.evaluations, float(some.nfe.double().mean())
        yield {"nfe_budget": budget, "nfe": nfe, "steps": count, "total_variation": distance}


def drawn(law: Tensor, space: Tensor, count: int) -> Tensor:
    """States (count, d), drawn from a law (N,) of the states (N, d)."""
    return space[torch.multinomial(law, count, replacement=True, generator=solvers.generator(1))]


def sampled(
    solver: solvers.Solver, model: Any, nodes: Any, space: Tensor, start: Tensor, end: Tensor, draws: int
) -> Row:
    """The row of a solver without a kernel: the total variation of samples, and that of as many exact draws."""
    noise = UniformNoise(range(draws), space.shape[1:], torch.float64)
    result = solvers.solve(solver, model, drawn(start, space, draws), nodes, noise)
    counts = torch.bincount(index_of(result.x, model.path.values), minlength=len(space))
    repeats = torch.from_numpy(np.random.default_rng(2).multinomial(draws, end.numpy() / end.numpy().sum(), 400))
    found, noise_of = (0.5 * (c / draws - end).abs().sum(-1) for c in (counts, repeats))
    return {
        "nfe_budget": None,
        "nfe": float(result.nfe.double().mean()),
        "steps": 1,
        "total_variation": float(found),
        "draws": draws,
        "noise": noise_of.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(),
    }


def large(problem: Large, spec: str, path: Path | None) -> Iterator[Row]:
    """The rows of a solver on a problem of many tokens; none if it does not accept the process."""
    data = data_of(problem, path)
    process, solver = process_of(problem, data), solvers.make(spec)
    model: Any = data.denoiser(process)
    count = SEEDS if problem.data == "heartbeat" else TEXTS
    if only.name_of(spec) == SLOW:
        count = count // 8 if problem.data == "heartbeat" else 0
    for budget in () if not count else (None,) if solver.adaptive else problem.nfe:
        steps = None if budget is None else budget // solver.evaluations  # those without step error choose theirs
        began = time.perf_counter()
        result = scoresde.sample(model, data.shape, range(count), solver, steps=steps, batch_size=512, progress=False)
        nfe = float(result.nfe_per_sample.double().mean())
        row = {"nfe_budget": budget, "nfe": nfe, "steps": len(result.nodes) - 1, "grid": result.grid, "samples": count}
        yield row | scores(result.x, data, problem.data) | {"seconds": round(time.perf_counter() - began, 2)}


def scores(x: Tensor, data: DiscreteEmpirical, kind: str) -> Row:
    """The measures of samples, each with its 95 % interval."""
    if kind == "heartbeat":
        wrong = invalid(x, data.data)
        return {"invalid": [wrong, *wilson(wrong, len(x))]}
    found: Row = {}
    for name, length in (("bigrams", 2), ("trigrams", 3)):

        def metric(a: Tensor, b: Tensor, length: int = length) -> float:
            return ngrams(a, data.data, length)  # the exact law: all windows, not a part of them

        estimate = bootstrap(metric, x, data.data, repeats=20, floor=0.0)
        found[name] = [estimate.value, estimate.low, estimate.high]
    return found


def exact_draws(problem: Large, path: Path | None) -> Row:
    """The row of as many draws from the data."""
    data = data_of(problem, path)
    count = SEEDS if problem.data == "heartbeat" else TEXTS
    x = data.sample(count, solvers.generator(3))
    return {"nfe_budget": None, "nfe": 0, "steps": 0, "samples": count, **scores(x, data, problem.data)}


PANELS = (  # of the picture: a problem, the measure and its name
    ("uniform, 2 tokens of 3", "total_variation", "total variation"),
    ("masks, 3 tokens of 3", "total_variation", "total variation"),
    ("birth and death, 2 tokens of 6", "total_variation", "total variation"),
    ("heartbeat, masks", "invalid", "share of invalid samples"),
    ("heartbeat, uniform", "invalid", "share of invalid samples"),
    ("text, masks", "bigrams", "total variation of 2 characters"),
)


def picture(rows: Sequence[Row]) -> Figure:
    """The error of every solver against its evaluations, a panel for each problem."""
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    names = sorted({row["solver"] for row in rows} - {EXACT})
    colours = {name: colormaps["tab20"](i / 20) for i, name in enumerate(names)}
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    lines: dict[str, Any] = {}
    for axes, (problem, measure, label) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for name in names:
            found = [row for row in rows if (row["problem"], row["solver"]) == (problem, name)]
            shown = [(row["nfe"], value) for row in found if (value := _value(row, measure)) > LEAST / 10]
            if shown:
                mark = "*" if name in SAMPLED else "." if solvers.make(name).evaluations == 1 else "s"
                x, y = zip(*shown, strict=True)
                lines[name] = axes.loglog(x, y, marker=mark, ms=4 + 4 * (mark == "*"), lw=1.1, color=colours[name])[0]
            for row in found:  # no sample of all was wrong: the end of the interval
                if isinstance(row[measure], list) and row[measure][0] == 0:
                    end = axes.loglog(row["nfe"], row[measure][2], "v", mfc="none", ms=8, color=colours[name])[0]
                    lines.setdefault(name, end)
        _floor(axes, [row for row in rows if row["problem"] == problem], measure)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], LEAST))
        axes.set_xticks(NFE if isinstance(PROBLEMS[problem], Small) else NFE[:4])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(title=problem, xlabel="evaluations of the model", ylabel=label)
        axes.title.set_fontsize(10)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _value(row: Row, measure: str) -> float:
    found = row[measure]
    return float(found[0] if isinstance(found, list) else found)


def _floor(axes: Any, rows: Sequence[Row], measure: str) -> None:
    """A grey line where exact draws are, if the measure is one of samples."""
    exact = [_value(row, measure) for row in rows if row["solver"] == EXACT and measure in row]
    if exact and exact[0] > 0:
        axes.axhline(exact[0], color="0.6", ls=":", lw=1)


def rows_of(problem: str, spec: str, draws: int, path: Path | None) -> list[Row]:
    """The rows of a solver on a problem; none if the solver has no meaning for its process."""
    setting = PROBLEMS[problem]
    if isinstance(setting, Small) and (spec == EXACT or only.name_of(spec) in SAME):
        return []
    try:
        if isinstance(setting, Small):
            rows = list(small(setting, spec, draws))
        else:
            rows = [exact_draws(setting, path)] if spec == EXACT else list(large(setting, spec, path))
    except solvers.InputError as reason:
        print(f"{problem}: {reason}")
        return []
    return [{"problem": problem, "process": setting.process, "solver": spec, **row} for row in rows]


def header_of(draws: int, path: Path | None) -> dict[str, Any]:
    """All that decides the rows."""
    data, symbols = windows(path)
    return {
        **environment(dtype=torch.float64),
        "command": "python -m benchmarks.discrete.exact" + (f" --text={path.name}" if path else ""),
        "seeds": {"heartbeat": [0, SEEDS], "text": [0, TEXTS], "small": [0, draws]},
        "problems": {name: setting._asdict() for name, setting in PROBLEMS.items()},
        "text": {"windows": list(data.data.shape), "symbols": symbols, "fingerprint": fingerprint(data.data)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000, help="samples of solvers without a kernel")
    parser.add_argument("--text", type=Path, help="a text file instead of the descriptions of data sets")
    parser.add_argument("--out", type=Path, default=RESULTS)
    only.add_only(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    again, path = only.names(arguments.only), arguments.out / "exact.json"
    header = json.loads(json.dumps(header_of(arguments.draws, arguments.text)))  # as a file has it
    arguments.out.mkdir(parents=True, exist_ok=True)
    known: Row = read_json(path, "result file") if path.exists() else {"header": header, "rows": [], "done": []}
    if known["header"] != header:
        print(f"{path} is of other settings or versions: it is measured again")
        known = {"header": header, "rows": [], "done": []}
    rows = [row for row in known["rows"] if only.name_of(row["solver"]) not in again]
    done = [pair for pair in known["done"] if only.name_of(pair[1]) not in again]
    pairs = [[problem, spec] for problem in PROBLEMS for spec in (EXACT, *contenders())]
    for pair in (bar := tqdm([pair for pair in pairs if pair not in done], desc="rows")):
        bar.set_postfix_str(", ".join(pair))
        rows += rows_of(pair[0], pair[1], arguments.draws, arguments.text)
        done.append(pair)
        rows = [row for pair in pairs for row in rows if [row["problem"], row["solver"]] == pair]
        write_json(path, {"header": header, "done": [pair for pair in pairs if pair in done], "rows": rows})
    write_figure(path.with_suffix(".png"), picture(rows))


if __name__ == "__main__":
    only.run(main)
