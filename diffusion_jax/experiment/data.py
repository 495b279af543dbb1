"""The data of a config."""

import jax
from ml_collections import ConfigDict

from diffusion_jax import modalities
from diffusion_jax.data import pipeline, sources
from diffusion_jax.data.buckets import Buckets
from diffusion_jax.data.classes import Classes, renumbered, shown
from diffusion_jax.data.example import captions_of, modality_of
from diffusion_jax.data.precomputed import Precomputed
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Modality
from diffusion_jax.models.conditions import Condition, Label, spatial
from diffusion_jax.models.model import Model

_CAPTIONS = 20_000  # read to learn a tokenizer


def shape(config: ConfigDict) -> tuple[int, ...]:
    """The shape [*S, C] of an example; raises UserError where `data.shape` is open still."""
    if not config.data.shape:
        raise UserError(
            "data.shape is open, and the data are not at hand to tell it; set it, as in data.shape=(32, 32, 3)"
        )
    return tuple(config.data.shape)


def modality(config: ConfigDict) -> Modality:
    """How the examples of a config are read, pictured and written; raises UserError for an unknown data.modality."""
    return modalities.modality(config.data.modality or "image")


def resolved(config: ConfigDict) -> ConfigDict:
    """config with `data.shape` and `data.modality` taken from the data where they are open.

    Opens the data if it has to. Raises UserError where the examples are of several shapes, or a given shape is none
    that they can have.
    """
    if not config.data.modality and config.data.source.partition(":")[0] in sources.OF_IMAGES:
        config = _with_data(config, modality="image")
    if config.data.shape and config.data.modality and modality(config).complete:
        modality(config).check_shape(shape(config))
        return config
    data = opened(config)
    found = modalities.modality(config.data.modality or modality_of(data))
    if not len(data):
        raise UserError(f"{config.data.source} has no examples; check data.source and data.split")
    try:
        sides = tuple(config.data.shape) or found.shape_of(data)
        found.check_shape(sides)
        return _with_data(config, shape=sides, modality=found.measured(data, sides))
    except UserError as error:
        raise UserError(f"{config.data.source}: {error}") from error


def _with_data(config: ConfigDict, **changes: object) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(changes)
    return config


def opened(config: ConfigDict) -> sources.Source:
    """The data set that data.source names, its classes numbered in its own order."""
    needs = {"caption": bool(config.text), "label": bool(config.model.num_classes)}
    readers = [reader for condition in spatial(config.spatial) if (reader := condition.reader())]
    needs |= dict.fromkeys((field for reader in readers for field in reader.fields), True)
    return sources.open_source(
        config.data.source,
        split=config.data.split,
        data_dir=config.data.data_dir or None,
        caption=config.data.caption,
        needs=frozenset(name for name, needed in needs.items() if needed),
        shape=tuple(config.data.shape),
        shuffle_bytes=config.data.shuffle_bytes,
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
    buckets: Buckets | None = None,
    split: bool = True,
) -> pipeline.TrainBatches:
    """Endless batches, with what the conditions of the task read; split: this process's slice of each.

    buckets are the sizes of training batches. Without them all batches have the size of `data.shape`.
    """
    told = conditions(config, model)
    names = () if precomputed is None else precomputed.names
    if precomputed is not None and "mean" in names and any(condition.of_image for condition in told):
        raise UserError(
            f"{', '.join(config.spatial)} is made of the image, and data.precomputed={precomputed.folder} has latents "
            "alone; precompute the text alone, or nothing"
        )
    # What was precomputed is read all the same, without an entry of its own: it says which images are mirrored.
    each = [condition.reader(None if set(condition.features) & set(names) else tokenizer) for condition in told]
    options = config.data
    return pipeline.train_batches(
        data,
        modality(config),
        shape(config),
        pipeline.Order(
            config.seed,
            config.train.batch_size,
            options.flip,
            process_index=jax.process_index() if split else 0,
            process_count=jax.process_count() if split else 1,
            buckets=buckets,
        ),
        readers=[reader for reader in each if reader is not None],
        precomputed=precomputed,
        reading=pipeline.Reading(options.cache, options.corrupt_limit, options.threads, options.workers),
    )


def conditions(config: ConfigDict, model: Model | None) -> tuple[Condition, ...]:
    """The conditions that the task of config reads: those of the model or, for a classifier, the class."""
    if model is not None:
        return model.conditions
    wanted = config.task != "autoencoder" and config.model.num_classes
    return (Label(config.model.num_classes),) if wanted else ()


def tokenizer(model: Model, data: sources.Source) -> Tokenizer | None:
    """The tokenizer of the model's text encoder, learned from the captions unless published; None without text."""
    if model.text is None:
        return None
    return model.text.learn_tokenizer(captions_of(data, _CAPTIONS))
