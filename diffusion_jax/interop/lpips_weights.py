"""LPIPS's weights, as the lpips package or torchvision name them, into `nets.perceptual.LPIPS`.

Their kernels are [out, in, H, W], ours [H, W, in, out].
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop import weights_file

CONVERT = (
    'pip install lpips safetensors; python -c "import lpips; from safetensors.torch import save_file; '
    "save_file({k: v.clone() for k, v in lpips.LPIPS(net='vgg').state_dict().items()}, 'lpips_vgg.safetensors')\""
)

PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Of the convolutions in torchvision's VGG16, whose other modules have no weights."""

SCALING = {
    "scaling_layer.shift": np.array([-0.030, -0.088, -0.188]),
    "scaling_layer.scale": np.array([0.458, 0.448, 0.450]),
}
"""What the package divides pixels by, which a file of version 0.1 says too: `nets.perceptual`'s SHIFT and SCALE."""


def load(path: str | Path, sha256: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """The params of `LPIPS` in a .safetensors file with this SHA-256; `like` as for `from_arrays`.

    Raises UserError as `weights_file.read` and `from_arrays` do.
    """
    arrays = weights_file.read(path, sha256, weights="LPIPS", obtain=f"write one with: {CONVERT}")
    return from_arrays(arrays, like)


def from_arrays(arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of `like`, LPIPS's params or their shapes, as float32, from arrays with the names of either package.

    Raises UserError, naming all of them, where arrays are missing, left over or of another shape; lpips gives each head
    twice and the constants of its scaling, and where these say otherwise that is one too.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    shapes = {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    convs = dict(zip(PLACES, sorted(name for name in like if name.startswith("conv")), strict=True))
    read: dict[str, np.ndarray] = {}
    extra, otherwise = [], []
    for name, value in arrays.items():
        if name in SCALING:
            if not np.allclose(np.ravel(value), SCALING[name], rtol=1e-3):
                otherwise.append(name)
        elif ours := _our_name(name, convs):
            if not np.array_equal(read.setdefault(ours, _ours(value)), _ours(value)):
                otherwise.append(name)
        else:
            extra.append(name)
    if missing := sorted(set(shapes) - set(read)):
        raise UserError(f"the weights are not LPIPS on VGG16: missing {missing}; left over {sorted(extra)}")
    if extra:
        raise UserError(f"the weights are not LPIPS on VGG16 alone: left over {sorted(extra)}")
    if wrong := [
        f"{name} {read[name].shape}, not {shape}" for name, shape in shapes.items() if read[name].shape != shape
    ]:
        raise UserError(f"the weights are not LPIPS on VGG16 (shapes channels last): {'; '.join(wrong)}")
    if otherwise:
        raise UserError(f"the weights are not one LPIPS of version 0.1: other values under {sorted(otherwise)}")
    return jax.tree_util.tree_unflatten(tree, [read[name] for name in shapes])


def _our_name(name: str, convs: Mapping[int, str]) -> str | None:
    """[net.slice1 or features].0.weight -> conv_0_0/kernel; [lin0 or lins.0].model.1.weight -> head_0; else None."""
    if match := re.fullmatch(r"(?:net\.slice\d|features)\.(\d+)\.(weight|bias)", name):
        conv = convs.get(int(match[1]))
        return conv and f"{conv}/{'kernel' if match[2] == 'weight' else 'bias'}"
    if match := re.fullmatch(r"(?:lin|lins\.)([0-4])\.model\.1\.weight", name):
        return f"head_{match[1]}"
    return None


def _ours(value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if value.ndim != 4:
        return value
    return value.ravel() if value.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(value, (0, 1), (-1, -2)))
