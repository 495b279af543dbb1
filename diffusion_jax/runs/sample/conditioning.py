"""The conditions of samples: from a user's request to the arrays that a trained model takes."""

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
from diffusion_jax.runs.workdir.restored import GuideRequest, Trained

__all__ = ["SampleRequest", "conditions", "cut_prompts", "read_prompts", "record", "told_pictures"]


def conditions(
    sample_request: SampleRequest, trained: Trained, seeds: np.ndarray, *, painted: bool = False
) -> dict[str, np.ndarray]:
    """The entries [N, ...] of the model's conditions for N seeds, by name.

    A model without classes that a classifier guides has the classifier's "label" too. painted: a part of an image is
    edited, and an inpainting model takes its conditions from that image. Raises UserError where the request has a
    condition that the model does not have, or lacks one that it needs.
    """
    of_model = trained.model.conditions
    if trained.num_classes and not trained.model.num_classes:
        of_model = (*of_model, Label(trained.num_classes))
    setting = RequestSetting(
        seeds=seeds,
        shape=trained.model.shape,
        guidance=trained.how.guidance,
        tokenizer=trained.tokenizer,
        classes=trained.classes,
        painted=painted,
    )
    return requested(of_model, sample_request, setting)


def read_prompts(path: Path) -> list[str]:
    """The captions of a text file, one a line, without the spaces around them; empty lines are left out.

    Raises UserError where there is no such file, or no caption in it.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; check --prompts")
    prompts = [line.strip(" \t") for line in lines_of(decode_text(path.read_bytes(), str(path))) if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={path} holds no caption; write one a line")
    return prompts


def cut_prompts(sample_request: SampleRequest, trained: Trained) -> list[Cut]:
    """The parts of prompts, in turn, and of the negative prompt that are too long for the text encoder."""
    text, tokenizer = trained.model.text, trained.tokenizer
    if text is None or tokenizer is None:
        return []
    negative = [] if sample_request.negative_prompt is None else [sample_request.negative_prompt]
    return tokenizer.encode_and_cut([*dict.fromkeys(sample_request.prompts), *negative], text.length)[1]


def told_pictures(model: experiment.Model, kind: Modality, entries: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Pictures uint8 [K, H, W, C] of the conditions in entries [K, ...], to stand beside samples of the same kind.

    For other data than images these are the entries with the shape of an example, such as its known part.
    """
    channels = model.shape[-1]
    if isinstance(kind, Image):
        return [picture for each in model.conditions for picture in each.pictures(entries, channels)]
    names = [name for each in model.conditions for name, c in each.channels(channels).items() if c == channels]
    return [kind.tiles(kind.from_model(np.asarray(entries[name]))) for name in names if name in entries]


def record(flags: SampleRequest | GuideRequest) -> dict[str, object]:
    """The fields of a request as JSON takes them; without values of further conditions there is no key `values`."""
    found: dict[str, Any] = {
        name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(flags).items()
    }
    values = found.pop("values", {})
    return found | ({"values": {name: np.asarray(v).tolist() for name, v in values.items()}} if values else {})
