"""Decoding, resizing and scaling of single images."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError


def encode(pixels, format="PNG", mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def decode(data, channels=3):
    return transforms.decode(data, channels=channels, name="the.png")


@pytest.mark.parametrize(("channels", "shape"), [(1, (5, 7)), (3, (5, 7, 3)), (4, (5, 7, 4))])
def test_lossless_pixels_come_back(channels, shape):
    pixels = noise(*shape)
    np.testing.assert_array_equal(decode(encode(pixels), channels), pixels.reshape(5, 7, channels))


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "WEBP"])
def test_every_format_decodes(format):
    pixels = noise(6, 4, 3)
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decode(encode(pixels, format, **options)), pixels)


def test_jpeg_decodes():
    assert np.abs(decode(encode(np.full((8, 8, 3), 90, np.uint8), "JPEG")).astype(int) - 90).max() <= 2


def test_gray_becomes_equal_channels():
    gray = noise(4, 6)
    np.testing.assert_array_equal(decode(encode(gray)), np.repeat(gray[..., None], 3, axis=2))


def test_rgb_becomes_luminance():
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B.
    pixels = noise(5, 5, 3)
    np.testing.assert_allclose(decode(encode(pixels), 1)[..., 0], pixels @ [0.299, 0.587, 0.114], atol=1)


def test_what_is_transparent_shows_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[..., 0], pixels[0, :, 3] = 200, [0, 51, 255]  # opacity 0, 1/5, 1 of (200, 0, 0)
    np.testing.assert_array_equal(decode(encode(pixels)), [[[255, 255, 255], [244, 204, 204], [200, 0, 0]]])
    np.testing.assert_array_equal(decode(encode(pixels), 4), pixels)


def test_transparent_palette_colour_shows_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    np.testing.assert_array_equal(decode(encode(image, transparency=1)), [[[10, 20, 30], [255, 255, 255]]])


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for format in ("PNG", "PPM"):
        np.testing.assert_array_equal(decode(encode(values, format), 1)[..., 0], [[0, 1, 128, 255]])


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise by a quarter
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # white at the left, which is the top once turned
    upright = decode(encode(pixels, "JPEG", exif=exif))
    assert upright.shape == (32, 16, 3)
    assert upright[:12].min() > 240
    assert upright[20:].max() < 15


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, kind, rows, *before, after=()):
    """A PNG of scanlines as they lie in the file, with chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize("where", ["before", "after", "text", "xmp"])
def test_the_orientation_is_read_wherever_it_stands(where):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    stored = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in stored)
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    chunks = {
        "before": (b"eXIf", raw.removeprefix(b"Exif\0\0")),
        "after": (b"eXIf", raw.removeprefix(b"Exif\0\0")),
        "text": (b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(raw), raw.hex().encode())),  # ImageMagick
        "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    }
    before, after = ((), (chunks[where],)) if where == "after" else ((chunks[where],), ())
    upright = decode(png(3, 2, 8, 0, rows, *before, after=after), 1)[..., 0]
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))


@pytest.mark.parametrize(
    ("depth", "kind", "rows", "transparent", "expected"),
    [
        (1, 0, b"\x80", b"\0\1", [(255, 0), (0, 255)]),  # gray: the first of two pixels is transparent
        (2, 0, b"\x70", b"\0\1", [(85, 0), (255, 255)]),
        (4, 0, b"\x3f", b"\0\3", [(51, 0), (255, 255)]),
        (8, 0, b"\x33\xff", b"\0\x33", [(51, 0), (255, 255)]),
        (16, 0, b"\x33\x33\x33\x34", b"\x33\x33", [(51, 0), (51, 255)]),
        (8, 2, b"\1\2\3\4\5\6", b"\0\1\0\2\0\3", [(1, 2, 3, 0), (4, 5, 6, 255)]),
        (16, 2, b"\1\7\2\7\3\7\4\7\5\7\6\7", b"\1\7\2\7\3\7", [(1, 2, 3, 0), (4, 5, 6, 255)]),
        (16, 4, b"\x33\x33\0\0\x44\x44\xff\xff", None, [(51, 0), (68, 255)]),
        (16, 6, b"\1\1\2\2\3\3\0\0\4\4\5\5\6\6\xff\xff", None, [(1, 2, 3, 0), (4, 5, 6, 255)]),
    ],
)
def test_transparency_survives_at_every_depth_of_a_png(depth, kind, rows, transparent, expected):
    before = () if transparent is None else ((b"tRNS", transparent),)
    data = png(2, 1, depth, kind, b"\0" + rows, *before)
    colours = [pixel if len(pixel) == 4 else (*pixel[:1] * 3, pixel[1]) for pixel in expected]
    # The colour of what is wholly transparent is no part of the picture.
    np.testing.assert_array_equal(decode(data, 4)[0, :, 3], [0, 255])
    np.testing.assert_array_equal(decode(data, 4)[0, 1], colours[1])
    np.testing.assert_array_equal(decode(data, 3)[0], [(255, 255, 255), colours[1][:3]])
    gray = round(float(np.dot(colours[1][:3], [0.299, 0.587, 0.114])))
    np.testing.assert_array_equal(decode(data, 1)[0, :, 0], [255, gray])


