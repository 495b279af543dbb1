"""The data of a config."""

from functools import partial

import jax
from ml_collections import ConfigDict

from diffusion_jax.data import pipeline, sources
from diffusion_jax.data.classes import Classes, renumbered, shown
from diffusion_jax.data.precomputed import Precomputed
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.model import Model

_CAPTIONS = 20_000  # read to learn a tokenizer


def opened(config: ConfigDict) -> sources.Source:
    """The data set that data.source names, its classes numbered in its own order."""
    needs = {"caption": bool(config.text), "label": bool(config.model.num_classes)}
    return sources.open_source(
        config.data.source,
        split=config.data.split,
        data_dir=config.data.data_dir or None,
        caption=config.data.caption,
        needs=frozenset(name for name, needed in needs.items() if needed),
    )


def source(config: ConfigDict, classes: Classes | None = None, data: sources.Source | None = None) -> sources.Source:
    """The data set that data.source names, or data, its labels the numbers of classes (None: in its own order).

    Raises UserError where its labels do not fit the model.
    """
    built = opened(config) if data is None else data
    wanted = config.model.num_classes
    if wanted and built.num_classes is None:
        raise UserError(
            f"model.num_classes={wanted}, but data.source={config.data.source} has no labels; put the images of each "
            "class in a folder of its name, or set model.num_classes=0"
        )
    if wanted and classes is not None:
        what = f"split {config.data.split} of {config.data.source}"
        return renumbered(built, classes.names if built.class_names else None, classes.count, what)
    if wanted and built.num_classes != wanted:
        raise UserError(
            f"model.num_classes={wanted}, but data.source={config.data.source} has {built.num_classes} classes"
            + (f": {shown(built.class_names)}" if built.class_names else "")
        )
    return built


def batches(
    config: ConfigDict,
    data: sources.Source,
    model: Model | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    precomputed: Precomputed | None = None,
    split: bool = True,
) -> pipeline.TrainBatches:
    """Endless training batches, with what the model's conditions are made of; split: this process's slice of each."""
    spatial = model.spatial if model else ()
    encode = partial(model.text.encode, tokenizer) if model and model.text and tokenizer else None
    if precomputed is not None and "text" in precomputed.names:
        encode = None
    if precomputed is not None and "mean" in precomputed.names and spatial:
        raise UserError(
            f"{', '.join(config.spatial)} is made of the image, and data.precomputed={precomputed.folder} has latents "
            "alone; precompute the text alone, or nothing"
        )
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
        process_index=jax.process_index() if split else 0,
        process_count=jax.process_count() if split else 1,
        encode=encode,
        precomputed=precomputed,
        corrupt_limit=config.data.corrupt_limit,
        map_classes=sum(condition.channels(1).get("map", 0) for condition in spatial),
        mask=any("mask" in condition.reads for condition in spatial),
    )


def tokenizer(model: Model, data: sources.Source) -> Tokenizer | None:
    """The tokenizer of the model's text encoder, learned from the captions unless published; None without text."""
    if model.text is None:
        return None
    examples = (data[i] for i in range(min(len(data), _CAPTIONS)))
    return model.text.learn_tokenizer(example["caption"] for example in examples if "caption" in example)
