"""What is refused of discrete states, by the functions and by the commands: one clear line each."""

import math

import numpy as np
import pytest
import torch
from commands import fails
from torch import nn

import scoresde
import solvers
from scoresde.cli.parser import main
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.paths.discrete import Absorbing, MaskByState, MaskReplace, RankOne, Uniform
from solvers import InputError

pytestmark = pytest.mark.quick

X = torch.eye(5, dtype=torch.long).repeat(1, 4)
HEARTBEAT = DiscreteEmpirical(X)
MASKS, NOISE = HEARTBEAT.denoiser(Absorbing(2)), HEARTBEAT.denoiser(Uniform(2))
GAUSSIAN = scoresde.targets.Gaussian(torch.zeros(2), 1.0).denoiser(scoresde.VP())


def refused(message, function, *arguments, **options):
    with pytest.raises(InputError, match=message) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)


# the two spaces


@pytest.mark.parametrize("function", [scoresde.encode, scoresde.plug_in_bound, scoresde.check])
def test_functions_of_gaussian_states_say_what_discrete_ones_have(function):
    refused(r"^ExactDiscrete has discrete states, .* discrete_bound, and no probability-flow ODE", function, MASKS, X)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (scoresde.condition, ("gray", torch.zeros(1, 20))),
        (scoresde.restore, ("gray", torch.zeros(1, 20))),
        (scoresde.guide, ("cfg(scale=2)",)),
    ],
)
def test_conditions_and_guidance_of_gaussian_states_are_refused(function, arguments):
    refused("^ExactDiscrete has discrete states, but gaussian states are needed here", function, MASKS, *arguments)
    if function is scoresde.guide:
        refused("^ExactDiscrete has discrete states", scoresde.sample, MASKS, seeds=2, steps=2, guidance=arguments[0])


@pytest.mark.parametrize("given", [{"steps": 4}, {"nfe": 4}, {}])
def test_a_solver_of_the_other_space_is_refused_with_the_names_of_this_one(given):
    for name in ("ddim", "rk45", "dpmpp_2m"):
        message = rf"^{name}.* solves for gaussian states, but the model has discrete states; use one of .*tweedie"
        refused(message, scoresde.sample, MASKS, seeds=2, solver=name, **given)
    for name in ("first_hitting", "tweedie", "uniformization"):
        message = rf"^{name}.* solves for discrete states, but the model has gaussian states; use one of .*ddim, ddpm"
        refused(message, scoresde.sample, GAUSSIAN, seeds=2, solver=name, **given)


@pytest.mark.parametrize("name", ["afs", "churn", "final", "picard", "restart", "step_doubling"])
def test_wrappers_of_gaussian_solvers_refuse_discrete_ones(name):
    message = f"^{name} wraps solvers of gaussian states, but tweedie solves for discrete states$"
    refused(message, solvers.make, f"{name}(solver=tweedie)")


def test_a_plan_of_the_other_space_is_refused():
    message = "^heun solves for gaussian states, but absorbing.* has discrete states$"
    refused(message, scoresde.sample, MASKS, seeds=2, plan=scoresde.plan(GAUSSIAN, "heun", steps=3))
    message = "^tweedie was made for another process than vp"
    refused(message, scoresde.sample, GAUSSIAN, seeds=2, plan=scoresde.plan(NOISE, "tweedie", steps=3))


def test_a_name_that_spaces_share_is_one_of_solvers_only():
    """``euler`` is also a value of another option, which keeps it."""
    given = "heun(clock=rate, kernel=euler)"
    assert str(scoresde.plan(MASKS, given, steps=4).solver) == "theta_trapezoidal(clock=rate, kernel=euler)"


# states


def test_states_of_another_shape_are_refused():
    message = r"^samples of the data set have the shape \(20,\), x has \(7,\)$"
    refused(message, scoresde.sample, MASKS, (7,), seeds=2, steps=2)
    refused(message, scoresde.discrete_bound, MASKS, X[:, :7], draws=4)
    refused(message, HEARTBEAT.log_prob, X[:, :7])


def test_a_hook_that_leaves_no_tokens_is_refused():
    def refuse(message, hook):
        refused(message, scoresde.sample, NOISE, seeds=2, steps=4, hooks=hook)

    refuse("^the state after a hook has the value [56], but uniform.* has the values 0 to 1$", lambda x, node: x + 5)
    refuse("^a hook returns torch.float64 instead of torch.int64", lambda x, node: x.double())

    def write(x, node):
        x -= 3

    refuse("^the state after a hook has the value -[23], but uniform", write)


def test_a_hook_may_clamp_known_tokens():
    def clamp(x, node):
        x = x.clone()
        x[:, 0] = 1
        return x

    found = scoresde.sample(MASKS, seeds=8, steps=16, hooks=clamp).x
    assert found[:, 0].tolist() == [1] * 8


# models


