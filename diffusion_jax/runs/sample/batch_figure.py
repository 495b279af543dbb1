"""What becomes of one batch of the training data in a few epochs: other times and other noise each time."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.core import process
from diffusion_jax.core.times import AdaptiveTimes, uniform
from diffusion_jax.report import figures as drawings
from diffusion_jax.runs.sample.examples import batch_at_hand
from diffusion_jax.runs.workdir.restored import Trained

_EXAMPLES, _EPOCHS = 10, 4


def draw_batch(trained: Trained) -> bytes | None:
    """A PNG of the first examples of the training data as a step sees them, in a row for each epoch.

    None where the data are not on this machine, and for a model of latents.
    """
    config, model = trained.config, trained.model
    if model.autoencoder is not None:
        return None
    batch = batch_at_hand(config, model, trained.tokenizer, _EXAMPLES)
    if batch is None:
        return None
    x0 = jnp.asarray(batch["x"])
    times = experiment.time_sampling(config.times)
    draw_times = uniform() if isinstance(times, AdaptiveTimes) else times
    rows, at = [x0], [np.zeros(_EXAMPLES)]
    for epoch in range(_EPOCHS):
        t_key, eps_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), epoch))
        t = draw_times(t_key, _EXAMPLES, model.schedule)
        level = model.schedule.level(t)
        x = process.diffuse(x0, jax.random.normal(eps_key, x0.shape), level)
        scale = 1 / jnp.sqrt(level.alpha**2 + level.sigma**2)
        rows.append(x * scale.reshape(-1, *(1,) * (x0.ndim - 1)))
        at.append(np.asarray(t))
    kind = experiment.modality(config)
    shown = np.asarray(jnp.stack(rows))
    tiles = kind.tiles(kind.from_model(shown.reshape(-1, *shown.shape[2:])))
    names = ["x₀", *(f"epoch {epoch + 1}: xₜ" for epoch in range(_EPOCHS))]
    titles = [[f"t = {t:.2f}" if t else "" for t in row] for row in at]
    return drawings.tiles_png(tiles.reshape(*shown.shape[:2], *tiles.shape[1:]), names, titles, "A batch in training")
