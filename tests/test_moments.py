"""The power of eps against its closed form, and what it is for."""

import pytest
import torch

import scoresde
import solvers
from scoresde import InputError
from solvers.conformance.convergence import terminal_variance
from solvers.conformance.problems import GaussianData

pytestmark = pytest.mark.quick

V = 0.25


def table(sde, count=4000, **options):
    target = scoresde.targets.Gaussian(torch.zeros(3), V)
    return scoresde.eps_power(target.denoiser(sde), target.sample(count, torch.Generator().manual_seed(1)), **options)


@pytest.mark.parametrize("sde", [scoresde.VP(), scoresde.EDM()], ids=str)
def test_the_power_is_that_of_gaussian_data(sde):
    for lam, power in table(sde, levels=7):
        ratio2 = torch.tensor(-2 * lam, dtype=torch.float64).exp().item()
        exact = ratio2 / (V + ratio2)  # Var eps = sigma^2 / (alpha^2 v + sigma^2)
        # 12000 squares of normal numbers: a standard error of sqrt(2 / 12000), and four of them
        assert power == pytest.approx(exact, rel=4 * (2 / 12000) ** 0.5)


def test_the_optimal_variance_that_it_gives_is_near_the_exact_one_in_few_steps():
    sde = scoresde.VP()
    pairs = [list(pair) for pair in table(sde, levels=60)]
    problem, nodes = GaussianData(sde, V), solvers.grid("logsnr", sde, 6)
    optimal, plain = (
        abs(terminal_variance(solvers.make(spec), problem, nodes) / problem.variance(nodes[-1]) - 1)
        for spec in (f"ddpm(variance=optimal, eps_power={pairs})", "ddpm")
    )
    assert optimal < 0.03  # the table's own error, about 0.01 a level
    assert plain > 5 * optimal


def test_batches_do_not_change_it():
    whole, parts = table(scoresde.VP(), 100, levels=3), table(scoresde.VP(), 100, levels=3, batch_size=7)
    assert [p for _, p in parts] == pytest.approx([p for _, p in whole], rel=1e-12)


@pytest.mark.parametrize(("options", "message"), [({"levels": 1}, "levels"), ({"levels": 0}, "levels")])
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(InputError, match=message):
        table(scoresde.VP(), 10, **options)
    with pytest.raises(InputError, match="x0"):
        scoresde.eps_power(
            scoresde.targets.Gaussian(torch.zeros(2), V).denoiser(scoresde.VP()), torch.ones(3, dtype=torch.long)
        )
