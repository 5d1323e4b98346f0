"""A decoder that computes nothing: it says as many words as it is asked for, at the pace that it is asked for.

The same work over two protocols: `DecoderService.Generate`, as our gateway asks, and OpenAI's chat completions, as
other gateways ask. Run as `python -m autoglm.bench.gateway.stub`; it prints its two ports on one line, as JSON.
"""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import uvicorn
import uvloop
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from autoglm.cli.isolation import LOOPBACK
from autoglm.common.testing import Context, FakeDecoder, FakeMesh, FakeServe, serving
from autoglm.v1.decoder_pb2 import (
    DecoderFinish,
    DecoderServiceGenerateRequest,
    DecoderServiceGenerateResponse,
)
from autoglm.v1.generation_pb2 import FINISH_REASON_STOP, Usage
from autoglm.v1.modality_pb2 import MODALITY_TEXT

MODEL = "stub"
WORDS = ("tick~", "tock~")  # LiteLLM takes a hundred equal chunks in a row for a model that is stuck
MARK = b"~"  # in every word once, and nowhere else in an answer: words can be counted in bytes, however those are cut
PROMPT_TOKENS = 9


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked of the stub: how many words, and the seconds from one to the next."""

    words: int
    gap: float = 0.0

    @property
    def prompt(self) -> str:
        """The message that asks for it."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, prompt: str) -> "Work":
        """Return what a message asks for."""
        return cls(**json.loads(prompt))

    async def spoken(self) -> AsyncIterator[str]:
        """Yield the words, each when it is due; other answers go on in between."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for index in range(self.words):
            await asyncio.sleep(max(0.0, start + index * self.gap - loop.time()))
            yield WORDS[index % 2]


class StubDecoder(FakeDecoder):
    """The decoder as our gateway sees it, through Serve: a decoder of text."""

    bundle = MODEL
    context_length = 2**20

    def __init__(self) -> None:
        super().__init__()
        self.modalities = [MODALITY_TEXT]

    async def Generate(
        self, request: DecoderServiceGenerateRequest, context: Context
    ) -> AsyncGenerator[DecoderServiceGenerateResponse, None]:
        """Say what the last message asks for."""
        work = Work.of(request.messages[-1].parts[-1].text)
        async for word in work.spoken():
            yield DecoderServiceGenerateResponse(text=word)
        usage = Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=work.words)
        yield DecoderServiceGenerateResponse(finish=DecoderFinish(finish_reason=FINISH_REASON_STOP, usage=usage))


async def openai(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve OpenAI's chat completions, streamed or not: plain ASGI, to be no slower than who asks."""
    asked = orjson.loads(await Request(scope, receive).body())
    work = Work.of(asked["messages"][-1]["content"])
    answer = _stream(work, send) if asked.get("stream") else _whole(work, send)
    await answer


async def _stream(work: Work, send: Send) -> None:
    await _start(send, b"text/event-stream")
    await _send(send, _event({"role": "assistant", "content": ""}))
    events = {word: _event({"content": word}) for word in WORDS}
    async for word in work.spoken():
        await _send(send, events[word])
    await _send(send, _event({}, "stop") + b"data: [DONE]\n\n", more=False)


async def _whole(work: Work, send: Send) -> None:
    text = "".join([word async for word in work.spoken()])
    message = {"role": "assistant", "content": text}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": work.words,
        "total_tokens": PROMPT_TOKENS + work.words,
    }
    await _start(send, b"application/json")
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    await _send(send, orjson.dumps(_head("chat.completion") | {"choices": [choice], "usage": usage}), more=False)


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps(_head("chat.completion.chunk") | {"choices": [choice]}) + b"\n\n"


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-stub", "object": kind, "created": 0, "model": MODEL}


async def _start(send: Send, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def serve() -> None:
    """Serve both protocols until the process ends."""
    mesh = FakeMesh(serve=FakeServe("decoder"), decoder=StubDecoder())  # no encoders that the gateway would wait for
    listener = socket.create_server((LOOPBACK, 0), backlog=1024)
    config = uvicorn.Config(
        openai,
        access_log=False,
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=600,
        ws="none",
    )
    async with serving(mesh):
        print(json.dumps({"grpc": mesh.port, "http": listener.getsockname()[1]}), flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    logging.basicConfig(level="ERROR")
    uvloop.run(serve())
