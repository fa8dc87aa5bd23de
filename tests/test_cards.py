"""The table and the cards say what the registry and the measurements say, and their examples run."""

import dataclasses
import math
import re

import pytest
import torch

import scoresde
import solvers
from scoresde.cli.parser import main
from scoresde.guidance.base import guidances
from scoresde.models.discrete import DiscreteEmpirical
from scoresde.operators.base import operators
from scoresde.paths.discrete import Absorbing
from scoresde.posterior import posteriors
from scoresde.show import cards, guidance_cards, posterior_cards, solver_cards
from scoresde.show.cards import documented
from solvers import InputError, SeededNoise
from solvers.conformance.convergence import reaches
from solvers.conformance.problems import VP, Mixture
from solvers.conformance.processes import BIRTH_DEATH

NAMES = solvers.names("gaussian")
DISCRETE = solvers.names("discrete")


@pytest.fixture(scope="module")
def lines():
    return {row.name: row for row in solver_cards.rows()}


@pytest.fixture(scope="module")
def denoiser():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return scoresde.targets.GaussianMixture(means, 0.04).denoiser(scoresde.VP())


def test_the_table_has_every_solver_once_and_fits_a_terminal(lines):
    text = solver_cards.table(list(lines.values()))
    assert sorted(lines) == sorted(NAMES + DISCRETE)
    assert all(len(re.findall(rf"^{name} ", text, re.MULTILINE)) == 1 for name in NAMES + DISCRETE)
    assert max(map(len, text.splitlines())) <= 120
    titles = [line for line in text.splitlines() if line in solver_cards.GROUPS.values()]
    assert titles == list(solver_cards.GROUPS.values())


@pytest.mark.parametrize(
    ("name", "group", "kind", "order", "evaluations", "startup", "noise"),
    [
        ("heun", "one-step", "ODE", "2", "2", "0", "no"),
        ("rk4", "one-step", "ODE", "4", "4", "0", "no"),
        ("ddim", "one-step", "ODE/SDE", "1", "1", "0", "eta"),
        ("dpmpp_2m", "multistep", "ODE", "2", "1", "0", "no"),
        ("uni_pc", "multistep", "ODE", "3 of 4", "1", "0", "no"),  # order 3 and a corrector, from an Euler start
        ("lms", "multistep", "ODE", "2 of 4", "1", "0", "no"),  # its first step is Euler's
        ("plms", "multistep", "ODE", "2 of 4", "1", "+1", "no"),  # the first step is taken twice
        ("pndm", "multistep", "ODE", "2 of 4", "1", "+9", "no"),  # three steps of four stages
        ("ddpm", "sde", "SDE", "1", "1", "0", "yes"),
        ("pc", "wrapper", "SDE+MCMC", "1", "2", "0", "yes"),
        ("rk45", "adaptive", "ODE", "5", "6", "-", "no"),
        ("scipy", "black box", "ODE", "5", "6", "-", "no"),
        ("tweedie", "discrete", "posterior", "1", "1", "-", "yes"),
        ("theta_trapezoidal", "discrete", "rates", "2", "2", "-", "yes"),
        ("first_hitting", "discrete", "exact", "exact", "1/event", "-", "yes"),
    ],
)
def test_lines_of_the_table(lines, name, group, kind, order, evaluations, startup, noise):
    row = lines[name]
    found = (row.group, row.kind, row.order, row.evaluations, row.startup, row.noise)
    assert found == (group, kind, order, evaluations, startup, noise)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("uni_pc(order=2)", "3"),
        ("uni_pc(correct=False)", "2 of 3"),
        ("uni_pc(order=4, start=runge_kutta)", "4 of 5"),
        ("uni_pc(lower_order_final=True)", "2 of 4"),
        ("sa_solver", "2"),
        ("sa_solver(eta=0)", "3 of 4"),
        ("sa_solver(predictor_order=3, corrector_order=1)", "1"),
        ("dpmpp_3m(variant=released)", "2 of 3"),
        ("dpmpp_3s(mode=grid, variant=flipped, eta=1)", "0 of 3"),
    ],
)
def test_the_order_is_the_declared_one_and_the_methods_own_where_that_is_higher(spec, text):
    assert solver_cards.order_text(solvers.make(spec)) == text


