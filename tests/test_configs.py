"""The configs that come with the library: every prediction learns on every path; published settings are as printed."""

import dataclasses
import importlib
import json
import math
import pkgutil

import numpy as np
import pytest
import torch
from test_cifar import batches, pickled

import scoresde
import scoresde.configs
import solvers
from scoresde.cli.parser import main
from scoresde.models.networks import networks
from scoresde.paths.base import make_sde
from scoresde.runs.build import build_loss, build_model, build_options, load_data, plan_of
from scoresde.runs.config import read_config
from scoresde.training import checkpoint
from scoresde.training.averages import decays
from scoresde.training.loop import train
from scoresde.training.losses import losses
from solvers.budget import evaluations
from solvers.noise.draws import Draws

PATHS = ("vp", "subvp", "ve", "edm", "cosine", "rectified_flow", "ddpm", "smld", "vdm")
# the loss after training divided by that before. The untrained network returns 0, which is far off for x0 and the mean
# of the data for v and edm. Measured on the paths: x0 0.003 to 0.11, eps 0.29 to 0.52, v 0.64 to 0.72, score 0.29 to
# 0.78, velocity 0.52 to 0.88, edm 0.66 to 0.74
FALLS = {"x0": 0.2, "eps": 0.6, "v": 0.8, "score": 0.85, "velocity": 0.92, "edm": 0.8}
QUICK = {("vp", "eps"), ("ve", "score"), ("rectified_flow", "velocity"), ("edm", "edm")}


def small_network(spec):
    """The spec of a network with the same options, but few and narrow layers."""
    made = networks.make(spec)
    narrow = {"width": 16, "depth": 1, "channels": (16, 16), "layers": 1, "groups": 4}
    if getattr(made, "attention", None):
        narrow["attention"] = (1,)  # of two resolutions
    names = [field.name for field in dataclasses.fields(made)]
    return networks.format(dataclasses.replace(made, **{n: value for n, value in narrow.items() if n in names}))


def losses_around_training(name, predicts, updates=150, width=64, **fields):
    """The losses of held-out digits before and after a training, at the same noise levels and with the same noise."""
    config = read_config(name, [f"--config.model.predicts={predicts}"])
    options = networks.make(config.model.network)
    config.model.network = networks.format(dataclasses.replace(options, width=width, depth=1))
    config.training.update(
        {"steps": updates, "batch_size": 64, "learning_rate": 5e-3, "warmup": 10, "evaluate_every": 0, **fields}
    )
    data = load_data(config)
    denoiser, network = build_model(config, data.card)
    loss = build_loss(config, data.card)
    x = data.test.tensor()[:256]

    def held_out():
        with torch.no_grad():
            return float(loss(denoiser, x, Draws.of(1, 0, len(x)), loss.state(denoiser.sde)).mean())

    before = held_out()
    train(denoiser, network, data.train, loss, build_options(config, data.card, None), False)
    return before, held_out()


@pytest.mark.parametrize(
    ("path", "predicts"),
    [
        pytest.param(path, predicts, marks=() if (path, predicts) in QUICK else pytest.mark.slow)
        for path in PATHS
        for predicts in FALLS
    ],
)
def test_every_prediction_learns_on_every_path(path, predicts):
    # half of SMLD's scales are so noisy that nothing can be learned there, and a velocity is 5000 times as large at one
    # end as at the other
    before, after = losses_around_training(f"digits_{path}", predicts, updates=600 if path == "smld" else 150)
    assert after < (0.95 if path == "smld" else FALLS[predicts]) * before


def test_the_preconditioned_network_learns_the_same_on_every_path():
    # it sees x / sqrt(alpha^2 + ...) and the noise level alone, and the default loss draws noise levels. What is left
    # is float32 rounding and the ends of the paths, beyond which one noise level in 700 lies
    paths = ["vp", "subvp", "ve", "edm", "cosine", "rectified_flow"]
    loss = read_config("default").training.loss
    found = [losses_around_training(f"digits_{path}", "edm", updates=20, loss=loss) for path in paths]
    assert [pair == pytest.approx(found[0], rel=2e-3) for pair in found] == [True] * len(paths)
    assert found[0][1] < 0.95 * found[0][0]


# the published settings. Song et al. 2021 (arXiv:2011.13456): appendices C and H, and the authors' configs; Karras et
# al. 2022 (arXiv:2206.00364): tables 1, 2 and 7, and the authors' program
PUBLISHED = {
    "cifar10_ddpmpp": {
        "ends": (0.1, 20.0), "images": 166_400_000, "batch": 128, "rate": 2e-4, "warmed up after": 5000 * 128,
        "average": ("ema", {"decay": 0.9999}), "clip": 1.0, "flip": True, "dropout": 0.1,
        "channels": (128, 256, 256, 256), "blocks": 4, "attention": [16], "nfe": 1000, "FID": "2.55",
    },
    "cifar10_ncsnpp": {
        "ends": (0.01, 50.0), "images": 166_400_000, "batch": 128, "rate": 2e-4, "warmed up after": 5000 * 128,
        "average": ("ema", {"decay": 0.999}), "clip": 1.0, "flip": True, "dropout": 0.1,
        "channels": (128, 256, 256, 256), "blocks": 4, "attention": [16], "nfe": 1999, "FID": "2.38",
    },
    "cifar10_edm": {
        "ends": (0.002, 80.0), "images": 200_000_000, "batch": 512, "rate": 1e-3, "warmed up after": 10_000_000,
        "average": ("half_life", {"samples": 500_000, "ramp": 0.05}), "clip": math.inf, "flip": False, "dropout": 0.13,
        "channels": (256, 256, 256), "blocks": 4, "attention": [16], "nfe": 35, "FID": "1.97",
    },
}  # fmt: skip


