"""Which solver for which budget: every solver at 5, 8, 10 and 20 evaluations: python -m benchmarks.leaderboard.boards

A *board* is a problem on a path, VP, VE or flow. Three problems: the exact score of 12 Gaussians in 8 dimensions; that
of scikit-learn's 1797 digits as point masses; and a network trained on these digits by configs/digits_*.py. ``--mnist``
and ``--cifar`` add the exact scores of 500 images, ``--mnist`` also a U-Net trained on MNIST, and ``--runs`` trained
runs of yours. Every deterministic and stochastic solver of Gaussian paths runs on its default grid, those in ``FEW``
also on the grids in ``GRIDS``. Names without rows are in the result file, each with its reason. The programs that
benchmarks/tuning/tuned_programs.py tuned on the mixture, the digits and the network run on their boards, from seeds on
which nothing was tuned; their rows come last. Two distances are kept apart:

* ``error``: of a deterministic solver, to its own limit, the solution of the probability-flow ODE from the same noise;
* ``sliced_wasserstein``: of the samples to data. 512 samples distinguish less than the error does.

Each board is a benchmark in its own folder of --out, in the format of ``scoresde benchmark``, with its page. Rows
resume. ``scoresde rerun OUT/trained_vp --row=7`` draws a row of a trained network again, and
``python -m benchmarks.leaderboard.boards --out=OUT --rerun mixture_vp --row 7`` one of any board. Networks are trained
in --workdir, or were.

Writes boards.csv (the rows) and boards.json (what they share, and the errors of a few solvers from 5 to 160
evaluations) to benchmarks/leaderboard/results; boards that are not measured keep their rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import scoresde
import solvers
from benchmarks import only
from benchmarks.accuracy import steps_vs_quality
from benchmarks.leaderboard import programs
from benchmarks.leaderboard.problems import EXACT, NETWORKS, mixture, target_of
from benchmarks.tables.leaderboard import TUNED
from scoresde.benchmark.rows import read, write
from scoresde.benchmark.runner import Job, Terms, measure
from scoresde.benchmark.store import FOLDER, Store, Unfinished
from scoresde.benchmark.truth import exact_end, ode_solution
from scoresde.cli.training import Job as Training
from scoresde.cli.training import fit
from scoresde.io.result_files import environment, fingerprint, write_csv, write_json
from scoresde.runs import config
from scoresde.runs.benchmarks.redrawn import Redrawn, drawn_again, rows_again
from scoresde.runs.benchmarks.sources import FREE, Source, of_run
from scoresde.runs.benchmarks.task import Scoring, Task
from scoresde.runs.run import load_run
from scoresde.sampling.plan import Plan, PlanRequest
from scoresde.sampling.width import WrongWidth
from scoresde.show import solver_cards
from scoresde.show.page import write_report
from solvers import InputError

RESULTS = Path(__file__).parent / "results"
NFE = (5, 8, 10, 20)
PATHS = {"vp": "vp", "ve": "ve(sigma_min=0.01, sigma_max=50)", "flow": "rectified_flow"}
CONFIGS = {"vp": "vp", "ve": "ve", "flow": "rectified_flow"}  # the ends of their names
FEW = ("ipndm", "gradient_estimation", "deis", "uni_pc", "dpmpp_2m")  # the best untuned ones of accuracy/defaults.py
GRIDS = ("kl_optimal", "quadratic(end=zero)", "logsnr(end=zero)")
METRICS = ("sliced_wasserstein",)
UNTUNED = "untuned"  # the folder of a board's results without the tuned programs
FIRST_SEED = 3_000_000  # programs were tuned, validated and measured on seeds below
COLUMNS = (
    "row", "solver", "grid", "nfe_budget", "nfe", "steps", "depth", "stochastic", "free_first_step", "program", "drawn",
    "error", "error_low", "error_high", "sliced_wasserstein", "sliced_wasserstein_low", "sliced_wasserstein_high",
    "best", "best_of_all", "skipped", "parameters", "tuning_nfe", "tuning_seconds", "teacher",
)  # fmt: skip


# median errors of these solvers are measured from few steps to many; orders.json has their orders
SLOPES = ("ddim", "heun", "dpmpp_2m", "ipndm", "res_2m", "deis", "rk4")
SLOPE_NFE = (5, 10, 20, 40, 80, 160)


class Places(NamedTuple):
    """Where things are: results, trained networks, and the data of larger boards."""

    out: Path
    workdir: Path
    mnist: Path | None = None
    cifar: Path | None = None


class Board(NamedTuple):
    """A problem on a path: one of ``EXACT`` or of ``NETWORKS``; or a folder with a run, whose path is its own."""

    problem: str
    path: str = ""

    @property
    def name(self) -> str:
        return f"{self.problem}_{self.path}" if self.path else f"run_{Path(self.problem).name}"


def seeds_of(count: int) -> range:
    """The seeds of a board."""
    return range(FIRST_SEED, FIRST_SEED + count)


def exact_board(board: Board, places: Places) -> tuple[Terms, dict[str, Any]]:
    """The terms of a board with an exact score, and the header of its results."""
    words, count, steps = EXACT[board.problem]
    target, sde = target_of(board.problem, places.mnist, places.cifar), scoresde.make_sde(PATHS[board.path])
    reference = target.sample(count, solvers.generator(1))
    versions = environment(dtype=torch.float64)
    facts = {
        "path": str(sde),
        "prediction": "exact score",
        "reference": f"{words}: {count} draws, {fingerprint(reference)}",
        "seeds": [*seeds_of(count)],
        "metrics": list(METRICS),
        "features": None,
        "conversion": "none",
        "kind of device": "cpu",
        "steps of the exact solution": steps,
        **{name: versions[name] for name in ("scoresde", "torch", "dtype")},
    }
    store = Store(places.out / board.name / FOLDER, json.loads(json.dumps(facts)))
    terms = Terms.of(
        target.denoiser(sde), reference, seeds_of(count), tuple(target.shape), truth_steps=steps, metrics=METRICS,
        dtype=torch.float64, keep=12, store=store,
    )  # fmt: skip
    return terms, facts


def folder_of(board: Board, places: Places) -> Path:
    """The folder of a board's run."""
    return places.workdir / f"{NETWORKS[board.problem].data}_{board.path}" if board.path else Path(board.problem)


