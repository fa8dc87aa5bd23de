"""Every function that solves warns of samples that are too wide or narrow, in terms of its own arguments."""

import math
import re
import warnings

import diffusers
import pytest
import torch

import scoresde
import solvers
from scoresde.interop import DiffusersScheduler, sample_function
from scoresde.models.targets import Gaussian
from scoresde.sampling.width import LEAST, LIMIT, WrongWidth
from solvers import Output
from solvers.program.analysis import widening

DENOISER, WIDE = (Gaussian(torch.zeros(d), 0.25).denoiser(scoresde.EDM()) for d in (1, 256))


def warned(act):
    """The result of a call, and its warnings of width."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = act()
    return result, [str(warning.message) for warning in caught if warning.category is WrongWidth]


def said(message):
    """The width that a warning states, and that of its remedy."""
    found = re.search(r" is ([\d.e+]+) times the right one; with .* it would be ([\d.]+) times$", message)
    return float(found[1]), float(found[2])


@pytest.mark.parametrize(
    ("solver", "steps", "wide"),
    [
        # of heun itself 80 and 4.09; two half steps and one whole step of it are in between
        ("pc(predictor=heun)", 2, 80),
        ("pc(predictor=heun)", 3, 4.09),
        ("picard(solver=heun)", 2, 80),
        ("step_doubling", 2, 39.5),
        ("step_doubling", 3, 2.75),
        # Langevin's step doubles the deviation of its first sample, which is all noise
        ("pc", 2, 160),
        ("pc", 3, 7.9),
        ("pc(predictor=heun, corrector=mala)", 2, 80),
    ],
)
def test_solvers_without_a_program_warn_too(solver, steps, wide):
    plan = scoresde.plan(DENOISER, solver, "karras", steps)
    _, (message,) = warned(lambda: plan.warn_of_width(Output("x0")))
    found, better = said(message)
    assert found == pytest.approx(wide, rel=0.06)  # 4096 draws: 1.1 % of the deviation, and Langevin's norms scatter
    assert 1 / LIMIT <= better <= LIMIT
    x = scoresde.sample(WIDE, (256,), range(8), plan=plan).x
    assert float(x.std()) / 0.5 == pytest.approx(found, rel=0.1)  # 2048 numbers: 1.6 %
    other = re.search(r"grid='(.*?)'(?:, steps=(\d+))?", message)
    remedy = scoresde.plan(DENOISER, solver, other[1], int(other[2] or steps))
    assert warned(lambda: remedy.warn_of_width(Output("x0")))[1] == []


def test_a_solver_without_a_program_warns_once():
    def draw():
        scoresde.sample(DENOISER, (1,), 2, "pc(corrector_steps=2)", "karras", 2)

    assert [len(warned(draw)[1]) for _ in range(2)] == [1, 0]


def test_a_solver_that_cannot_solve_the_test_data_is_not_checked():
    class Picky(type(solvers.make("heun"))):
        nonlinear = "it asks for its own problem"

        def step(self, problem, x, t, s, carry, noise):
            problem.problem.conditions  # noqa: B018  (of scoresde's problem only)
            return super().step(problem, x, t, s, carry, noise)

    sampled, messages = warned(lambda: scoresde.sample(DENOISER, (1,), 2, Picky(), "karras", 2))
    assert messages == []
    assert bool(sampled.x.isfinite().all())


def test_noise_that_data_are_encoded_to():
    x = 0.5 * torch.special.ndtri((torch.arange(999).double() + 0.5) / 999).view(-1, 1)
    found, (message,) = warned(lambda: scoresde.encode(DENOISER, x, "heun", "karras", 2))
    assert message.startswith("heun encodes to noise that is too narrow in these 2 steps: ")
    wide, better = said(message)
    assert wide < LEAST
    assert wide == pytest.approx(float(found.x.std()) / math.hypot(80, 0.5), rel=0.01)
    assert 1 / LIMIT <= better <= LIMIT
    grid, steps = re.search(r"grid='(.*?)', steps=(\d+)", message).groups()
    again, messages = warned(lambda: scoresde.encode(DENOISER, x, "heun", grid, int(steps)))
    assert messages == []
    assert float(again.x.std()) / math.hypot(80, 0.5) == pytest.approx(better, rel=0.01)


def test_samples_with_their_density():
    (x, _), (message,) = warned(lambda: scoresde.sample_with_log_prob(DENOISER, (1,), 2000, "heun", steps=2))
    wide, better = said(message)
    assert float(x.std()) / math.hypot(0.5, 0.002) == pytest.approx(wide, rel=0.1)  # 2000 samples: 1.6 %
    assert wide > 39
    assert 1 / LIMIT <= better <= LIMIT


def test_the_likelihood_warns_of_its_own_plan_alone():
    x = torch.tensor([[0.3], [-0.2]])
    _, messages = warned(lambda: scoresde.log_prob(DENOISER, x, "heun", "uniform", 8, error=True))
    assert len(messages) == 1  # not of the two coarser solves
    assert "heun encodes to noise that is too narrow in these 8 steps" in messages[0]
    assert warned(lambda: scoresde.log_prob(DENOISER, x, "heun", "uniform", tolerance=0.5))[1] == []
    assert warned(lambda: scoresde.log_prob(DENOISER, x))[1] == []  # an adaptive solver


def made(scheduler):
    """The width of a scheduler's program."""
    return widening(scheduler._program, scheduler._reading.output.sigma_data)