# mode: a pixel, and its colour and opacity in [0, 255]
PIXELS = {
    "1": (255, (255, 255, 255), 255),
    "L": (90, (90, 90, 90), 255),
    "LA": ((90, 51), (90, 90, 90), 51),
    "La": ((18, 51), (90, 90, 90), 51),
    "P": (1, (10, 200, 30), 255),
    "P with transparency": (1, (10, 200, 30), 51),
    "PA": ((1, 51), (10, 200, 30), 51),
    "RGB": ((10, 200, 30), (10, 200, 30), 255),
    "RGBA": ((10, 200, 30, 51), (10, 200, 30), 51),
    "RGBa": ((2, 40, 6, 51), (10, 200, 30), 51),
    "CMYK": ((245, 55, 225, 0), (10, 200, 30), 255),
    "YCbCr": ((124, 75, 47), (10, 200, 30), 255),  # JFIF: Y = 0.299 R + 0.587 G + 0.114 B
    "LAB": ((136, 128, 128), (127, 127, 127), 255),  # L* = 53.3 is Y = 0.213, in sRGB 127.4 / 255
    "HSV": ((85, 242, 200), (10, 200, 10), 255),
    "I": (0x5A5A, (90, 90, 90), 255),
    "I;16": (0x5A5A, (90, 90, 90), 255),
    "I;16B": (0x5A5A, (90, 90, 90), 255),
    "I;16 with transparency": (0x5A5A, (90, 90, 90), 0),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", PIXELS)
def test_every_mode_becomes_its_colour_over_white(mode, channels):
    value, colour, opacity = PIXELS[mode]
    kind, _, transparent = mode.partition(" with ")
    image = Image.new(kind, (2, 3))
    if kind.startswith("P"):
        image.putpalette([0, 0, 0, 10, 200, 30])
    for place in np.ndindex(2, 3):
        image.putpixel(place, value)
    if transparent:
        image.info["transparency"] = b"\xff\x33" if kind == "P" else value
    pixels = transforms.to_pixels(image, transforms.MODES[channels])
    assert (pixels.shape, pixels.dtype) == ((3, 2, channels), np.uint8)
    over_white = np.array(colour) * opacity / 255 + 255 - opacity
    expected = {1: [over_white @ [0.299, 0.587, 0.114]], 3: over_white, 4: [*colour, opacity]}[channels]
    if channels == 4 and opacity == 0:
        assert (pixels[..., 3] == 0).all()
        return
    exact = kind in ("1", "L", "P", "RGB", "RGBA", "I", "I;16", "I;16B", "CMYK")
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1 if exact else 2)


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 65536), ("I", -1)])
def test_pixels_that_are_no_bits_are_refused(mode, value):
    with pytest.raises(ValueError, match="its pixels are"):
        transforms.to_pixels(Image.new(mode, (2, 2), value), "RGB")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "PPM"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_image_is_named(format, part):
    data = encode(noise(20, 30, 3), format)
    with pytest.raises(UserError, match=r"^the\.png .*; (replace the file|convert it)$"):
        decode(data[: int(len(data) * part)])


def test_flipped_bytes_raise_nothing_but_user_errors():
    rng = np.random.default_rng(0)
    outcomes = set()
    for format in ("PNG", "JPEG", "WEBP", "BMP", "PPM"):
        data = np.frombuffer(encode(noise(20, 30, 3), format), np.uint8)
        for _ in range(60):
            broken = data.copy()
            broken[rng.integers(0, min(len(data), 200), 3)] = rng.integers(0, 256, 3)
            try:
                outcomes.add(str(decode(broken.tobytes()).shape[-1]))
            except UserError as error:
                outcomes.add(str(error).split()[0])
    assert outcomes == {"3", "the.png"}


def bomb(width, height):
    """A whole PNG of a few bytes whose header claims width x height."""
    return png(width, height, 8, 2, b"")


@pytest.mark.parametrize("side", [8193, 100_000])
def test_a_bomb_is_refused_from_its_header(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"^the\.png is .*shrink it$"):
        decode(bomb(side, side))


