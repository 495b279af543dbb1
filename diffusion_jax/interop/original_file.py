"""One .safetensors file of the original Stable Diffusion code (1.x, 2.x): its options, from the shapes of its arrays.

A file says nothing of itself. What shapes do not tell is as in all files of that kind: 32 groups, 8 heads (1.x) or
heads of 64 channels (2.x), a scaling factor of 0.18215, betas of `scaled_linear`. What a 2.x network predicts differs.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from diffusion_jax.core.schedules import scaled_linear
from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_options import autoencoder, unet
from diffusion_jax.interop.diffusers_pipeline import Pipeline
from diffusion_jax.interop.diffusers_scheduler import PREDICTIONS, scheduler
from diffusion_jax.interop.original_names import (
    AUTOENCODER,
    CLIP,
    LEFT_OUT,
    OPEN_CLIP,
    UNET,
    Source,
    autoencoder_names,
    text_names,
    unet_names,
)

Shapes = Mapping[str, tuple[int, ...]]

SCALING_FACTOR = 0.18215

HEAD = 64
"""Channels of a head of the text encoders, and of 2.x's U-Nets."""

HEADS = 8
"""Heads of 1.x's U-Nets."""

SIDES = {"epsilon": 64, "v_prediction": 96}
"""H and W of the latents that a network of this prediction was trained with; 1.x's are eps."""

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The original code's sampler."""


@dataclasses.dataclass(frozen=True)
class OriginalFile:
    """What a file holds, and where each array of a part stands in it."""

    pipeline: Pipeline
    sources: dict[str, dict[str, Source]]  # by part: unet, autoencoder, text


def read(file: Path, *, part: str = "", tokenizer: Path | None = None, prediction: str = "") -> OriginalFile:
    """What the file holds; part "autoencoder" reads that alone, and an autoencoder's own file has nothing else.

    tokenizer is the folder of CLIP's vocabulary, which no such file has, and prediction "eps" or "v", which a 2.x file
    does not tell. Raises UserError where one of them lacks, and for what is no such file.
    """
    shapes = shapes_of(file)
    prefix = AUTOENCODER if any(name.startswith(AUTOENCODER) for name in shapes) else ""
    alone = not any(name.startswith(UNET) for name in shapes) and "encoder.conv_in.weight" in shapes
    if part or alone:
        if f"{prefix}encoder.conv_in.weight" not in shapes:
            raise UserError(f"{file} has no autoencoder, whose arrays would begin with {AUTOENCODER}")
        config, sources = autoencoder_config(shapes, prefix, side=512)
        pipeline = Pipeline(file.parent, "AutoencoderKL", "", file=file, autoencoder=autoencoder(config, str(file)))
        return OriginalFile(pipeline, {"autoencoder": sources})
    _check_is_stable_diffusion(file, shapes)
    second = any(name.startswith(OPEN_CLIP) for name in shapes)
    predicts = _prediction(file, second, prediction)
    if tokenizer is None:
        raise UserError(
            f"{file} has no tokenizer, as no file of this layout has; give --tokenizer=FOLDER with CLIP's vocab.json "
            "and merges.txt, as in the folder tokenizer of any pipeline of this version"
        )
    side = SIDES[predicts]
    net, unet_sources = unet_config(shapes, linear=second, side=side)
    text, text_sources = _text(shapes, second=second)
    options = unet(net, str(file))
    coder, coder_sources = autoencoder_config(shapes, prefix, side=side * 8)
    if text["hidden_size"] != options.text_features:
        raise UserError(
            f"{file}: the text encoder has width {text['hidden_size']}, and the U-Net attends to width "
            f"{options.text_features}; fetch the file anew"
        )
    check_schedule(file, shapes)
    pipeline = Pipeline(
        file.parent,
        f"Stable Diffusion {'2' if second else '1'}.x",
        "",
        file=file,
        unet=options,
        autoencoder=autoencoder(coder, str(file)),
        scheduler=scheduler(SCHEDULER | {"prediction_type": predicts}, str(file), latent=True),
        text_config=text,
        tokenizer_folder=tokenizer,
        left_out=left_out_of(shapes),
    )
    return OriginalFile(pipeline, {"unet": unet_sources, "autoencoder": coder_sources, "text": text_sources})


