"""The tables of docs/leaderboard.md, made from boards.csv and boards.json; readme.py writes them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.stats import t as student

import solvers
from scoresde.show.solver_cards import markdown

NFE = (5, 8, 10, 20)
NAMES = {
    "mixture": "12 Gaussians, exact",
    "digits": "digits, exact",
    "mnist": "500 of MNIST, exact",
    "cifar10": "500 of CIFAR-10, exact",
    "trained": "digits, trained network",
    "trained_mnist": "MNIST, trained U-Net",
}
TUNED = "tuned program"  # the name of the rows of programs that were tuned on the board's model
LEVEL = 0.95
ZERO = 1e-6  # a distance whose interval begins below this is not distinguished from 0
SHOWN = 2  # names next to the best one; the others that are tied are a number
Row = Mapping[str, str]
Boards = dict[tuple[str, str], list[dict[str, str]]]


class Standing(NamedTuple):
    """A solver on a grid at one budget, over several boards.

    Attributes:
        label: the solver, with its grid unless that is the default one.
        times: the geometric mean, over the boards, of its distance over the least one of the board.
        tied: whether it is the best, or not distinguished from it.
    """

    label: str
    times: float
    tied: bool


def boards_of(path: Path, tuned: bool = False) -> Boards:
    """The rows of the result file by board: those of solvers, or those of programs that were tuned on the board."""
    found: Boards = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["solver"] == TUNED) is tuned:
                found.setdefault((row["problem"], row["path"]), []).append(row)
    return found


def name_of(board: tuple[str, str]) -> str:
    """The words for a board.

    >>> name_of(("trained", "ve"))
    'digits, trained network, ve'
    """
    return f"{NAMES.get(board[0], board[0])}, {board[1]}"


def label_of(row: Row) -> str:
    """A solver's name, with its grid unless that is the default one."""
    own = row["grid"] in ("karras", row["solver"].partition("(")[0])
    return f"`{row['solver']}`" if own else f"`{row['solver']}` on `{row['grid']}`"


def standings(boards: Boards, measure: str, budget: int) -> list[Standing]:
    """Every solver and grid with a distance on all boards, best first.

    A board does not count where its least distance is not distinguished from 0: of a few samples from separate points,
    none may end at another point, and every ratio to that is chance.

    One is tied with the best if the 95 % interval of the mean difference of their logarithms over the boards, by
    Student's t, contains 0.
    """
    logs: dict[str, list[float]] = {}
    counted = 0
    for rows in boards.values():
        scored = {label_of(row): row for row in rows if row["nfe_budget"] == str(budget) and row[measure]}
        least = min(scored.values(), key=lambda row: float(row[measure]))
        if float(least[f"{measure}_low"]) < ZERO:
            continue
        counted += 1
        for label, row in scored.items():
            logs.setdefault(label, []).append(math.log(float(row[measure]) / float(least[measure])))
    whole = sorted((fmean(found), label) for label, found in logs.items() if len(found) == counted)
    best = logs[whole[0][1]]
    return [
        Standing(label, math.exp(mean), label == whole[0][1] or _tied(logs[label], best)) for mean, label in whole
    ]  # fmt: skip


def _tied(one: Sequence[float], best: Sequence[float]) -> bool:
    apart = [a - b for a, b in zip(one, best, strict=True)]
    if len(apart) < 2:
        return False
    reach = float(student.ppf(0.5 + LEVEL / 2, len(apart) - 1)) * stdev(apart) / math.sqrt(len(apart))
    return fmean(apart) <= reach


def named(labels: Sequence[str]) -> str:
    """The first names, and the number of the others.

    >>> named(["a"]), named(["a", "b", "c", "d", "e"])
    ('a', 'a, b and 3 more')
    """
    others = f" and {len(labels) - SHOWN} more" * (len(labels) > SHOWN)
    return ", ".join(labels[:SHOWN]) + others


