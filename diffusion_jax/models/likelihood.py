"""Bits per dimension of images under a diffusion model of pixels, in one compiled program."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.stages import Wrapped

from diffusion_jax.core import likelihood
from diffusion_jax.core.bound import prior_term, variational_bound
from diffusion_jax.core.denoisers import Condition, Denoiser
from diffusion_jax.core.grids import trailing
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.reconstruction import first_time, log_gaussian, reconstruction_term
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.core.vdm_bound import diffusion_term
from diffusion_jax.errors import UserError
from diffusion_jax.models.model import Model
from diffusion_jax.models.sampling import Sampling, guided
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

DRAWS = 64
"""Random times for each image in the continuous-time bound, where the user gives no number."""

DRAWS_A_DECODER = 8
"""Draws of the integral for each draw of the decoder in the continuous-time bound. The decoder varies less."""

Parts = dict[str, Array]
"""The number "total" [B] and the numbers [B] that it is the sum of, in bits per dimension."""

Measure = Callable[[Denoiser, Schedule, Array, Array], Parts]
"""(denoise, the schedule, as learned, images [B, H, W, C], keys [B]) -> parts."""


def bits_per_dim_program(model: Model, sampling: Sampling, mesh: Mesh, method: str, steps: int = 0) -> Wrapped:
    """The compiled program (params, pretrained, images [B, H, W, C], seed, examples [B], cond) -> `Parts`.

    The random draws of image i depend on seed and examples[i], its index in the data set, alone. cond has the images'
    conditions (`own_conditions`). Guidance and thresholds of sampling are not used. method is a name of `METHODS`, and
    steps how many steps or draws it takes, 0 for its default. Raises UserError, before anything is traced, for another
    method and for a model of latents.
    """
    if method not in METHODS:
        raise UserError(f"bits_per_dim is found by method {' or '.join(METHODS)}; got {method!r}")
    if model.autoencoder is not None:
        raise UserError(
            "bits_per_dim is of models of pixels; this one is of an autoencoder's latents, which give images no density"
        )
    if steps < 0:
        raise UserError(f"--likelihood_steps is at least 0; got {steps}")
    measure = METHODS[method](model, steps)
    plain = dataclasses.replace(sampling, guidance=1.0, guidance_rescale=0.0, guidance_interval=(), threshold="none")
    guide = guided(model, plain)

    def program(
        params: Params, pretrained: Mapping[str, Params], images: Array, seed: Array, examples: Array, cond: Condition
    ) -> Parts:
        keys = jax.vmap(lambda example: jax.random.fold_in(jax.random.key(seed), example))(examples)
        return measure(guide(params, pretrained, cond), model.bind(params).schedule, images, keys)

    split = sharding.batch_sharding(mesh)
    return jax.jit(
        sharding.on_mesh(mesh, program), in_shardings=(None, None, split, None, split, split), out_shardings=split
    )


def own_conditions(model: Model, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The conditions of each example of a batch, without dropout and augmentation."""
    return {name: np.asarray(a) for name, a in model.entries(batch).items()}


def bound(model: Model, steps: int) -> Measure:
    """L_vlb of the whole chain (steps 0) or of a sub-chain of `steps` steps; in continuous time, from `steps` draws."""
    schedule = model.schedule
    if schedule.steps is None:
        return partial(_continuous_bound, draws=steps or DRAWS)
    times = trailing()(schedule, steps) if steps else None
    if steps == 1 or schedule.steps == 1:
        raise UserError("the bound is of a chain of 2 steps or more")
    variance = "learned" if model.parameterization.learned_variance else "small"

    def measure(denoise: Denoiser, schedule: Schedule, images: Array, keys: Array) -> Parts:
        found = variational_bound(denoise, schedule, images, keys, variance=variance, times=times)
        diffusion = jnp.sum(found.steps, axis=0)
        return {"total": found.total, "prior": found.prior, "diffusion": diffusion, "decoder": found.decoder}

    return measure


def _continuous_bound(denoise: Denoiser, schedule: Schedule, images: Array, keys: Array, *, draws: int) -> Parts:
    """VDM's bound from `first_time` on, with stratified draws of its integral and the decoder `reconstruction_term`."""
    start = first_time(schedule)

    def diffusion(k: Array) -> Array:
        place, noise = _split(keys, k)
        u = (k + jax.vmap(jax.random.uniform)(place)) / draws  # draw k of an image lies in stratum k
        return diffusion_term(denoise, schedule, images, u, _normal(noise, images), start=start)

    def decoder(k: Array) -> Array:
        noise, probe = _split(keys, draws + k)
        return reconstruction_term(denoise, schedule, start, images, _normal(noise, images), _signs(probe, images))

    def mean(term: Callable[[Array], Array], n: int) -> Array:
        return jnp.mean(jax.lax.map(term, jnp.arange(n)), axis=0)

    parts = {
        "prior": prior_term(images, schedule),
        "diffusion": mean(diffusion, draws),
        "decoder": _bits(mean(decoder, max(1, draws // DRAWS_A_DECODER)), images),
    }
    return {"total": sum(parts.values(), jnp.zeros(len(images))), **parts}


def ode(model: Model, steps: int) -> Measure:
    """The density of x_start by the probability-flow ODE, and the decoder from there to the image.

    The ODE runs from `first_time` to 1, in `steps` steps of the classical Runge-Kutta method evenly spaced in log-SNR
    up to sigma / alpha = 80, or with adaptive steps for 0. The trace is estimated with one Rademacher vector an image.
    """
    solver = likelihood.fixed("rk4") if steps else likelihood.adaptive()
    if first_time(model.schedule) >= 1:
        raise UserError("the ODE needs a chain of 2 steps or more")

    def measure(denoise: Denoiser, schedule: Schedule, images: Array, keys: Array) -> Parts:
        start = first_time(schedule)
        noise, trace, probe = _split(keys, 0, 3)
        images = jnp.round((images + 1) * 127.5) / 127.5 - 1
        eps = _normal(noise, images)
        level = schedule.level(jnp.float32(start))
        times = likelihood.rising(schedule, start, steps or 1, sigma_max=80.0 if steps else None)
        log_prob = likelihood.log_likelihood(
            denoise, schedule, times, diffuse(images, eps, level), likelihood.hutchinson(trace), solver
        )
        flow = _bits(log_gaussian(eps, level.sigma) - log_prob, images)
        decoder = _bits(reconstruction_term(denoise, schedule, start, images, eps, _signs(probe, images)), images)
        return {"total": flow + decoder, "flow": flow, "decoder": decoder}

    return measure


def conventions(model: Model, method: str) -> dict[str, float | str]:
    """What the record of a likelihood says beside its method and steps: the first noise level and the decoder."""
    if method == "bound" and model.schedule.steps is not None:
        return {}
    with jax.ensure_compile_time_eval():
        alpha, sigma = model.schedule.level(jnp.float32(first_time(model.schedule)))
        level = float(f"{float(sigma / alpha):.4g}")
    return {"first_noise_level": level, "decoder": "normal, of one variance an image"}


def _split(keys: Array, k: Array | int, n: int = 2) -> Array:
    """n keys for draw k of each of keys [B]: [n, B]."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k), n), out_axes=1)(keys)


def _normal(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


def _signs(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)


def _bits(nats: Array, x: Array) -> Array:
    return likelihood.bits_per_dim(-nats, int(np.prod(x.shape[1:])), offset=0.0)


METHODS: dict[str, Callable[[Model, int], Measure]] = {"bound": bound, "ode": ode}
