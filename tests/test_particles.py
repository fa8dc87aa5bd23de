"""Posterior methods with particles, against exact posteriors and evidence.

Runs with thousands of particles are marked ``slow``; the quick ones are the same checks with fewer.
"""

import math
from dataclasses import replace

import pytest
import torch

import scoresde
from scoresde.benchmark.posterior_problems import digits_problem, mixture_problem
from scoresde.models.model import Model, as_model
from scoresde.models.targets import Gaussian, GaussianMixture
from scoresde.operators.linear import Inpaint, Matrix
from scoresde.operators.nonlinear import Custom, Quantise
from scoresde.posterior.base import Task, posteriors
from scoresde.posterior.kernel import kernel
from scoresde.posterior.particles import TDS, Cloud
from solvers import InputError, Prediction, generator, make, solve

DTYPE = torch.float64
VP = scoresde.VP()
PATHS = ["vp", "ve(sigma_min=0.01, sigma_max=50)", "rectified_flow"]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DTYPE, generator=generator(seed))


def nodes(count, largest=100.0, least=0.0106, sde=VP):
    """Equal steps of log(alpha / sigma), then the data: the grid of the measured rows."""
    lams = torch.linspace(-math.log(largest), -math.log(least), count, dtype=DTYPE).tolist()
    return (*map(sde.node_of_lam, lams), sde.clean)


def task(denoiser, operator, y, shape, places, seeds=None, solver="ddpm", conditions=None):
    seeds = range(len(y)) if seeds is None else seeds
    return Task(as_model(denoiser), operator, y, shape, make(solver), places, tuple(seeds), conditions or {})


def run(method, *args, **kwargs) -> Cloud:
    with torch.no_grad():
        return posteriors.make(method).cloud(task(*args, **kwargs))


def evenly(cloud, count):
    """``count`` of the particles of each sample (B, count, *), at equal distances among the weights."""
    places = (torch.arange(count, dtype=DTYPE) + 0.5) / count
    return cloud.chosen(places.expand(len(cloud.x), count).contiguous())


# mixtures, whose posterior is a mixture


def scored(problem, cloud, count):
    """The scores of particles and those of exact draws, against exact draws."""
    truth, others = (problem.draws(count, generator(seed)) for seed in (1, 2))
    return problem.scores(evenly(cloud, count), truth), problem.scores(others, truth)


def log_evidence(problem):
    return torch.tensor([problem.prior.log_evidence(problem.operator, y) for y in problem.y], dtype=DTYPE)


@pytest.mark.quick
def test_particles_draw_the_posterior_of_a_mixture():
    problem = mixture_problem(4, 0.1, observations=3)
    cloud = run("tds(250)", problem.prior.denoiser(VP), problem.operator, problem.y, (8,), nodes(60))
    found, noise = scored(problem, cloud, 250)
    # 60 steps instead of 200, and three observations: 0.012 is the noise of the full row
    assert found["sw"] < 2 * max(noise["sw"], 0.012), found
    assert found["tv"] < 0.05, found
    assert 0.85 < found["chi2"] < 1.15, found
    assert float((cloud.log_evidence - log_evidence(problem)).square().mean().sqrt()) < 0.35
    assert bool((cloud.effective > 10).all())
    assert bool((cloud.effective <= 250).all())


@pytest.mark.slow
@pytest.mark.parametrize("m", [4, 1])
def test_a_row_of_the_reference(m):
    problem = mixture_problem(m, 0.1)
    cloud = run("tds(250)", problem.prior.denoiser(VP), problem.operator, problem.y, (8,), nodes(200))
    found, noise = scored(problem, cloud, 250)
    assert found["sw"] <= 2 * noise["sw"], (found, noise)
    assert found["tv"] < (0.03 if m == 4 else 0.05), (found, noise)
    assert 0.9 < found["chi2"] < 1.05
    error = cloud.log_evidence - log_evidence(problem)
    assert float(error.square().mean().sqrt()) < 0.2, error


# data sets, whose posterior is exact under every operator


def digits(kind, particles, variance=None, **options):
    problem = digits_problem(kind)
    variance = float(problem.prior.data.flatten(1).var(0).mean())
    method, prior = TDS(particles, variance=variance, **options), problem.prior.denoiser(VP)
    cloud = run(method, prior, problem.operator, problem.y, (1, 8, 8), nodes(60))
    return scored(problem, cloud, 50)