def shapes_of(file: Path) -> Shapes:
    """{name: shape} of a file's arrays; raises UserError where it cannot be read."""
    try:
        with safe_open(file, "numpy") as arrays:
            return {name: tuple(arrays.get_slice(name).get_shape()) for name in arrays.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is no safetensors file that can be read ({error}); it is damaged or cut short, so fetch it anew"
        ) from None


def _check_is_stable_diffusion(file: Path, shapes: Shapes) -> None:
    """Raises UserError unless the file has the three parts, each of a kind that is read, and nothing unknown."""
    parts = {"U-Net": (UNET,), "autoencoder": (AUTOENCODER,), "text encoder": (CLIP, OPEN_CLIP)}
    refiner = any(name.startswith("conditioner.") for name in shapes)
    for what, prefixes in parts.items():
        if not any(name.startswith(prefixes) for name in shapes):
            raise UserError(
                f"{file} is no Stable Diffusion 1.x or 2.x in the original layout: it has no {what}, whose arrays "
                f"would begin with {' or '.join(prefixes)}"
                f"{'; the refiner of Stable Diffusion XL is not imported' if refiner else ''}"
            )
    known = (UNET, AUTOENCODER, CLIP, OPEN_CLIP)
    if strange := sorted(n for n in shapes if not n.startswith(known) and not re.match(LEFT_OUT, n)):
        raise UserError(f"{file} has arrays of no part of Stable Diffusion: {', '.join(strange[:5])}; fetch it anew")
    if label := [name for name in shapes if name.startswith(f"{UNET}label_emb.")]:
        raise UserError(
            f"{file}: {label[0]} has no twin here; a U-Net that embeds more than time and text is not imported"
        )


def _prediction(file: Path, second: bool, prediction: str) -> str:
    """diffusers' name of what the network predicts."""
    names = {ours: theirs for theirs, ours in PREDICTIONS.items() if theirs in SIDES}
    if prediction and prediction not in names:
        raise UserError(f"--prediction is {' or '.join(names)}; got {prediction!r}")
    if not prediction and second:
        raise UserError(
            f"{file} is of Stable Diffusion 2.x and does not tell what its network predicts; give --prediction=v for "
            "the models of 768 pixels, --prediction=eps for the base models of 512"
        )
    return names[prediction or "eps"]


def unet_config(shapes: Shapes, *, linear: bool, side: int) -> tuple[dict[str, Any], dict[str, Source]]:
    """(config of a `UNet2DConditionModel`, where its arrays stand)."""
    stem, last = _of(shapes, f"{UNET}input_blocks.0.0.weight"), _of(shapes, f"{UNET}out.2.weight")
    inputs = 1 + highest(rf"{UNET}input_blocks\.(\d+)\.", shapes)
    down = [n for n in range(inputs) if f"{UNET}input_blocks.{n}.0.op.weight" in shapes]
    levels = len(down) + 1
    blocks = (inputs - 1 - len(down)) // levels
    first = [1 + level * (blocks + 1) for level in range(levels)]
    channels = [_of(shapes, f"{UNET}input_blocks.{n}.0.out_layers.3.weight")[0] for n in first]
    attends = [f"{UNET}input_blocks.{n}.1.proj_in.weight" in shapes for n in first]
    middle = f"{UNET}middle_block.1."
    layers = [1 + highest(rf"{UNET}input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.", shapes) for n in first]
    between = 1 + highest(rf"{re.escape(middle)}transformer_blocks\.(\d+)\.", shapes)
    depth = [max(n, 1) for n in layers]  # as published for a level without attention
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "in_channels": stem[1],
        "out_channels": last[0],
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if attended else "DownBlock2D" for attended in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(attends)],
        "attention_head_dim": [max(n // HEAD, 1) for n in channels] if linear else HEADS,
        "cross_attention_dim": _of(shapes, f"{middle}transformer_blocks.0.attn2.to_k.weight")[1],
        "transformer_layers_per_block": depth if len({n for n in layers if n}) > 1 else max(*layers, between),
        "use_linear_projection": len(_of(shapes, f"{middle}proj_in.weight")) == 2,
    }
    return config, unet_names(shapes, blocks=blocks)


def autoencoder_config(
    shapes: Shapes, prefix: str, *, side: int, scaling: float = SCALING_FACTOR
) -> tuple[dict[str, Any], dict[str, Source]]:
    """(config of an `AutoencoderKL`, where its arrays stand)."""
    encoder = f"{re.escape(prefix)}encoder\\.down\\."
    _of(shapes, f"{prefix}encoder.down.0.block.0.conv2.weight")
    levels, blocks = (
        1 + highest(pattern, shapes) for pattern in (rf"{encoder}(\d+)\.", rf"{encoder}0\.block\.(\d+)\.")
    )
    channels = [_of(shapes, f"{prefix}encoder.down.{level}.block.0.conv2.weight")[0] for level in range(levels)]
    kinds = ["Attn{}" if f"{prefix}encoder.down.{n}.attn.0.q.weight" in shapes else "{}" for n in range(levels)]
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": _of(shapes, f"{prefix}encoder.conv_in.weight")[1],
        "out_channels": _of(shapes, f"{prefix}decoder.conv_out.weight")[0],
        "latent_channels": _of(shapes, f"{prefix}decoder.conv_in.weight")[1],
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "down_block_types": [kind.format("DownEncoderBlock2D") for kind in kinds],
        "up_block_types": [kind.format("UpDecoderBlock2D") for kind in reversed(kinds)],
        "mid_block_add_attention": f"{prefix}encoder.mid.attn_1.q.weight" in shapes,
        "use_quant_conv": f"{prefix}quant_conv.weight" in shapes,
        "use_post_quant_conv": f"{prefix}post_quant_conv.weight" in shapes,
        "sample_size": side,
        "scaling_factor": scaling,
    }
    return config, autoencoder_names(shapes, prefix=prefix, levels=levels)


