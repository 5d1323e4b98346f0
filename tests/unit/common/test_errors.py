"""Errors carry text of clients, so their size and their characters are bounded."""

import base64
from urllib.parse import quote

import pytest

from autoglm.common.errors import (
    MESSAGE_BYTES,
    PARAM_BYTES,
    InvalidRequest,
    MeshError,
    RateLimited,
    UnsupportedMedia,
    from_status,
    to_status,
)
from autoglm.common.server import TRACEBACK_CHARACTERS, as_mesh_error, fail

PEERS_TAKE = 8192  # bytes of headers, gRPC's default
OVERHEAD = 32  # HTTP/2 counts so many more for each
HOSTILE = {
    "letters": "a" * 100_000,
    "three bytes each": "请" * 50_000,
    "four bytes each": "🦊" * 50_000,
    "escaped": "%" * 100_000,
    "line breaks": "\r\nset-cookie: a=b" * 10_000,
    "control": "\x00\x1b[31m\x7f\x85" * 10_000,
    "half of a pair": "\ud83e" * 10_000,
}


class Trailers:
    """What a handler sets on its call."""

    code: object = None
    details = ""
    metadata: list[tuple[str, str | bytes]]

    def set_code(self, code: object) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None:
        self.metadata = metadata

    def size(self) -> int:
        """Return the bytes of the trailers as HTTP/2 counts them."""
        fields = [("grpc-status", "13"), ("grpc-message", quote(self.details, safe=" "))]
        for name, value in self.metadata:
            fields.append((name, value if isinstance(value, str) else base64.b64encode(value).decode()))
        return sum(len(name) + len(value) + OVERHEAD for name, value in fields)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_trailers_of_any_error_are_small(text: str) -> None:
    trailers = Trailers()
    fail(trailers, RateLimited(f"{text} is refused", param=text, retry_after=1.0))
    assert trailers.details.endswith(" is refused")
    assert trailers.size() < PEERS_TAKE


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_an_error_is_one_printable_line(text: str) -> None:
    error = InvalidRequest(f"{text} is refused; use another", param=f"messages[0].{text}")
    assert error.param is not None
    for part, limit in ((error.message, MESSAGE_BYTES), (error.param, PARAM_BYTES)):
        assert len(part.encode()) <= limit
        assert part.isprintable()
    assert error.message.endswith(" is refused; use another")
    assert error.param.startswith("messages[0].")
    assert str(error) == error.message


def test_a_text_is_cut_between_characters_and_in_its_middle() -> None:
    for length in range(MESSAGE_BYTES // 3 - 4, MESSAGE_BYTES // 3 + 5):
        text = "好" * length
        message = InvalidRequest(text).message
        assert message == text if length <= MESSAGE_BYTES // 3 else set(message) == {"好", "…"}
        assert len(message.encode()) <= MESSAGE_BYTES


def test_what_is_short_and_printable_stays_as_it_is() -> None:
    for text in ("", "top_p: 3.5 is not ≤ 1", "模型不存在 — 👨\u200d👩\u200d👧", "x" * MESSAGE_BYTES):
        error = UnsupportedMedia(text, param="messages[0].content[1]")
        assert (error.message, error.param) == (text, "messages[0].content[1]")


@pytest.mark.parametrize("kind", [InvalidRequest, RateLimited])
def test_a_cut_error_crosses_the_services_unchanged(kind: type[MeshError]) -> None:
    sent = kind("请" * 9000, param="tools[0].function.parameters." + "a" * 9000, code="unsupported_value")
    for received in (from_status(to_status(sent)), sent.at(sent.param or "")):
        assert (received.message, received.param, received.code) == (sent.message, sent.param, sent.code)


@pytest.mark.parametrize("text", ["a" * 100_000, "请" * 100_000, "line\n" * 50_000])
def test_an_unexpected_error_fills_no_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert as_mesh_error(KeyError(text)).type == "internal"
    (record,) = caplog.records
    assert "KeyError" in record.getMessage()
    assert len(caplog.handler.format(record)) < TRACEBACK_CHARACTERS + 200


def test_an_unexpected_error_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("x" * 100_000)
    except KeyError as error:
        as_mesh_error(error)
    assert "Traceback" in caplog.text
    assert "test_an_unexpected_error_is_logged_with_its_place" in caplog.text
