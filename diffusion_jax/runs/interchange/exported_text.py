"""The text encoders of an export, as transformers has them, with their tokenizers."""

import dataclasses
import shutil
from pathlib import Path

from diffusion_jax.interop import diffusers_weights
from diffusion_jax.interop.json_file import read_json, write_json
from diffusion_jax.runs.workdir.pretrained import TOKENIZER_FILES


@dataclasses.dataclass(frozen=True)
class TextFolder:
    """A CLIP text encoder and its tokenizer."""

    folder: Path
    length: int  # tokens of a text
    penultimate: bool  # its last layer is not read, and is left out
    name: str = "CLIPTextModel"  # its class in transformers
    words: Path | None = None  # the folder of the tokenizer; None: the encoder's own


def write_text(text: TextFolder, root: Path, suffix: str, dtype: str) -> None:
    """Writes text_encoder/ and tokenizer/, their names with the suffix.

    Of a whole CLIP the text tower alone is written, and of an encoder with a matrix for what is pooled, the matrix too.
    """
    encoder, words = (root / f"{name}{suffix}" for name in ("text_encoder", "tokenizer"))
    for folder in (encoder, words):
        folder.mkdir()
    config, prefix = read_json(text.folder / "config.json"), ""
    if "text_config" in config:
        config, prefix = config["text_config"] | {"model_type": "clip_text_model"}, "text_model."
    last = ""
    if text.penultimate:  # the states before a layer are those of an encoder that ends there
        config = config | {"num_hidden_layers": (layers := config.get("num_hidden_layers", 12) - 1)}
        last = f"encoder.layers.{layers}."
    # A file's floats are read as config.json says.
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype")} | {"dtype": dtype}
    write_json(encoder / "config.json", config | {"architectures": [text.name]})
    weights = text.folder / "model.safetensors"
    diffusers_weights.copy(weights, encoder / "model.safetensors", dtype, prefix=prefix, without=last)
    source = text.words or text.folder
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, words / name)
    settings = words / "tokenizer_config.json"
    said = read_json(settings) if settings.is_file() else {"tokenizer_class": "CLIPTokenizer"}
    if said.get("model_max_length") != text.length:
        write_json(settings, said | {"model_max_length": text.length})
