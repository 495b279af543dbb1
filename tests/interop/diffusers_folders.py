"""Tiny random pipelines that diffusers itself saves, and the images that it draws with them."""

import json

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPT = "a red cat"


def randomized(model, seed=0):
    """Every parameter moved, none zero or one; in eval mode."""
    import torch

    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.1 if "norm" in name or name.endswith("bias") else 0.02
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return model.eval()


def autoencoder():
    from diffusers import AutoencoderKL

    return randomized(
        AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.7,
        )
    )


def tokenizer(folder):
    """CLIP's tokenizer of single letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = [BOS, EOS, *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    options = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=20, **options)


def stable_diffusion(folder, version, scheduler):
    """A `StableDiffusionPipeline` as 1.x or 2.x have it, 8 x 8 latents, saved in folder."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_act="gelu" if version == 2 else "quick_gelu",
    )
    options = (
        {"attention_head_dim": 2} if version == 1 else {"attention_head_dim": [1, 2], "use_linear_projection": True}
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=4,
        **options,
    )
    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=randomized(CLIPTextModel(text), 1),
        tokenizer=tokenizer(folder / "words"),
        unet=randomized(unet, 2),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def unconditional(folder, kind, scheduler):
    """A `DDPMPipeline` or `DDIMPipeline` of 8 x 8 images, saved in folder."""
    import diffusers

    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=None,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )
    pipe = getattr(diffusers, kind)(unet=randomized(unet, 2), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def draw(pipe, noise, *, steps, guidance):
    """diffusers' images [N, H, W, C] in [0, 1] of PROMPT, from noise [N, h, w, C]."""
    import torch

    latents = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
    return pipe(
        [PROMPT] * len(noise), latents=latents, num_inference_steps=steps, guidance_scale=guidance, output_type="np"
    ).images
