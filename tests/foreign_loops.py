"""Loops like those of diffusers' pipelines, and this library's own answer to the same question."""

import diffusers
import pytest
import torch

import scoresde
import solvers
from scoresde.models.problem import Diffusion
from scoresde.paths.chain_paths import ChainSDE
from scoresde.sampling.batches import SOURCES

REQUIRED = ["dpmpp_2m", "uni_pc", "heun", "dpmpp_2m_sde", "ddpm", "er_sde", "res_2m"]
LINEAR = [name for name in solvers.names() if solvers.make(name).linear]
VARIANTS = [
    "churn(heun, s_churn=40)",
    "ddim(eta=0.5)",
    "pc(corrector=annealed_langevin)",
    "picard(sweeps=3)",
    "restart(heun)",
    "sa_solver(pece=True)",
]
CHAIN = ChainSDE()


def ddim(**options):
    return diffusers.DDIMScheduler(**{"clip_sample": False, **options})


def network(x, label):
    """A smooth function of the state and of a label in 0..1000, of which a loop's timesteps keep float32."""
    tau = 0.003 * label.float().to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return 0.9 * torch.tanh(0.8 * x + 0.4 * x.roll(1, -1) + torch.cos(tau)) - 0.2 * x * torch.sin(tau)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def start(shape=(2, 3, 4), dtype=torch.float64):
    return torch.randn(shape, generator=seeded(0), dtype=dtype)


def loop(scheduler, x, generator=None, begin=0, blend=None, denoise=network):
    """What a pipeline does from entry ``begin`` of the timesteps on; ``blend`` changes the state after every step."""
    for t in scheduler.timesteps[begin:]:
        asked = scheduler.scale_model_input(x, t)
        x = scheduler.step(denoise(asked, t.expand(len(x))), t, x, generator=generator).prev_sample
        x = x if blend is None else blend(x)
    return x


def denoiser(sde=CHAIN, predicts="eps", label="index", denoise=network):
    return scoresde.Denoiser(denoise, sde, predicts, label)


def solved(model, spec, nodes, x, generator=None, hooks=()):
    """``solvers.solve``, with the draws that a loop makes of the generator."""

    def noise(t, s):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    with torch.no_grad():
        return solvers.solve(solvers.make(spec), Diffusion(model), x, nodes, noise, hooks).x


class Sampled:
    """``scoresde.sample`` from a given start, with the draws that a loop makes of a generator."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def __call__(self, model, spec, grid, x, generator=None, **options):
        def source(seeds, shape, dtype, device):
            return lambda t, s: torch.randn((len(seeds), *shape), generator=generator, dtype=dtype)

        self.monkeypatch.setitem(SOURCES, "a loop's", source)
        options = {"noise": "a loop's", "dtype": x.dtype, **options}
        return scoresde.sample(model, x.shape[1:], range(len(x)), spec, grid, x_init=x, **options).x


@pytest.fixture
def sampled(monkeypatch):
    return Sampled(monkeypatch)


def first_state(spec, nodes, sde, output, x, generator):
    """The state of the first evaluation, where a loop begins: x itself but for solvers that draw before."""
    program = solvers.trace(spec, nodes, sde, output)

    def noise(t, s):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return next(program.steps(x, noise)).x


def gap(a, b):
    """The largest difference, relative to the largest number."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
