"""The solver ``few``: its tables on every path, other nodes, hooks, and how it is asked for."""

import math

import pytest
import torch

import scoresde
import solvers
from solvers import InputError
from solvers.time_grids.few import few_tables

TARGET = scoresde.targets.GaussianMixture(torch.tensor([[-0.6, 0.2], [0.5, 0.4], [0.1, -0.7]]), 0.1**2)
PATHS = {"vp": scoresde.VP(), "ve": scoresde.VE(), "flow": scoresde.RectifiedFlow(), "edm": scoresde.EDM()}


def by_hand(denoiser, x, nfe, sigma_data):
    """The outcome (B, *) by the definition of the tables, from x (B, *) at t_max."""
    table, node = few_tables()[nfe], denoiser.sde(denoiser.sde.t_max)
    first = sigma_data * table.ratios[0]
    start = math.sqrt((first**2 + sigma_data**2) / (node.ratio**2 + sigma_data**2)) * (x / node.alpha)
    if node.ratio > first:
        node = denoiser.sde.node_of_lam(-math.log(first))
        x = node.alpha * start
    found = [denoiser.predict(x, node).x0]
    for n in range(1, nfe + 1):
        y = table.start[n] * start + sum(w * d for w, d in zip(table.weights[n], found, strict=True))
        if n < nfe:
            node = denoiser.sde.node_of_lam(-math.log(sigma_data * table.ratios[n]))
            found.append(denoiser.predict(node.alpha * y, node).x0)
    return y


@pytest.mark.parametrize("nfe", [4, 6, 12])
@pytest.mark.parametrize("path", PATHS)
def test_samples_follow_the_definition_on_every_path(path, nfe):
    denoiser = TARGET.denoiser(PATHS[path])
    made = scoresde.sample(denoiser, (2,), range(16), "few", nfe=nfe, dtype=torch.float64)
    assert (made.nfe, made.solver, made.grid) == (nfe, "few", "few")
    first = made.nodes[0]
    x = math.hypot(first.alpha, first.sigma) * solvers.SeededNoise(range(16), (2,), torch.float64).initial()
    wanted = denoiser.sde.clean.alpha * by_hand(denoiser, x, nfe, 0.5)
    assert torch.allclose(made.x, wanted, rtol=0, atol=1e-9)
    program = solvers.trace("few", made.nodes, denoiser.sde, "eps")  # another output than the formula's
    assert program.nfe == nfe
    again = solvers.Program.from_json(program.to_json()).run(scoresde.models.problem.Diffusion(denoiser), x)
    assert torch.allclose(again, wanted, rtol=0, atol=1e-9)


def test_the_options_reach_the_grid():
    denoiser = TARGET.denoiser(PATHS["vp"])
    made = scoresde.sample(denoiser, (2,), range(4), "few(nfe=6, sigma_data=1.0)", dtype=torch.float64)
    assert (made.nfe, made.grid) == (6, "few(sigma_data=1.0, nfe=6)")
    assert made.nodes[2].ratio == pytest.approx(few_tables()[6].ratios[2])
    as_object = scoresde.sample(
        denoiser, (2,), range(4), solvers.make("few(nfe=6, sigma_data=1.0)"), dtype=torch.float64
    )
    assert torch.equal(as_object.x, made.x)
    row = scoresde.benchmark.runner.benchmark(
        denoiser, made.x, ["few"], [6], range(4), shape=(2,), progress=False, truth_steps=0
    )[0]  # fmt: skip
    assert (row.grid, row.nfe) == ("few", 6)


@pytest.mark.parametrize(("grid", "steps"), [("karras", 6), ("few", 13), ("few(sigma_data=1.0)", 6), ("few", 3)])
def test_on_other_nodes_it_is_ipndm(grid, steps):
    denoiser = TARGET.denoiser(PATHS["vp"])
    mine, other = (
        scoresde.sample(denoiser, (2,), range(8), name, grid, steps, dtype=torch.float64) for name in ("few", "ipndm")
    )
    assert torch.equal(mine.x, other.x)


@pytest.mark.parametrize("path", [scoresde.EDM(t_min=0.5), scoresde.EDM(t_max=5.0), scoresde.EDM(t_max=0.08)])
def test_on_a_path_without_its_noise_levels_it_is_the_default_at_other_budgets(path):
    denoiser = TARGET.denoiser(path)
    mine = scoresde.sample(denoiser, (2,), range(8), nfe=12, dtype=torch.float64)
    other = scoresde.sample(denoiser, (2,), range(8), "ipndm", "logsnr(end=zero)", nfe=12, dtype=torch.float64)
    assert mine.solver == "few"
    assert torch.allclose(mine.x, other.x, rtol=0, atol=1e-12)


