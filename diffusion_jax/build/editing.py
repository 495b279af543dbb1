"""Drawing a part of a given image, or all of it from some noise on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffusion_jax.build.model import Model
from diffusion_jax.build.sampling import Sampling, guidance
from diffusion_jax.core import editing
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.samplers import SAMPLERS, AdaptiveSampler
from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class Edit:
    """What is done to a given image: diffused up to `strength` and drawn again, all of it or where it is unknown."""

    strength: float  # in (0, 1]; 1 starts from noise alone
    inpaint: bool  # whether a part of the image is kept
    resample: int  # turns of each step, where a part is kept
    canvas: tuple[int, int]  # H W of the image; larger than the model's is drawn in windows of the model's


def edit_program(model: Model, how: Sampling, mesh: Mesh, edit: Edit) -> Any:
    """(params, seeds [B], labels [B], image [H, W, C], unknown bool [H, W, 1]) -> edited images [B, H, W, C].

    With edit.inpaint the pixels that are not unknown come back as they are. Otherwise as `sample_program`.
    """
    sampler = from_spec(how.sampler, SAMPLERS, "sampler")
    if isinstance(sampler, AdaptiveSampler):
        raise UserError(f"sampler {how.sampler!r} takes steps of its own, which an edit cannot follow; choose ddim")
    times = editing.from_strength(from_spec(how.grid, GRIDS, "time grid")(model.schedule, how.steps), edit.strength)
    guide = guidance(model, how)
    window = model.shape[:2]
    strides = tuple(max(n // 2, 1) for n in window)
    count = int(np.prod([len(editing.windows(*n)) for n in zip(edit.canvas, window, strides, strict=True)]))

    def program(params: Params, seeds: Array, labels: Array, image: Array, unknown: Array) -> Array:
        if count == 1:
            denoise = guide(model.denoiser(params), labels)
        else:
            denoise = editing.in_windows(guide(model.denoiser(params), jnp.repeat(labels, count)), window, strides)
        method = editing.repaint(sampler, image, unknown, edit.resample) if edit.inpaint else sampler
        x0 = jnp.broadcast_to(image, (len(seeds), *image.shape))
        return editing.sample_from(denoise, method, model.schedule, jnp.asarray(times), seeds, x0)

    if edit.inpaint:  # a sampler that cannot keep a part raises here
        editing.repaint(sampler, jnp.zeros(1), jnp.ones(1, bool), edit.resample).plan(
            model.schedule, jnp.asarray(times)
        )
    split = sharding.batch_sharding(mesh)
    return jax.jit(program, in_shardings=(None, split, split, None, None), out_shardings=split)
