"""A Stable Diffusion pipeline of random weights as diffusers saves one, made without torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from diffusion_jax.interop import diffusers_autoencoder, diffusers_unet
from diffusion_jax.interop.diffusers_options import autoencoder, unet
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.unet import UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
WIDTH, LENGTH = 16, 12
WORDS = ["<|startoftext|>", "<|endoftext|>", *"abc", "a</w>", "b</w>", "c</w>"]
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "sample_size": 16,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
}
TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}


def random(net, *inputs):
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: 0.2 * rng.standard_normal(a.shape, np.float32), shapes)


def text_state(width=WIDTH):
    """The arrays of a CLIP text encoder of this width."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    inner, layer = TEXT["intermediate_size"], "encoder.layers.0."
    state = {
        "embeddings.token_embedding.weight": normal(len(WORDS), width),
        "embeddings.position_embedding.weight": normal(LENGTH, width),
    }
    dense = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    dense |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for name, shape in dense.items():
        state |= {f"{layer}{name}.weight": 0.2 * normal(*shape), f"{layer}{name}.bias": normal(shape[0])}
    for name in (f"{layer}layer_norm1", f"{layer}layer_norm2", "final_layer_norm"):
        state |= {f"{name}.weight": normal(width), f"{name}.bias": normal(width)}
    return {f"text_model.{name}": value for name, value in state.items()}


def write(root):
    """The folder root of such a pipeline."""
    root.mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", **{name: ["diffusers", kind] for name, kind in PARTS.items()}}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    configs = {"unet/config": UNET, "vae/config": VAE, "text_encoder/config": TEXT}
    configs |= {"model_index": index, "scheduler/scheduler_config": SCHEDULER}
    configs |= {"tokenizer/vocab": {word: i for i, word in enumerate(WORDS)}}
    configs |= {"tokenizer/tokenizer_config": {"model_max_length": LENGTH}}
    for name, content in configs.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps(content))
    (root / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    found = unet(UNET, "")
    net = UNet(found.out_channels, text_features=WIDTH, **found.options)
    params = random(net, jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), {"text": jnp.zeros((1, 3, WIDTH))})
    save_file(diffusers_unet.to_diffusers(params), root / "unet" / WEIGHTS)
    coder = random(AutoencoderKL(**autoencoder(VAE, "").options), jnp.zeros((1, 16, 16, 3)))
    save_file(diffusers_autoencoder.to_diffusers(coder), root / "vae" / WEIGHTS)
    save_file(text_state(), root / "text_encoder/model.safetensors")
    return root
