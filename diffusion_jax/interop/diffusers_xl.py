"""What Stable Diffusion XL's pipeline has beside Stable Diffusion's parts: a second text encoder and its tokenizer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_options import UNetOptions
from diffusion_jax.interop.json_file import read_json

NAME = "StableDiffusionXLPipeline"

PARTS = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": ""}
"""{part of the pipeline: its class, "" for any}."""

GUIDANCE = 5.0
"""guidance_scale of its call."""

ZEROS = "force_zeros_for_empty_prompt"


@dataclasses.dataclass(frozen=True)
class SecondText:
    """The second text encoder."""

    config: Mapping[str, Any]  # config.json
    tokenizer_folder: Path
    folder: Path | None = None  # None: its weights are in the one file
    zero_null: bool = True  # where no negative prompt is given, zeros stand for its features


def second_text(root: Path, index: Mapping[str, Any]) -> SecondText:
    """That of a pipeline's folder, by the JSON in model_index.json."""
    folder = root / "text_encoder_2"
    return SecondText(read_json(folder / "config.json"), root / "tokenizer_2", folder, bool(index.get(ZEROS, True)))


def check_text(where: str, net: UNetOptions, first: Mapping[str, Any], second: SecondText | None) -> None:
    """Raises UserError where the widths of text encoders and U-Net do not fit, or a text's mask is used.

    first is the config.json of the first text encoder.
    """
    configs = [first, *([] if second is None else [second.config])]
    if any(config.get("use_attention_mask") for config in configs):
        raise UserError(f"{where}: use_attention_mask=True has no twin here; the whole text is attended to")
    widths = [int(config.get("hidden_size", 512)) for config in configs]
    if sum(widths) != net.text_features:
        said = f"text encoder has width {widths[0]}" if second is None else f"text encoders have widths {widths}"
        raise UserError(
            f"{where}: the {said}, and the U-Net attends to cross_attention_dim={net.text_features}; fetch the parts "
            "of one pipeline"
        )
    pooled = 0 if second is None else int(second.config.get("projection_dim", 512))
    if pooled != net.pooled:
        raise UserError(
            f"{where}: the text's vector has {pooled} numbers, and the U-Net embeds {net.pooled} beside sizes and "
            "crop; fetch the parts of one pipeline"
        )
