"""The clients: openai-python over HTTP and autoglm.client over gRPC, without retries, so that each error shows."""

import asyncio
import io
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import httpx
import numpy as np
import openai
from google.rpc import code_pb2
from grpc_status import rpc_status

from autoglm.client import AsyncClient, MeshError
from autoglm.common.errors import BY_REASON
from autoglm.gateway.metrics import CLIENT_GONE

from .gateways import GRPC_PORT, KEY, url
from .network import GATEWAYS, address
from .questions import CANCELLED, KINDS, LONG, LONGER, MODEL, OK, SHORT, QuestionKind, content, media

RATE = 2.5  # requests a second, at random times
TIMEOUT = 60.0  # that each request sets
NO_CONNECTION, CUT_OFF, LATE, EARLY = "no connection", "cut off", "no answer in time", "ends early without an error"
CANCEL_AFTER = 3  # tokens


@dataclass(frozen=True, slots=True)
class Ended:
    """A request as its client saw it. `code` is what autoglm_requests_total should have for it, empty if its gateway
    may have either; `reached` is whether a gateway had it. Unix times."""

    kind: str
    api: str
    method: str
    request_id: str
    gateway: str
    started: float
    ended: float
    outcome: str
    expected: bool
    code: str
    reached: bool = True


class Failure(Exception):
    """A request that failed, as its client saw it."""

    def __init__(self, outcome: str, code: str = "", reached: bool = True) -> None:
        super().__init__(outcome)
        self.outcome, self.code, self.reached = outcome, code, reached


@dataclass(slots=True)
class Load:
    """Asks at random times, in turns at the gateways that are in `balanced`."""

    seed: int = 0
    ended: list[Ended] = field(default_factory=list)
    balanced: list[str] = field(default_factory=lambda: list(GATEWAYS))
    _sent: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until `stop`, and wait for what is asked."""
        times, drawn = random.Random(self.seed), np.random.default_rng(self.seed)
        async with Clients() as clients, asyncio.TaskGroup() as running:
            while not stop.is_set():
                await asyncio.sleep(times.expovariate(RATE))
                kind = times.choices(KINDS, [kind.share for kind in KINDS])[0]
                running.create_task(self._ask(clients, kind, media(kind, drawn)))

    async def _ask(self, clients: "Clients", kind: QuestionKind, file: bytes) -> None:
        """Ask one gateway; another one if there is none at its address."""
        for _ in range(len(GATEWAYS)):
            self._sent += 1
            name = self.balanced[self._sent % len(self.balanced)]
            ended = await ask(clients, name, kind, file)
            self.ended.append(ended)
            if ended.outcome != NO_CONNECTION:
                return


async def ask(clients: "Clients", gateway: str, kind: QuestionKind, file: bytes) -> Ended:
    """Ask once, and return what became of it."""
    request_id, started, reached = uuid.uuid4().hex, time.time(), True
    send = over_http if kind.api == "http" else over_grpc
    try:
        await send(clients, gateway, kind, file, request_id)
        outcome, code = (CANCELLED, "") if kind.cancel else (OK, "200" if kind.api == "http" else "OK")
    except Failure as failure:
        outcome, code, reached = failure.outcome, failure.code, failure.reached
    where = (kind.name, kind.api, kind.method, request_id, gateway)
    return Ended(*where, started, time.time(), outcome, outcome == kind.expected, code, reached)


class Clients:
    """A client of each API for each gateway."""

    async def __aenter__(self) -> "Clients":
        self.http = {name: self._http(name) for name in GATEWAYS}
        self.grpc = {
            name: AsyncClient(f"{address(name)}:{GRPC_PORT}", api_key=KEY, timeout=TIMEOUT, max_retries=0)
            for name in GATEWAYS
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.http.values():
            await client.close()
        for each in self.grpc.values():
            await each.close()

    @staticmethod
    def _http(name: str) -> openai.AsyncOpenAI:
        # No connection is kept: one that its gateway has just closed would be an error of the client's own.
        limits = httpx.Limits(max_keepalive_connections=0)
        http: Any = httpx.AsyncClient(limits=limits, timeout=2 * TIMEOUT, trust_env=False)
        return openai.AsyncOpenAI(api_key=KEY, base_url=f"{url(name)}/v1", max_retries=0, http_client=http)


async def over_http(clients: Clients, gateway: str, kind: QuestionKind, file: bytes, request_id: str) -> None:
    """Ask by openai-python; raises Failure."""
    headers = {"x-request-id": request_id, "x-request-timeout": str(TIMEOUT)}
    try:
        await _by_openai(clients.http[gateway], kind, file, headers)
    except openai.APIStatusError as error:
        raise Failure(typed(error.body) or f"untyped {error.status_code}", str(error.status_code)) from error
    except openai.APITimeoutError as error:
        raise Failure(LATE) from error
    except openai.APIConnectionError as error:
        refused = isinstance(error.__cause__, httpx.ConnectError)
        raise Failure(NO_CONNECTION if refused else CUT_OFF, reached=not refused) from error
    except openai.APIError as error:  # an event of a stream
        kind_of = typed(error.body)
        code = str(BY_REASON[kind_of.upper()].http_status) if kind_of else ""
        raise Failure(kind_of or f"untyped event {error.message}", code) from error
    except httpx.TransportError as error:  # during a stream
        raise Failure(CUT_OFF) from error


def typed(body: object) -> str:
    """Return the type of an error of the mesh; empty if it is none."""
    kind = body.get("type") if isinstance(body, dict) else None
    return kind if isinstance(kind, str) and kind.upper() in BY_REASON else ""


async def _by_openai(client: openai.AsyncOpenAI, kind: QuestionKind, file: bytes, headers: dict[str, str]) -> None:
    messages = cast(Any, [{"role": "user", "content": content(kind, file)}])
    limit = 2000 if kind.long else LONGER if kind.way == "chat stream" else SHORT
    form = {"structured_outputs": {"regex": LONG}} if kind.long else {}
    options: dict[str, Any] = {"extra_headers": headers, "extra_body": form}
    match kind.way:
        case "chat":
            await client.chat.completions.create(model=kind.model, messages=messages, max_tokens=limit, **options)
        case "chat stream":
            chunks = await client.chat.completions.create(
                model=kind.model, messages=messages, max_tokens=limit, stream=True, **options
            )
            try:
                await _read(kind, _told(chunks))
            finally:
                await chunks.close()
        case "responses":
            await client.responses.create(model=kind.model, input="1+1=?", max_output_tokens=16, **options)
        case "embeddings":
            await client.embeddings.create(model=kind.model, input=["你好", "hello"], **options)
        case "transcription":
            recording = ("said.wav", io.BytesIO(file))
            await client.audio.transcriptions.create(model=kind.model, file=recording, extra_headers=headers)
        case "models":
            await client.models.list(extra_headers=headers)


async def _told(chunks: Any) -> AsyncIterator[str | None]:
    """Yield the pieces of a stream, and None for its regular end."""
    async for chunk in chunks:
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content
            if choice.finish_reason:
                yield None


async def _read(kind: QuestionKind, pieces: AsyncIterator[str | None]) -> None:
    """Read a stream, to its third piece if it is to be cancelled; raises Failure if it is not whole."""
    said, ended = list[str](), False
    async for piece in pieces:
        if piece is None:
            ended = True
        else:
            said.append(piece)
        if kind.cancel and len(said) >= CANCEL_AFTER:
            return
    if not ended or (kind.long and "".join(said) != LONG):
        raise Failure(EARLY)


async def over_grpc(clients: Clients, gateway: str, kind: QuestionKind, file: bytes, request_id: str) -> None:
    """Ask by the mesh's own client, which makes request ids itself; raises Failure."""
    try:
        await _by_client(clients.grpc[gateway], kind, file)
    except MeshError as error:
        raise _failure(error) from error


