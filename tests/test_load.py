"""Folders of diffusers: their chains are followed draw by draw, and what has no counterpart is told."""

import json
import math
import os
import sys
from itertools import product

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm

import scoresde
import scoresde.interop
from scoresde import InputError
from scoresde.interop import DiffusersScheduler
from scoresde.interop.diffusers_folder import own_solver
from scoresde.paths.chain_paths import ChainSDE
from solvers import SeededNoise

N, SHAPE, SEEDS = 50, (2, 8, 8), range(3)
BETAS = {"num_train_timesteps": N, "beta_start": 0.002, "beta_end": 0.25}


def unet(outputs=2, **options):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    made = diffusers.UNet2DModel(
        sample_size=8, in_channels=2, out_channels=outputs, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, **{**blocks, **options},
    )  # fmt: skip
    return made.eval()


def saved(folder, scheduler, network=None, pipeline=diffusers.DDPMPipeline):
    pipeline(network or unet(), scheduler).save_pretrained(folder)
    return f"diffusers:{folder}"


def own_loop(scheduler, network, monkeypatch):
    """The loop of diffusers' DDPMPipeline over all nodes, from the draws of ``scoresde.sample``."""
    noise = SeededNoise(SEEDS, SHAPE)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: noise(None, None))
    x = noise.initial()
    scheduler.set_timesteps(N)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return x


def chains():
    """All settings; ``make test`` runs the half in which every two values of different settings meet."""
    predictions, schedules, kinds = (
        ("epsilon", "v_prediction"), ("linear", "squaredcos_cap_v2"), ("fixed_small", "fixed_large", "learned_range")
    )  # fmt: skip
    for prediction, schedule, kind, clip in product(predictions, schedules, kinds, (False, True)):
        odd = (predictions.index(prediction) + schedules.index(schedule) + clip) % 2
        yield pytest.param(prediction, schedule, kind, clip, marks=[pytest.mark.slow] * odd)


