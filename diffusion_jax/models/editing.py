"""Drawing a part of a given image, or all of it from some noise on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffusion_jax.core import editing
from diffusion_jax.core.denoisers import Condition, Denoiser
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.samplers import SAMPLERS
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import NEGATIVE
from diffusion_jax.models.model import Model
from diffusion_jax.models.sampling import ALONE, Guided, Guides, Sampling, guided
from diffusion_jax.spec import from_spec
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

_LEAST_NOISE = 1e-5  # of data in [-1, 1]; a schedule's log-SNR ends not far below


@dataclasses.dataclass(frozen=True)
class Edit:
    """What is done to a given image: diffused up to `strength` and drawn again, all of it or where it is unknown."""

    strength: float  # in (0, 1]; 1 starts from noise alone
    inpaint: bool  # whether a part of the image is kept
    resample: int  # turns of each jump, where a part is kept
    canvas: tuple[int, ...]  # *S of the example; larger than the model's is drawn in windows of the model's
    invert: bool = False  # to the noise that DDIM finds in the image, told of no class or caption, not to random noise
    jump: int = 1  # steps of a jump, where a part is kept


def edit_times(model: Model, how: Sampling, edit: Edit) -> np.ndarray:
    """The times of the edit's steps, from strength down to 0; raises UserError where there is no noise at strength."""
    grid = from_spec(how.grid, GRIDS, "time grid")(model.schedule, how.steps)
    times = editing.from_strength(grid, edit.strength)
    if (sigma := float(model.schedule.sigma(jnp.float32(times[0])))) < _LEAST_NOISE:
        raise UserError(
            f"strength {edit.strength} adds noise of deviation {sigma:.1g}, which changes nothing; give more"
        )
    return times


def edit_program(model: Model, how: Sampling, mesh: Mesh, edit: Edit, guides: Guides = ALONE) -> Any:
    """(params, pretrained, seeds [B], cond, image [H, W, C], unknown bool [H, W, 1]) -> edited images [B, H, W, C].

    With edit.inpaint the pixels that are not unknown come back as they are; a model trained to inpaint is told them,
    any other is held to them at every step. Otherwise as `sample_program`, the spatial entries of cond as large as the
    image.
    """
    sampler = from_spec(how.sampler, SAMPLERS, "sampler")
    times = edit_times(model, how, edit)
    told = [condition for condition in model.conditions if condition.edits]
    hold = edit.inpaint and not told
    if hold:  # a sampler that cannot keep a part raises here
        held = editing.repaint(sampler, jnp.zeros(1), jnp.ones(1, bool), edit.resample, edit.jump)
        held.plan(model.schedule, jnp.asarray(times))
    guide = guided(model, how, guides)
    plain = guided(model, dataclasses.replace(how, guidance=1.0, guidance_rescale=0.0, guidance_interval=()))
    factor = 1
    if model.autoencoder is not None:
        model.autoencoder.latent_shape((*edit.canvas, model.shape[-1]))  # raises where the canvas does not fit
        factor = model.autoencoder.network.factor
    window = model.x_shape[:-1]
    strides = tuple(max(n // 2, 1) for n in window)
    canvas = tuple(n // factor for n in edit.canvas)

    def denoiser(guide: Guided, params: Params, pretrained: Mapping[str, Params], cond: Condition) -> Denoiser:
        if canvas == window:
            return guide(params, pretrained, cond)
        # Every window of an example is told the same, and of what is spread over the canvas its own part.
        count = editing.count_windows(canvas, window, strides)
        pixels = tuple(n * factor for n in window), tuple(n * factor for n in strides)
        parts = {
            name: editing.crops(a, *pixels) if a.ndim == len(model.shape) + 1 else jnp.repeat(a, count, axis=0) for name, a in cond.items()
        }
        return editing.in_windows(guide(params, pretrained, parts), window, strides)

    def program(
        params: Params, pretrained: Mapping[str, Params], seeds: Array, cond: Condition, image: Array, unknown: Array
    ) -> Array:
        images = jnp.broadcast_to(image, (len(seeds), *image.shape))
        masks = jnp.broadcast_to(unknown, (len(seeds), *unknown.shape))
        for condition in told:
            cond = {**cond, **condition.of_edit(images, masks)}
        x0, hidden = images, masks
        if model.autoencoder is not None:
            x0 = model.autoencoder.encode(pretrained["autoencoder"], images)[0]
            hidden = model.autoencoder.shrink(masks.astype(jnp.float32)) > 0
        method = editing.repaint(sampler, x0, hidden, edit.resample, edit.jump) if hold else sampler
        schedule = model.bind(params).schedule
        denoise = denoiser(guide, params, pretrained, cond)
        if edit.invert:
            silent = model.without(model.together, cond)
            silent = {name: a for name, a in silent.items() if not name.startswith(NEGATIVE)}
            noise = editing.invert(denoiser(plain, params, pretrained, silent), schedule, times, x0)
            x = editing.integrate(denoise, sampler, schedule, times, noise, editing.step_keys(seeds))
        else:
            x = editing.sample_from(denoise, method, schedule, times, seeds, x0)
        drawn = model.decode(pretrained, x, how.decode_tile)
        return editing.blend(images, drawn, unknown, border=0 if factor == 1 else factor) if edit.inpaint else drawn

    split = sharding.batch_sharding(mesh)
    return jax.jit(
        sharding.on_mesh(mesh, program), in_shardings=(None, None, split, split, None, None), out_shardings=split
    )