def answers(boards: Boards) -> str:
    """For each budget, the solvers that are nearest to the exact solution, and to the data, over all boards."""
    networks = {key: rows for key, rows in boards.items() if key[0] not in NAMES or "trained" in key[0]}
    lines = []
    for budget in NFE:
        cells = []
        for some, measure in ((boards, "error"), (networks, "error"), (boards, "sliced_wasserstein")):
            first, *others = (each for each in standings(some, measure, budget) if each.tied)
            tied = f"; tied: {named([each.label for each in others])}" if others else ""
            cells.append(f"**{first.label}** {first.times:.2f}{tied}")
        lines.append((f"**{budget} NFE**", *cells))
    head = ("", "nearest to the exact solution", "the same, trained networks alone", "nearest to the data")
    return markdown(head, lines)


def marked(rows: Sequence[Row], measure: str, budget: int, column: str = "best") -> list[Row]:
    """The best rows of a board at a budget, best first: of the untuned ones, or by ``best_of_all`` of all."""
    found = [row for row in rows if row["nfe_budget"] == str(budget) and measure in row[column].split()]
    return sorted(found, key=lambda row: float(row[measure]))


def best_of(rows: Sequence[Row], tuned: Sequence[Row], measure: str, budget: int) -> str:
    """The best untuned solver of a board, with its distance and those tied with it; then the tuned program's distance.

    That is bold where it is the best of all rows or tied with it.
    """
    best = marked(rows, measure, budget)
    first, *others = map(label_of, best)
    tied = f"; tied: {named(others)}" if others else ""
    own = [
        f"; tuned: {_bold(f'{float(row[measure]):.3g}', measure in row['best_of_all'].split())}"
        for row in tuned if row["nfe_budget"] == str(budget)
    ]  # fmt: skip
    return f"**{first}** {float(best[0][measure]):.3g}{tied}{''.join(own)}"


def winners(boards: Boards, tuned: Boards, measure: str) -> str:
    """The best of each board and budget."""
    lines = [
        (name_of(board), *(best_of(rows, tuned.get(board, []), measure, budget) for budget in NFE))
        for board, rows in boards.items()
    ]
    return markdown(("", *(f"{budget} NFE" for budget in NFE)), lines)


def gains(boards: Boards, tuned: Boards) -> str:
    """What tuned programs reach on the boards of their models, and what their tuning cost.

    A distance is followed by its share of the least one of an untuned solver on this board, chosen in hindsight. It is
    bold where the program is the best of all rows or tied with it, and "tied" where an untuned solver is so too.
    """
    budgets = sorted({int(row["nfe_budget"]) for rows in tuned.values() for row in rows})
    columns = [(measure, budget) for measure in ("error", "sliced_wasserstein") for budget in budgets]
    lines = []
    for board, rows in tuned.items():
        found = {int(row["nfe_budget"]): row for row in rows}
        cells = []
        for measure, budget in columns:
            if budget not in found:
                cells.append("")
                continue
            row, least = found[budget], marked(boards[board], measure, budget)[0]
            share = float(row[measure]) / float(least[measure])
            text = _bold(f"{float(row[measure]):.3g}", measure in row["best_of_all"].split())
            tied = ", tied" * bool(text.startswith("**") and marked(boards[board], measure, budget, "best_of_all"))
            cells.append(f"{text} ({share:.2f}{tied})")
        costs = ", ".join(f"{float(found[budget]['tuning_nfe']) / 1e6:.1f}" for budget in budgets if budget in found)
        lines.append((name_of(board), *cells, costs))
    head = (f"{'error' if measure == 'error' else 'data'}, {budget}" for measure, budget in columns)
    return markdown(("", *head, "evaluations of the tunings, millions"), lines)


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def everyone(boards: Boards) -> str:
    """Every solver and grid: how many times the least distance it has, over the boards, at each budget."""
    columns = [(measure, budget) for measure in ("error", "sliced_wasserstein") for budget in NFE]
    found: dict[str, dict[tuple[str, int], Standing]] = {}
    for column in columns:
        for each in standings(boards, *column):
            found.setdefault(each.label, {})[column] = each
    lines = []
    for label, row in sorted(found.items(), key=lambda item: _rank(item[1])):
        cells = []
        for column in columns:
            own = row.get(column)
            text = "" if own is None else f"{own.times:.2f}" if own.times < 100 else f"{own.times:.0f}"
            cells.append(_bold(text, own is not None and own.tied))
        lines.append((label, *cells))
    head = ("", *(f"{'error' if measure == 'error' else 'data'}, {budget}" for measure, budget in columns))
    return markdown(head, lines)


