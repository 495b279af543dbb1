"""The two text encoders of Stable Diffusion XL, in the folders that its pipeline has, into `nets.text_pair`.

FOLDER has text_encoder and text_encoder_2, each with its config.json and model.safetensors, and tokenizer and
tokenizer_2 beside them.
"""

from pathlib import Path as File
from typing import Any, NamedTuple

from diffusion_jax.errors import UserError
from diffusion_jax.interop import huggingface_text

FIRST, SECOND = "text_encoder", "text_encoder_2"

TOKENIZERS = {FIRST: "tokenizer", SECOND: "tokenizer_2"}
"""{folder of an encoder: folder of its tokenizer}."""

PENULTIMATE = {"penultimate": True, "normed": False}
"""Both towers' states are read before their last layer, without the final norm."""


class TextPair(NamedTuple):
    """`nets.text_pair.ClipPair(first, second)`, its params and the folders of both tokenizers."""

    first: dict[str, Any]
    second: dict[str, Any]
    params: dict[str, Any]  # "first" and "second", float32
    tokenizers: tuple[str, str]

    @property
    def width(self) -> int:
        """Features of both towers' states together."""
        return self.first["width"] + self.second["width"]


def load(folder: str) -> TextPair:
    """Both text encoders in a folder; raises UserError where one lacks or is no CLIP, and as `huggingface_text.load`.

    The first tower's last layer is kept, though nothing of it is read, so that an export has it again.
    """
    found = []
    for name in (FIRST, SECOND):
        if not (File(folder) / name).is_dir():
            raise UserError(f"{folder} has no {name}; give the folder of a Stable Diffusion XL pipeline")
        each = huggingface_text.load(f"{folder}/{name}", projection=name == SECOND)
        if each.family != "clip":
            raise UserError(f"{folder}/{name} holds a {each.family}; two of CLIP are read here")
        found.append(each)
    first, second = found
    if first.arguments["length"] != second.arguments["length"]:
        raise UserError(
            f"the text encoders in {folder} have {first.arguments['length']} and {second.arguments['length']} "
            "positions; take the two of one pipeline"
        )
    return TextPair(
        first.arguments | PENULTIMATE,
        second.arguments | PENULTIMATE,
        {"first": first.params, "second": second.params},
        (first.tokenizer, second.tokenizer),
    )