def _text(shapes: Shapes, *, second: bool) -> tuple[dict[str, Any], dict[str, Source]]:
    """(config of a `CLIPTextModel`, where its arrays stand)."""
    where = rf"{OPEN_CLIP}transformer\.resblocks" if second else rf"{CLIP}(?:text_model\.)?encoder\.layers"
    layers = highest(rf"{where}\.(\d+)\.", shapes) + (0 if second else 1)
    sources = text_names(shapes, layers=layers)
    return text_config(shapes, sources, CLIP, layers=layers, open_clip=second), sources


def text_config(
    shapes: Shapes, sources: Mapping[str, Source], prefix: str, *, layers: int, open_clip: bool
) -> dict[str, Any]:
    """The config of a `CLIPTextModel` of these arrays, whose names begin with prefix where one has to be named."""
    stored = {name.removeprefix("text_model."): source.name for name, source in sources.items()}
    size = lambda name: _of(shapes, stored.get(name, f"{prefix}text_model.{name}"))  # noqa: E731
    vocabulary, width = size("embeddings.token_embedding.weight")
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // HEAD, 1),
        "intermediate_size": size("encoder.layers.0.mlp.fc1.weight")[0],
        "max_position_embeddings": size("embeddings.position_embedding.weight")[0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def check_schedule(file: Path, shapes: Shapes) -> None:
    """Raises UserError where the file has the chain's levels, and they are not those that all such files have."""
    if "alphas_cumprod" not in shapes:
        return
    with safe_open(file, "numpy") as arrays:
        found = np.asarray(arrays.get_tensor("alphas_cumprod"), np.float64)
    chain = scaled_linear(steps=len(found))
    wanted = np.asarray(chain.alpha(jnp.arange(1, len(found) + 1) / len(found)), np.float64) ** 2
    if len(found) != 1000 or np.abs(found - wanted).max() > 1e-3:
        raise UserError(
            f"{file} was trained with another chain than Stable Diffusion's, of 1000 steps; it is not imported"
        )


def left_out_of(shapes: Shapes) -> tuple[str, ...]:
    """What is not read, by the first part of its name where there are many."""
    names = {name for name in shapes if re.match(LEFT_OUT, name)}
    return tuple(sorted({name.partition(".")[0] if name.startswith("model_ema.") else name for name in names}))


def _matches(pattern: str, names: Collection[str]) -> list[re.Match[str]]:
    return [found for name in names if (found := re.match(pattern, name))]


def highest(pattern: str, names: Collection[str]) -> int:
    """The highest number that pattern finds; -1 where it finds none."""
    return max((int(found[1]) for found in _matches(pattern, names)), default=-1)


def _of(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of an array that there has to be."""
    if name not in shapes:
        raise UserError(
            f"the file lacks {name}, which every Stable Diffusion of the original layout has; fetch it anew"
        )
    return shapes[name]