def train(board: Board, places: Places) -> None:
    """Trains the network of a board, from its last checkpoint; a network that is there already stays as it is."""
    data, overrides, _ = NETWORKS[board.problem]
    where = [f"--config.data.path={places.mnist}"] if data == "mnist" else []
    made = config.read_config(f"configs/{data}_{CONFIGS[board.path]}.py", [*overrides, *where])
    fit(Training(made), folder_of(board, places))


def trained_board(board: Board, places: Places, command: str) -> tuple[Terms, dict[str, Any]]:
    """The terms of a board with a trained network, and the header of its results."""
    folder, scoring = folder_of(board, places), Scoring(METRICS)
    count = NETWORKS[board.problem].samples if board.path else 512
    task = Task.of(of_run(load_run(folder, [], FREE), Source(f"{folder}")), seeds_of(count), scoring)
    task = task.kept_in(places.out / board.name)
    return task.terms, task.header(command, scoring, False)


def terms_of(board: Board, places: Places) -> tuple[Terms, dict[str, Any]]:
    """What the rows of a board share, and the header of its results."""
    torch.set_num_threads(1)
    command = f"python -m benchmarks.leaderboard.boards --out={places.out} --workdir={places.workdir}"
    if board.problem not in EXACT:
        return trained_board(board, places, command)
    terms, facts = exact_board(board, places)
    return terms, {"command": command, **facts}


def contenders() -> list[str]:
    """One name for each method that has a budget."""
    return [spec for spec in steps_vs_quality.contenders() if not solvers.make(spec).adaptive]


def without_rows() -> dict[str, str]:
    """The registered names that have no rows, and the reason of each."""
    chosen, found = contenders(), {}
    for name in solvers.names("gaussian"):
        if name in chosen:
            continue
        same: list[str] = next((known for known in solver_cards.equal_methods() if name in known), [])
        others = [other for other in same if other in chosen]
        if solvers.make(name).adaptive:
            found[name] = "they choose their own evaluations"
        elif others:
            found[name] = f"the same method as `{others[0]}`"
        else:
            found[name] = "a wrapper that changes the last step of another solver"
    return found


def jobs_of(terms: Terms, specs: Sequence[str], nfe: Sequence[int] = NFE) -> list[Job]:
    """Every solver on its default grid, and those in ``FEW`` on the other grids."""
    few = [spec for spec in specs if spec in FEW]
    jobs = terms.jobs(specs, None, nfe)
    jobs += [job for grid in GRIDS if few for job in terms.jobs(few, grid, nfe)]
    return list({job.key: job for job in jobs}.values())


