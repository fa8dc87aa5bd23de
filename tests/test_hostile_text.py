"""Specs and labels that are hostile or merely large: one line, and no time that grows with the square of the length."""

import contextlib
import dataclasses

import pytest
import torch

import scoresde
import solvers
from solvers import InputError
from solvers.errors import LONGEST_MESSAGE, near, shown
from solvers.foreign.diffusers import read as read_flags
from solvers.registry import spec
from solvers.registry.options import REGISTRIES

pytestmark = pytest.mark.quick

DIGITS = "9" * 5000
MODEL = scoresde.targets.Gaussian(torch.zeros(2), 1.0).denoiser(scoresde.VP())
# by what is wrong with it; the time of each of them grew with the square of its length, or its recursion had no end
HOSTILE = {
    "letters": "a" * 96_000,
    "a long name": "a" * 90_000,
    "blanks": " " * 90_000 + "(2M)",
    "blanks alone": " " * 90_000,
    "open quotes": "heun(x=" + "'\\" * 49_000 + ")",
    "open double quotes": '"\\' * 49_000,
    "dots": "a" + ".a" * 49_000,
    "dots in an option": "heun(order=a" + ".a" * 49_000 + ")",
    "dashes": "-a" * 49_000,
    "colons": "a:" * 49_000,
    "colons in an option": "heun(order=" + "a:" * 48_000 + ")",
    "digits": f"ddim(eta={DIGITS})",
    "hexadecimal": f"ddim(eta=0x{'f' * 90_000})",
    "a negative number": f"ddim(eta=-0x{'f' * 40_000})",
    "beyond a float": f"ddim(eta=0x{'f' * 256})",
    "minus": f"ddim(eta={'-' * 90_000}1)",
    "a sum": f"ddim(eta=1{'+1' * 45_000})",
    "brackets": "[" * 99_990,
    "deep": "heun(" * 16_000 + ")" * 16_000,
    "lambdas": f"ddim(eta={'lambda:' * 13_000}1)",
    "options": f"ddim({'eta=1, ' * 130_000})",
    "positions": f"ddim({'1, ' * 30_000})",
    "two lines": "ddim(eta=1)\n\nimport os",
    "zero": "dd\0im",
    "half a letter": "dd\udc80im",
    "flags": f"DPMSolverMultistepScheduler({'a, ' * 330_000})",
    "open flags": f"DPMSolverMultistepScheduler({',[(' * 30_000})",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_one_line_in_every_registry(kind):
    text = HOSTILE[kind]
    readers = [registry.make for registry in REGISTRIES.values()]
    for read in (*readers, lambda text: scoresde.plan(MODEL, text, steps=2)):
        with pytest.raises(InputError) as error:
            read(text)
        assert len(str(error.value)) <= LONGEST_MESSAGE
        assert "\n" not in str(error.value)
    with contextlib.suppress(InputError):  # it does not look at values
        solvers.resolve(text)


def test_a_spec_within_the_limits_is_read():
    inside = "ddim"
    for _ in range(spec.DEEPEST):
        inside = f"final(solver={inside})"
    assert str(solvers.make(inside)).count("final") == spec.DEEPEST
    numbers = ", ".join(f"{5000 - k}e-3" for k in range(1200))
    assert len(solvers.grids.make(f"explicit(ratios=[{numbers}])").nodes(scoresde.EDM(), None)) == 1200
    with pytest.raises(InputError, match="has 100,001 characters; at most 100,000 are read"):
        solvers.make("heun" + " " * 99_997)
    with pytest.raises(InputError, match="more than 50 brackets within brackets"):
        solvers.make(f"final(solver={inside})")


def test_outside_names_and_quotes_are_found_as_before():
    found = spec.parse("pc(predictor=my.module:Mine(a='x:y'), corrector=\"it's: z\", a=b:C)")
    assert found.kwargs == (
        ("predictor", spec.Spec("my.module:Mine", (), (("a", "x:y"),))),
        ("corrector", "it's: z"),
        ("a", spec.Spec("b:C")),
    )


def test_integers_that_are_too_large_are_described():
    with pytest.raises(InputError, match="an integer of 1028 bits in the spec"):
        solvers.make(f"ddim(eta=0x{'f' * 257})")
    for value in (10**5000, -(10**5000)):
        with pytest.raises(InputError, match="eta is too large, got an integer of 16610 bits"):
            dataclasses.replace(solvers.make("ddim"), eta=value)
        with pytest.raises(InputError, match="an integer of 16610 bits"):
            scoresde.plan(MODEL, "ddim", steps=value)
    assert shown([10**5000]) == "a list"


def test_seeds_that_are_too_many_are_not_made():
    for seeds in (10**12, 10**5000):
        with pytest.raises(InputError, match="more than 10,000,000 samples at once"):
            scoresde.sample(MODEL, (2,), seeds, steps=2)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("DPMSolverMultistepScheduler", "solver_order=[1, 2]"),
        ("DPMSolverMultistepScheduler", "algorithm_type={}"),
        ("DPMSolverMultistepScheduler", "euler_at_final=True, solver_order={1: 2}"),
        ("DPMSolverMultistepScheduler", "timestep_spacing=[1]"),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas=True, shift='x'"),
        ("SASolverScheduler", "num_train_timesteps=999999999999"),
        ("SASolverScheduler", "trained_betas=[1, 'x']"),
        ("KarrasVeScheduler", "s_churn='x'"),
        ("DDPMScheduler", "variance_type=[1]"),
    ],
)
def test_flags_of_another_type_are_one_line(name, flags):
    with pytest.raises(InputError) as error:
        read_flags(name, flags)
    assert "\n" not in str(error.value)


def test_near_names_are_found_in_long_text():
    assert near("heum" + "m" * 10**6, ["heun", "euler"]) == []
    assert near("karras_exponential_grid_" * 2 + "x", ["karras_exponential_grid_" * 2]) != []


def test_a_message_repeats_no_more_than_its_limit():
    assert str(InputError("two\nlines")) == "two lines"
    message = str(InputError("start " + "x" * 140_000 + " end"))
    assert len(message) <= LONGEST_MESSAGE
    assert message.startswith("start x")
    assert message.endswith("x end")


def test_a_module_that_calls_exit_ends_nothing(tmp_path, monkeypatch):
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(0)")
    (tmp_path / "leaves_oddly.py").write_text("class Odd(BaseException): pass\nraise Odd")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="cannot import the solver 'leaves_at_once:Mine': 0"):
        solvers.make("leaves_at_once:Mine")
    with pytest.raises(InputError, match="cannot import the solver 'leaves_oddly:Mine': Odd"):
        solvers.make("leaves_oddly:Mine")
