"""A burst of requests of every kind through both servers, more than there are places: each has one answer, one line in
the log and one count in the metrics, and nothing of it stays.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from autoglm.cli.api import image_bytes_part
from autoglm.common.errors import MeshError
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER, SamplingParams

from ..asking import CHAT, MODEL, Asker, describe_decoder
from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually
from .test_bad_input import BOMB, MIB

REQUESTS = 2000
AT_ONCE = 600  # more than twice as many as there are places, on fewer sockets than any system allows
GROWTH = 64 * MIB
OK, LEFT = "ok", "left"  # an answer; the client did not wait for one
FULL, LATE = "rate_limit_exceeded", "deadline_exceeded"
STATUS = {kind.type: str(kind.http_status) for kind in MeshError.__subclasses__()}

Body = Mapping[str, Any]
Send = Callable[["Clients", str], Awaitable[str]]
HI: Body = {"model": MODEL, "messages": [{"role": "user", "content": "1+1"}], "max_tokens": 4, "temperature": 0}


@dataclass(frozen=True, slots=True)
class Clients:
    """What a burst is sent with."""

    http: httpx.AsyncClient
    chat: ChatServiceStub
    port: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: how it is sent under an id, its possible outcomes besides a full mesh, and whether the gateway
    is sure to hear of it."""

    send: Send
    outcomes: frozenset[str]
    heard: bool = True


def posted(body: Body | bytes, **headers: str) -> Send:
    """A request over HTTP whose answer is read to its end."""

    async def send(clients: Clients, name: str) -> str:
        content = body if isinstance(body, bytes) else json.dumps(body)
        known = {"x-request-id": name, **{key.replace("_", "-"): value for key, value in headers.items()}}
        response = await clients.http.post(CHAT, content=content, headers=known)
        return outcome(response.status_code, response.headers, response.text)

    return send


def outcome(status: int, headers: Mapping[str, str], text: str) -> str:
    """What a client learns: an answer or the type of an error, in a body or as the last event of a stream."""
    if status == 200:
        _, failed, event = text.partition("event: error\ndata: ")
        return str(json.loads(event)["error"]["type"]) if failed else OK
    code = str(json.loads(text)["error"]["type"])
    assert STATUS[code] == str(status)
    assert code != FULL or int(headers["retry-after"]) >= 1
    return code


async def leave_stream(clients: Clients, name: str) -> str:
    """Hang up after the first event."""
    body, headers = {**HI, "stream": True, "max_tokens": 200}, {"x-request-id": name}
    async with clients.http.stream("POST", CHAT, json=body, headers=headers) as response:
        if response.status_code == 200:
            await anext(response.aiter_raw())
            return LEFT
        return outcome(response.status_code, response.headers, (await response.aread()).decode())


def raw(head: Sequence[str], body: bytes, name: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "host: test", "content-type: application/json", f"x-request-id: {name}", *head]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def leave_at_once(clients: Clients, name: str) -> str:
    """Hang up when the request is sent."""
    _, writer = await asyncio.open_connection("127.0.0.1", clients.port)
    body = json.dumps(HI).encode()
    writer.write(raw([f"content-length: {len(body)}"], body, name))
    await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return LEFT


async def announce_too_much(clients: Clients, name: str) -> str:
    """Announce a body beyond any limit."""
    reader, writer = await asyncio.open_connection("127.0.0.1", clients.port)
    writer.write(raw([f"content-length: {100 * MIB}"], b"{", name))
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    text = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return outcome(int(head[0].split()[1]), headers, text.decode())


def asked(*parts: ContentPart, **sampling: Any) -> ChatRequest:
    message = ChatMessage(role=ROLE_USER, parts=[ContentPart(text="1+1"), *parts])
    return ChatRequest(messages=[message], sampling=SamplingParams(**{"max_tokens": 4, "temperature": 0, **sampling}))


def called(chat: ChatRequest, stream: bool = False, timeout: float = NET_SECONDS) -> Send:
    """A call over gRPC whose answer is read to its end."""

    async def send(clients: Clients, name: str) -> str:
        try:
            call = start(clients, chat, stream, name, timeout)
            if stream:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return reason(error)
        return OK

    return send


