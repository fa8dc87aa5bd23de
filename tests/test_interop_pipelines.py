"""Unmodified pipelines of diffusers, with small random networks: their samples are those of ``scoresde.sample``.

Both sides run one program in float32 and ask one network; where they see one label too, they agree to the last bit.
"""

from dataclasses import replace

import diffusers
import pytest
import torch
from foreign_loops import REQUIRED, gap, sampled, seeded, solved  # noqa: F401  (sampled is a fixture)
from small_tunings import problem_on, reference

import scoresde
import solvers
from scoresde.interop import DiffusersScheduler
from scoresde.models.problem import Diffusion
from scoresde.paths.chain_paths import ChainSDE
from solvers.time_grids.rules import Explicit

TOLERANCE = 1e-4  # measured: 0 nearly everywhere, 9e-7 at worst
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
CHAIN, STABLE_CHAIN = ChainSDE(), ChainSDE("scaled_linear", 0.00085, 0.012)
SCALE = 5.0  # of the guidance
POSITIVE, NEGATIVE, POOLED = (torch.randn(2, *rest, generator=seeded(9)) for rest in ((4, 8), (4, 8), (8,)))
IMAGE = torch.rand(2, 3, 8, 8, generator=seeded(8))
BLOCKS = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def made(cls, **options):
    """A network of random weights, the same every time."""
    torch.manual_seed(0)
    return cls(**options).eval()


def unet():
    return made(
        diffusers.UNet2DModel,
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **BLOCKS,
    )


def conditional_unet():
    return made(
        diffusers.UNet2DConditionModel,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        **BLOCKS,
    )


def autoencoder(channels=4):
    return made(
        diffusers.AutoencoderKL,
        block_out_channels=(8,),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=8,
        shift_factor=0.0,
    )


def transformer():
    return made(
        diffusers.FluxTransformer2DModel,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=[2, 2, 4],
    )


def unconditional(scheduler):
    return quiet(diffusers.DDPMPipeline(unet(), scheduler))


def stable(scheduler, cls=diffusers.StableDiffusionPipeline):
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return quiet(
        cls(vae=autoencoder(), unet=conditional_unet(), scheduler=scheduler, requires_safety_checker=False, **parts)
    )


def flux(scheduler):
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return quiet(diffusers.FluxPipeline(scheduler, autoencoder(1), transformer=transformer(), **parts))


def plain(network):
    """A U-Net as a network of ours."""
    return lambda x, label: network(x, label).sample


def guided(network):
    """What Stable Diffusion's pipelines make of theirs: classifier-free guidance, both halves at once."""
    prompts = torch.cat([NEGATIVE, POSITIVE])

    def call(x, label):
        out = network(torch.cat([x, x]), label.repeat(2), encoder_hidden_states=prompts).sample
        without, given = out.chunk(2)
        return without + SCALE * (given - without)

    return call


def stable_denoiser(pipeline):
    return scoresde.Denoiser(guided(pipeline.unet), STABLE_CHAIN, "eps", "index")


PROMPTS = {"prompt_embeds": POSITIVE, "negative_prompt_embeds": NEGATIVE, "guidance_scale": SCALE}


def last_state(scheduler, monkeypatch):
    """A list that will hold the scheduler's last answer: the image before it is cut to a picture's range."""
    states, step = [], scheduler.step

    def kept(*args, **kwargs):
        out = step(*args, **kwargs)
        states[:] = [out.prev_sample]
        return out

    monkeypatch.setattr(scheduler, "step", kept)
    return states


@pytest.mark.parametrize("spec", REQUIRED)
def test_an_unconditional_pipeline(spec, sampled, monkeypatch):  # noqa: F811
    scheduler = DiffusersScheduler(spec, diffusers.DDPMScheduler(clip_sample=False), "trailing")
    pipeline, states = unconditional(scheduler), last_state(scheduler, monkeypatch)
    pictures = [pipeline(2, seeded(), num_inference_steps=6, output_type="np").images for _ in range(2)]
    assert (pictures[0] == pictures[1]).all()  # nothing of a run is left to the next
    generator = seeded()
    x = torch.randn(2, 3, 8, 8, generator=generator)
    model = scoresde.Denoiser(plain(pipeline.unet), CHAIN, "eps", "index")
    ours = sampled(model, spec, "trailing", x, generator, steps=6)
    assert gap(states[0], ours) < TOLERANCE