def test_every_config_names_things_that_exist():
    # the small networks of other tests replace options, which a wrong one would pass unseen
    names = [module.name for module in pkgutil.iter_modules(scoresde.configs.__path__) if module.name != "default"]
    assert len(names) > 20
    for name in names:
        config = read_config(name)
        assert str(make_sde(config.sde))
        assert networks.format(networks.make(config.model.network))
        assert losses.make(config.training.loss)
        assert decays.make(config.training.averages)
        assert not config.sampling.solver or solvers.make(config.sampling.solver)


@pytest.fixture
def folder(tmp_path):
    """CIFAR-10's files with seven images."""
    return batches(tmp_path / "cifar", pickled(2))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_settings(name):
    config, wanted = read_config(name), PUBLISHED[name]
    training, sde, network = config.training, make_sde(config.sde), networks.make(config.model.network)
    made = network.settings
    if name == "cifar10_ddpmpp":
        ends = tuple(float(sde.beta(torch.tensor(t, dtype=torch.float64))) for t in (0.0, 1.0))
        assert (config.model.predicts, training.loss) == ("eps", "dsm(weighting=dsm, times=uniform)")
        assert (config.model.time_label, 1000 * network.label_scale) == ("999t", 1)  # the embedding is made for 1000 t
    elif name == "cifar10_ncsnpp":  # of images in [0, 1], which are half as wide
        ends = (sde(0.0).sigma / 2, sde(1.0).sigma / 2)
        assert (config.model.predicts, training.loss) == ("eps", "dsm(weighting=dsm, times=uniform)")
    else:
        ends = (sde(sde.t_min).sigma, sde(sde.t_max).sigma)
        assert (config.model.predicts, config.model.sigma_data) == ("edm", 0.5)
        assert training.loss == "dsm(weighting=edm, times=lognormal(mean=-1.2, std=1.2))"
        assert config.data.augmentation == "edm(probability=0.12)"
    average = decays.make(training.averages)
    found = {
        "ends": pytest.approx(ends), "images": training.steps * training.batch_size, "batch": training.batch_size,
        "rate": training.learning_rate,
        # in whole updates
        "warmed up after": pytest.approx(training.warmup * training.batch_size, abs=training.batch_size),
        "average": (decays.info_of(average).name, dataclasses.asdict(average)), "clip": training.clip,
        "flip": config.data.augmentation == "flip", "dropout": made.dropout, "channels": made.channels,
        "blocks": made.layers, "attention": [32 // 2**level for level in made.attention],
    }  # fmt: skip
    assert {key: wanted[key] for key in found} == found
    assert (training.weight_decay, training.schedule, config.data.dequantise) == (0.0, "constant", False)
    assert f"FID {wanted['FID']}" in importlib.import_module(f"scoresde.configs.{name}").__doc__


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_samples_on_the_published_nodes(name):
    config, wanted = read_config(name), PUBLISHED[name]
    plan = plan_of(scoresde.targets.Gaussian(torch.zeros(2), 0.25).denoiser(config.sde), config.sampling)
    assert evaluations(plan.solver, plan.sde, plan.nodes) == wanted["nfe"]
    levels = [node.sigma for node in plan.nodes]
    assert levels[-1] == 0
    if name == "cifar10_ddpmpp":  # of the authors' loop: 1000 times, a thousandth apart
        assert [node.t for node in plan.nodes[:-1]] == pytest.approx(list(np.linspace(1, 1e-3, 1000)))
    elif name == "cifar10_ncsnpp":  # 1000 levels, each the same part of the one before
        assert [level / 2 for level in levels[:-1]] == pytest.approx(list(np.geomspace(50, 0.01, 1000)))
    else:  # eq. 5
        roots = [80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7)) for i in range(18)]
        assert levels[:-1] == pytest.approx([root**7 for root in roots])


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_update_by_a_preset(tmp_path, folder, name):
    pytest.importorskip("diffusers")
    config, wanted = read_config(name), PUBLISHED[name]
    by_class = ["--config.data.labels=label"] if name == "cifar10_edm" else []
    command = [
        "train", f"--config={name}", f"--config.data.path={folder}", f"--workdir={tmp_path / 'run'}", *by_class,
        f"--config.model.network={small_network(config.model.network)}", "--config.training.steps=2",
        "--config.training.batch_size=4", "--config.training.log_every=1", "--config.training.evaluate_every=0",
    ]  # fmt: skip
    assert main(command) == 0
    first, second = (json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines())
    assert [line["lr"] for line in (first, second)] == pytest.approx(
        [wanted["rate"] * updates / config.training.warmup for updates in (1, 2)]
    )
    assert all(0 < line["grad_norm"] < math.inf and 0 < line["loss"] < 100 for line in (first, second))
    saved = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    (average,) = saved.averages.values()
    assert average.updates == 2
    embedded = {key.split(".parts.")[1][0] for key in saved.model if ".parts." in key}
    assert len(embedded) == (2 if by_class else 0)  # the class, and what the augmentation did
