"""What kinds of data there are, and how each is read, pictured and written."""

from collections.abc import Callable

from diffusion_jax.modalities.audio import Audio
from diffusion_jax.modalities.modality import Modality

MODALITIES: dict[str, Callable[..., Modality]] = {
    "audio": Audio,
}
"""Open to dotted names: `mypkg.Volume(spacing=0.5)`."""
