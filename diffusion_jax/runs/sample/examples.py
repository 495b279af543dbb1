"""Examples of the training data, with the entries of a model's conditions."""

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.prepared import is_prepared
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError


def first_batch(
    config: ConfigDict, source: Source, model: experiment.Model | None, tokenizer: Tokenizer | None, count: int
) -> dict[str, np.ndarray]:
    """The first count examples of the training data, not mirrored, with the entries of the model's conditions."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.batch_size, config.data.flip, config.data.cache, config.data.workers = count, False, False, 0
    batches = experiment.batches(config, source, model, tokenizer, split=False)
    try:
        return next(batches)
    finally:
        batches.close()


def batch_at_hand(
    config: ConfigDict, model: experiment.Model | None, tokenizer: Tokenizer | None, count: int
) -> dict[str, np.ndarray] | None:
    """`first_batch` of the config's source; None where the data are not on this machine."""
    if not is_prepared(config.data.source, config.data.data_dir or None):
        return None
    try:
        source = experiment.source(config, None if model is None else model.classes)
        return first_batch(config, source, model, tokenizer, count)
    except (UserError, OSError, ImportError):  # a folder that is elsewhere now
        return None
