"""The committed rows of benchmarks/conditions/posteriors.py against the reference's, and the script that makes them."""

import json
import sys

import pytest
import torch

from benchmarks.conditions import posteriors as script
from scoresde.posterior.base import posteriors
from scoresde.show.posterior_scores import measured
from solvers import InputError

DOCUMENT = json.loads((script.RESULTS / "posteriors.json").read_text(encoding="utf-8"))
ROWS = {(row["problem"], row["method"], row["solver"], row["grid"] == "t"): row for row in DOCUMENT["rows"]}
SDE, ODE = script.SDE, script.ODE
V = f"variance={script.DIGITS_VARIANCE}"
P4, P1, PS, TOP, MEANS, PHASE, TANH = (name for name in script.PROBLEMS if not name.endswith("quantise"))

# Programs that share no code with ours, with other draws: SW, then of mixtures TV, chi2, dlogp; of digits TV of points
# and of classes. One run each. "t" is a published loop of n equal steps of t: ours has n / 1000 times its scale.
REFERENCE = {
    (P4, "tds(particles=250)", "ddpm"): (0.016, 0.008, 0.95, -0.2),
    (P4, "tds(particles=250, resample=1.0)", "ddpm"): (0.015, 0.003, 0.96, -0.2),
    (P4, "tds(particles=250, twist=point)", "ddpm"): (0.041, 0.075, 0.96, -0.1),
    (P4, "mmps", SDE): (0.089, 0.216, 0.98, 1.4),
    (P4, "mmps", ODE): (0.092, 0.209, 1.09, 1.8),
    (P4, "mmps(iterations=1)", ODE): (0.124, 0.282, 1.20, 2.9),
    (P4, "naive_dps", SDE): (0.036, 0.049, 0.96, 0.1),
    (P4, "naive_dps", ODE): (0.305, 0.133, 15.5, 58),
    (P4, "dps(scale=0.1)", SDE): (0.094, 0.027, 2.14, None),
    (P4, "dps", "ddpm", "t"): (0.088, 0.004, 2.55, 6.2),
    (P4, "dps(scale=1.0)", "ddpm", "t"): (0.146, 0.022, 9.19, 33),
    (P4, "ddrm(eta=1.0, renoise=fixed)", "ddim"): (0.112, 0.253, 1.18, 2.4),
    (P4, "ddrm(renoise=fixed)", "ddim"): (0.136, 0.353, 0.87, 2.3),
    (P4, "split_gibbs", "ddpm"): (0.133, 0.347, 1.02, 2.8),
    (P4, "daps", "ddim"): (0.121, 0.300, 1.58, 4.4),
    (P4, "repaint(jump=1)", "ddpm"): (0.120, 0.161, 2.17, 5.5),
    (P4, "pigdm", SDE): (0.196, 0.468, 1.05, 5.8),
    (P4, "tmpd", SDE): (0.207, 0.392, 2.36, 11),
    (P4, "replace", "ddpm"): (0.291, 0.634, 5.65, 27),
    (P4, "replace", ODE): (0.420, 0.759, 9.9, 51),
    (P4, "ddnm", SDE): (0.305, 0.642, 6.30, 30),
    (P4, "jfps", SDE): (0.357, 0.719, 1.30, 15),
    (P4, "diffpir", SDE): (0.477, 0.792, 2.33, 26),
    (P4, "diffpir(lam=1.0)", SDE): (0.349, 0.713, 1.31, 14),
    (P4, "sdedit(level=0.3)", SDE): (0.622, None, None, None),
    (P4, "sdedit(level=3.0)", SDE): (1.04, None, None, None),
    (P4, "unconditional", SDE): (1.154, 0.953, 29.7, 246),
    (P1, "tds(particles=250)", "ddpm"): (0.037, 0.027, 0.94, -0.2),
    (P1, "tds(particles=250, resample=1.0)", "ddpm"): (0.080, 0.069, 0.98, 0),
    (P1, "tds(particles=250, twist=point)", "ddpm"): (0.363, 0.339, 0.92, -0.2),
    (P1, "mmps", SDE): (0.132, 0.212, 0.98, 1.0),
    (P1, "mmps", ODE): (0.170, 0.263, 1.05, 1.9),
    (P1, "mmps(iterations=1)", SDE): (0.132, 0.212, 0.98, 1.0),
    (P1, "naive_dps", SDE): (0.292, 0.302, 0.99, 0.1),
    (P1, "naive_dps", ODE): (0.439, 0.355, 13.2, 50),
    (P1, "dps(scale=0.1)", "ddpm", "t"): (0.094, 0.105, 1.02, 0.3),
    (P1, "dps(scale=1.0)", "ddpm", "t"): (0.336, 0.282, 7.56, 27),
    (P1, "ddrm(eta=1.0, renoise=fixed)", "ddim"): (0.199, 0.359, 1.27, 3.7),
    (P1, "ddrm(renoise=fixed)", "ddim"): (0.245, 0.482, 0.89, 4.1),
    (P1, "split_gibbs", "ddpm"): (0.207, 0.409, 1.03, 3.6),
    (P1, "daps", "ddim"): (0.184, 0.360, 1.66, 5.2),
    (P1, "repaint(jump=1)", "ddpm"): (0.167, 0.298, 1.33, 3.2),
    (P1, "pigdm", SDE): (0.250, 0.486, 1.04, 6.2),
    (P1, "tmpd", SDE): (0.132, 0.212, 0.98, 1.0),
    (P1, "replace", "ddpm"): (0.354, 0.673, 3.80, 22),
    (P1, "ddnm", SDE): (0.365, 0.678, 4.18, 25),
    (P1, "jfps", SDE): (0.388, 0.689, 1.27, 15),
    (P1, "diffpir", SDE): (0.444, 0.717, 2.31, 25),
    (P1, "sdedit(level=0.3)", SDE): (0.667, None, None, None),
    (P1, "sdedit(level=3.0)", SDE): (0.836, None, None, None),
    (P1, "unconditional", SDE): (0.918, 0.880, 25.7, 198),
    (PS, "exact", ODE): (0.010, 0.000, 0.84, None),
    (PS, "tds(particles=125)", "ddpm"): (0.016, 0.000, 0.98, None),
    (PS, "mmps", SDE): (0.020, 0.029, 0.85, None),
    (PS, "mmps", ODE): (0.026, 0.030, 0.91, None),
    (PS, "mmps(iterations=1)", SDE): (0.050, 0.104, 1.23, None),
    (PS, "dps(scale=0.12)", "ddpm", "t"): (0.024, 0.003, 30.9, None),
    (PS, "repaint(jump=1)", "ddpm"): (0.043, 0.111, 0.48, None),
    (PS, "ddrm(eta=1.0, renoise=fixed)", "ddim"): (0.061, 0.165, 1.80, None),
    (PS, "ddrm(renoise=fixed)", "ddim"): (0.104, 0.305, 0.55, None),
    (PS, "daps", "ddim"): (0.081, 0.197, 1.39, None),
    (PS, "split_gibbs", "ddpm"): (0.110, 0.261, 39.6, None),
    (PS, "pigdm", SDE): (0.150, 0.394, 1.35, None),
    (PS, "tmpd", SDE): (0.204, 0.358, 26.6, None),
    (PS, "replace", "ddpm"): (0.257, 0.583, 1.13, None),
    (PS, "ddnm", SDE): (0.281, 0.639, 1.28, None),
    (PS, "diffpir", SDE): (0.293, 0.658, 6.8, None),
    (PS, "naive_dps", SDE): (2.76, 0.846, 1e4, None),
    (TOP, f"tds(particles=50, {V})", "ddpm"): (0.147, 0.515, 0.19),  # the mean of ten runs
    (TOP, f"tds(particles=200, {V})", "ddpm"): (0.107, 0.37, 0.12),
    (TOP, f"tds(particles=800, {V})", "ddpm"): (0.084, 0.29, 0.08),
    (TOP, "naive_dps", SDE): (0.147, 0.45, 0.21),
    (TOP, "dps(scale=0.15)", "ddpm", "t"): (0.134, 0.43, 0.19),
    (TOP, "dps(scale=0.045)", "ddpm", "t"): (0.185, 0.55, None),
    (TOP, "ddrm(renoise=fixed)", "ddim"): (0.185, 0.58, 0.27),
    (TOP, f"pigdm({V})", SDE): (0.192, 0.61, 0.25),
    (TOP, "mmps(iterations=1)", SDE): (0.192, 0.59, 0.26),
    (TOP, "mmps(iterations=32)", SDE): (0.241, 0.73, 0.36),
    (TOP, "split_gibbs(sweeps=40, rho_min=0.15, inner=12)", "ddpm"): (0.244, 0.72, 0.43),
    (TOP, "daps(outer=60)", "ddim"): (0.269, 0.79, 0.43),
    (TOP, "tmpd", SDE): (0.267, 0.77, 0.46),
    (TOP, "diffpir", SDE): (0.348, 0.91, 0.63),
    (TOP, "replace", "ddpm"): (0.358, None, None),
    (TOP, "repaint(jump=1)", "ddpm"): (0.349, None, None),
    (TOP, "ddnm", SDE): (0.369, None, None),
    (MEANS, f"tds(particles=50, {V})", "ddpm"): (0.186, 0.74, 0.29),
    (MEANS, "naive_dps", SDE): (0.135, 0.59, 0.25),
    (MEANS, "dps(scale=0.15)", "ddpm", "t"): (0.140, 0.60, 0.22),
    (MEANS, "dps(scale=0.045)", "ddpm", "t"): (0.199, 0.83, 0.35),
    (MEANS, f"pigdm({V})", SDE): (0.160, 0.74, 0.27),
    (MEANS, "mmps", SDE): (0.172, 0.77, 0.31),
    (MEANS, "mmps(iterations=1)", SDE): (0.167, None, None),
    (MEANS, "repaint(jump=1)", "ddpm"): (0.177, 0.78, 0.35),
    (MEANS, "ddrm(renoise=fixed)", "ddim"): (0.200, 0.85, 0.41),
    (MEANS, "replace", "ddpm"): (0.203, 0.86, 0.41),
    (MEANS, "split_gibbs(sweeps=40, rho_min=0.15, inner=12)", "ddpm"): (0.215, None, None),
    (MEANS, "ddnm", SDE): (0.220, None, None),
    (MEANS, "daps(outer=60)", "ddim"): (0.221, None, None),
    (MEANS, "diffpir", SDE): (0.260, None, None),
    (PHASE, f"tds(particles=50, {V})", "ddpm"): (0.063, 0.21, 0.04),
    (PHASE, f"tds(particles=400, {V})", "ddpm"): (0.050, 0.18, 0.00),
    (PHASE, "naive_dps", SDE): (0.147, 0.44, 0.17),
    (PHASE, "dps", SDE): (0.172, 0.50, None),
    (PHASE, "dps(scale=1.0)", SDE): (0.218, 0.61, None),
    (TANH, f"tds(particles=50, {V})", "ddpm"): (0.208, 0.71, 0.29),
    (TANH, f"tds(particles=400, {V})", "ddpm"): (0.171, 0.57, 0.24),
    (TANH, "naive_dps", SDE): (0.177, 0.61, 0.28),
    (TANH, "dps", SDE): (0.189, 0.68, None),
    (TANH, "dps(scale=1.0)", SDE): (0.200, 0.76, None),
}
# Rows beyond their bands, with what was found: our scores, and why.
DIFFERENT = {
    (PS, "dps(scale=0.12)", "ddpm", "t"): (
        (0.015, 0.003, 1.91, 3.67),
        "their last step moves by 0.3 grad |res|, beyond y at this noise; with 0.11 as in ours it has 3.7 for 31",
    ),
    (TOP, "tmpd", SDE): ((0.210, 0.657, 0.365), "negative variances count as 0"),
    (PS, "daps", "ddim"): ((0.050, 0.124, 1.13, 2.71), "200 levels to 0.02, theirs 100 to 0.02 with the ODE to 0.01"),
    (PS, "split_gibbs", "ddpm"): ((0.088, 0.206, 33.0, 132), "100 sweeps, theirs 60"),
    (P4, "tds(particles=250, twist=point)", "ddpm"): (
        (0.015, 0.006, 0.932, -0.323),
        "their run is the worst of four, of which the others have 0.02 and 0.02",
    ),
    (P4, "tmpd", SDE): ((0.134, 0.321, 0.996, 3.18), "negative variances count as 0; unclamped SW is 0.19, TV 0.39"),
    (PS, "tmpd", SDE): ((0.224, 0.462, 14.3, 73.0), "negative variances count as 0"),
    (P4, "daps", "ddim"): ((0.106, 0.293, 1.23, 2.99), "the ODE ends at 0.02, theirs at 0.01: with 0.02 it has 1.22"),
    (P1, "daps", "ddim"): ((0.173, 0.373, 1.27, 3.57), "the ODE ends at 0.02, theirs at 0.01"),
    (PS, "naive_dps", SDE): ((2.79, 0.818, 6870, 27500), "a step beyond its stability, whose tail is heavy"),
}


