"""Audio files as clients have them: every format, streamed, cut off and damaged; channels; limits."""

import contextlib
import io
import struct
import tracemalloc
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from autoglm.speech.audio import SAMPLE_RATE, AudioError, AudioTooLong, decode, mix

LIMIT = 30.0
RATE = 48_000


def tone(rate: int = RATE, seconds: float = 2.0, hertz: float = 440) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def libsndfile(kind: str, subtype: str | None = None, samples: NDArray[Any] | None = None, rate: int = RATE) -> bytes:
    """Return a file as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, tone(rate) if samples is None else samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def ffmpeg(codec: str, kind: str, rate: int = RATE, seconds: float = 2.0, **options: str) -> bytes:
    """Return a file as FFmpeg's libraries write it."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(rate, seconds)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", rate, frame_size=size)
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(piece))
    return file.getvalue()


def video() -> bytes:
    """Return a video with sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        pictures: Any = container.add_stream("mpeg4", rate=5)
        pictures.width = pictures.height = 64
        sound: Any = container.add_stream("aac", rate=RATE, layout="mono")
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        resampler = av.AudioResampler("fltp", "mono", RATE, frame_size=sound.codec_context.frame_size)
        heard = av.AudioFrame.from_ndarray(tone()[None], format="fltp", layout="mono")
        heard.sample_rate = RATE
        for piece in (*resampler.resample(heard), *resampler.resample(None), None):
            container.mux(sound.encode(piece))
        container.mux(pictures.encode(None))
    return file.getvalue()


def is_the_tone(samples: NDArray[np.float32], seconds: float = 2.0) -> None:
    """Check that `samples` are the tone, for so many seconds."""
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(seconds * SAMPLE_RATE, rel=0.15)
    middle = samples[len(samples) // 4 : -len(samples) // 4] * np.hanning(
        len(samples[len(samples) // 4 : -len(samples) // 4])
    )
    loudest = np.argmax(np.abs(np.fft.rfft(middle))) * SAMPLE_RATE / len(middle)
    assert loudest == pytest.approx(440, abs=4)


FILES = {
    **{f"WAV {subtype}": libsndfile("WAV", subtype) for subtype in (
        "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM"
    )},
    "WAV of a telephone": libsndfile("WAV", "GSM610", rate=8_000),
    "extensible WAV": libsndfile("WAVEX", "PCM_24"),
    "RF64": libsndfile("RF64", "PCM_16"),
    "FLAC": libsndfile("FLAC"),
    "Ogg Vorbis": libsndfile("OGG", "VORBIS"),
    "Ogg Opus": libsndfile("OGG", "OPUS"),
    "MP3": libsndfile("MP3"),
    "MP3 without a Xing frame": ffmpeg("libmp3lame", "mp3", write_xing="0", id3v2_version="0"),
    "WebM, as Chrome records it": ffmpeg("libopus", "webm", live="1"),
    "M4A, as an iPhone records it": ffmpeg("aac", "ipod"),
    "MP4 in fragments, as Safari records it": ffmpeg("aac", "mp4", movflags="frag_keyframe+empty_moov"),
    "M4A, lossless": ffmpeg("alac", "ipod"),
    "AAC": ffmpeg("aac", "adts"),
    "AMR": ffmpeg("libopencore_amrnb", "amr", 8_000),
    "3GP": ffmpeg("libopencore_amrnb", "3gp", 8_000),
    "video": video(),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_heard(name: str) -> None:
    is_the_tone(decode(FILES[name], LIMIT))


CUT = ("WAV PCM_16", "WAV ALAW", "extensible WAV", "FLAC", "MP3", "AAC", "AMR", "WebM, as Chrome records it")


@pytest.mark.parametrize("name", CUT)
def test_of_a_file_that_is_cut_off_the_rest_is_heard(name: str) -> None:
    data = FILES[name]
    is_the_tone(decode(data[: len(data) // 2], LIMIT), 1.0)


def pages(data: bytes) -> list[bytes]:
    """Return the pages of an Ogg file."""
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"OggS" and data[at + 4] == 0]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


@pytest.mark.parametrize("codec", ["libopus", "libvorbis"])
def test_ogg_without_its_last_page(codec: str) -> None:
    data = ffmpeg("libopus", "ogg", seconds=4) if codec == "libopus" else libsndfile("OGG", "VORBIS", tone(seconds=8))
    whole = decode(data, LIMIT)
    rest = decode(b"".join(pages(data)[:-1]), LIMIT)
    is_the_tone(rest, len(rest) / SAMPLE_RATE)
    assert 0 < len(rest) < len(whole)


def test_ogg_whose_last_page_is_not_marked_as_the_last() -> None:
    *others, last = pages(FILES["Ogg Vorbis"])
    unmarked = last[:5] + bytes([last[5] & ~4]) + last[6:22] + bytes(4) + last[26:]
    unmarked = unmarked[:22] + struct.pack("<I", ogg_checksum(unmarked)) + unmarked[26:]
    is_the_tone(decode(b"".join(others) + unmarked, LIMIT))


def ogg_checksum(page: bytes) -> int:
    total = 0
    for byte in page:
        total ^= byte << 24
        for _ in range(8):
            total = (total << 1 ^ (0x04C11DB7 if total >> 31 else 0)) & 0xFFFFFFFF
    return total


def test_flac_from_a_pipe_says_neither_its_length_nor_its_checksum() -> None:
    data = bytearray(FILES["FLAC"])
    data[8 + 13] &= 0xF0  # STREAMINFO: the samples in total are 36 bits, then 16 bytes of MD5
    data[8 + 14 : 8 + 34] = bytes(20)
    is_the_tone(decode(bytes(data), LIMIT))


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF, 2**20])
@pytest.mark.parametrize("name", ["WAV PCM_16", "WAV FLOAT"])
def test_a_wav_whose_header_does_not_know_the_size(name: str, size: int) -> None:
    data = bytearray(FILES[name])
    struct.pack_into("<I", data, 4, min(size + 36, 0xFFFFFFFF))
    struct.pack_into("<I", data, data.index(b"data") + 4, size)
    is_the_tone(decode(bytes(data), LIMIT))


@pytest.mark.parametrize(
    "before",
    [
        b"\0" * 4000,
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"ID3\x04\0\0\0\0\x07\x76" + bytes(1014),
        b"ID3\x03\0\0\0\0\x00\x40" + bytes(64),
    ],
    ids=["zeros", "text", "a large tag", "a small tag"],
)
def test_an_mp3_after_something_else(before: bytes) -> None:
    is_the_tone(decode(before + FILES["MP3 without a Xing frame"], LIMIT))


def test_an_mp3_whose_xing_frame_is_wrong() -> None:
    data = bytearray(FILES["MP3"])
    place = max(data.find(b"Xing"), data.find(b"Info"))
    assert place > 0
    struct.pack_into(">III", data, place + 4, 3, 10**6, 10**8)
    is_the_tone(decode(bytes(data), LIMIT))


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_heard_or_refused(name: str) -> None:
    rng = np.random.default_rng(len(name))
    for _ in range(12):
        data = bytearray(FILES[name])
        for place in rng.integers(12, min(len(data), 2000), 8):
            data[place] = rng.integers(256)
        with contextlib.suppress(AudioError):
            assert 0 < len(decode(bytes(data), LIMIT)) <= (LIMIT + 1) * SAMPLE_RATE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"RIFF\0\0\0\0WAVEfmt ", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "unknown format"),
        (b"ID3" + b"no music" * 99, "cannot be decoded"),
        (b"OggS" + bytes(300), "cannot be decoded"),
        (b"#EXTM3U\n/etc/passwd\n", "unknown format"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isom" + bytes(100), "cannot be decoded"),
        (FILES["M4A, as an iPhone records it"][:6000], "cannot be decoded"),
        (libsndfile("WAV", samples=tone(seconds=0.05)), "too short"),
        (libsndfile("WAV", "FLOAT", np.full(RATE, np.nan, np.float32)), "finite"),
        (libsndfile("WAV", "FLOAT", np.full(RATE, 1e38, np.float32)), "finite"),
        (libsndfile("WAV", samples=tone(2_000), rate=2_000), "2000 Hz and 1 channels"),
        (libsndfile("WAV", samples=np.stack([tone()] * 9, 1)), "9 channels"),
    ],
    ids=[
        "empty",
        "header",
        "picture",
        "tag",
        "page",
        "playlist",
        "no track",
        "no index",
        "short",
        "nan",
        "infinite",
        "slow",
        "wide",
    ],
)
def test_what_cannot_be_heard_is_refused_with_what_is_accepted(data: bytes, reason: str) -> None:
    with pytest.raises(AudioError, match=f"{reason}.*accepted: WAV, FLAC"):
        decode(data, LIMIT)


@pytest.mark.parametrize("name", ["FLAC", "Ogg Opus", "MP3", "M4A, as an iPhone records it"])
def test_a_recording_over_the_limit_is_refused(name: str) -> None:
    assert len(decode(FILES[name], 2.2)) > SAMPLE_RATE
    with pytest.raises(AudioTooLong, match=r"longer than 1.5 s"):
        decode(FILES[name], 1.5)


def test_a_small_file_of_hours_takes_little_memory() -> None:
    silence = libsndfile("FLAC", samples=np.zeros((192_000 * 60, 1), np.int16), rate=192_000)
    assert len(silence) < 2**20
    tracemalloc.start()
    with pytest.raises(AudioTooLong):
        decode(silence, 20)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


# --- channels ---


def wide(*channels: NDArray[np.float32]) -> bytes:
    return libsndfile("WAV", "PCM_16", np.stack(channels, 1))


HISS = (0.02 * np.random.default_rng(0).standard_normal(len(tone()))).astype(np.float32)
QUIET = np.zeros_like(tone())
LATER = np.where(np.arange(len(tone())) < len(tone()) // 2, tone(), -tone()).astype(np.float32)
CHANNELS: dict[str, Sequence[NDArray[np.float32]]] = {
    "both alike": (tone(), tone()),
    "one is the other turned round": (tone(), -tone()),
    "and quieter": (tone(), -0.8 * tone()),
    "with hiss of their own": (tone() + HISS, HISS[::-1] - tone()),
    "turned round from the middle on": (tone(), LATER),
    "the left one is silent": (QUIET, tone()),
    "the right one is silent": (tone(), QUIET),
    "5.1, of which the centre speaks": (HISS, HISS[::-1], tone(), QUIET, HISS, HISS),
    "5.1, turned round in pairs": (tone(), -tone(), QUIET, QUIET, tone(), -tone()),
    "three": (tone(), -tone(), tone()),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_no_channels_cancel_each_other(name: str) -> None:
    samples = decode(wide(*CHANNELS[name]), LIMIT)
    is_the_tone(samples)
    for part in np.array_split(samples[: 2 * SAMPLE_RATE], 4):
        assert np.sqrt(np.mean(part**2)) > 0.3 / np.sqrt(2) / 8


def test_two_speakers_on_two_channels_are_both_heard() -> None:
    first, second = tone()[:RATE], tone(hertz=1000)[:RATE]
    silence = np.zeros_like(first)
    samples = decode(wide(np.concatenate([first, silence]), np.concatenate([silence, second])), LIMIT)
    for part, hertz in ((samples[:SAMPLE_RATE], 440), (samples[SAMPLE_RATE : 2 * SAMPLE_RATE], 1000)):
        assert np.argmax(np.abs(np.fft.rfft(part))) == hertz


def test_the_mix_is_the_mean_where_nothing_is_turned_round() -> None:
    channels = np.random.default_rng(1).standard_normal((3, 1000)).astype(np.float32)
    np.testing.assert_allclose(mix(channels), channels.mean(0), atol=1e-6)
    np.testing.assert_array_equal(mix(np.zeros((2, 10), np.float32)), np.zeros(10))
