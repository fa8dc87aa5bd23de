"""Problems: the base class, what the door adapts, and a loop that serves states without arithmetic."""

import math
from dataclasses import dataclass

import pytest
import torch

import solvers
from solvers import AnyNode, InputError, Problem, ProblemWrapper, SeededNoise, Solver, Step, grid, solve
from solvers.conformance.problems import VP, Mixture
from solvers.types.problem import NoDensity, as_problem

pytestmark = pytest.mark.quick


def start(nodes, count=5):
    return math.hypot(nodes[0].alpha, nodes[0].sigma) * torch.linspace(-2, 2, count, dtype=torch.float64).view(-1, 1)


class Eight(Problem):
    """A path and a prediction: all that a problem of one's own has to say."""

    path = VP

    def predict(self, x, node):
        return Mixture(VP).predict(x, node)


class OfADenoiser:
    sde = VP

    def predict(self, x, node):
        return Mixture(VP).predict(x, node)


class WithNodes:
    """The same as an object with functions for its nodes."""

    def node(self, t):
        return VP(t)

    def node_of_lam(self, lam):
        return VP(min(max(VP.t_of_lam(lam), VP.t_min), VP.t_max))

    def predict(self, x, node):
        return Mixture(VP).predict(x, node)


@pytest.mark.parametrize("problem", [Eight(), OfADenoiser(), WithNodes()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("spec", ["heun", "dpm_solver_2", "pndm", "churn", "rk45", "adams_adaptive", "pc"])
def test_every_kind_of_problem_is_solved_alike(problem, spec):
    nodes = grid("logsnr", VP, 6)
    ends = [
        solve(solvers.make(spec), given, start(nodes), nodes, SeededNoise(range(5), (1,), torch.float64)).x
        for given in (Mixture(VP), problem)
    ]
    assert torch.equal(*ends)


def test_an_object_that_cannot_predict_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^a problem needs predict\(x, node\), which int does not have$"):
        solve(solvers.make("heun"), 3, torch.zeros(1, 1), grid("logsnr", VP, 2))


def test_a_solver_that_looks_between_nodes_needs_a_path():
    class Only:
        def predict(self, x, node):
            return Mixture(VP).predict(x, node)

    nodes = grid("logsnr", VP, 4)
    alone = solve(solvers.make("heun"), Only(), start(nodes), nodes).x
    assert torch.equal(alone, solve(solvers.make("heun"), Mixture(VP), start(nodes), nodes).x)
    with pytest.raises(InputError, match=r"derive Only from solvers\.Problem, or give it an sde"):
        solve(solvers.make("dpm_solver_2"), Only(), start(nodes), nodes)


def test_a_density_is_asked_for_and_missed_by_name():
    node = VP(1.0)
    for given, name in ((Eight(), "Eight"), (as_problem(OfADenoiser()), "OfADenoiser")):
        with pytest.raises(NoDensity, match=rf"^{name} has no log_prob\(x, node\)$"):
            given.log_prob(torch.zeros(1, 1), node)

    class Known(OfADenoiser):
        def log_prob(self, x, node):
            return -x[:, 0]

    assert as_problem(Known()).log_prob(torch.tensor([[2.0]]), node).tolist() == [-2.0]


def test_a_wrapper_is_its_inner_problem_but_for_what_it_says():
    class Conditioned(Eight):
        output = solvers.Output("eps")

        def __init__(self, values):
            self.values = values

        def raw(self, x, node):
            return self.values * x

        def log_prob(self, x, node):
            return self.values[:, 0]

        def select(self, rows):
            return Conditioned(self.values[rows])

    class Doubled(ProblemWrapper):
        def predict(self, x, node):
            return self.problem.predict(2 * x, node)

    inner = Conditioned(torch.tensor([[1.0], [2.0], [3.0]]))
    wrapped, x, node = Doubled(inner), torch.ones(3, 1), VP(1.0)
    assert wrapped.path is VP
    assert wrapped.node(0.5) == VP(0.5)
    assert wrapped.node_of_lam(0.3) == inner.node_of_lam(0.3)
    assert wrapped.nodes_of_lam([0.3, 1.0]) == [inner.node_of_lam(0.3), inner.node_of_lam(1.0)]
    assert wrapped.output == inner.output
    assert torch.equal(wrapped.raw(x, node), inner.raw(x, node))
    assert torch.equal(wrapped.log_prob(x, node), inner.log_prob(x, node))
    assert torch.equal(wrapped.predict(x, node).x0, inner.predict(2 * x, node).x0)
    with pytest.raises(NotImplementedError):  # which rows a wrapper's own data have, it alone knows
        wrapped.select(slice(0, 1))


# what the loop says of hooks


@dataclass(frozen=True)
class Telling(Solver):
    """Euler's method; its carry counts how often it was told that a hook had replaced the state."""

    def init(self, problem, x, nodes):
        return 0

    def step(self, problem, x, t, s, carry, noise):
        prediction = problem.predict(x, t)
        return Step(
            s.alpha * prediction.x0 + s.sigma * prediction.eps, carry, error=torch.full((len(x),), float(carry))
        )

    def replaced(self, carry, x):
        assert torch.equal(x, torch.ones_like(x))
        return carry + 1


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (lambda x, node: None, 0),
        (lambda x, node: x, 0),  # the same tensor, untouched
        (lambda x, node: torch.ones_like(x), 1),
        (lambda x, node: x.fill_(1.0), 1),
        (lambda x, node: x.fill_(1.0) and None, 1),  # written into, and nothing returned
    ],
    ids=["looks", "returns it", "replaces it", "writes into it", "writes into it silently"],
)
def test_the_loop_tells_a_solver_that_a_hook_replaced_the_state(hook, told):
    nodes, x = grid("logsnr", VP, 4), torch.full((1, 1), 0.5, dtype=torch.float64)
    # the carry before each of four steps: 0, 1, 2, 3 where the hook replaces the state
    assert solve(Telling(), Mixture(VP), x, nodes, hooks=[hook]).error.tolist() == [6.0 * told]


