"""Multistep solvers: a step is a weighted sum of the state and of the predictions made so far."""

from .adams import DEIS, IPNDM, IPNDMV, LMS, PLMS, PNDM, RES2M, Adams, GradientEstimation
from .dpm_solver import DPMpp2M, DPMpp2MSDE, DPMpp3M, DPMpp3MSDE, DPMSolver2M, DPMSolver3M
from .er_sde import ERSDE
from .few import Few
from .sa_solver import SASolver
from .uni_pc import UniPC, UniPCBh2

__all__ = [
    "DEIS",
    "ERSDE",
    "IPNDM",
    "IPNDMV",
    "LMS",
    "PLMS",
    "PNDM",
    "RES2M",
    "Adams",
    "DPMSolver2M",
    "DPMSolver3M",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp3M",
    "DPMpp3MSDE",
    "Few",
    "GradientEstimation",
    "SASolver",
    "UniPC",
    "UniPCBh2",
]
