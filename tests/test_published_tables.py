"""Tables of other projects: each kind equals a loop written from its paper, whatever the file; what is refused."""

import json
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from commands import fails
from safetensors.torch import save_file
from small_tunings import MIXTURE, problem_on, starts

import scoresde
import solvers
from scoresde import InputError
from scoresde.cli.parser import main
from scoresde.interop import import_solver
from solvers.program.analysis import depth
from solvers.tuning.published import published_table
from solvers.types.node import Node

pytestmark = pytest.mark.quick

EDM, VP = scoresde.EDM(), scoresde.VP()
PROBLEM = problem_on(EDM)
X = 80 * torch.randn(7, 2, generator=solvers.generator(1), dtype=torch.float64)
TIMES = [80.0, 9.5, 2.25, 0.6, 0.125, 0.002]
STEPS = len(TIMES) - 1
TOLERANCE = 1e-12  # relative; float64 rounds at 1e-16, and sums of the loops and of the programs differ in their order


def denoised(x, t):
    """D(x, t) of the mixture with alpha = 1 and sigma = t, at any t."""
    return MIXTURE.denoiser(EDM).predict(x, Node(t, 1.0, t)).x0


def slope(x, t, label=None):
    return (x - denoised(x, t if label is None else label)) / t


def near(one, other):
    return float((one - other).abs().max()) < TOLERANCE * float(other.abs().max())


def dyweight(x, weights, scales, free):
    t, slopes = TIMES[0], []
    for i, s in enumerate(TIMES[1:]):
        if free and i == 0:
            slopes.append(x / math.sqrt(1 + t**2))
        else:
            slopes.append(slope(x, t, float(scales[i - free]) * t))
        move = s - t
        x = x + move * sum(float(w) * d for w, d in zip(weights[i], slopes, strict=False))
        t = t + move * float(weights[i, : i + 1].sum())
    return x


def parallel(x, r, weight, out, label, free, times=TIMES):
    for i, (t, s) in enumerate(pairwise(times)):
        d = x / math.sqrt(1 + t**2) if free and i == 0 else slope(x, t)
        total = torch.zeros_like(x)
        for k in range(r.shape[1]):
            middle = s ** float(r[i, k]) * t ** (1 - float(r[i, k]))
            at = x + (middle - t) * d
            total = total + weight[i, k] * out[i, k] * slope(at, middle, float(label[i, k]) * middle)
        x = x + (s - t) * total
    return x


def random(*shape, seed=0):
    return torch.rand(shape, generator=solvers.generator(seed))  # float32, as these projects have them


@pytest.fixture
def weighted():
    """A state of DyWeight's predictor: three weights a row, which do not sum to 1; labels are scaled."""
    mask = torch.tril(torch.ones(STEPS, STEPS)).triu(-2)
    return {"hybrid_weights": torch.eye(STEPS) - 0.2 * random(STEPS, STEPS, seed=2), "mask": mask}


@pytest.mark.parametrize("free", [False, True])
def test_dyweight(weighted, tmp_path, free):
    scales = 0.9 + 0.1 * random(STEPS - free, seed=3)
    torch.save(
        {**weighted, "t_scale": scales, "num_steps": STEPS + 1, "afs": free, "t_steps": TIMES}, tmp_path / "a.pt"
    )
    made = import_solver(tmp_path / "a.pt", "dyweight")
    assert made.program.nfe == made.depth == STEPS - free
    assert made.table.parameters == 12 + STEPS - free
    expected = dyweight(X, (weighted["hybrid_weights"] * weighted["mask"]).double(), scales.double(), free)
    assert near(made.program.run(PROBLEM, X), expected)
    wrong = dyweight(X, (weighted["hybrid_weights"] * weighted["mask"]).double(), torch.ones(STEPS), free)
    assert not torch.allclose(wrong, expected, rtol=1e-3)  # the labels matter


