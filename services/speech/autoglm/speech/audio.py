"""Audio files: decodes the bytes of a file to 16 kHz mono float32 samples, as players do.

FFmpeg's libraries (PyAV) read the containers of `autoglm.common.recordings`, and no others: no playlists, no pictures,
nothing that refers to another file. What a player plays is read: a file without its end, without sizes in its header,
with a damaged piece in the middle. Of a video the sound is read.
"""

import contextlib
import io
from collections.abc import Iterator

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from autoglm.common.recordings import NAMES, Container, container

Samples = NDArray[np.float32]

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.1

_DEMUXERS: dict[Container, str] = {"webm": "matroska", "mp4": "mov"}  # the others are called as their container
# Nothing else is opened, whatever a file says that it has: a video's pictures and a song's cover stay undecoded.
_OPTIONS = {
    "format_whitelist": "aac,amr,flac,matroska,mov,mp3,ogg,wav",
    "codec_whitelist": (
        "aac,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,flac,gsm_ms,mp1float,mp2float,mp3,mp3float,opus,pcm_alaw,"
        "pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,"
        "pcm_s32le,pcm_u8,vorbis"
    ),
    "protocol_whitelist": "none",
    "max_streams": "16",
}
_RATES = range(4_000, 192_001)
_MAX_CHANNELS = 8
_LOUDEST = 2.0**31  # some programs write floating-point samples in the range of integers
_WINDOW = SAMPLE_RATE // 2  # channels are compared over so many samples
_OPPOSITE = -0.5  # the correlation at which a channel counts as another with its sign changed


class AudioError(ValueError):
    """The bytes are not audio that the encoder accepts; the message says why, and what is accepted."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; accepted: {NAMES}, at least {MIN_SECONDS} seconds")


class AudioTooLong(AudioError):
    """The recording is longer than the limit."""


def decode(data: bytes, max_seconds: float) -> Samples:
    """Return the samples [n] of an audio file at 16 kHz: float32, its channels mixed.

    Raises:
        AudioTooLong: longer than `max_seconds`.
        AudioError: unknown format, nothing that can be decoded, or shorter than 0.1 s.
    """
    kind = container(data)
    if kind is None:
        raise AudioError("the audio has an unknown format" if data else "the audio is empty")
    pieces, count = [np.zeros(0, np.float32)], 0
    for channels in _windows(_resampled(_frames(data, kind))):
        if not (np.abs(channels) <= _LOUDEST).all():
            raise AudioError("the audio has samples that are not finite numbers, or are as good as infinite")
        pieces.append(mix(channels))
        count += channels.shape[1]
        if count > max_seconds * SAMPLE_RATE:
            raise AudioTooLong(f"the audio is longer than {max_seconds:g} s")
    if not count:
        raise AudioError("the audio cannot be decoded: the file has no sound, or what it has is corrupt")
    if count < MIN_SECONDS * SAMPLE_RATE:
        raise AudioError(f"the audio lasts {count / SAMPLE_RATE:.3f} s, which is too short")
    return np.concatenate(pieces)


def mix(channels: Samples) -> Samples:
    """Return the mean [n] of channels [c, n].

    A channel that is another with its sign changed, as of a microphone that is wired the wrong way round, is turned
    round first: the mean of the two would be silence.
    """
    sizes = np.linalg.norm(channels, axis=1)
    loudest = int(sizes.argmax())
    likeness = channels @ channels[loudest] / (sizes * sizes[loudest] + np.finfo(np.float32).tiny)
    signs = np.where(likeness < _OPPOSITE, -1, 1).astype(np.float32)
    return signs @ channels / np.float32(len(channels))


def _frames(data: bytes, kind: Container) -> Iterator[AudioFrame]:
    """Decode what can be decoded: a damaged packet is skipped, as players do, and a file may end anywhere."""
    name = _DEMUXERS.get(kind, kind)
    with (
        contextlib.suppress(av.FFmpegError),
        av.open(io.BytesIO(data), "r", format=name, options=_OPTIONS, metadata_errors="ignore") as file,
    ):
        if not file.streams.audio:
            return
        for packet in file.demux(file.streams.audio[0]):
            with contextlib.suppress(av.FFmpegError):
                yield from packet.decode()


def _resampled(frames: Iterator[AudioFrame]) -> Iterator[Samples]:
    """Yield frames as [c, n] at 16 kHz. A file may change its rate or channels on the way."""
    resampler, shape = None, None
    for frame in frames:
        rate, channels = frame.sample_rate, len(frame.layout.channels)
        if rate not in _RATES or channels > _MAX_CHANNELS:
            raise AudioError(f"the audio has {rate} Hz and {channels} channels")
        if resampler is None or shape != (rate, frame.layout.name, frame.format.name):
            yield from _flushed(resampler)
            shape = (rate, frame.layout.name, frame.format.name)
            resampler = AudioResampler(format="fltp", rate=SAMPLE_RATE)
        frame.pts = None  # gaps in a file's own clock are not filled
        yield from map(_samples, resampler.resample(frame))
    yield from _flushed(resampler)


def _flushed(resampler: AudioResampler | None) -> Iterator[Samples]:
    yield from map(_samples, resampler.resample(None) if resampler else ())


def _samples(frame: AudioFrame) -> Samples:
    return np.asarray(frame.to_ndarray(), np.float32)


def _windows(pieces: Iterator[Samples]) -> Iterator[Samples]:
    """Join pieces [c, n] to such of about half a second, over which channels can be compared."""
    held: list[Samples] = []
    for piece in pieces:
        if held and len(held[0]) != len(piece):
            yield np.concatenate(held, 1)
            held = []
        held.append(piece)
        if sum(each.shape[1] for each in held) >= _WINDOW:
            yield np.concatenate(held, 1)
            held = []
    if held:
        yield np.concatenate(held, 1)