@pytest.mark.slow
def test_more_particles_are_nearer_to_the_posterior_of_digits():
    """The reference has 0.136, 0.107 and 0.084 for 50, 200 and 800 particles, and 0.053 for exact draws.

    Each is one run for ten observations, whose particles descend from few. Runs of 50 with other seeds have 0.105 to
    0.179 here, with the mean 0.14, and 0.124 to 0.176 in the reference's program, with the mean 0.147: these are alike.
    """
    found = [digits("inpaint", k)[0]["sw"] for k in (50, 200, 800)]
    assert found[0] > found[1] > found[2], found
    assert found == pytest.approx([0.155, 0.135, 0.09], rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "few", "many"), [("phase", 0.063, 0.050), ("tanh", 0.208, 0.171)])
def test_observations_that_are_not_linear(kind, few, many):
    found = [digits(kind, k)[0]["sw"] for k in (50, 400)]
    assert found[1] < found[0], found
    # one run for ten observations each; DPS has 0.15 and 0.18 at best
    assert found[0] < 1.3 * few, found
    assert found[1] < 1.1 * many, found


# Gaussian data, whose posterior is Gaussian

D, M, NOISE = 6, 3, 0.3
FACTOR = normal(D, D, seed=1)
COVARIANCE = FACTOR @ FACTOR.T / D + 0.1 * torch.eye(D, dtype=DTYPE)
MEAN, Y, SEEN = normal(D, seed=3), normal(M, seed=4), Matrix(normal(M, D, seed=2), sigma=NOISE)


@pytest.mark.quick
def test_the_posterior_of_gaussian_data():
    prior, k = Gaussian(MEAN, COVARIANCE), 1000
    exact = prior.posterior(SEEN, Y)
    cloud = run(f"tds({k})", prior.denoiser(VP), SEEN, Y[None], (D,), nodes(100, 40.0, 0.02))
    w = torch.softmax(cloud.log_weights[0], 0)
    x = cloud.x[0] - exact.means[0]
    truth = exact.vectors[0] @ torch.diag(exact.values[0]) @ exact.vectors[0].T
    # four standard errors of K draws, doubled for particles with common ancestors
    assert bool(((w @ x).abs() < 8 * (truth.diagonal() / k).sqrt()).all())
    covariance = (w[:, None] * x).T @ x
    # sqrt(2 D / K) = 0.11 for independent draws, and 100 steps, which leave the samples a little narrow
    assert float((covariance - truth).norm() / truth.norm()) < 0.2
    assert float(cloud.log_evidence[0]) == pytest.approx(prior.log_evidence(SEEN, Y), abs=0.25)


@pytest.mark.quick
@pytest.mark.parametrize("sde", PATHS[1:])
def test_every_path_moves_equal_particles(sde):
    """At equal noise levels x / alpha is the same, so that all paths have the same particles."""
    clouds = []
    for path in (VP, scoresde.make_sde(sde)):
        places = nodes(20, 40.0, 0.02, path)
        clouds.append(run("tds(16)", Gaussian(MEAN, COVARIANCE).denoiser(path), SEEN, Y[None], (D,), places))
    assert torch.allclose(clouds[0].x, clouds[1].x, rtol=0, atol=1e-6)
    assert torch.allclose(clouds[0].log_evidence, clouds[1].log_evidence, rtol=0, atol=1e-5)


@pytest.mark.quick
def test_a_draw_of_each_run_is_a_draw_of_the_posterior():
    """One particle of each of 300 independent runs of 32."""
    prior, n = Gaussian(MEAN, COVARIANCE), 300
    exact = prior.posterior(SEEN, Y)
    method = posteriors.make("tds(32)")
    with torch.no_grad():
        drawn = method.draw(task(prior.denoiser(VP), SEEN, Y.expand(n, M), (D,), nodes(30, 40.0, 0.02)))
    variances = (exact.vectors[0] @ torch.diag(exact.values[0]) @ exact.vectors[0].T).diagonal()
    # four standard errors of the mean and of the variance, and a tenth for 32 particles
    assert bool(((drawn.x.mean(0) - exact.means[0]).abs() < (4 / math.sqrt(n) + 0.1) * variances.sqrt()).all())
    assert torch.allclose(drawn.x.var(0), variances, rtol=4 * math.sqrt(2 / n) + 0.1)
    assert torch.equal(drawn.nfe, torch.full((n,), 32 * 30))


@pytest.mark.quick
def test_an_observation_that_says_nothing_leaves_the_particles_alone():
    """With infinite noise the particles are draws of the prior: the states of the solver, with equal weights."""
    prior, seen = Gaussian(MEAN, COVARIANCE).denoiser(VP), Matrix(normal(M, D, seed=2), sigma=1e9)
    job = task(prior, seen, Y.expand(2, M), (D,), nodes(20))
    with torch.no_grad():
        cloud = posteriors.make("tds(8)").cloud(job)
        noise = job.noise(9)
        start = job.start(noise).flatten(0, 1)
        found = solve(make("ddpm"), prior, start, job.nodes, lambda t, s: noise(t, s).flatten(0, 1))
    assert torch.allclose(cloud.x, found.x.view(2, 9, D)[:, :8], rtol=0, atol=1e-9)
    assert torch.allclose(cloud.effective, torch.full((2,), 8.0, dtype=DTYPE))


