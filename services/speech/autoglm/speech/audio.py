"""Audio files: decodes the bytes of a file to 16 kHz mono float32 samples."""

import io
import struct

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.1
MAX_SECONDS = 30.0
ACCEPTED = "WAV, FLAC, Ogg (Vorbis or Opus) or MP3, 0.1 to 30 seconds"

# The header of a WAV that was written to a pipe cannot have its size: ffmpeg and sox write one of these.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF)
_RATES = range(4_000, 192_001)
_MAX_CHANNELS = 8
_OGG_LAST_PAGE = 0x04


class AudioError(ValueError):
    """The bytes are not audio that the encoder accepts; the message says why, and what is accepted."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; accepted: {ACCEPTED}")


class AudioTooLong(AudioError):
    """The recording is longer than `MAX_SECONDS`."""


def decode(data: bytes) -> NDArray[np.float32]:
    """Return the samples [n] of an audio file at 16 kHz: float32, channels averaged.

    The format is detected from the content.

    Raises:
        AudioError: unknown format, corrupt or truncated data, shorter than 0.1 s or longer than 30 s.
    """
    if not data:
        raise AudioError("the audio is empty")
    samples, rate = _read(_whole(data))
    seconds = len(samples) / rate
    if seconds < MIN_SECONDS:
        raise AudioError(f"the audio lasts {seconds:.3f} s, which is too short")
    if seconds > MAX_SECONDS:
        raise AudioTooLong(f"the audio is longer than {MAX_SECONDS:.0f} s")
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioError("the audio has samples that are not finite numbers")
    return _resample(mono, rate)


def _read(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Return frames [n, channels], at most one more than 30 s, and the sample rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.samplerate not in _RATES or file.channels > _MAX_CHANNELS:
                raise AudioError(f"the audio has {file.samplerate} Hz and {file.channels} channels")
            most = int(MAX_SECONDS * file.samplerate) + 1
            return file.read(most, dtype="float32", always_2d=True), int(file.samplerate)
    except soundfile.SoundFileError as error:
        raise AudioError("the audio cannot be decoded: unknown format, or corrupt or truncated data") from error


def _whole(data: bytes) -> bytes:
    """Refuse a truncated file, of which the decoders would return the first part. FLAC's decoder checks by itself."""
    if data[:4] == b"RIFF":
        return _whole_wav(data)
    if data[:4] == b"OggS":
        _check_ogg(data)
    else:
        _check_mp3(data)
    return data


def _whole_wav(data: bytes) -> bytes:
    """Walk the chunks (RIFF) to the sound data and compare the size in its header with the bytes that follow.

    A size of 0 is replaced by the true one: libsndfile would read nothing.
    """
    if data[8:12] != b"WAVE":
        raise AudioError("the audio is a RIFF file but not a WAV")
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if kind == b"data":
            present = len(data) - position
            if size not in _UNKNOWN_SIZES and size > present:
                raise AudioError(f"the WAV is truncated: it has {present} of {size} bytes of sound")
            return data if size else data[: position - 4] + struct.pack("<I", present) + data[position:]
        position += size + size % 2
    raise AudioError("the WAV is truncated: it has no sound data")


def _check_ogg(data: bytes) -> None:
    """Walk the pages (RFC 3533): each must be complete, and the last must be marked as the last."""
    position, flags = 0, 0
    while position + 27 <= len(data) and data[position : position + 4] == b"OggS":
        flags, segments = data[position + 5], data[position + 26]
        position += 27 + segments + sum(data[position + 27 : position + 27 + segments])
    if position > len(data) or not flags & _OGG_LAST_PAGE:
        raise AudioError("the Ogg file is truncated")


def _check_mp3(data: bytes) -> None:
    """Compare the size in a Xing or Info frame, if there is one, with the bytes that are present."""
    start = 0
    if data[:3] == b"ID3" and len(data) > 10:
        start = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    for tag in (b"Xing", b"Info"):
        place = data.find(tag, start, start + 64)
        if place >= 0 and len(data) >= place + 16:
            flags, _frames, size = struct.unpack_from(">III", data, place + 4)
            if flags & 3 == 3 and size > len(data) - start:
                raise AudioError(f"the MP3 is truncated: it has {len(data) - start} of {size} bytes")


def _resample(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if rate == SAMPLE_RATE:
        return samples
    common = int(np.gcd(rate, SAMPLE_RATE))
    return np.asarray(resample_poly(samples, SAMPLE_RATE // common, rate // common), dtype=np.float32)
