"""The OpenAI HTTP API as the commands use it, with httpx and httpx-sse.

They are in the base install, since `autoglm chat` is: an event of a stream takes 20 to 50 µs of CPU time more than with
the standard library, and the parsing of events and errors is not ours to maintain.
"""

import base64
import mimetypes
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from autoglm.common.recordings import AudioFormat

DEFAULT_URL = "http://127.0.0.1:8000"
AUDIO_FORMATS = get_args(AudioFormat)


class ApiError(Exception):
    """The server cannot be reached or returns an error; the message says in one line what to do."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What an event of a stream adds. `telemetry` (the `autoglm` object) and `usage` come with the last one."""

    text: str = ""
    reasoning: str = ""
    telemetry: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Api:
    """A server by its root address, and the API key to send. Each call opens a connection."""

    url: str = DEFAULT_URL
    key: str = "EMPTY"
    timeout: float = 120.0

    def get(self, path: str) -> Any:
        """Return the JSON at `path`; raises ApiError."""
        with self._connected() as http:
            response = http.get(path)
            if response.status_code != 200:
                raise ApiError(_refusal(response))
            return response.json()

    def stream(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Generator[Delta, None, None]:
        """Yield the answer as it comes, its reasoning apart; closing the iterator ends the request. Raises ApiError."""
        body = {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_reasoning": True,
            **fields,
        }
        with self._connected() as http, connect_sse(http, "POST", "/v1/chat/completions", json=body) as source:
            if source.response.status_code != 200:
                source.response.read()
                raise ApiError(_refusal(source.response))
            yield from _deltas(source.iter_sse())

    @contextmanager
    def _connected(self) -> Iterator[httpx.Client]:
        """Give an HTTP client whose failures become ApiErrors. It uses no proxy."""
        headers = {"authorization": f"Bearer {self.key}"}
        try:
            # The certificate authorities of the system or of SSL_CERT_FILE, not those that come with httpx.
            trusted = ssl.create_default_context() if httpx.URL(self.url).scheme == "https" else False
            with httpx.Client(
                base_url=self.url, headers=headers, timeout=self.timeout, verify=trusted, trust_env=False
            ) as http:
                yield http
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ApiError(f"{self.url!r} is not an address: give one like {DEFAULT_URL}") from None
        except httpx.TransportError as error:
            raise ApiError(_unreachable(self.url, error)) from None


def _unreachable(url: str, error: httpx.TransportError) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {url} cannot be trusted ({cause.verify_message}): if its authority is one of your"
                " own, name its file in SSL_CERT_FILE"
            )
    reason = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    return (
        f"nothing answers at {url} ({reason or error or type(error).__name__}): start it with `autoglm serve`, or name"
        " another with --url"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def image_part(path: Path) -> dict[str, Any]:
    """Return the image file at `path` as a content part; raises ApiError if it cannot be read."""
    return image_bytes_part(_read(path), mimetypes.guess_type(path.name)[0] or "image/png")


def image_bytes_part(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    """Return the bytes of an image as a content part."""
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def audio_part(path: Path) -> dict[str, Any]:
    """Return the recording at `path` as a content part; raises ApiError if it cannot be read."""
    return audio_bytes_part(_read(path), path.suffix.lower().removeprefix("."))


def audio_bytes_part(data: bytes, kind: str = "wav") -> dict[str, Any]:
    """Return the bytes of a recording as a content part; a `kind` that the server does not know is left out."""
    audio = {"data": base64.b64encode(data).decode()} | ({"format": kind} if kind in AUDIO_FORMATS else {})
    return {"type": "input_audio", "input_audio": audio}


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise ApiError(f"{path} cannot be read ({error.strerror}): give the path of a file") from None


def _refusal(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers {response.status_code} {response.reason_phrase}: is it an OpenAI-compatible server?"


def _deltas(events: Iterator[ServerSentEvent]) -> Iterator[Delta]:
    for event in events:
        if event.data == "[DONE]":
            return
        chunk = event.json()
        if "error" in chunk:
            raise ApiError(chunk["error"]["message"])
        yield _delta(chunk)
    raise ApiError("the answer ended early: try again")


def _delta(chunk: Mapping[str, Any]) -> Delta:
    added = chunk["choices"][0]["delta"] if chunk.get("choices") else {}
    return Delta(
        text=added.get("content") or "",
        reasoning=added.get("reasoning_content") or "",
        telemetry=chunk.get("autoglm") or {},
        usage=chunk.get("usage") or {},
    )
