"""Measurement operators: what an observation y = A(x0) + sigma n shows of a sample."""

from .base import SVD, Operator, log_likelihood, measure, operators
from .blur import Blur
from .check import check
from .linear import Downsample, Gray, Inpaint, Matrix, Sense
from .nonlinear import Custom, Phase, Quantise, Tanh

make = operators.make
names = operators.names

__all__ = [
    "SVD",
    "Blur",
    "Custom",
    "Downsample",
    "Gray",
    "Inpaint",
    "Matrix",
    "Operator",
    "Phase",
    "Quantise",
    "Sense",
    "Tanh",
    "check",
    "log_likelihood",
    "make",
    "measure",
    "names",
    "operators",
]
