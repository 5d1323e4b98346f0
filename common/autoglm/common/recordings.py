"""The containers of recordings, told apart by their first bytes. The gateway refuses other files."""

import re
from typing import Literal

Container = Literal["wav", "flac", "ogg", "mp3", "aac", "mp4", "webm", "amr"]
# What a client may call the format of a recording; it is told from the bytes all the same.
AudioFormat = Literal[
    "wav", "mp3", "mpeg", "mpga", "flac", "ogg", "oga", "opus", "aac", "m4a", "mp4", "mov", "webm", "amr", "3gp"
]
NAMES = "WAV, FLAC, Ogg, MP3, AAC, M4A/MP4, WebM or AMR"

_STARTS: dict[bytes, Container] = {
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b"\x1aE\xdf\xa3": "webm",
    b"#!AMR": "amr",
}
# Players skip what is before an MP3's first frame; so much of it is looked through.
_SKIPPED_BYTES = 16 * 1024
_FRAMES = 3  # in a row: the header of one is found by chance in any file
_MP3_HEADER = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xeb]", re.DOTALL)
_MPEG_1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG_1_HZ = (44_100, 48_000, 32_000)


def container(data: bytes) -> Container | None:
    """Return the container of a recording; None for anything else."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "wav"
    if data[4:8] in (b"ftyp", b"styp"):
        return "mp4"
    for start, name in _STARTS.items():
        if data.startswith(start):
            return name
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "aac"
    starts = (match.start() for match in _MP3_HEADER.finditer(data, 0, _SKIPPED_BYTES))
    return "mp3" if any(_frames_follow(data, start) for start in starts) else None


def _frames_follow(data: bytes, position: int) -> bool:
    """Return whether frames of MPEG audio, layer III, are in a row from `position`, to the end if that comes first."""
    for _ in range(_FRAMES):
        if position >= len(data):
            break
        if not _MP3_HEADER.match(data, position) or data[position + 2] >> 2 & 3 == 3:
            return False
        position += _frame_bytes(data[position + 1], data[position + 2])
    return True


def _frame_bytes(version: int, rates: int) -> int:
    """Return the size of the frame whose header has these as its second and third byte."""
    bitrate, rate, padding = rates >> 4, _MPEG_1_HZ[rates >> 2 & 3], rates >> 1 & 1
    if version >= 0xF8:
        return 144_000 * _MPEG_1_KBPS[bitrate] // rate + padding
    return 72_000 * _MPEG_2_KBPS[bitrate] // (rate // (2 if version >= 0xF0 else 4)) + padding
