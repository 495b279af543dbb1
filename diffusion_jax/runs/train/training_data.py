"""The training data of a run: opened, with its classes numbered and its contents printed."""

import jax
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data import description
from diffusion_jax.data.buckets import Buckets
from diffusion_jax.data.classes import Classes, shown
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir import classes
from diffusion_jax.runs.workdir.paths import Workdir

_MANY = 10_000
"""Images whose headers take long enough to read that a line says so."""

MISSING = ("tell", "refuse")
"""The values of data.missing_captions."""


def opened(config: ConfigDict, workdir: Workdir) -> tuple[Source, Classes | None]:
    """(the training data of a run of config in the workdir, its classes; None without classes).

    The first process prints what the data holds. Raises UserError where it does not fit the config.
    """
    data = experiment.opened(config)
    found = classes.of_training(config, workdir, data)
    names = (
        found.names if found is not None and config.init_from else None
    )  # init_from may have classes that the data lack
    if names is None or len(names) != config.model.num_classes:
        experiment.source(config, data=data)  # raises where the data has more or fewer classes than the model
    source = experiment.source(config, found, data)
    lines = _described(config, source, found)
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)
    return source, found


def buckets(config: ConfigDict, model: experiment.Model | None, source: Source) -> Buckets | None:
    """The buckets of the training images, which the first process prints; None where config trains on one size."""
    if not experiment.training_sizes(config, model):
        return None
    first = jax.process_index() == 0
    if first and len(source) > _MANY:
        print(f"data: reading the sizes of {len(source):,} images", flush=True)
    found = experiment.buckets(config, model, source)
    if first and found is not None:
        print(f"data: {found.sentence()}", flush=True)
    return found


def _described(config: ConfigDict, source: Source, found: Classes | None) -> list[str]:
    """Lines about the contents of the data; raises UserError where missing captions are refused."""
    if config.data.missing_captions not in MISSING:
        raise UserError(f"data.missing_captions={config.data.missing_captions!r} is {' or '.join(MISSING)}")
    if not len(source):
        return []  # for which the pipeline raises
    options = config.data
    examples = description.examples_of(source)
    kind, shape = experiment.modality(config), experiment.shape(config)
    lines = [f"data: {kind.description(source, examples, shape)}"]
    if found is not None and found.names is not None:
        lines.append(f"data: {len(found.names):,} class{'es' if len(found.names) > 1 else ''}: {shown(found.names)}")
    missing = description.missing_sentences(description.missing(source, examples))
    if missing and options.missing_captions == "refuse":
        raise UserError(f"{options.source}: {'; '.join(missing)}; complete it, or set data.missing_captions=tell")
    return lines + [f"data: {sentence}" for sentence in missing]
