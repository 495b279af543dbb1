"""From encoded bytes to arrays [H, W, C] and back: per-example, pure."""

import io

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


def decode(data: bytes, *, channels: int, name: str) -> np.ndarray:
    """The image in data, upright, as uint8 [h, w, channels]: a mode of MODES.

    Transparent pixels show white unless channels is 4; 16-bit gray is scaled to 8. Size and format are read from the
    header before a pixel is decoded. Raises UserError that names the image if it is of another format, larger than
    MAX_PIXELS or broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            pixels = _pixels(image, MODES[channels]) if width * height <= MAX_PIXELS else None
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image of a known format ({', '.join(FORMATS)}); convert it") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large to decode: {error}; shrink it") from error
    except Exception as error:  # broken data makes Pillow's decoders raise nearly anything
        raise UserError(f"{name} can't be decoded ({error or type(error).__name__}); replace the file") from error
    if pixels is None:
        raise UserError(f"{name} is {width} x {height}, more than {MAX_PIXELS:,} pixels; shrink it")
    return pixels


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    if image.info.get("exif"):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point")
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip, not scale
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def resize_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The central height x width of image [h, w, C] uint8 after it was scaled, sides in proportion, to just cover it.

    Pillow's bicubic filter, whose support grows with the reduction, so that no frequency aliases; what FID is best
    measured with as well (Parmar et al. 2022, arXiv:2104.11222). An image that has the size is returned as it is.
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


def mirror(images: np.ndarray, where: np.ndarray) -> np.ndarray:
    """images [B, H, W, C], those where [B] holds flipped left to right."""
    mirrored = images.copy()
    mirrored[where] = images[where, :, ::-1]
    return mirrored


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]: x / 127.5 - 1."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """The nearest pixel values of images in [-1, 1], the exact inverse of `to_float`; what lies outside is clipped."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
