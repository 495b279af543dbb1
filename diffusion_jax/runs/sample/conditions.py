"""What samples are to be of: a user's request as the arrays that a trained model is told."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import experiment
from diffusion_jax.data.text_file import decode_text, lines_of
from diffusion_jax.data.tokens import Cut
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image, Modality
from diffusion_jax.models.conditions import Label, RequestSetting, SampleRequest, requested
from diffusion_jax.runs.workdir.restored import Trained

__all__ = ["SampleRequest", "conditions", "cut_prompts", "read_prompts", "record", "told_pictures"]


def conditions(
    sample_request: SampleRequest, trained: Trained, seeds: np.ndarray, *, painted: bool = False
) -> dict[str, np.ndarray]:
    """The entries [N, ...] of the model's conditions, N seeds; raises UserError for what the model is not told.

    A model without classes that a classifier guides has the classifier's "label" too. painted says that a part of an
    image is edited: what a model that paints is told is made of that image.
    """
    told = trained.model.conditions
    if trained.num_classes and not trained.model.num_classes:
        told = (*told, Label(trained.num_classes))
    setting = RequestSetting(
        seeds=seeds,
        shape=trained.model.shape,
        guidance=trained.how.guidance,
        tokenizer=trained.tokenizer,
        classes=trained.classes,
        painted=painted,
    )
    return requested(told, sample_request, setting)


def read_prompts(path: Path) -> list[str]:
    """The captions of a text file, one a line without spaces around it; empty lines are none.

    Raises UserError where there is no such file, or no caption in it.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; check --prompts")
    prompts = [line.strip(" \t") for line in lines_of(decode_text(path.read_bytes(), str(path))) if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={path} holds no caption; write one a line")
    return prompts


def cut_prompts(sample_request: SampleRequest, trained: Trained) -> list[Cut]:
    """What the text encoder does not read of prompts, in turn, and of the negative prompt: those that are too long."""
    text, tokenizer = trained.model.text, trained.tokenizer
    if text is None or tokenizer is None:
        return []
    negative = [] if sample_request.negative_prompt is None else [sample_request.negative_prompt]
    return tokenizer.encode_and_cut([*dict.fromkeys(sample_request.prompts), *negative], text.length)[1]


def told_pictures(model: experiment.Model, kind: Modality, entries: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What of entries [K, ...] can be seen, each uint8 [K, H, W, C], to stand beside samples of the same kind.

    Of other data than images that is what has the shape of an example, such as the part of one that is known.
    """
    channels = model.shape[-1]
    if isinstance(kind, Image):
        return [picture for each in model.conditions for picture in each.pictures(entries, channels)]
    alike = [name for each in model.conditions for name, c in each.channels(channels).items() if c == channels]
    return [kind.tiles(kind.from_model(np.asarray(entries[name]))) for name in alike if name in entries]


def record(flags: Any) -> dict[str, Any]:
    """A dataclass of flags as JSON takes it; values of conditions are left out where there are none."""
    found: dict[str, Any] = {
        name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(flags).items()
    }
    values = found.pop("values", {})
    return found | ({"values": {name: np.asarray(v).tolist() for name, v in values.items()}} if values else {})
