"""Pictures and recordings in every format that is read, whole and damaged."""

import io
from collections.abc import Mapping
from functools import cache
from random import Random

import av
import numpy as np
from PIL import Image

from .values import damaged

READ, UNREAD = ("PNG", "JPEG", "WEBP", "GIF"), ("BMP", "TIFF", "ICO")
MODES = ("RGB", "RGBA", "L", "P", "1", "LA", "I;16", "CMYK")
SOUNDS: Mapping[str, tuple[str, str]] = {  # by a name of the file's kind: container and codec
    "wav": ("wav", "pcm_s16le"), "wav of floats": ("wav", "pcm_f32le"), "wav of A-law": ("wav", "pcm_alaw"),
    "wav of 24 bits": ("wav", "pcm_s24le"), "flac": ("flac", "flac"), "ogg": ("ogg", "libopus"),
    "mp3": ("mp3", "libmp3lame"), "m4a": ("mp4", "aac"), "aac": ("adts", "aac"), "webm": ("webm", "libopus"),
}  # fmt: skip
RATE = 48_000


def picture(draw: Random) -> bytes:
    """Return a picture, mostly damaged."""
    kinds = READ if draw.random() < 0.9 else UNREAD
    whole = _picture(draw.choice(kinds), draw.choice(MODES), draw.choice(((1, 1), (7, 5), (64, 48))))
    return _perhaps_damaged(draw, whole)


def recording(draw: Random) -> bytes:
    """Return a recording of less than a second, mostly damaged."""
    return _perhaps_damaged(
        draw, _recording(draw.choice(list(SOUNDS)), draw.choice((1, 2)), draw.choice((0.05, 0.3, 0.8)))
    )


def _perhaps_damaged(draw: Random, data: bytes) -> bytes:
    return damaged(draw, data) if draw.random() < 0.9 else data


@cache
def _picture(form: str, mode: str, size: tuple[int, int]) -> bytes:
    """Return a picture in a format, in a mode or in the nearest that the format has."""
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image, file = Image.fromarray(pixels).convert("RGB"), io.BytesIO()
    with_mode = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    try:
        with_mode.save(file, form, exif=exif)
    except (OSError, ValueError, KeyError):
        image.save(file, form)
    return file.getvalue()


@cache
def _recording(kind: str, channels: int, seconds: float) -> bytes:
    """Return a tone in a container and codec."""
    container, codec = SOUNDS[kind]
    file = io.BytesIO()
    layout = "mono" if channels == 1 else "stereo"
    tone = (np.sin(np.arange(int(RATE * seconds)) / 20) * 8000).astype(np.int16)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=RATE, layout=layout)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.repeat(tone, channels)[None], format="s16", layout=layout)
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, layout, RATE, frame_size=stream.frame_size or None)
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(each))
        output.mux(stream.encode(None))
    return file.getvalue()


def a_picture() -> bytes:
    """Return a picture that can be read."""
    return _picture("PNG", "RGB", (7, 5))


def a_recording() -> bytes:
    """Return a recording that can be read."""
    return _recording("wav", 1, 0.3)