@pytest.mark.parametrize(
    ("reference", "short"),
    [
        ("Lu et al. 2022, arXiv:2206.00927, appendix C.2-C.3; the controller: Another 2003", "Lu 2022, 2206.00927"),
        ("Zhang and Chen 2023, arXiv:2204.13902, eq. 14", "Zhang and Chen 2023, 2204.13902"),
        ("Crowson 2022, k-diffusion, sample_dpm_2, after Karras et al. 2022", "Crowson 2022, k-diffusion"),
        ("Hairer, Norsett and Wanner 1993, section III.5", "Hairer et al. 1993"),
        ("Kutta 1901; Hairer 1993, chapter II.1", "Kutta 1901"),
        ("scipy.integrate.solve_ivp; RK45: Dormand and Prince 1980", "scipy.integrate.solve_ivp"),
        ("", ""),
    ],
)
def test_short_references(reference, short):
    assert solver_cards.short(reference) == short


def test_measured_orders_are_a_range_or_a_dash(monkeypatch):
    monkeypatch.setattr(
        solver_cards, "orders", lambda: {"heun": {"vp": 2.014, "ve": 1.996, "edm": 2.0}, "euler": {"vp": 0.92}}
    )
    assert [solver_cards.measured_text(spec) for spec in ("heun", "euler", "ddim")] == ["2.00-2.01", "0.92", "-"]
    assert "measured 2.01 (vp), 2.00 (ve), 2.00 (edm)" in solver_cards.card("heun")
    assert 'measured - (scoresde check-solver "ddim" measures it)' in solver_cards.card("ddim")


def test_every_solver_has_a_measured_order_that_is_the_declared_one_or_more():
    """Of the installed file; the same bound as in the conformance suite. Of discrete states, some promise none."""
    measured = solver_cards.orders()
    made = {name: s for name in NAMES + DISCRETE if (s := solvers.make(name)).order < math.inf}
    made = {name: s for name, s in made.items() if s.order or name in NAMES}
    assert sorted(set(DISCRETE) - set(made)) == ["decode", "entropy_bounded", "first_hitting", "uniformization"]
    assert [name for name in made if name not in measured] == []
    low = [name for name, solver in made.items() if not reaches(solver, min(measured[str(solver)].values()))]
    assert low == []


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("dpmpp_2m", "variant", "midpoint | heun"),
        ("dpmpp_2m", "lower_order_final", "True | False"),
        ("uni_pc", "order", "integer, 1 to 4"),
        ("pc", "corrector_steps", "integer, 1 or more"),
        ("pc", "predictor", "any solver"),
        ("rk45", "first_step", "number above 0 | None"),
        ("ddim", "eta", "number in [0, 1]"),
        ("ddpm", "variance", "beta_tilde | beta | interpolated | learned | optimal"),
    ],
)
def test_accepted_values_of_options(name, option, values):
    assert cards.accepted(solvers.info(name), option) == values


def test_methods_with_several_names():
    classes = {spec: known for known in solver_cards.equal_methods() for spec in known}
    assert {"ddim", "euler", "dpm_solver_1"} <= set(classes["ddim"])
    assert {"ddpm", "smld", "ddim(eta=1.0)", "euler_ancestral"} <= set(classes["ddpm"])
    assert classes["heun"] == ["heun", "rho_rk"]
    assert all(str(solvers.make(spec)) == spec for spec in classes)
    assert len(classes) == sum(map(len, solver_cards.equal_methods()))  # a spec stands in one class


