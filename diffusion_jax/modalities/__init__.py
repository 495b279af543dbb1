"""The modalities: images, sounds and plain arrays, each with how it is read, pictured and written."""

from collections.abc import Callable

from diffusion_jax.modalities.array import Array
from diffusion_jax.modalities.audio import Audio
from diffusion_jax.modalities.image import Image
from diffusion_jax.modalities.modality import Modality
from diffusion_jax.spec import from_spec

MODALITIES: dict[str, Callable[..., Modality]] = {
    "image": Image,
    "array": Array,
    "audio": Audio,
}
"""{name: modality}; dotted names, such as `mypkg.Volume(spacing=0.5)`, are of other packages."""


def modality(spec: str) -> Modality:
    """The modality of a spec such as "image" or "array(mean=(0.1,), deviation=(2.0,))"; raises UserError for others."""
    return from_spec(spec, MODALITIES, "modality")
