"""Images and recordings: from what a client sent to verified bytes and their hash.

Nothing is decoded here. Formats are recognized by content, not by the name that the client gave, and an image's size is
read from its header, so a small file that declares a huge image costs nothing.
"""

import asyncio
import binascii
import hashlib
import io
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import pybase64
from PIL import Image

from autoglm.common.errors import InvalidRequest, RequestTooLarge, UnsupportedMedia
from autoglm.common.recordings import NAMES, container
from autoglm.gateway.conversation import MediaPart
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE, Modality

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
OFF_LOOP_BYTES = 256 * 1024  # SHA-256 of this much takes about a fifth of a millisecond

MAX_ESCAPED_CHARACTERS = 256 * 1024
UNESCAPED_PIECE = 64 * 1024  # characters
BASE64_PIECE = 256 * 1024  # characters
_HASH = "sha256:"
_ESCAPED = "+/=-_\r\n\t "
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_BLANKS = string.whitespace.encode()

# This process reads headers and never decodes, so our limit replaces Pillow's check for decompression bombs.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The largest media accepted."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class VerifiedMedia:
    """Verified media: the file's bytes, empty if the client sent only their SHA-256, and that hash."""

    modality: Modality.ValueType
    data: bytes
    sha256: bytes
    param: str


def at_url(url: str, modality: Modality.ValueType, param: str) -> MediaPart:
    """Return the media in a data: URL, those that a sha256: URL names, or a part to be fetched from any other URL.

    Raises InvalidRequest.
    """
    if is_data_url(url):
        return MediaPart(modality, in_data_url(url, param), param)
    if is_hash(url):
        return MediaPart(modality, b"", param, sha256=in_hash(url, param))
    return MediaPart(modality, b"", param, url=url)


def is_hash(text: str) -> bool:
    """Return whether `text` is a sha256: URL, which names media that were sent before."""
    return text[: len(_HASH)].lower() == _HASH


def in_hash(url: str, param: str) -> bytes:
    """Return the SHA-256 in a sha256: URL; raises InvalidRequest."""
    digits = url[len(_HASH) :]
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        message = f"{param}: must be sha256: and the 64 hexadecimal digits of the SHA-256 of the file's bytes"
        raise InvalidRequest(message, param=param)
    return bytes.fromhex(digits)


def is_data_url(text: str) -> bool:
    """Return whether `text` is a data: URL."""
    return text[:5].lower() == "data:"


def in_data_url(url: str, param: str) -> bytes:
    """Return the bytes in a data: URL (RFC 2397), whose media type is ignored.

    Raises InvalidRequest for a URL without a comma, for invalid base64, and for a large one that is not in base64, as
    its escapes would take seconds.
    """
    head, comma, data = url.partition(",")
    if not comma:
        raise InvalidRequest(f"{param}: a data: URL must have the form data:<type>;base64,<data>", param=param)
    if head.lower().rstrip().endswith(";base64"):
        return in_base64(_unescaped(data) if "%" in data else data, param)
    if len(data) > MAX_ESCAPED_CHARACTERS:
        message = f"{param}: a data: URL of more than {MAX_ESCAPED_CHARACTERS} characters must be in base64"
        raise InvalidRequest(message, param=param)
    return unquote_to_bytes(data)


def _unescaped(text: str) -> str:
    """Return base64 `text` without the escapes of its characters; others make it invalid.

    A piece at a time: in a thread, other threads take turns with it.
    """
    pieces, end = list[str](), 0
    while end < len(text):
        start, end = end, end + UNESCAPED_PIECE
        if (cut := text.rfind("%", end - 2, end)) >= 0:  # an escape is not cut in two
            end = cut + 3
        piece = text[start:end]
        for character in _ESCAPED:
            code = f"%{ord(character):02X}"
            piece = piece.replace(code, character).replace(code.lower(), character)
        pieces.append(piece)
    return "".join(pieces)


async def verified(parts: Sequence[MediaPart], limits: MediaLimits) -> list[VerifiedMedia]:
    """Return `parts` verified, in order; raises the MeshError of the first invalid one."""
    if sum(len(part.source) for part in parts) < OFF_LOOP_BYTES:
        return [verify(part, limits) for part in parts]
    return await asyncio.to_thread(lambda: [verify(part, limits) for part in parts])


def verify(part: MediaPart, limits: MediaLimits) -> VerifiedMedia:
    """Return `part` with its hash; of one that came as a hash the bytes were verified when they came.

    Raises RequestTooLarge (bytes or pixels) or UnsupportedMedia (not a known format), each naming the field.
    """
    if part.sha256:
        return VerifiedMedia(part.modality, b"", part.sha256, part.param)
    data = part.source
    if len(data) > limits.max_bytes:
        raise _too_large(part, limits)
    _CHECKS[part.modality](data, part.param, limits)
    return VerifiedMedia(part.modality, data, hashlib.sha256(data).digest(), part.param)


def in_base64(text: str, param: str) -> bytes:
    """Return the bytes of base64 `text`; raises InvalidRequest."""
    try:
        return from_base64(text)
    except ValueError:
        raise InvalidRequest(f"{param}: the data is not valid base64", param=param) from None


def from_base64(text: str) -> bytes:
    """Return the bytes of base64 `text` in any common form; raises ValueError.

    The usual form is decoded in one go, 15 MB in 2 ms. Others are brought into it first, a piece at a time: wrapped in
    lines, as `base64` and MIME write it, without padding, in the URL-safe alphabet.
    """
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error:
        pieces = (text[start : start + BASE64_PIECE] for start in range(0, len(text), BASE64_PIECE))
        usual = b"".join([piece.encode("ascii").translate(_URL_SAFE, _BLANKS) for piece in pieces]).rstrip(b"=")
        return pybase64.b64decode(usual + b"=" * (-len(usual) % 4), validate=True)


def _too_large(part: MediaPart, limits: MediaLimits) -> RequestTooLarge:
    return RequestTooLarge(f"{part.param}: the file is larger than {limits.max_bytes} bytes", param=part.param)


def _check_image(data: bytes, param: str, limits: MediaLimits) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except Exception:  # Pillow's parsers raise whatever they run into, struct.error and AssertionError too
        raise UnsupportedMedia(
            f"{param}: not a PNG, JPEG, WebP or GIF image", param=param, code="invalid_image_format"
        ) from None
    if width * height > limits.max_pixels:
        message = f"{param}: {width}×{height} pixels exceed the limit of {limits.max_pixels}"
        raise RequestTooLarge(message, param=param, code="image_too_large")


def _check_audio(data: bytes, param: str, _limits: MediaLimits) -> None:
    if container(data) is None:
        raise UnsupportedMedia(f"{param}: not a recording; accepted: {NAMES}", param=param)


_CHECKS = {MODALITY_IMAGE: _check_image, MODALITY_AUDIO: _check_audio}
