"""Every registered solver of discrete states passes its checks, and the checks can fail.

Each broken solver below is one mistake away from a right one; the check that names the mistake must be the one that
fails.
"""

import math
from dataclasses import dataclass

import pytest
import torch

import solvers
from scoresde.cli.parser import main
from solvers import Step
from solvers.conformance import discrete
from solvers.conformance.checks import check
from solvers.conformance.processes import ABSORBING, PROCESSES, UNIFORM
from solvers.discrete.base import Product, evaluated
from solvers.discrete.exact import FirstHitting
from solvers.discrete.posteriors import Tweedie
from solvers.discrete.rates import TauHold
from solvers.discrete.two_stage import ThetaTrapezoidal

COSTLY = ("theta_trapezoidal", "theta_rk2", "discrete_pc", "uniformization")  # of these, one process in `make test`


def cases():
    for name in solvers.names("discrete"):
        for process in PROCESSES:
            if discrete.accepts(solvers.make(name), process):
                slow = name in COSTLY and process is not UNIFORM
                yield pytest.param(name, process, marks=[pytest.mark.slow] * slow, id=f"{name}-{process}")


@pytest.mark.parametrize(("name", "process"), list(cases()))
def test_every_solver_of_discrete_states_passes_every_check(name, process):
    solver = solvers.make(name)
    verdicts = check(solver, (process,))
    wanted = {"alone and in a batch", "few steps to the data"}
    wanted |= {"draws"} if solver.order == math.inf else set()
    wanted |= {"order", "laws", "draws"} if discrete.has_kernels(solver) else set()
    assert {verdict.name for verdict in verdicts} >= {"spec round trip", *(f"{name} on {process}" for name in wanted)}
    failed = [str(verdict) for verdict in verdicts if not verdict.passed]
    assert not failed, "\n".join(failed)


@dataclass(frozen=True)
class WrongPosterior(Tweedie):
    """Takes the law that sees its own noisy token for the one that does not: a bias at any number of steps."""

    order = 1.0

    def moves(self, problem, x, t, s, carry):
        path = problem.path
        x0 = path.x0_of_loo(evaluated(problem, x, t).x0, x, t)
        x = yield Product(path.posterior(x0, x, t, s), x)
        return Step(x, carry)


@dataclass(frozen=True)
class NoSum(TauHold):
    """Euler's probabilities of moves with the probability to stay of exponential times."""

    order = 1.0

    def law(self, rates, x, duration):
        away = duration * rates
        return away.scatter(-1, x[..., None], torch.exp(-away.sum(-1, keepdim=True)))


@dataclass(frozen=True)
class OrderOne(ThetaTrapezoidal):
    """Declares order two with a kernel of order one."""

    kernel: str = "reject"
    order = 2.0


@dataclass(frozen=True)
class OtherDraws(TauHold):
    """Its draws take longer steps than its kernel, which has fewer states at once."""

    order = 1.0

    def law(self, rates, x, duration):
        return super().law(rates, x, (1.2 if len(x) == discrete.DRAWS else 1.0) * duration)


@dataclass(frozen=True)
class Miscounted(Tweedie):
    order, evaluations = 1.0, 2


@dataclass(frozen=True)
class OwnNumbers(Tweedie):
    order = 1.0

    def step(self, problem, x, t, s, carry, noise):
        return super().step(problem, x, t, s, carry, lambda t, s: torch.rand(x.shape, dtype=torch.float64))


@dataclass(frozen=True)
class OtherValues(FirstHitting):
    """Declares itself exact, but exchanges the values that it draws."""

    order, adaptive = float("inf"), True

    def events(self, problem, x, t, s, noise):
        made = super().events(problem, x, t, s, noise)
        masked = (x == problem.path.mask) & (made.x != problem.path.mask)
        return made._replace(x=torch.where(masked, (made.x + 1) % problem.path.states, made.x))


@dataclass(frozen=True)
class LeavesMasks(Tweedie):
    order = 1.0

    def end(self, problem, x, t, s, carry):
        return self.moves(problem, x, t, t, carry)


@dataclass(frozen=True)
class Remembering(Tweedie):
    """Uses the prediction of the step before."""

    order = 1.0

    def moves(self, problem, x, t, s, carry):
        found = evaluated(problem, x, t).x0
        x = yield Product(problem.path.posterior(found if carry is None else carry, x, t, s), x)
        return Step(x, found)


@pytest.mark.parametrize(
    ("broken", "process", "failing"),
    [
        (WrongPosterior, UNIFORM, "order"),
        (NoSum, ABSORBING, "laws"),
        (OrderOne, UNIFORM, "order"),
        (OtherDraws, UNIFORM, "draws"),
        (OtherValues, ABSORBING, "draws"),
        (Miscounted, UNIFORM, "evaluations"),
        (OwnNumbers, UNIFORM, "alone and in a batch"),
        (LeavesMasks, ABSORBING, "few steps to the data"),
        (Remembering, UNIFORM, "restartable"),
    ],
)
def test_a_mistake_fails_the_check_that_names_it(broken, process, failing):
    verdicts = getattr(discrete, f"check_{CHECKS[failing]}")(broken(), (process,))
    failed = [verdict for verdict in verdicts if not verdict.passed]
    assert [verdict.name.partition(" on ")[0] for verdict in failed] == [failing]
    assert failed[0].hint


CHECKS = {
    "order": "order",
    "laws": "laws",
    "draws": "draws",
    "evaluations": "evaluations",
    "alone and in a batch": "batch",
    "few steps to the data": "few_steps",
    "restartable": "capabilities",
}

MINE = '''
from dataclasses import dataclass

from solvers import Step
from solvers.discrete import DiscreteSolver, Product
from solvers.discrete.base import evaluated


@dataclass(frozen=True)
class Mine(DiscreteSolver):
    """Draws every token from its posterior."""

    order = 1.0

    def moves(self, problem, x, t, s, carry):
        x = yield Product(problem.path.posterior(evaluated(problem, x, t).x0, x, t, s), x)
        return Step(x, carry)


@dataclass(frozen=True)
class Biased(Mine):
    def moves(self, problem, x, t, s, carry):
        x = yield Product(problem.path.posterior(evaluated(problem, x, t).x0 ** 2, x, t, s), x)
        return Step(x, carry)
'''


def test_a_solver_of_a_user_is_checked_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mytokens.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert main(["check-solver", "mytokens:Mine"]) == 0
    said = capsys.readouterr().out
    assert "PASS  order on birth_death: measured" in said
    assert said.rstrip().endswith("19 of 19 checks passed")
    assert main(["check-solver", "mytokens:Biased"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  laws on uniform: probabilities miss" in said
    assert "look at: the probability that a token stays" in said


def test_states_of_few_expected_draws_count_as_one():
    """Of a law with many rare states, 4000 draws of the law itself pass, and a state that it does not have fails."""
    law = torch.cat([torch.full((200,), 1e-4), torch.tensor([0.58, 0.4, 0.0])]).double()
    drawn = torch.multinomial(law, 4000, True, generator=torch.Generator().manual_seed(1))[:, None]
    assert discrete.p_value(drawn, law, len(law)) > 0.01
    impossible = drawn.clone()
    impossible[0] = 202
    assert discrete.p_value(impossible, law, len(law)) == 0.0
    skewed = torch.where(torch.arange(4000)[:, None] % 10 == 0, torch.tensor(201), drawn)
    assert discrete.p_value(skewed, law, len(law)) < discrete.LEVEL
