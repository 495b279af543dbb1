"""From encoded bytes to arrays [H, W, C] and back: per-example, pure."""

import contextlib
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageOps

from diffusion_jax.errors import UserError

# Of Pillow's formats those of still images; others are films or many pages (GIF, TIFF), or run a program (EPS).
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
MAX_PIXELS = 2**26  # 8192 x 8192, below the 89 million where Pillow itself starts to warn

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels: Pillow's mode


_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH = 24  # place of the bits a sample in a PNG, whose header always comes first


def decode(data: bytes, *, channels: int, name: str) -> np.ndarray:
    """The image in data, upright, as uint8 [h, w, channels]: a mode of MODES.

    Transparent pixels show white unless channels is 4; 16-bit gray is scaled to 8. Size and format are read from the
    header before a pixel is decoded. Raises UserError that names the image if it is of another format, larger than
    MAX_PIXELS or broken.
    """
    with opened(data, name) as image:
        return to_pixels(image, MODES[channels])


@contextlib.contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image in data, decoded and upright, in the mode of its file.

    Orientation and transparency are read after the pixels, where a PNG may store them. Errors raised in the block count
    as errors of the image. Raises UserError as `decode` does.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            fits = width * height <= MAX_PIXELS
            if fits:
                image.load()
                if data.startswith(_PNG):
                    _scale_transparency(image, data[_DEPTH])
                ImageOps.exif_transpose(image, in_place=True)
                yield image
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image of a known format ({', '.join(FORMATS)}); convert it") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large to decode: {error}; shrink it") from error
    except Exception as error:  # broken data makes Pillow's decoders raise nearly anything
        raise UserError(f"{name} can't be decoded ({error or type(error).__name__}); replace the file") from error
    if not fits:
        raise UserError(f"{name} is {width} x {height}, more than {MAX_PIXELS:,} pixels; shrink it")


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Scales a PNG's transparent gray or colour as Pillow scales the pixels of this many bits a sample."""
    transparent = image.info.get("transparency")
    if image.mode == "L" and isinstance(transparent, int) and depth < 8:
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    if image.mode == "RGB" and isinstance(transparent, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def to_pixels(image: Image.Image, mode: str) -> np.ndarray:
    """An image of any mode of Pillow's as uint8 [h, w, C] in mode, one of MODES.

    Transparent pixels become white unless mode is RGBA. Gray of 16 bits is divided by 257 and rounded, where the
    conversion of Pillow clips it. Raises ValueError for floating-point pixels, and integers of more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "La":  # of which Pillow converts to LA alone
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.size and not (values.min() >= 0 and values.max() <= 65535):
        raise ValueError("its pixels are integers of more than 16 bits")
    gray = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def resize_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The central height x width of image [h, w, C] uint8 after it was scaled, sides in proportion, to just cover it.

    Pillow's bicubic filter, whose support grows with the reduction, so that no frequency aliases; FID is best
    measured with it too (Parmar et al. 2022, arXiv:2104.11222). An image that has the size is returned as it is.
    """
    h, w, channels = image.shape
    if (h, w) == (height, width):
        return image
    scale = max(height / h, width / w)
    top, left = max(h - height / scale, 0) / 2, max(w - width / scale, 0) / 2
    source = Image.fromarray(image[..., 0] if channels == 1 else image)
    # Resizing the part that stays is the same as cropping afterwards, and cheaper.
    resized = source.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, w - left, h - top))
    return np.asarray(resized).reshape(height, width, channels)


def resize_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """image [h, w, C] uint8, scaled, sides in proportion, to just fit into height x width, in the middle of white.

    The filter is that of `resize_crop`; with four channels the border is transparent.
    """
    h, w, channels = image.shape
    if (h, w) == (height, width):
        return image
    scale = min(height / h, width / w)
    inner_height, inner_width = max(round(h * scale), 1), max(round(w * scale), 1)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded = np.full((height, width, channels), 255, np.uint8)
    padded[..., 3:] = 0
    padded[top : top + inner_height, left : left + inner_width] = resize_stretch(image, inner_height, inner_width)
    return padded


def resize_stretch(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """All of image [h, w, C] uint8 at height x width, each side scaled for itself, with the filter of `resize_crop`."""
    h, w, channels = image.shape
    if (h, w) == (height, width):
        return image
    source = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = source.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(height, width, channels)


RESIZES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "crop": resize_crop,
    "pad": resize_pad,
    "stretch": resize_stretch,
    "buckets": resize_crop,
}
"""{name: how an image [h, w, C] is brought to height x width}; with "buckets" these are those of its bucket."""


def mirror(images: np.ndarray, where: np.ndarray) -> np.ndarray:
    """images [B, H, W, C], flipped left to right where `where` [B] is true."""
    mirrored = images.copy()
    mirrored[where] = images[where, :, ::-1]
    return mirrored


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]: x / 127.5 - 1."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """The nearest pixel values of images in [-1, 1], the exact inverse of `to_float`; values outside are clipped."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
