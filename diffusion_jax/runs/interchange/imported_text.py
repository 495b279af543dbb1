"""The text encoders and tokenizers of an import: their spec in the config, their files in the workdir."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.interop import diffusers_weights
from diffusion_jax.interop.diffusers_pipeline import Pipeline
from diffusion_jax.interop.huggingface_text_pair import FIRST, SECOND, TOKENIZERS
from diffusion_jax.interop.json_file import read_json
from diffusion_jax.runs.interchange.imported_weights import ImportedWeights
from diffusion_jax.runs.workdir.pretrained import TOKENIZER_FILES


def text_spec(found: Pipeline, folder: Path) -> str:
    """The text encoder of a config, of files that will be in folder."""
    options = f"folder={str(folder)!r}, length={_text_length(found)}"
    if found.second_text is None:
        return f"huggingface({options})"
    return f"clip_pair({options}, zero_null={found.second_text.zero_null})"


def copy_text(found: Pipeline, weights: ImportedWeights, folder: Path) -> None:
    """Writes the text encoder, with its weights in one file, and its tokenizer to one folder.

    Two text encoders and their tokenizers have folders in it, as in a pipeline.
    """
    assert found.text_config is not None
    assert found.tokenizer_folder is not None
    folder.mkdir()
    second = found.second_text
    encoder, words = (folder, folder) if second is None else (folder / FIRST, folder / TOKENIZERS[FIRST])
    _copy_encoder(weights, "text", found.text_folder, found.text_config, encoder)
    _copy_tokenizer(found.tokenizer_folder, words)
    if second is not None:
        _copy_encoder(weights, "text_2", second.folder, second.config, folder / SECOND)
        _copy_tokenizer(second.tokenizer_folder, folder / TOKENIZERS[SECOND])


def _copy_encoder(
    weights: ImportedWeights, part: str, source: Path | None, config: Mapping[str, Any], folder: Path
) -> None:
    """Writes config.json, that in the folder source where there is one, and model.safetensors."""
    folder.mkdir(exist_ok=True)
    if source is not None:
        shutil.copyfile(source / "config.json", folder / "config.json")
    else:
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    target = folder / "model.safetensors"
    if file := weights.single(part):
        shutil.copyfile(file, target)
        return
    with weights.opened(part) as state:
        diffusers_weights.save(state, target)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _text_length(found: Pipeline) -> int:
    """The number of tokens that the pipeline gives its text encoder."""
    assert found.text_config is not None
    assert found.tokenizer_folder is not None
    positions = int(found.text_config.get("max_position_embeddings", 77))
    settings = found.tokenizer_folder / "tokenizer_config.json"
    said = read_json(settings).get("model_max_length") if settings.is_file() else None
    return min(said, positions) if isinstance(said, int) else positions
