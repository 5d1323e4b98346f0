"""Image files: what is read, and how a file becomes an upright RGB picture."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 40_000_000


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
            return _on_white(_in_8_bits(ImageOps.exif_transpose(image)))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not a JPEG, PNG, WebP or GIF image") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"image is over the limit of {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError("image is truncated or broken") from error


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
