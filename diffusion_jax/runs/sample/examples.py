"""Examples of the data, and pictures of what a model is told of them."""

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.report import pictures


def first_batch(
    config: ConfigDict, source: Source, model: experiment.Model | None, tokenizer: Tokenizer | None, count: int
) -> dict[str, np.ndarray]:
    """count examples of the training data, not mirrored, with what the model's conditions are made of."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.batch_size, config.data.flip, config.data.cache, config.data.workers = count, False, False, 0
    batches = experiment.batches(config, source, model, tokenizer, split=False)
    try:
        return next(batches)
    finally:
        batches.close()


def picture_of(name: str, a: np.ndarray, channels: int) -> np.ndarray:
    """An entry of a spatial condition [B, H, W, C'] as pictures uint8 [B, H, W, channels]: a map's classes as grays."""
    if a.shape[-1] != channels:
        classes = a.shape[-1]
        gray = a if classes == 1 else (a @ np.arange(classes))[..., None] / max(classes - 1, 1)
        a = np.repeat(2 * gray - 1, channels, axis=-1)
    return pictures.to_uint8(a)
