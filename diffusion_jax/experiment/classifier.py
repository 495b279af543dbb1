"""A classifier of noisy images: its network and its training."""

from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.stages import Wrapped
from ml_collections import ConfigDict

from diffusion_jax.config import base
from diffusion_jax.core import process
from diffusion_jax.core.classification import cross_entropy
from diffusion_jax.core.denoisers import Condition
from diffusion_jax.core.objectives import Examples, Trained
from diffusion_jax.core.times import AdaptiveTimes
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import data
from diffusion_jax.experiment.diffusion_model import schedule
from diffusion_jax.experiment.objectives import time_sampling
from diffusion_jax.experiment.training import Trainee
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.text import DTYPES
from diffusion_jax.nets import classifier as nets
from diffusion_jax.train.state import Params

_SHARED = ("num_classes", "channels", "multipliers", "blocks", "attention", "head_channels", "groups", "dropout")
"""The keys of `model` that a classifier uses, besides the dtype."""

_ALWAYS = {"scale_shift": True, "resample": "block"}
"""Keys of `model` whose values in a classifier are always these."""


def network(config: ConfigDict) -> nets.Classifier:
    """The network of a config of task classifier, by the keys of `model` that it shares with the U-Net.

    Raises UserError without model.num_classes or model.head_channels, and for an unknown dtype.
    """
    options = config.model
    if not options.num_classes:
        raise UserError("a classifier needs model.num_classes, the number of its classes")
    if not options.head_channels:
        raise UserError("a classifier needs model.head_channels, the channels of an attention head")
    if options.dtype not in DTYPES:
        raise UserError(f"unknown model.dtype {options.dtype!r}; choose from {', '.join(DTYPES)}")
    return nets.Classifier(dtype=DTYPES[options.dtype], **{name: options[name] for name in _SHARED})


def _check_unused(config: ConfigDict) -> None:
    """Raises UserError where `model` sets a key that a classifier does not have."""
    usual = base().model
    for name in usual:
        if name not in (*_SHARED, "dtype") and config.model[name] not in (usual[name], _ALWAYS.get(name, usual[name])):
            raise UserError(f"a classifier has no model.{name}={config.model[name]}; leave it at {usual[name]}")


def trained(config: ConfigDict, params: Params, scale: float) -> Classifier:
    """The classifier of config with these parameters, to guide with this scale."""
    return Classifier(network(config), params, config.model.num_classes, data.shape(config), scale)


def trainee(config: ConfigDict) -> Trainee:
    """The training of a classifier by `core.classification.cross_entropy`, at times drawn by config.times.

    Raises UserError for adaptive times, and for a config that does not fit a classifier.
    """
    net, noise = network(config), schedule(config.schedule)
    _check_unused(config)
    times = time_sampling(config.times)
    if isinstance(times, AdaptiveTimes):
        raise UserError(f"a classifier draws its times independently of its losses; times={config.times} does not")

    def init(key: Array) -> Params:
        x = jnp.zeros((1, *data.shape(config)))
        return net.init(key, x, jnp.zeros(1))["params"]

    def trained(params: Params, pretrained: Mapping[str, Params], dropout: Array) -> Trained:
        def apply(x: Array, t: Array, cond: Condition) -> Array:
            return cast(Array, net.apply({"params": params}, x, t, train=True, rngs={"dropout": dropout}))

        return Trained(params, pretrained, apply, noise)

    return Trainee(
        cross_entropy(times, noise),
        init,
        lambda key, batch, pretrained: Examples(batch["x"], {"label": batch["label"]}),
        trained,
        net.tensor_rules,
        net.outer_layers,
    )


def accuracy_program(config: ConfigDict) -> Wrapped:
    """The compiled program (params, images [B, H, W, C], labels [B], t) -> the share of right answers at time t."""
    net, noise = network(config), schedule(config.schedule)

    def program(params: Params, x0: Array, label: Array, t: Array) -> Array:
        eps = jax.random.normal(jax.random.key(0), x0.shape)
        at = jnp.full(len(x0), t)
        x = process.diffuse(x0, eps, noise.level(at))
        logits = cast(Array, net.apply({"params": params}, x, noise.conditioning(at)))
        return jnp.mean(jnp.argmax(logits, axis=-1) == label)

    return jax.jit(program)
