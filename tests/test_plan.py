"""Plans: made once, the same bits as the flat call, traced once, refused on another path."""

from dataclasses import replace

import pytest
import torch

import scoresde
import solvers
from scoresde import InputError, encode, log_prob, sample, sample_with_log_prob
from scoresde.models.targets import GaussianMixture
from scoresde.sampling.cached_by_value import cached_by_value
from solvers.time_grids.files import write_grid

pytestmark = pytest.mark.quick

VP = scoresde.VP()
TARGET = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.04)
DENOISER = TARGET.denoiser(VP)
CHOICES = [
    {"solver": "dpmpp_2m", "steps": 8},
    {"solver": "heun", "grid": "logsnr", "nfe": 15},
    {"solver": "DPM++ 2M Karras", "steps": 6, "t_min": 0.01, "t_max": 0.9},
    {"solver": "ddpm", "grid": "trailing", "steps": 5},
    {"solver": "adams_adaptive(rtol=0.001, atol=0.001)"},
    {"solver": "ddim", "grid": "explicit(times=[1.0, 0.5, 0.1, 0.01], end=zero)"},
]
deterministic = [choice for choice in CHOICES if choice["solver"] != "ddpm"]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_plan_used_twice_gives_the_bits_of_the_flat_call(choice):
    plan = scoresde.plan(DENOISER, **choice)
    x_init = torch.randn(4, 2, generator=solvers.generator(3)) if "t_max" in choice else None
    flat = sample(DENOISER, (2,), range(4), x_init=x_init, **choice)
    for _ in range(2):
        found = sample(DENOISER, (2,), range(4), plan=plan, x_init=x_init)
        assert torch.equal(found.x, flat.x)
        assert (found.nfe, found.solver, found.grid) == (flat.nfe, flat.solver, flat.grid)
        assert found.nodes == flat.nodes == plan.nodes


@pytest.mark.parametrize("choice", deterministic, ids=str)
def test_encoding_and_likelihood_stop_at_t_min(choice):
    """As the flat calls do: of a number of steps or of a grid that sets its own, the nodes are theirs."""
    plan, x = scoresde.plan(DENOISER, **choice), TARGET.sample(3, solvers.generator(0))
    up = plan.to_t_min()
    assert up.to_t_min() is up
    assert up.nodes[-1].t == choice.get("t_min", 0.01 if "explicit" in choice.get("grid", "") else VP.t_min)
    assert torch.equal(encode(DENOISER, x, plan=plan).x, encode(DENOISER, x, **choice).x)
    likelihood = {"divergence": "exact", "prior": VP.prior().log_prob}
    flat = log_prob(DENOISER, x, **{"grid": "karras" if "steps" in choice else None, **choice}, **likelihood)
    found = log_prob(DENOISER, x, plan=plan, **likelihood)
    assert torch.equal(found.nats, flat.nats)
    assert (found.nfe, found.grid) == (flat.nfe, up.grid)


def test_samples_with_their_density():
    plan = scoresde.plan(DENOISER, "heun", "karras", 20)
    ours = sample_with_log_prob(DENOISER, (2,), range(3), plan=plan, divergence="exact")
    flat = sample_with_log_prob(DENOISER, (2,), range(3), "heun", "karras", 20, divergence="exact")
    assert torch.equal(ours[0], flat[0])
    assert torch.equal(ours[1].nats, flat[1].nats)


def test_a_program_is_traced_once(monkeypatch):
    """Of the same values, whoever made them; of another output, path or number of steps anew."""
    denoiser = TARGET.denoiser(scoresde.VP(beta_max=18.0))  # no other test traces on this path
    traced, real = [], solvers.trace

    def trace(*arguments):
        traced.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(solvers, "trace", trace)
    plan = scoresde.plan(denoiser, "dpmpp_2m", steps=7)
    first = sample(denoiser, (2,), range(4), plan=plan)
    assert len(traced) == 1
    again = [sample(denoiser, (2,), range(4), plan=plan), sample(denoiser, (2,), range(4), "dpmpp_2m", steps=7)]
    assert len(traced) == 1
    assert all(torch.equal(found.x, first.x) for found in again)
    assert plan.program("x0") is scoresde.plan(denoiser, "dpmpp_2m", steps=7).program("x0")
    assert len(traced) == 1
    plan.program("eps")
    sample(TARGET.denoiser(scoresde.VP(beta_max=19.0)), (2,), range(4), "dpmpp_2m", steps=7)
    sample(denoiser, (2,), range(4), "dpmpp_2m", steps=8)
    assert len(traced) == 4


