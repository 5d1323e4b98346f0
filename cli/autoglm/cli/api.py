"""The OpenAI HTTP API as the commands use it, with the standard library alone."""

import base64
import http.client
import json
import mimetypes
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg")


class ApiError(Exception):
    """The server cannot be reached or refuses; the message says in one line what to do."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event of a stream adds. `telemetry` (the `autoglm` object) and `usage` come at its end."""

    text: str = ""
    reasoning: str = ""
    telemetry: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Api:
    """A server, at the address of its root, and the key to send."""

    url: str = DEFAULT_URL
    key: str = "EMPTY"
    timeout: float = 120.0

    def get(self, path: str) -> Any:
        """Return the JSON at `path`; raises ApiError."""
        with self._answer("GET", path, None) as response:
            return json.loads(response.read())

    def stream(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Generator[Delta, None, None]:
        """Yield an answer as it comes, reasoning apart; closing the iterator hangs up. Raises ApiError."""
        body = {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_reasoning": True,
            **fields,
        }
        with self._answer("POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
            yield from _deltas(response)

    @contextmanager
    def _answer(self, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        try:
            connection.request(method, urlsplit(self.url).path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ApiError(_refusal(response))
            yield response
        except ssl.SSLCertVerificationError as error:
            raise ApiError(
                f"the certificate of {self.url} cannot be trusted ({error.verify_message}): if its authority is one"
                " of your own, name the authority's file by SSL_CERT_FILE"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ApiError(
                f"nothing answers at {self.url} ({reason}): start it with `autoglm serve`, or name another with --url"
            ) from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ApiError(f"{self.url!r} is no address: give one like {DEFAULT_URL}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname, parts.port, timeout=self.timeout)


def image_part(path: Path) -> dict[str, Any]:
    """Return the image file at `path` as a part of a message; raises ApiError when it cannot be read."""
    return image_bytes_part(_read(path), mimetypes.guess_type(path.name)[0] or "image/png")


def image_bytes_part(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    """Return an image's bytes as a part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def audio_part(path: Path) -> dict[str, Any]:
    """Return the recording at `path` as a part of a message; raises ApiError when it cannot be read."""
    return audio_bytes_part(_read(path), path.suffix.lower().removeprefix("."))


def audio_bytes_part(data: bytes, kind: str = "wav") -> dict[str, Any]:
    """Return a recording's bytes as a part of a message; a `kind` that OpenAI does not name is left out."""
    audio = {"data": base64.b64encode(data).decode()} | ({"format": kind} if kind in AUDIO_FORMATS else {})
    return {"type": "input_audio", "input_audio": audio}


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise ApiError(f"{path} cannot be read ({error.strerror}): give a file's path") from None


def _refusal(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(response.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers {response.status} {response.reason}: is it an OpenAI-compatible server?"


def _deltas(response: http.client.HTTPResponse) -> Iterator[Delta]:
    for line in response:
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if value == "[DONE]":
            return
        if name != "data":
            continue
        event = json.loads(value)
        if "error" in event:
            raise ApiError(event["error"]["message"])
        yield _delta(event)
    raise ApiError("the answer was cut before its end: try again")


def _delta(event: Mapping[str, Any]) -> Delta:
    added = event["choices"][0]["delta"] if event.get("choices") else {}
    return Delta(
        text=added.get("content") or "",
        reasoning=added.get("reasoning_content") or "",
        telemetry=event.get("autoglm") or {},
        usage=event.get("usage") or {},
    )
