"""Pictures while a model trains: of the same seeds and the same examples every time."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.models.conditions import RequestSetting, default_numbers
from diffusion_jax.models.likelihood import own_conditions
from diffusion_jax.report import pictures
from diffusion_jax.runs.sample.conditioning import told_pictures
from diffusion_jax.runs.sample.examples import first_batch
from diffusion_jax.train import sharding
from diffusion_jax.train.interruptible import interruptible
from diffusion_jax.train.state import Params


class Preview(NamedTuple):
    """What is seen, and heard, of a model while it trains."""

    picture: np.ndarray  # uint8 [H, W, C]
    sounds: Sequence[bytes] = ()  # WAV files


Draw = Callable[[Params], Preview]
"""Averaged parameters -> a preview."""

_PROMPTS = 8  # rows of a grid by caption, at most, where config has no prompts


def samples(
    config: ConfigDict,
    model: experiment.Model,
    mesh: Mesh,
    source: Source,
    tokenizer: Tokenizer | None,
    pretrained: Mapping[str, Params],
) -> Draw:
    """The preview of samples in rows: by caption, by class or, for conditions that are images, by example."""
    program, kind = experiment.sample_program(model, experiment.sampling(config), mesh), experiment.modality(config)
    share = mesh.shape["data"] * mesh.shape["fsdp"]

    def draw(params: Params, rows: int, columns: int, cond: Mapping[str, np.ndarray]) -> Preview:
        """With a picture uint8 [rows, columns, H, W, C]; cond has an entry [rows] of each condition."""
        take = np.arange(-(-rows * columns // share) * share).clip(max=rows * columns - 1)
        entries = {name: a[take // columns] for name, a in cond.items()}
        split = sharding.batch_sharding(mesh)
        seeds, entries = sharding.to_mesh((take.astype(np.int32), entries), split)
        x = interruptible(lambda: sharding.to_host(program(params, pretrained, seeds, entries)))
        arrays = kind.from_model(x[: rows * columns])
        tiles = kind.tiles(arrays)
        return Preview(tiles.reshape(rows, columns, *tiles.shape[1:]), kind.sounds(arrays))

    if any(condition.shown_by_example for condition in model.conditions):
        return _by_example(config, model, source, tokenizer, draw)
    num = config.sample.num
    if model.text is not None and tokenizer is not None:
        prompts = list(config.sample.prompts) or _captions(source, min(_PROMPTS, num))
        columns = max(num // len(prompts), 1)
        cond = {"tokens": model.text.encode(tokenizer, prompts)}
        if model.num_classes:
            cond["label"] = np.full(len(prompts), model.num_classes, np.int32)
        cond |= default_numbers(model.conditions, RequestSetting(np.arange(len(prompts), dtype=np.int32), model.shape))

        def by_caption(params: Params) -> Preview:
            drawn = draw(params, len(prompts), columns, cond)
            return drawn._replace(picture=pictures.labelled_rows(drawn.picture, prompts))

        return by_caption
    rows = max(model.num_classes, 1)
    columns = max(num // rows, 1)
    names = source.class_names or [str(label) for label in range(rows)]
    cond = {"label": np.arange(rows, dtype=np.int32)} if model.num_classes else {}
    cond |= default_numbers(model.conditions, RequestSetting(np.arange(rows, dtype=np.int32), model.shape))

    def by_class(params: Params) -> Preview:
        drawn = draw(params, rows, columns, cond)
        tiles = drawn.picture
        return drawn._replace(picture=pictures.grid(tiles[0]) if rows == 1 else pictures.labelled_rows(tiles, names))

    return by_class


def _by_example(
    config: ConfigDict,
    model: experiment.Model,
    source: Source,
    tokenizer: Tokenizer | None,
    draw: Callable[..., Preview],
) -> Draw:
    """The preview with a row for each example: its conditions, three samples, and the example itself."""
    columns = 3
    rows = max(config.sample.num // columns, 1)
    batch = first_batch(config, source, model, tokenizer, rows)
    cond = own_conditions(model, batch)
    kind = experiment.modality(config)
    conditions = [picture[:, None] for picture in told_pictures(model, kind, cond)]

    def by_example(params: Params) -> Preview:
        drawn = draw(params, rows, columns, cond)
        real = kind.tiles(kind.from_model(batch["x"]))[:, None]
        tiles = np.concatenate([*conditions, drawn.picture, real], axis=1)
        return drawn._replace(picture=pictures.labelled_grid(tiles, rows=[f"example {i}" for i in batch["index"]]))

    return by_example


def reconstructions(
    config: ConfigDict, source: Source, mesh: Mesh, program: Callable[..., experiment.autoencoder.Reconstruction]
) -> tuple[Draw, Callable[[Params], dict[str, float]]]:
    """(the preview of images above their reconstructions, their measures), both functions of averaged parameters."""
    batch = first_batch(config, source, None, None, max(config.sample.num, 2))
    kind = experiment.modality(config)
    images = sharding.to_mesh(batch["x"], sharding.replicated(mesh))

    def draw(params: Params) -> Preview:
        decoded = interruptible(lambda: sharding.to_host(program(params, images).images))
        both = [kind.tiles(kind.from_model(a)) for a in (sharding.to_host(images), decoded)]
        shown = np.stack(both)[:, : config.sample.num]
        return Preview(pictures.labelled_grid(shown, rows=["image", "decoded"]))

    def measure(params: Params) -> dict[str, float]:
        reconstruction = program(params, images)
        return {name: float(getattr(reconstruction, name)) for name in ("latent_mean", "latent_std", "psnr", "ssim")}

    return draw, measure


def _captions(source: Source, count: int) -> list[str]:
    return [source[i]["caption"] for i in range(min(count, len(source)))]
