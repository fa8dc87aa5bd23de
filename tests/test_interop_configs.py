"""What a scheduler's config says: its path, its levels and its labels are those of the diffusers class itself."""

import inspect
import math
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from foreign_loops import denoiser, gap, loop, solved, start

import scoresde
import scoresde.interop
import solvers
from scoresde import InputError
from scoresde.interop import DiffusersScheduler
from scoresde.interop.diffusers_config import Reading, config_of
from scoresde.paths.chain_paths import ChainSDE

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CLASSES = [
    "DDPMScheduler",
    "DDIMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
]
SPACINGS = [
    {},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "linspace"},
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s.get("timestep_spacing", "its own"))
def test_the_steps_are_those_of_the_class(name, spacing):
    theirs = getattr(diffusers, name)(**STABLE, **spacing)
    theirs.set_timesteps(10)
    ours = DiffusersScheduler("ddim", theirs)
    ours.set_timesteps(10)
    assert ours.timesteps.tolist() == sorted({round(t) for t in theirs.timesteps.tolist()}, reverse=True)
    # their chain is multiplied in float32, of which 1 - alpha^2 = 8.5e-4 of the first node feels 7e-5
    levels = [((1 - a) / a) ** 0.5 for a in theirs.alphas_cumprod[ours.timesteps].double().tolist()]
    assert ours.sigmas[:10].tolist() == pytest.approx(levels, rel=1e-4)


@pytest.mark.parametrize("name", ["PNDMScheduler", "LCMScheduler", "TCDScheduler", "DPMSolverSinglestepScheduler"])
def test_the_chain_of_classes_with_steps_of_their_own(name):
    theirs = getattr(diffusers, name)(**STABLE)
    ours = DiffusersScheduler("ddim", theirs)
    ours.set_timesteps(10)
    labels = ours.timesteps.tolist()
    if name == "PNDMScheduler":
        assert labels == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    squares = [1 / (1 + sigma**2) for sigma in ours.sigmas[:10].tolist()]
    assert squares == pytest.approx(theirs.alphas_cumprod[labels].tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_karras_levels(name):
    theirs = getattr(diffusers, name)(**STABLE, use_karras_sigmas=True)
    theirs.set_timesteps(10)
    ours = DiffusersScheduler("ddim", theirs)
    ours.set_timesteps(10)
    assert ours.config.get("grid") is None
    assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=1e-4, abs=1e-6)
    # DPM-Solver's class rounds its labels, we give the network those between; both interpolate log sigma
    rounding = 0.5 if "DPM" in name else 0.02
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=rounding)


def flow(**options):
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        (flow(), {}),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), {}),
        (diffusers.DEISMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0), {}),
        (flow(shift=3.0), {}),
        (flow(shift=0.5), {}),
        (flow(shift=17.0, shift_terminal=0.1), {}),
        (flow(use_dynamic_shifting=True), {"mu": 0.8}),
        (flow(use_dynamic_shifting=True, time_shift_type="linear"), {"mu": 1.9}),
        (flow(shift=3.0, num_train_timesteps=500), {}),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
            {},
        ),
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), {}),
    ],
    ids=lambda v: type(v).__name__[:12] if not isinstance(v, dict) else str(v),
)
def test_the_levels_of_a_flow(theirs, options):
    given = [1.0, 0.9, 0.5, 0.2]
    for sigmas in (None, given, [*given, 0.0])[
        : 3 if "sigmas" in inspect.signature(theirs.set_timesteps).parameters else 1
    ]:
        length = 12 if sigmas is None else None
        ours = DiffusersScheduler("ddim", theirs)
        ours.set_timesteps(length, sigmas=sigmas, **options)
        if sigmas is not None and sigmas[-1] == 0:
            sigmas = sigmas[:-1]  # theirs append it
        theirs.set_timesteps(length, **options, **({} if sigmas is None else {"sigmas": np.array(sigmas)}))
        assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=1e-5)
        count = theirs.config.num_train_timesteps
        # 1 stands for 1 - 1e-6
        assert ours.timesteps.tolist() == pytest.approx([count * s for s in ours.sigmas[:-1].tolist()], rel=2e-6)