@pytest.mark.parametrize("free", [False, True])
def test_epd(tmp_path, free):
    shape = (STEPS, 2)
    names = ("r_params", "scale_dir_params", "scale_time_params", "weight_s")
    raw = {f"module.{name}": 2 * random(*shape, seed=k) - 1 for k, name in enumerate(names)}
    facts = {"scale_dir": 0.05, "scale_time": 0.1, "afs": free, "sampler_stu": "epd", "training": False}
    torch.save({"model": raw, **facts}, tmp_path / "a.pt")
    made = import_solver(tmp_path / "a.pt", "epd", t_steps=TIMES)
    r, direction, label, weight = (raw[f"module.{name}"].double() for name in names)
    direction = 2 * torch.sigmoid(direction / 2) * 0.05 + 0.95
    label = 2 * torch.sigmoid(label / 2) * 0.1 + 0.9
    expected = parallel(X, torch.sigmoid(r), weight.softmax(1), direction, label, free)
    assert near(made.program.run(PROBLEM, X), expected)
    # two midpoints of a step are independent: ten evaluations and five for the slopes wait for one another ten times
    assert (made.program.nfe, made.depth) == (15 - free, 10 - free)
    assert f"{15 - free} NFE, sequential depth {10 - free}, 40 fitted numbers" in str(made)
    last = import_solver(tmp_path / "a.pt", "epd", t_steps=TIMES, fcn=True)
    direction[-1] = 1
    assert near(last.program.run(PROBLEM, X), parallel(X, torch.sigmoid(r), weight.softmax(1), direction, label, free))


def test_amed_with_one_midpoint_for_each_step(tmp_path):
    r, direction, label = (0.4 + 0.2 * random(STEPS, seed=k).double() for k in range(3))
    document = {"r": r.tolist(), "scale_dir": (0.5 + direction).tolist(), "scale_time": (0.5 + label).tolist()}
    (tmp_path / "a.json").write_text(json.dumps(document))
    made = import_solver(tmp_path / "a.json", "amed", afs=True, sigma_max=40, schedule_rho=5)
    ramp = torch.linspace(40 ** (1 / 5), 0.002 ** (1 / 5), STEPS + 1, dtype=torch.float64) ** 5
    numbers = (r, torch.ones(STEPS), 0.5 + direction, 0.5 + label)
    x = X / 2
    expected = parallel(x, *(v.view(-1, 1) for v in numbers), True, ramp.tolist())
    assert near(made.program.run(PROBLEM, x), expected)
    assert made.program.nfe == made.depth == 2 * STEPS - 1


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_times_uniform_on_vp(rho):
    """They are nodes of the VP path whose sigma / alpha is sigma_max at t = 1 and sigma_min at t = 0.001."""
    settings = {
        "schedule_type": "time_uniform",
        "schedule_rho": rho,
        "sigma_max": 40.0,
        "sigma_min": 0.01,
        "afs": False,
    }
    found = published_table("amed", {"r": [0.5] * 4, **settings}).table.labels[::2].tolist()
    a, b = math.log1p(40.0**2), math.log1p(0.01**2)  # of int beta = beta_min t + (beta_max - beta_min) t^2 / 2
    beta_min, slope = np.linalg.solve([[1, 0.5], [1e-3, 0.5e-6]], [a, b])
    path = scoresde.VP(beta_min=float(beta_min), beta_max=float(beta_min + slope))
    times = (np.linspace(1, 1e-3 ** (1 / rho), 5) ** rho).tolist()
    assert found == pytest.approx([path(t).ratio for t in times[:-1]], rel=1e-12)


def test_gits(tmp_path):
    (tmp_path / "a.txt").write_text(f"{TIMES}\n")
    made = import_solver(tmp_path / "a.txt", "gits")
    x, past = X, []
    for i, (t, s) in enumerate(pairwise(TIMES)):  # iPNDM of order 4
        past.insert(0, slope(x, t))
        order = min(i + 1, 4)
        weights = {1: [1], 2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}[order]
        scale = {1: 1, 2: 2, 3: 12, 4: 24}[order]
        x = x + (s - t) * sum(w / scale * d for w, d in zip(weights, past, strict=False))
    assert near(made.program.run(PROBLEM, X), x)
    assert made.table.parameters == STEPS - 1


def ld3_times(times, seed=5):
    labels = torch.tensor(times) * (0.95 + 0.05 * random(len(times), seed=seed))
    return torch.cat([torch.tensor(times), labels])


