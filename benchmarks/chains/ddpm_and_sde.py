"""Measures where a DDPM's chain and its SDE are equal and where they differ: python -m benchmarks.chains.ddpm_and_sde

All scores are exact: of Gaussian data, for which every number has a closed form, and of a mixture of two Gaussians on
the line, whose integrals are computed on a fine grid. Writes ddpm_and_sde.json and four pictures to
benchmarks/chains/results; docs/ddpm_and_sde.md shows them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import scoresde
import solvers
from benchmarks.tables.ddpm_and_sde import Rows, pick
from scoresde.bounds.chain import prior_term, step_terms
from scoresde.bounds.decoders import Gaussian as GaussianDecoder
from scoresde.io.result_files import environment, write_figure, write_json
from scoresde.models.targets import Gaussian, GaussianMixture
from scoresde.paths.chain import Chain
from solvers import Node
from solvers.one_step.ancestral import DDPM, forward_kernel, posterior

RESULTS = Path(__file__).parent / "results"
VP = scoresde.VP()
MIXTURE = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.04)
SEEDS = range(512)
BITS = math.log(2)
LIMIT = float(np.euler_gamma) / (2 * BITS)


def error_of(found: Tensor, exact: Tensor) -> float:
    """|found / exact - 1| of one number."""
    return abs(float(found) / float(exact) - 1)


def embeddings() -> Rows:
    """Chains of betas compared with the path: the largest difference of alpha, and sigma of the second node."""
    rows: Rows = []
    for count in (30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000):
        index = torch.arange(count, dtype=torch.float64)
        for embedding, times in (
            ("exact", (index + 1) / count),
            ("song", (index + 1) / count),
            ("ho", (index + 1) / count),
            ("ho, i / (N - 1)", index / (count - 1)),
        ):
            betas = VP.chain(count, "ho" if embedding.startswith("ho") else embedding).betas  # type: ignore[arg-type]
            log_square = torch.from_numpy(betas).neg().log1p().cumsum(0)
            node = VP(times)
            gap = float((torch.exp(0.5 * log_square) - node.alpha).abs().max())
            sigma = torch.sqrt(-torch.expm1(log_square[1]))
            rows.append({"study": "embeddings", "embedding": embedding, "N": count, "alpha": gap})
            rows[-1]["sigma"] = error_of(node.sigma[1], sigma)
    return rows


def labels() -> Rows:
    """The cost of a wrong label: the spread of samples after all steps of the ODE, and the loss of log-likelihood.

    The network is that of data N(0, std^2), trained on the label ``index`` and given a different one. The loss is that
    of the mean log-likelihood of the data, in bits/dim. The flow is linear, so x = std replaces the mean over all x.
    """
    rows: Rows = []
    std = 0.05
    x, target = torch.ones(1, 1, dtype=torch.float64), Gaussian(torch.zeros(1), std**2)
    for count in (100, 1000):
        chain = VP.chain(count, "ho")

        def network(x: Tensor, label: Tensor, chain: Chain = chain) -> Tensor:
            node = chain.sde()((label + 1).clamp(1, len(chain)) / len(chain))
            return (node.sigma / (node.alpha**2 * std**2 + node.sigma**2)).view(-1, 1) * x

        for label in ("index", "index+1", "(N-1)t", "reversed_index"):
            denoiser = scoresde.Denoiser(network, chain.sde(), time_label=label)
            made = scoresde.sample(denoiser, (1,), [0], "ddim", chain.grid, x_init=x, dtype=torch.float64)
            likely = scoresde.log_prob(denoiser, std * x, "dpmpp_2m", "logsnr", 1000, divergence="exact")
            shown = scoresde.time_labels(denoiser, made.nodes[:-1])
            rows.append({"study": "labels", "label": label, "N": count, "std": std})
            rows[-1] |= {"first": shown[0], "last": shown[-1], "spread": abs(float(made.x)) / std - 1}
            rows[-1]["bits"] = float(target.log_prob(std * x) - likely.nats) / BITS
    return rows


def strong() -> Rows:
    """The mean distance of solvers that share a Brownian path, from t = 1 to t = 0.1."""
    specs = ("ddpm(variance=beta)", "ddpm", "reverse_diffusion", "euler_maruyama")
    counts = (20, 40, 80, 160, 320)
    ends: dict[tuple[str, int], Tensor] = {}
    for count in (*counts, 2 * counts[-1]):
        grid = solvers.grids.make(
            f"explicit(times={[k / count for k in range(count, count // 10 - 1, -1)]}, end=t_min)"
        )
        for spec in specs if count in counts else specs[:1]:
            options: dict[str, Any] = {"noise": "brownian", "dtype": torch.float64}
            ends[spec, count] = scoresde.sample(MIXTURE.denoiser(VP), (1,), SEEDS, spec, grid, **options).x
    rows: Rows = []
    for count in counts:
        own = ends[specs[0], count]
        others = {spec: ends[spec, count] for spec in specs[1:]} | {"2 N steps": ends[specs[0], 2 * count]}
        for name, other in others.items():
            apart = float((own - other).abs().mean())
            rows.append({"study": "strong", "beside": name, "N": count, "difference": apart})
    return rows


def powers(chain: Chain, target: GaussianMixture | float) -> Tensor:
    """E|eps|^2 / d (N,) of the exact model at a chain's nodes, for N(0, variance) or a mixture on the line."""
    nodes = chain.stacked
    alpha, sigma = nodes.alpha[1:], nodes.sigma[1:]
    if isinstance(target, float):
        return sigma**2 / (alpha**2 * target + sigma**2)
    x = torch.linspace(-7, 7, 14_001, dtype=torch.float64).unsqueeze(1)
    found = []
    for node in chain.nodes:
        density = torch.exp(target.log_prob(x, node))
        found.append((density * target.predict(x, node).eps[:, 0].square()).sum() / density.sum())
    return torch.stack(found)


