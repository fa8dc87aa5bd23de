"""A small mixture on three paths, its references, and tunings of it that take a second."""

import math

import torch

import scoresde
import solvers
from scoresde.models.problem import Diffusion
from solvers.tuning import tune_program

PATHS = {"vp": scoresde.VP(), "ve": scoresde.make_sde("ve"), "flow": scoresde.make_sde("rectified_flow")}
VP = PATHS["vp"]
MEANS = torch.tensor([[-0.9, 0.2], [0.1, -0.5], [0.6, 0.7], [0.8, -0.4]], dtype=torch.float64)
MIXTURE = scoresde.targets.GaussianMixture(MEANS, 0.02, [0.1, 0.4, 0.3, 0.2])


def problem_on(sde, target=MIXTURE):
    return Diffusion(target.denoiser(sde))


PROBLEM = problem_on(VP)


def starts(sde, seeds):
    node = sde(sde.t_max)
    z = solvers.SeededNoise(seeds, (2,), torch.float64).initial()
    return math.hypot(node.alpha, node.sigma) * z


def reference(seeds, problem=PROBLEM, sde=VP, grid="logsnr(end=zero)", steps=24):
    return solvers.trajectory(problem, starts(sde, seeds), sde, grid, steps)


def references():
    return {
        "reference": reference(range(96)),
        "validation": reference(range(1000, 1096)),
        "held_out": reference(range(2000, 2192)),
    }


def tune(known, solver="ipndm", nfe=5, **options):
    given = {"validation": known["validation"], "held_out": known["held_out"], "grid": "kl_optimal", **options}
    return tune_program(solver, PROBLEM, nfe, known["reference"], **given)