def test_a_tuned_program_in_a_file(tmp_path, monkeypatch):
    """One tuned program through JSON, a pipeline and ``sample``: its labels lie between the network's steps."""
    problem = problem_on(CHAIN)
    known = [reference(range(k, k + 32), problem, CHAIN) for k in (0, 100)]
    tuned = solvers.tune_program("ipndm", problem, 4, known[0], validation=known[1], grid="logsnr", iterations=10)
    path = tmp_path / "nfe4.json"
    tuned.save(path)
    program = solvers.Program.from_json(path.read_text())
    assert program == tuned.program
    assert len(program.nodes) > len(program.grid)  # labels of their own
    scheduler = DiffusersScheduler(f"file:{path}", diffusers.DDPMScheduler(clip_sample=False))
    pipeline, states = unconditional(scheduler), last_state(scheduler, monkeypatch)
    pipeline(2, seeded(), num_inference_steps=4, output_type="np")
    x = torch.randn(2, 3, 8, 8, generator=seeded())
    model = scoresde.Denoiser(plain(pipeline.unet), CHAIN, "eps", "index")
    made = scoresde.sample(model, (3, 8, 8), range(2), f"file:{path}", x_init=x)
    assert made.nfe == program.nfe == 4
    with torch.no_grad():
        assert gap(made.x, program.run(Diffusion(model), x)) < TOLERANCE
    assert gap(states[0], made.x) < TOLERANCE


@pytest.mark.parametrize("spec", REQUIRED)
def test_the_ddim_pipeline_takes_it_once_it_is_made(spec, sampled):  # noqa: F811
    scheduler = DiffusersScheduler(spec, diffusers.DDIMScheduler(clip_sample=False), "trailing")
    pipeline = quiet(diffusers.DDIMPipeline(unet(), scheduler))
    assert type(pipeline.scheduler) is diffusers.DDIMScheduler  # its constructor makes every scheduler one of these
    pipeline.scheduler = scheduler
    picture = pipeline(2, seeded(), num_inference_steps=6, output_type="np").images
    generator = seeded()
    x = torch.randn(2, 3, 8, 8, generator=generator)
    model = scoresde.Denoiser(plain(pipeline.unet), CHAIN, "eps", "index")
    ours = (sampled(model, spec, "trailing", x, generator, steps=6) / 2 + 0.5).clamp(0, 1)
    assert gap(torch.from_numpy(picture), ours.permute(0, 2, 3, 1)) < TOLERANCE
    with pytest.raises(scoresde.InputError, match=r"step\(eta=0.5\) is not supported by"):
        pipeline(2, eta=0.5, num_inference_steps=6)


@pytest.mark.parametrize("spec", REQUIRED)
def test_text_to_image(spec, sampled):  # noqa: F811
    pipeline = stable(DiffusersScheduler(spec, diffusers.DDIMScheduler(clip_sample=False, **STABLE)))
    options = {**PROMPTS, "height": 8, "width": 8, "num_inference_steps": 6, "output_type": "latent"}
    latents = pipeline(generator=seeded(), **options).images
    assert torch.equal(pipeline(generator=seeded(), **options).images, latents)
    generator = seeded()
    x = torch.randn(2, 4, 8, 8, generator=generator)
    grid = "leading(steps_offset=1)"  # what the config says
    assert gap(latents, sampled(stable_denoiser(pipeline), spec, grid, x, generator, steps=6)) < TOLERANCE


