"""Tuned grids: the searches against brute force and closed forms, the outcome on unseen states, the file."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import scoresde
import solvers
from scoresde.runs import build, config
from solvers import InputError, Trajectory, trajectory, tune_grid
from solvers.conformance.problems import EDM, VE, VP, GaussianData, Mixture, exact_solution
from solvers.time_grids.files import FileGrid
from solvers.tuning.grids import BUILT_IN, step_costs
from solvers.tuning.search import cheapest_path, descend

pytestmark = pytest.mark.quick

SD = 0.4  # of the Gaussian data below
# three groups closer to each other than to the noise's scale: structure at several levels, which no rule knows
MIXTURE = Mixture(VP, means=(-0.4, 0.1, 0.5), v=0.01)
LISTS = {"explicit", "file", "resampled"}  # grids that are no rules


def starts(schedule, rows, seed, size=4):
    """Where samplers begin (rows, size)."""
    node = schedule(schedule.t_max)
    z = solvers.SeededNoise([seed], (rows, size), torch.float64).initial()[0]
    return math.hypot(node.alpha, node.sigma) * z


def exact_gaussian(schedule, steps, rows=3, to_zero=False):
    """The ODE's solution for data N(0, SD^2) on a log-SNR grid: x is proportional to the standard deviation of x_t."""
    nodes = solvers.grid(f"logsnr(end={'zero' if to_zero else 't_min'})", schedule, steps)
    problem = GaussianData(schedule, SD**2)
    x = torch.linspace(-1.3, 2.1, 2 * rows, dtype=torch.float64).view(rows, 2)
    spread = [math.sqrt(problem.variance(node)) for node in nodes]
    return problem, Trajectory(schedule, nodes, torch.stack([x * s for s in spread]))


def angles(ratios):
    """atan(ratio / SD), in which Euler's method is at its best in equal steps."""
    return np.arctan(np.array(ratios) / SD)


@pytest.fixture(scope="module")
def mixture():
    """By end: a reference to tune on and one of other states."""
    made = {}
    for end in ("t_min", "zero"):
        parts = (trajectory(MIXTURE, starts(VP, 128, seed), VP, f"logsnr(end={end})", 64) for seed in (1, 2))
        made[end] = tuple(parts)
    return made


@pytest.fixture(scope="module")
def tuned(mixture):
    known = {}

    def make(solver, end):
        if (solver, end) not in known:
            reference, held_out = mixture[end]
            known[solver, end] = tune_grid(solver, MIXTURE, 6, reference, held_out=held_out)
        return known[solver, end]

    return make


@pytest.mark.parametrize("steps", range(1, 8))
def test_dynamic_programming_finds_the_cheapest_path(steps):
    generator = np.random.default_rng(steps)
    costs = np.where(np.tri(8, dtype=bool), math.inf, generator.exponential(size=(8, 8)))

    def total(path):
        return sum(costs[i, j] for i, j in itertools.pairwise(path))

    paths = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1)]
    assert tuple(cheapest_path(costs, steps)) == min(paths, key=total)


@pytest.mark.parametrize("schedule", [VP, VE], ids=str)
def test_a_step_costs_the_distance_of_its_end_to_the_truth(schedule):
    # data N(0, SD^2) and y = x / alpha: a step of Euler's from ratio r to q multiplies y by 1 + (q - r) r / (SD^2 +
    # r^2), the solution by sqrt((SD^2 + q^2) / (SD^2 + r^2))
    problem, reference = exact_gaussian(schedule, 7, to_zero=True)
    r, q = np.meshgrid(*[[node.ratio for node in reference.nodes]] * 2, indexing="ij")
    gap = 1 + (q - r) * r / (SD**2 + r**2) - np.sqrt((SD**2 + q**2) / (SD**2 + r**2))
    y = [float((x / n.alpha).square().mean().sqrt()) for x, n in zip(reference.states, reference.nodes, strict=True)]
    expected = np.where(np.tri(len(y), dtype=bool), math.inf, np.abs(gap) * np.array(y)[:, None])
    # one step of ddim and of the multistep methods, which all start so
    for solver in ("ddim", "dpmpp_2m", "ipndm"):
        found = step_costs(solvers.make(solver), problem, reference)
        assert np.array_equal(np.isinf(found), np.isinf(expected))
        above = np.isfinite(expected)
        assert found[above] == pytest.approx(expected[above], abs=1e-12)


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("schedule", [VP, EDM], ids=str)
def test_eulers_best_grid_for_gaussian_data_is_the_one_in_closed_form(schedule, to_zero):
    # with ratio = SD tan(a), N steps of Euler's leave prod cos(a_i - a_(i+1)) of the solution; log cos is concave, so
    # that equal steps of a leave the most: cos^N of an N-th of the way
    problem, reference = exact_gaussian(schedule, 48, to_zero=to_zero)
    made = tune_grid("euler", problem, 5, reference)
    a = angles(made.ratios)
    least = 1 - math.cos((a[0] - a[-1]) / 5) ** 5
    scale = float(reference.states[-1].square().mean().sqrt())
    # the search stops where a thousandth is gained, around a minimum: nodes are good to the root of that
    assert made.errors["tuned"] == pytest.approx(least * scale, rel=2e-3)
    assert made.errors["tuned"] >= least * scale * (1 - 1e-9)
    assert np.diff(a) == pytest.approx(np.full(5, (a[-1] - a[0]) / 5), rel=0.05)
    if not to_zero:  # and that grid is known by name, at its true standard deviation
        named = reference.errors("euler", problem, reference.place(f"kl_optimal(sigma_data={SD})", 5))
        assert math.sqrt(named.mean()) == pytest.approx(least * scale, rel=1e-9)


