"""Output for people to read: the report page, the cards of solvers, the view of a program."""

from ..sampling.pictures import image_grid
from .solver_cards import markdown

__all__ = ["image_grid", "markdown"]