@pytest.mark.parametrize(("prediction", "schedule", "kind", "clip"), list(chains()))
def test_a_loaded_pipeline_follows_its_own_chain(tmp_path, monkeypatch, prediction, schedule, kind, clip):
    scheduler = diffusers.DDPMScheduler(
        **BETAS, beta_schedule=schedule, prediction_type=prediction, variance_type=kind, clip_sample=clip,
        clip_sample_range=0.5,
    )  # fmt: skip
    network = unet(4 if kind == "learned_range" else 2)
    source = saved(tmp_path, scheduler, network)
    model, solver = scoresde.load(source), own_solver(source)
    ours = scoresde.sample(model, SHAPE, SEEDS, solver, "leading", steps=N)
    theirs = own_loop(scheduler, network, monkeypatch)
    assert ours.nfe == N
    # float32, theirs with a chain multiplied in it: measured 7e-6 of the largest number at worst
    assert float((ours.x - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
    if clip:
        assert float(ours.x.abs().max()) == pytest.approx(0.5, abs=1e-6)  # the last step ends at the clipped x0


def test_the_other_variance_is_another_sample(tmp_path, monkeypatch):
    # ten times the tolerance above, which so tells the kinds apart
    scheduler = diffusers.DDPMScheduler(**BETAS, variance_type="fixed_large", clip_sample=False)
    model = scoresde.load(saved(tmp_path, scheduler))
    wrong = scoresde.sample(model, SHAPE, SEEDS, "ddpm", "leading", steps=N).x
    theirs = own_loop(scheduler, unet(), monkeypatch)
    assert float((wrong - theirs).abs().max()) > 1e-3 * float(theirs.abs().max())


def test_what_a_folder_says(tmp_path):
    scheduler = diffusers.DDPMScheduler(
        **BETAS, prediction_type="v_prediction", clip_sample_range=1.5, rescale_betas_zero_snr=True
    )
    model = scoresde.load(saved(tmp_path, scheduler))
    assert model.sde == ChainSDE("linear", 0.002, 0.25, N, zero_terminal_snr=True)
    assert (model.predicts, model.label, model.train_timesteps, model.clip) == ("v", "index", N, 1.5)
    assert model.shape == SHAPE
    assert not model.learned_variance
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    saved(tmp_path / "betas", diffusers.DDPMScheduler(trained_betas=[0.1, 0.2, 0.3, 0.4], clip_sample=False))
    model = scoresde.load(f"diffusers:{tmp_path / 'betas'}")
    assert model.sde.betas == (0.1, 0.2, 0.3, 0.4)
    assert model.clip is None


def test_own_solvers(tmp_path):
    found = {}
    for kind in ("fixed_small", "fixed_small_log", "fixed_large"):
        saved(tmp_path / kind, diffusers.DDPMScheduler(**BETAS, variance_type=kind))
        found[kind] = own_solver(tmp_path / kind)
    saved(tmp_path / "ddim", diffusers.DDIMScheduler(**BETAS, clip_sample=False), pipeline=diffusers.DDIMPipeline)
    saved(tmp_path / "dpm", diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"))
    saved(tmp_path / "ours", DiffusersScheduler("heun", diffusers.DDPMScheduler(**BETAS)))
    found |= {name: own_solver(f"diffusers:{tmp_path / name}") for name in ("ddim", "dpm", "ours")}
    assert found == {
        "fixed_small": "ddpm",
        "fixed_small_log": "ddpm",
        "fixed_large": "ddpm(variance=beta)",
        "ddim": "ddim",
        "dpm": "dpmpp_2m_sde(lower_order_final=True)",
        "ours": "heun",
    }
    saved(tmp_path / "clipped", diffusers.DDIMScheduler(**BETAS), pipeline=diffusers.DDIMPipeline)
    with pytest.raises(InputError, match="keeps an eps that does not fit the clipped x0"):
        own_solver(tmp_path / "clipped")
    assert scoresde.load(f"diffusers:{tmp_path / 'ours'}").sde == ChainSDE("linear", 0.002, 0.25, N)


@pytest.mark.parametrize("clip", [False, True])
def test_another_solver_draws_what_it_draws_in_the_pipeline(tmp_path, clip):
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=clip)
    model = scoresde.load(saved(tmp_path, scheduler))
    x = SeededNoise(SEEDS, SHAPE).initial()
    ours = scoresde.sample(model, SHAPE, SEEDS, "dpmpp_2m", "trailing", nfe=10)
    pipeline = diffusers.DDPMPipeline(unet(), DiffusersScheduler("dpmpp_2m", scheduler, "trailing"))
    foreign, network = pipeline.scheduler, pipeline.unet
    foreign.set_timesteps(10)
    with torch.no_grad():
        for t in foreign.timesteps:
            x = foreign.step(network(x, t).sample, t, x).prev_sample
    assert ours.nfe == 10
    assert float((ours.x - x).abs().max()) < 1e-4 * float(x.abs().max())


def test_a_likelihood_of_a_loaded_model(tmp_path):
    model = scoresde.load(saved(tmp_path, diffusers.DDPMScheduler(**BETAS, clip_sample=False), unet()))
    x = 0.5 * SeededNoise(range(1), (2, 4, 4)).initial()
    coarse, middle, fine = (
        scoresde.log_prob(model, x, "heun", steps=steps, divergence="exact").nats.item() for steps in (20, 40, 80)
    )
    # order 2: a halved step leaves a quarter of the error
    assert abs(middle - fine) < 0.4 * abs(coarse - middle)
    assert abs(middle - fine) < 0.01 * abs(fine)


def edit(path, **changes):
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionPipeline"},
            "has no tokenizer; a StableDiffusionPipeline needs",
        ),
        (
            "model_index.json",
            {"_class_name": None},
            "is a None, which load does not support; it supports DDPMPipeline",
        ),
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "is a pipeline conditioned on text"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "in the latent space of an autoencoder"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding=True has no counterpart here"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "variance_type='learned' has no counterpart"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "laplace"}, "no schedule of ddpm_chain 'laplace'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "noise"}, "no prediction type 'noise'"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDPMSchedule"}, "did you mean DDPMScheduler"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "the scheduler is on rectified_flow.*, not on a chain of betas",
        ),
        (
            "scheduler/scheduler_config.json",
            {"variance_type": "learned_range"},
            "the UNet returns 2 channels for 2, but the scheduler's variance_type is 'learned_range'",
        ),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel, which load does not"),
        ("unet/config.json", {"out_channels": 4}, r"unet: .*size mismatch|unet: .*shape"),
        ("unet/config.json", {"add_attention": False}, "the weights do not fit the config; they differ in"),
    ],
)
def test_what_has_no_counterpart(tmp_path, file, changes, message):
    saved(tmp_path, diffusers.DDPMScheduler(**BETAS))
    edit(tmp_path / file, **changes)
    with pytest.raises(InputError, match=message) as caught:
        scoresde.load(f"diffusers:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_variance_that_the_scheduler_does_not_know(tmp_path):
    saved(tmp_path, diffusers.DDPMScheduler(**BETAS), unet(4))
    with pytest.raises(
        InputError, match="the UNet returns 4 channels for 2, but the scheduler's variance_type is 'fixed"
    ):
        scoresde.load(f"diffusers:{tmp_path}")


def test_damaged_folders(tmp_path):
    with pytest.raises(InputError, match=r"is not a pipeline of diffusers: it contains no model_index\.json"):
        scoresde.load(f"diffusers:{tmp_path}")
    saved(tmp_path, diffusers.DDPMScheduler(**BETAS))
    (weights,) = (tmp_path / "unet").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="unet: "):
        scoresde.load(f"diffusers:{tmp_path}")
    weights.unlink()
    with pytest.raises(
        InputError, match="has no weights in safetensors, and no other weights; save it with safe_serialization=True"
    ):
        scoresde.load(f"diffusers:{tmp_path}")
    torch.save(unet().state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"only diffusion_pytorch_model\.bin, which could run code when read"):
        scoresde.load(f"diffusers:{tmp_path}")
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(InputError, match=r"scheduler_config\.json' is not a config"):
        scoresde.load(f"diffusers:{tmp_path}")
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("[]")
    with pytest.raises(InputError, match="is not a config of diffusers"):
        scoresde.load(f"diffusers:{tmp_path}")
    with pytest.raises(InputError, match=r"is a pipeline of diffusers: load\('diffusers:"):
        scoresde.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"block_out_channels": [10**6, 10**6]}, "the config describes .* weights, and the files"),
        ("unet/config.json", {"layers_per_block": 10**9}, "more layers than there are weights"),
        ("unet/config.json", {"num_class_embeds": 10**12}, "the config describes .* weights, and the files"),
        ("unet/config.json", {"block_out_channels": "text"}, "is not a pipeline that can be read"),
        ("unet/config.json", {"layers_per_block": None}, "is not a pipeline that can be read"),
        ("unet/config.json", {"quantization_config": {"quant_method": "torchao"}}, "quantised weights"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "must be at most 1000000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "must be a positive integer"),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}, "is not a pipeline that can be read"),
        ("scheduler/scheduler_config.json", {"trained_betas": [1, "x"]}, "is not a pipeline that can be read"),
        ("scheduler/scheduler_config.json", {"clip_sample": True, "clip_sample_range": []}, "that can be read"),
        ("scheduler/scheduler_config.json", {"_class_name": ["x"]}, "is not a pipeline that can be read"),
        ("scheduler/scheduler_config.json", {"_class_name": "__dict__"}, "."),
        ("model_index.json", {"_class_name": {}}, "which load does not support"),
    ],
)
def test_a_hostile_folder_is_one_line(tmp_path, file, changes, message):
    saved(tmp_path, diffusers.DDPMScheduler(**BETAS))
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=message) as error:
        scoresde.load(f"diffusers:{tmp_path}")
    assert "\n" not in str(error.value)


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    saved(tmp_path, diffusers.DDPMScheduler(**BETAS))
    for name in ("unet/other.safetensors", "unet/config.json", "model_index.json"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=r"is a pipe or a device|contains no model_index"):
            scoresde.load(f"diffusers:{tmp_path}")


