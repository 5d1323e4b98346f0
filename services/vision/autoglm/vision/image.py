"""Image files: what is read, and how a file becomes an upright RGB picture."""

import contextlib
import io
from collections.abc import Mapping

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 40_000_000
LARGE_PIXELS = 4_000_000  # of a picture that leaves much free memory behind
_BAND_PIXELS = 2**20  # of a picture with transparency, laid on white at a time
_UPRIGHT: Mapping[object, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # by the EXIF orientation of an image


class ImageError(ValueError):
    """The bytes are not an image that can be encoded; the message says why and contains no file content."""


class ImageTooLarge(ImageError):
    """The image has more than `MAX_PIXELS` pixels."""


def decode_image(data: bytes) -> Image.Image:
    """Decode a JPEG, PNG, WebP or GIF (first frame) to RGB: upright, transparency on white.

    Raises ImageTooLarge for more than `MAX_PIXELS` pixels, which is read from the header before anything is decoded,
    and ImageError for anything else that is not a whole file of these formats.
    """
    try:
        return _decoded(data)
    except Exception as error:
        fault = _as_image_error(error)
    raise fault.with_traceback(None)  # the frames and causes of the first error would keep the pixels alive


def _decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageTooLarge(f"image of {image.width} x {image.height} pixels is over the limit of {MAX_PIXELS}")
        image.load()
        return _on_white(_in_8_bits(_upright(image)))


def _as_image_error(error: Exception) -> Exception:
    """Return what an error means; Pillow's parsers raise whatever they run into, struct.error and AssertionError
    too."""
    match error:
        case ImageError() | MemoryError():
            return error
        case UnidentifiedImageError():
            return ImageError("not a JPEG, PNG, WebP or GIF image")
        case Image.DecompressionBombError():
            return ImageTooLarge(f"image is over the limit of {MAX_PIXELS} pixels")
        case _:
            return ImageError("image is truncated or broken")


def is_large(data: bytes) -> bool:
    """Return whether the header of a file says that it has more than `LARGE_PIXELS` pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height > LARGE_PIXELS
    except Exception:
        return False


def _upright(image: Image.Image) -> Image.Image:
    """Return `image` as its EXIF data says that it is to be seen; broken EXIF data says nothing, as in browsers.

    Pillow's own exif_transpose writes all the EXIF data anew and fails if any of it is broken.
    """
    turn = None
    with contextlib.suppress(Exception):
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return `image` with 8 bits a sample. Pillow keeps 16 bits of grey, and clips them when it converts: to white."""
    if not image.mode.startswith("I"):
        return image
    deep = np.asarray(image)
    grey = Image.fromarray((deep // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8)))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    """Return an image in RGB, and what is transparent white: some rows at a time, as an RGBA copy takes much memory."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    whole = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return whole