@pytest.mark.parametrize("known", solver_cards.equal_methods(), ids=lambda known: known[0])
def test_methods_of_one_class_give_one_sample(known):
    """The classes join pairs that are proved one by one: every member is the same method on an uneven grid.

    1e-12 is the rounding of seven steps on numbers of size ten.
    """
    nodes, found = solvers.grid("karras(end=t_min)", VP, 7), []
    for spec in known:
        noise = SeededNoise(range(4), (3,), torch.float64)
        x = nodes[0].sigma * noise.initial()
        found.append(solvers.solve(solvers.make(spec), Mixture(VP), x, nodes, noise).x)
    for x in found[1:]:
        assert torch.allclose(x, found[0], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def tokens():
    """The exact model of three sequences of tokens, by process."""
    target = DiscreteEmpirical(torch.tensor([[0, 1, 2], [2, 1, 0], [3, 3, 3]]))
    return {process: target.denoiser(process) for process in (Absorbing(4), BIRTH_DEATH)}


@pytest.mark.parametrize("name", DISCRETE)
def test_cards_of_solvers_of_discrete_states(name, tokens):
    solver = solvers.make(name)
    denoiser = tokens[BIRTH_DEATH if name == "tau_leaping" else Absorbing(4)]
    text = check_card(name, denoiser, (3,))
    assert "runs/heartbeat" in text
    assert " grid      uniform, equal steps in the time of the process" in text
    assert ("exact; its draws are tested" in text) == (solver.order == math.inf)


def test_cards_name_what_a_name_means_where_the_model_has_other_states():
    assert "also      tau_euler, where the model has discrete states" in solver_cards.card("euler")
    assert "also      ancestral, where the model has discrete states" in solver_cards.card("tweedie")
    assert "  also " not in solver_cards.card("ddim")


def test_costs_of_solvers_of_discrete_states_are_counted():
    costs = {name: solver_cards.cost(solvers.make(name)) for name in DISCRETE}
    where = "for 3 tokens of 3 values (absorbing)"
    assert costs["tweedie"] == f"1 per step, 1 in the last one, to the data; 20 steps take 20, {where}"
    assert costs["theta_trapezoidal"] == f"2 per step, 1 in the last one, to the data; 20 steps take 39, {where}"
    assert costs["mdlm_cache"].endswith(f"20 steps take 3 at most, {where}")
    assert costs["first_hitting"] == f"1 per event, at random times: 3.0 on average {where}"


@pytest.mark.parametrize("name", NAMES)
def test_cards(name, denoiser):
    check_card(name, denoiser, (2,))


def check_card(name, denoiser, shape):
    """The card of a solver has all that its author wrote, and its line of Python runs; returns the card."""
    info, text = solvers.info(name), solver_cards.card(name)
    summary, _ = solver_cards.description(info)
    assert summary.endswith((".", ")"))
    assert max(map(len, text.splitlines())) <= 120
    joined = " ".join(text.split())
    assert all(" ".join(part.split()) in joined for part in (summary, info.formula, info.reference, info.note))
    assert all(f" {option} = " in joined for option in info.options)
    assert all(alias in joined for alias in info.aliases)
    line = re.search(r"^  Python +(.+?)(?=^  \S|\Z)", text, re.MULTILINE | re.DOTALL)[1]
    result = eval(line, {"scoresde": scoresde, "denoiser": denoiser, "shape": shape})
    assert torch.isfinite(result.x).all()
    assert result.solver == str(solvers.make(name))
    if "nfe=" in line:
        assert result.nfe <= 20
    return text


@pytest.mark.parametrize("name", NAMES + DISCRETE)
def test_every_spelling_on_a_card_means_that_solver(name):
    for text in solver_cards.spellings(solvers.info(name)):
        label, separator, spec = text.partition(" = ")
        made = solvers.make(solvers.resolve(label)[0])
        assert solvers.solvers.info_of(made).name == name
        assert not separator or made == solvers.make(spec)


def test_cards_take_what_people_type():
    assert solver_cards.card("DPM++ 2M Karras").startswith("dpmpp_2m on the grid karras\n")
    assert 'solver="dpmpp_2m", grid="karras", nfe=20' in solver_cards.card("DPM++ 2M Karras")
    assert solver_cards.card("HeunDiscreteScheduler") == solver_cards.card("heun")
    text = solver_cards.card("ddim(eta=1)")
    assert "draws noise" in text
    assert "equals    ddpm, smld, seeds_1, euler_ancestral" in text
    with pytest.raises(InputError, match="did you mean heun"):
        solver_cards.card("huen")
    with pytest.raises(InputError, match="etta"):
        solver_cards.card("ddim(etta=1)")
    with pytest.raises(InputError, match="nowhere"):
        solver_cards.card("nowhere:Mine")


@pytest.mark.parametrize(
    ("label", "grid", "words"),
    [
        ("heun", "karras", "karras, the default of a named solver; --grid=NAME chooses another"),
        ("ipndm", "karras", "the default sampler, where no solver is named, is ipndm on logsnr(end=zero)"),
        ("few", "few", "few, its own; the default where no solver is named, at the budgets of its tables; --grid=NAME"),
        ("DPM++ 2M SDE Exponential", "logsnr(end=zero)", "logsnr(end=zero), which the name contains"),
        ("rk45", "uniform", "one interval over the whole range, in which it chooses its steps"),
    ],
)
def test_a_card_names_the_grid_that_its_solver_runs_on(label, grid, words, denoiser):
    text = " ".join(solver_cards.card(label).split())
    assert f" grid {words}" in text if label != "ipndm" else words in text
    assert scoresde.plan(denoiser, label).grid == grid
    if label == "rk45":
        assert scoresde.plan(denoiser, label).steps == 1
        assert scoresde.plan(denoiser, label, "karras").steps > 1


def test_costs_are_counted():
    assert solver_cards.cost(solvers.make("heun")) == "2 per step; 20 steps take 40 to sigma > 0 and 39 to sigma = 0"
    pndm = "take 29 to sigma > 0 and 29 to sigma = 0; 9 of them are start-up cost"
    assert solver_cards.cost(solvers.make("pndm")).endswith(pndm)
    assert solver_cards.cost(solvers.make("rk45")).startswith("6 per inner step; the tolerances decide how many")


def test_every_method_and_operator_has_a_row_and_a_card():
    for registry, table, card in (
        (posteriors, posterior_cards.posterior_table(), posterior_cards.posterior_card),
        (operators, posterior_cards.operator_table(), posterior_cards.operator_card),
    ):
        lines = table.partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in lines[1:]] == registry.names()
        assert max(map(len, table.splitlines())) <= 150
        for name in registry.names():
            info, text = registry.info(name), card(name)
            words = " ".join(text.split())
            assert " ".join(info.formula.split()) in words
            for option, field in info.fields.items():
                required = field.default is dataclasses.MISSING
                assert f"{option}, required" in text if required else f"{option} = " in text, (name, option)
            assert max(map(len, text.splitlines())) <= cards.WIDTH


