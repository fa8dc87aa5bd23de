"""Samples that fail: the others are what they are without them, and the messages name the right ones."""

import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from closed_forms import mixture

import scoresde
import solvers
from scoresde.likelihood.log_prob import log_prob
from scoresde.likelihood.result import uncertainty
from scoresde.likelihood.sample_with_log_prob import sample_with_log_prob
from scoresde.models.problem import Diffusion
from scoresde.runs.shards import join, read_shard, write_shard
from scoresde.sampling.failures import Failure, listed
from scoresde.sampling.width import WrongWidth
from solvers import InputError, SeededNoise, Solver, grid, make, register, solve
from solvers.wrappers.restart import Restart
from solvers.wrappers.step_doubling import StepDoubling

SDE = scoresde.VP()
TARGET = mixture(2)
BAD = torch.zeros(9)
BAD[[3, 7]] = 1.0
KEPT = BAD == 0
CONDITION = {"bad": BAD}
LOOSE = "rk45(rtol=0.01, atol=0.01)"


class Walled(scoresde.models.model.Model):
    """An exact denoiser whose predictions for marked samples are not finite below a noise level."""

    sde = SDE

    def __init__(self, below=math.inf):
        self.below = below

    def predict(self, x, node, bad):
        found = TARGET.predict(x, node)
        low = torch.as_tensor(node.ratio, dtype=x.dtype).reshape(-1, 1) < self.below
        wall = torch.where(bad.view(-1, 1).bool() & low, math.nan, 1.0)
        return type(found)(found.x0 * wall, found.eps * wall)


class Healthy(Walled):
    def predict(self, x, node, bad):
        return TARGET.predict(x, node)


def options(solver):
    return {"solver": solver, "steps": 8 if solver in ("heun", "dpmpp_2m", "picard", "ddpm") else None}


@pytest.mark.parametrize("hooks", [(), (lambda x, node: None,)])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "ddpm", "picard", LOOSE, "scipy(rtol=0.1, atol=0.1)"])
def test_sample_returns_the_samples_that_did_not_fail(solver, hooks):
    more = {"condition": CONDITION, "dtype": torch.float64, "batch_size": 4, "hooks": hooks, **options(solver)}
    with pytest.warns(UserWarning, match=r"^2 of 9 samples of .* are not finite and are returned as NaN: ") as told:
        found = scoresde.sample(Walled(0.5), (2,), range(9), **more)
    expected = scoresde.sample(Healthy(), (2,), range(9), **more)
    assert torch.equal(found.x[KEPT], expected.x[KEPT])
    assert found.x[~KEPT].isnan().all()
    # samples 3 and 7 are in different batches of four
    assert [failure.sample for failure in found.failures] == [3, 7]
    told = [warning for warning in told if warning.category is not WrongWidth]  # heun on eight steps is that too
    assert len(told) == 1
    assert "samples 3, 7 " in str(told[0].message) or "; sample 7 " in str(told[0].message)
    assert "sigma / alpha = " in str(told[0].message) or "scipy" in solver


FOREIGN = [
    *(
        "pc",
        "restart(heun)",
        "churn(heun)",
        "gotta_go_fast(rtol=0.05, atol=0.05)",
        "picard(ddim, sweeps=2)",
        "step_doubling(heun)",
    ),
    *("scipy(method=LSODA)", "dopri5", "torchdiffeq(method=scipy_solver)", "torchdiffeq(method=rk4)"),
    "torchdiffeq(method=implicit_adams, step_size=0.25)",
]


@pytest.mark.filterwarnings("ignore::scoresde.sampling.width.WrongWidth")
@pytest.mark.parametrize("solver", FOREIGN)
def test_every_kind_of_solver_names_row_seed_and_level(solver):
    more = {"condition": CONDITION, "dtype": torch.float64, "batch_size": 4}
    more["steps"] = None if solvers.make(solver).adaptive else 8
    with pytest.warns(UserWarning, match="2 of 9 samples of") as told:
        found = scoresde.sample(Walled(0.5), (2,), range(20, 29), solver, **more)
    expected = scoresde.sample(Healthy(), (2,), range(20, 29), solver, **more)
    assert torch.equal(found.x[KEPT], expected.x[KEPT])
    assert found.x[~KEPT].isnan().all()
    assert [(failure.sample, failure.seed) for failure in found.failures] == [(3, 23), (7, 27)]
    text = str(next(w.message for w in told if w.category is not WrongWidth))
    assert "3 (seed 23)" in text
    assert "7 (seed 27)" in text
    for failure in found.failures:  # a level below the wall, or of the evaluation that first reached beyond it
        assert 0 < float(failure.reason.partition("sigma / alpha = ")[2].split(",")[0]) <= 0.5


