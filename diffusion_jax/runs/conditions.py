"""What samples are to be of: a user's request as the arrays that a trained model is told."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build.conditions import Label, RequestSetting, SampleRequest, requested
from diffusion_jax.runs.trained import Trained

__all__ = ["SampleRequest", "conditions", "record"]


def conditions(
    request: SampleRequest, trained: Trained, seeds: np.ndarray, *, painted: bool = False
) -> dict[str, np.ndarray]:
    """The entries [N, ...] of the model's conditions, N seeds; raises UserError for what the model is not told.

    A model without classes that a classifier guides has the classifier's "label" too. painted says that a part of an
    image is edited: what a model that paints is told is made of that image.
    """
    told = trained.model.conditions
    if trained.num_classes and not trained.model.num_classes:
        told = (*told, Label(trained.num_classes))
    setting = RequestSetting(
        seeds, trained.model.shape, trained.how.guidance, trained.tokenizer, trained.classes, painted
    )
    return requested(told, request, setting)


def record(flags: Any) -> dict[str, Any]:
    """A dataclass of flags as JSON takes it; values of conditions are left out where there are none."""
    found: dict[str, Any] = {
        name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(flags).items()
    }
    values = found.pop("values", {})
    return found | ({"values": {name: np.asarray(v).tolist() for name, v in values.items()}} if values else {})