def _rank(row: Mapping[tuple[str, int], Standing]) -> tuple[bool, float]:
    """Deterministic solvers first; then by the mean over the budgets."""
    errors = [math.log(each.times) for (measure, _), each in row.items() if measure == "error"]
    return not errors, fmean(errors or [math.log(each.times) for each in row.values()])


def absent(document: Mapping[str, Any], boards: Boards) -> str:
    """The names without rows, by reason; a solver that was registered since then has none yet."""
    there = {row["solver"].partition("(")[0] for rows in boards.values() for row in rows}
    why = {name: "not drawn yet" for name in solvers.names("gaussian") if name not in there}
    reasons: dict[str, list[str]] = {}
    for name, reason in {**why, **document["without rows"]}.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    return "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())


def orders(document: Mapping[str, Any]) -> str:
    """Where few-step quality and order disagree, and a table of the errors behind it."""
    rows = document["slopes"]
    few, many = (sorted(rows, key=lambda row, k=k: row["points"][k][1]) for k in (0, -1))  # type: ignore[misc]
    high = max(rows, key=lambda row: row["order"])
    wins = few[0]

    def place(row: Mapping[str, Any], ranking: Sequence[Mapping[str, Any]]) -> int:
        return [each["solver"] for each in ranking].index(row["solver"]) + 1

    def clause(row: Mapping[str, Any], k: int, ranking: Sequence[Mapping[str, Any]]) -> str:
        return f"`{row['solver']}` has place {place(row, ranking)} with {row['points'][k][1]:.2g}"

    low = min(rows, key=lambda row: row["order"])
    text = (
        f"With {low['points'][0][0]} evaluations `{low['solver']}`, of the lowest order, {low['order']:.1f}, has the "
        f"error {low['points'][0][1]:.2g}, and `{high['solver']}`, of the highest, {high['order']:.1f}, "
        f"{high['points'][0][1]:.2g}; `{wins['solver']}`, of order {wins['order']:.1f}, has the least of these "
        f"{len(rows)}, {wins['points'][0][1]:.2g}. With {high['points'][-1][0]} evaluations {clause(high, -1, many)}, "
        f"{clause(wins, -1, many)}, and {clause(low, -1, many)}."
    )
    lines = []
    for row in sorted(rows, key=lambda row: float(row["order"])):
        errors = (f"{error:.2g} ({nfe})" for nfe, error in row["points"])
        lines.append((f"`{row['solver']}`", f"{row['order']:.2f}", f"{row['slope']:.2f}", *errors))
    counts = [nfe for nfe, _ in next(row for row in rows if row["solver"] == "ddim")["points"]]
    return f"{text}\n\n{markdown(('solver', 'order', 'slope', *(f'error, {n}' for n in counts)), lines)}"


def tables(document: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The marked parts of the page."""
    boards, tuned = boards_of(path), boards_of(path, tuned=True)
    return {
        "answers": answers(boards),
        "gains": gains(boards, tuned),
        "winners": winners(boards, tuned, "error"),
        "winners by data": winners(boards, tuned, "sliced_wasserstein"),
        "everyone": everyone(boards),
        "absent": absent(document, boards),
        "orders": orders(document),
    }
