"""FID's weights as pytorch-fid and torch-fidelity publish them, into `nets.inception.InceptionV3`.

Both give one file, pt_inception-2015-12-05-6726825d.pth of SHA-256 PUBLISHED, which `CONVERT` turns into .safetensors.
Their kernels are [out, in, H, W], ours [H, W, in, out].
"""

from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop import weights_file

Path = tuple[str, ...]

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the .pth file; its first eight digits are in the file's name."""

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"

CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in '
    "torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True).items()}, 'inception.safetensors')\""
)

PARTS = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
    "fc_kernel": "fc.weight",
    "fc_bias": "fc.bias",
}


def load(path: str | File, sha256: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """The params of `InceptionV3` in a .safetensors file with this SHA-256; `like` as for `from_arrays`.

    Raises UserError as `weights_file.read` and `from_arrays` do.
    """
    obtain = f"fetch {URL} (SHA-256 {PUBLISHED}) and write one with: {CONVERT}"
    return from_arrays(weights_file.read(path, sha256, weights="InceptionV3", obtain=obtain), like)


def from_arrays(arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of `like`, the net's params or their shapes, with the values of a PyTorch state dict as float32.

    A norm's count of batches, which nothing computes with, is not read. Raises UserError, naming all of them, where
    arrays are missing, left over or of another shape.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    shapes = {tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    names = {path: ".".join((*path[:-1], PARTS[path[-1]])) for path in shapes}
    missing = sorted(set(names.values()) - set(arrays))
    extra = sorted(n for n in set(arrays) - set(names.values()) if not n.endswith(".bn.num_batches_tracked"))
    if missing or extra:
        raise UserError(f"the weights are not of FID's InceptionV3: missing {missing}; left over {extra}")
    params = {path: _ours(path, arrays[name]) for path, name in names.items()}
    wrong = [f"{names[p]} {params[p].shape}, not {shapes[p]}" for p in shapes if params[p].shape != shapes[p]]
    if wrong:
        raise UserError(f"the weights are not of FID's InceptionV3 (shapes channels last): {'; '.join(wrong)}")
    return jax.tree_util.tree_unflatten(tree, list(params.values()))


def _ours(path: Path, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if path[-1] == "kernel" and value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    if path[-1] == "fc_kernel":
        value = value.T
    return np.ascontiguousarray(value)
