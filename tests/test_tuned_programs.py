"""Tuned programs: better on unseen samples, resumed to the bit, usable by name, and what is refused."""

import json
import math

import pytest
import torch
from small_tunings import MIXTURE, PROBLEM, VP, problem_on, reference, references, starts, tune

import scoresde
import solvers
from scoresde.models.problem import Diffusion
from solvers import InputError, Table, tune_program
from solvers.tuning.numbers import PRESETS, FreeNumbers, Theory, groups_of
from solvers.tuning.samples import floor

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def known():
    return references()


@pytest.fixture(scope="module")
def tuned(known):
    return tune(known, grid=None, iterations=80)


def test_it_is_better_than_the_tuned_grid_and_every_untuned_solver_on_unseen_samples(tuned):
    errors = tuned.held_out
    assert errors["tuned program"].rms < 0.7 * errors["start"].rms
    assert errors["tuned program"].rms < 0.5 * errors[tuned.best_untuned].rms
    assert tuned.nfe == tuned.program.nfe == 5
    assert tuned.samples == (96, 96, 192)


def test_few_which_was_tuned_to_other_models_is_shown_and_is_not_the_best_untuned_solver(tuned, known):
    nodes = solvers.grid("few", VP, steps=5)
    squares = known["held_out"].errors("few", PROBLEM, nodes)
    assert tuned.held_out["few"].rms == pytest.approx(float(squares.mean().sqrt()), rel=1e-9)
    assert "few" not in tuned.best_untuned
    assert tuned.held_out["tuned program"].rms < tuned.held_out["few"].rms


def test_errors_are_those_of_the_program_and_above_the_floor(tuned, known):
    for part, name in ((tuned.tuning, "reference"), (tuned.validation, "validation"), (tuned.held_out, "held_out")):
        found = tuned.program.run(PROBLEM, known[name].states[0])
        roots = (found - known[name].states[-1]).square().mean(1).sqrt()
        error = part["tuned program"]
        assert error.rms == pytest.approx(float(roots.square().mean().sqrt()), rel=1e-9)
        assert error.median == pytest.approx(float(roots.quantile(0.5)), rel=1e-9)
        assert part["floor"].rms <= error.rms * (1 + 1e-9)
    grid = solvers.grid(f"explicit(ratios={list(tuned.start)})", VP)
    squares = known["held_out"].errors(tuned.solver, PROBLEM, grid)
    assert tuned.held_out["start"].rms == pytest.approx(float(squares.mean().sqrt()), rel=1e-6)


def test_the_floor_is_what_least_squares_leave(tuned, known):
    held_out = known["held_out"]
    y = held_out.states[0] / held_out.nodes[0].alpha
    parts = [y, *tuned.table.predictions(PROBLEM, y, VP)]
    columns = torch.stack([part.flatten() for part in parts], 1)
    solution = torch.linalg.lstsq(columns, held_out.states[-1].flatten()).solution
    left = (held_out.states[-1].flatten() - columns @ solution).square().mean()
    assert float(floor(tuned.table, PROBLEM, held_out).mean()) == pytest.approx(float(left), rel=1e-6)


@pytest.mark.parametrize("free", [*PRESETS, "nodes", ("predictions",)])
def test_only_what_is_free_moves(free, known):
    made = tune(known, nfe=4, free=free, iterations=10, held_out=None)
    begin = FreeNumbers(
        Theory(solvers.make("ipndm"), VP, known["reference"].nodes[0], known["reference"].nodes[-1]),
        tuple(math.log(r) for r in made.start[1:-1]),
        groups_of(free),
    )
    moved_nodes = not torch.allclose(made.table.ratios, begin.origin.ratios, rtol=1e-9, atol=0)
    moved_labels = not torch.allclose(made.table.labels, made.table.ratios[:-1], rtol=1e-9, atol=0)
    assert (moved_nodes, moved_labels) == ("nodes" in groups_of(free), "labels" in groups_of(free))
    traced = Table.of(solvers.trace("ipndm", made.program.grid, VP))
    assert torch.allclose(made.table.start, traced.start, atol=1e-9) == ("states" not in groups_of(free))
    assert torch.allclose(made.table.weights, traced.weights, atol=1e-9) == ("predictions" not in groups_of(free))
    assert made.validation["tuned program"].rms < made.validation["start"].rms
    assert made.errors is made.validation