def bands(key):
    """The widest differences from the reference, score by score.

    Both are single runs, and were repeated with other seeds: TV of ``ddrm(renoise=fixed)`` on P(4, 0.1) is 0.35 to 0.41
    in ours and in theirs, so that two runs may be 0.07 apart. SW is measured along 64 directions, others in theirs:
    for draws of ``mmps`` other directions give 0.074 to 0.092 on P(4, 0.1), 0.106 to 0.150 on P(1, 0.1). Small scores
    have the noise of exact draws, of which SW is 0.012 on P(4, 0.1), 0.02 to 0.03 on P(1, 0.1), 0.055 on digits.
    """
    problem = key[0]
    if problem.startswith("digits"):
        particles = key[1].startswith("tds")  # see the decision about their runs
        return ((0.2, 0.05 if particles else 0.03), (0.2, 0.12 if particles else 0.08), (0.2, 0.08))
    share, least = {P4: (0.2, 0.025), P1: (0.3, 0.035), PS: (0.2, 0.02)}[problem]
    return ((share, least), (0.2, 0.07), (0.2, 0.1), (0.25, 1.0))


def values(row):
    names = ("sw", "tv", "class_tv") if row["problem"].startswith("digits") else ("sw", "tv", "chi2", "dlogp")
    return [row["scores"][name] for name in names]