def test_ld3_keeps_the_solvers_quantity_at_the_other_label(tmp_path):
    both = ld3_times(TIMES)
    torch.save({"params1": torch.ones(STEPS + 1), "best_t_steps": both}, tmp_path / "best_v2.pt")
    times, labels = both[: STEPS + 1].double().tolist(), both[STEPS + 1 :].double().tolist()

    x, past = X, []  # DPM-Solver++(2M), eq. 18 of Lu et al. 2022, arXiv:2211.01095, with x0 of the other label
    for i in range(STEPS):
        past.append(denoised(x, labels[i]))
        h = math.log(times[i] / times[i + 1])
        mean = past[-1]
        if 0 < i < STEPS - 1:
            ratio = math.log(times[i - 1] / times[i]) / h
            mean = (1 + 1 / (2 * ratio)) * past[-1] - past[-2] / (2 * ratio)
        x = times[i + 1] / times[i] * x - math.expm1(-h) * mean
    made = import_solver(tmp_path / "best_v2.pt", "ld3", solver="dpmpp_2m(lower_order_final=True)")
    assert near(made.program.run(PROBLEM, X), x)

    x, past = X, []  # iPNDM of order 2, with eps of the other label
    for i in range(STEPS):
        past.append(slope(x, labels[i]))
        d = past[-1] if i == 0 else (3 * past[-1] - past[-2]) / 2
        x = x + (times[i + 1] - times[i]) * d
    made = import_solver(tmp_path / "best_v2.pt", "ld3", solver="ipndm(order=2)")
    assert near(made.program.run(PROBLEM, X), x)
    assert made.program.nfe == STEPS
    assert made.table.parameters == STEPS - 1 + STEPS
    assert [round(node.ratio, 6) for node in made.program.grid] == [round(t, 6) for t in times]


@pytest.mark.parametrize("target", [VP, scoresde.RectifiedFlow(t_max=0.9999)])
def test_ld3_on_another_path_gives_the_network_the_state_as_it_is(tmp_path, target):
    """On VP the network gets the state at t with the label of another time, and eps is kept."""
    times = [1.0, 0.7, 0.45, 0.2, 0.01]
    both = ld3_times(times).clamp(max=1.0)
    np.savez(tmp_path / "a.npz", best_t_steps=both.double().numpy())
    times, labels = both[:5].double().tolist(), both[5:].double().tolist()
    denoiser, x, past = MIXTURE.denoiser(VP), starts(VP, range(7)), []
    for i in range(4):
        now, after, label = VP(times[i]), VP(times[i + 1]), VP(labels[i])
        past.append(denoiser.predict(x, label).eps)
        d = past[-1] if i == 0 else (3 * past[-1] - past[-2]) / 2
        x = after.alpha / now.alpha * x + after.alpha * (after.ratio - now.ratio) * d
    made = import_solver(tmp_path / "a.npz", "ld3", target, solver="ipndm(order=2)", table_sde="vp")
    begin = starts(VP, range(7)) / VP(1.0).alpha * made.program.start.alpha
    found = made.program.run(problem_on(target), begin)
    assert near(found / made.program.end.alpha, x / VP(times[-1]).alpha)


def test_a_table_of_edm_runs_on_vp_and_says_that_the_outcome_counts_as_data(weighted, tmp_path):
    save_file({name: value.contiguous() for name, value in weighted.items()}, tmp_path / "a.safetensors")
    made = import_solver(tmp_path / "a.safetensors", "dyweight", "vp", output="eps", afs=False, t_steps=TIMES)
    assert made.converted == (
        "sigma / alpha from 80 to 0.002, on vp; this path ends at 0.01049, so that the outcome counts as data"
    )
    expected = dyweight(X, (weighted["hybrid_weights"] * weighted["mask"]).double(), torch.ones(STEPS), False)
    begin = made.program.start
    assert begin.ratio == pytest.approx(80, rel=1e-12)
    found = made.program.run(problem_on(VP), X * begin.alpha)
    # the time of a noise level of VP is found from a logarithm: labels differ by some 1e-13
    assert torch.allclose(found, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_the_command_writes_a_solver_that_sample_runs(weighted, tmp_path, capsys):
    torch.save(weighted, tmp_path / "a.pt")
    out = tmp_path / "solver.json"
    command = ["import-solver", str(tmp_path / "a.pt"), "--kind=dyweight", f"--out={out}", "--set=afs=true"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0]
        == "dyweight (Zhao et al. 2026, arXiv:2603.11607, section 3): 4 NFE, sequential depth 4, 12 fitted numbers"
    )
    assert printed[-1] == f"--config.sampling.solver=file:{out}"
    program = solvers.Program.from_json(out.read_text())
    drawn = scoresde.sample(MIXTURE.denoiser(EDM), (2,), range(7), solver=f"file:{out}", dtype=torch.float64)
    z = solvers.SeededNoise(range(7), (2,), torch.float64).initial()
    assert drawn.nfe == 4
    # `sample` starts with the deviation of x_t for data of variance 1
    assert torch.allclose(drawn.x, program.run(PROBLEM, EDM.prior().std * z), rtol=0, atol=1e-12)
    facts = json.loads(out.read_text())["tuning"]
    assert (facts["imported"], facts["nfe"], facts["depth"], facts["parameters"]) == ("dyweight", 4, 4, 12)
    assert facts["settings"] == {
        "afs": True, "schedule_type": "polynomial", "sigma_max": 80, "sigma_min": 0.002, "schedule_rho": 7,
    }  # fmt: skip
    assert printed[2].startswith("the file does not say, and this is assumed: schedule_type=polynomial, sigma_max=80")
    fails(capsys, command, f"{out} exists")
    assert main([*command, "--overwrite", "--set=schedule_rho=5"]) == 0
    assert solvers.Program.from_json(out.read_text()) != program