@pytest.mark.parametrize("ratio", [60.0, 8000.0])
def test_a_table_begun_at_another_level_has_its_states_at_the_same_levels(tuned, ratio):
    """Of data at one point m the prediction is m, and the state at the level r is m + r z for the noise z.

    A table whose own coefficients do that, a solver's, still does after the change; the tuned one keeps its distance
    from it. At the start alone m is missing, as there is no prediction yet.
    """
    point, z = torch.tensor([0.7, -0.2], dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    traced = Table.of(solvers.trace("ipndm", tuned.program.grid, VP))
    for table in (traced, tuned.table):
        moved, predictions = table.begun_at(ratio), [point] * table.nfe
        assert moved.begin == ratio
        assert float(moved.labels.max()) <= ratio
        for n in range(1, table.nfe + 1):
            before = table.row(n, point + table.begin * z, predictions)
            assert torch.allclose(moved.row(n, point + ratio * z, predictions), before, atol=1e-9)
            if table is traced:
                assert torch.allclose(before, point + table.ratios[n] * z, atol=1e-9)


def test_a_table_cannot_begin_below_its_later_states(tuned):
    with pytest.raises(InputError, match=r"has a state at sigma / alpha .*: it cannot begin at 0\.1"):
        tuned.table.begun_at(0.1)


def test_coefficients_stay_where_they_were_without_theory(known):
    made = tune(known, free=("nodes", "states"), theory=False, iterations=20)
    traced = Table.of(solvers.trace("ipndm", solvers.grid(f"explicit(ratios={list(made.start)})", VP), VP))
    assert torch.allclose(made.table.weights, traced.weights, atol=1e-9)
    assert not torch.allclose(made.table.ratios, traced.ratios, rtol=1e-3, atol=0)


def test_of_several_solvers_the_best_on_its_grid_is_the_start(known):
    made = tune(known, solver=("uni_pc", "gradient_estimation"), iterations=1)
    alone = {name: tune(known, solver=name, iterations=1) for name in ("uni_pc", "gradient_estimation")}
    least = min(alone, key=lambda name: alone[name].validation["start"].rms)
    assert (made.solver, made.program) == (str(solvers.make(least)), alone[least].program)


def test_an_interrupted_tuning_continues_to_the_same_bits(known, tmp_path):
    path, options = tmp_path / "tuning.json", {"nfe": 3, "iterations": 40, "batch": 48, "loss": "pseudo_huber"}
    whole = tune(known, **options)

    def stop(progress):
        if progress.iteration == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(known, **options, checkpoint=path, progress=stop)
    assert json.loads(path.read_text())["descent"]["iteration"] == 20
    seen = []
    resumed = tune(known, **options, checkpoint=path, progress=lambda now: seen.append(now.iteration))
    assert seen == [30, 40]
    assert resumed.program == whole.program
    assert (resumed.costs.vjps, resumed.costs.forwards) == (whole.costs.vjps, whole.costs.forwards)
    assert resumed.held_out == whole.held_out
    assert tune(known, **options, checkpoint=path, progress=seen.append).program == whole.program
    assert seen == [30, 40]  # a finished tuning is not repeated
    with pytest.raises(InputError, match=r"is a checkpoint of a tuning with batch=48, not 47"):
        tune(known, **{**options, "batch": 47}, checkpoint=path)


def test_a_file_that_is_no_checkpoint_is_refused(known, tmp_path):
    path = tmp_path / "tuning.json"
    for text, message in (
        ("{}", 'is not a checkpoint: it does not contain "format": "scoresde-tuning"'),
        ('{"format": "scoresde-tuning", "version": 2}', "is a checkpoint of version 2; this library reads version 1"),
        ("nothing", "is not a checkpoint: it is not JSON"),
        ('{"format": "scoresde-tuning", "version": 1, "of": 3}', "is not a checkpoint: a part of the tuning is"),
        ('{"format": "scoresde-tuning", "version": 1, "of": {}, "start": {}}', "a part of the tuning is missing"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            tune(known, checkpoint=path)
    with pytest.raises(InputError, match="cannot write the checkpoint"):
        tune(known, checkpoint=tmp_path / "none" / "tuning.json")


def test_the_costs_are_what_was_evaluated(known):
    calls = 0

    class Counting(Diffusion):
        def predict(self, x, node):
            nonlocal calls
            calls += len(x)
            return super().predict(x, node)

        def raw(self, x, node):
            return self.predict(x, node).x0

    made = tune_program("ddim", Counting(MIXTURE.denoiser(VP)), 4, known["reference"], validation=known["validation"],
                        grid="logsnr", iterations=10)  # fmt: skip
    # the start on the validation samples, three validations, and ten iterations forwards, then again backwards
    assert made.costs.forwards == 4 * 96 * (1 + 3 + 2 * 10)
    assert made.costs.vjps == 4 * 96 * 10
    assert made.costs.teacher == 2 * 96 * (23 * 4 + 1)  # rk4, and one evaluation to sigma = 0
    assert calls > made.costs.forwards  # those of the comparison are not part of the tuning


def test_the_file_is_a_solver_by_name_with_equal_numbers(tuned, known, tmp_path):
    path = tmp_path / "nfe5.json"
    tuned.save(path, seeds="0-127", model="a mixture")
    assert solvers.Program.from_json(path.read_text()) == tuned.program
    x = starts(VP, range(2000, 2192))
    assert torch.equal(x, known["held_out"].states[0])
    sampled = scoresde.sample(MIXTURE.denoiser(VP), (2,), range(2000, 2192), solver=f"file:{path}", dtype=torch.float64)
    assert sampled.nfe == 5
    assert torch.allclose(sampled.x, tuned.program.run(PROBLEM, x), rtol=0, atol=1e-12)
    assert torch.allclose(sampled.x, tuned.table.run(PROBLEM, x / VP(VP.t_max).alpha), rtol=0, atol=1e-11)
    document = json.loads(path.read_text())
    assert document["solver"] == f"{tuned.solver}, tuned at 5 NFE"
    facts = document["tuning"]
    assert (facts["seeds"], facts["nfe"], facts["free"]) == ("0-127", 5, list(tuned.free))
    assert facts["errors"]["held_out"]["tuned program"]["rms"] == tuned.held_out["tuned program"].rms
    assert set(facts["errors"]["tuning"]) == {"tuned program", "start", "few", "floor", tuned.best_untuned}
    with pytest.raises(InputError, match="the program's file has 'loss' of its own"):
        tuned.save(path, loss="mine")
    with pytest.raises(InputError, match="cannot write the program"):
        tuned.save(tmp_path / "none" / "nfe5.json")


def test_a_loop_of_diffusers_runs_the_file_with_equal_numbers(tuned, known, tmp_path):
    pytest.importorskip("diffusers")
    path = tmp_path / "nfe5.json"
    tuned.save(path)
    scheduler = scoresde.interop.DiffusersScheduler(f"file:{path}", "vp", prediction_type="sample")
    scheduler.set_timesteps(5)
    x = scheduler.init_noise_sigma * solvers.SeededNoise(range(2000, 2192), (2,), torch.float64).initial()
    for timestep in scheduler.timesteps:
        node = VP(min(max((float(timestep) + 1) / 1000, VP.t_min), VP.t_max))  # label i is at t = (i + 1) / 1000
        x = scheduler.step(PROBLEM.predict(scheduler.scale_model_input(x, timestep), node).x0, timestep, x).prev_sample
    # timesteps are float32, so that the model is evaluated at times with a relative error of 6e-8
    assert torch.allclose(x, tuned.program.run(PROBLEM, known["held_out"].states[0]), rtol=0, atol=1e-4)


def test_it_prints_what_it_found(tuned):
    lines = str(tuned).splitlines()
    assert lines[0] == "5 NFE from ipndm, free: nodes, labels, predictions, states; loss squared"
    rows = {line[:36].strip(): line[36:].split() for line in lines[3:]}
    assert list(rows)[:3] == ["tuned program", "start", tuned.best_untuned]
    assert list(rows)[-2:] == ["few", "floor"]
    for name, (one, two, three, median, wrong) in rows.items():
        found = [part[name].rms for part in (tuned.tuning, tuned.validation, tuned.held_out)]
        assert [float(one), float(two), float(three)] == pytest.approx(found, rel=1e-3)
        assert float(median) == pytest.approx(tuned.held_out[name].median, rel=1e-2)
        assert wrong == f"{tuned.held_out[name].wrong:.1%}"


@pytest.mark.parametrize(
    ("solver", "nfe", "options", "message"),
    [
        ("ddpm", 5, {}, "ddpm draws noise"),
        ("rk45", 5, {}, "rk45 chooses its own steps"),
        ("pc", 5, {}, "pc draws noise"),
        ("dopri5", 5, {}, "dopri5 chooses its own steps"),
        ("ipndmm", 5, {}, "no solver 'ipndmm'; did you mean ipndm"),
        ((), 5, {}, "solver is empty: name at least one"),
        ("ddim", 1, {"grid": None}, "nfe=1 is too small for ddim: one step leaves no node to place"),
        ("ddim", 0, {}, "nfe must be a positive integer, got 0"),
        ("ddim", 5, {"grid": "karas"}, "no grid 'karas'; did you mean karras"),
        ("ddim", 5, {"grid": "explicit(times=[0.9, 0.5, 0.1], end=zero)"}, "has sigma / alpha from .*the reference"),
        ("ddim", 5, {"free": "node"}, "no group of free numbers 'node'; did you mean nodes"),
        ("ddim", 5, {"free": ()}, "free is empty: name at least one of nodes, labels, predictions, states"),
        ("ddim", 5, {"loss": "square"}, "no tuning loss 'square'; did you mean squared"),
        ("ddim", 5, {"loss": "log(floor=0)"}, "log: floor must be positive, got 0"),
        ("ddim", 5, {"loss": "energy"}, "the loss energy compares outcomes with samples: pass them as data="),
        ("ddim", 5, {"loss": "energy", "data": torch.zeros(4, 3)}, r"the samples in data have shape \(3,\), outcomes"),
        ("ddim", 5, {"features": lambda x: x.sum()}, "features must return a tensor with one row for each sample"),
        ("ddim", 5, {"features": lambda x: x / 0}, "features of the exact outcomes .* not finite"),
        ("ddim", 5, {"iterations": 0}, "iterations must be a positive integer, got 0"),
        ("ddim", 5, {"batch": 0}, "batch must be a positive integer, got 0"),
        ("ddim", 5, {"seed": -1, "batch": 8}, "seed"),
    ],
)
def test_what_cannot_be_tuned_is_refused(solver, nfe, options, message, known):
    with pytest.raises(InputError, match=message) as caught:
        tune(known, solver, nfe, **options)
    assert "\n" not in str(caught.value)


def test_references_that_do_not_fit_are_refused(known):
    own, sde = known["reference"], scoresde.make_sde("cosine")
    for validation, message in (
        (own, "validation shares samples with reference: use different seeds"),
        (reference(range(90, 94)), "validation shares samples with reference"),
        (reference(range(1000, 1004), grid="logsnr"), "validation and reference differ in sigma / alpha"),
        (solvers.Trajectory(VP, own.nodes, own.states[..., :1]), "the samples of validation have shape"),
    ):
        with pytest.raises(InputError, match=message):
            tune(known, validation=validation)
    to_t_min = [reference(seeds, grid="logsnr") for seeds in (range(4), range(4, 8))]
    with pytest.raises(InputError, match="nfe=1 is too small for heun: one step takes 2"):
        tune_program("heun", PROBLEM, 1, to_t_min[0], validation=to_t_min[1], grid="karras")
    other = [reference(seeds, problem_on(sde), sde) for seeds in (range(4), range(4, 8))]
    with pytest.raises(InputError, match="reference has a different path than the problem: at t="):
        tune_program("ddim", PROBLEM, 5, other[0], validation=other[1])


def test_a_model_without_gradients_is_refused(known):
    class Detached(solvers.Problem):
        path = VP

        @torch.no_grad()
        def predict(self, x, node):
            return PROBLEM.predict(x, node)

    with pytest.raises(InputError, match="the model's predictions have no gradients"):
        tune_program("ddim", Detached(), 4, known["reference"], validation=known["validation"], grid="logsnr")