def test_the_first_reason_of_a_sample_is_kept():
    """Of two intervals, the sample fails in the first."""
    with pytest.warns(UserWarning, match="2 of 9 samples of"):
        found = scoresde.sample(Walled(5.0), (2,), range(9), "scipy", "uniform", 2, condition=CONDITION)
    assert all("predictions are not finite at t=" in failure.reason for failure in found.failures)
    levels = [float(failure.reason.rpartition(" = ")[2]) for failure in found.failures]
    middle = float(f"{found.nodes[1].ratio:.4g}")
    assert all(middle <= level <= 5.0 for level in levels)


@pytest.mark.parametrize("solver", ["DPM++ 2M", "Euler a", "Heun"])
def test_a_loop_of_k_diffusion_names_the_samples_and_the_level(solver):
    sigmas = torch.tensor([20.0, 8.0, 2.0, 0.4, 0.1, 0.0])
    x = 20 * torch.randn(9, 2, generator=torch.Generator().manual_seed(0))

    def zeros(t, s):
        return torch.zeros(9, 2)

    def model(x, sigma, wall=0.0):
        return torch.where((BAD.bool() & (sigma < wall))[:, None], math.nan, 0.5 * x)

    sample = scoresde.interop.sample_function(solver)
    expected = sample(model, x, sigmas, disable=True, noise_sampler=zeros)
    with pytest.warns(
        UserWarning, match=r"samples 3, 7 not finite from evaluation \d+ of \d+, at sigma / alpha = 0\.4$"
    ):
        found = sample(model, x, sigmas, {"wall": 0.5}, disable=True, noise_sampler=zeros)
    assert torch.equal(found[KEPT], expected[KEPT])
    assert found[~KEPT].isnan().all()


def test_a_scheduler_of_diffusers_names_the_samples():
    diffusers = pytest.importorskip("diffusers")
    scheduler = scoresde.interop.DiffusersScheduler("dpmpp_2m", diffusers.DDIMScheduler(), "trailing")
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))

    def result(below):
        scheduler.set_timesteps(6)
        y = x
        for t in scheduler.timesteps:
            out = torch.where((BAD.bool() & (float(t) < below))[:, None], math.nan, 0.5 * y)
            y = scheduler.step(out, t, y).prev_sample
        return y

    expected = result(-1.0)
    with pytest.warns(UserWarning, match=r"samples 3, 7 not finite from evaluation \d of 6, at sigma / alpha = "):
        found = result(500.0)
    assert torch.equal(found[KEPT], expected[KEPT])
    assert found[~KEPT].isnan().all()


@pytest.mark.parametrize("hooks", [(), (lambda x, node: None,)])
def test_the_step_and_the_noise_level_are_named(hooks):
    nodes = scoresde.plan(Walled(), "ddim", "karras", 8).nodes
    first = next(i for i, node in enumerate(nodes) if node.ratio < 0.5)  # the first node whose prediction is not finite
    with pytest.warns(UserWarning, match="not finite") as told:
        scoresde.sample(Walled(0.5), (2,), range(9), "ddim", "karras", 8, condition=CONDITION, hooks=hooks)
    level = f"sigma / alpha = {nodes[first + 1].ratio:.4g}"
    assert str(told[0].message) == (
        "2 of 9 samples of ddim on karras are not finite and are returned as NaN: "
        f"samples 3, 7 not finite after step {first + 1} of 8, at {level}"
    )


def test_hooks_are_called_once_per_step_even_if_samples_fail():
    seen = []
    with pytest.warns(UserWarning, match="not finite"):
        scoresde.sample(
            Walled(0.5), (2,), range(9), "ddim", steps=8, condition=CONDITION, hooks=[lambda x, node: seen.append(node)]
        )
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("solver", "error"), [("heun", True), ("dpmpp_2m", False), (LOOSE, True), (None, False), ("scipy(rtol=0.1)", False)]
)
def test_log_prob_returns_the_values_that_are_finite(solver, error):
    x = TARGET.sample(9, torch.Generator().manual_seed(0))
    more = {"condition": CONDITION, "batch_size": 4, "error": error, **options(solver)}
    with pytest.warns(UserWarning, match=r"^2 of 9 samples of .* are not finite and are returned as NaN: ") as told:
        found = log_prob(Walled(0.5), x, **more)
    expected = log_prob(Healthy(), x, **more)
    assert torch.equal(found.nats[KEPT], expected.nats[KEPT])
    assert found.nats[~KEPT].isnan().all()
    assert found.latent[~KEPT].isnan().all()
    assert found.stderr.isnan().equal(~KEPT)
    assert [failure.sample for failure in found.failures] == [3, 7]
    assert len(told) == 1
    if error:
        assert torch.equal(found.solver_error[KEPT], expected.solver_error[KEPT])
    assert "nan" not in str(found)  # its means are of the others
    assert "2 of 9 samples failed and are left out: " in str(found)
    assert f"log p = {float(expected.nats[KEPT].mean()):.3f}" in str(found)