def test_a_method_in_eps_begins_after_the_noise_of_a_flow_but_before_its_second_level():
    ours = DiffusersScheduler("lms", flow(shift=17.0))
    ours.set_timesteps(100)
    second = 17 * (1 - 1 / 99 * (1 - 17 / 1016)) / (1 + 16 * (1 - 1 / 99 * (1 - 17 / 1016)))
    assert ours.sigmas[:2].tolist() == pytest.approx([(1 + second) / 2, second], rel=1e-5)
    ours.set_timesteps(timesteps=[1000, 800, 500])
    assert ours.sigmas.tolist() == pytest.approx([0.999, 0.8, 0.5, 0])


def test_custom_levels_and_labels():
    ours = DiffusersScheduler("ddim", diffusers.EulerDiscreteScheduler(**STABLE))
    stable = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]  # published, at its labels
    labels = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    ours.set_timesteps(sigmas=stable)
    assert ours.sigmas.tolist() == pytest.approx(stable, abs=5e-4)
    assert ours.timesteps.tolist() == pytest.approx(labels, abs=0.6)
    ours.set_timesteps(timesteps=labels)
    assert ours.timesteps.tolist() == labels
    assert ours.sigmas.tolist() == pytest.approx(stable, abs=0.02)
    nodes = [ChainSDE("scaled_linear", 0.00085, 0.012)((i + 1) / 1000) for i in labels]
    nodes.append(ChainSDE().clean)
    x, model = start(), denoiser(ChainSDE("scaled_linear", 0.00085, 0.012))
    for spec in ("dpmpp_2m", "heun"):
        ours = DiffusersScheduler(spec, diffusers.EulerDiscreteScheduler(**STABLE))
        ours.set_timesteps(timesteps=labels)
        assert gap(loop(ours, x), solved(model, spec, nodes, x)) < 1e-10
        ours.set_timesteps(sigmas=[node.ratio for node in nodes])
        assert gap(loop(ours, x), solved(model, spec, nodes, x)) < 1e-6  # labels off the integers by rounding


@pytest.mark.parametrize(
    ("source", "options", "first"),
    [
        ("vp", {}, 999),
        (scoresde.VP(), {"num_train_timesteps": 100}, 99),
        ("ve", {"time_label": "sigma"}, 50.0),
        ("ve", {"time_label": "log_sigma"}, math.log(50)),
        ("edm", {"prediction_type": "edm"}, math.log(80) / 4),
        ("cosine", {"time_label": "999t"}, 999 * 0.995),
        ("rectified_flow", {}, 999),
        ("rectified_flow", {"num_train_timesteps": 100}, 99.9),
        ("ddpm_chain(num_train_timesteps=50)", {}, 49),
    ],
)
def test_an_sde_as_the_source(source, options, first):
    scheduler = DiffusersScheduler("ddim", source, "logsnr", **options)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps[0].item() == pytest.approx(first, rel=1e-6)
    sde = scoresde.make_sde(source)
    assert scheduler.init_noise_sigma == pytest.approx(sde.prior().std)
    labels = scheduler.timesteps.double()
    x0, eps = start((8, 2)), start((8, 2)).flip(1)
    nodes = [sde(sde.t_of_lam(lam)) for lam in np.linspace(sde(sde.t_max).lam, sde(sde.t_min).lam, 9)[:-1]]
    expected = torch.stack([n.alpha * a + n.sigma * e for n, a, e in zip(nodes, x0, eps, strict=True)])
    assert gap(scheduler.add_noise(x0, eps, labels), expected) < 1e-10
    fresh = DiffusersScheduler("ddim", source, "logsnr", **options)  # knows no grid yet: the labels are turned back
    assert gap(fresh.add_noise(x0, eps, labels), expected) < 1e-5  # they were rounded to float32


def test_a_path_of_the_users_own():
    class Straight(scoresde.SDE):
        """Not registered, and not to be found by its name."""

        def alpha(self, t):
            return 1 - 0.9 * t

        def sigma(self, t):
            return 0.01 + t

    scheduler = DiffusersScheduler("dpmpp_2m", Straight(), "uniform(end=zero)", time_label="1000t")
    scheduler.set_timesteps(5)
    nodes = solvers.grid("uniform(end=zero)", Straight(), 5)
    ours = solved(denoiser(Straight(), label="1000t"), "dpmpp_2m", nodes, start())
    assert gap(loop(scheduler, start()), ours) < 1e-6  # labels in float32