@pytest.mark.parametrize(
    ("solver", "end"),
    [
        ("ddim", "t_min"),
        ("dpmpp_2m", "t_min"),
        ("dpmpp_2m", "zero"),
        pytest.param("ddim", "zero", marks=pytest.mark.slow),
    ],
)
def test_a_tuned_grid_is_better_than_every_built_in_one_on_unseen_states(solver, end, mixture, tuned):
    made, held_out = tuned(solver, end), mixture[end][1]
    assert (made.nfe, made.steps, made.samples) == (6, 6, (128, 128))
    others = {}
    for name in sorted({*solvers.grids.names(), *BUILT_IN} - LISTS):
        nodes = held_out.place(name, 6)
        others[name] = math.sqrt(held_out.errors(solver, MIXTURE, nodes).mean())
    assert made.held_out["tuned"] < 0.8 * min(others.values())
    for name in BUILT_IN:  # which it tells as well
        assert made.held_out[name] == pytest.approx(others[name], rel=1e-12)


@pytest.mark.parametrize("end", ["t_min", "zero"])
def test_the_errors_are_those_of_a_solve(end, mixture, tuned):
    made, (reference, held_out) = tuned("dpmpp_2m", end), mixture[end]
    for truth, told in ((reference, made.errors), (held_out, made.held_out)):
        outcome = solvers.solve(solvers.make("dpmpp_2m"), MIXTURE, truth.states[0], solvers.grid(made.grid, VP))
        assert int(outcome.nfe.max()) == made.nfe
        exact = exact_solution(MIXTURE, truth.states[0], truth.nodes[0], VP(VP.t_min))
        if end == "zero":
            exact = MIXTURE.predict(exact, VP(VP.t_min)).x0
        assert (truth.states[-1] - exact).abs().max() < 1e-5  # RK4 in 64 steps
        assert told["tuned"] == pytest.approx(float((outcome.x - exact).square().mean().sqrt()), abs=1e-5)


def test_a_grid_that_begins_later_is_given_the_same_noise(mixture):
    reference = mixture["t_min"][0]
    nodes = solvers.grid("logsnr", VP, 5, t_max=0.5 * VP.t_max)
    start = math.hypot(nodes[0].alpha, nodes[0].sigma) * starts(VP, 128, 1)
    outcome = solvers.solve(solvers.make("ddim"), MIXTURE, start, nodes).x
    expected = (outcome - reference.states[-1]).square().mean(1)
    assert reference.errors("ddim", MIXTURE, nodes) == pytest.approx(expected, rel=1e-9)


def test_a_solver_of_several_evaluations_takes_fewer_steps(mixture):
    made = tune_grid("heun", MIXTURE, 7, mixture["zero"][0], starts=1, runs=30)
    assert (made.steps, made.nfe) == (4, 7)  # three of two, and one to sigma = 0
    rest = {name: value for name, value in made.errors.items() if name != "tuned"}
    assert made.errors["tuned"] < min(rest.values())


@pytest.mark.parametrize("closed", [False, True])
def test_the_search_keeps_levels_in_order_and_finds_a_minimum(closed):
    goal = np.array([3.0, 1.5, 1.0, -2.0 if closed else -1.0])  # of a tilted bowl; where closed, on the lower end
    tilt = np.tri(4) + np.eye(4)
    tried = []

    def error(levels):
        tried.append(levels)
        return 1 + float(np.square(tilt @ (levels - goal)).sum())

    start = np.array([3.5, 3.0, 2.5, 2.0])
    value, found = descend(error, start, error(start), 4.0, -2.0, 400, closed)
    assert value == error(found)
    assert found == pytest.approx(goal, abs=0.1)
    assert len(tried) <= 402
    for levels in tried:
        assert (np.diff([4.0, *levels]) < 0).all()
        assert levels[-1] >= -2.0 if closed else levels[-1] > -2.0
    few = len(tried)
    descend(error, start, error(start), 4.0, -2.0, 7, closed)
    assert len(tried) - few == 8  # one of them is ours


