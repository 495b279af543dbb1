"""Examples of the data, with what a model is told of them."""

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer


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