def test_what_own_solver_does_not_know(tmp_path):
    saved(tmp_path, diffusers.DDPMScheduler(**BETAS, variance_type="fixed_large_log"))
    with pytest.raises(InputError, match="variance_type=fixed_large_log has no counterpart"):
        own_solver(tmp_path)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(
        InputError, match="no folder 'hub:some/model'; load takes the folder of a run, or diffusers:FOLD"
    ):
        scoresde.load("hub:some/model")
    with pytest.raises(InputError, match=r"is not a run: it contains no config\.json"):
        scoresde.load(tmp_path)


def test_without_diffusers(tmp_path, monkeypatch):
    saved(tmp_path, diffusers.DDPMScheduler(**BETAS))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r'needs diffusers: pip install "scoresde\[images\]"'):
        scoresde.load(f"diffusers:{tmp_path}")


def test_a_run_of_this_library(tmp_path):
    from scoresde.cli.training import Job, fit
    from scoresde.runs import config
    from scoresde.runs.run import load_run

    small = ["--config.training.steps=2", "--config.training.batch_size=8", "--config.model.network=mlp(width=8)"]
    fit(Job(config.read_config("default", small)), tmp_path)
    model, run = scoresde.load(tmp_path), load_run(tmp_path)
    assert model.shape == run.card.shape == (1, 8, 8)
    samples = [scoresde.sample(each, (1, 8, 8), SEEDS, steps=4).x for each in (model, run.denoiser)]
    assert torch.equal(*samples)
    assert math.isfinite(float(samples[0].sum()))


def test_a_size_that_a_file_claims_takes_no_memory(tmp_path):
    name = saved(tmp_path, diffusers.DDPMScheduler(**BETAS))
    path = tmp_path / "unet" / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "sample_size": 10**9}))
    assert scoresde.load(name).shape == (2, 10**9, 10**9)  # looking whether it ignores its label would take 16 exabytes


@pytest.mark.parametrize(
    "change", [{"time_embedding_type": "none"}, {"downsample_padding": "x"}, {"mid_block_scale_factor": "x"}]
)
def test_a_network_that_a_file_describes_wrongly_is_one_line(tmp_path, change):
    name = saved(tmp_path, diffusers.DDPMScheduler(**BETAS))
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"cannot be evaluated: TypeError|is not a pipeline that can be read: |unet: "):
        scoresde.load(name)
