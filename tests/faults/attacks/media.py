"""Pictures and recordings that are large, or are none."""

import base64
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from autoglm.bench.smoke.workloads import wav
from autoglm.cli.api import audio_bytes_part, image_bytes_part

from .sending import OK, TOO_LARGE, Attack, Send, asking, user

JUNK = TOO_LARGE | {"unsupported_media"}


def picture(width: int, height: int) -> Send:
    """A picture of one bit a pixel, which is small as a file and large in memory."""
    rows = zlib.compress(bytes((width // 8 + 1) * height), 1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pieces = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    file = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in pieces
    )
    return asking(messages=user(image_bytes_part(b"\x89PNG\r\n\x1a\n" + file)))


def photograph(width: int, height: int) -> Send:
    """A JPEG of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    Image.fromarray(noise).resize((width, height)).save(file, "JPEG", quality=60)
    return asking(messages=user(image_bytes_part(file.getvalue(), "image/jpeg")))


def film(frames: int) -> Send:
    """A GIF of so many pictures."""
    file = io.BytesIO()
    first, *rest = (Image.new("P", (64, 64), number % 256) for number in range(frames))
    first.save(file, "GIF", save_all=True, append_images=rest, optimize=False)
    return asking(messages=user(image_bytes_part(file.getvalue(), "image/gif")))


def small_pictures(count: int) -> Send:
    """So many different pictures in one message."""
    drawn = np.random.default_rng(0)
    return asking(messages=user(*(small_picture(drawn) for _ in range(count))))


def small_picture(drawn: np.random.Generator) -> dict[str, Any]:
    """Return a picture of noise as a part of a message."""
    file = io.BytesIO()
    Image.fromarray(drawn.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
    return image_bytes_part(file.getvalue())


def recording(seconds: int) -> Send:
    """A recording of noise that comes and goes."""
    loud = np.random.default_rng(0).normal(0, 0.1, seconds * 4000) * (np.arange(seconds * 4000) // 4000 % 2)
    return asking(messages=user(audio_bytes_part(wav(loud.astype(np.float32), 4000))))


def junk(size: int) -> Send:
    """Random bytes as a picture."""
    return asking(messages=user(image_bytes_part(random.Random(0).randbytes(size))))


def escapes(count: int) -> Send:
    """A data: URL in which every byte is escaped."""
    return asking(messages=user({"type": "image_url", "image_url": {"url": "data:image/png," + "%41" * count}}))


def spaced(size: int) -> Send:
    """Base64 with a space after each letter."""
    data = " ".join(base64.b64encode(random.Random(0).randbytes(size)).decode())
    return asking(messages=user({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}))


MEDIA = (
    Attack("a picture of 40 megapixels", lambda: picture(8000, 5000), frozenset({OK})),
    Attack("a picture of 400 megapixels", lambda: picture(20_000, 20_000), TOO_LARGE),
    Attack("a photograph of 36 megapixels", lambda: photograph(7200, 5000), frozenset({OK})),
    Attack("a film of 5000 pictures", lambda: film(5000), JUNK | {OK}),
    Attack("64 pictures", lambda: small_pictures(64), TOO_LARGE | {OK}),
    Attack("a recording of 10 minutes", lambda: recording(600), TOO_LARGE | {OK}),
    Attack("base64 of 15 MB of junk", lambda: junk(15_000_000), JUNK),
    Attack("6 000 000 escapes in a data: URL", lambda: escapes(6_000_000), JUNK),
    Attack("base64 with spaces", lambda: spaced(8_000_000), JUNK),
)
