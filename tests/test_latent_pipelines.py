"""Pipelines for texts and classes in latent space: images are those of diffusers' own pipelines."""

import json
import warnings

import diffusers
import pytest
import torch
from latent_folders import LEADING, class_pipeline, text_pipeline

import scoresde
from scoresde import InputError
from scoresde.interop.diffusers_folder import own_grid, own_solver
from solvers import SeededNoise

TOLERANCE = 1e-4  # float32, of the largest number; measured: 2e-6 at worst
STEPS, SCALE, SEEDS = 5, 7.0, (3, 5)
PROMPTS, NEGATIVE = ["a dog with a party hat", "a hat"], "cat, dog"
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **LEADING),
    "euler": diffusers.EulerDiscreteScheduler(**LEADING),
    "heun": diffusers.HeunDiscreteScheduler(**LEADING),
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(**LEADING),
    "uni_pc": diffusers.UniPCMultistepScheduler(**LEADING),
    "plms": diffusers.PNDMScheduler(skip_prk_steps=True, **LEADING),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A StableDiffusionPipeline of diffusers."""
    return text_pipeline(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return scoresde.load(f"diffusers:{folder}")


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes")
    class_pipeline().save_pretrained(path)
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**index, "id2label": {"207": "golden retriever, dog"}}))
    return path


def noise(seeds=SEEDS, shape=(4, 8, 8)):
    """The draws with which ``sample`` starts."""
    return SeededNoise(seeds, shape).initial()


def gap(ours, other):
    return float((ours - other).abs().max() / other.abs().max())


def run(pipeline, scale=SCALE, after=None, **options):
    """Images in -1..1 and latents of a StableDiffusionPipeline; ``after`` is called with the index of each step."""
    latents = []

    def kept(pipeline, step, timestep, values):
        latents[:] = [values["latents"]]
        if after is not None:
            after(step)
        return values

    images = pipeline(
        PROMPTS, guidance_scale=scale, latents=noise(), num_inference_steps=STEPS, output_type="pt",
        callback_on_step_end=kept, **options,
    ).images  # fmt: skip
    return 2 * images - 1, latents[0]


@pytest.fixture
def rows(pipe):
    """The rows that the network was evaluated for, one number for each call."""
    counted = []
    handle = pipe.denoiser.network.register_forward_hook(lambda module, args, out: counted.append(len(args[0])))
    yield counted
    handle.remove()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_prompt_gives_the_image_of_diffusers_pipeline(theirs, folder, tmp_path, monkeypatch, name):
    scheduler = SCHEDULERS[name]
    for part in folder.iterdir():
        if part.name != "scheduler":
            (tmp_path / part.name).symlink_to(part)
    scheduler.save_pretrained(tmp_path / "scheduler")
    pipe = scoresde.load(f"diffusers:{tmp_path}")
    monkeypatch.setattr(theirs, "scheduler", scheduler)
    images, latents = run(theirs, negative_prompt=[NEGATIVE] * 2)
    ours = pipe.sample(
        PROMPTS, SEEDS, own_solver(tmp_path), own_grid(tmp_path), STEPS, guidance=f"cfg(scale={SCALE})",
        negative_prompt=NEGATIVE,
    )  # fmt: skip
    assert ours.solver.startswith(name)
    assert gap(ours.latents, latents) < TOLERANCE
    assert gap(ours.x, images) < TOLERANCE
    assert float(ours.x.std()) > 0.1  # no grey images, nor only black and white ones
    assert float((ours.x.abs() < 0.99).float().mean()) > 0.5


def test_without_a_negative_prompt_the_empty_text_takes_its_place(theirs, pipe, rows):
    images, latents = run(theirs)
    ours = pipe.sample(PROMPTS, SEEDS, "ddim", "leading(steps_offset=1)", STEPS, guidance=f"cfg(scale={SCALE})")
    assert gap(ours.latents, latents) < TOLERANCE
    assert gap(ours.x, images) < TOLERANCE
    assert sum(rows) == 2 * STEPS * len(SEEDS)
    # other prompts and scales are seen in the image, a thousand times the tolerance and more
    for options in ({"negative_prompt": NEGATIVE, "guidance": f"cfg(scale={SCALE})"}, {"guidance": "cfg(scale=3)"}, {}):
        other = pipe.sample(PROMPTS, SEEDS, "ddim", "leading(steps_offset=1)", STEPS, **options)
        assert gap(other.latents, latents) > 1e-3


def test_each_sample_has_its_own_negative_prompt(theirs, pipe):
    given = [NEGATIVE, "hat"]
    images, _ = run(theirs, negative_prompt=given)
    options = {"steps": STEPS, "guidance": f"negative(scale={SCALE})", "batch_size": 1}
    ours = pipe.sample(PROMPTS, SEEDS, "ddim", "leading(steps_offset=1)", negative_prompt=given, **options)
    assert gap(ours.x, images) < TOLERANCE
    options = {"seeds": 2, "negative_prompt": given, "guidance": "cfg(scale=3)"}
    with pytest.raises(InputError, match=r"cfg\(scale=3.*takes one negative prompt for all seeds; guidance='negative"):
        pipe.sample("a", **options)


@pytest.mark.parametrize("guidance", [None, "cfg(scale=1)"])
def test_no_guidance_evaluates_only_the_prompt(theirs, pipe, rows, guidance):
    images, latents = run(theirs, scale=1.0)
    ours = pipe.sample(PROMPTS, SEEDS, "ddim", "leading(steps_offset=1)", STEPS, guidance=guidance)
    assert rows == [len(SEEDS)] * STEPS
    assert gap(ours.latents, latents) < TOLERANCE
    assert gap(ours.x, images) < TOLERANCE


def test_guidance_in_an_interval_of_noise_levels(theirs, pipe, rows, monkeypatch):
    nodes = scoresde.plan(pipe.denoiser, "ddim", "leading(steps_offset=1)", STEPS).nodes
    guided = [1 <= i < 4 for i in range(STEPS)]  # the steps between the nodes at the ends of the interval
    # the property is read at every step; at a scale of 1 + 1e-9 their sum is the prompt's prediction
    monkeypatch.setattr(type(theirs), "guidance_scale", property(lambda self: self._guidance_scale))

    def after(step):
        theirs._guidance_scale = SCALE if step + 1 < STEPS and guided[step + 1] else 1 + 1e-9

    latents = run(theirs, scale=1 + 1e-9, after=after)[1]
    interval = f"[{nodes[4].ratio!r}, {nodes[1].ratio!r}]"
    spec = f"cfg(scale={SCALE}, interval={interval})"
    ours = pipe.sample(PROMPTS, SEEDS, "ddim", "leading(steps_offset=1)", STEPS, guidance=spec)
    assert gap(ours.latents, latents) < TOLERANCE
    assert sum(rows) == (STEPS + sum(guided)) * len(SEEDS)


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "rk45(rtol=0.1, atol=0.1)", "er_sde"])
def test_other_solvers_run_it(pipe, solver):
    budget = {} if solver.startswith("rk45") else {"steps": 4}
    both = pipe.sample("a dog", (0, 1), solver, guidance="cfg(scale=3)", **budget)
    alone = pipe.sample("a dog", [1], solver, guidance="cfg(scale=3)", **budget)
    assert tuple(both.x.shape) == (2, 3, 16, 16)
    assert float(both.x.abs().max()) <= 1
    # convolutions round differently in batches of another size; measured: 1e-6
    assert gap(both.latents[1:], alone.latents) < TOLERANCE
    assert both.nfe_per_sample[1] == alone.nfe_per_sample[0]


def test_a_sample_is_decoded_and_described(pipe, theirs):
    sample = pipe.sample("a dog", 2, nfe=4)
    with torch.no_grad():
        images = theirs.vae.decode(sample.latents / theirs.vae.config.scaling_factor).sample
    assert gap(sample.x, images.clamp(-1, 1)) < TOLERANCE
    assert (sample.nfe, sample.seeds, sample.x.dtype) == (4, (0, 1), torch.float32)
    assert "texts of at most 16 tokens, latents (4, 8, 8)" in str(pipe)
    wide = pipe.sample("a dog", size=(16, 24), nfe=2)
    assert (tuple(wide.x.shape), tuple(wide.latents.shape)) == ((1, 3, 16, 24), (1, 4, 8, 12))


def test_latents_and_images(pipe, theirs, monkeypatch):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = {**pipe.vae.config, "shift_factor": 0.25, "scaling_factor": 0.5}
    monkeypatch.setattr(pipe.vae, "_internal_dict", type(pipe.vae.config)(config))
    with torch.no_grad():
        mean = theirs.vae.encode(images).latent_dist.mean
        latents = pipe.encode_images(images)
        assert gap(latents, (mean - 0.25) * 0.5) < 1e-6
        assert gap(pipe.decode(latents), theirs.vae.decode(mean).sample) < 1e-5
    # what posterior sampling of images needs
    latents.requires_grad_()
    (slope,) = torch.autograd.grad(pipe.decode(latents).square().sum(), latents)
    assert float(slope.abs().min(0).values.max()) > 0


def test_conditions_serve_the_denoiser(pipe):
    condition = pipe.encode_text(PROMPTS)
    assert {name: tuple(value.shape) for name, value in condition.items()} == {"encoder_hidden_states": (2, 16, 8)}
    ours = pipe.sample(PROMPTS, SEEDS, "ddim", steps=3)
    same = scoresde.sample(pipe.denoiser, None, SEEDS, "ddim", steps=3, condition=condition)
    assert torch.equal(ours.latents, same.x)
    with pytest.raises(InputError, match="the network needs the condition 'encoder_hidden_states'"):
        scoresde.sample(pipe.denoiser, None, SEEDS, "ddim", steps=3)
    twice = pipe.encode_text([*PROMPTS, PROMPTS[0]])["encoder_hidden_states"]
    assert torch.equal(twice, condition["encoder_hidden_states"][[0, 1, 0]])


def test_the_denoiser_knows_the_empty_text(pipe):
    x, node = noise(), pipe.denoiser.sde(0.5)
    guided = scoresde.guide(pipe.denoiser, "cfg(scale=7)")
    found = guided.predict(x, node, **pipe.encode_text(PROMPTS)).x0
    c, u = (pipe.denoiser.predict(x, node, **pipe.encode_text(texts)).x0 for texts in (PROMPTS, ["", ""]))
    assert torch.allclose(found, u + 7 * (c - u), rtol=0, atol=1e-5 * float(found.abs().max()))  # float32
    assert float((c - u).abs().max()) > 1e-3 * float(c.abs().max())


def test_half_precision(folder):
    pipe = scoresde.load(f"diffusers:{folder}")
    wide = pipe.sample(PROMPTS, SEEDS, "ddim", steps=4)
    narrow = pipe.to("cpu", "bfloat16").sample(PROMPTS, SEEDS, "ddim", steps=4)
    assert pipe.encode_text("a")["encoder_hidden_states"].dtype == torch.bfloat16
    assert narrow.x.dtype == narrow.latents.dtype == torch.float32
    # weights and activations of 8 bits in four steps; measured: 0.6 of this
    assert 0 < gap(narrow.latents, wide.latents) < 8 * 2**-9


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_classes_give_the_images_of_diffusers_pipeline(dit, tmp_path, name):
    kinds = {
        "ddim": diffusers.DDIMScheduler(clip_sample=False),
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing"),
    }
    for part in dit.iterdir():
        if part.name != "scheduler":
            (tmp_path / part.name).symlink_to(part)
    kinds[name].save_pretrained(tmp_path / "scheduler")
    pipe, theirs = scoresde.load(f"diffusers:{tmp_path}"), class_pipeline(kinds[name])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    images = theirs(
        [207, 3], SCALE, torch.Generator().manual_seed(7), num_inference_steps=STEPS, output_type="pt"
    ).images  # fmt: skip
    options = {"solver": own_solver(tmp_path), "grid": own_grid(tmp_path), "steps": STEPS, "x_init": x}
    ours = pipe.sample(["golden retriever", 3], guidance=f"cfg(scale={SCALE})", **options)
    assert gap(ours.x, 2 * images - 1) < TOLERANCE
    assert float(ours.x.std()) > 0.1
    assert gap(pipe.sample([207, 4], guidance=f"cfg(scale={SCALE})", **options).latents, ours.latents) > 1e-3
    assert pipe.denoiser.learned_variance
    assert pipe.null["class_labels"].tolist() == [1000]
    assert pipe.encode_text(torch.tensor([5, 6]))["class_labels"].tolist() == [5, 6]


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(pipe):
    with pytest.warns(UserWarning, match="has 18 tokens with its start and end, the text encoder reads 16.*'hat dog'"):
        cut = pipe.encode_text("dog " * 14 + "hat dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = pipe.encode_text("dog " * 14)
    assert torch.equal(cut["encoder_hidden_states"], whole["encoder_hidden_states"])


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (["a", "b"], {"seeds": range(3)}, "there are 2 prompts for 3 seeds; give one, or one per seed"),
        (["a"], {"seeds": range(3)}, "there are 1 prompts for 3 seeds"),
        ([], {}, "there are no prompts"),
        (7, {}, "a prompt of this pipeline is a text, got 7"),
        (["a", None], {}, "a prompt of this pipeline is a text, got None"),
        (None, {}, "a prompt is a text or a class, or a list of them, got None"),
        ("a", {"negative_prompt": "b"}, r"negative_prompt needs a guidance, such as guidance='cfg\(scale=7\)'"),
        ("a", {"size": 16}, "the height and width of images are multiples of 2, got 16"),
        ("a", {"size": (16, 17)}, "the height and width of images are multiples of 2"),
        ("a", {"solver": "dpmp_2m"}, "did you mean dpmpp_2m"),
        (["a"], {"negative_prompt": ["b", "c"], "guidance": "cfg(scale=3)"}, "2 negative prompts for 1 seeds"),
    ],
)
def test_invalid_input_is_one_line(pipe, prompt, options, message):
    with pytest.raises(InputError, match=message) as error:
        pipe.sample(prompt, **options)
    assert "\n" not in str(error.value)


def test_invalid_images_and_classes(pipe, dit):
    for images, message in (
        (torch.zeros(1, 3, 15, 16), "multiples of 2"),
        (torch.zeros(3, 16, 16), r"images must be floats \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "must be floats"),
        (torch.full((1, 3, 16, 16), 255.0), "images must range from -1 to 1, got 255 to 255"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.encode_images(images)
    classes = scoresde.load(f"diffusers:{dit}")
    for prompt, message in (
        (1000, "a prompt of this pipeline is a class, 0 to 999 or a name, got 1000"),
        ("golden retreiver", "did you mean golden retriever"),
        (True, "is a class, 0 to 999"),
    ):
        with pytest.raises(InputError, match=message):
            classes.sample(prompt, nfe=2)
    with pytest.raises(InputError, match=r"the network makes images of size \(16, 16\) only, got \(32, 16\)"):
        classes.sample(3, size=(32, 16), nfe=2)
