"""One-step solvers: each step starts from the state alone (Runge-Kutta, ancestral, exponential, SEEDS)."""

from .ancestral import DDIM, DDPM, SMLD, EulerMaruyama, ReverseDiffusion, forward_kernel, posterior
from .dpm_solver import DPMFast, DPMpp2S, DPMpp3S, DPMSolver1, DPMSolver2, DPMSolver3
from .k_diffusion_ancestral import DPM2Ancestral, DPMpp2SAncestral, EulerAncestral
from .res import RES2S, RES3S
from .runge_kutta import DPM2, ClassicalRK4, Euler, Heun, RhoRK, Tableau
from .seeds import SEEDS1, SEEDS2, SEEDS3, DPMppSDE

__all__ = [
    "DDIM",
    "DDPM",
    "DPM2",
    "RES2S",
    "RES3S",
    "SEEDS1",
    "SEEDS2",
    "SEEDS3",
    "SMLD",
    "ClassicalRK4",
    "DPM2Ancestral",
    "DPMFast",
    "DPMSolver1",
    "DPMSolver2",
    "DPMSolver3",
    "DPMpp2S",
    "DPMpp2SAncestral",
    "DPMpp3S",
    "DPMppSDE",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "Heun",
    "ReverseDiffusion",
    "RhoRK",
    "Tableau",
    "forward_kernel",
    "posterior",
]