async def _by_client(client: AsyncClient, kind: QuestionKind, file: bytes) -> None:
    files: dict[str, Any] = {("audio" if kind.media == "speech" else "images"): [file]} if file else {}
    limit = 2000 if kind.long else LONGER if kind.way == "chat stream" else SHORT
    form: dict[str, Any] = {"regex": LONG} if kind.long else {}
    match kind.way:
        case "chat":
            await client.chat("What is this?" if file else "你是谁?", model=kind.model, max_tokens=limit, **files)
        case "chat stream":
            async with client.stream("你是谁?", model=MODEL, max_tokens=limit, **form) as stream:

                async def pieces() -> AsyncIterator[str | None]:
                    async for piece in stream:
                        yield piece.text
                    yield None if stream.answer.finish_reason else ""

                await _read(kind, pieces())
        case "transcription":
            await client.transcribe(file)


def _failure(error: MeshError) -> Failure:
    """Return how a call failed: by the mesh's error, or for gRPC's own reasons."""
    call = cast(grpc.Call, error.__cause__)
    if rpc_status.from_call(call) is not None:
        return Failure(error.type, code_pb2.Code.Name(error.grpc_code))
    details = call.details() or ""
    if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:  # by the clock of the client, a moment before the gateway's
        return Failure(error.type)
    if call.code() is grpc.StatusCode.UNAVAILABLE:
        refused = "connect" in details
        return Failure(NO_CONNECTION if refused else CUT_OFF, reached=not refused)
    return Failure(f"untyped {call.code().name}: {details}", call.code().name)


def gone(ended: Ended) -> Sequence[str]:
    """Return the codes that a gateway may have for a request: those of a client that left, if it did."""
    if ended.code:
        return (ended.code,)
    return (CLIENT_GONE[ended.api], "200", "OK", "504", "DEADLINE_EXCEEDED")