@pytest.mark.parametrize("format", ["GIF", "TIFF", "EPS"])
def test_other_formats_are_refused(format):
    with pytest.raises(UserError, match=r"^the\.png is not an image of a known format \(PNG, JPEG, WEBP, BMP, PPM\)"):
        decode(encode(noise(4, 4, 3), format))


def test_an_image_of_the_size_is_untouched():
    pixels = noise(9, 7, 3)
    assert transforms.resize_crop(pixels, 9, 7) is pixels


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("h", "w", "height", "width"), [(48, 80, 24, 16), (96, 32, 8, 16), (10, 10, 20, 40)])
def test_scaled_to_cover_and_cropped_in_the_middle(h, w, height, width, channels):
    pixels = noise(h, w, channels)
    pixels[..., 3:] = 255
    scale = max(height / h, width / w)
    assert (h * scale) % 1 == (w * scale) % 1 == 0
    # Independently: all of the image at the new scale, then the crop.
    whole = Image.fromarray(pixels.squeeze()).resize((int(w * scale), int(h * scale)), Image.Resampling.BICUBIC)
    top, left = (whole.height - height) // 2, (whole.width - width) // 2
    expected = np.asarray(whole.crop((left, top, left + width, top + height))).reshape(height, width, channels)
    result = transforms.resize_crop(pixels, height, width)
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result.astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("h", "w", "height", "width"), [(48, 80, 24, 16), (96, 32, 8, 16), (10, 10, 20, 40)])
def test_padded_images_are_whole_in_the_middle_of_white(h, w, height, width, channels):
    pixels = noise(h, w, channels)
    pixels[..., 3:] = 255
    scale = min(height / h, width / w)
    inner = round(h * scale), round(w * scale)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    result = transforms.resize_pad(pixels, height, width)
    within = np.zeros((height, width), bool)
    within[top : top + inner[0], left : left + inner[1]] = True
    expected = np.asarray(Image.fromarray(pixels.squeeze()).resize(inner[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(result[within], expected.reshape(-1, channels))
    np.testing.assert_array_equal(result[~within], np.tile([255, 255, 255, 0][:channels], ((~within).sum(), 1)))
    assert (~within).any()


def test_stretched_images_keep_a_ramp_of_each_side():
    """Of a plane of gray values, scaled to any size, a plane with the same corners; an edge shows a little."""
    y, x = np.mgrid[0:1:60j, 0:1:40j]
    plane = (100 * y + 80 * x)[..., None]
    y, x = np.mgrid[0:1:20j, 0:1:80j]
    result = transforms.resize_stretch(plane.round().astype(np.uint8), 20, 80)
    np.testing.assert_allclose(result, (100 * y + 80 * x)[..., None], atol=4)


@pytest.mark.parametrize("resize", transforms.RESIZES.values())
def test_what_has_the_size_stays_and_what_has_one_pixel_is_brought_to_it(resize):
    pixels = noise(9, 7, 3)
    np.testing.assert_array_equal(resize(pixels, 9, 7), pixels)
    for h, w in ((1, 999), (999, 1), (333, 334)):
        assert resize(np.full((h, w, 3), 77, np.uint8), 6, 10).shape == (6, 10, 3)


def test_reduction_does_not_alias():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255  # the highest frequency: a filter of fixed support would keep one of the two values
    assert np.abs(transforms.resize_crop(stripes, 8, 8).astype(int) - 127.5).max() <= 5  # an edge shows a little


@pytest.mark.parametrize(("h", "w"), [(1, 999), (999, 1), (7, 3), (333, 334)])
def test_any_shape_is_brought_to_the_size(h, w):
    result = transforms.resize_crop(np.full((h, w, 3), 77, np.uint8), 6, 10)
    np.testing.assert_array_equal(result, np.full((6, 10, 3), 77))


def test_mirror_flips_columns_of_the_chosen():
    pixels = noise(3, 4, 5, 2)
    flipped = transforms.mirror(pixels, np.array([True, False, True]))
    for i, chosen in enumerate([True, False, True]):
        for x in range(5):
            np.testing.assert_array_equal(flipped[i, :, x], pixels[i, :, 4 - x if chosen else x])


def test_every_pixel_value_survives_the_round_trip():
    values = np.arange(256, dtype=np.uint8)
    floats = transforms.to_float(values)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (-1, 1)
    np.testing.assert_allclose(floats, np.linspace(-1, 1, 256), atol=1e-7)
    np.testing.assert_array_equal(transforms.to_uint8(floats), values)


def test_what_lies_outside_is_clipped():
    np.testing.assert_array_equal(transforms.to_uint8(np.float32([-3, -1, 0, 1, 9])), [0, 0, 128, 255, 255])
