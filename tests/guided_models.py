"""Models with conditions whose predictions are exact, and guidance of them, for several test files."""

import torch

import scoresde
import solvers
from scoresde import guide
from scoresde.data.conditions import Condition
from scoresde.models.targets import GaussianMixture
from solvers import Node, Prediction
from solvers.types.model_output import Output

VP = scoresde.VP()
BOTH = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.25)
RIGHT, LEFT = (GaussianMixture(torch.tensor([[m]]), 0.25) for m in (1.0, -1.0))
PATHS = {"vp": VP, "ve": scoresde.VE(), "flow": scoresde.RectifiedFlow()}
OUTPUTS = ("x0", "eps", "v", "score", "velocity", "edm")


class Exact:
    """The same as an object with ``predict``, without a network."""

    def __init__(self, sde=VP, parts=(LEFT, RIGHT, BOTH), output=None):
        self.sde, self.parts, self.shape = sde, parts, (1,)
        if output is not None:
            self.output = Output(output)
            self.raw = self._raw

    def predict(self, x, node, y):
        if bool((y == y[0]).all()):
            return self.parts[int(y[0])].predict(x, node)
        first, second, third = (part.predict(x, node) for part in self.parts)
        pick = y.view(-1, *(1,) * (x.ndim - 1))
        return Prediction(*(
            torch.where(pick == 2, getattr(third, k), torch.where(pick == 1, getattr(second, k), getattr(first, k)))
            for k in ("x0", "eps")
        ))  # fmt: skip

    def _raw(self, x, node, y):
        found = self.predict(x, node, y)
        return self.output.target(found.x0, found.eps, node.like(x))


def pair(sde=VP, predicts="x0"):
    """A network whose output is exact: of the whole mixture for y = 2, "no class"; else of one of its two parts."""
    exact, output = Exact(sde), Output(predicts)

    def network(x, t, y):
        nodes = [sde(float(value)) for value in t]
        found = exact.predict(x, node := Node.stack(nodes, x.ndim).like(x), y)
        return output.target(found.x0, found.eps, node)

    return scoresde.Denoiser(network, sde, predicts, "t", conditions=(Condition("y", "class", classes=2),), shape=(1,))


NULL = {"y": 2}


def states(count=6, d=1, seed=0):
    return torch.randn(count, d, generator=solvers.generator(seed), dtype=torch.float64)


def classes(count, k=1):
    return torch.full((count,), k)


def guided(spec, model=None, **more):
    return guide(Exact() if model is None else model, spec, null=NULL, **more)


LINEAR = ["cfg(scale=3)", "cfg(scale=3, interval=[0.3, 3])", "cfg(scale=-0.5)", "negative(scale=2)",
          "autoguidance(scale=2.5)",
          "compose(scales=[2.5])"]  # fmt: skip


def made(spec, sde=VP, output=None):
    """A guided model, with what its rule needs."""
    more = {"negative": {"y": torch.tensor([0])}} if "negative" in spec else {}
    more |= {"bad": Exact(sde, (BOTH, BOTH, BOTH), output)} if "auto" in spec else {}
    return guide(Exact(sde, output=output), spec, null=NULL, **more)
