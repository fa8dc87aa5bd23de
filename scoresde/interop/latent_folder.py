"""Folders of pipelines in the latent space of an autoencoder: a network, its prompts, and the autoencoder.

A StableDiffusionPipeline is a UNet that attends to the tokens of a text, with CLIP's text encoder; a DiTPipeline is a
transformer with classes. Reading texts needs transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from solvers import InputError
from solvers.libraries import library
from solvers.noise.seeded import global_seed

from ..io.array_files import read_tensors
from ..models.denoiser import Denoiser
from .diffusers_config import Reading
from .diffusers_parts import config_file, has, read_network, refuse_claims, weights_in
from .latent_pipeline import LatentPipeline
from .prompts import Classes, Texts

TEXT = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
CLASSES = ("DiTPipeline",)
PIPELINES = (*TEXT, *CLASSES)
NEEDED = {
    **dict.fromkeys(TEXT, ("tokenizer", "text_encoder", "unet", "vae", "scheduler")),
    **dict.fromkeys(CLASSES, ("transformer", "vae", "scheduler")),
}
# inputs of a UNet other than a text, which a pipeline of the classes above does not pass
_OTHER_INPUTS = (
    *("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type"),
    *("time_cond_proj_dim",),
)
# entries of a text encoder's config that describe its network; others may name code
_TEXT_ENTRIES = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"),
)
_PREFIX = "text_model."  # of the names of weights, in files of some versions of transformers


def changed(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a scheduler's config that a pipeline of this class does not use as they are.

    Latents are not limited to a range, so x0 is not clipped. StableDiffusionPipeline sets ``steps_offset`` to 1.
    """
    found: dict[str, Any] = {}
    if name in PIPELINES and config.get("clip_sample"):
        found["clip_sample"] = False
    if name in TEXT and "steps_offset" in config:
        found["steps_offset"] = 1
    return found


def read(folder: Path, index: Mapping[str, Any], reading: Reading) -> LatentPipeline:
    """The pipeline of a folder.

    Args:
        folder: the pipeline's folder.
        index: its index, of a class in ``PIPELINES``.
        reading: the path, output and time label of its network.

    Raises:
        InputError: a part is missing, is not supported or does not fit the others; transformers is not installed.
    """
    name = index["_class_name"]
    needed = NEEDED[name]
    if missing := [part for part in needed if not (has(index, part) and (folder / part).is_dir())]:
        raise InputError(f"{folder} has no {missing[0]}; a {name} needs {', '.join(needed)}")
    if has(index, "safety_checker"):
        warnings.warn(f"{folder}: the safety checker is not used, so images are not screened", stacklevel=2)
    vae = read_network(folder / "vae", {"AutoencoderKL": "AutoencoderKL"})
    return (_text if name in TEXT else _classes)(folder, index, reading, vae)


def _text(folder: Path, index: Mapping[str, Any], reading: Reading, vae: Any) -> LatentPipeline:
    texts = _texts(folder, index)
    unet = read_network(folder / "unet", {"UNet2DConditionModel": "UNet2DConditionModel"})
    if others := [key for key in _OTHER_INPUTS if unet.config.get(key) is not None]:
        raise InputError(f"{folder / 'unet'}: a UNet with {others[0]} needs more than a text, which load does not pass")
    width, given = unet.config.cross_attention_dim, texts.condition.shape[1]
    if width != given:
        raise InputError(f"{folder}: the UNet attends to tokens of width {width}, the text encoder returns {given}")
    size = unet.config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    denoiser = _denoiser(folder, unet, vae, reading, texts, sides)
    return LatentPipeline(denoiser, texts, vae)