def test_a_call_plans_once(monkeypatch):
    denoiser = TARGET.denoiser(scoresde.VP(beta_max=18.5))  # no other test plans on this path
    placed, real = [], solvers.grids.make("karras").__class__.nodes

    def nodes(self, *arguments):
        placed.append(arguments)
        return real(self, *arguments)

    monkeypatch.setattr(solvers.Grid, "nodes", nodes)
    first = sample(denoiser, (2,), range(4), "heun", "karras", nfe=15)
    count = len(placed)
    again = sample(denoiser, (2,), range(4), "heun", "karras", nfe=15)
    assert len(placed) == count
    assert torch.equal(first.x, again.x)
    sample(denoiser, (2,), range(4), "heun", "karras", nfe=15, t_max=0.9, x_init=first.x)
    assert len(placed) > count


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = tmp_path / "grid.json"
    for ratios in ([8.0, 1.0, 0.1, 0.0], [8.0, 2.0, 0.1, 0.0]):
        write_grid(path, ratios, {})
        plan = scoresde.plan(DENOISER, "ddim", f"file:{path}")
        assert plan.nodes == scoresde.plan(DENOISER, "ddim", f"explicit(ratios={ratios})").nodes


def test_a_program_file_that_changed_is_read_anew(tmp_path):
    path, found = tmp_path / "program.json", []
    for solver in ("ddim", "dpmpp_2m"):
        written = scoresde.plan(DENOISER, solver, "karras", 4).program("x0")
        path.write_text(written.to_json())
        found.append(sample(DENOISER, (2,), range(4), solvers.make(f"file:{path}")).x)
        assert torch.allclose(found[-1], sample(DENOISER, (2,), range(4), solver, "karras", 4).x, atol=1e-5)
    assert not torch.allclose(*found, atol=1e-3)


def test_results_are_kept_for_values_only():
    calls = []

    @cached_by_value(8)
    def record(*arguments):
        calls.append(arguments)

    own, learned = object(), scoresde.LearnedVP()
    for arguments in ((1, VP), (1, VP), (1.0, VP), (None, scoresde.VP()), (None, VP)):
        record(*arguments)
    assert len(calls) == 3
    for arguments in ((own,), (own,), (learned,), (learned,), ([1],), ([1],)):
        record(*arguments)
    assert len(calls) == 9


def test_a_path_that_learns_is_traced_anew():
    sde = scoresde.LearnedVP()
    plan = scoresde.plan(TARGET.denoiser(sde), "dpm_2", steps=3)
    before = plan.program()
    with torch.no_grad():
        next(iter(sde.module.interior.parameters())).add_(1.0)
    assert plan.program() != before
    with pytest.raises(InputError, match="dpm_2 was made for a different path"):
        sample(TARGET.denoiser(sde), (2,), range(2), plan=plan)


def test_what_has_no_value_is_not_kept():
    plan = scoresde.plan(DENOISER, "ddim", steps=3)
    odd = replace(plan, nodes=list(plan.nodes))
    assert odd.program("x0") == plan.program("x0")
    assert scoresde.plan(DENOISER, "adams_adaptive").program("x0") is None  # no program
    assert scoresde.plan(DENOISER, "paradigms", steps=4).program("x0") is None  # several steps in one call


def test_plans_are_values():
    plan = scoresde.plan(DENOISER, "dpmpp_2m", "karras", nfe=20)
    assert plan == scoresde.plan(DENOISER, "DPM++ 2M Karras", steps=20)
    assert hash(plan) == hash(scoresde.plan(DENOISER, "dpmpp_2m", "karras", steps=20))
    assert plan != scoresde.plan(DENOISER, "dpmpp_2m", "karras", steps=19)
    assert (str(plan), plan.steps, plan.grid) == ("dpmpp_2m on karras, 20 steps", 20, "karras")
    assert plan.in_steps(10) == scoresde.plan(DENOISER, "dpmpp_2m", "karras", steps=10)
    assert plan.reversed().nodes == plan.nodes[::-1]