def test_the_defaults_of_a_class_fill_what_a_saved_config_leaves_out():
    saved = {"_class_name": "HeunDiscreteScheduler", "num_train_timesteps": 1000}
    assert Reading.of(config_of(saved)).sde == ChainSDE("linear", 0.00085, 0.012)  # Heun's own betas
    assert Reading.of(config_of({"beta_schedule": "linear"})).sde == ChainSDE()
    assert Reading.of(config_of({"trained_betas": (0.1, 0.2, 0.3), "beta_schedule": "linear"})).num_train_timesteps == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (diffusers.DDPMScheduler(variance_type="learned_range"), "variance_type='learned_range' has no counterpart"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type='continuous'"),
        (diffusers.CogVideoXDDIMScheduler(), "snr_shift_scale has no counterpart"),
        (diffusers.IPNDMScheduler(), "config of IPNDMScheduler names no path"),
        (diffusers.EDMEulerScheduler(prediction_type="sample"), "inside EDM's preconditioning"),
        (flow(stochastic_sampling=True), "stochastic_sampling=True"),
        (flow(use_karras_sigmas=True), "use_karras_sigmas has no counterpart on a flow's path"),
        (
            diffusers.DDPMScheduler(beta_schedule="laplace"),
            "no schedule of ddpm_chain 'laplace'; accepted: exp, linear",
        ),
        ({"_class_name": "EulerDiscretScheduler"}, "did you mean EulerDiscreteScheduler"),
        ({"prediction_type": "epsilon"}, "names no path"),
        ("vq", "no SDE 'vq'; did you mean ve, vp"),
        (3, "source must be an SDE, its spec, a scheduler or a scheduler's config, got int"),
    ],
)
def test_what_has_no_counterpart(source, message):
    with pytest.raises(InputError, match=message):
        DiffusersScheduler("ddim", source)


def test_other_bad_input():
    with pytest.raises(InputError, match="no solver 'dpmp_2m'; did you mean dpmpp_2m"):
        DiffusersScheduler("dpmp_2m", "vp")
    with pytest.raises(InputError, match="no grid 'traling'; did you mean trailing"):
        DiffusersScheduler("ddim", "vp", "traling")
    with pytest.raises(InputError, match="no time label 'indx'; did you mean index"):
        DiffusersScheduler("ddim", "vp", time_label="indx")
    with pytest.raises(InputError, match="no prediction type 'epsilo'"):
        DiffusersScheduler("ddim", "vp", prediction_type="epsilo")
    with pytest.raises(InputError, match="the config names no solver"):
        DiffusersScheduler.from_config(diffusers.DDIMScheduler().config)
    with pytest.raises(InputError, match="needs a config; from_pretrained reads a folder"):
        DiffusersScheduler.from_config("folder", solver="ddim")
    with pytest.raises(InputError, match="pass mu"):
        DiffusersScheduler("ddim", flow(use_dynamic_shifting=True)).set_timesteps(5)
    with pytest.raises(InputError, match=r"sigmas of a flow must lie in \(0, 1\], got 1.5"):
        DiffusersScheduler("ddim", flow()).set_timesteps(sigmas=[1.5, 0.5])
    with pytest.raises(InputError, match="needs the timestep"):
        DiffusersScheduler("ddim", "edm", prediction_type="edm").scale_model_input(start())


def test_importing_scoresde_does_not_import_diffusers():
    code = """
import sys
import scoresde, scoresde.interop
print("diffusers" in sys.modules)
sys.modules["diffusers"] = None  # as where it is not installed
try:
    scoresde.interop.DiffusersScheduler
except scoresde.InputError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == 'False\nDiffusersScheduler needs diffusers: pip install "scoresde[images]"\n'
    with pytest.raises(AttributeError, match="no attribute 'ModelMixin'"):
        _ = scoresde.interop.ModelMixin