def tuned_jobs(board: Board, places: Places, terms: Terms, nfe: Sequence[int] = NFE) -> list[Job]:
    """Every program that was tuned on the model of a board."""
    run = None if board.problem in EXACT else load_run(folder_of(board, places), [], FREE)
    folder = places.out / board.name / "tuned"
    specs = programs.write(board.problem, board.path, terms.denoiser.sde, folder, nfe, run)
    return terms.jobs(specs, None, nfe) if specs else []


def prepare(board: Board, places: Places) -> str:
    """Trains the network of a board and solves its ODE exactly, unless that is done."""
    if board.problem in NETWORKS:
        train(board, places)  # here alone: two processes that draw rows cannot both hold the folder
    assert terms_of(board, places)[0].truth is not None
    return board.name


def draw(board: Board, places: Places, specs: Sequence[str], share: tuple[int, int], nfe: Sequence[int] = NFE) -> None:
    """Draws every n-th row of a board into its store, from the k-th."""
    terms, _ = terms_of(board, places)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WrongWidth)  # the distances show it
        jobs = [*jobs_of(terms, specs, nfe), *tuned_jobs(board, places, terms, nfe)]
        measure(terms, jobs, share, progress=False)


def join(board: Board, places: Places, specs: Sequence[str], nfe: Sequence[int] = NFE) -> dict[str, Any]:
    """Writes the results and the page of a board, whose rows are all drawn; returns what the board's rows share."""
    terms, header = terms_of(board, places)
    jobs, tuned = jobs_of(terms, specs, nfe), tuned_jobs(board, places, terms, nfe)
    rows = measure(terms, [*jobs, *tuned], progress=False)
    assert not isinstance(rows, Unfinished)
    truth = terms.truth
    assert truth is not None
    header["exact solution"] = {"error": truth.error, "nfe": truth.nfe}
    folder = places.out / board.name
    write(rows, folder, header)
    write(rows[: len(jobs)], folder / UNTUNED, header)  # its column ``best`` is that of the untuned rows alone
    title = board.name.replace("_", ", ")
    write_report(folder / "report.html", title=title, rows=rows, reference=terms.reference, header=header)
    shared = {name: value for name, value in header.items() if name not in ("config", "command", "source", "seeds")}
    return {"samples": len(terms.seeds), "first seed": FIRST_SEED, **shared}


def redrawn(board: Board, places: Places, number: int) -> Redrawn:
    """A row of a board, in its file and drawn again."""
    folder = places.out / board.name
    header, rows = read(folder)
    if board.problem not in EXACT:
        torch.set_num_threads(1)
        return next(rows_again(header, rows, [number], folder))
    if not 1 <= number <= len(rows):
        raise InputError(f"{folder} has the rows 1 to {len(rows)}, and no row {number}")
    terms, _ = terms_of(board, places)
    return Redrawn(number, rows[number - 1], drawn_again(terms, rows[number - 1]))


def lines_of(board: Board, places: Places) -> list[dict[str, Any]]:
    """The rows of a board's results as lines of the table; ``best`` is that of the untuned ones."""
    folder = places.out / board.name
    every, untuned = (
        json.loads((part / "results.json").read_text(encoding="utf-8"))["rows"] for part in (folder, folder / UNTUNED)
    )
    lines: list[dict[str, Any]] = []
    for number, row in enumerate(every):
        tuned = number >= len(untuned)
        names = {"solver": TUNED, "best": ""} if tuned else {"best": untuned[number]["best"]}
        lines.append({**row, **names, "best_of_all": row["best"]})
    names = {"problem": board.problem if board.path else board.name, "path": board.path}
    return [{**names, **{name: line.get(name) for name in COLUMNS}} for line in lines]


def slopes(samples: int = 256, specs: Sequence[str] = SLOPES, truth_steps: int = 2048) -> list[dict[str, Any]]:
    """The median errors of solvers on the mixture, from few evaluations to many, and their slope from 20 on.

    The median over samples, and not the root mean square: a few samples start where the flow divides, and until the
    steps are fine enough to leave them on their side their errors are as large as the distance between two modes.
    """
    orders = json.loads((Path(solvers.__file__).parent / "conformance" / "orders.json").read_text(encoding="utf-8"))
    model = mixture().denoiser(scoresde.VP())
    truth, found = ode_solution(model, (8,), range(samples), truth_steps), []
    for spec in specs:
        points = []
        for nfe in SLOPE_NFE:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WrongWidth)
                plan = Plan.make(model, PlanRequest(spec, "logsnr", nfe=nfe))
                drawn = scoresde.sample(model, (8,), range(samples), plan=plan, dtype=torch.float64)
            exact = exact_end(truth, plan)
            assert exact is not None
            points.append((drawn.nfe, float((drawn.x - exact).square().mean(1).sqrt().median())))
        x, y = np.log(np.array([point for point in points if point[0] >= SLOPE_NFE[2]])).T
        slope = -float(np.polyfit(x, y, 1)[0])
        found.append(
            {"solver": spec, "order": orders["orders"][spec]["vp"], "slope": round(slope, 3), "points": points}
        )
    return found


