"""Images [H, W, C]: pixels uint8 in files, [-1, 1] for the network."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from diffusion_jax.data import description, transforms
from diffusion_jax.data.example import Example, Source, image_of
from diffusion_jax.errors import UserError
from diffusion_jax.modalities.modality import Modality
from diffusion_jax.report import pictures


@dataclasses.dataclass(frozen=True)
class Image(Modality):
    """Images, gray, RGB or RGBA; PNG, JPEG and other still formats in, PNG out.

    resize says how they get the size of `data.shape`: "crop" scales them to cover it and cuts off what is outside,
    "pad" scales them to fit into it and fills it with white, "stretch" scales each side for itself. "buckets" trains on
    several sizes of its area, each batch of one of them: an image is scaled to cover the one nearest to its own ratio
    of height to width, and cropped to it. Outside of training, "buckets" is "crop".
    """

    resize: str = "crop"

    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    mirrors: ClassVar[bool] = True
    suffix: ClassVar[str] = ".png"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    noun: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        if self.resize not in transforms.RESIZES:
            raise UserError(
                f"resize={self.resize!r} of images is none of {', '.join(transforms.RESIZES)}; write "
                "image(resize='pad')"
            )

    @property
    def scales_maps(self) -> bool:
        """As `Modality`: a border has no class, and a stretched map no reader."""
        return self.resize in ("crop", "buckets")

    @property
    def in_buckets(self) -> bool:
        """As `Modality`."""
        return self.resize == "buckets"

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless shape is (height, width, channels), of 1, 3 or 4 channels."""
        if len(shape) != 3 or shape[-1] not in transforms.MODES:
            raise UserError(
                f"data.shape={shape} of images is (height, width, channels), channels 1 (gray), 3 (RGB) or 4 (RGBA)"
            )

    def decode(self, example: Example, shape: tuple[int, ...]) -> np.ndarray:
        """The image of an example, upright, uint8 [h, w, C]."""
        return transforms.decode(image_of(example), channels=shape[-1], name=example["name"])

    def read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """The image of a file, upright, uint8 [h, w, C]."""
        return transforms.decode(path.read_bytes(), channels=shape[-1], name=str(path))

    def fit(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The image in the size of shape, as `resize` says."""
        return transforms.RESIZES[self.resize](array, *shape[:2])

    def mirror(self, arrays: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Images [B, H, W, C], flipped left to right where `where` [B] is true."""
        return transforms.mirror(arrays, where)

    def to_model(self, arrays: np.ndarray) -> np.ndarray:
        """Pixels [B, H, W, C] as float32 in [-1, 1]."""
        return transforms.to_float(arrays)

    def from_model(self, x: np.ndarray) -> np.ndarray:
        """The nearest pixels of x [N, H, W, C]; values outside of [-1, 1] are clipped."""
        return pictures.to_uint8(x)

    def measured(self, source: Source, shape: tuple[int, ...]) -> str:
        """The spec itself, which has no numbers of the data."""
        return "image" if self.resize == "crop" else f"image(resize={self.resize!r})"

    def shape_of(self, source: Source) -> tuple[int, ...]:
        """(height, width, channels) of all images; raises UserError that lists the sizes where they differ."""
        return description.image_shape(source)

    def description(self, source: Source, examples: Sequence[Example], shape: tuple[int, ...]) -> str:
        """A sentence with sizes and colours, and how the images get the size of shape."""
        return description.images(source, list(examples), *shape, resize=self.resize)

    def tiles(self, arrays: np.ndarray) -> np.ndarray:
        """The images themselves."""
        return arrays

    def encode(self, array: np.ndarray) -> bytes:
        """A PNG."""
        return pictures.encode_png(array)
