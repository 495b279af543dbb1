"""One .safetensors file of Stable Diffusion XL base in the original layout: its options, from the shapes of its arrays.

What shapes do not tell is as in the published model: 32 groups, heads of 64 channels, a scaling factor of 0.13025,
latents of 128 x 128, Euler's sampler with leading times.
"""

import re
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_added, diffusers_xl
from diffusion_jax.interop.diffusers_options import autoencoder, unet
from diffusion_jax.interop.diffusers_pipeline import Pipeline
from diffusion_jax.interop.diffusers_scheduler import PREDICTIONS, scheduler
from diffusion_jax.interop.huggingface_text_pair import FIRST, SECOND, TOKENIZERS
from diffusion_jax.interop.original_file import (
    OriginalFile,
    Shapes,
    autoencoder_config,
    check_schedule,
    highest,
    left_out_of,
    shapes_of,
    text_config,
    unet_config,
)
from diffusion_jax.interop.original_names import AUTOENCODER, LEFT_OUT, UNET, Source, open_clip_names

CLIP = "conditioner.embedders.0.transformer."

OPEN_CLIP = "conditioner.embedders.1.model."

PROJECTION = f"{OPEN_CLIP}text_projection"

LABEL = f"{UNET}label_emb.0.0.weight"

SCALING_FACTOR = 0.13025

SIDE = 128
"""H and W of the latents."""

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

OTHER_CHAINS = ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
"""Arrays by which files of fine-tuned models say that their network predicts v, or was trained with another chain."""


def holds(file: Path) -> bool:
    """Whether the arrays of a file are those of Stable Diffusion XL base; raises UserError where it cannot be read."""
    return any(name.startswith(OPEN_CLIP) for name in shapes_of(file))


def read(file: Path, *, part: str = "", tokenizer: Path | None = None, prediction: str = "") -> OriginalFile:
    """What the file holds; part "autoencoder" reads that alone.

    tokenizer is a folder with tokenizer and tokenizer_2, which no such file has; prediction is "eps" or "v", by default
    eps. Raises UserError where the tokenizers lack, and for what is no such file.
    """
    shapes = shapes_of(file)
    coder, coder_sources = autoencoder_config(shapes, AUTOENCODER, side=SIDE * 8, scaling=SCALING_FACTOR)
    if part:
        found = Pipeline(file.parent, "AutoencoderKL", "", file=file, autoencoder=autoencoder(coder, str(file)))
        return OriginalFile(found, {"autoencoder": coder_sources})
    _check(file, shapes)
    names = {ours: theirs for theirs, ours in PREDICTIONS.items() if ours in ("eps", "v")}
    if prediction and prediction not in names:
        raise UserError(f"--prediction is {' or '.join(names)}; got {prediction!r}")
    words = [tokenizer / TOKENIZERS[name] for name in (FIRST, SECOND)] if tokenizer else []
    if not words or not all(each.is_dir() for each in words):
        raise UserError(
            f"{file} has no tokenizers, as no file of this layout has; give --tokenizer=FOLDER with the folders "
            f"{' and '.join(TOKENIZERS.values())} in it, as any folder of Stable Diffusion XL has them"
        )
    first, first_sources = _first_text(shapes)
    second, second_sources = _second_text(shapes)
    net, unet_sources = unet_config(shapes, linear=True, side=SIDE)
    options = unet(net | _added(shapes, second["projection_dim"]), str(file))
    other = diffusers_xl.SecondText(second, words[1])
    diffusers_xl.check_text(str(file), options, first, other)
    check_schedule(file, shapes)
    said = SCHEDULER | {"prediction_type": names[prediction or "eps"]}
    pipeline = Pipeline(
        file.parent,
        "Stable Diffusion XL",
        "",
        file=file,
        unet=options,
        autoencoder=autoencoder(coder, str(file)),
        scheduler=scheduler(said, str(file), latent=False),
        text_config=first,
        second_text=other,
        tokenizer_folder=words[0],
        left_out=left_out_of(shapes),
    )
    sources = {"unet": unet_sources, "autoencoder": coder_sources, "text": first_sources, "text_2": second_sources}
    return OriginalFile(pipeline, sources)


def _check(file: Path, shapes: Shapes) -> None:
    """Raises UserError unless the file has all parts and nothing unknown, and is of no other chain."""
    parts = {"U-Net": UNET, "text encoder": CLIP, "embedding of sizes": LABEL, "text projection": PROJECTION}
    for what, prefix in parts.items():
        if not any(name.startswith(prefix) for name in shapes):
            raise UserError(
                f"{file} is no Stable Diffusion XL base in the original layout: it has no {what}, whose arrays would "
                f"begin with {prefix}"
            )
    known = (UNET, AUTOENCODER, CLIP, OPEN_CLIP)
    if strange := sorted(n for n in shapes if not n.startswith(known) and not re.match(LEFT_OUT, n)):
        raise UserError(f"{file} has arrays of no part of Stable Diffusion XL: {', '.join(strange[:5])}")
    if other := [name for name in OTHER_CHAINS if name in shapes]:
        raise UserError(
            f"{file} has {other[0]}, by which it says that it was trained with another prediction or chain than Stable "
            "Diffusion XL base; it is not imported"
        )


def _added(shapes: Shapes, pooled: int) -> dict[str, Any]:
    """The options of a `UNet2DConditionModel` for the embedding of pooled text and sizes."""
    waves = (shapes[LABEL][1] - pooled) // diffusers_added.NUMBERS
    return diffusers_added.config(waves, shapes[LABEL][1] - diffusers_added.NUMBERS * waves)


def _first_text(shapes: Shapes) -> tuple[dict[str, Any], dict[str, Source]]:
    """(config of a `CLIPTextModel`, where its arrays stand)."""
    layers = 1 + highest(rf"{CLIP}(?:text_model\.)?encoder\.layers\.(\d+)\.", shapes)
    ours = [name for name in shapes if name.startswith(CLIP) and not re.match(LEFT_OUT, name)]
    sources = {name.removeprefix(CLIP): Source(name) for name in ours}
    return text_config(shapes, sources, CLIP, layers=layers, open_clip=False), sources


def _second_text(shapes: Shapes) -> tuple[dict[str, Any], dict[str, Source]]:
    """(config of a `CLIPTextModelWithProjection`, where its arrays stand)."""
    layers = 1 + highest(rf"{OPEN_CLIP}transformer\.resblocks\.(\d+)\.", shapes)
    sources: dict[str, Source] = {}
    for name in shapes:
        if name.startswith(OPEN_CLIP) and name != PROJECTION and not re.match(LEFT_OUT, name):
            sources |= open_clip_names(name, OPEN_CLIP, layers)
    config = text_config(shapes, sources, OPEN_CLIP, layers=layers, open_clip=True)
    config |= {"architectures": [diffusers_xl.PARTS[SECOND]], "projection_dim": shapes[PROJECTION][1]}
    return config, sources | {"text_projection.weight": Source(PROJECTION, transposed=True)}