# states without arithmetic


@dataclass(frozen=True)
class Kept(AnyNode):
    """A node of the absorbing path: a letter is still itself with probability ``kept``, and else masked."""

    t: float
    kept: float

    @property
    def noise_level(self):
        return 1 - self.kept

    @property
    def clean(self):
        return self.kept == 1


class Letters(Problem):
    """Letters 0 and 1, the first with probability 0.3; 2 is the mask. The prediction is the law of a masked letter."""

    space = "discrete"

    def predict(self, x, node):
        return torch.tensor([0.3, 0.7], dtype=torch.float64)


@dataclass(frozen=True)
class Unmask(Solver):
    """Tweedie's step of the absorbing path: a masked letter is drawn with probability (kept_s - kept_t) / (1 - kept_t).
    What is drawn depends on one uniform number, from a normal one by its own distribution function."""

    space = "discrete"

    @property
    def stochastic(self):
        return True

    def step(self, problem, x, t, s, carry, noise):
        law = problem.predict(x, t)
        u = torch.special.ndtr(noise(t, s))
        share = (s.kept - t.kept) / (1 - t.kept)
        drawn = torch.where(u < share * law[0], 0, 1)
        return Step(torch.where((x == 2) & (u < share), drawn, x))

    to_data = step


def test_the_same_loop_solves_a_path_of_discrete_states():
    """Ten thousand letters from all masks: the law of the data, at any number of steps, and the NFE counted."""
    count = 10_000
    for steps in (1, 4, 16):
        nodes = [Kept(1 - k / steps, k / steps) for k in range(steps + 1)]
        seen = []
        noise = SeededNoise(range(4), (count // 4,), torch.float64)
        x = torch.full((4, count // 4), 2)
        solution = solve(Unmask(), Letters(), x, nodes, noise, [lambda x, node, seen=seen: seen.append((x, node))])
        assert solution.nfe.tolist() == [steps] * 4
        for state, node in seen:  # four standard deviations of a share of ten thousand
            masked, first = (float((state == value).double().mean()) for value in (2, 0))
            assert masked == pytest.approx(1 - node.kept, abs=4 * math.sqrt(0.25 / count))
            assert first == pytest.approx(0.3 * node.kept, abs=4 * math.sqrt(0.25 / count))
        assert not bool((solution.x == 2).any())


def test_a_solver_of_another_space_is_refused():
    nodes = [Kept(1.0, 0.0), Kept(0.0, 1.0)]
    with pytest.raises(InputError, match=r"^heun solves for gaussian states, but the problem has discrete states$"):
        solve(solvers.make("heun"), Letters(), torch.full((1, 2), 2), nodes)
    with pytest.raises(InputError, match=r"solves for discrete states, but the problem has gaussian states$"):
        solve(Unmask(), Mixture(VP), torch.zeros(1, 1), grid("logsnr", VP, 2))


def test_nodes_of_any_kind_are_checked_by_their_level():
    up = [Kept(1.0, 0.0), Kept(0.5, 0.5), Kept(0.6, 0.4)]
    with pytest.raises(InputError, match=r"nodes 1 and 2 .* are out of order"):
        solve(Unmask(), Letters(), torch.full((1, 2), 2), up, SeededNoise([0], (2,)))
    with pytest.raises(InputError, match=r"node 0 \(t=1\) has noise_level=nan"):
        solve(Unmask(), Letters(), torch.full((1, 2), 2), [Kept(1.0, math.nan), Kept(0.0, 1.0)], SeededNoise([0], (2,)))


def test_solvers_are_listed_by_their_space():
    assert sorted(solvers.names(space="gaussian") + solvers.names(space="discrete")) == solvers.names()
    assert "heun" in solvers.names(space="gaussian")
    assert "tweedie" in solvers.names(space="discrete")
    assert solvers.make("churn").space == "gaussian"  # a wrapper's is that of the solver inside
    with pytest.raises(InputError, match=r"^no space of states 'gausian'; did you mean gaussian\?$"):
        solvers.names(space="gausian")
