"""Every kind of pixel that a JPEG, PNG, WebP or GIF can have looks as the same picture in 8-bit RGB does."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from autoglm.vision.image import decoded_image

HIGH, WIDE = 40, 30
LOSSY = 6.0  # mean difference of a sample, of 255


def picture() -> Image.Image:
    """A picture with every shade of grey, and each colour alone."""
    shades = np.linspace(0, 255, HIGH * WIDE).reshape(HIGH, WIDE)
    return Image.fromarray(np.stack([shades, shades[::-1], shades[:, ::-1]], -1).astype(np.uint8))


RGB = np.asarray(picture())
GREY = np.asarray(picture().convert("L"))
HOLE = np.zeros((HIGH, WIDE), bool)
HOLE[:10] = True


def png(rows: NDArray[Any], depth: int, colour: int, transparent: Sequence[int] = ()) -> bytes:
    """Return a PNG of samples that are already in its own form: big-endian, or packed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDE, HIGH, depth, colour, 0, 0, 0))
    hole = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + hole + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(samples: NDArray[Any]) -> NDArray[Any]:
    """Return samples of 8 bits in 16, as PNG writes them."""
    return (samples.astype(np.uint16) * 257).astype(">u2")


def packed(samples: NDArray[Any], depth: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return samples as a PNG packs them in `depth` bits, and as they look."""
    most = 2**depth - 1
    values = samples.astype(int) * most // 255
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(HIGH, -1), axis=1), (values * 255 // most).astype(np.uint8)


def with_hole(samples: NDArray[Any]) -> NDArray[Any]:
    """Return `samples` with an alpha channel that leaves out the hole."""
    most = np.iinfo(samples.dtype).max
    alpha = np.where(HOLE, 0, most).astype(samples.dtype)
    return np.concatenate([samples.reshape(HIGH, WIDE, -1), alpha[..., None]], -1)


def white_in(hole: NDArray[Any], samples: NDArray[Any]) -> NDArray[Any]:
    return np.where(hole if samples.ndim == 2 else hole[..., None], 255, samples).astype(np.uint8)


SHADE = int(GREY[3, 3])
COLOUR = [int(sample) for sample in RGB[3, 3]]
PALETTE = picture().quantize(64)
INDEX = PALETTE.getpixel((3, 3))
SHOWN = np.asarray(PALETTE.convert("RGB"))
NOT_SHOWN = white_in(np.asarray(PALETTE) == INDEX, SHOWN)
TWO, FOUR, SIXTEEN = (packed(GREY, depth) for depth in (1, 2, 4))
MOVING: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (WIDE, HIGH), "red")]}

PICTURES: dict[str, tuple[bytes, NDArray[Any]]] = {
    "grey, 16 bits": (png(deep(GREY), 16, 0), GREY),
    "grey, 16 bits, a transparent shade": (png(deep(GREY), 16, 0, [SHADE * 257]), white_in(GREY == SHADE, GREY)),
    "grey, 16 bits, from Pillow": (saved(Image.fromarray(GREY.astype(np.uint16) * 257)), GREY),
    "grey with alpha, 16 bits": (png(with_hole(deep(GREY)).astype(">u2"), 16, 4), white_in(HOLE, GREY)),
    "colour, 16 bits": (png(deep(RGB), 16, 2), RGB),
    "colour, 16 bits, a transparent colour": (
        png(deep(RGB), 16, 2, [sample * 257 for sample in COLOUR]), white_in((RGB == COLOUR).all(-1), RGB)
    ),
    "colour with alpha, 16 bits": (png(with_hole(deep(RGB)).astype(">u2"), 16, 6), white_in(HOLE, RGB)),
    "grey": (saved(Image.fromarray(GREY)), GREY),
    "grey, a transparent shade": (png(GREY, 8, 0, [SHADE]), white_in(GREY == SHADE, GREY)),
    "grey with alpha": (png(with_hole(GREY), 8, 4), white_in(HOLE, GREY)),
    "1 bit": (png(TWO[0], 1, 0), TWO[1]),
    "1 bit, black is transparent": (png(TWO[0], 1, 0, [0]), np.full_like(GREY, 255)),
    "2 bits": (png(FOUR[0], 2, 0), FOUR[1]),
    "4 bits": (png(SIXTEEN[0], 4, 0), SIXTEEN[1]),
    "4 bits, black is transparent": (png(SIXTEEN[0], 4, 0, [0]), white_in(SIXTEEN[1] == 0, SIXTEEN[1])),
    "colour, a transparent colour": (png(RGB, 8, 2, COLOUR), white_in((RGB == COLOUR).all(-1), RGB)),
    "colour with alpha": (saved(Image.fromarray(with_hole(RGB))), white_in(HOLE, RGB)),
    "palette": (saved(PALETTE), SHOWN),
    "palette, a transparent index": (saved(PALETTE, transparency=INDEX), NOT_SHOWN),
    "palette, alpha for each index": (
        saved(PALETTE, transparency=bytes(0 if index == INDEX else 255 for index in range(64))), NOT_SHOWN
    ),
    "APNG": (saved(picture(), **MOVING), RGB),
    "GIF": (saved(PALETTE, "GIF"), SHOWN),
    "GIF, transparent": (saved(PALETTE, "GIF", transparency=INDEX), NOT_SHOWN),
    "GIF that moves": (saved(PALETTE, "GIF", **MOVING), SHOWN),
    "WebP": (saved(picture(), "WEBP", lossless=True), RGB),
    "WebP with alpha": (saved(Image.fromarray(with_hole(RGB)), "WEBP", lossless=True), white_in(HOLE, RGB)),
    "WebP that moves": (saved(picture(), "WEBP", lossless=True, **MOVING), RGB),
    "JPEG, grey": (saved(Image.fromarray(GREY), "JPEG", quality=95), GREY),
    "JPEG": (saved(picture(), "JPEG", quality=95, subsampling=0), RGB),
    "JPEG, RGB inside": (saved(picture(), "JPEG", quality=95, keep_rgb=True), RGB),
    "JPEG, CMYK as Adobe writes it": (saved(picture().convert("CMYK"), "JPEG", quality=95), RGB),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_looks_as_it_does_in_8_bit_rgb(name: str) -> None:
    data, looks = PICTURES[name]
    expected = np.asarray(Image.fromarray(looks).convert("RGB")).astype(int)
    with decoded_image(data) as image:
        assert image.mode == "RGB"
        difference = np.abs(np.asarray(image).astype(int) - expected)
    assert difference.mean() < (LOSSY if "JPEG" in name else 0.01), difference.mean()


@pytest.mark.parametrize("write", [lambda grey: deep(grey), lambda grey: grey], ids=["16 bits", "8 bits"])
def test_a_grey_picture_stays_upright(write: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = Image.fromarray(write(GREY).astype(write(GREY).dtype.newbyteorder("=")))
    with decoded_image(saved(image, exif=exif)) as read:
        turned = np.asarray(read.convert("L"))
    np.testing.assert_array_equal(turned, np.rot90(GREY, -1))


@pytest.mark.parametrize(
    ("size", "least", "decoded"),
    [
        ((4000, 3000), 448, (1000, 750)),  # an eighth would be too narrow
        ((4000, 3000), 376, (1000, 750)),
        ((4000, 3000), 375, (500, 375)),
        ((9000, 500), 448, (9000, 500)),
        ((2000, 2000), 448, (2000, 2000)),  # not large
    ],
)
def test_a_large_jpeg_is_decoded_at_a_fraction(size: tuple[int, int], least: int, decoded: tuple[int, int]) -> None:
    whole = picture().resize(size, Image.Resampling.BICUBIC)
    with decoded_image(saved(whole, "JPEG", quality=90), least) as image:
        assert image.size == decoded
        seen, expected = (np.asarray(each.resize((224, 224))).astype(int) for each in (image, whole))
    assert np.abs(seen - expected).mean() < 2


def test_other_files_are_decoded_whole() -> None:
    for kind in ("PNG", "WEBP", "GIF"):
        with decoded_image(saved(Image.new("L", (2400, 2000)), kind), 448) as image:
            assert image.size == (2400, 2000)