def _classes(folder: Path, index: Mapping[str, Any], reading: Reading, vae: Any) -> LatentPipeline:
    network = read_network(
        folder / "transformer",
        {"DiTTransformer2DModel": "DiTTransformer2DModel", "Transformer2DModel": "DiTTransformer2DModel"},
    )
    labels, names = index.get("id2label"), {}
    if isinstance(labels, dict):
        names = {one.strip(): int(number) for number, text in labels.items() for one in str(text).split(",")}
    classes = Classes(int(network.config.num_embeds_ada_norm), names, network)
    size = int(network.config.sample_size)
    return LatentPipeline(
        _denoiser(folder, network, vae, reading, classes, (size, size)), classes, vae, resizable=False
    )


def _denoiser(folder: Path, network: Any, vae: Any, reading: Reading, prompts: Texts | Classes, sides: Any) -> Denoiser:
    """The denoiser of latents.

    Raises:
        InputError: the channels of the network are not those of the latents.
    """
    inputs, outputs = int(network.config.in_channels), int(network.config.out_channels)
    channels = int(vae.config.latent_channels)
    if inputs != channels:
        raise InputError(f"{folder}: the network takes {inputs} channels, latents of the autoencoder have {channels}")
    learned = isinstance(prompts, Classes) and outputs == 2 * inputs
    if outputs != inputs and not learned:
        raise InputError(f"{folder}: the network returns {outputs} channels for {inputs}")
    return Denoiser(
        network,
        reading.sde,
        reading.output.name,
        reading.label,
        reading.output.sigma_data,
        learned_variance=learned,
        shape=None if sides is None else (inputs, *map(int, sides)),
        conditions=(prompts.condition,),
        null=prompts.null,
    )


def _texts(folder: Path, index: Mapping[str, Any]) -> Texts:
    """The tokenizer and the text encoder.

    Raises:
        InputError: transformers is not installed; another kind of text encoder; files that are missing or damaged.
    """
    try:
        transformers = library("transformers")
    except ModuleNotFoundError:
        raise InputError(f'{folder}: reading texts needs transformers: pip install "scoresde[text]"') from None
    if (name := index["text_encoder"][1:]) != ["CLIPTextModel"]:
        raise InputError(f"{folder}: the text encoder is a {name[0] if name else name}, load supports CLIPTextModel")
    words = folder / "tokenizer"
    if not ((words / "tokenizer.json").is_file() or (words / "vocab.json").is_file()):
        raise InputError(f"{words} has neither tokenizer.json nor vocab.json")
    encoder = _encoder(folder / "text_encoder", transformers.CLIPTextConfig, transformers.CLIPTextModel)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(words), local_files_only=True)
    if len(tokenizer) > encoder.config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the text encoder {encoder.config.vocab_size}"
        )
    return Texts(tokenizer, encoder, min(tokenizer.model_max_length, encoder.config.max_position_embeddings))


def _encoder(path: Path, config_of: Callable[..., Any], model: Callable[[Any], nn.Module]) -> Any:
    """A text encoder in float32, in evaluation mode, whose weights need no gradient.

    Raises:
        InputError: no weights in safetensors, or weights that do not fit.
    """
    config = config_file(path / "config.json")
    files = weights_in(path, config)
    known = {key: config[key] for key in _TEXT_ENTRIES if key in config}

    def make(entries: Mapping[str, Any]) -> nn.Module:
        return model(config_of(**entries))

    refuse_claims(path, known, files[:1], make)
    chosen = next((file for file in files if file.name == "model.safetensors"), files[0])
    weights, _ = read_tensors(chosen, "weights")
    with global_seed(0):  # its first weights, which are replaced, do not move the generator
        encoder = make(known)
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in encoder.state_dict()) else ""
    renamed = {prefix + name.removeprefix(_PREFIX): value for name, value in weights.items()}
    fitting = {name: value for name, value in renamed.items() if not name.endswith("position_ids")}  # 0, 1, 2, ...
    try:
        encoder.load_state_dict(fitting)
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit the config: {' '.join(str(error).split())[:200]}") from None
    return encoder.eval().requires_grad_(False)
