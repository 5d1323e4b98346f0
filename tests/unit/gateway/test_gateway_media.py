"""What is taken as base64, as a data: URL and as a recording, and what reaches the services of it."""

import base64
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from autoglm.common.recordings import container
from autoglm.common.testing import FakeMesh
from autoglm.gateway.media.verify import from_base64

from .conftest import Client
from .samples import audio_part, png, wav

BYTES = bytes(range(256)) * 3 + b"\xfb\xff"  # has every character of both alphabets, and needs padding


def usual(data: bytes) -> str:
    return base64.b64encode(data).decode()


FORMS: dict[str, Callable[[bytes], str]] = {
    "usual": usual,
    "wrapped as MIME": lambda data: base64.encodebytes(data).decode(),
    "wrapped as PEM, with CRLF": lambda data: "\r\n".join(usual(data)[i : i + 64] for i in range(0, len(data) * 2, 64)),
    "without padding": lambda data: usual(data).rstrip("="),
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "URL-safe without padding": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "a line end after it": lambda data: usual(data) + "\n",
    "indented": lambda data: "\t " + usual(data).replace("A", "A ", 3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("data", [b"", b"a", b"ab", b"abc", BYTES, BYTES[:-1]], ids=len)
def test_base64_in_any_common_form(form: str, data: bytes) -> None:
    assert from_base64(FORMS[form](data)) == data


@pytest.mark.parametrize("text", ["?", "abcde", "a", "QUJD=QUJD", "é", "QUJD\0", "QUJD\N{NO-BREAK SPACE}"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (from encode, and binascii's own)
        from_base64(text)


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def recording(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data}}


URLS: dict[str, Callable[[bytes], str]] = {
    "no type": lambda data: f"data:;base64,{usual(data)}",
    "upper case": lambda data: f"DATA:IMAGE/PNG;BASE64,{usual(data)}",
    "a parameter": lambda data: f"data:image/png;charset=utf-8;base64,{usual(data)}",
    "a name": lambda data: f"data:application/octet-stream;name=a%2Cb.png;base64,{usual(data)}",
    "percent-encoded": lambda data: f"data:image/png;base64,{quote(usual(data), safe='')}",
    "percent-encoded in lower case": lambda data: f"data:;base64,{quote(usual(data), safe='').replace('%2B', '%2b')}",
    "wrapped, percent-encoded": lambda data: f"data:;base64,{quote(base64.encodebytes(data))}",
    "no base64": lambda data: f"data:image/png,{quote(data)}",
    "nothing but the data": lambda data: f"data:,{quote(data)}",
}


@pytest.mark.parametrize("form", URLS)
async def test_a_data_url_in_any_form(client: Client, mesh: FakeMesh, form: str) -> None:
    parts = [picture(URLS[form](png())), recording(URLS[form](wav()))]
    assert (await client.chat(parts)).status_code == 200
    assert mesh.vision.encode.requests[0].image == png()
    assert mesh.speech.encode.requests[0].audio == wav()


async def test_a_large_data_url_has_to_be_in_base64(shared: Client) -> None:
    response = await shared.chat([picture("data:image/png," + "%41" * 100_000)])
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages[0].content[0].image_url.url")
    assert error["message"].endswith("must be in base64")


async def test_wrapped_base64_of_a_recording(client: Client, mesh: FakeMesh) -> None:
    assert (await client.chat([recording(FORMS["wrapped as MIME"](wav()))])).status_code == 200
    assert mesh.speech.encode.requests[0].audio == wav()


async def test_base64_is_bounded_by_the_bytes_in_it(serve: Any) -> None:
    client = await serve(max_media_bytes=len(png()))
    lines = "\n".join(usual(png()))  # twice as long as it need be
    assert (await client.chat([picture(f"data:;base64,{lines}")])).status_code == 200
    response = await client.chat([picture(f"data:,{quote(png() + b'x')}")])
    assert (response.status_code, response.json()["error"]["param"]) == (413, "messages[0].content[0].image_url.url")


MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # 128 kbit/s at 44.1 kHz
MP3_LOW = b"\xff\xf3\x48\x00" + bytes(140)  # MPEG 2, 32 kbit/s at 16 kHz, 144 bytes


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (wav(), "wav"),
        (b"RF64\xff\xff\xff\xffWAVEds64", "wav"),
        (b"fLaC\0\0\0\x22", "flac"),
        (b"OggS\0\x02", "ogg"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", "webm"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "mp4"),
        (b"\0\0\0\x18ftyp3gp4", "mp4"),
        (b"\0\0\0\x18stypmsdh", "mp4"),
        (b"#!AMR\n<", "amr"),
        (b"#!AMR-WB\n", "amr"),
        (b"\xff\xf1\x50\x80", "aac"),
        (b"ID3\x04\0\0\0\0\0\0", "mp3"),
        (MP3_FRAME * 4, "mp3"),
        (MP3_FRAME, "mp3"),
        (MP3_LOW * 5, "mp3"),
        (bytes(3000) + MP3_FRAME * 4, "mp3"),
        (b"a line before it\n" + MP3_LOW * 3, "mp3"),
        (b"", None),
        (b"RIFF\0\0\0\0AVI LIST", None),
        (b"%PDF-1.7", None),
        (png(), None),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(2000), None),
        (b"GIF89a" + b"\xff\xfb\x90\x00..." * 3000, None),
        (b"\xff" * 40_000, None),
        (b"\xff\xfb\x90\x00" + b"but no frame follows" * 99, None),
        (b"<html>", None),
        (struct.pack("<I", 12) + b"moov", None),
    ],
)
def test_a_recording_is_told_by_its_bytes(data: bytes, kind: str | None) -> None:
    assert container(data) == kind


async def test_what_is_no_recording_is_told_what_is(shared: Client) -> None:
    error = (await shared.chat([audio_part(b"%PDF-1.7")])).json()["error"]
    assert error["message"].endswith("not a recording; accepted: WAV, FLAC, Ogg, MP3, AAC, M4A/MP4, WebM or AMR"), error


@pytest.mark.parametrize("name", ["m4a", "webm", "3gp", "opus", "mpga"])
async def test_formats_that_clients_name(shared: Client, name: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": usual(wav()), "format": name}}
    assert (await shared.chat([part])).status_code == 200
