"""Folders of diffusers' latent pipelines with tiny random networks, as ``save_pretrained`` writes them."""

import json
import string

import diffusers
import torch
import transformers

CHAIN = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LEADING = {**CHAIN, "timestep_spacing": "leading", "steps_offset": 1}
LENGTH = 16  # tokens that the text encoder reads
BLOCKS = {
    **{"layers_per_block": 1, "block_out_channels": (8,), "norm_num_groups": 4, "attention_head_dim": 4},
    **{"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)},
    "cross_attention_dim": 8,
}


def made(cls, *args, **options):
    """A network of random weights, the same every time."""
    torch.manual_seed(0)
    return cls(*args, **options).eval()


def tokenizer(folder):
    """A tokenizer whose words are letters, except for "dog" and "hat"."""
    letters = list(string.ascii_lowercase + string.punctuation)
    tokens = [*letters, *(letter + "</w>" for letter in letters), "do", "dog</w>", "ha", "hat</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\nd o\ndo g</w>\nh a\nha t</w>\n")
    return transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=LENGTH)


def text_encoder(count, width=8):
    config = transformers.CLIPTextConfig(
        vocab_size=count, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=count - 2, eos_token_id=count - 1, pad_token_id=count - 1,
        initializer_factor=30.0,  # so that texts differ
    )  # fmt: skip
    return made(transformers.CLIPTextModel, config)


def unet(**options):
    return made(diffusers.UNet2DConditionModel, sample_size=8, **{**BLOCKS, **options})


def autoencoder():
    return made(
        diffusers.AutoencoderKL,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


def transformer():
    return made(
        diffusers.DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=4,
        sample_size=8,
    )


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_pipeline(folder, scheduler=None):
    """A StableDiffusionPipeline, whose tokenizer's files lie in a folder."""
    words = tokenizer(folder)
    return quiet(
        diffusers.StableDiffusionPipeline(
            vae=autoencoder(), text_encoder=text_encoder(len(words)), tokenizer=words, unet=unet(),
            scheduler=scheduler or diffusers.DDIMScheduler(clip_sample=False, **LEADING),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )
    )  # fmt: skip


def class_pipeline(scheduler=None):
    """A DiTPipeline of ImageNet's classes."""
    return quiet(
        diffusers.DiTPipeline(
            transformer(),
            autoencoder(),
            scheduler or diffusers.DDIMScheduler(clip_sample=False),
        )
    )
