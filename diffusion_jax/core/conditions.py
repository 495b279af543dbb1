"""Spatial conditions: what a network sees beside x, concatenated to it; images [B, H, W, C] in [-1, 1].

Each says what it is made of in training (the image, and what else the batch holds), what is random about it, and how it
is left out. The same parts come from what a user gives when sampling.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.errors import UserError

Parts = dict[str, Array]
"""Entries of a condition [B, H, W, C'], and levels [B]."""


def _as_it_is(key: Array, parts: Parts) -> Parts:
    return parts


@dataclasses.dataclass(frozen=True)
class Spatial:
    """One spatial condition of a network for images of C channels."""

    name: str
    reads: tuple[str, ...]  # entries of a batch beside the image
    channels: Callable[[int], dict[str, int]]  # C -> the channels of each entry
    images: tuple[str, ...]  # the entries that are images: a latent model reads their latents
    parts: Callable[[Mapping[str, Array]], Parts]  # a batch, with its image -> the entries
    augment: Callable[[Array, Parts], Parts] = _as_it_is  # in training, by a key
    levels: tuple[str, ...] = ()  # entries [B] that `augment` adds
    dropout: float = 0.0  # probability of all zeros in training
    factor: int = 1  # how many times smaller what a user gives is than the image


def low_resolution(factor: int = 4, noise: float = 0.0, dropout: float = 0.0) -> Spatial:
    """The image `factor` times smaller, enlarged again: super-resolution as in SR3 (arXiv:2104.07636).

    noise > 0 augments it in training: sqrt(1 - s^2) low + s z with s uniform in [0, noise], s being the level that the
    network is told (times the config's level_scale); Gaussian conditioning augmentation of cascades (arXiv:2106.15282,
    section 4.1).
    """
    _check_dropout("low_resolution", dropout)
    if factor < 2 or not 0 <= noise < 1:
        raise UserError(f"low_resolution takes a factor of at least 2 and noise in [0, 1); got {factor} and {noise}")

    def augment(key: Array, parts: Parts) -> Parts:
        level_key, noise_key = jax.random.split(key)
        low = parts["low_resolution"]
        level = jax.random.uniform(level_key, low.shape[:1], maxval=noise)
        return {"low_resolution": noised(noise_key, low, level), "low_resolution_level": level}

    return Spatial(
        "low_resolution",
        (),
        lambda channels: {"low_resolution": channels},
        ("low_resolution",),
        lambda batch: {"low_resolution": enlarged(shrunk(batch["image"], factor), factor)},
        augment if noise else _as_it_is,
        ("low_resolution_level",) if noise else (),
        dropout,
        factor,
    )


def inpaint(dropout: float = 0.0) -> Spatial:
    """What is known of the image, 0 elsewhere, and the mask of what is unknown (arXiv:2112.10752, section 4.5)."""
    _check_dropout("inpaint", dropout)

    def parts(batch: Mapping[str, Array]) -> Parts:
        mask = batch["mask"].astype(jnp.float32)[..., None]
        return {"mask": mask, "known": batch["image"] * (1 - mask)}

    return Spatial(
        "inpaint", ("mask",), lambda channels: {"mask": 1, "known": channels}, ("known",), parts, dropout=dropout
    )


def semantic_map(classes: int, dropout: float = 0.1) -> Spatial:
    """A map of classes, one channel each (arXiv:2112.10752, section 4.3.2)."""
    _check_dropout("map", dropout)
    if classes < 1:
        raise UserError(f"map takes the number of its classes; got {classes}")
    return Spatial(
        "map",
        ("map",),
        lambda channels: {"map": classes},
        (),
        lambda batch: {"map": jax.nn.one_hot(batch["map"], classes)},
        dropout=dropout,
    )


SPATIAL: dict[str, Callable[..., Spatial]] = {
    "low_resolution": low_resolution,
    "inpaint": inpaint,
    "map": semantic_map,
}


def shrunk(x: Array, factor: int) -> Array:
    """The mean of each factor x factor pixels: [B, H, W, C] -> [B, H / factor, W / factor, C]."""
    b, h, w, c = x.shape
    if h % factor or w % factor:
        raise UserError(f"an image of {h} x {w} pixels cannot be shrunk {factor} times; its sides must be divisible")
    return x.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


def enlarged(x: Array, factor: int) -> Array:
    """Bicubic enlargement within [-1, 1]: [B, h, w, C] -> [B, factor h, factor w, C]; what super-resolution beats."""
    b, h, w, c = x.shape
    return jnp.clip(jax.image.resize(x, (b, factor * h, factor * w, c), "cubic"), -1.0, 1.0)


def noised(key: Array, x: Array, level: Array) -> Array:
    """sqrt(1 - s^2) x + s z, s = level [B]."""
    s = level.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sqrt(1 - s**2) * x + s * jax.random.normal(key, x.shape)


def dropped(key: Array, parts: Parts, probability: float) -> Parts:
    """Each example's entries, or with that probability zeros instead of all of them."""
    if not probability:
        return parts
    keep = ~jax.random.bernoulli(key, probability, (len(next(iter(parts.values()))),))
    return {name: keep.reshape(-1, *(1,) * (a.ndim - 1)) * a for name, a in parts.items()}


def _check_dropout(name: str, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UserError(f"{name} takes a dropout in [0, 1); got {dropout}")