def test_a_saved_grid_is_named_by_its_file(tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = tuned("dpmpp_2m", "zero")
    made.save("my grid (6).json", seeds="1", model="a mixture")
    nodes = solvers.grid(made.grid, VP)
    for spec in ("file:my grid (6).json", "file(path='my grid (6).json')", f"file:{tmp_path}/my grid (6).json"):
        again = solvers.grid(spec, VP)
        assert [n.t for n in again] == pytest.approx([n.t for n in nodes], rel=1e-12)
        assert [n.ratio for n in again] == pytest.approx(made.ratios, rel=1e-12)
        assert solvers.grid(spec, VP, 6) == again
        rule = solvers.grids.make(spec)
        assert solvers.grids.make(str(rule)) == rule
    document = json.loads((tmp_path / "my grid (6).json").read_text())
    assert (document["solver"], document["nfe"], document["seeds"]) == ("dpmpp_2m", 6, "1")
    assert document["errors"] == made.errors
    assert document["held_out"]["karras"] == made.held_out["karras"]
    assert document["versions"]["torch"] == torch.__version__
    assert [p.name for p in tmp_path.iterdir()] == ["my grid (6).json"]  # nothing is left aside


def test_a_config_and_the_sampler_take_the_file(tmp_path):
    path = tmp_path / "tuned.json"
    sde = scoresde.VP()
    levels = [sde(1.0).ratio, 5.0, 1.0, 0.2, 0.0]
    solvers.time_grids.files.write_grid(path, levels, {"solver": "ddim"})
    cfg = config.read_config("configs/digits_vp.py", [f"--config.sampling.grid=file:{path}"])
    denoiser = scoresde.targets.Gaussian(torch.zeros(2), 0.25).denoiser(sde)
    plan = build.plan_of(denoiser, cfg.sampling)
    assert (plan.rule, plan.steps) == (solvers.grids.make(f"file:{path}"), 4)
    result = scoresde.sample(denoiser, (2,), range(3), plan=plan, dtype=torch.float64)
    same = scoresde.sample(denoiser, (2,), range(3), "ipndm", f"explicit(ratios={levels})", dtype=torch.float64)
    assert [node.ratio for node in result.nodes] == pytest.approx(levels, rel=1e-12)
    assert (result.nfe, torch.equal(result.x, same.x)) == (4, True)
    code = scoresde.encode(denoiser, result.x, "heun", f"file:{path}")  # up to the last level with noise
    assert [node.ratio for node in code.nodes] == pytest.approx(levels[-2::-1], rel=1e-12)


def test_only_the_name_before_the_colon_makes_a_file():
    assert isinstance(solvers.grids.info("file:nothing.json").cls, type)
    with pytest.raises(InputError, match="cannot import the grid 'files:nothing'"):
        solvers.grids.make("files:nothing")
    assert type(solvers.grids.make("solvers.time_grids.noise_levels:Beta")).__name__ == "Beta"


GOOD = {"format": "scoresde-grid", "version": 1, "ratios": [10.0, 1.0, 0.05]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a picture", "is not a grid: it is not JSON"),
        ([10.0, 1.0], 'it does not contain "format": "scoresde-grid"'),
        ({"ratios": [10.0, 1.0]}, 'it does not contain "format"'),
        ({**GOOD, "version": 2}, "a grid of version 2; this library reads version 1"),
        ({**GOOD, "ratios": None}, "its ratios are not a list of numbers"),
        ({**GOOD, "ratios": [10.0, True]}, "its ratios are not a list of numbers"),
        ({**GOOD, "ratios": [10.0, "1"]}, "its ratios are not a list of numbers"),
        ({**GOOD, "ratios": [10.0]}, "must be at least two, finite, from noise to data"),
        ({**GOOD, "ratios": [1.0, 10.0]}, "from noise to data"),
        ({**GOOD, "ratios": [10.0, 1.0, 1.0]}, "from noise to data"),
        ({**GOOD, "ratios": [10.0, -1.0]}, "from noise to data"),
        ({**GOOD, "ratios": [math.inf, 1.0]}, "finite"),
        ({**GOOD, "ratios": [10.0, math.nan]}, "finite"),
    ],
    ids=str,
)
def test_a_file_that_is_not_a_grid_is_refused(document, message, tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=message) as caught:
        solvers.grids.make(f"file:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_for_another_path_or_number_of_steps_is_refused(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(GOOD))
    assert len(solvers.grid(f"file:{path}", VP, 2)) == 3
    with pytest.raises(InputError, match=r"grid.json' has 2 steps, not 5$"):
        solvers.grid(f"file:{path}", VP, 5)
    path.write_text(json.dumps({**GOOD, "ratios": [80.0, 1.0]}))
    with pytest.raises(InputError, match=r"grid.json': the explicit grid's t=.* is outside"):
        solvers.grid(f"file:{path}", VP)
    with pytest.raises(InputError, match=r"cannot read the grid .*: No such file"):
        solvers.grids.make(f"file:{tmp_path}/missing.json")
    with pytest.raises(InputError, match="file needs the path of a grid: file:PATH"):
        solvers.grids.make("file")
    assert FileGrid(str(path)).fixed


def test_saving_never_damages_what_is_there(tuned, tmp_path):
    made, path = tuned("ddim", "zero"), tmp_path / "grid.json"
    made.save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        made.save(path, model=object())
    with pytest.raises(InputError, match="the grid's file has 'ratios' of its own"):
        made.save(path, ratios=[1, 2])
    with pytest.raises(InputError, match=r"cannot write the grid .*: No such file"):
        made.save(tmp_path / "nowhere" / "grid.json")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_it_prints_what_it_found(tuned):
    made = tuned("dpmpp_2m", "zero")
    lines = str(made).splitlines()
    assert lines[0] == "6 steps for dpmpp_2m, 6 NFE"
    assert [float(r) for r in lines[1].removeprefix("sigma / alpha: ").split()] == pytest.approx(made.ratios, rel=1e-3)
    table = {line[:32].strip(): [float(v) for v in line[32:].split()] for line in lines[3:]}
    assert {"tuned", "dynamic programming", "karras", "logsnr", "uniform"} <= set(table) == set(made.errors)
    assert next(iter(table)) == "tuned"
    for name, shown in table.items():
        assert shown == pytest.approx([made.errors[name], made.held_out[name]], rel=1e-3)


@pytest.mark.parametrize(
    ("solver", "nfe", "options", "message"),
    [
        ("ddpm", 6, {}, "ddpm draws noise: a grid is tuned for deterministic solvers"),
        ("rk45", 6, {}, "rk45 chooses its own steps: it has no grid to tune"),
        ("dppm_2m", 6, {}, "no solver 'dppm_2m'; did you mean dpm_2, dpmpp_2m"),
        ("ddim", 1, {}, "nfe=1 is too small for ddim: one step leaves no node to place"),
        ("heun", 3, {}, "nfe=3 is too small for heun: one step leaves no node to place"),
        ("heun", 1, {}, "nfe=1 is too small for heun: one step takes 2"),
        ("ddim", 6.0, {}, "nfe must be a positive integer, got 6.0"),
        ("ddim", 65, {}, "the reference has 64 steps, too few for the 65 of ddim"),
        ("ddim", 6, {"starts": 0}, "starts must be a positive integer"),
        ("ddim", 6, {"runs": -1}, "runs must be a positive integer"),
        ("ddim", 6, {"held_out": "zero"}, "held_out"),
    ],
)
def test_what_cannot_be_tuned_is_refused(solver, nfe, options, message, mixture):
    known = {"held_out": lambda end: mixture[end][1]}
    given = {key: known[key](value) if key in known else value for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        tune_grid(solver, MIXTURE, nfe, mixture["t_min"][0], **given)


def test_a_reference_that_is_none_is_refused(mixture):
    nodes, states = mixture["t_min"][0].nodes, mixture["t_min"][0].states
    with pytest.raises(InputError, match="a reference of 65 nodes has states of"):
        Trajectory(VP, nodes, states[1:])
    with pytest.raises(InputError, match="runs from data to noise"):
        Trajectory(VP, nodes[::-1], states.flip(0))
    with pytest.raises(InputError, match="not finite"):
        Trajectory(VP, nodes, torch.full_like(states, math.nan))
    with pytest.raises(InputError, match="draws noise"):
        trajectory(MIXTURE, states[0], VP, solver="ddpm")
    with pytest.raises(InputError, match=r"x must be floats \(B, \*\)"):
        trajectory(MIXTURE, torch.zeros(3), VP)
    with pytest.raises(InputError, match="the grid ends at sigma=0 and the reference at sigma="):
        mixture["t_min"][0].errors("ddim", MIXTURE, solvers.grid("karras", VP, 5))