def optimal(chain: Chain, target: GaussianMixture | float) -> DDPM:
    """The ancestral kernel with the optimal variance."""
    pairs = torch.stack([chain.stacked.lam[1:], powers(chain, target)], 1).flip(0)
    return DDPM(variance="optimal", eps_power=tuple(map(tuple, pairs.tolist())))


def variances() -> Rows:
    """The ratio of a step's variance to beta."""
    rows: Rows = []
    for count in (25, 1000):
        chain = VP.chain(count)
        shown = np.unique(np.geomspace(1, count, 100).round()).astype(int) - 1
        t, s = chain.steps(torch.from_numpy(shown))
        beta, tilde = forward_kernel(t, s)[1], posterior(t, s).variance
        found = {"beta_tilde": tilde / beta, "bound": 1 / (1 - torch.from_numpy(chain.betas[shown]))}
        for name, target in (("variance 0.25", 0.25), ("variance 4", 4.0), ("mixture", MIXTURE)):
            found[name] = optimal(chain, target).variance_of(t, s) / beta
        for name, ratio in found.items():
            rows.append({"study": "variances", "of": name, "N": count, "t": t.t.tolist(), "ratio": ratio.tolist()})
    return rows


def spread_left(chain: Chain, variance: float, solver: str) -> float:
    """The variance at the end of a chain that starts from N(0, 1), with the exact model of N(0, variance).

    The last step draws noise as all other steps do.
    """
    kernels = {"beta": DDPM("beta"), "beta_tilde": DDPM(), "optimal": optimal(chain, variance)}
    kernel = kernels.get(solver)  # of reverse diffusion, none
    total = 1.0
    for t, s in pairwise((*chain.nodes[::-1], Node(0.0, 1.0, 0.0))):
        whole = t.alpha**2 * variance + t.sigma**2
        if kernel is None:
            alpha_ts, added = forward_kernel(t, s)
            scale = 2 - alpha_ts - added / whole
        else:
            q = posterior(t, s)
            scale, added = q.on_x + q.on_x0 * t.alpha * variance / whole, kernel.variance_of(t, s)
        total = scale**2 * total + added
    return total


def spreads() -> Rows:
    """The relative error of that variance, by chain and data."""
    rows: Rows = []
    for variance in (0.25, 1.0, 4.0):
        for solver in ("beta", "beta_tilde", "optimal", "reverse_diffusion"):
            for count in (25, 100, 1000):
                left = spread_left(VP.chain(count, "ho"), variance, solver)
                rows.append({"study": "spreads", "variance": variance, "solver": solver, "N": count})
                rows[-1]["error"] = left / variance - 1
    return rows


def terms(chain: Chain, variance: float, kernel: DDPM) -> Tensor:
    """E L_0 .. E L_{N-1} (N,) in nats, for data N(0, variance) and the exact model.

    A term is quadratic in (x0, eps): its mean over the points (std, 1) and (std, -1) is its expectation.
    """
    index, target = torch.arange(chain.count), Gaussian(torch.zeros(1, dtype=torch.float64), variance)
    x0 = torch.full((chain.count, 1), math.sqrt(variance), dtype=torch.float64)
    at, _ = chain.steps(index)
    wide, total = at.like(x0), torch.zeros(chain.count, dtype=torch.float64)
    for eps in (torch.ones_like(x0), -torch.ones_like(x0)):
        prediction = target.predict(wide.alpha * x0 + wide.sigma * eps, at)
        total += step_terms(chain, index, x0, eps, prediction, kernel, GaussianDecoder()) / 2
    return total


