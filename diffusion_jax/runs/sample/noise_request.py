"""The noise that samples start from, read from a file or written to one, to compare samples with other programs."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.samplers import start_noise
from diffusion_jax.errors import UserError

FILE = "noise.npy"


@dataclasses.dataclass(frozen=True)
class NoiseRequest:
    """The noise that samples start from, as the command's flags."""

    file: Path | None = None  # .npy of standard normal noise [N, *S, C]; None: drawn from the seeds
    keep: bool = False  # whether it is written beside the samples


DRAWN = NoiseRequest()


def starting_noise(request: NoiseRequest, seeds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The standard normal noise of the request, float32 [N, *shape], for seeds [N].

    shape is that of one x of the model. Raises UserError where the file holds no such array.
    """
    if request.file is None:
        return np.asarray(start_noise(jnp.asarray(seeds), shape))
    wanted = (len(seeds), *shape)
    try:
        noise = np.load(request.file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"--noise={request.file} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError):  # numpy's own words advise to unpickle
        raise UserError(f"--noise={request.file} is no whole .npy file; write one with numpy.save") from None
    if not isinstance(noise, np.ndarray) or noise.shape != wanted or not np.issubdtype(noise.dtype, np.floating):
        got = f"{noise.dtype} {noise.shape}" if isinstance(noise, np.ndarray) else type(noise).__name__
        raise UserError(
            f"--noise={request.file} holds {got}; this model starts {len(seeds)} samples from floats "
            f"of shape {wanted}, channels last"
        )
    if not np.isfinite(noise).all():
        raise UserError(f"--noise={request.file} has values that are not finite; write standard normal noise")
    return noise.astype(np.float32)
