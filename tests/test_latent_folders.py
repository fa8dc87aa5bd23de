"""Folders of pipelines for texts and classes: what they may contain, and one line for everything else."""

import json
import shutil
import sys
import warnings

import diffusers
import pytest
import torch
from latent_folders import CHAIN, class_pipeline, text_encoder, text_pipeline, unet
from safetensors.torch import load_file, save_file

import scoresde
from scoresde import InputError
from scoresde.interop.diffusers_folder import own_grid
from scoresde.paths.chain_paths import ChainSDE


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    text_pipeline(tmp_path_factory.mktemp("words")).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(saved, tmp_path / "pipe")


def load(folder):
    return scoresde.load(f"diffusers:{folder}")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, message):
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_what_a_folder_says(folder):
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, **CHAIN)
    scheduler.save_pretrained(folder / "scheduler")  # clip_sample is True, steps_offset 0
    pipe = load(folder)
    model = pipe.denoiser
    assert model.sde == ChainSDE("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True)
    assert (model.predicts, model.label, model.shape) == ("v", "index", (4, 8, 8))
    assert model.clip is None  # as in diffusers: latents have no range
    assert own_grid(folder) == "leading(steps_offset=1)"  # as StableDiffusionPipeline changes it
    networks = (model.network, pipe.vae, pipe.prompts.encoder)
    assert not any(module.training for network in networks for module in network.modules())
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet"])
def test_a_missing_part(folder, part):
    shutil.rmtree(folder / part)
    needed = "a StableDiffusionPipeline needs tokenizer, text_encoder, unet, vae, scheduler"
    refused(folder, f"pipe has no {part}; {needed}")
    (folder / part).mkdir()
    refused(folder, rf"{part}' has neither|{part}.* has neither tokenizer.json nor vocab.json|cannot read the config")
    edit(folder / "model_index.json", **{part: [None, None]})
    refused(folder, f"pipe has no {part}; {needed}")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIPTextModel"]},
            r"is a pipeline with several text encoders \(StableDiffusionXLPipeline\), which load does not support; it "
            "supports DDPMPipeline, .* and DiTPipeline",
        ),
        (
            {"_class_name": "StableDiffusion3Pipeline", "text_encoder_2": ["transformers", "CLIPTextModel"]},
            r"several text encoders \(StableDiffusion3Pipeline\)",
        ),
        (
            {"_class_name": "FluxPipeline", "text_encoder_2": ["transformers", "T5EncoderModel"]},
            r"several text encoders \(FluxPipeline\)",
        ),
        ({"_class_name": "PixArtAlphaPipeline"}, r"conditioned on text \(PixArtAlphaPipeline\), which load does not"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "is a T5EncoderModel, load supports CLIPTextModel"),
        ({"text_encoder": [["x"]]}, r"text encoder is a \[\], load supports CLIPTextModel"),
    ],
)
def test_other_pipelines(folder, index, message):
    edit(folder / "model_index.json", **index)
    refused(folder, message)