def test_within_a_tolerance_and_with_levels():
    x = TARGET.sample(9, torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="samples 3, 7 ") as told:
        found = log_prob(Walled(0.5), x, tolerance=0.05, condition=CONDITION)
    expected = log_prob(Healthy(), x[KEPT], tolerance=0.05, condition={"bad": BAD[KEPT]})
    assert len(told) == 1
    assert float((found.nats[KEPT] - expected.nats).abs().max()) < 0.1
    levels = torch.round(x * 4) / 4
    more = {"bin_width": 0.25, "dequantiser": "uniform", "draws": 2, "condition": CONDITION, "steps": 6}
    with pytest.warns(UserWarning, match="samples 3, 7 "):
        found = log_prob(Walled(0.5), levels, **more)
    assert torch.equal(found.bits_per_dim.isnan(), ~KEPT)


def test_a_prior_is_not_asked_for_samples_that_failed():
    """torch's distributions reject values that are not finite."""
    x, normal = TARGET.sample(9, torch.Generator().manual_seed(0)), torch.distributions.Normal(0.0, 1.0)
    with pytest.warns(UserWarning, match="samples 3, 7 "):
        found = log_prob(
            Walled(), x, steps=8, condition=CONDITION, prior=lambda y: normal.log_prob(y).sum(1), bin_width=None
        )
    assert torch.equal(found.nats.isnan(), ~KEPT)


def test_samples_with_their_density():
    more = {"steps": 8, "condition": CONDITION, "dtype": torch.float64}
    with pytest.warns(UserWarning, match="samples 3, 7 "):
        x, found = sample_with_log_prob(Walled(0.5), (2,), range(9), **more)
    y, expected = sample_with_log_prob(Healthy(), (2,), range(9), **more)
    assert torch.equal(x[KEPT], y[KEPT])
    assert torch.equal(found.nats[KEPT], expected.nats[KEPT])
    assert torch.equal(found.nats.isnan(), ~KEPT)
    assert x[~KEPT].isnan().all()