def test_a_state_that_a_hook_replaces_counts():
    """With a model whose prediction is constant, a state moved by d at a node moves the outcome by d in x / alpha."""
    denoiser = scoresde.targets.Empirical(torch.tensor([[0.3, -0.2]])).denoiser(PATHS["edm"])
    moved = torch.tensor([0.01, -0.02], dtype=torch.float64)
    seen = []

    def hook(x, node):
        seen.append(node)
        return x + moved if len(seen) == 3 else None

    plain, hooked = (
        scoresde.sample(denoiser, (2,), [0], "few", nfe=6, dtype=torch.float64, hooks=hooks).x for hooks in ((), hook)
    )
    assert torch.allclose(hooked - plain, moved.expand(1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("nfe", [5, 6, 8, 10])
def test_it_halves_the_error_of_a_common_default_on_a_mixture_that_it_has_not_seen(nfe):
    problem, truth = scoresde.trajectory(TARGET.denoiser(PATHS["vp"]), (2,), range(256))
    few, common = (
        float(truth.errors(name, problem, truth.place(grid, nfe)).mean().sqrt())
        for name, grid in (("few", "few"), ("dpmpp_2m", "karras"))
    )
    assert few < 0.5 * common


@pytest.mark.parametrize("nfe", [5, 8])
def test_a_network_whose_eps_is_wrong_at_high_noise_does_not_throw_samples_off(nfe):
    """The eps of a network has an error of some percent everywhere, and its x0 at t_max is off by sigma / alpha times
    that: by 4.6 here, at sigma / alpha = 152. The model's own ODE differs little, and so do the samples."""
    exact = TARGET.denoiser(PATHS["vp"])

    def network(x, t):
        node = exact.sde(float(t.flatten()[0]))
        return exact.predict(x, node).eps + 0.03 * torch.sin(x / math.hypot(node.alpha, node.sigma)).flip(-1)

    model = scoresde.Denoiser(network, exact.sde, predicts="eps", time_label="t")
    first = exact.sde(exact.sde.t_max)
    x = torch.randn(64, 2, dtype=torch.float64, generator=solvers.generator(0))
    off = (model.predict(x, first).x0 - exact.predict(x, first).x0).square().mean().sqrt()
    assert 2 < off < 5
    problem, truth = scoresde.trajectory(model, (2,), range(64))
    few, default = (
        float(truth.errors(name, problem, truth.place(grid, nfe)).mean().sqrt())
        for name, grid in (("few", "few"), ("ipndm", "logsnr(end=zero)"))
    )
    assert few < default


def test_tables_are_what_they_say():
    assert list(few_tables()) == list(range(4, 13))
    for nfe, table in few_tables().items():
        assert table.ratios[0] == pytest.approx(80.0, rel=1e-9)
        assert table.ratios[-1] == 0.0
        assert all(a > b for a, b in zip(table.ratios, table.ratios[1:], strict=False))
        assert (len(table.start), len(table.weights), table.start[0]) == (nfe + 1, nfe + 1, 1.0)
        assert [len(row) for row in table.weights] == list(range(nfe + 1))


def test_bad_input_is_one_clear_line():
    denoiser = TARGET.denoiser(PATHS["vp"])
    with pytest.raises(InputError, match="sets its own steps"):
        scoresde.sample(denoiser, (2,), range(4), "few(nfe=6)", nfe=8)
    with pytest.raises(InputError, match=r"few\(nfe=6\) has 6 steps: leave out steps=8"):
        scoresde.sample(denoiser, (2,), range(4), "few(nfe=6)", steps=8)
    with pytest.raises(InputError, match="sigma_data"):
        solvers.make("few(sigma_data=0)")


def test_a_benchmark_says_how_many_numbers_were_tuned():
    denoiser = TARGET.denoiser(PATHS["vp"])
    names = ["few", "final(solver=few)", "ipndm"]
    rows = scoresde.benchmark.benchmark(
        denoiser, None, names, [5, 20], 4, shape=(2,), truth_steps=16, progress=False
    )  # fmt: skip
    facts = {(row.solver.partition("(")[0], row.nfe_budget): (row.parameters, row.teacher) for row in rows}
    assert facts["few", 5] == facts["final", 5] == (4 + 5 + 15, "exact solution")  # levels, start, weights
    assert facts["few", 20] == facts["ipndm", 5] == (None, None)
    assert rows[0].tuning_seconds > 60
    assert rows[0].tuning_nfe is None  # it was not counted
