"""What a user gives to be edited, read and checked: an image, and which of its pixels are to be painted."""

import dataclasses
from pathlib import Path

import numpy as np

from diffusion_jax import experiment
from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError
from diffusion_jax.train import memory


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """What to edit and how, as the command's flags say it."""

    init_image: Path
    mask: Path | None = None  # white is painted, black is kept
    expand: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels painted beyond the left, top, right and bottom
    strength: float | None = None  # None: 0.6, or 1 where a part is painted
    resample: int = 4
    invert: bool = False
    jump: int = 1


@dataclasses.dataclass(frozen=True)
class PreparedEdit:
    """The edit with its pixels."""

    edit: experiment.Edit
    image: np.ndarray  # [H, W, C] in [-1, 1], on the canvas
    unknown: np.ndarray  # bool [H, W, 1]: to be painted


def prepare(given: EditRequest, shape: tuple[int, int, int]) -> PreparedEdit:
    """Reads what is given for a model of images of shape H W C; raises UserError that says what does not fit.

    An image is scaled and cropped to the model's size, and its mask with it; a pixel is painted where any part of it
    was to be. One that is to be expanded keeps its size, and is drawn in windows of the model's.
    """
    height, width, channels = shape
    image = _read(given.init_image, "--init_image", channels)
    unknown = np.zeros((*image.shape[:2], 1), np.uint8) if given.mask is None else _read_mask(given.mask, image)
    if min(given.expand) < 0:
        raise UserError(f"--expand is left,top,right,bottom in pixels, none negative; got {_text(given.expand)}")
    if any(given.expand):
        left, top, right, bottom = given.expand
        _check_canvas(image.shape[0] + top + bottom, image.shape[1] + left + right, channels, given.expand)
        border = ((top, bottom), (left, right), (0, 0))
        image = np.pad(image, border, mode="edge")
        unknown = np.pad(unknown, border, constant_values=255)
        if image.shape[0] < height or image.shape[1] < width:
            raise UserError(
                f"--init_image with --expand={_text(given.expand)} is {image.shape[0]} x {image.shape[1]} pixels, less "
                f"than the model's {height} x {width}; expand it further, or enlarge the image first"
            )
    elif image.shape[:2] != (height, width):
        print(f"{given.init_image}: {image.shape[0]} x {image.shape[1]} scaled and cropped to {height} x {width}")
        image, unknown = (transforms.resize_crop(a, height, width) for a in (image, unknown))
    inpaint = bool((unknown > 0).any())
    strength = given.strength if given.strength is not None else 1.0 if inpaint else 0.6
    if given.invert and inpaint:
        raise UserError("--invert is of an edit of the whole image; give no --mask or --expand with it")
    edit = experiment.Edit(strength, inpaint, given.resample, image.shape[:2], given.invert, given.jump)
    return PreparedEdit(edit, transforms.to_float(image), unknown > 0)


def _check_canvas(height: int, width: int, channels: int, expand: tuple[int, ...]) -> None:
    """Raises UserError where an image of that size cannot be held: its pixels as bytes and as float32."""
    free, size = memory.host(), 5 * height * width * channels
    if free is not None and size > free:
        raise UserError(
            f"--expand={_text(expand)} makes an image of {height:,} x {width:,} pixels, which takes "
            f"{size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free; expand it less"
        )


def _read(path: Path, flag: str, channels: int) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"there is no image at {path}; check {flag}")
    return transforms.decode(path.read_bytes(), channels=channels, name=str(path))


def _read_mask(path: Path, image: np.ndarray) -> np.ndarray:
    mask = _read(path, "--mask", 1)
    if mask.shape[:2] != image.shape[:2]:
        sizes = [f"{a.shape[0]} x {a.shape[1]}" for a in (mask, image)]
        raise UserError(f"--mask {path} is {sizes[0]} pixels and --init_image {sizes[1]}; give them one size")
    if values := set(np.unique(mask)) - {0, 255}:
        raise UserError(
            f"--mask {path} is black where the image is kept and white where it is painted; it has gray {min(values)}; "
            "save it as a PNG of two colours"
        )
    if not mask.any():
        raise UserError(f"--mask {path} is all black, so there is nothing to paint; paint some of it white")
    return mask


def _text(expand: tuple[int, ...]) -> str:
    return ",".join(map(str, expand))