@pytest.mark.parametrize("solver", ["ddim", LOOSE])
def test_what_to_do_is_an_option(solver):
    steps = None if solver == LOOSE else 8

    def solve(**more):
        return scoresde.sample(
            Walled(0.5), (2,), range(9), solver, steps=steps, condition=CONDITION, batch_size=2, **more
        )

    with pytest.raises(InputError, match=r"^2 of 9 samples of .* are not finite: sample.* 3.* 7 "):
        solve(on_failure="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [failure.sample for failure in solve(on_failure="keep").failures] == [3, 7]
    with pytest.raises(InputError, match="no on_failure 'rase'; did you mean raise"):
        solve(on_failure="rase")
    x = TARGET.sample(9, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"^2 of 9 samples of .* are not finite: sample.* 3.* 7 "):
        log_prob(Walled(0.5), x, solver, steps=steps, condition=CONDITION, on_failure="raise")


def test_shards_name_failures_by_their_place_in_the_whole(tmp_path):
    x, parts = TARGET.sample(9, torch.Generator().manual_seed(0)), []
    for k, rows in enumerate((slice(0, 2), slice(2, 6), slice(6, 9))):
        part = {"bad": BAD[rows]}
        found = log_prob(Walled(0.5), x[rows], steps=8, condition=part, seeds=range(9)[rows], on_failure="keep")
        write_shard(tmp_path / f"{k}.npz", {}, rows, {"ode": found})
        parts.append(read_shard(tmp_path / f"{k}.npz", {}, rows)["ode"])
        assert parts[-1].failures == found.failures
    whole = join(parts)
    assert [failure.sample for failure in whole.failures] == [3, 7]
    assert torch.equal(whole.nats.isnan(), ~KEPT)
    assert whole.finite.nats.shape == (7,)
    known = log_prob(Healthy(), x, steps=8, condition=CONDITION).nats
    assert uncertainty(whole)["samples"] == pytest.approx(float(known[KEPT].std()) / math.sqrt(7))


BOUNDS = {
    "chain": lambda model, x, **given: scoresde.chain_bound(model, x, chain=SDE.chain(12), **given),
    "continuous": lambda model, x, **given: scoresde.continuous_bound(model, x, draws=4, sets=2, **given),
    "plug-in": lambda model, x, **given: scoresde.plug_in_bound(model, x, 0.0, steps=3, draws=2, **given),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_bound_returns_the_values_that_are_finite(kind):
    bound, x = BOUNDS[kind], TARGET.sample(9, torch.Generator().manual_seed(0))
    known = bound(Healthy(), x, condition=CONDITION)
    with pytest.warns(UserWarning, match="2 of 9 samples of the .*bound .* as NaN: samples 3, 7 not finite"):
        found = bound(Walled(), x, condition=CONDITION)
    assert torch.equal(found.nats[KEPT], known.nats[KEPT])
    assert found.nats[~KEPT].isnan().all()
    assert all(part[~KEPT].isnan().all() for part in (found.latent, found.stderr, *found.budget.values()))
    assert [failure.sample for failure in found.failures] == [3, 7]
    assert torch.equal(found.finite.nats, known.nats[KEPT])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(bound(Walled(), x, condition=CONDITION, on_failure="keep").failures) == 2
    with pytest.raises(InputError, match="samples 3, 7"):
        bound(Walled(), x, condition=CONDITION, on_failure="raise")
    with pytest.raises(InputError, match="no on_failure 'rise'; did you mean raise"):
        bound(Walled(), x, condition=CONDITION, on_failure="rise")


def test_eps_power_names_the_samples_and_the_level():
    class Below(Walled):
        def predict(self, x, node):
            return super().predict(x, node, BAD)

    x = TARGET.sample(9, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"^at sigma / alpha = 0\.\d+ the model's .* 2 of 9 samples: samples 3, 7 not"):
        scoresde.eps_power(Below(0.5), x, levels=4)


def test_rows_of_the_input_that_are_not_finite_are_named():
    x = TARGET.sample(9, torch.Generator().manual_seed(0))
    x[3, 0], x[7, 1] = math.nan, math.inf
    for call in (
        lambda: log_prob(Healthy(), x, steps=2, condition=CONDITION),
        lambda: scoresde.encode(Healthy(), x, steps=2, condition=CONDITION),
        lambda: scoresde.sample(Healthy(), seeds=9, x_init=x, steps=2, condition=CONDITION),
        lambda: BOUNDS["chain"](Healthy(), x, condition=CONDITION),
    ):
        with pytest.raises(InputError, match=r"contains numbers that are not finite, in samples 3, 7$"):
            call()


def test_if_all_samples_fail_the_model_is_at_fault():
    with pytest.raises(InputError, match=r"^3 of 3 samples of ddim on karras .* samples 0, 1, 2 not"):
        scoresde.sample(Walled(), (2,), range(3), "ddim", steps=4, condition={"bad": torch.ones(3)})


def test_a_long_list_is_cut():
    failures = [Failure(i, "at step 1") for i in range(25)] + [Failure(100 + i, f"at step {i}") for i in range(2, 13)]
    text = listed(failures)
    assert text.startswith("samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 15 more at step 1; sample 102 at step 2; ")
    assert text.endswith("; and 2 more samples")


@dataclass(frozen=True)
class GivesUp(Solver):
    """Euler's method, which gives up sample 1 where a step begins at a noise level of at least ``above``."""

    above: float = 0.0

    def step(self, problem, x, t, s, carry, noise):
        found = make("euler").step(problem, x, t, s, carry, noise)
        if t.ratio < self.above:
            return found
        wall = torch.tensor([1.0, math.nan, 1.0]).view(-1, 1)
        return found._replace(x=found.x * wall, failed={1: f"given up at {t.ratio:.3g}"}, error=torch.ones(3))


@pytest.mark.parametrize(
    "wrapped", [lambda inner: Restart(inner, ((3.0, 2.0, 0.06, 0.3),)), StepDoubling], ids=["restart", "step_doubling"]
)
def test_wrappers_keep_the_reasons_of_their_inner_solver(wrapped, registry):
    """Restart goes up to 0.3 on a grid that begins at 0.2, so that only its rounds fail; the first reason counts."""
    register("gives_up", order=1, evaluations=1)(GivesUp)
    solver = wrapped(GivesUp(above=0.15 if wrapped is StepDoubling else 0.25))
    nodes = grid("explicit(ratios=[0.2, 0.1, 0.06, 0.03])", scoresde.VE(0.01, 10), None)
    x = 0.2 * torch.ones(3, 2, dtype=torch.float64)
    problem = Diffusion(TARGET.denoiser(scoresde.VE(0.01, 10)))
    found = solve(solver, problem, x, nodes, SeededNoise(range(3), (2,), torch.float64), strict=False)
    level = "0.2" if wrapped is StepDoubling else "0.3"
    assert found.failed == {1: f"given up at {level}"}
    assert found.x.isnan().any(1).tolist() == [False, True, False]
    if wrapped is not StepDoubling:
        assert found.error.tolist() == [2.0] * 3  # of the two steps of each of two rounds, one begins above 0.25
    with pytest.raises(InputError, match=f"sample 1: given up at {level}"):
        solve(solver, problem, x, nodes, SeededNoise(range(3), (2,), torch.float64))
