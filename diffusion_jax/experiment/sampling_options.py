"""How a config asks for samples."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.models.sampling import Sampling
from diffusion_jax.spec import from_spec


def sampling(config: ConfigDict, overrides: Mapping[str, Any] | None = None) -> Sampling:
    """The sampling that config asks for in training, the default of the sample command; overrides replace fields.

    Plain ddpm takes the variance that the network has learned, where the prediction learns one.
    """
    fields = {field.name: config.sample[field.name] for field in dataclasses.fields(Sampling)} | dict(overrides or {})
    if fields["sampler"].replace(" ", "") in ("ddpm", "ddpm()"):
        learned = from_spec(config.prediction, PREDICTIONS, "prediction").learned_variance
        fields["sampler"] = "ddpm(variance='learned')" if learned else fields["sampler"]
    return Sampling(**fields)