def start(clients: Clients, chat: ChatRequest, stream: bool, name: str, timeout: float) -> Any:
    known = (("x-request-id", name),)
    if stream:
        return clients.chat.StreamComplete(StreamCompleteRequest(chat=chat), timeout=timeout, metadata=known)
    return clients.chat.Complete(CompleteRequest(chat=chat), timeout=timeout, metadata=known)


def reason(error: grpc.aio.AioRpcError) -> str:
    """What a client learns of an error: its code, or gRPC's where the mesh had no say."""
    status = rpc_status.from_call(error)
    if status is None:
        return error.code().name
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    code = info.reason.lower()
    assert code != FULL or any(detail.Unpack(retry) for detail in status.details)
    return str(code)


async def cancel(clients: Clients, name: str) -> str:
    """Cancel a call that the gateway has begun to answer."""
    call = start(clients, asked(max_tokens=200), True, name, NET_SECONDS)
    try:
        await call.initial_metadata()
        if call.cancel():
            return LEFT
        await call.read()
    except grpc.aio.AioRpcError as error:
        return reason(error)
    return OK


def kind(send: Send, *outcomes: str, heard: bool = True) -> Kind:
    return Kind(send, frozenset(outcomes), heard)


PICTURE = {**HI, "messages": [{"role": "user", "content": [image_bytes_part(BOMB)]}]}
KINDS: Mapping[str, tuple[float, Kind]] = {
    "http: good": (0.18, kind(posted(HI), OK)),
    "http: good, streamed": (0.18, kind(posted({**HI, "stream": True}), OK)),
    "http: no JSON": (0.06, kind(posted(b'{"messages": ['), "invalid_request_error")),
    "http: out of range": (0.06, kind(posted({**HI, "temperature": 9}), "invalid_request_error")),
    "http: no such model": (0.02, kind(posted({**HI, "model": "gpt"}), "not_found")),
    "http: too large a picture": (0.02, kind(posted(PICTURE), "request_too_large")),
    "http: too large a body": (0.04, kind(announce_too_much, "request_too_large")),
    "http: late": (0.04, kind(posted(HI, x_request_timeout="0.001"), LATE)),
    "http: late, streamed": (0.02, kind(posted({**HI, "stream": True}, x_request_timeout="0.05"), LATE, OK)),
    "http: leaves a stream": (0.04, kind(leave_stream, LEFT)),
    "http: leaves at once": (0.04, kind(leave_at_once, LEFT)),
    "grpc: good": (0.09, kind(called(asked()), OK)),
    "grpc: good, streamed": (0.09, kind(called(asked(), stream=True), OK)),
    "grpc: nothing asked": (0.03, kind(called(ChatRequest()), "invalid_request_error")),
    "grpc: out of range": (0.03, kind(called(asked(temperature=9)), "invalid_request_error")),
    "grpc: too large a picture": (
        0.02,
        kind(called(asked(ContentPart(image=Media(data=BOMB)))), "request_too_large"),
    ),
    "grpc: late": (0.02, kind(called(asked(), timeout=0.3), LATE, "DEADLINE_EXCEEDED", OK, heard=False)),
    "grpc: cancelled": (0.02, kind(cancel, LEFT)),
}


def counts(metrics: str, name: str, label: str) -> Counter[str]:
    """Return a counter of the gateway's by one of its labels."""
    families = text_string_to_metric_families(metrics)
    samples = [sample for family in families for sample in family.samples if sample.name == f"autoglm_{name}_total"]
    return Counter({sample.labels[label]: int(sample.value) for sample in samples})


def lines(mesh: Mesh) -> dict[str, list[str]]:
    """Return how each request of a burst ended, by its id, as the log has it."""
    found: dict[str, list[str]] = {}
    for line in mesh.lines():
        _, is_access, said = line.partition(" autoglm.gateway.access: ")
        words = said.split()
        if is_access and words[0].startswith("burst-"):
            status = words[words.index(next(word for word in words if word.endswith("ms"))) - 1]
            found.setdefault(words[0], []).append(status)
    return found


