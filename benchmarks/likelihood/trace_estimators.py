"""Compares the errors of trace estimators at equal numbers of products:
python -m benchmarks.likelihood.trace_estimators

The Jacobians are those of the network of configs/digits_vp.py (trained in --workdir or a temporary folder), in float64,
along the probability-flow ODE of held-out 8x8 digits spread over their bins. Their known part, a multiple of the
identity, is subtracted first, as in ``log_prob``. Every estimator gets the same numbers of vector-Jacobian products:

* hutchinson with random signs, and orthogonal with a random frame: one product per probe;
* hutchpp (Meyer et al. 2021, arXiv:2010.09649, algorithm 1): three products per vector;
* xtrace (Epperly, Tropp, Webber 2024, arXiv:2301.07825, section 2.1): two products per vector. Each vector probes the
  complement of the span of J^T times the other vectors, so that every vector serves both purposes.

``at`` contains the root-mean-square error of tr(dD/dy) at a few r = sigma / alpha, which is the error per unit of log r
in log p, in nats. ``along`` contains that of the whole integral over log r with the same vectors for the whole solve,
in nats and in bits/dim. The mean is over samples and draws of the vectors. ``spectrum`` shows the possible gain: the
fractions of the Jacobian's squared Frobenius norm in its largest singular values and in its diagonal.

Writes trace_estimators.json to benchmarks/likelihood/results.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.likelihood.methods import held_out, trained
from scoresde.io.result_files import environment, fingerprint, write_json
from scoresde.likelihood.divergence import Divergence, Hutchinson, HutchPP, Orthogonal, Products
from scoresde.paths.base import ModelLike

RESULTS = Path(__file__).parent / "results"
RATIOS = (0.03, 0.1, 0.3, 1.0, 3.0)
PRODUCTS = (6, 12, 24)
NODES = 61  # of the integral, evenly spread in log r
TOP = 4  # singular values whose share is reported


def xtrace(products: Products, vectors: Tensor) -> Tensor:
    """The estimates (B, k) of XTrace, one for each of the vectors (B, k, d) that it leaves out in turn.

    With Q R = Y = J^T S, the span of all columns of Y but the i-th is that of Q (I - s_i s_i^T), s_i the normalised
    i-th column of R^-T. On it the trace is exact, and mu_i, what is left of the i-th vector, probes the rest, scaled to
    the length that a probe on the sphere of the d - k + 1 dimensions left has.
    """
    k, d = vectors.shape[1:]
    omega, y = vectors.mT, products(vectors.transpose(0, 1)).permute(1, 2, 0)  # (B, d, k)
    q, r = torch.linalg.qr(y)
    z = products(q.permute(2, 0, 1)).permute(1, 2, 0)  # J^T Q
    s = torch.linalg.inv(r).mT
    s = s / s.norm(dim=1, keepdim=True)
    h, w = q.mT @ z, q.mT @ omega
    w = w - s * (s * w).sum(1, keepdim=True)
    mu, image = omega - q @ w, y - z @ w
    rest = (d - k + 1) * (mu * image).sum(1) / (mu * mu).sum(1)
    estimates: Tensor = torch.diagonal(h, dim1=1, dim2=2).sum(1, keepdim=True) - (s * (h @ s)).sum(1) + rest
    return estimates


def estimators(products: int) -> dict[str, tuple[Divergence, Callable[[Products, Tensor], Tensor]]]:
    """The estimators by name: a function that draws the vectors, and one that returns the estimate (B,)."""

    def of(rule: Divergence) -> tuple[Divergence, Callable[[Products, Tensor], Tensor]]:
        return rule, lambda ask, vectors: rule.trace(ask, vectors, vectors[:, 0]).mean(1)

    return {
        "hutchinson": of(Hutchinson(products)),
        "orthogonal": of(Orthogonal(products)),
        "hutchpp": of(HutchPP(products // 3)),
        "xtrace": (Hutchinson(products // 2, "sphere"), lambda ask, vectors: xtrace(ask, vectors).mean(1)),
    }


def jacobians(denoiser: ModelLike, x: Tensor, ratios: Tensor) -> Tensor:
    """dD/dy less the part of it that is known (len(ratios), B, d, d) along the ODE of y = x / alpha from data x (B, *):
    with s = sigma / alpha dy/ds = eps, by Heun's method in log s."""
    y, found, d = x, [], x[0].numel()

    def ask(y: Tensor, ratio: float) -> tuple[Tensor, Tensor, Any]:
        node = denoiser.sde.node_of_lam(-math.log(ratio))
        leaf = (node.alpha * y).requires_grad_()
        prediction = denoiser.predict(leaf, node)
        return prediction.x0, leaf, (prediction.eps.detach(), node)

    previous: tuple[float, Tensor] | None = None
    for ratio in ratios.tolist():
        if previous is not None:  # predict, then correct with the slope at the end
            width = math.log(ratio / previous[0])
            slope = previous[0] * previous[1]
            end = ask(y + width * slope, ratio)[2][0] * ratio
            y = y + width * (slope + end) / 2
        x0, leaf, (eps, node) = ask(y, ratio)
        basis = torch.eye(d, dtype=x.dtype).unsqueeze(1).expand(d, len(x), d).reshape(d, *x.shape)
        (rows,) = torch.autograd.grad(x0, leaf, basis, is_grads_batched=True)
        share = denoiser.output.weights(node)[0][0]  # type: ignore[attr-defined]
        whole = rows.flatten(2).transpose(0, 1) - share * torch.eye(d, dtype=x.dtype)
        found.append(node.alpha * whole)
        previous = (ratio, eps)
    return torch.stack(found)