def outside(key):
    """The scores of a row that are beyond their band."""
    row = ROWS[*key[:3], len(key) == 4]
    return [
        (found, wanted)
        for found, wanted, (share, least) in zip(values(row), REFERENCE[key], bands(key), strict=True)
        if wanted is not None and abs(found - wanted) > max(share * abs(wanted), least)
    ]


@pytest.mark.parametrize("key", REFERENCE, ids=str)
def test_a_row_is_that_of_the_reference(key):
    if key not in DIFFERENT:
        assert not outside(key)
        return
    scores, _ = DIFFERENT[key]
    assert outside(key), "no longer different: remove it from the list"
    assert values(ROWS[*key[:3], len(key) == 4]) == pytest.approx(scores, rel=0.2, abs=0.02)


def score(problem, method, solver, name="sw"):
    return ROWS[problem, method, solver, False]["scores"][name]


def test_every_method_has_its_rows():
    wanted = [(name, run.identity) for name, (_, runs, _) in script.PROBLEMS.items() for run in runs]
    found = [(row["problem"], {key: row[key] for key in script.Run("").identity}) for row in DOCUMENT["rows"]]
    assert found == wanted
    for problem, kinds in ((P4, posteriors.names()), (TOP, posteriors.names())):
        methods = {row["method"].partition("(")[0] for row in DOCUMENT["rows"] if row["problem"] == problem}
        assert methods == {"truth", "exact", "unconditional", *kinds}


