"""The example that a user edits, and which part of it is painted: read from files and checked."""

import dataclasses
from pathlib import Path

import numpy as np

from diffusion_jax import experiment
from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image, Modality
from diffusion_jax.train import memory


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """The example to edit and the options of the edit, as the command's flags."""

    init_image: Path  # an image or, of other data, a file as its samples are written
    mask: Path | None = None  # white is painted, black is kept
    expand: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels painted beyond the left, top, right and bottom
    strength: float | None = None  # None: 0.6, or 1 where a part is painted
    resample: int = 4
    invert: bool = False
    jump: int = 1
    paint: tuple[float, float] | None = None  # from and to, along the first side of an array; for audio in seconds


@dataclasses.dataclass(frozen=True)
class PreparedEdit:
    """The edit, with the example and the part that is painted."""

    edit: experiment.Edit
    image: np.ndarray  # [*S, C] in the model's units, on the canvas
    unknown: np.ndarray  # bool [*S, 1]: whether it is painted


def prepare(request: EditRequest, shape: tuple[int, ...], kind: Modality) -> PreparedEdit:
    """Reads the files of the request for a model of examples of shape [*S, C].

    Raises UserError where a file cannot be read, or it or an option does not fit the model.
    """
    if not request.init_image.is_file():
        raise UserError(f"there is no file {request.init_image}; check --init_image")
    x, unknown = (_image if isinstance(kind, Image) else _array)(request, shape, kind)
    inpaint = bool(unknown.any())
    strength = request.strength if request.strength is not None else 1.0 if inpaint else 0.6
    if request.invert and inpaint:
        raise UserError("--invert is of an edit of the whole example; give no --mask, --paint or --expand with it")
    edit = experiment.Edit(strength, inpaint, request.resample, x.shape[:-1], request.invert, request.jump)
    return PreparedEdit(edit, x, unknown)


def _image(request: EditRequest, shape: tuple[int, ...], kind: Modality) -> tuple[np.ndarray, np.ndarray]:
    """(the image [H, W, C] in the model's units, bool [H, W, 1]: which of its pixels are painted), on the canvas.

    The image and its mask are scaled and cropped to the model's size; a pixel is painted where any part of it is
    masked. An image that is expanded keeps its size, and is drawn in windows of the model's size.
    """
    if request.paint is not None:
        raise UserError("--paint is of arrays and audio; say what of an image is painted by --mask or --expand")
    height, width, channels = shape
    image = kind.read(request.init_image, shape)
    unknown = np.zeros((*image.shape[:2], 1), np.uint8) if request.mask is None else _read_mask(request.mask, image)
    if min(request.expand) < 0:
        raise UserError(f"--expand is left,top,right,bottom in pixels, none negative; got {_text(request.expand)}")
    if any(request.expand):
        left, top, right, bottom = request.expand
        _check_canvas(image.shape[0] + top + bottom, image.shape[1] + left + right, channels, request.expand)
        border = ((top, bottom), (left, right), (0, 0))
        image = np.pad(image, border, mode="edge")
        unknown = np.pad(unknown, border, constant_values=255)
        if image.shape[0] < height or image.shape[1] < width:
            raise UserError(
                f"--init_image with --expand={_text(request.expand)} is {image.shape[0]} x {image.shape[1]} pixels, "
                f"less than the model's {height} x {width}; expand it further, or enlarge the image first"
            )
    elif image.shape[:2] != (height, width):
        print(f"{request.init_image}: {image.shape[0]} x {image.shape[1]} scaled and cropped to {height} x {width}")
        image, unknown = (transforms.resize_crop(a, height, width) for a in (image, unknown))
    return kind.to_model(image[None])[0], unknown > 0


def _array(request: EditRequest, shape: tuple[int, ...], kind: Modality) -> tuple[np.ndarray, np.ndarray]:
    """(the array [*S, C] in the model's units, bool [*S, 1]: which of its places are painted).

    A series shorter than the model's examples is padded at its end, and the padding is painted.
    """
    if any(request.expand):
        raise UserError(
            f"--expand is of images, and this model is of {kind.noun}; give --paint=FROM,TO or --mask=FILE.npy"
        )
    array = kind.read(request.init_image, shape)
    missing = shape[0] - len(array) if len(shape) == 2 and array.shape[1:] == shape[1:] else 0
    array = kind.fit(np.pad(array, ((0, missing), (0, 0))) if missing > 0 else array, shape)
    unknown = np.zeros((*shape[:-1], 1), bool)
    if missing > 0:
        unknown[-missing:] = True
    if request.mask is not None:
        unknown |= _array_mask(request.mask, shape[:-1])
    if request.paint is not None:
        first, last = (round(place * kind.places_a_unit) for place in request.paint)
        if not 0 <= first < last <= shape[0]:
            end = shape[0] / kind.places_a_unit
            raise UserError(f"--paint=FROM,TO is within 0 and {end:g}, FROM below TO; got {_text(request.paint)}")
        unknown[first:last] = True
    if unknown.all():
        raise UserError("--mask and --paint leave nothing of the example; sample without --init_image")
    return kind.to_model(array[None])[0], unknown


def _array_mask(path: Path, sides: tuple[int, ...]) -> np.ndarray:
    """The mask bool [*S, 1] in a .npy file; raises UserError where the file or its shape is another."""
    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"--mask {path} is no array that can be read ({error}); give a .npy file of booleans"
        ) from error
    if mask.dtype != bool or mask.shape not in (sides, (*sides, 1)):
        raise UserError(
            f"--mask {path} is {mask.dtype} {mask.shape}; expected booleans {sides}, true where the example is painted"
        )
    return mask.reshape(*sides, 1)


def _check_canvas(height: int, width: int, channels: int, expand: tuple[int, ...]) -> None:
    """Raises UserError where an image of this size, as bytes and as float32, exceeds the free memory of the host."""
    free, size = memory.host(), 5 * height * width * channels
    if free is not None and size > free:
        raise UserError(
            f"--expand={_text(expand)} makes an image of {height:,} x {width:,} pixels, which takes "
            f"{size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free; expand it less"
        )


def _read_mask(path: Path, image: np.ndarray) -> np.ndarray:
    """The mask uint8 [H, W, 1], 255 where the image [H, W, C] is painted; raises UserError where it does not fit."""
    if not path.is_file():
        raise UserError(f"there is no image at {path}; check --mask")
    mask = transforms.decode(path.read_bytes(), channels=1, name=str(path))
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


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
