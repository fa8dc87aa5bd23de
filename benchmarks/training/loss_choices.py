"""Measures the distance of networks to the exact score for each output and weighting:
python -m benchmarks.training.loss_choices

The data are a ring of eight Gaussians in two dimensions, whose score is known at every time. Networks of one size are
trained on VP with one budget of updates, from three seeds; only the network's output and the loss differ. The three
networks of a cell are trained side by side on different rows; of what they share, only the u of ``edm2`` learns. Times
are uniform in t and evenly spread, but for weightings whose papers have their own: ``edm`` and ``edm2`` draw log-normal
noise levels, ``likelihood`` draws uniform log-SNR and keeps the expectation of uniform times.

The error of a network is sqrt(E |eps_model - eps|^2) against the exact eps, a mean over dimensions, over log-SNR, which
is uniform, and over the states there; of averaged weights. Since eps = -sigma score, it is also the error of sigma
times the score. Its square times dimensions times half the range of log-SNR is the divergence of the reverse SDEs'
paths in nats (Song et al. 2021, arXiv:2101.09258, theorem 1). The error of x0 is measured as well, where the high noise
levels count. The figure of a cell is the geometric mean over the seeds. One thread. Writes
benchmarks/training/results/loss_choices.json.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde.io.result_files import environment, write_json
from scoresde.models.networks import networks
from scoresde.training.losses import Loss, losses
from solvers.noise.draws import Draws

RESULTS = Path(__file__).parent / "results"
PATH = scoresde.VP()
NETWORK, LABEL = "mlp(width=48, depth=2, time_features=32)", "c_noise"
STEPS, BATCH, RATE, WARMUP, DECAY = 1000, 128, 3e-3, 100, 0.995
SEEDS = (0, 1, 2)
OUTPUTS = ("x0", "eps", "v", "score", "velocity", "edm")
EVEN = "low_discrepancy(over=uniform)"
LOGNORMAL = "low_discrepancy(over=lognormal(mean=-1.2, std=1.2))"
WEIGHTINGS = {
    "dsm": EVEN,
    "likelihood": "importance(draw=low_discrepancy(over=logsnr), law=uniform)",
    "uniform": EVEN,
    "min_snr(gamma=5)": EVEN,
    "p2(gamma=1, k=1)": EVEN,
    "v": EVEN,
    "flow": EVEN,
    "edm": LOGNORMAL,
    "edm2": LOGNORMAL,
}
NEAR = 1.3  # times the best error
LEVELS, STATES = 66, 256  # of the measure
THIRDS = ("low", "middle", "high")  # of the range of log-SNR, by their noise


def mixture() -> scoresde.targets.GaussianMixture:
    """Eight Gaussians of deviation 0.1 on a circle of radius 1."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return scoresde.targets.GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1), 0.01)


class Members(nn.Module):
    """Networks of several seeds as one: a batch is divided evenly among them."""

    def __init__(self, seeds: tuple[int, ...]) -> None:
        super().__init__()
        parts = []
        for seed in seeds:
            torch.manual_seed(seed)
            parts.append(networks.make(NETWORK).build((2,)))
        stacked, _ = torch.func.stack_module_state(parts)
        self.count, self.names = len(parts), list(stacked)
        self.values = nn.ParameterList(value.detach() for value in stacked.values())
        self.called = (parts[0],)  # not a part of this module

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        def one(state: dict[str, Tensor], x: Tensor, label: Tensor) -> Any:
            return torch.func.functional_call(self.called[0], state, (x, label))

        state = dict(zip(self.names, self.values, strict=True))
        found = torch.func.vmap(one)(state, x.view(self.count, -1, 2), label.view(self.count, -1))
        return found.flatten(0, 1)  # type: ignore[no-any-return]


