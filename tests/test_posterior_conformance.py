"""Every registered posterior method passes the checks of methods, and the checks can fail.

The wrong methods below are each one mistake away from a right one; the check that names the mistake must fail.
"""

import itertools
from dataclasses import dataclass

import pytest
import torch

import scoresde
from scoresde.benchmark.posterior_problems import mixture_problem
from scoresde.cli import main
from scoresde.models.per_sample import row_sums, rows
from scoresde.posterior.base import DenoiserPosterior, Posterior, posteriors
from scoresde.posterior.check import (
    EFFORT,
    Effort,
    attempted,
    check,
    check_batch,
    check_exactness,
    check_operators,
    check_prior,
    check_steps,
)
from scoresde.posterior.denoisers import DPS, JFPS, NaiveDPS

FAST = Effort(draws=100, steps=25)
# options with which the methods that make many evaluations make fewer; particles take the longest
FEWER = {
    "daps": "daps(outer=6, langevin=5)",
    "repaint": "repaint(jump=5, repeats=2)",
    "split_gibbs": "split_gibbs(sweeps=15, inner=6, langevin=5)",
}
pytestmark = pytest.mark.filterwarnings("ignore:tmpd counts negative variances")


def names():
    for name in posteriors.names():
        marks = [pytest.mark.slow] if name == "tds" else [pytest.mark.quick] if name in ("jfps", "ddrm") else []
        yield pytest.param(FEWER.get(name, name), marks=marks)


