"""Networks whose features of images are compared in metrics such as FID."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError
from diffusion_jax.interop import inception_weights
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.nets.inception import SIDE, InceptionV3
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

INCEPTION, VALUES = "inception", "values"

_MOST_VALUES = 4096  # whose covariance takes 128 MiB


Apply = Callable[[Array | np.ndarray], Mapping[str, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The features of a network, and the record that names it."""

    apply: Apply
    """Images uint8 [B, H, W, C], or float32 [B, *S, C] of other data -> {"pooled": [B, D]} and, where the network has
    them, "probabilities" [B, classes] and Inception's "spatial" [B, D'], the features of sFID; float32."""
    record: Mapping[str, str]
    """What the record of a result says of the network: extractor, sha256, resize."""
    spatial: bool = False
    """Whether `apply` gives "spatial"."""

    @property
    def name(self) -> str:
        """The name in "FD (features: NAME)"."""
        return self.record["extractor"]

    @property
    def published(self) -> bool:
        """Whether they are the features of FID."""
        return self.name == INCEPTION


def inception(weights: Path, mesh: Mesh) -> Features:
    """FID's InceptionV3 with the weights of a .safetensors file. A gray image is repeated over the channels.

    Raises UserError where there is no such file, or where it holds other arrays.
    """
    if not weights.is_file():
        inception_weights.load(weights, "", {})  # raises, and says where to get the file
    net = InceptionV3()
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8))["params"]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    params = sharding.to_mesh(inception_weights.load(weights, digest, like), sharding.replicated(mesh))

    def program(params: Params, images: Array) -> dict[str, Array]:
        if images.shape[-1] == 4:
            raise UserError("InceptionV3 takes gray or RGB images; these have an alpha channel")
        if images.shape[-1] == 1:
            images = jnp.repeat(images, 3, axis=-1)
        out = cast(dict[str, Array], net.apply({"params": params}, images))
        classes = jax.nn.softmax(out["logits_unbiased"])
        return {"pooled": out["2048"], "probabilities": classes, "spatial": out["spatial"]}

    record = {"extractor": INCEPTION, "sha256": digest, "resize": f"tensorflow 1 bilinear to {SIDE} x {SIDE}"}
    return Features(_compiled(program, params, mesh), record, spatial=True)


def classifier(trained: Classifier, schedule: Schedule, name: str, mesh: Mesh) -> Features:
    """The features before the last layer of a classifier of noisy images, at t = 0, for images of its size alone."""
    params = sharding.to_mesh(trained.params, sharding.replicated(mesh))

    def program(params: Params, images: Array) -> dict[str, Array]:
        if images.shape[1:] != trained.shape:
            raise UserError(
                f"the features' classifier is of images {_size(trained.shape)}, these are {_size(images.shape[1:])}; "
                "train one on this data"
            )
        t = schedule.conditioning(jnp.zeros(len(images)))
        x = images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images
        logits, aside = trained.network.apply({"params": params}, x, t, mutable=["intermediates"])
        (pooled,) = aside["intermediates"]["attention_pool"]["pooled"]
        return {"pooled": pooled, "probabilities": jax.nn.softmax(logits)}

    record = {"extractor": name, "sha256": digest_of(trained.params), "resize": "none"}
    return Features(_compiled(program, params, mesh), record)


def values(mesh: Mesh) -> Features:
    """The values of an example themselves, in the model's units: for small arrays, of which no network is known."""

    def program(params: Params, x: Array) -> dict[str, Array]:
        x = x.astype(jnp.float32) / 127.5 - 1 if x.dtype == jnp.uint8 else x
        flat = x.reshape(len(x), -1)
        if flat.shape[1] > _MOST_VALUES:
            raise UserError(
                f"--features=values is of at most {_MOST_VALUES:,} values an example, these have {flat.shape[1]:,}; "
                "train a classifier, and give its workdir"
            )
        return {"pooled": flat}

    record = {"extractor": VALUES, "sha256": "", "resize": "none"}
    return Features(_compiled(program, {}, mesh), record)


def _compiled(program: Callable[..., dict[str, Array]], params: Params, mesh: Mesh) -> Apply:
    split = sharding.batch_sharding(mesh)
    run = jax.jit(sharding.on_mesh(mesh, program), in_shardings=(None, split), out_shardings=split)
    return lambda images: run(params, images)


def digest_of(params: Params) -> str:
    """The SHA-256 of the paths, dtypes, shapes and values of a tree's arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        a = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path, simple=True, separator='/')} {a.dtype} {a.shape}".encode())
        digest.update(np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
