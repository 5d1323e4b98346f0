"""Image files: what is read, and how a file becomes an upright RGB picture."""

import contextlib
import io
from collections.abc import Mapping

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 40_000_000
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
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageTooLarge(f"image of {image.width} x {image.height} pixels is over the limit of {MAX_PIXELS}")
            image.load()
            return _on_white(_in_8_bits(_upright(image)))
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not a JPEG, PNG, WebP or GIF image") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"image is over the limit of {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's parsers raise whatever they run into, struct.error and AssertionError too
        raise ImageError("image is truncated or broken") from error


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
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
