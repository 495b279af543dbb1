"""The embedding that the U-Net of Stable Diffusion XL adds to that of the time: a text's vector and six numbers.

The six are the original height and width, the top and left of the crop, the target's height and width. They are
`UNet.numbers` here, and the vector `UNet.pooled_text`.
"""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError

NUMBERS = 6

KIND = "text_time"

KEYS = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
"""The options of a `UNet2DConditionModel` that say it."""


def options(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], int]:
    """(options of our U-Net, the width of the text's vector) of a config.json; ({}, 0) where nothing is added.

    Raises UserError where its widths do not fit together.
    """
    if config.get(KEYS[0]) != KIND:
        return {}, 0
    waves, read = (config.get(key) for key in KEYS[1:])
    if not isinstance(waves, int) or not isinstance(read, int) or read <= NUMBERS * waves:
        raise UserError(
            f"{where}: {KEYS[2]}={read!r} has to hold a text's vector and {NUMBERS} numbers of {KEYS[1]}={waves!r}; "
            "fetch it anew"
        )
    return {"pooled_text": True, "number_waves": waves}, read - NUMBERS * waves


def config(number_waves: int, pooled: int) -> dict[str, Any]:
    """`options` back."""
    return dict(zip(KEYS, (KIND, number_waves, pooled + NUMBERS * number_waves), strict=True))
