"""Arrays under diffusers' and transformers' names as a file of Stable Diffusion's original code has them.

Written from that code's module lists (input_blocks, middle_block, output_blocks), the other way from the reader under
test; diffusers' own reader of such files takes it, which the parity tests show.
"""

import re

import numpy as np
from safetensors.numpy import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name, blocks, attends):
    """attends says whether each level of the encoder has attention."""
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        way, level, kind, place, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = level * (blocks + 1) + (way == "down")
        side = {"down": "input_blocks", "up": "output_blocks"}[way]
        match kind:
            case "resnets":
                layer, leaf = rest.rsplit(".", 1)
                return f"{side}.{first + place}.0.{RESNET[layer]}.{leaf}"
            case "attentions":
                return f"{side}.{first + place}.1.{rest}"
            case "downsamplers":
                return f"{side}.{first + blocks}.0.op.{rest.removeprefix('conv.')}"
        return f"{side}.{first + blocks}.{1 + attends[::-1][level]}.{rest}"
    for theirs, original in OUTER.items():
        if name.startswith(f"{theirs}."):
            rest = name.removeprefix(f"{theirs}.")
            if "resnets" in theirs:
                layer, leaf = rest.rsplit(".", 1)
                rest = f"{RESNET[layer]}.{leaf}"
            return f"{original}.{rest}"
    raise AssertionError(name)


def autoencoder_name(name, levels):
    if found := re.match(r"(\w+)\.(down|up)_blocks\.(\d+)\.(resnets|\w+samplers)\.(\d+)\.(.*)", name):
        side, way, level, kind, place, rest = found.groups()
        level = int(level) if way == "down" else levels - 1 - int(level)
        if kind == "resnets":
            return f"{side}.{way}.{level}.block.{place}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{side}.{way}.{level}.{way}sample.{rest}"
    if found := re.match(r"(\w+)\.mid_block\.attentions\.0\.(.*)\.(\w+)$", name):
        return f"{found[1]}.mid.attn_1.{VAE_ATTENTION[found[2]]}.{found[3]}"
    if found := re.match(r"(\w+)\.mid_block\.resnets\.(\d)\.(.*)", name):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
    return name.replace("conv_norm_out", "norm_out")


def open_clip(state, layers, more=1):
    """A `CLIPTextModel` as OpenCLIP's, with more layers at its end, which nothing is to read."""
    bare = {name.removeprefix("text_model."): value for name, value in state.items()}
    found = {
        "token_embedding.weight": bare["embeddings.token_embedding.weight"],
        "positional_embedding": bare["embeddings.position_embedding.weight"],
        "ln_final.weight": bare["final_layer_norm.weight"],
        "ln_final.bias": bare["final_layer_norm.bias"],
        "text_projection": state.get(
            "text_projection.weight", np.eye(len(bare["final_layer_norm.bias"]), dtype="f4")
        ).T,
        "logit_scale": np.ones((), np.float32),
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    parts |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(layers + more):
        where, block = f"encoder.layers.{min(i, layers - 1)}", f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            joined = [bare[f"{where}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"{block}.attn.in_proj_{leaf}"] = np.concatenate(joined) + (i == layers)
            for theirs, original in parts.items():
                found[f"{block}.{original}.{leaf}"] = bare[f"{where}.{theirs}.{leaf}"] + (i == layers)
    return found


def networks(unet, vae, blocks, attends):
    """A U-Net and an autoencoder as they stand in a file."""
    levels = 1 + max(int(found[1]) for found in map(re.compile(r"encoder\.down_blocks\.(\d+)").match, vae) if found)
    state = {f"model.diffusion_model.{unet_name(n, blocks, attends)}": v for n, v in unet.items()}
    for name, value in vae.items():
        dense = ".attentions." in name and name.endswith("weight") and value.ndim == 2
        state[f"first_stage_model.{autoencoder_name(name, levels)}"] = value[:, :, None, None] if dense else value
    return state


def write_xl(file, unet, vae, first, second, *, blocks, attends, layers):
    """The file of Stable Diffusion XL's four state dicts."""
    state = networks(unet, vae, blocks, attends)
    bare = {name.removeprefix("text_model."): value for name, value in first.items()}
    state |= {f"conditioner.embedders.0.transformer.text_model.{name}": value for name, value in bare.items()}
    positions = len(bare["embeddings.position_embedding.weight"])
    state["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = np.arange(positions)[None]
    found = open_clip(second, layers, more=0)
    state |= {f"conditioner.embedders.1.model.{name}": value for name, value in found.items()}
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, file)
    return file


def write(file, unet, vae, text, *, second, blocks, attends, layers):
    """The file of three state dicts; second says whether it is of Stable Diffusion 2."""
    state = networks(unet, vae, blocks, attends)
    if second:
        state |= {f"cond_stage_model.model.{name}": value for name, value in open_clip(text, layers).items()}
    else:
        bare = {name.removeprefix("text_model."): value for name, value in text.items()}
        state |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in bare.items()}
        positions = len(bare["embeddings.position_embedding.weight"])
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(positions)[None]
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    state |= {"betas": betas.astype(np.float32), "alphas_cumprod": np.cumprod(1 - betas).astype(np.float32)}
    state["model_ema.decay"] = np.ones((), np.float32)
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, file)
    return file
