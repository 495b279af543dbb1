"""A data set in one class: gray squares of 8 x 8 pixels, light in one corner, which is their class."""

import dataclasses
import io

import numpy as np
from PIL import Image

from diffusion_jax.data.example import Example


@dataclasses.dataclass(frozen=True)
class Corners:
    """`count` pictures; class 0 is light at the top left, then clockwise; "brightness" is how light, in [0, 1]."""

    count: int = 64

    num_classes = 4
    class_names = ("top left", "top right", "bottom right", "bottom left")

    @property
    def fingerprint(self) -> str:
        """Of these pictures and no others."""
        return f"corners {self.count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        pixels = np.random.default_rng(index).integers(0, 60, (8, 8)).astype(np.uint8)
        row, column = ((0, 0), (0, 4), (4, 4), (4, 0))[index % 4]
        brightness = index % 7 / 6
        pixels[row : row + 4, column : column + 4] += np.uint8(80 + 110 * brightness)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return {
            "image": file.getvalue(),
            "name": f"corner {index}",
            "label": index % 4,
            "brightness": brightness,  # a field of its own, which a condition of its own reads
        }