def test_rows_say_what_they_cost_and_how_sure_they_are():
    for row in DOCUMENT["rows"]:
        assert row["scores"].keys() == row["errors"].keys()
        assert row["forwards"] >= row["nfe"] > 0 or row["method"] == "truth"
        differentiates = row["method"].partition("(")[0] in ("tds", "mmps", "naive_dps", "dps", "pigdm", "tmpd")
        assert (row["vjps"] > 0) == differentiates
        assert all(error >= 0 for error in row["errors"].values())


@pytest.mark.parametrize("problem", script.PROBLEMS)
@pytest.mark.parametrize("solver", [SDE, ODE])
def test_exact_denoisers_are_as_near_as_exact_draws(problem, solver):
    # the largest of two distances with the noise of one, where a few points decide; see the reference
    slack = 2.0 if problem in ("digits, phase", P1) else 1.5
    assert score(problem, "exact", solver) < slack * score(problem, "truth", "")


def test_particles_are_within_twice_the_noise_of_exact_draws():
    for problem, count in ((P4, 250), (P1, 250), (PS, 125)):
        for method in (f"tds(particles={count})", "tds(particles=16)"):
            row = ROWS[problem, method, "ddpm", False]
            assert row["scores"]["sw"] <= 2 * score(problem, "truth", ""), (problem, method)
        if problem != PS:  # its evidence varies over fifty nats in a noise of 0.01
            assert ROWS[problem, f"tds(particles={count})", "ddpm", False]["evidence_rms"] < 0.2
    assert score(P4, "tds(particles=250)", "ddpm", "tv") < 0.03


