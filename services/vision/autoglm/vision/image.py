"""Image files: what is read, and how a file becomes an upright RGB picture."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from autoglm.common.memory import release_free_memory

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


@contextlib.contextmanager
def decoded_image(data: bytes, least: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Decode a JPEG, PNG, WebP or GIF (first frame) to RGB, upright and with transparency on white, for the block.

    A JPEG of more than `LARGE_PIXELS` pixels is decoded at a half, a quarter or an eighth of its size, as long as both
    sides keep `least` pixels: that takes a fraction of the time. After the block the picture is closed, and what a
    large one took goes back to the system.

    Raises ImageTooLarge for more than `MAX_PIXELS` pixels, which is read from the header before anything is decoded,
    and ImageError for anything else that is not a whole file of these formats.
    """
    file = _opened(data)
    is_large = file.width * file.height > LARGE_PIXELS
    try:
        read = partial(_as_rgb, file, least if is_large else MAX_PIXELS)
        with contextlib.closing(file), contextlib.closing(_by_pillow(read)) as image:
            yield image
    finally:
        if is_large:
            release_free_memory()


def _opened(data: bytes) -> Image.Image:
    """Return an image of which only the header has been read."""
    file = _by_pillow(partial(Image.open, io.BytesIO(data), formats=FORMATS))
    if file.width * file.height > MAX_PIXELS:
        raise ImageTooLarge(f"image of {file.width} x {file.height} pixels is over the limit of {MAX_PIXELS}")
    return file


def _as_rgb(file: Image.Image, least: int) -> Image.Image:
    file.draft(file.mode, (least, least))  # does nothing but to a JPEG
    file.load()
    return _on_white(_in_8_bits(_upright(file)))


def _by_pillow(work: Callable[[], Image.Image]) -> Image.Image:
    """Return what `work` returns; raises ImageError for what Pillow raises."""
    try:
        return work()
    except Exception as error:  # a broken file lets the parsers run into struct.error, AssertionError and many more
        fault = _as_image_error(error)
    raise fault.with_traceback(None)  # the frames and causes of the first error would keep the pixels alive


def _as_image_error(error: Exception) -> Exception:
    """Return what an error of Pillow means."""
    match error:
        case MemoryError():
            return error
        case UnidentifiedImageError():
            return ImageError("not a JPEG, PNG, WebP or GIF image")
        case Image.DecompressionBombError():
            return ImageTooLarge(f"image is over the limit of {MAX_PIXELS} pixels")
        case _:
            return ImageError("image is truncated or broken")


def _upright(image: Image.Image) -> Image.Image:
    """Return `image` as its EXIF data says that it is to be seen; broken EXIF data says nothing, as in browsers.

    Pillow's own exif_transpose writes all the EXIF data anew and fails if any of it is broken.
    """
    turn = None
    with contextlib.suppress(Exception):  # Pillow parses EXIF without checks: TypeError, struct.error, SyntaxError, …
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
