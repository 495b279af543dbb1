"""Edits of a given image with a model: drawing it again from a noise level on, or drawing a part of it."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.stages import Wrapped

from diffusion_jax.core import editing
from diffusion_jax.core.denoisers import Condition, Denoiser
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.samplers import SAMPLERS, sample
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import NEGATIVE
from diffusion_jax.models.model import Model
from diffusion_jax.models.sampling import ALONE, START, Guided, Guides, Sampling, guided
from diffusion_jax.spec import from_spec
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

_LEAST_NOISE = 1e-5  # for data in [-1, 1]; the log-SNR of schedules ends not far below


@dataclasses.dataclass(frozen=True)
class Edit:
    """An edit: the image is diffused up to time `strength` and drawn again, all of it or where it is unknown."""

    strength: float  # in (0, 1]; 1 starts from noise alone
    inpaint: bool  # whether a part of the image stays
    resample: int  # RePaint: how often each jump is taken
    canvas: tuple[int, ...]  # *S of the example; one larger than the model's is drawn in windows of the model's size
    invert: bool = False  # start from the noise that DDIM inversion finds in the image, not from random noise
    jump: int = 1  # RePaint: steps of a jump


def starts_from_noise(model: Model, edit: Edit) -> bool:
    """Whether the edit is a sample from noise alone: painting, at strength 1, by a model that is told what is known."""
    informed = any(condition.edits for condition in model.conditions)
    return informed and edit.inpaint and edit.strength == 1 and not edit.invert


def edit_times(model: Model, sampling: Sampling, edit: Edit) -> np.ndarray:
    """The times of an edit's steps, from edit.strength down to 0. Raises UserError where strength has no noise.

    Those of an edit that `starts_from_noise` are a sample's.
    """
    grid = from_spec(sampling.grid, GRIDS, "time grid")(model.schedule, sampling.steps)
    if starts_from_noise(model, edit):
        return np.asarray(grid)
    times = editing.from_strength(grid, edit.strength)
    if (sigma := float(model.schedule.sigma(jnp.float32(times[0])))) < _LEAST_NOISE:
        raise UserError(
            f"strength {edit.strength} adds noise of deviation {sigma:.1g}, which changes nothing; give more"
        )
    return times


def edit_program(model: Model, sampling: Sampling, mesh: Mesh, edit: Edit, guides: Guides = ALONE) -> Wrapped:
    """The compiled program (params, pretrained, seeds [B], cond, image [H, W, C], unknown [H, W, 1]) -> edited images.

    image is in [-1, 1] and as large as edit.canvas, unknown is a mask of bool, and cond is as in `sample_program`, with
    its spatial entries as large as the image. `START` is of an edit that `starts_from_noise`. The program returns
    [B, H, W, C]. With edit.inpaint, pixels that are not unknown come back unchanged: they enter a model that has an
    inpainting condition, and replace those of any other model at every step.

    Raises UserError, before anything is traced, where the sampler cannot keep a part of an image, where there is no
    noise at edit.strength, and where the canvas does not fit the autoencoder.
    """
    sampler = from_spec(sampling.sampler, SAMPLERS, "sampler")
    times = edit_times(model, sampling, edit)
    informed = [condition for condition in model.conditions if condition.edits]
    hold = edit.inpaint and not informed
    if hold:  # a sampler that cannot keep a part raises here
        held = editing.repaint(sampler, jnp.zeros(1), jnp.ones(1, bool), edit.resample, edit.jump)
        held.plan(model.schedule, jnp.asarray(times))
    guide = guided(model, sampling, guides)
    unguided = dataclasses.replace(sampling, guidance=1.0, guidance_rescale=0.0, guidance_interval=())
    plain = guided(model, unguided)
    canvas, fresh = _Canvas.of(model, edit), starts_from_noise(model, edit)

    def noise(params: Params, pretrained: Mapping[str, Params], cond: Condition, x0: Array) -> Array:
        """The noise from which DDIM leads to x0, without class and caption."""
        null = model.without(model.dropped_together, cond)
        null = {name: a for name, a in null.items() if not name.startswith(NEGATIVE)}
        schedule = model.bind(params).schedule
        return editing.invert(canvas.denoiser(plain, params, pretrained, null), schedule, times, x0)

    def program(
        params: Params, pretrained: Mapping[str, Params], seeds: Array, cond: Condition, image: Array, unknown: Array
    ) -> Array:
        images = jnp.broadcast_to(image, (len(seeds), *image.shape))
        masks = jnp.broadcast_to(unknown, (len(seeds), *unknown.shape))
        start = cond.get(START)
        cond = {name: value for name, value in cond.items() if name != START}
        for condition in informed:
            cond = {**cond, **condition.of_edit(images, masks)}
        x0, hidden = images, masks
        if model.autoencoder is not None:
            x0 = model.autoencoder.encode(pretrained["autoencoder"], images)[0]
            hidden = model.autoencoder.shrink(masks.astype(jnp.float32)) > 0
        schedule = model.bind(params).schedule
        denoise = canvas.denoiser(guide, params, pretrained, cond)
        if fresh:
            x = sample(denoise, sampler, schedule, times, seeds, x0.shape[1:], start=start)
        elif edit.invert:
            inverted = noise(params, pretrained, cond, x0)
            x = editing.integrate(denoise, sampler, schedule, times, inverted, editing.step_keys(seeds))
        else:
            method = editing.repaint(sampler, x0, hidden, edit.resample, edit.jump) if hold else sampler
            x = editing.sample_from(denoise, method, schedule, times, seeds, x0)
        drawn = model.decode(pretrained, x, sampling.decode_tile)
        if not edit.inpaint:
            return drawn
        return editing.blend(images, drawn, unknown, border=0 if canvas.factor == 1 else canvas.factor)

    split = sharding.batch_sharding(mesh)
    return jax.jit(
        sharding.on_mesh(mesh, program), in_shardings=(None, None, split, split, None, None), out_shardings=split
    )


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """The x of an edit, which may be larger than the model's own x."""

    sides: tuple[int, ...]  # of x: pixels, or latents
    window: tuple[int, ...]  # sides of the model's own x
    factor: int  # pixels on a side of a latent; 1 for a model of pixels

    @staticmethod
    def of(model: Model, edit: Edit) -> "_Canvas":
        """The canvas of an edit; raises UserError where the autoencoder's factor does not divide it."""
        factor = 1
        if model.autoencoder is not None:
            model.autoencoder.latent_shape((*edit.canvas, model.shape[-1]))  # raises where the canvas does not fit
            factor = model.autoencoder.network.factor
        return _Canvas(tuple(n // factor for n in edit.canvas), model.x_shape[:-1], factor)

    def denoiser(self, guide: Guided, params: Params, pretrained: Mapping[str, Params], cond: Condition) -> Denoiser:
        """The guided denoiser of the canvas: of the whole, or of overlapping windows where the canvas is larger.

        Each window of an example is told the same, and its own part of entries that are spread over the canvas.
        """
        if self.sides == self.window:
            return guide(params, pretrained, cond)
        strides = tuple(max(n // 2, 1) for n in self.window)
        count = editing.count_windows(self.sides, self.window, strides)
        pixels = tuple(n * self.factor for n in self.window), tuple(n * self.factor for n in strides)
        parts = {
            name: editing.crops(a, *pixels) if a.ndim == 4 else jnp.repeat(a, count, axis=0) for name, a in cond.items()
        }
        return editing.in_windows(guide(params, pretrained, parts), self.window, strides)