def test_more_particles_are_nearer_to_the_posterior_of_digits():
    found = [score(TOP, f"tds(particles={k}, {V})", "ddpm") for k in (50, 200, 800)]
    assert found[0] > found[1] > found[2] > score(TOP, "truth", "")


@pytest.mark.parametrize("problem", [P4, P1, PS])
def test_the_order_of_the_methods(problem):
    # at a noise of 0.01, mmps is nearer (0.017) than the 125 particles of one run (0.018), not than draws of many
    best = score(problem, "tds(particles=16)" if problem == PS else "tds(particles=250)", "ddpm")
    order = [score(problem, name, SDE) for name in ("mmps", "pigdm", "ddnm", "unconditional")]
    assert [best, *order] == sorted([best, *order])


def test_methods_that_ignore_noise_reproduce_it():
    for method, solver in (("replace", "ddpm"), ("repaint(jump=1)", "ddpm"), ("ddnm", SDE)):
        assert score(TOP, method, solver, "resid") < 1e-20


def test_cards_have_the_rows():
    for name in posteriors.names():
        assert f"{P4}, {name}" in measured(name), name
    assert measured("unheard_of") == ""
    row = ROWS[P4, "mmps", SDE, False]["scores"]
    assert f"P(4, 0.1), mmps, dpmpp_2m_sde: SW {round(row['sw'], 3)} (" in measured("mmps")


def test_a_run_that_ends_early_continues(tmp_path, monkeypatch, capsys):
    make, _, _ = script.PROBLEMS[P4]
    runs = [
        script.Run("truth"),
        script.Run("exact", ODE, 50),
        script.Run("tds(particles=250)", "ddpm", 20, shared=True),
    ]
    monkeypatch.setattr(script, "PROBLEMS", {P4: (lambda: make(), runs, 20)})
    path, measure, made = tmp_path / "rows.json", script.measured, []

    def stopping(problem, run, draws, share):
        made.append(run.method)
        if len(made) == 3:
            raise KeyboardInterrupt
        return measure(problem, run, draws, share)

    monkeypatch.setattr(script, "measured", stopping)
    monkeypatch.setattr(sys, "argv", ["posteriors.py", "--fast", "--out", str(path)])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(KeyboardInterrupt):
            script.main()
        assert [row["method"] for row in json.loads(path.read_text())["rows"]] == ["truth", "exact"]
        script.main()
        rows = json.loads(path.read_text())["rows"]
        assert [row["method"] for row in rows] == [run.method for run in runs]
        assert made == [*[run.method for run in runs], runs[2].method]  # none again
        assert (rows[2]["nfe"], rows[2]["forwards"]) == (250 * 8 / 10, 250 * 8 / 10)  # 8 steps at least, 10 draws
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "exact"])
        script.main()
        assert json.loads(path.read_text())["rows"] == rows  # measured again: the same numbers
        assert made[4:] == ["exact"]
        monkeypatch.setattr(script.only, "PINNED", ())
        monkeypatch.setattr(sys, "argv", ["posteriors.py", "--out", str(path)])
        with pytest.raises(InputError, match=r"has command 'python -m benchmarks\.conditions\.posteriors --fast'"):
            script.main()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--fast"], "--fast needs --out FILE"), (["--only", "mmpss"], "unknown mmpss"), (["--problems", "P"], "invalid")],
)
def test_bad_arguments(given, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["posteriors.py", *given])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert message in capsys.readouterr().err