@pytest.mark.parametrize(
    ("solver", "source", "steps"),
    [
        ("dpmpp_3m_sde", diffusers.DDPMScheduler(timestep_spacing="leading"), 40),
        ("heun", diffusers.EDMEulerScheduler(), 2),
        ("heun", diffusers.FlowMatchEulerDiscreteScheduler(), 2),
    ],
)
def test_a_scheduler_names_its_own_arguments(solver, source, steps):
    scheduler = DiffusersScheduler(solver, source)
    _, (message,) = warned(lambda: scheduler.set_timesteps(steps))
    wide, better = said(message)
    assert made(scheduler) == pytest.approx(wide, rel=0.01)
    assert warned(lambda: scheduler.set_timesteps(steps))[1] == []  # once
    grid = re.search(r"; with DiffusersScheduler\(grid='(.*?)'\)", message)[1]
    more = re.search(r" and set_timesteps\((\d+)\)", message)
    other = DiffusersScheduler(solver, source, grid)
    assert warned(lambda: other.set_timesteps(int(more[1]) if more else steps))[1] == []
    assert made(other) == pytest.approx(better, rel=0.01)
    assert 1 / LIMIT <= better <= LIMIT


@pytest.mark.parametrize("sigmas", [[80, 0.002, 0], [80, 5, 0.002], [14.6, 0.03, 0], [14.6, 1.0, 0.03]])
def test_a_k_diffusion_sampler_names_a_list_of_sigmas(sigmas):
    sample = sample_function("heun")

    def draw(sigmas):
        z = torch.special.ndtri((torch.arange(999).double() + 0.5) / 999).view(-1, 1)
        x = math.hypot(0.5, float(sigmas[0])) * z
        return sample(lambda x, sigma: 0.25 / (0.25 + sigma.view(-1, 1) ** 2) * x, x, sigmas, disable=True)

    x, (message,) = warned(lambda: draw(sigmas))
    wide, better = said(message)
    assert float(x.std()) / math.hypot(0.5, sigmas[-1]) == pytest.approx(wide, rel=0.02)
    assert warned(lambda: draw(sigmas))[1] == []  # once
    count, low, high, cut = re.search(r"sigmas=get_sigmas_karras\((\d+), (.*?), (.*?)\)(\[:-1\])?;? ", message).groups()
    ramp = torch.linspace(0, 1, int(count), dtype=torch.float64)  # Karras et al. 2022, eq. 5, and 0
    ends = float(high) ** (1 / 7), float(low) ** (1 / 7)
    levels = [*((ends[0] + ramp * (ends[1] - ends[0])) ** 7).tolist(), 0.0][: -1 if cut else None]
    again, messages = warned(lambda: draw(levels))
    assert messages == []
    assert float(again.std()) / math.hypot(0.5, levels[-1]) == pytest.approx(better, rel=0.02)
    assert 1 / LIMIT <= better <= LIMIT