@pytest.mark.quick
def test_a_twist_is_the_law_of_the_observation_given_the_state():
    """For data N(0, v I) the twist is p(y | x_t) itself, so that fine steps leave the weights equal."""
    prior = Gaussian(torch.zeros(D), 0.5)
    right, wrong = (
        run(f"tds(64, {twist}, resample=0)", prior.denoiser(VP), SEEN, Y[None], (D,), nodes(120, 40.0, 0.01))
        for twist in ("variance=0.5", "twist=point")
    )
    assert float(right.effective) > 35  # 59 with 800 steps
    assert float(right.log_evidence) == pytest.approx(prior.log_evidence(SEEN, Y), abs=0.2)
    assert float(wrong.effective) < 20


@pytest.mark.quick
def test_the_weights_alone_find_what_the_guidance_does_not():
    """Rounding has gradient 0, so the particles are not guided; the right half of the data is found nevertheless."""
    prior = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.05, [0.5, 0.5])
    seen = Quantise(2, sigma=0.3)
    cloud = run("tds(500)", prior.denoiser(VP), seen, torch.ones(1, 1, dtype=DTYPE), (1,), nodes(30))
    right = float((torch.softmax(cloud.log_weights[0], 0) * (cloud.x[0, :, 0] > 0)).sum())
    assert right > 0.99  # the exact value is 1 - exp(-2^2 / (2 0.3^2)), to ten digits 1
    # p(y) is half of the density of y at its level
    assert float(cloud.log_evidence) == pytest.approx(math.log(0.5 / (0.3 * math.sqrt(2 * math.pi))), abs=0.2)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operator", ["linear", "nonlinear"])
def test_a_batch_equals_its_rows_alone(operator, dtype):
    seen = SEEN if operator == "linear" else Custom(lambda x: x[:, :M].abs(), sigma=NOISE)
    prior, ys = Gaussian(MEAN, COVARIANCE).denoiser(VP), (2 * normal(3, M, seed=7)).to(dtype)
    method = posteriors.make("tds(16)")
    with torch.no_grad():
        together = method.draw(task(prior, seen, ys, (D,), nodes(20), seeds=(5, 6, 7)))
        alone = [method.draw(task(prior, seen, ys[i : i + 1], (D,), nodes(20), seeds=(5 + i,))) for i in range(3)]
    assert together.x.dtype == dtype
    for part in ("x", "log_evidence", "effective"):
        assert torch.equal(getattr(together, part), torch.cat([getattr(one, part) for one in alone]))
    assert bool((together.effective < 8).any())  # some were drawn again
    other = method.draw(task(prior, seen, ys, (D,), nodes(20), seeds=(5, 6, 8)))
    assert torch.equal(other.x[:2], together.x[:2])
    assert not torch.equal(other.x[2], together.x[2])


# the solver


@pytest.mark.quick
@pytest.mark.parametrize("solver", ["ddim(eta=1)", "smld", "euler_ancestral"])
def test_equal_solvers_move_equal_particles(solver):
    problem = mixture_problem(4, 0.1, observations=2)
    args = ("tds(16)", problem.prior.denoiser(VP), problem.operator, problem.y, (8,), nodes(30))
    assert torch.allclose(run(*args).x, run(*args, solver=solver).x, rtol=0, atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("solver", ["ddpm(variance=beta)", "ddim(eta=0.8)", "euler_maruyama"])
def test_every_solver_with_a_density_has_the_evidence(solver):
    prior = Gaussian(MEAN, COVARIANCE)
    cloud = run("tds(500)", prior.denoiser(VP), SEEN, Y[None], (D,), nodes(40, 40.0, 0.02), solver=solver)
    # 0.1 for 500 particles at about half of them effective, and the error of 40 steps
    assert float(cloud.log_evidence) == pytest.approx(prior.log_evidence(SEEN, Y), abs=0.3)


@pytest.mark.quick
def test_the_law_of_a_step_is_that_of_the_paper():
    t, s = VP(0.5), VP(0.4)
    left = (s.ratio / t.ratio) ** 2
    wanted = (s.alpha * (1 - left), s.sigma * math.sqrt(1 - left))
    for solver in ("ddpm", "ddim(eta=1)", "smld"):
        assert kernel(make(solver), VP, t, s) == pytest.approx(wanted, rel=1e-12)
    step = 0.5 - 0.4
    # x + (f x + g^2 eps / sigma) (s - t) + g sqrt(t - s) z, and eps moves by -(alpha / sigma) dx0
    euler = kernel(make("euler_maruyama"), VP, t, s)
    assert euler == pytest.approx((t.g2 * t.alpha / t.sigma**2 * step, math.sqrt(t.g2 * step)), rel=1e-12)
    assert kernel(make("ddpm"), VP, t, VP.clean) == (1.0, 0.0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("ddim", "needs a solver that draws noise"),
        ("heun", "needs a solver that draws noise"),
        ("dpmpp_2m_sde", "one step at a time"),
        ("churn(heun, s_churn=20)", "density"),
        ("gotta_go_fast", "one step at a time"),
        ("ddpm(variance=learned)", "one step at a time"),
        ("seeds_3", "density"),
    ],
)
def test_solvers_without_a_density_are_refused(solver, message):
    with pytest.raises(InputError, match=f"{message}.*ddpm or ddim"):
        run("tds(4)", Gaussian(MEAN, 1.0).denoiser(VP), SEEN, Y[None], (D,), nodes(5), solver=solver)


