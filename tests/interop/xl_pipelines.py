"""Tiny random pipelines of Stable Diffusion XL, as diffusers saves them, and the images that both sides draw."""

import json

import diffusers_folders as folders
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.models.sampling import START
from diffusion_jax.runs.sample.conditioning import SampleRequest, conditions
from diffusion_jax.runs.workdir.restored import restore

STEPS, GUIDANCE, NUM = 5, 5.0, 2
PROMPTS = ["a red cat!", "sea ! at night"]  # the second tokenizer pads with "!", which it then reads as that token
NOISE = np.random.default_rng(0).standard_normal((NUM, 8, 8, 4)).astype(np.float32)
TOKENS = 16

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": 16 + 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 12 + 6 * 8,
    "use_linear_projection": True,
    "norm_num_groups": 4,
}


def scheduler(kind="EulerDiscreteScheduler", **options):
    import diffusers

    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    more = {"clip_sample": False, "set_alpha_to_one": False} if kind == "DDIMScheduler" else {}
    return getattr(diffusers, kind)(**folders.BETAS, **(leading | more | options))


def tokenizer(folder, pad):
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = f"{folders.LETTERS}!."
    words = ["!", folders.BOS, folders.EOS, *letters[:-2], ".", *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"bos_token": folders.BOS, "eos_token": folders.EOS, "unk_token": folders.EOS, "pad_token": pad}
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS, **ends)


def text_config(width, **options):
    from transformers import CLIPTextConfig

    sizes = {"hidden_size": width, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return CLIPTextConfig(**({"vocab_size": 60, "max_position_embeddings": TOKENS} | sizes | ids | options))


def pipeline(folder, plan, *, unet=UNET, vae=None, texts=(16, 24), zeros=True, heads=({}, {})):
    """A `StableDiffusionXLPipeline` with the scheduler plan, saved in folder."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextModel(text_config(texts[0], hidden_act="quick_gelu", **heads[0]))
    second = text_config(texts[1], hidden_act="gelu", projection_dim=12, **heads[1])
    pipe = StableDiffusionXLPipeline(
        vae=vae or folders.autoencoder(),
        text_encoder=folders.randomized(first, 1),
        text_encoder_2=folders.randomized(CLIPTextModelWithProjection(second), 3),
        tokenizer=tokenizer(folder / "words", folders.EOS),
        tokenizer_2=tokenizer(folder / "words", "!"),
        unet=folders.randomized(UNet2DConditionModel(**unet), 2),
        scheduler=plan,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def theirs(pipe, negative=None, noise=NOISE, **call):
    """diffusers' images [N, H, W, C] in [0, 1]."""
    import torch

    latents = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"} | call
    away = None if negative is None else [negative] * len(noise)
    return pipe(PROMPTS, latents=latents, negative_prompt=away, **options).images


def ours(workdir, negative=None, noise=NOISE, values=None, **overrides):
    """Our images in [0, 1] from the workdir."""
    trained = restore(workdir, step=None, average=True, overrides={"steps": STEPS, **overrides})
    seeds = np.arange(len(noise), dtype=np.int32)
    request = SampleRequest(prompts=PROMPTS, negative_prompt=negative, values=values or {})
    cond = conditions(request, trained, seeds) | {START: jnp.asarray(noise)}
    program = experiment.sample_program(trained.model, trained.how, trained.mesh)
    return np.clip(np.asarray(program(trained.params, trained.pretrained, seeds, cond)) / 2 + 0.5, 0, 1)
