"""The media in the requests that benchmarks ask with."""

import base64
import io
import wave
from collections.abc import Iterator

from autoglm.bench.smoke.workloads import Messages


def media_of(messages: Messages) -> Iterator[tuple[str, bytes]]:
    """Yield the type of each media part and its file."""
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                yield "image", base64.b64decode(part["image_url"]["url"].partition(",")[2])
            elif part["type"] == "input_audio":
                yield "audio", base64.b64decode(part["input_audio"]["data"])


def wav_seconds(recording: bytes) -> float:
    """Return the length of a WAV file in seconds."""
    with wave.open(io.BytesIO(recording)) as reader:
        return float(reader.getnframes() / reader.getframerate())


def sizes_of(messages: Messages) -> tuple[int, float]:
    """Return the number of pictures in a request, and the seconds of its recordings."""
    media = list(media_of(messages))
    sound = sum(wav_seconds(data) for kind, data in media if kind == "audio")
    return sum(kind == "image" for kind, _ in media), sound
