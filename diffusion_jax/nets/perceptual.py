"""LPIPS, the perceptual distance of arXiv:1801.03924, on the features of VGG16; images [B, H, W, 3] in [-1, 1]."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load as read_safetensors

from diffusion_jax.errors import UserError
from diffusion_jax.nets.layers import Conv

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions, level by level (arXiv:1409.1556, table 1, D)."""

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
"""ImageNet's mean and std of the channels, for pixels in [-1, 1]."""

SCALING = {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE}
"""What the lpips package calls them."""

CONVERT = (
    'pip install lpips safetensors; python -c "import lpips; from safetensors.torch import save_file; '
    "save_file({k: v.clone() for k, v in lpips.LPIPS(net='vgg').state_dict().items()}, 'lpips_vgg.safetensors')\""
)

# Where torchvision's VGG16 has its convolutions: {index: our name}.
CONVS = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (f"conv_{k}_{i}" for k, widths in enumerate(WIDTHS) for i in range(len(widths))),
        strict=True,
    )
)


class LPIPS(nn.Module):
    """sum_l mean_hw sum_c w_lc (f_lc(x) - f_lc(y))^2, f_l the features of level l, each pixel's of length 1: eq. 1.

    The levels are relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of VGG16. `load` reads the weights.
    """

    dtype: DTypeLike = jnp.float32
    """Of the features; the distance is float32."""

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """x, y [B, H, W, 3] -> [B], 0 where equal; sides of at least 16 pixels, or UserError."""
        if x.shape != y.shape or x.shape[-1] != 3 or min(x.shape[1:3]) < 16:
            raise UserError(
                f"LPIPS compares images of one shape [B, H, W, 3], at least 16 x 16; got {x.shape} and {y.shape}"
            )
        h = (jnp.concatenate([x, y]).astype(jnp.float32) - SHIFT) / SCALE  # [2 B, H, W, 3]
        distance = jnp.zeros(len(x), jnp.float32)
        for k, widths in enumerate(WIDTHS):
            if k:
                h = nn.max_pool(h, (2, 2), (2, 2))
            for i, width in enumerate(widths):
                h = nn.relu(Conv(width, dtype=self.dtype, name=f"conv_{k}_{i}")(h))
            f = _unit(h.astype(jnp.float32))
            weight = self.param(f"head_{k}", nn.initializers.constant(1 / widths[-1]), (widths[-1],), jnp.float32)
            squares = jnp.square(f[: len(x)] - f[len(x) :])  # [B, h, w, C]
            distance += jnp.sum(squares * weight, axis=-1).mean(axis=(1, 2))
        return distance


def load(path: str | Path, sha256: str) -> dict[str, Any]:
    """The params of `LPIPS` in a .safetensors file with this SHA-256, named as by the lpips package or torchvision.

    Raises UserError for a pickle, which could run code as it is read, another file, and missing or left-over arrays.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file, and a pickle such as .pth is not read, as it can run code; "
            f"write one with: {CONVERT}"
        )
    if not path.is_file():
        raise UserError(f"no file {path} with the weights of LPIPS; write one with: {CONVERT}")
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256.lower():
        raise UserError(f"{path} has SHA-256 {found}, not {sha256}; it is another file, or damaged")
    try:
        arrays = read_safetensors(data)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file that can be read: {error}") from error
    return from_arrays(arrays)


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The params of `LPIPS`, float32, from arrays as the lpips package names them, or VGG16's as torchvision does.

    Raises UserError, naming all of them, where arrays are missing, left over or of another shape; lpips gives each head
    twice and the constants of its scaling, and where these say otherwise that is one too.
    """
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    params: dict[str, Any] = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)["params"]
    shapes = {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    read: dict[str, np.ndarray] = {}
    extra, otherwise = [], []
    for name, value in arrays.items():
        if name in SCALING:
            if not np.allclose(np.ravel(value), SCALING[name], rtol=1e-3):
                otherwise.append(name)
        elif ours := _our_name(name):
            if not np.array_equal(read.setdefault(ours, _ours(value)), _ours(value)):
                otherwise.append(name)
        else:
            extra.append(name)
    if missing := sorted(set(shapes) - set(read)):
        raise UserError(f"the weights are not LPIPS on VGG16: missing {missing}; left over {sorted(extra)}")
    if extra:
        raise UserError(f"the weights are not LPIPS on VGG16 alone: left over {sorted(extra)}")
    if wrong := [
        f"{name} {read[name].shape}, not {shapes[name]}" for name in shapes if read[name].shape != shapes[name]
    ]:
        raise UserError(f"the weights are not LPIPS on VGG16 (shapes channels last): {'; '.join(wrong)}")
    if otherwise:
        raise UserError(f"the weights are not one LPIPS of version 0.1: other values under {sorted(otherwise)}")
    return jax.tree_util.tree_map_with_path(lambda path, _: read["/".join(k.key for k in path)], params)


def _unit(h: Array) -> Array:
    """Each pixel's features over their length plus 1e-10; where the squares are all 0 the gradient is finite."""
    square = jnp.sum(h * h, axis=-1, keepdims=True)
    return h / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + 1e-10)


def _our_name(name: str) -> str | None:
    """[net.slice1 or features].0.weight -> conv_0_0/kernel; [lin0 or lins.0].model.1.weight -> head_0; else None."""
    if match := re.fullmatch(r"(?:net\.slice\d|features)\.(\d+)\.(weight|bias)", name):
        conv = CONVS.get(int(match[1]))
        return conv and f"{conv}/{'kernel' if match[2] == 'weight' else 'bias'}"
    if match := re.fullmatch(r"(?:lin|lins\.)([0-4])\.model\.1\.weight", name):
        return f"head_{match[1]}"
    return None


def _ours(value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if value.ndim != 4:
        return value
    return value.ravel() if value.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(value, (0, 1), (-1, -2)))
