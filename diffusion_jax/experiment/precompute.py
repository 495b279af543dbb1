"""What is computed once from the data, and not at every step: latents, and the features of captions."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import jax
import numpy as np
from jax import Array
from jax.stages import Wrapped
from ml_collections import ConfigDict

from diffusion_jax.data.precomputed import Precomputed, open_precomputed
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import data
from diffusion_jax.models.model import Model
from diffusion_jax.train.state import Params


def parts(model: Model, *, one_size: bool = True) -> tuple[str, ...]:
    """The parts of a model whose outputs can be computed before training: "autoencoder", and names of conditions.

    Latents cannot be where a condition is made from the augmented image of a step, nor without one_size, where training
    has images of several sizes. Raises UserError where there are no such parts.
    """
    of_image = any(condition.of_image for condition in model.conditions)
    latents = ("autoencoder",) if model.autoencoder is not None and not of_image and one_size else ()
    text = tuple(condition.name for condition in model.conditions if condition.features)
    if not latents + text:
        raise UserError(
            "nothing to precompute: the config has no latent (or spatial conditions, or images in buckets) and no text "
            "of a published encoder"
        )
    return latents + text


def precompute_program(model: Model) -> Wrapped:
    """The compiled program (pretrained, {"x": [B, *S, C], "tokens": [B, N]}) -> arrays by name.

    The batch has the entries that `parts` need. The result has mean and logvar [B, h, w, z] of scaled latents, and text
    [B, N, D], text_mask [B, N] and, for a network that takes it, text_pooled [B, D].
    """

    @jax.jit
    def program(pretrained: Mapping[str, Params], batch: Mapping[str, Array]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        if "x" in batch and model.autoencoder is not None:
            found["mean"], found["logvar"] = model.autoencoder.encode(pretrained["autoencoder"], batch["x"])
        for condition in model.conditions:
            if condition.features and set(condition.encodes) <= set(batch):
                found |= condition.encode(pretrained[condition.name], dict(batch))
        return found

    return program


def precomputed(config: ConfigDict, model: Model) -> Precomputed | None:
    """The arrays of data.precomputed; None where config names none.

    Raises UserError where other weights than the model's made them, or images of another size.
    """
    if not config.data.precomputed:
        return None
    found = open_precomputed(config.data.precomputed)
    digests = made_by(model)
    for part, made in found.weights:
        if digests.get(part) != made:
            raise UserError(
                f"{found.folder} was computed by another {part} than this config's; precompute it with this config"
            )
    shapes = {name: shape for name, shape, _ in found.arrays}
    wanted = {}
    if model.autoencoder is not None:
        wanted["mean"] = model.x_shape
    if model.text is not None:
        wanted["text"] = (model.text.length, model.text.width)
    for name, shape in wanted.items():
        if name in shapes and shapes[name] != shape:
            raise UserError(
                f"{found.folder} has {name} of {shapes[name]}, and examples of {data.shape(config)} with this config "
                f"give {shape}; precompute them with this config"
            )
    return found


_EARLIER = {"normed": True, "projection": 0}
"""{option of a text encoder that earlier folders do not tell of: what was computed without it}."""


def made_by(model: Model) -> dict[str, str]:
    """{part of the model: SHA-256} of everything that determines what is computed from an example."""
    digests = {name: digest(params) for name, params in model.pretrained.items()}
    if model.text is None or "text" not in digests:
        return digests
    network = model.text.network
    values = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    left_out = {"parent", "name", *(name for name, value in _EARLIER.items() if values.get(name) == value)}
    options = {name: repr(value) for name, value in values.items() if name not in left_out}
    words = model.text.published_tokenizer().to_json() if model.text.tokenizer else ""
    reading = json.dumps([options, words], sort_keys=True)
    return digests | {"text encoder's options or tokenizer": hashlib.sha256(reading.encode()).hexdigest()}


def digest(params: Params) -> str:
    """The SHA-256 of parameters with their paths, shapes and dtypes, in hexadecimal."""
    found = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
