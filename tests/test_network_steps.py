"""Grids for discrete-time networks: their steps are whole, the network is told so, and diffusers takes the same."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

import scoresde
import solvers
from scoresde import time_labels
from solvers import InputError, grid
from solvers.conformance.problems import PATHS
from solvers.time_grids.network_steps import index_of_time, time_of_index

pytestmark = pytest.mark.quick

SDES = [scoresde.VP(), scoresde.VE(), scoresde.EDM(), scoresde.RectifiedFlow(), scoresde.SubVP(), scoresde.Cosine()]
VP = scoresde.VP()
RULES = [
    "leading",
    "leading(steps_offset=1)",
    "trailing",
    "trailing(rounding=up)",
    "linspace",
    "linspace(skip_last=True)",
]


def steps_of(spec, count, path=VP, total=1000, **limits):
    """The network steps of a grid's nodes, but for sigma = 0."""
    nodes = grid(spec, path, count, **limits)
    return [index_of_time(path, node.t, total) for node in nodes if node.sigma > 0]


def denoiser(sde=VP, **options):
    return scoresde.Denoiser(lambda x, label: 0 * x, sde, **{"time_label": "index", **options})


@pytest.mark.parametrize("path", [*SDES, *PATHS], ids=str)
@pytest.mark.parametrize("spec", RULES)
@pytest.mark.parametrize("steps", [1, 3, 20, 999])
def test_steps_are_whole_on_every_path(spec, path, steps):
    found = np.array(steps_of(spec, steps, path))
    assert len(found) == steps
    # t is rounded to 1e-16 of the range's greatest number, of which a network step is at least a thousandth part
    assert np.abs(found - found.round()).max() < 1e-9
    assert all(np.diff(found) < 0)
    assert grid(spec, path, steps)[-1].sigma == 0


@pytest.mark.parametrize("sde", SDES, ids=str)
@pytest.mark.parametrize("spec", RULES)
def test_the_network_sees_the_integers(spec, sde):
    labels = time_labels(denoiser(sde), grid(spec, sde, 37))
    assert labels == [round(step) for step in steps_of(spec, 37, sde)]  # to the last bit
    seen = []
    model = scoresde.Denoiser(lambda x, label: seen.append(label) or 0 * x, sde, time_label="index")
    scoresde.sample(model, (1,), [0, 1], solver="ddim", grid=spec, steps=37)
    assert [row.tolist() for row in seen] == [[label] * 2 for label in labels]


def test_the_steps_are_ddpms():
    assert [time_of_index(VP, i) for i in (0, 499, 999)] == pytest.approx([0.001, 0.5, 1.0], rel=1e-15)
    unit = scoresde.VE()  # a path over [0, 1]: score_sde's label is the same
    nodes = grid("linspace", unit, 9)
    assert time_labels(denoiser(unit, time_label="999t"), nodes) == pytest.approx(time_labels(denoiser(unit), nodes))


def test_time_labels_are_what_the_network_sees():
    nodes = grid("karras", VP, 4)
    labels = time_labels(denoiser(time_label="1000t"), nodes)
    assert labels == [float(np.float32(1000 * node.t)) for node in nodes[:-1]]
    wide = torch.nn.Linear(1, 1, dtype=torch.float64)
    assert time_labels(scoresde.Denoiser(wide, VP, time_label="sigma"), nodes) == [node.sigma for node in nodes[:-1]]
    narrow = torch.nn.Linear(1, 1, dtype=torch.bfloat16)
    assert time_labels(scoresde.Denoiser(narrow, VP, time_label="1000t"), nodes) == labels
    between = time_labels(denoiser(), nodes)[1]
    assert between == pytest.approx(999 * (nodes[1].t - 0.001) / 0.999, rel=1e-6)  # a fraction stays one
    assert time_labels(denoiser(num_train_timesteps=101), grid("trailing(num_train_timesteps=101)", VP, 2)) == [100, 49]
    tensors = solvers.Node.stack([VP(0.001), VP(1.0)])
    assert denoiser()._labels(tensors, torch.float64, torch.zeros(2, 1)).tolist() == [0.0, 999.0]
    with pytest.raises(InputError, match="num_train_timesteps must be at least 2"):
        denoiser(num_train_timesteps=1)