def trained(loss: Loss, output: str, data: Tensor) -> scoresde.Denoiser:
    """Denoisers with averaged weights after ``STEPS`` updates of AdamW, with a rate that falls to 0 as a cosine."""
    network = Members(SEEDS)
    denoiser = scoresde.Denoiser(network, PATH, output, LABEL, sigma_data=float(data.std()))
    state = loss.state(PATH)
    parameters = [*network.parameters(), *(state.parameters() if state is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    averaged = copy.deepcopy(network)
    means, weights = list[Tensor](averaged.parameters()), list[Tensor](network.parameters())
    for step in range(STEPS):
        share = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        draws = Draws.of(0, step, BATCH * len(SEEDS))
        rows = (draws.uniform("bins")[:, 0] * len(data)).long()
        optimizer.zero_grad()
        values = loss(denoiser, data[rows], draws, state)
        (len(SEEDS) * values.mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.remember(state, draws, values.detach())
        with torch.no_grad():
            decay = min(DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(means, weights, 1 - decay)
    return scoresde.Denoiser(averaged, PATH, output, LABEL, sigma_data=denoiser.sigma_data)


@torch.no_grad()
def errors(denoiser: scoresde.Denoiser, target: scoresde.targets.GaussianMixture) -> dict[str, list[float]]:
    """The root mean square errors for each seed, on the same states for all networks: of eps, eps in thirds, x0."""
    draws = Draws.of(10**6, 0, LEVELS * STATES)
    high, low = PATH(PATH.t_min).lam, PATH(PATH.t_max).lam
    lam = high - (high - low) * (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    node = PATH(PATH.times_of_lams(lam).repeat_interleave(STATES))
    x0 = target.sample(LEVELS * STATES, torch.Generator().manual_seed(10**6))
    wide = node.like(x0)
    x = wide.alpha * x0 + wide.sigma * draws.normal_like(x0)
    exact, count = target.predict(x, node), len(SEEDS)
    found = denoiser.predict(x.float().repeat(count, 1), PATH(node.t.repeat(count)))
    eps = (found.eps.double() - exact.eps.repeat(count, 1)).square().view(count, len(THIRDS), -1)
    x0 = (found.x0.double() - exact.x0.repeat(count, 1)).square().view(count, -1)
    thirds = {f"eps_{name}": eps[:, k] for k, name in enumerate(THIRDS)}
    squares = {"eps": eps.flatten(1), "x0": x0, **thirds}
    return {name: value.mean(1).sqrt().tolist() for name, value in squares.items()}


def geometric(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    torch.set_num_threads(1)
    target = mixture()
    data = target.sample(20000, torch.Generator().manual_seed(0)).float()
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for weighting, times in WEIGHTINGS.items():
        loss = losses.make(f"dsm(weighting={weighting}, times={times})")
        for output in OUTPUTS:
            found = errors(trained(loss, output, data), target)
            row: dict[str, Any] = {"output": output, "weighting": weighting, "times": times}
            for name, values in found.items():
                row |= {f"{name}_error": geometric(values), f"{name}_errors": values}
            rows.append(row)
            print(f"{time.perf_counter() - began:6.0f} s  {weighting:18} {output:9} {row['eps_error']:.4f} "
                  f"{row['x0_error']:.4f}", flush=True)  # fmt: skip
    best = {name: min(row[f"{name}_error"] for row in rows) for name in ("eps", "x0")}
    for row in rows:
        row |= {f"{name}_ratio": row[f"{name}_error"] / best[name] for name in best}
    header = {
        **environment(),
        "command": "python -m benchmarks.training.loss_choices",
        "seconds": round(time.perf_counter() - began),
        "data": "8 Gaussians of deviation 0.1 on a circle of radius 1, 20000 rows",
        "sde": str(PATH),
        "network": NETWORK,
        "time_label": LABEL,
        "updates": STEPS,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "average": f"ema(decay={DECAY})",
        "seeds": list(SEEDS),
        "near": NEAR,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "loss_choices.json", {"header": header, "best": best, "rows": rows})


if __name__ == "__main__":
    main()