@pytest.mark.parametrize("process", ["absorbing(2)", "uniform(2)", "uniform(2, schedule=loglinear)"])
@pytest.mark.parametrize("predicts", ["x0_logits", "x0_loo_logits", "log_score"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_returns_no_numbers_is_an_error_and_no_sample(process, predicts, value):
    if predicts == "log_score" and "log" not in process.partition("(")[2]:
        return  # refused for another reason: nothing of the data is left at t_max
    model = scoresde.DiscreteDenoiser(lambda x, t: torch.full((*x.shape, 2), value), process, predicts)
    refused(r"^the model's law of sample 0 at t=1 is none", scoresde.sample, model, (4,), seeds=2, steps=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "absorbing(2)"), "^the first argument of DiscreteDenoiser is a network, got 3$"),
        ((Absorbing(2), nn.Identity()), "^the first argument of DiscreteDenoiser is a network"),
        (
            (nn.Identity(), "absorbing(2)", "eps"),
            "^no prediction 'eps'; accepted: log_score, x0_logits, x0_loo_logits$",
        ),
        ((nn.Identity(), "vp"), "^no process 'vp'; accepted: absorbing, binomial"),
        ((nn.Identity(), scoresde.VP()), "^process must be one of discrete states, such as .*, got VP"),
        ((nn.Identity(), None), "^process must be one of discrete states, such as .*, got None$"),
    ],
)
def test_bad_arguments_of_a_denoiser(arguments, message):
    refused(message, scoresde.DiscreteDenoiser, *arguments)


def test_a_bound_of_a_network_that_returns_no_numbers_is_an_error():
    model = scoresde.DiscreteDenoiser(lambda x, t: torch.full((*x.shape, 2), math.nan), "absorbing(2)")
    for steps in (None, 4):
        refused(
            "^5 of 5 samples of the discrete bound are not finite", scoresde.discrete_bound, model, X, steps, draws=4
        )


def test_processes_are_no_paths():
    refused("^sde must be a path such as scoresde.VP", scoresde.Denoiser, nn.Identity(), Absorbing(2))
    refused("^no SDE 'absorbing'; accepted: ", scoresde.make_sde, "absorbing(2)")
    refused("^process must be one of discrete states, such as .*, got VP", HEARTBEAT.denoiser, scoresde.VP())
    assert HEARTBEAT.denoiser("absorbing(2)").process == Absorbing(2)


@pytest.mark.parametrize(
    ("data", "weights", "message"),
    [
        ("abc", None, "^data must be a tensor or a numpy array of numbers, got 'abc'$"),
        (torch.zeros(2, 3), None, r"^data must be whole numbers \(n, \*\), got torch.float32"),
        (
            torch.zeros(3, dtype=torch.long),
            None,
            r"^data must be whole numbers \(n, \*\), got torch.int64 of shape \(3,\)",
        ),
        (torch.full((2, 3), -1), None, "^tokens are numbers of at least 0, got -1$"),
        (X, torch.ones(4), "^weights must be 5 numbers of at least 0"),
        (X, torch.tensor([1, 1, 1, 1, math.nan]), "^weights must be 5 numbers of at least 0"),
    ],
)
def test_bad_data_of_an_exact_model(data, weights, message):
    refused(message, DiscreteEmpirical, data, weights)


def test_a_number_of_draws_is_positive():
    refused("^count must be a positive integer, got 0$", HEARTBEAT.sample, 0)


# processes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RankOne(None), "^rank_one: law must be a row of numbers, got None$"),
        (lambda: RankOne(["a", "b"]), r"^rank_one: law must be a row of numbers, got \['a', 'b'\]$"),
        (lambda: RankOne(torch.eye(2)), "^rank_one: law must be a row of numbers"),
        (lambda: MaskByState(3), "^mask_by_state: powers must be a row of numbers, got 3$"),
        (lambda: Absorbing(2, schedule="cosin"), "^no process schedule 'cosin'; did you mean cosine"),
        (lambda: Absorbing(2, schedule=None), "^expected the spec of a process schedule, got None$"),
        (lambda: MaskReplace(2, substitution=3), "^expected the spec of a process schedule, got 3$"),
        (lambda: Absorbing(2, schedule="geometric(low=30)"), "^geometric: low must be below high=20, got 30$"),
        (lambda: scoresde.make_process(None), "^process must be one of discrete states, .* got None$"),
        (lambda: Absorbing(1), "^absorbing: states must be an integer of at least 2, got 1$"),
        (lambda: scoresde.make_process("binomial(3)"), "^binomial takes at most 0 options by position, got 1$"),
    ],
)
def test_bad_options_of_a_process(make, message):
    refused(message, make)