@pytest.mark.parametrize("spec", list(names()))
def test_every_method_passes_every_check(spec):
    verdicts = check(posteriors.make(spec), FAST)
    found = {verdict.name for verdict in verdicts}
    assert {"spec round trip", "independence of the steps", "pictures", "observations without noise"} <= found
    assert sum(name.startswith("alone and in a batch on ") for name in found) == 6
    failed = [str(verdict) for verdict in verdicts if not verdict.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize("name", posteriors.names())
def test_every_method_passes_in_full(name):
    failed = [str(verdict) for verdict in check(posteriors.make(name), EFFORT) if not verdict.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.quick
def test_what_is_stated_is_what_is_checked():
    """Which cases each method is measured on: those of its ``exact_for``."""
    stated = {}
    for name in posteriors.names():
        if name not in ("tds", "split_gibbs"):
            found = list(attempted(check_exactness, posteriors.make(name), FAST))
            assert all(verdict.passed for verdict in found)
            stated[name] = [verdict.name.removeprefix("exact for ") for verdict in found]
    one = ["N(m, 1.5 I) under a mask", "N(m, 1.5 I) under a matrix"]
    wide = [f"N(m, {law}) under a {kind}" for law in ("diagonal", "C") for kind in ("mask", "matrix")]
    assert {name: cases for name, cases in stated.items() if cases} == {
        "ddrm": one, "jfps": one, "pigdm": one, "mmps": one + wide, "tmpd": [one[0], wide[0]],
    }  # fmt: skip


# every method under a solver of the ODE and one of the SDE, or under the kind that it takes
BOTH = ("dpmpp_2m", "dpmpp_2m_sde")
MATRIX = {
    "ddrm": ("ddim",),
    "daps(outer=4)": ("heun",),
    "split_gibbs(sweeps=3, inner=4)": ("dpmpp_2m_sde",),
    "tds(particles=8)": ("ddpm", "euler_maruyama"),
    "repaint(jump=3, repeats=2)": BOTH,
    **dict.fromkeys(sorted({*posteriors.names()} - {"ddrm", "daps", "split_gibbs", "tds", "repaint"}), BOTH),
}


@pytest.mark.parametrize("method", MATRIX)
@pytest.mark.parametrize("path", ["vp", "ve", "rectified_flow"])
def test_an_observation_has_the_bits_that_it_has_alone(method, path):
    """Of a mixture, by ``restore``: each observation with two draws, among others and alone, in both precisions."""
    problem = mixture_problem(4, 0.1, observations=3)
    model = problem.prior.denoiser(scoresde.make_sde(path))
    for solver, dtype in itertools.product(MATRIX[method], (torch.float32, torch.float64)):
        how = {"posterior": method, "seeds": [7, 2], "solver": solver, "steps": 7, "dtype": dtype}
        whole = scoresde.restore(model, problem.operator, problem.y, **how)
        assert whole.x.dtype == dtype
        assert whole.x.isfinite().all()
        assert torch.equal(whole.x, scoresde.restore(model, problem.operator, problem.y, batch_size=4, **how).x)
        alone = scoresde.restore(model, problem.operator, problem.y[1], **how)
        assert torch.equal(alone.x[0], whole.x[1]), (solver, dtype)
        for part in ("log_evidence", "effective"):
            assert (getattr(alone, part) is None) or torch.equal(getattr(alone, part)[0], getattr(whole, part)[1])


@dataclass(frozen=True)
class PerStep(Posterior):
    """A method that is stronger the more steps there are."""

    noise = "needed"

    def draw(self, task):
        return NaiveDPS(scale=len(task.nodes) / 50).draw(task)


@dataclass(frozen=True)
class HookPerStep(Posterior):
    """A correction of the same size after each step, as that of the published loops."""

    def draw(self, task):
        def pull(x, node):
            return x + 0.02 * task.operator.adjoint(node.alpha * task.y - task.operator(x), task.shape)

        return JFPS(variance=1e-9).draw(task.__class__(**{**vars(task), "hooks": (pull,)}))


@dataclass(frozen=True)
class BatchNorm(DPS):
    """The norm of the residual is that of the batch."""

    def predict(self, ask):
        mean = ask.operator(ask.found.x0)
        res = ask.y - mean.detach()
        return ask.moved(ask.node.sigma**2 * ask.gradient(mean, res / (res.norm() + 1e-9)))


@dataclass(frozen=True)
class Overstated(JFPS):
    """States too much."""

    def exact_version(self, covariance, operator):
        return self


@dataclass(frozen=True)
class Unmeasured(NaiveDPS):
    """States something that nothing measures."""

    exact_for = "all data"


@dataclass(frozen=True)
class OwnNoise(Posterior):
    """Draws noise that no seed decides."""

    def draw(self, task):
        found = JFPS().draw(task)
        return found._replace(x=found.x + 1e-6 * torch.randn_like(found.x))


@dataclass(frozen=True)
class Divides(DenoiserPosterior):
    """Divides by the noise of y, and says that any will do."""

    def predict(self, ask):
        res = (ask.y - ask.operator(ask.x0)) / ask.operator.sigma**2
        shape = tuple(ask.x0.shape[1:])
        size = rows(1 + row_sums(res.square()).sqrt(), ask.x)
        return ask.moved(ask.node.sigma**2 * ask.operator.adjoint(res, shape) / size)


@dataclass(frozen=True)
class Raises(DenoiserPosterior):
    """Fails."""

    def predict(self, ask):
        raise ZeroDivisionError("of mine")


@dataclass(frozen=True)
class Narrow(DenoiserPosterior):
    """Half of the model's x0 is forgotten, whatever y says."""

    noise = "needed"

    def predict(self, ask):
        return ask.moved(-0.5 * ask.x0)


WRONG = {
    PerStep: (check_steps, "independence of the steps"),
    HookPerStep: (check_steps, "independence of the steps"),
    BatchNorm: (check_batch, "alone and in a batch on"),
    Overstated: (check_exactness, "exact for N(m, diagonal)"),
    Unmeasured: (check_exactness, "exact_for"),
    OwnNoise: (check_batch, "alone and in a batch on"),
    Divides: (check_operators, "observations without noise"),
    Narrow: (check_prior, "the prior N(0, I)"),
    Raises: (check_steps, "steps"),
}


@pytest.mark.quick
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_method_is_told(wrong):
    verify, name = WRONG[wrong]
    failed = [verdict.name for verdict in attempted(verify, wrong(), Effort(1000, 50)) if not verdict.passed]
    assert any(one.startswith(name) for one in failed), failed


@pytest.mark.quick
def test_fixed_renoising_has_no_limit():
    """The released step of ddrm forgets the prior, the more the more steps there are."""
    released = posteriors.make("ddrm(renoise=fixed, eta=1)")
    for verify, name in ((check_steps, "independence of the steps"), (check_prior, "the prior N(0, I)")):
        verdicts = list(attempted(verify, released, Effort(1000, 100)))
        assert not next(verdict for verdict in verdicts if verdict.name.startswith(name)).passed


@pytest.mark.quick
def test_the_command_prints_verdicts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("scoresde.posterior.check.verdicts.__defaults__", (FAST,))
    assert main(["check-posterior", "jfps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "jfps: exact for Gaussian data of this variance in every direction, linear operators"
    assert lines[-1] == "15 of 15 checks passed"
    assert all(line.startswith("PASS  ") for line in lines[1:-1])
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom scoresde.posterior.denoisers import JFPS\n\n"
        "@dataclass(frozen=True)\nclass Mine(JFPS):\n    def exact_version(self, covariance, operator):\n"
        "        return self\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["check-posterior", "mine:Mine"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("mine:Mine: exact for Gaussian data")
    assert "FAIL  exact for N(m, C) under a matrix: x0 of mine:Mine has the relative error" in out
    assert main(["check-posterior", "jfsp"]) == 2
    assert "did you mean jfps" in capsys.readouterr().err
