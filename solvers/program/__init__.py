"""Programs: a linear solver on a grid as a table of numbers, which can be run, compared, saved and loaded."""

from .analysis import difference, equal, response, terminal_covariance
from .from_file import File
from .instructions import Combine, Draw, Evaluate
from .program import Answer, Program, evaluator, shares
from .trace import NoProgram

__all__ = [
    "Answer",
    "Combine",
    "Draw",
    "Evaluate",
    "File",
    "NoProgram",
    "Program",
    "difference",
    "equal",
    "evaluator",
    "response",
    "shares",
    "terminal_covariance",
]