def spectrum(matrices: Tensor) -> dict[str, float]:
    """Of matrices (B, d, d), means over them."""
    total = matrices.square().sum((1, 2))
    top = torch.linalg.svdvals(matrices)[:, :TOP].square().sum(1)
    return {
        "frobenius": float(total.sqrt().mean()),
        f"largest_{TOP}": float((top / total).mean()),
        "diagonal": float((torch.diagonal(matrices, dim1=1, dim2=2).square().sum(1) / total).mean()),
    }


def measure(matrices: Tensor, weights: Tensor, draws: int) -> dict[str, dict[str, Any]]:
    """The errors of each estimator on matrices (nodes, B, d, d), of which all but the last len(RATIOS) nodes are those
    of the integral with ``weights``."""
    table: dict[str, dict[str, Any]] = {}
    d, count = matrices.shape[-1], len(weights)
    truth = torch.diagonal(matrices, dim1=2, dim2=3).sum(2)
    for products in PRODUCTS:
        for name, (rule, estimate) in estimators(products).items():
            vectors = rule.draw(list(range(draws)), d)
            assert vectors is not None
            error = torch.empty(*matrices.shape[:2], draws, dtype=matrices.dtype)
            for node, sample in torch.cartesian_prod(*(torch.arange(n) for n in matrices.shape[:2])).tolist():
                matrix = matrices[node, sample]
                # v^T J of rows v is a product with J from the right
                error[node, sample] = estimate(partial(torch.matmul, other=matrix), vectors) - truth[node, sample]
            along = torch.tensordot(weights, error[:count], 1)
            rms = float(along.square().mean().sqrt())
            table[f"{name}, {products} products"] = {
                "at": {str(r): float(e.square().mean().sqrt()) for r, e in zip(RATIOS, error[count:], strict=True)},
                "along": {"nats": rms, "bits_per_dim": rms / (d * math.log(2)), "mean": float(along.mean())},
            }
            at = "".join(f"{float(e.square().mean().sqrt()):8.3f}" for e in error[count:])
            print(f"{name:11s} {products:3d} {at}   along {rms:7.3f} nats", flush=True)
    return table


def main() -> None:
    """Trains, differentiates, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="keep the network here, or find it")
    parser.add_argument("--samples", type=int, default=24, help="held-out digits")
    parser.add_argument("--draws", type=int, default=256, help="of each estimator's vectors")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _, run = trained(arguments.workdir)
    x = held_out(run, arguments.samples)
    sde = run.denoiser.sde
    low, high = (math.log(sde(t).ratio) for t in (sde.t_min, sde.t_max))
    along = torch.linspace(low, high, NODES, dtype=torch.float64).exp()
    order = torch.cat([along, torch.tensor(RATIOS, dtype=torch.float64)]).sort()
    matrices = jacobians(run.denoiser, x, order.values)[order.indices.argsort()]
    weights = torch.full((NODES,), (high - low) / (NODES - 1), dtype=torch.float64)
    weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
    at = matrices[NODES:]
    write_json(
        arguments.out / "trace_estimators.json",
        {
            "command": "python -m benchmarks.likelihood.trace_estimators",
            "environment": environment(dtype=torch.float64),
            "config": run.config.to_dict(),
            "step": run.step,
            "sde": str(sde),
            "test": f"{len(x)} held-out digits, {fingerprint(x)}",
            "seeds": [0, arguments.draws],
            "nodes": NODES,
            "spectrum": {str(r): spectrum(matrix) for r, matrix in zip(RATIOS, at, strict=True)},
            "errors": measure(matrices, weights, arguments.draws),
        },
    )


if __name__ == "__main__":
    main()