def gaps() -> Rows:
    """The bound minus the data's entropy in bits/dim, always with the optimal first step; and the excess of each term
    with beta_tilde over that with the optimal variance, by index."""
    rows: Rows = []
    for variance in (0.25, 4.0):
        entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
        for count in (30, 100, 300, 1000, 3000, 10_000, 100_000, 1_000_000):
            chain = VP.chain(count, "ho")
            best = terms(chain, variance, optimal(chain, variance))
            last = float(prior_term(chain, torch.full((1, 1), math.sqrt(variance), dtype=torch.float64)))
            for name, kernel in (("beta", DDPM("beta")), ("beta_tilde", DDPM()), ("optimal", None)):
                found = best if kernel is None else terms(chain, variance, kernel)
                gap = (float(found[1:].sum() + best[0]) + last - entropy) / BITS
                rows.append({"study": "gaps", "variance": variance, "kernel": name, "N": count, "gap": gap})
                if name == "beta_tilde" and variance == 0.25 and count in (1000, 1_000_000):
                    excess = ((found - best)[1:51] / BITS).tolist()
                    rows.append({"study": "excess", "N": count, "terms": excess})
    return rows


def sums() -> Rows:
    """The sum of the terms with beta_tilde from t = 0.2 on, and the integral that it tends to, for data N(0, 0.25)."""
    low, high = (0.25 * math.exp(2 * VP(t).lam) for t in (1.0, 0.2))
    integral = 0.5 * (math.log1p(high) - math.log1p(low))
    rows: Rows = []
    for count in (100, 200, 400, 800, 1600):
        total = float(terms(VP.chain(count), 0.25, DDPM())[count // 5 :].sum())
        rows.append({"study": "sums", "N": count, "sum": total / BITS, "integral": integral / BITS})
    return rows


def line(axes: Axes, rows: Rows, key: str, name: str, *style: str, **options: Any) -> None:
    """Draws a number against N."""
    axes.loglog(
        [row["N"] for row in rows], [abs(row[key]) for row in rows], *style, label=name, markersize=4, **options
    )


def dress(axes: Axes, title: str, across: str) -> None:
    """Sets title, name of the horizontal axis and grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.grid(alpha=0.3, linewidth=0.5)


def slope(axes: Axes, start: tuple[float, float], factor: float) -> None:
    """Draws a line of slope -1."""
    axes.plot([start[0], start[0] * factor], [start[1], start[1] / factor], color="0.5", linewidth=1, linestyle="--")
    middle = start[0] * factor**0.5, start[1] / factor**0.5
    axes.annotate("1 / N", middle, (-14, -12), textcoords="offset points", ha="center", fontsize=9, color="0.35")


def picture_of_embeddings(rows: Rows) -> Figure:
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = (
        ("song", r"song: $\beta(t_i) / N$", "C0o-"),
        ("ho", "ho: a line", "C1s-"),
        ("ho, i / (N - 1)", r"ho, index $i$ at $t = i / (N - 1)$", "C3^-"),
    )
    for axes, key in ((left, "alpha"), (right, "sigma")):
        for embedding, name, style in shown:
            line(axes, pick(rows, "embeddings", embedding=embedding), key, name, style)
    slope(left, (300, 8e-4), 30)
    slope(right, (300, 0.03), 30)
    dress(left, r"largest difference of $\alpha$", "N")
    dress(right, r"relative difference of $\sigma$ at the second node", "N")
    worst = max(max(row["alpha"], row["sigma"]) for row in pick(rows, "embeddings", embedding="exact"))
    left.text(0.04, 0.06, f"exact: at most {worst:.0e} in both", transform=left.transAxes, fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def picture_of_paths(rows: Rows) -> Figure:
    figure = Figure(figsize=(8.2, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    seeds = (4, 6)
    names = {
        "ddpm(variance=beta)": (r"ancestral, variance $\beta$", "C0o-"),
        "reverse_diffusion": ("reverse diffusion", "C2s-"),
        "euler_maruyama": ("Euler-Maruyama", "C3^-"),
    }
    start = solvers.BrownianNoise(seeds, (1,), torch.float64).initial()

    def walk(spec: str, count: int) -> tuple[list[float], Tensor]:
        visited = [(start, 1.0)]

        def record(x: Tensor, node: Node) -> None:
            visited.append((x.clone(), node.t if node.sigma else 0.0))

        scoresde.sample(
            *(MIXTURE.denoiser(VP.chain(count).sde()), (1,), seeds, spec, VP.chain(count).grid),
            **{"noise": "brownian", "dtype": torch.float64, "hooks": [record], "x_init": start},  # type: ignore[arg-type]
        )
        return [t for _, t in visited], torch.cat([x for x, _ in visited], 1)

    fine, states = walk("ddpm(variance=beta)", 200)
    for k, path in enumerate(states):
        left.plot(fine, path, color="0.65", linewidth=0.6, label="" if k else "ancestral, N = 200")
    for spec, (name, style) in names.items():
        times, states = walk(spec, 20)
        for k, path in enumerate(states):
            left.plot(times, path, style, markersize=3, linewidth=1, label="" if k else name)
    left.invert_xaxis()
    dress(left, "N = 20, two Brownian paths", "t")
    left.set_ylabel("x")
    beside = (
        ("euler_maruyama", "Euler-Maruyama", "C3^-"),
        ("reverse_diffusion", "reverse diffusion", "C2s-"),
        ("ddpm", r"ancestral, variance $\tilde\beta$", "C1v-"),
        ("2 N steps", r"itself with $2 N$ steps", "C0o-"),
    )
    for other, name, style in beside:
        line(right, pick(rows, "strong", beside=other), "difference", name, style)
    slope(right, (60, 0.2), 5)
    dress(right, r"mean distance from ancestral, $\beta$, at $t = 0.1$", "N")
    counts = sorted({row["N"] for row in pick(rows, "strong")})
    right.set_xticks(counts, [str(count) for count in counts])
    right.minorticks_off()
    right.legend(fontsize=8, loc="lower left")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def picture_of_variances(rows: Rows) -> Figure:
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    shown = (
        ("beta_tilde", r"$\tilde\beta$", "C1"),
        ("bound", r"$\beta / (1 - \beta)$", "0.5"),
        ("variance 0.25", "optimal, variance 0.25", "C0"),
        ("variance 4", "optimal, variance 4", "C3"),
        ("mixture", "optimal, mixture", "C2"),
    )
    panels = figure.subplots(1, 2, sharey=True)
    for axes, count in zip(panels, (25, 1000), strict=True):
        for of, name, colour in shown:
            (row,) = pick(rows, "variances", of=of, N=count)
            axes.plot(row["t"], row["ratio"], color=colour, label=name, marker="o" if count == 25 else "", markersize=3)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label=r"$\beta$")
        axes.set_xscale("log")
        axes.set_ylim(-0.03, 1.8)
        dress(axes, rf"variance of a step over $\beta$, N = {count}", "t")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return figure


def picture_of_gaps(rows: Rows) -> Figure:
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kernel, name, colour in (("beta_tilde", r"$\tilde\beta$", "C1"), ("beta", r"$\beta$", "C0")):
        for variance, style in ((0.25, "o-"), (4.0, "s:")):
            found = pick(rows, "gaps", kernel=kernel, variance=variance)
            line(left, found, "gap", f"{name}, data variance {variance:g}", style, color=colour)
    left.axhline(LIMIT, color="black", linewidth=0.8, linestyle="--")
    left.annotate(rf"$\gamma / (2 \ln 2) = {LIMIT:.5f}$", (30, LIMIT), (0, -13), textcoords="offset points", fontsize=9)
    slope(left, (6000, 0.03), 30)
    most = max(abs(row["gap"]) for row in pick(rows, "gaps", kernel="optimal"))
    left.text(0.97, 0.9, f"optimal: at most {most:.0e}", transform=left.transAxes, fontsize=9, ha="right")
    dress(left, "bound less entropy, bits/dim", "N")
    left.legend(fontsize=8, loc="lower left")
    index = np.arange(1, 51)
    for count, colour, name in ((1000, "C2o", "N = 1000"), (1_000_000, "C1o", r"$N = 10^6$")):
        (row,) = pick(rows, "excess", N=count)
        right.loglog(index, row["terms"], colour, markersize=3.5, label=name)
    right.loglog(
        index,
        (1 / index - np.log1p(1 / index)) / (2 * BITS),
        "k-",
        linewidth=0.8,
        label=r"$(1/i - \ln(1 + 1/i)) / (2 \ln 2)$",
    )
    right.legend(fontsize=9)
    dress(right, r"what $\tilde\beta$ costs at index $i$, bits/dim", "i")
    return figure


def main() -> None:
    torch.set_num_threads(1)
    studies = (embeddings, labels, strong, variances, spreads, gaps, sums)
    rows = [row for study in studies for row in study()]
    header = {
        **environment(dtype=torch.float64),
        "command": "python -m benchmarks.chains.ddpm_and_sde",
        "sde": str(VP),
        "mixture": "N(-1, 0.04) and N(1, 0.04), equal weights",
        "seeds": f"0..{SEEDS[-1]}",
        "limit": LIMIT,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "ddpm_and_sde.json", {"header": header, "rows": rows})
    for name, picture in (
        ("embeddings", picture_of_embeddings),
        ("paths", picture_of_paths),
        ("variances", picture_of_variances),
        ("gaps", picture_of_gaps),
    ):
        write_figure(RESULTS / f"ddpm_and_sde_{name}.png", picture(rows), dpi=100)


if __name__ == "__main__":
    main()
