"""The sampling of a config."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.models.sampling import Sampling
from diffusion_jax.spec import from_spec


def sampling(config: ConfigDict, overrides: Mapping[str, object] | None = None) -> Sampling:
    """The sampling of config.sample, which training and the sample command use. overrides replace its fields.

    The sampler "ddpm" without arguments uses the learned variance where the prediction has one.
    """
    fields = {field.name: config.sample[field.name] for field in dataclasses.fields(Sampling)} | dict(overrides or {})
    if fields["sampler"].replace(" ", "") in ("ddpm", "ddpm()"):
        learned = from_spec(config.prediction, PREDICTIONS, "prediction").learned_variance
        fields["sampler"] = "ddpm(variance='learned')" if learned else fields["sampler"]
    return Sampling(**fields)