def test_options_of_a_process_may_be_specs_and_arrays():
    assert Absorbing(2, schedule="cosine") == scoresde.make_process("absorbing(2, schedule=cosine)")
    assert RankOne(np.array([0.5, 0.5])) == RankOne((0.5, 0.5)) == RankOne([1, 1]).__class__((0.5, 0.5))
    mixed = MaskReplace(2, schedule="linear", substitution="constant(speed=0.5)")
    assert str(mixed) == str(scoresde.make_process("mask_replace(2, schedule=linear, substitution=constant(0.5))"))


def test_times_outside_of_a_process_are_refused():
    message = r"^the times \[0, 2\] are not a range within \[0, 1\], where absorbing.* is defined$"
    refused(message, scoresde.sample, MASKS, seeds=2, steps=2, t_max=2.0)
    refused("^t=1.5 is outside", Absorbing(2), 1.5)


# numbers of steps and seeds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nfe": 0}, "^nfe must be a positive integer, got 0$"),
        ({"steps": 2.5}, "^steps must be a positive integer, got 2.5$"),
        ({"steps": 4, "nfe": 4}, "steps"),
        ({"solver": "first_hitting", "nfe": 4}, "^first_hitting chooses its own steps, so nfe=4 cannot be set$"),
        ({"steps": 2, "seeds": [-1]}, "^a seed must be an integer of at least 0, got -1$"),
        ({"steps": 2, "seeds": "a"}, "^seeds must be a number of samples or a list of integers"),
        ({"steps": 2, "seeds": 0}, "^there are no seeds or no data"),
        (
            {"steps": 2, "solver": "theta_trapezoidal(theta=1)"},
            r"^theta_trapezoidal: theta must lie in \(0, 1\), got 1",
        ),
        ({"steps": 2, "solver": "sharpened(temperature=-1)"}, "^sharpened: temperature must be at least 0, got -1$"),
        ({"steps": 2, "solver": "maskgit"}, r"^decode\(.*\) fills in masked tokens, which uniform.* does not have"),
    ],
)
def test_bad_numbers_of_steps_and_seeds(given, message):
    refused(message, scoresde.sample, NOISE, **{"seeds": 2, **given})


# the commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.data.period=1"], ["period must lie between 2 and the length 20, got 1"]),
        (["--config.data.length=0"], ["data.length must be a positive integer, got 0"]),
        (["--config.process=absorbing(schedule=cosin)"], ["no process schedule 'cosin'", "cosine"]),
        (["--config.process=uniform"], ["masked trains on masks alone"]),
        (["--config.process=vp"], ["no process 'vp'", "absorbing"]),
        (
            ["--config.sampling.solver=first_hitting", "--config.sampling.nfe=4"],
            ["first_hitting chooses its own steps"],
        ),
        (["--config.sampling.solver=picard(solver=tweedie)"], ["picard wraps solvers of gaussian states"]),
        (["--config.likelihood.draws=0"], ["draws must be a positive integer, got 0"]),
        (["--config.data.labels=label"], ["the data set 'heartbeat' has no column 'label'"]),
    ],
)
def test_a_training_with_bad_settings_ends_in_one_line(tmp_path, capsys, arguments, words):
    few = ["--config.training.steps=1", "--config.training.evaluate_every=0"]
    fails(capsys, ["train", "--config=heartbeat", f"--workdir={tmp_path / 'run'}", *few, *arguments], *words)


def test_commands_of_a_run_refuse_what_discrete_states_do_not_have(tmp_path, capsys):
    run, out = tmp_path / "run", f"--out={tmp_path / 'out'}"
    few = ["--config.training.steps=1", "--config.training.evaluate_every=0"]
    assert main(["train", "--config=heartbeat", f"--workdir={run}", *few]) == 0
    capsys.readouterr()
    sample = ["sample", f"--workdir={run}", out, "--seeds=2"]
    fails(capsys, [*sample, "--solver=rk45", "--steps=4"], "rk45", "solves for gaussian states", "tweedie")
    fails(capsys, [*sample, "--solver=tweedie", "--grid=karras"], "discrete states have no noise level")
    fails(capsys, [*sample, "--solver=tweedie", "--nfe=0"], "--nfe: must be a positive integer, got 0")
    fails(capsys, [*sample, "--solver=tweedy"], "no solver 'tweedy'; did you mean tweedie")
    fails(capsys, ["likelihood", f"--workdir={run}", out, "--solver=heun"], "no exact likelihood, only a bound")
    fails(capsys, ["likelihood", f"--workdir={run}", out, "--grid=karras", "--steps=4"], "no noise level")
    fails(capsys, ["benchmark", f"--workdir={run}", out, "--solvers=ddim", "--nfe=4"], "solves for gaussian states")
    fails(capsys, ["restore", f"--workdir={run}", out, "--operator=tanh(m=1)", "--measure=test"], "discrete states")
    for command in ("choose", "tune"):
        fails(capsys, [command, f"--workdir={run}", out, "--nfe=4"], "discrete states have no ODE", "benchmark")