def boards_of(arguments: argparse.Namespace) -> list[Board]:
    """The boards that are asked for."""
    problems = ["digits", "trained", "mixture"]
    problems += ["mnist", "trained_mnist"] if arguments.mnist is not None else []
    problems += ["cifar10"] if arguments.cifar is not None else []
    boards = [Board(problem, path) for problem in problems for path in PATHS]
    boards += [Board(str(folder)) for folder in arguments.runs]
    if arguments.only:
        unknown = set(arguments.only) - {board.name for board in boards}
        if unknown:
            raise InputError(f"no board {min(unknown)!r}; there are {', '.join(board.name for board in boards)}")
    return [board for board in boards if not arguments.only or board.name in arguments.only]


def commit(boards: Sequence[Board], shared: dict[str, Any], places: Places, folder: Path) -> str:
    """Writes the result files; returns how many rows have the samples of the earlier file."""
    path, before, lines = folder / "boards.json", {}, list[dict[str, Any]]()
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["boards"]
        with (folder / "boards.csv").open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    fresh = [line for board in boards for line in lines_of(board, places)]
    names = ("problem", "path", "solver", "grid", "nfe_budget")
    known = {tuple(str(line[name]) for name in names): line["drawn"] for line in lines}
    drawn = [line for line in fresh if line["drawn"] is not None]
    same = sum(known.get(tuple(str(line[name]) for name in names)) == line["drawn"] for line in drawn)
    done = {(line["problem"], line["path"]) for line in fresh}
    kept = [line for line in lines if (line["problem"], line["path"]) not in done]
    order = {name: k for k, name in enumerate([*EXACT, *NETWORKS])}
    every = sorted([*fresh, *kept], key=lambda line: (order.get(line["problem"], len(order)), line["problem"]))
    header = {**environment(dtype=torch.float64), "command": "python -m benchmarks.leaderboard.boards"}
    document = {
        "header": header, "boards": {**before, **shared}, "without rows": without_rows(), "slopes": slopes(),
    }  # fmt: skip
    write_csv(folder / "boards.csv", every)
    write_json(path, document)
    return f"{same} of {len(drawn)} rows have the samples of the earlier file, bit for bit"


def run(boards: Sequence[Board], places: Places, processes: int) -> dict[str, Any]:
    """Measures boards, by several processes; returns what the rows of each share."""
    specs, shared = contenders(), {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name in [pool.apply_async(prepare, (board, places)) for board in boards]:
            print(f"{name.get()}: the model and its exact solution are there", flush=True)
        shares = [(k, processes) for k in range(1, processes + 1)]
        waiting = [
            (board, [pool.apply_async(draw, (board, places, specs, share)) for share in shares]) for board in boards
        ]
        for board, parts in waiting:
            for part in parts:
                part.get()
            shared[board.name] = join(board, places, specs)
            print(f"{board.name}: {places.out / board.name / 'report.html'}", flush=True)
    return shared


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/leaderboard"), help="where the boards are kept")
    parser.add_argument("--workdir", type=Path, default=Path("build/leaderboard/runs"), help="of trained networks")
    parser.add_argument("--mnist", type=Path, help="a folder of MNIST's four files")
    parser.add_argument("--cifar", type=Path, help="an .npz file with images")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="RUN", help="folders with trained runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="BOARD", help="such as mixture_vp")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rerun", metavar="BOARD", help="draw one row of this board again")
    parser.add_argument("--row", type=int, default=1)
    arguments = parser.parse_args(argv)
    places = Places(arguments.out, arguments.workdir, arguments.mnist, arguments.cifar)
    if arguments.rerun:
        arguments.only = [arguments.rerun]
        again = redrawn(boards_of(arguments)[0], places, arguments.row)
        print(again)
        sys.exit(not again.identical)
    boards = boards_of(arguments)
    shared = run(boards, places, arguments.processes)
    RESULTS.mkdir(exist_ok=True)
    print(commit(boards, shared, places, RESULTS))


if __name__ == "__main__":
    only.run(main)