@pytest.mark.parametrize("spec", [*REQUIRED, "heun(quantity=velocity)"])
def test_a_flow_matching_pipeline(spec, sampled):  # noqa: F811
    pipeline = flux(DiffusersScheduler(spec, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)))
    options = {"prompt_embeds": POSITIVE, "pooled_prompt_embeds": POOLED, "height": 8, "width": 8}
    torch.manual_seed(5)  # these pipelines pass no generator to step, which then draws with torch's own
    found = pipeline(generator=seeded(), num_inference_steps=6, output_type="latent", **options).images
    x = pipeline._pack_latents(torch.randn(2, 1, 8, 8, generator=seeded()), 2, 1, 8, 8)
    ids = {"img_ids": pipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32), "txt_ids": torch.zeros(4, 3)}
    given = {"encoder_hidden_states": POSITIVE, "pooled_projections": POOLED, **ids}
    model = scoresde.Denoiser(
        lambda x, label: pipeline.transformer(x, timestep=label / 1000, **given).sample,
        scoresde.RectifiedFlow(),
        "velocity",
        "1000t",
    )
    plain_levels = [1 - i / 6 for i in range(6)]  # the pipeline's own, shifted by the config's 3
    levels = [3 * u / (1 + 2 * u) for u in plain_levels]
    # only heun's average of eps is not accurate at sigma = 1
    first = 0.999 if spec == "heun" else 1 - 1e-6
    grid, wide = Explicit(times=(first, *levels[1:]), end="zero"), scoresde.RectifiedFlow(t_max=1 - 1e-6)
    torch.manual_seed(5)
    assert gap(found, sampled(replace(model, sde=wide), spec, grid, x)) < TOLERANCE
    # a grid of one's own instead
    pipeline.scheduler = DiffusersScheduler(spec, pipeline.scheduler, "logsnr(end=zero)")
    torch.manual_seed(5)
    found = pipeline(generator=seeded(), num_inference_steps=6, output_type="latent", **options).images
    torch.manual_seed(5)
    assert gap(found, sampled(model, spec, "logsnr(end=zero)", x, steps=6)) < TOLERANCE


@pytest.mark.parametrize("spec", REQUIRED)
def test_image_to_image_begins_part_way(spec, sampled, monkeypatch):  # noqa: F811
    scheduler = DiffusersScheduler(spec, diffusers.DDIMScheduler(clip_sample=False, **STABLE), "trailing")
    pipeline = stable(scheduler, diffusers.StableDiffusionImg2ImgPipeline)
    generator, add_noise, begun = seeded(), scheduler.add_noise, []

    def kept(x0, noise, timesteps):
        begun[:] = [x0, noise, add_noise(x0, noise, timesteps), generator.get_state()]
        return begun[2]

    monkeypatch.setattr(scheduler, "add_noise", kept)
    options = {**PROMPTS, "image": IMAGE, "num_inference_steps": 9, "output_type": "latent"}
    found = pipeline(strength=0.6, generator=generator, **options).images
    nodes = solvers.grid("trailing", STABLE_CHAIN, 9)[4:]  # int(9 * 0.6) = 5 steps are taken
    x0, noise, x, state = begun
    assert gap(x, nodes[0].alpha * x0 + nodes[0].sigma * noise) < 1e-6
    generator.set_state(state)
    grid = Explicit(times=tuple(node.t for node in nodes[:-1]), end="zero")
    assert gap(found, sampled(stable_denoiser(pipeline), spec, grid, x, generator)) < TOLERANCE


@pytest.mark.parametrize("spec", ["dpmpp_2m", "uni_pc", "res_2m"])
def test_inpainting_blends_the_states(spec, monkeypatch):
    scheduler = DiffusersScheduler(spec, diffusers.DDIMScheduler(clip_sample=False, **STABLE), "trailing")
    pipeline = stable(scheduler, diffusers.StableDiffusionInpaintPipeline)
    known, add_noise = [], scheduler.add_noise

    def kept(x0, noise, timesteps):
        known[:] = [x0, noise]
        return add_noise(x0, noise, timesteps)

    monkeypatch.setattr(scheduler, "add_noise", kept)
    mask = (torch.arange(8) >= 4).float().expand(2, 1, 8, 8)
    options = {**PROMPTS, "image": IMAGE, "mask_image": mask, "height": 8, "width": 8}
    found = pipeline(strength=1.0, num_inference_steps=6, output_type="latent", generator=seeded(), **options).images
    x0, noise = known

    def blend(x, node):
        return (1 - mask) * (node.alpha * x0 + node.sigma * noise) + mask * x

    nodes = solvers.grid("trailing", STABLE_CHAIN, 6)
    ours = solved(stable_denoiser(pipeline), spec, nodes, noise, hooks=[blend])
    assert gap(found, ours) < TOLERANCE
    assert gap(found, solved(stable_denoiser(pipeline), spec, nodes, noise)) > 1e-2


