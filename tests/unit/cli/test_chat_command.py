"""`autoglm chat` with a server whose answers the test chooses."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autoglm.cli.api import Api, ApiError, audio_part, image_part
from autoglm.cli.chat import ChatSession


@contextmanager
def server(answer: bytes, status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """Answer every POST alike; what was asked is kept."""
    asked: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        listening.shutdown()


def events(*objects: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in objects)


def delta(**fields: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def test_history_keeps_the_thought_as_the_model_wrote_it(capsys: pytest.CaptureFixture[str]) -> None:
    answer = events(delta(reasoning_content="Hm."), delta(content="He"), delta(content="llo")) + b"data: [DONE]\n\n"
    with server(answer) as (url, asked):
        session = ChatSession(Api(url), {"model": "m"}, "Be kind.")
        session.ask("Hi")
        session.ask("Again")
    assert [turn["role"] for turn in asked[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert asked[1]["messages"][2]["content"] == "<think>Hm.</think>Hello"
    assert asked[0]["stream"] is True
    assert asked[0]["return_reasoning"] is True
    assert capsys.readouterr().out == "Hm.\nHello\n" * 2


@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        (events(delta(content="He")), 200, "ended early"),
        (events(delta(content="He")) + b"event: error\n" + events({"error": {"message": "too late"}}), 200, "too late"),
        (json.dumps({"error": {"message": "no such model"}}).encode(), 404, "no such model"),
        (b"<html>", 502, "answers 502"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(answer: bytes, status: int, told: str) -> None:
    with server(answer, status) as (url, _):
        session = ChatSession(Api(url), {})
        session.attach({"type": "text", "text": "attached"})
        with pytest.raises(ApiError, match=told) as raised:
            session.ask("Hi")
    assert "\n" not in str(raised.value)
    assert session.turns == []
    assert session.attached == []


def test_an_address_that_is_none() -> None:
    with pytest.raises(ApiError, match="is not an address"):
        Api("localhost:8000").get("/v1/models")


def test_files_become_parts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    (tmp_path / "a.opus").write_bytes(b"sound")
    (tmp_path / "a.sound").write_bytes(b"sound")
    assert image_part(tmp_path / "a.png")["image_url"]["url"] == "data:image/png;base64,cG5n"
    assert audio_part(tmp_path / "a.opus")["input_audio"] == {"data": "c291bmQ=", "format": "opus"}
    assert audio_part(tmp_path / "a.sound")["input_audio"] == {"data": "c291bmQ="}
    with pytest.raises(ApiError, match="cannot be read"):
        image_part(tmp_path / "b.png")