def test_the_rules():
    assert steps_of("trailing", 10) == pytest.approx([999, 899, 799, 699, 599, 499, 399, 299, 199, 99], abs=1e-9)
    assert steps_of("leading", 4) == pytest.approx([750, 500, 250, 0], abs=1e-9)
    assert steps_of("linspace", 4) == pytest.approx([999, 666, 333, 0], abs=1e-9)
    assert steps_of("ddim_quad", 3) == pytest.approx([800, 200, 0], abs=1e-9)
    # ComfyUI's own loops
    simple = [999 - int(x * (1000 / 7)) for x in range(7)]
    assert steps_of("trailing(rounding=up)", 7) == pytest.approx(simple, abs=1e-9)
    assert solvers.grids.make("simple") == solvers.grids.make("trailing(rounding=up)")
    ddim_uniform = list(range(1, 1000, 1000 // 8))[::-1]
    assert steps_of("ddim_uniform", 8) == pytest.approx(ddim_uniform, abs=1e-9)
    plain = list(np.linspace(999, 0, 9)[:-1])
    assert steps_of("sgm_uniform", 8) == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("spec", RULES)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_grid_to_t_min_ends_at_the_networks_first_step(spec, steps):
    name, _, options = spec.partition("(")
    found = steps_of(f"{name}(end=t_min{', ' + options if options else ')'}", steps)
    assert len(found) == steps + 1
    assert found[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spec", RULES)
def test_a_part_of_the_range_has_the_steps_in_it(spec):
    found = np.array(steps_of(spec, 50, t_min=0.0995, t_max=0.6001))
    assert np.abs(found - found.round()).max() < 1e-9
    assert found.max() <= 599
    assert found.min() >= 99
    with pytest.raises(InputError, match="600 steps, but the network has 501 in this range"):
        grid(spec, VP, 600, t_min=0.0995, t_max=0.6001)


@pytest.mark.parametrize("steps", [1, 2, 9, 30, 50, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_steps_are_diffusers(spacing, steps):
    options = {"timestep_spacing": spacing, "steps_offset": 0}
    euler = EulerDiscreteScheduler(**options)
    euler.set_timesteps(steps)
    if (spacing, steps) != ("linspace", 1):  # of one step, numpy's linspace keeps the wrong end: no noise at all
        assert steps_of(spacing, steps) == pytest.approx(euler.timesteps.round().tolist(), abs=1e-9)
    ddim = DDIMScheduler(**options)
    ddim.set_timesteps(steps)
    if spacing != "linspace":
        assert steps_of(spacing, steps) == pytest.approx(ddim.timesteps.tolist(), abs=1e-9)
    dpm = DPMSolverMultistepScheduler(timestep_spacing="linspace")
    dpm.set_timesteps(min(steps, 999))
    assert steps_of("linspace(skip_last=True)", min(steps, 999)) == pytest.approx(dpm.timesteps.tolist(), abs=1e-9)


def test_an_offset_is_diffusers():
    ddim = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    ddim.set_timesteps(30)
    assert steps_of("leading(steps_offset=1)", 30) == pytest.approx(ddim.timesteps.tolist(), abs=1e-9)


@pytest.mark.parametrize(
    ("spec", "steps", "message"),
    [
        ("trailing", 1001, r"trailing: 1001 steps, but the network has 1000 in this range; use fewer steps"),
        ("leading(steps_offset=1)", 1000, r"step 1000 is not one of 0..999"),
        ("ddim_quad", 50, "are both the network's step 0"),
        ("linspace(end=t_min)", 1000, "1000 steps need 1001 network steps"),
        ("leading(steps_offset=-1)", 5, "steps_offset must be an integer of at least 0"),
        ("trailing(num_train_timesteps=1)", 1, "num_train_timesteps must be an integer of at least 2"),
        ("trailing(rounding=down)", 5, "'rounding' of trailing 'down'; accepted: nearest, up"),
    ],
)
def test_too_many_steps_are_refused(spec, steps, message):
    with pytest.raises(InputError, match=message):
        grid(spec, VP, steps)
