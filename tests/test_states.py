"""The states of one sample along its solve: those that the solver visits, kept in files, and shown on the page."""

import numpy as np
import pytest
import torch
from browser import CHROMIUM, WIDE, browser
from test_report import Page, pictures, row

import scoresde
import solvers
from scoresde.benchmark.runner import Terms, measure
from scoresde.benchmark.states import STATES, states_of
from scoresde.benchmark.store import FOLDER, Store
from scoresde.models.problem import Diffusion
from scoresde.sampling.pictures import image_grid
from scoresde.show.page import write_report

TARGET = scoresde.targets.GaussianMixture(torch.tensor([[1.0, 1.0], [-1.0, 0.5]]), 0.05)


def visited(model, plan, seed):
    """All states of a sample, by a solve with a hook."""
    scale = (plan.nodes[0].alpha ** 2 + plan.nodes[0].sigma ** 2) ** 0.5
    noise, found = solvers.SeededNoise([seed], (2,), torch.float64), []

    def keep(x, node):
        found.append(x[0] / (node.alpha**2 + node.sigma**2) ** 0.5)

    solvers.solve(plan.solver, Diffusion(model), scale * noise.initial(), plan.nodes, noise, [keep])
    return torch.stack([noise.initial()[0], *found])


@pytest.mark.parametrize("path", ["vp", "ve", "rectified_flow"])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "ddpm"])
def test_the_states_are_those_of_the_solver(path, solver):
    model = TARGET.denoiser(scoresde.make_sde(path))
    plan = scoresde.plan(model, solver, "karras", steps=6)
    states = states_of(model, plan, 3, (2,), dtype=torch.float64)
    assert len(states) == 7
    noise = solvers.SeededNoise([3], (2,), torch.float64).initial()[0]
    assert torch.equal(states[0], noise)  # of unit size on every path
    whole = scoresde.sample(model, (2,), range(5), plan=plan, dtype=torch.float64)
    assert (states[-1] - whole.x[3]).abs().max() < 1e-12  # the sample itself, up to the rounding of another batch
    assert (states - visited(model, plan, 3)).abs().max() < 1e-10  # steps one by one round in another order


def test_of_many_states_a_few_are_kept_with_both_ends():
    model = TARGET.denoiser(scoresde.VP())
    plan = scoresde.plan(model, "ddim", "karras", steps=32)
    states = states_of(model, plan, 0, (2,), dtype=torch.float64)
    assert len(states) == STATES
    assert (states - visited(model, plan, 0)[::4]).abs().max() < 1e-10  # of 33


def test_a_stored_row_has_its_states(tmp_path):
    model, reference = TARGET.denoiser(scoresde.VP()), TARGET.sample(50, solvers.generator(0))
    store = Store(tmp_path / FOLDER, {"model": "mixture"})
    terms = Terms.of(model, reference, range(6), (2,), truth_steps=0, store=store)
    jobs = terms.jobs(["ddim", "ddpm"], None, [5])
    first = measure(terms, jobs, progress=False)
    again = measure(terms, jobs, progress=False)  # from the store
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.states, two.states)
        assert (one.states[-1] - one.samples[0]).abs().max() < 1e-5  # float32
    assert torch.equal(first[0].states[0], first[1].states[0])  # the same noise
    silent = Terms.of(model, reference, range(6), (2,), truth_steps=0, keep=0)
    assert measure(silent, jobs, progress=False)[0].states is None


def shown(tmp_path, states, **options):
    rows = [row(name, asked, 0.5, states=states[name, asked], samples=options.get("samples")) for name, asked in states]
    write_report(tmp_path / "report.html", title="T", rows=rows, **{k: v for k, v in options.items() if k != "samples"})
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_page_shows_each_solver_at_its_least_budget(tmp_path):
    found = shown(tmp_path, {("ddim", 10): pictures(0), ("ddim", 5): pictures(1)[:5], ("heun", 10): pictures(2)})
    labels = [line[0][1].split() for line in found.table("pictures ways")]
    assert labels == [["ddim", "NFE", "4"], ["heun", "NFE", "9"]]  # counted: one less than asked in these rows
    drawn = [np.array(picture) for picture in found.pictures()]
    wanted = [
        image_grid(pictures(1)[:5], -1, 1, columns=5, tile=48),
        image_grid(pictures(2), -1, 1, columns=8, tile=48),
    ]
    assert [np.array_equal(a, np.array(b)) for a, b in zip(drawn, wanted, strict=True)] == [True, True]
    bare = shown(tmp_path, {("ddim", 5): None})
    assert "pictures ways" not in bare.classes


def blue(picture):
    """Where the blue ink of a picture is, as (rows, columns)."""
    red, _, ink = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=int), 2, 0)
    return np.nonzero(ink - red > 60)


def test_points_are_a_path_and_signals_a_row_of_lines(tmp_path):
    path = torch.tensor([[-2.0, -2.0], [0.0, 0.0], [2.0, 2.0]])
    (picture,) = shown(tmp_path, {("ddim", 5): path}, reference=torch.zeros(5, 2)).pictures()
    rows, columns = blue(picture)
    height, width = picture.height, picture.width
    assert np.ptp(columns) > 0.8 * width
    # the path climbs from the lower left to the upper right, and its ink lies on this diagonal
    assert np.abs(rows / height + columns / width - 1).max() < 0.08
    line = torch.stack([torch.linspace(-1, 1, 16) * slope for slope in (0.0, 1.0, -1.0, 1.0)])
    (picture,) = shown(tmp_path, {("ddim", 5): line}).pictures()
    rows, columns = blue(picture)
    parts = [columns // (picture.width / 4) == k for k in range(4)]
    heights = [float(np.corrcoef(columns[part], -rows[part])[0, 1]) for part in parts[1:]]
    assert [round(h) for h in heights] == [1, -1, 1]
    assert np.ptp(rows[parts[0]]) < 0.1 * picture.height  # the first state is flat


def test_a_solver_that_leaves_the_range_does_not_flatten_the_others(tmp_path):
    path, real = torch.tensor([[-2.0, -2.0], [0.0, 0.0], [2.0, 2.0]]), torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    far = torch.tensor([[-2.0, -2.0], [0.0, 900.0]])
    first, second = shown(tmp_path, {("ddim", 5): path, ("heun", 5): far}, reference=real).pictures()
    assert np.ptp(blue(first)[1]) > 0.8 * first.width
    assert len(blue(second)[0]) > 10


@pytest.mark.parametrize("size", [(1, 8, 8), (2,), (20,)])
def test_a_browser_shows_the_states_at_any_width(tmp_path, size):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    states = torch.randn(9, *size, generator=torch.Generator().manual_seed(0))
    shown(tmp_path, {("ddim", 5): states, ("picard(window=4, tolerance=0.001)", 5): states})
    with browser(tmp_path / "profile") as opened:
        for width in (400, 1200):
            opened.open(tmp_path / "report.html", width)
            assert opened.complaints == []
            assert opened.value("document.documentElement.scrollWidth") <= width
            assert opened.value(WIDE) == []
            assert opened.value("[...document.querySelectorAll('table.ways img')].map(i => i.naturalWidth > 50)") == [
                True, True,
            ]  # fmt: skip
