"""A file of somebody's weights: never a pickle, and the very one that was asked for."""

import hashlib
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from diffusion_jax.errors import UserError


def read(path: str | Path, sha256: str, *, weights: str, obtain: str) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file with this SHA-256; a message names the weights and how to obtain them.

    Raises UserError for a pickle, which could run code as it is read, no file, another one and a damaged one.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file, and a pickle such as .pth is not read, as it can run code; {obtain}"
        )
    if not path.is_file():
        raise UserError(f"no file {path} with the weights of {weights}; {obtain}")
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256.lower():
        raise UserError(f"{path} has SHA-256 {found}, not {sha256}; it is another file, or damaged")
    try:
        return safetensors.numpy.load(data)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file that can be read: {error}") from None