class Broken(Model):
    """The exact model of Gaussian data, without a prediction for samples at which y has a number above 100."""

    sde, shape = VP, (D,)
    prior = Gaussian(MEAN, COVARIANCE).denoiser(VP)

    def predict(self, x, node, limit):
        found = self.prior.predict(x, node)
        lost = (limit > node.ratio)[:, None]
        return Prediction(torch.where(lost, math.nan, found.x0), torch.where(lost, math.nan, found.eps))


@pytest.mark.quick
def test_a_sample_of_dead_particles_is_reported_and_the_others_come_back():
    how = {"seeds": [3, 4], "solver": "ddpm", "steps": 20, "dtype": DTYPE}
    ys, reason = torch.stack([Y, Y / 2]), r"lost all 4 particles at sigma / alpha = 0\.\d+: every weight is 0 or not a"
    with pytest.warns(
        UserWarning, match=rf"2 of 4 samples of tds.*are returned as NaN: samples 0 \(seed 3\).*{reason}"
    ):
        found = scoresde.restore(Broken(), SEEN, ys, "tds(4)", condition={"limit": torch.tensor([1.0, 0])}, **how)
    assert found.x[0].isnan().all()
    assert [(one.sample, one.seed) for one in found.failures] == [(0, 3), (1, 4)]
    right = scoresde.restore(Broken.prior, SEEN, ys, "tds(4)", **how)
    assert torch.equal(found.x[1], right.x[1])
    assert found.log_evidence.isnan().tolist() == found.effective.isnan().tolist() == [True, False]
    assert torch.equal(found.log_evidence[1], right.log_evidence[1])
    assert torch.equal(found.effective[1], right.effective[1])
    with pytest.raises(InputError, match=rf"2 of 2 samples of tds\(particles=4\) with ddpm.* are not finite.*{reason}"):
        scoresde.restore(Broken(), SEEN, Y, "tds(4)", condition={"limit": torch.ones(1)}, **how)


@pytest.mark.quick
def test_bad_input():
    with pytest.raises(InputError, match="particles must be an integer of at least 2, got 1"):
        posteriors.make("tds(particles=1)")
    with pytest.raises(InputError, match="sigma above 0"):
        posteriors.make("tds").check(Inpaint(torch.arange(D) % 2 == 0), (D,))
    with pytest.raises(InputError, match=r"use scoresde\.restore"):
        scoresde.condition(Gaussian(MEAN, 1.0).denoiser(VP), SEEN, Y, "tds")
    job = task(Gaussian(MEAN, 1.0).denoiser(VP), SEEN, Y[None], (D,), nodes(5))
    with pytest.raises(InputError, match="a hook replaced the particles"), torch.no_grad():
        posteriors.make("tds(4)").draw(replace(job, hooks=(lambda x, node: x + 1,)))


@pytest.mark.quick
def test_restore_draws_by_particles():
    prior = Gaussian(MEAN, COVARIANCE)
    found = scoresde.restore(
        prior.denoiser(VP), SEEN, torch.stack([Y, Y / 2]), "tds(32)", samples=8, steps=40, dtype=DTYPE
    )
    assert found.solver == "ddpm"
    assert found.x.shape == (2, 8, D)
    assert found.forwards == found.vjps == found.nfe == 32 * 40
    wanted = torch.tensor([prior.log_evidence(SEEN, y) for y in (Y, Y / 2)], dtype=DTYPE)
    assert torch.allclose(found.log_evidence, wanted, rtol=0, atol=0.6)  # 8 runs of 32 particles, and the steps
    assert bool((found.effective >= 1).all())
    assert bool((found.effective <= 32).all())