def test_the_safety_checker_is_ignored_once_and_said_so(folder):
    edit(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(folder).sample("a dog", nfe=2)
    told = [str(one.message) for one in caught if "safety" in str(one.message)]
    assert told == [f"{folder}: the safety checker is not used, so images are not screened"]


def test_without_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(folder, r'pipe: reading texts needs transformers: pip install "scoresde\[text\]"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_cond_proj_dim": 4}, "a UNet with time_cond_proj_dim needs more than a text"),
        ({"num_class_embeds": 3}, "a UNet with num_class_embeds needs more than a text"),
        ({"in_channels": 9}, "the network takes 9 channels, latents of the autoencoder have 4"),
        ({"out_channels": 8}, "the network returns 8 channels for 4"),
        ({"cross_attention_dim": 12}, "attends to tokens of width 12, the text encoder returns 8"),
    ],
)
def test_networks_that_need_something_else(folder, options, message):
    unet(**options).save_pretrained(folder / "unet")
    refused(folder, message)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("text_encoder/config.json", {"hidden_size": 10**6}, "the config describes .* weights, and the files contain"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "more layers than there are weights"),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, "weights do not fit the config: .*encoder.layers.1"),
        ("text_encoder/config.json", {"hidden_size": "x"}, "is not a pipeline that can be read"),
        ("text_encoder/config.json", {"quantization_config": {}}, "quantised weights"),
        ("text_encoder/config.json", {"vocab_size": 50}, "weights do not fit|tokens, the text encoder 50"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "is a AutoencoderTiny, which load does not support"),
        ("vae/config.json", {"layers_per_block": 10**9}, "more layers than there are weights"),
        ("vae/config.json", {"block_out_channels": [10**6, 10**6]}, "the config describes .* weights, and the files"),
        ("unet/config.json", {"transformer_layers_per_block": [[10**9]]}, "more layers than there are weights"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding=True has no counterpart here"),
        ("tokenizer/tokenizer.json", {"model": 3}, "is not a pipeline that can be read"),
    ],
)
def test_a_hostile_folder_is_one_line(folder, file, changes, message):
    edit(folder / file, **changes)
    refused(folder, message)


def test_pickles_are_not_read(folder):
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({}, folder / "text_encoder" / "pytorch_model.bin")
    refused(folder, r"only pytorch_model\.bin, which could run code when read")


def test_entries_that_name_code_are_not_read(folder):
    # transformers would fetch kernels of that name, import the class, or load the adapter that the file names
    same = load(folder).encode_text("a dog")["encoder_hidden_states"]
    edit(
        folder / "text_encoder" / "config.json",
        attn_implementation="stranger/kernels",
        auto_map={"AutoModel": "stranger.Mine"},
        torch_dtype="float16",
    )
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "stranger/model"}')
    edit(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["stranger.Mine", None]})
    (folder / "tokenizer" / "stranger.py").write_text("raise RuntimeError('run')")
    assert torch.equal(load(folder).encode_text("a dog")["encoder_hidden_states"], same)


def test_names_and_variants_of_weights(folder):
    first = load(folder).sample("a dog", nfe=3).x
    # those of other versions of transformers, with a table that is always 0, 1, 2, ...
    path = folder / "text_encoder" / "model.safetensors"
    old = {f"text_model.{name}": value for name, value in load_file(path).items()}
    save_file({**old, "text_model.embeddings.position_ids": torch.arange(16)[None]}, path)
    # a folder with weights in 16 bits only
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path.with_suffix(".fp16.safetensors"))
    path.unlink()
    pipe = load(folder)
    assert pipe.vae.dtype == torch.float32
    # half precision rounds to 2^-11; measured: 0.2 of this
    assert 0 < float((pipe.sample("a dog", nfe=3).x - first).abs().max()) < 8 * 2**-11


def test_the_tokenizer_must_fit_the_encoder(folder):
    text_encoder(50).save_pretrained(folder / "text_encoder")
    refused(folder, r"the tokenizer has \d+ tokens, the text encoder 50")


def test_loading_leaves_no_trace(folder, capfd):
    load(folder)  # imports what it needs
    capfd.readouterr()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_a_pipeline_of_classes(tmp_path):
    class_pipeline(diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    edit(tmp_path / "model_index.json", id2label={"0": "tench, Tinca tinca", "207": "golden retriever"})
    pipe = load(tmp_path)
    assert pipe.denoiser.clip is None
    assert str(pipe).startswith("LatentPipeline: 1000 classes, latents (4, 8, 8)")
    assert pipe.prompts.names == {"tench": 0, "Tinca tinca": 0, "golden retriever": 207}
    shutil.rmtree(tmp_path / "transformer")
    refused(tmp_path, "has no transformer; a DiTPipeline needs transformer, vae, scheduler")