@pytest.mark.parametrize("spec", ["dpmpp_2m", "heun"])
def test_custom_levels(spec, sampled):  # noqa: F811
    pipeline = stable(DiffusersScheduler(spec, diffusers.EulerDiscreteScheduler(**STABLE)))
    options = {**PROMPTS, "height": 8, "width": 8, "output_type": "latent"}
    x, model = torch.randn(2, 4, 8, 8, generator=seeded()), stable_denoiser(pipeline)
    found = pipeline(generator=seeded(), sigmas=[10.0, 3.0, 1.0, 0.3, 0.0], **options).images
    # up to the network's feeling for the labels, which one side rounds to float32 and the other to float64
    assert gap(found, sampled(model, spec, Explicit(ratios=(10.0, 3.0, 1.0, 0.3, 0.0)), x)) < TOLERANCE
    found = pipeline(generator=seeded(), timesteps=[900, 500, 200, 50], **options).images
    grid = Explicit(times=tuple((i + 1) / 1000 for i in (900, 500, 200, 50)), end="zero")
    assert gap(found, sampled(model, spec, grid, x)) < TOLERANCE


@pytest.mark.parametrize("spec", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_save_and_load(spec, tmp_path):
    scheduler = DiffusersScheduler(spec, diffusers.DDIMScheduler(clip_sample=False, **STABLE), "karras")
    pipeline = stable(scheduler)
    options = {**PROMPTS, "height": 8, "width": 8, "output_type": "latent", "num_inference_steps": 5}
    pipeline.save_pretrained(tmp_path)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    assert type(again.scheduler) is DiffusersScheduler
    assert again.scheduler.config.solver == spec
    found, expected = (quiet(one)(generator=seeded(), **options).images for one in (again, pipeline))
    assert torch.equal(found, expected)
    # and of one kind of pipeline into another
    other = quiet(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(again))
    assert type(other.scheduler) is DiffusersScheduler


@pytest.mark.parametrize("spec", REQUIRED)
def test_half_precision(spec):
    x, ends = torch.randn(2, 4, 8, 8, generator=seeded()), []
    for dtype in (torch.bfloat16, torch.float32):
        pipeline = stable(DiffusersScheduler(spec, diffusers.DDIMScheduler(clip_sample=False, **STABLE), "trailing"))
        pipeline = pipeline.to(torch.bfloat16).to(dtype)  # the same weights, rounded
        options = {**PROMPTS, "guidance_scale": 1.0, "height": 8, "width": 8, "output_type": "latent"}
        options["prompt_embeds"] = POSITIVE.bfloat16().to(dtype)
        options["latents"] = x.bfloat16().to(dtype)
        ends.append(pipeline(generator=seeded(), num_inference_steps=6, **options).images)
    assert [end.dtype for end in ends] == [torch.bfloat16, torch.float32]
    # the network rounds to 2^-9 what it is shown and what it puts out; measured: 1.7 of that at worst
    assert gap(*ends) < 4 * 2**-9


def test_diffusers_own_schedulers_agree():
    # of 5 steps, since theirs steps to t - 1000 // N, which is the next of its own timesteps where N divides 1000
    theirs = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    ours = DiffusersScheduler("ddim", theirs)
    pictures = [unconditional(s)(2, seeded(), 5, output_type="np").images for s in (theirs, ours)]
    assert gap(*map(torch.from_numpy, pictures)) < TOLERANCE
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    options = {"prompt_embeds": POSITIVE, "pooled_prompt_embeds": POOLED, "height": 8, "width": 8}
    ends = []
    for scheduler in (theirs, DiffusersScheduler("euler", theirs)):
        options["generator"] = seeded()
        ends.append(flux(scheduler)(num_inference_steps=6, output_type="latent", **options).images)
    assert gap(*ends) < TOLERANCE