def test_a_pickle_is_not_read(weighted, tmp_path):
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    for name in ("a.pkl", "a.pt"):
        (tmp_path / name).write_bytes(pickle.dumps({**weighted, "predictor": Bad()}))
        with pytest.raises(InputError, match=r"may run code.*torch.save"):
            import_solver(tmp_path / name, "dyweight")
    torch.save({**weighted, "predictor": Bad()}, tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"may run code.*torch.save"):
        import_solver(tmp_path / "b.pt", "dyweight")
    assert not (tmp_path / "run").exists()


GOOD = {"hybrid_weights": np.eye(3), "t_steps": [8, 2, 1, 0.5], "afs": False}


@pytest.mark.parametrize(
    ("kind", "entries", "options", "message"),
    [
        ("dyweigth", GOOD, {}, "no kind of table 'dyweigth'; did you mean dyweight"),
        ("epd", GOOD, {}, "and this one has afs, hybrid_weights, t_steps; this looks like .*dyweight"),
        ("dyweight", {"afs": False}, {}, "has hybrid_weights, and this one has afs"),
        ("dyweight", {**GOOD, "hybrid_weights": np.ones((3, 3))}, {}, "lower triangular"),
        ("dyweight", {**GOOD, "hybrid_weights": np.ones(3)}, {}, r"has the shape \(N, N\), and this one \(3,\)"),
        ("dyweight", {**GOOD, "hybrid_weights": np.eye(3) * np.nan}, {}, "not finite"),
        ("dyweight", {**GOOD, "hybrid_weights": "many"}, {}, "not an array of numbers"),
        ("dyweight", {**GOOD, "t_scale": np.ones(5)}, {}, "dyweight has 3 or 2 numbers, and this 5"),
        ("dyweight", {**GOOD, "t_scale": np.ones(2)}, {}, "with afs=False t_scale has 3 numbers, and this one 2"),
        ("dyweight", {**GOOD, "t_steps": [8, 2, 1]}, {}, r"t_steps .* has the shape \(4\), and this one \(3,\)"),
        ("dyweight", {**GOOD, "t_steps": [8, 2, 3, 1]}, {}, "must be positive and decrease"),
        ("dyweight", {**GOOD, "hybrid_weights": 3 * np.eye(3)}, {}, "at the time -10, which is not positive"),
        ("dyweight", {"hybrid_weights": np.eye(3)}, {}, "need the setting afs: add afs=true"),
        ("dyweight", {"hybrid_weights": np.eye(3), "afs": 2}, {}, "afs must be true or false, got 2"),
        ("dyweight", {**GOOD, "t_steps": None, "schedule_type": "discrete"}, {}, "depend on the network: add t_steps"),
        ("dyweight", {**GOOD, "t_steps": None, "sigma_max": "80"}, {}, "sigma_max must be a number, got '80'"),
        ("dyweight", {**GOOD, "t_steps": None, "sigma_min": -1}, {}, "sigma_min must be a finite number from 1e-12 on"),
        ("dyweight", {**GOOD, "t_steps": None, "schedule_type": 3}, {}, "schedule_type must be a text, got 3"),
        ("dyweight", {**GOOD, "t_steps": None, "num_steps": 5}, {}, "num_steps=5 does not suit the numbers of 3 steps"),
        ("dyweight", {**GOOD, "afs": np.ones(2)}, {}, "afs must be true or false"),
        ("dyweight", GOOD, {"solver": "ddim"}, "a solver of its own: leave out the solver 'ddim'"),
        ("dyweight", {"dyweight_weights_raw": np.eye(3)}, {}, "t = 1 of a flow, where alpha = 0"),
        ("amed", {"enc_layer0.weight": np.eye(3), "r": [0.5]}, {}, "every sample's midpoints from its features"),
        ("amed", {"r": [0.5], "sampler_stu": "ipndm"}, {}, "belongs to amed's plugin for 'ipndm'"),
        ("amed", {"r": [0.5], "scale_dir": [1, 1], "afs": True}, {}, r"has the shape \(1\), and this one \(2,\)"),
        ("epd", {"r_params": np.eye(3), "weight_s": np.eye(2)}, {}, r"has the shape \(3, 3\), and this one \(2, 2\)"),
        ("epd", {"r_params": np.eye(3), "weight_s": np.eye(3)}, {}, "need the setting scale_dir: add scale_dir=VALUE"),
        ("ld3", {"best_t_steps": [8, 2, 1, 0.5]}, {}, "add the solver, such as"),
        ("ld3", {"best_t_steps": [8, 2, 1]}, {}, "has the times and as many labels, and this one 3 numbers"),
        ("ld3", {"best_t_steps": [8, 1, 7, 1]}, {"solver": "ddmi"}, "did you mean ddim"),
        ("ld3", {"best_t_steps": [8, 1, 7, 1]}, {"solver": "ddpm"}, "draws noise"),
        ("ld3", {"best_t_steps": [8, 1, 7, 1]}, {"solver": "dpm_2"}, "between the nodes, where ld3 has no time label"),
        ("ld3", {"best_t_steps": [8, 1, 7, 1]}, {"solver": "ddim", "quantity": "v"}, "no quantity 'v'"),
        ("gits", {"t_steps": None}, {}, "a table of gits has t_steps, and this one has nothing"),
        ("dyweight", {**GOOD, "hybrid_weights": 1e200 * np.tri(3)}, {}, "not positive|not finite"),
        ("gits", {"best_t_steps": [8, 1, 7, 1]}, {}, "this looks like a table of ld3"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_its_kind_is_refused(kind, entries, options, message):
    with pytest.raises(InputError, match=message):
        published_table(kind, entries, **options)


def test_files_and_paths_that_do_not_fit_are_refused(tmp_path, capsys):
    for name, content, words in [
        ("a.csv", "1,2", "is not a .pt, .pth, .npz"),
        ("a.txt", "8 zwei", "it is not a list of numbers"),
        ("a.pt", "8 2 1", "torch.save did not write it"),
        ("a.json", "[8, 2", "is not a solver's table: it is not JSON"),
        ("none.json", None, "cannot read the solver's table"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        fails(capsys, ["import-solver", tmp_path / name, "--kind=gits", f"--out={tmp_path / 'o.json'}"], words)
    (tmp_path / "a.txt").write_text("200, 2, 0.5")
    command = ["import-solver", tmp_path / "a.txt", "--kind=gits", f"--out={tmp_path / 'o.json'}"]
    fails(capsys, [*command, "--sde=vp"], "the path vp has sigma / alpha from 0.01049 to 152.2, and 200 is needed")
    fails(capsys, [*command, "--set=schedule_roh=5"], "no setting of a table 'schedule_roh'; did you mean schedule_rho")
    fails(capsys, [*command, "--set=rho"], "expected NAME=VALUE")
    fails(capsys, [*command, "--output=epsilon"], "eps")
    fails(capsys, [*command, f"--out={tmp_path / 'none' / 'o.json'}"], "there is no folder")
    assert not (tmp_path / "o.json").exists()
    (tmp_path / "a.txt").write_text("20, 2, 0.5")
    assert main([str(a) for a in command]) == 0
    with pytest.raises(InputError, match="was made for a different path"):
        scoresde.sample(MIXTURE.denoiser(VP), (2,), range(2), solver=f"file:{tmp_path / 'o.json'}")


def test_the_depth_of_a_program_is_its_longest_chain_of_evaluations():
    nodes = solvers.grid("karras", EDM, steps=4)
    assert [depth(solvers.trace(name, nodes)) for name in ("heun", "dpmpp_2m", "picard(sweeps=3)")] == [7, 4, 3]
