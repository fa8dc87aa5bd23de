"""Known tokens: exactly the conditional law for masks, the replacement heuristic for other noise."""

import pytest
import torch
from discrete_problems import dirichlet

import scoresde
import solvers
from scoresde.models.problem import Diffusion
from scoresde.paths.discrete import Absorbing, Uniform
from solvers import InputError
from solvers.conformance.discrete import LEVEL, p_value
from solvers.conformance.kernels import all_states, end_law

TARGET = dirichlet(0.5, 3, 3, seed=4)
STATES = all_states(3, 3)
KNOWN = torch.tensor([-1, 1, -1])


def conditional():
    law = TARGET.weights * (STATES[:, 1] == 1)
    return law / law.sum()


@pytest.mark.parametrize("spec", ["first_hitting", "entropy_bounded(budget=0)", "decode(order=random)"])
def test_samples_of_masked_tokens_follow_the_exact_conditional_law(spec):
    model = scoresde.keep(TARGET.denoiser(Absorbing(3)), KNOWN)
    drawn = scoresde.sample(model, seeds=20000, solver=spec)
    assert p_value(drawn.x, conditional(), 3) > LEVEL


# total variation of the exact kernels' law at 8, 16, 32 steps, measured: for masks it has order one; for uniform noise
# it is still 0.155 at 256 steps
@pytest.mark.parametrize(
    ("process", "found"),
    [(Absorbing(3), (4.473e-2, 2.237e-2, 1.118e-2)), (Uniform(3), (0.2181, 0.1839, 0.1673))],
    ids=str,
)
def test_the_law_of_all_steps(process, found):
    model, space = scoresde.keep(TARGET.denoiser(process), KNOWN), all_states(process.values, 3)
    wanted = torch.zeros(len(space)).double()
    wanted[(space < 3).all(1)] = conditional()
    errors = []
    for steps in (8, 16, 32):
        nodes = solvers.grid("uniform", process, steps)
        law = end_law(solvers.make("tweedie"), Diffusion(model), process.prior[space].prod(1), 3, nodes)
        errors.append(0.5 * float((law - wanted).abs().sum()))
    assert errors == pytest.approx(found, rel=5e-3)


@pytest.mark.parametrize("spec", ["tweedie", "theta_trapezoidal", "gibbs", "maskgit"])
def test_known_tokens_are_kept_by_every_solver_and_may_differ_between_samples(spec):
    known = torch.full((9, 3), -1)
    known[:, 0] = torch.arange(9) % 3
    known[4] = torch.tensor([2, 1, 0])
    for process in (Absorbing(3), Uniform(3)) if spec != "maskgit" else (Absorbing(3),):
        model = scoresde.keep(TARGET.denoiser(process), known)
        drawn = scoresde.sample(model, seeds=9, solver=spec, steps=5)
        assert bool(((drawn.x == known) | (known == -1)).all())
        alone = scoresde.sample(scoresde.keep(TARGET.denoiser(process), known[5]), seeds=[5], solver=spec, steps=5)
        assert torch.equal(alone.x[0], drawn.x[5])
        parts = scoresde.sample(model, seeds=9, solver=spec, steps=5, batch_size=4)
        assert torch.equal(parts.x, drawn.x)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ([0.0, 1.0, -1.0], r"^known must be whole numbers, tokens and -1 where a token is free, got torch\.float"),
        ([0, 3, -1], r"^known has the value 3, but absorbing\(.*\) has the values 0 to 2, and -1 is free$"),
        ([0, -2, -1], "^known has the value -2"),
        ([0, 1], r"^known has the shape \(2,\), but samples have \(3,\)$"),
    ],
)
def test_bad_known_tokens(known, message):
    with pytest.raises(InputError, match=message):
        scoresde.keep(TARGET.denoiser(Absorbing(3)), known)


def test_other_models_and_numbers_of_samples():
    gaussian = scoresde.targets.Gaussian(torch.zeros(2), 1.0).denoiser(scoresde.VP())
    with pytest.raises(InputError, match="has gaussian states, but discrete states are needed here"):
        scoresde.keep(gaussian, [0, -1])
    model = scoresde.keep(TARGET.denoiser(Absorbing(3)), torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(InputError, match=r"^the condition known_tokens has 4 rows for 5 samples"):
        scoresde.sample(model, seeds=5)