def test_bad_input():
    plan = scoresde.plan(DENOISER, "heun", "karras", 5)
    x = torch.zeros(2, 2)
    with pytest.raises(InputError, match=r"^a plan contains its solver, grid, steps and range: leave out solver, nfe"):
        sample(DENOISER, (2,), [0], "ddim", nfe=5, plan=plan)
    for call in (lambda **options: encode(DENOISER, x, **options), lambda **options: log_prob(DENOISER, x, **options)):
        with pytest.raises(InputError, match=r"leave out steps, t_max, or the plan$"):
            call(plan=plan, steps=5, t_max=1.0)
    with pytest.raises(InputError, match=r"leave out grid, or the plan$"):
        sample_with_log_prob(DENOISER, (2,), [0], grid="karras", plan=plan)
    with pytest.raises(InputError, match="leave out plan, steps, nfe and draws; pass solver and grid"):
        log_prob(DENOISER, x, plan=plan, tolerance=0.1)
    with pytest.raises(InputError, match=r"heun was made for a different path: at t=1 .* has 1 and 50"):
        sample(TARGET.denoiser(scoresde.VE()), (2,), [0], plan=plan)
    with pytest.raises(InputError, match=r"plan must be what scoresde.plan returns, got str"):
        sample(DENOISER, (2,), [0], plan="heun")
    with pytest.raises(InputError, match="ddpm draws noise; a likelihood needs a deterministic solver"):
        log_prob(DENOISER, x, plan=scoresde.plan(DENOISER, "ddpm", steps=5))
    with pytest.raises(InputError, match=r"pass steps or nfe$"):
        log_prob(DENOISER, x, "heun")
    fixed = scoresde.plan(DENOISER, "ddim", "explicit(times=[1.0, 0.1])")
    with pytest.raises(InputError, match="sets its own steps"):
        fixed.in_steps(3)


class Bare:
    """The least that a denoiser is."""

    sde = VP

    def predict(self, x, node, **conditions):
        return DENOISER.predict(x, node)


def test_any_object_with_a_path_and_a_prediction_is_a_denoiser():
    x = TARGET.sample(3, solvers.generator(0))
    assert torch.equal(sample(Bare(), (2,), range(4), steps=6).x, sample(DENOISER, (2,), range(4), steps=6).x)
    options = {"steps": 6, "divergence": "exact"}
    assert torch.equal(log_prob(Bare(), x, **options).nats, log_prob(DENOISER, x, **options).nats)
    with pytest.raises(InputError, match=r"a denoiser needs .sde and .predict"):
        sample(type("Half", (), {"sde": VP})(), (2,), [0], steps=2)


def test_the_default_sampler_is_a_pair():
    """A solver that is named keeps karras; a grid that is named is used by the default solver."""
    found = [
        scoresde.plan(DENOISER, steps=13), scoresde.plan(DENOISER, "heun", steps=5),
        scoresde.plan(DENOISER, grid="uniform", steps=5),
    ]  # fmt: skip
    assert [(str(plan.solver), plan.grid) for plan in found] == [
        ("ipndm", "logsnr(end=zero)"), ("heun", "karras"), ("ipndm", "uniform"),
    ]  # fmt: skip
    assert sample(DENOISER, (2,), 2).nodes == scoresde.plan(DENOISER, steps=20).nodes


def test_the_default_at_few_evaluations_is_few_on_a_whole_path():
    for given in ({"nfe": 4}, {"nfe": 12}, {"steps": 6}):
        found = scoresde.plan(DENOISER, **given)
        assert (str(found.solver), found.grid, found.steps) == ("few", "few", *given.values())
    for given in ({"nfe": 3}, {"nfe": 13}, {"nfe": 6, "grid": "karras"}, {"nfe": 6, "t_max": 0.5}, {"forwards": 6}):
        assert str(scoresde.plan(DENOISER, **given).solver) == "ipndm"
    for wrong in ([5], "5", True):
        with pytest.raises(InputError, match="nfe must be a positive integer"):
            scoresde.plan(DENOISER, nfe=wrong)


@pytest.mark.parametrize("solver", ["rk45", "adams_adaptive", "dpm_adaptive(order=2)"])
def test_a_number_of_steps_is_refused_where_the_solver_chooses_them(solver):
    x = torch.zeros(2, 2)
    calls = (
        lambda **how: sample(DENOISER, (2,), 4, **how),
        lambda **how: scoresde.encode(DENOISER, x, **how),
        lambda **how: log_prob(DENOISER, x, **how),
        lambda **how: scoresde.plan(DENOISER, **how),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"chooses its own steps, so steps=5 cannot be set; use its tolerances"):
            call(solver=solver, steps=5)
    # with a grid that is named they are its intervals
    assert sample(DENOISER, (2,), 4, solver=solver, grid="uniform", steps=5).grid == "uniform"
    assert scoresde.plan(DENOISER, solver, "uniform", steps=5).steps == 5
