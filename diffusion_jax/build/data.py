"""The data of a config."""

import jax
from ml_collections import ConfigDict

from diffusion_jax.data import pipeline, sources
from diffusion_jax.errors import UserError


def source(config: ConfigDict) -> sources.Source:
    """The data set that data.source names; raises UserError where its labels do not fit the model."""
    built = sources.open_source(config.data.source, split=config.data.split, data_dir=config.data.data_dir or None)
    wanted = config.model.num_classes
    if wanted and built.num_classes is None:
        raise UserError(f"model.num_classes={wanted}, but data.source={config.data.source} has no labels")
    if wanted and built.num_classes != wanted:
        raise UserError(
            f"model.num_classes={wanted}, but data.source={config.data.source} has {built.num_classes} classes"
        )
    return built


def batches(config: ConfigDict, data: sources.Source) -> pipeline.TrainBatches:
    """Endless training batches, this process's slice of each."""
    return pipeline.train_batches(
        data,
        image_size=(config.data.height, config.data.width),
        channels=config.data.channels,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        cache=config.data.cache,
        threads=config.data.threads,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