def test_cards_of_methods_say_what_they_promise():
    rows = {line.split()[0]: line for line in posterior_cards.posterior_table().splitlines() if line}
    assert re.split(" {2,}", rows["dps"])[:6] == ["dps", "denoiser", "-", "any", "any", "model"]
    assert re.split(" {2,}", rows["ddnm"])[3:6] == ["ignored", "linear", "-"]
    assert re.split(" {2,}", rows["tds"])[2] == "all data and operators"
    card = posterior_cards.posterior_card("tds(particles=9)")
    assert "particles = 64     integer, 2 or more: K for each draw." in card
    assert "exact for all data and operators, in the limit of many particles" in card
    assert "sigma above 0: the method divides by it" in card
    assert "exact for nothing" in posterior_cards.posterior_card("dps")
    card = posterior_cards.operator_card("mask")
    assert "mask, required   a .npy file: True where a number is seen" in card
    assert "gradients 0 everywhere" in posterior_cards.operator_card("quantise")
    assert "SVD       known" in card
    assert "SVD       computed, of samples of at most 4096" in posterior_cards.operator_card("matrix")
    for text, make in (("mmsp", posterior_cards.posterior_card), ("inpant", posterior_cards.operator_card)):
        with pytest.raises(InputError, match="did you mean"):
            make(text)


def test_the_command_line_prints_the_cards(capsys):
    assert (
        main(["posteriors"]) == main(["operators"]) == main(["posteriors", "tds"]) == main(["operators", "blur"]) == 0
    )
    assert capsys.readouterr().out.split("\n") == "\n".join([
        posterior_cards.posterior_table(), posterior_cards.operator_table(), posterior_cards.posterior_card("tds"),
        posterior_cards.operator_card("blur"), "",
    ]).split("\n")  # fmt: skip


@pytest.mark.parametrize("name", guidances.names())
def test_a_card_of_guidance_says_what_is_needed_and_what_an_option_is(name):
    text = guidance_cards.card(name)
    assert ('--guidance="' in text) == (name not in ("negative", "autoguidance", "classifier"))
    assert ('scoresde.sample(denoiser, seeds=64, condition={"y": labels}, guidance="tilt")' in text) == (name == "tilt")
    assert ('scoresde.guide(denoiser, "autoguidance", bad=worse)' in text) == (name == "autoguidance")
    assert "inner = cfg" in text or name not in ("rescale", "threshold")
    assert not re.search("object at|``", text)
    options = guidances.info(name).fields
    assert {"scale", "interval", "scales"} & set(options) <= set(documented(guidances.info(name)).options)


@pytest.mark.parametrize("name", ["cfg", "tilt"])
def test_cards_show_that_guidance_does_not_sample_the_tilt(name):
    """The reference's means at s = 3: 1.519 of the ODE, 1.239 of the SDE and 1.051 of the tilt, within 0.003."""
    (line,) = (line for line in guidance_cards.card(name).splitlines() if "s = 3: " in line)
    found = [float(part.split()[-2].rstrip(",")) for part in line.split(";")]
    assert found == pytest.approx([1.051, 1.519, 1.239], abs=0.003)