async def burst(mesh: Mesh, requests: Mapping[str, Kind]) -> dict[str, str]:
    """Send `requests`, by id, and return what came of each."""
    places = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    http = httpx.AsyncClient(base_url=mesh.http_url, timeout=NET_SECONDS, trust_env=False, limits=limits)
    async with http, grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        clients = Clients(http, ChatServiceStub(channel), mesh.http_port)

        async def one(name: str, kind: Kind) -> str:
            async with places:
                return await kind.send(clients, name)

        outcomes = await asyncio.gather(*(one(name, kind) for name, kind in requests.items()))
    return dict(zip(requests, outcomes, strict=True))


def drawn(count: int, seed: str) -> dict[str, Kind]:
    """Return so many requests of every kind in its share, in random order, by id."""
    named = [
        (f"burst-{seed}-{name.replace(' ', '_')}-{i}", kind)
        for name, (share, kind) in KINDS.items()
        for i in range(round(share * count))
    ]
    random.Random(seed).shuffle(named)
    return dict(named)


def settled(mesh: Mesh, ask: Asker, requests: Mapping[str, Kind]) -> None:
    """Wait until nothing is in progress anywhere and the log has every request that the gateway is sure to know."""
    eventually(lambda: ask.running() == 0, "the gateway has no request in progress")
    eventually(lambda: describe_decoder(mesh).num_requests_running == 0, "the decoder generates nothing")
    sure = {name for name, kind in requests.items() if kind.heard}
    eventually(lambda: sure <= lines(mesh).keys(), "every request has a line in the log")


async def test_every_request_of_a_burst_is_accounted_for(mesh: Mesh, ask: Asker) -> None:
    first = drawn(REQUESTS // 5, "first")
    await burst(mesh, first)
    settled(mesh, ask, first)
    memory, before = mesh.gateway().memory_info().rss, ask.http.get("/metrics").text

    requests = drawn(REQUESTS, "second")
    outcomes = await burst(mesh, requests)
    settled(mesh, ask, requests)
    after, log = ask.http.get("/metrics").text, lines(mesh)

    unexpected = {name: got for name, got in outcomes.items() if got not in requests[name].outcomes | {FULL}}
    assert not unexpected
    assert Counter(outcomes.values())[OK] > REQUESTS // 20
    assert Counter(outcomes.values())[FULL] > 0

    ends = {name: log[name] for name in requests if name in log}
    assert all(len(statuses) == 1 for statuses in ends.values())
    told = {name: statuses[0] for name, statuses in ends.items()}
    assert not {"500", "503", "internal", "upstream_unavailable"} & set(told.values())
    for name, status in told.items():
        if (got := outcomes[name]) in STATUS and status not in ("200", "CANCELLED"):
            assert status in (got, STATUS[got]), name
        elif got == OK:
            assert status in ("200", "OK"), name

    errors = counts(after, "request_errors", "code") - counts(before, "request_errors", "code")
    assert errors == Counter(filter(None, (failure(outcomes[name], told.get(name, "")) for name in requests)))
    answers = counts(after, "request_success", "finished_reason") - counts(before, "request_success", "finished_reason")
    finished, tallied = answers["stop"] + answers["length"], Counter(outcomes.values())
    left = tallied[LEFT] + tallied["DEADLINE_EXCEEDED"]
    assert tallied[OK] <= finished <= tallied[OK] + left
    aborted = counts(after, "requests_aborted", "api") - counts(before, "requests_aborted", "api")
    assert 0 < aborted.total() <= left
    # Who leaves while an answer's last step is on its way is counted for both.
    assert len(told) <= answers.total() + aborted.total() + errors.total() <= len(told) + left

    assert mesh.gateway().memory_info().rss - memory < GROWTH
    assert ask("1+1", max_tokens=8)


def failure(got: str, status: str) -> str:
    """Return the code that the gateway must have counted for a request, from its client's word or else from the log."""
    if got in STATUS and status != "CANCELLED":
        return got
    by_status = {http_status: code for code, http_status in STATUS.items()}
    return status if status in STATUS else by_status.get(status, "")
