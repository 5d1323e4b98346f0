"""What a gRPC call meets before its method: key, message, size, compression, and methods that are not there."""

import gzip
import logging
import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from autoglm.gateway.grpc_calls import GZIP_MAGIC
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, CompleteResponse, ContentPart, Media
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.model_pb2 import ListModelsResponse

from ...waiting import NET_SECONDS, eventually_async
from .conftest import Client, FakeMesh, Serve
from .samples import png

MIB = 1024 * 1024
COMPLETE = "/autoglm.v1.ChatService/Complete"
STREAM = "/autoglm.v1.ChatService/StreamComplete"
METHODS = {
    COMPLETE: "CompleteRequest",
    STREAM: "StreamCompleteRequest",
    "/autoglm.v1.TranscriptionService/Transcribe": "TranscribeRequest",
    "/autoglm.v1.ModelService/ListModels": "ListModelsRequest",
}
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
GARBAGE = b"\x0f\xff\xff"
NO_MESSAGES = (
    GARBAGE, b"\x0a\x7fshort", GZIP_MAGIC + b"broken",
    gzip.compress(GARBAGE, mtime=0), gzip.compress(b"", mtime=0)[:-3],
)  # fmt: skip


def question(size: int = 0, data: bytes = b"") -> bytes:
    parts = [ContentPart(text="hi"), *([ContentPart(text="x" * size)] if size else [])]
    parts += [ContentPart(image=Media(data=data))] if data else []
    chat = ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=parts)])
    return CompleteRequest(chat=chat).SerializeToString()


async def sent(client: Client, method: str, data: bytes, key: str = "", **options: Any) -> bytes:
    """Send bytes; return the first message of the answer."""
    metadata = (("x-request-id", "r1"), *((("authorization", f"Bearer {key}"),) if key else ()))
    stub: Any = client.channel.unary_stream(method)
    call = stub(data, metadata=metadata, timeout=NET_SECONDS, **options)
    answers = [answer async for answer in call]
    return bytes(answers[0])


async def refused(asking: Any) -> tuple[grpc.StatusCode, str | None, str]:
    """Return code, reason and message of the failure of `asking`; no reason where gRPC itself refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asking
    status, info = rpc_status.from_call(caught.value), error_details_pb2.ErrorInfo()
    if status is None:
        return caught.value.code(), None, caught.value.details() or ""
    assert status.details[0].Unpack(info)
    return caught.value.code(), info.reason, status.message


async def counted(client: Client, kind: str) -> float:
    found = re.search(rf'request_errors_total{{code="{kind}"}} (\S+)', (await client.http.get("/metrics")).text)
    return float(found[1]) if found else 0.0


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the calls left in the log, tracebacks too; health speaks of the services when it likes."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING or record.name == "autoglm.gateway.access"
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", NO_MESSAGES)
async def test_bytes_that_are_no_message(
    client: Client, caplog: pytest.LogCaptureFixture, method: str, data: bytes
) -> None:
    with caplog.at_level(logging.INFO, "autoglm"):
        code, reason, message = await refused(sent(client, method, data))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST_ERROR")
    assert message == f"the message is not a valid autoglm.v1.{METHODS[method]}"
    (line,) = lines(caplog)
    assert line.startswith(f"{method.removeprefix('/autoglm.v1.')} invalid_request_error ")
    assert await counted(client, "invalid_request_error") == 1


@pytest.mark.parametrize(
    "method", ["/autoglm.v1.ChatService/Nothing", "/autoglm.v9.ChatService/Complete", "/a/b", "/" + "long" * 200]
)
async def test_a_method_that_is_not_there(client: Client, caplog: pytest.LogCaptureFixture, method: str) -> None:
    with caplog.at_level(logging.INFO, "autoglm"):
        code, reason, message = await refused(sent(client, method, b""))
    assert (code, reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_FOUND")
    assert message == f"there is no method {method[:200]}"
    (line,) = lines(caplog)
    assert line.startswith("(no method) not_found ")  # no text of the client
    assert await counted(client, "not_found") == 1


@pytest.mark.parametrize("key", ["", "k2"])
async def test_the_key_is_checked_before_anything_else(serve: Serve, mesh: FakeMesh, key: str) -> None:
    client = await serve(api_keys="k1", max_body_bytes=MIB)
    for method in (*METHODS, "/autoglm.v1.ChatService/Nothing", "/nowhere/Nothing"):
        for data in (b"", GARBAGE, question(2 * MIB), gzip.compress(bytes(8 * MIB))):
            code, reason, _ = await refused(sent(client, method, data, key))
            assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_ERROR"), method
    assert await counted(client, "authentication_error") == 4 * (len(METHODS) + 2)
    assert CompleteResponse.FromString(await sent(client, COMPLETE, question(), "k1")).choices
    assert mesh.calls == 1


async def test_health_and_reflection_need_no_key(serve: Serve) -> None:
    client = await serve(api_keys="k1")
    assert health_pb2.HealthCheckResponse.FromString(await sent(client, CHECK, b"")).status
    asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    found = reflection_pb2.ServerReflectionResponse.FromString(await sent(client, REFLECT, asked))
    assert "autoglm.v1.ChatService" in [service.name for service in found.list_services_response.service]


@pytest.mark.parametrize(
    ("method", "code"),
    [
        # A client asks for the later version first, and takes this code as the sign to ask for the earlier one.
        (REFLECT.replace("v1alpha", "v1"), grpc.StatusCode.UNIMPLEMENTED),
        (CHECK.replace("Check", "Heal"), grpc.StatusCode.UNIMPLEMENTED),
        ("/grpc./", grpc.StatusCode.UNIMPLEMENTED),
        (CHECK, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_what_the_standard_services_do_not_have(
    serve: Serve, caplog: pytest.LogCaptureFixture, method: str, code: grpc.StatusCode
) -> None:
    client = await serve(api_keys="k1")
    asked = health_pb2.HealthCheckRequest(service="nobody").SerializeToString()
    with caplog.at_level(logging.INFO, "autoglm"):
        assert (await refused(sent(client, method, asked)))[:2] == (code, "NOT_FOUND")
    (line,) = lines(caplog)
    assert line.startswith(f"{method if method == CHECK else '(no method)'} not_found ")
    assert await counted(client, "not_found") == 1


@pytest.mark.parametrize("method", [CHECK, CHECK.replace("Check", "Watch"), REFLECT])
async def test_the_standard_services_have_the_same_errors(
    serve: Serve, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    client = await serve(max_body_bytes=MIB)
    with caplog.at_level(logging.INFO, "autoglm"):
        code, reason, _ = await refused(sent(client, method, GARBAGE))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST_ERROR")
        code, reason, _ = await refused(sent(client, method, gzip.compress(bytes(8 * MIB))))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    assert [line.split()[:2] for line in lines(caplog)] == [
        [method, "invalid_request_error"],
        [method, "request_too_large"],
    ]


@pytest.mark.parametrize("method", [COMPLETE, STREAM])
async def test_a_message_over_the_limit(serve: Serve, mesh: FakeMesh, method: str) -> None:
    client = await serve(max_body_bytes=MIB, max_bytes_in_progress=MIB)
    code, reason, message = await refused(sent(client, method, question(MIB + 1)))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    assert message == f"the message is larger than {MIB} bytes"
    assert await sent(client, method, question(MIB - 200))  # the bytes were given back
    assert mesh.calls == 1


async def test_a_message_that_grpc_itself_refuses_is_counted(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve(max_body_bytes=MIB)
    with caplog.at_level(logging.INFO, "autoglm"):
        code, _, _ = await refused(sent(client, COMPLETE, question(3 * MIB)))
        await eventually_async(lambda: logged(caplog), "the call is logged")
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    (line,) = lines(caplog)
    assert line.startswith("ChatService/Complete request_too_large ")
    assert await counted(client, "request_too_large") == 1
    assert await sent(client, COMPLETE, question())


@pytest.mark.parametrize("method", [COMPLETE, STREAM])
async def test_compressed_messages_are_read(client: Client, mesh: FakeMesh, method: str) -> None:
    sizes = (0, 100_000)
    for size in sizes:
        assert await sent(client, method, question(size), compression=grpc.Compression.Gzip)
    texts = [request.messages[0].parts[-1].text for request in mesh.decoder.generate.requests]
    assert list(map(len, texts)) == [2, 100_000]
    listed = await sent(client, "/autoglm.v1.ModelService/ListModels", b"", compression=grpc.Compression.Gzip)
    assert ListModelsResponse.FromString(listed).models


async def test_a_picture_in_a_compressed_message_arrives_whole(client: Client, mesh: FakeMesh) -> None:
    picture = png(600, 400)
    await sent(client, COMPLETE, question(50_000, picture), compression=grpc.Compression.Gzip)
    assert mesh.vision.encode.requests[0].image == picture


@pytest.mark.parametrize("method", [COMPLETE, STREAM])
async def test_a_compressed_bomb_is_refused(serve: Serve, method: str) -> None:
    client = await serve(max_body_bytes=MIB, max_bytes_in_progress=MIB)
    bomb = question(64 * MIB)
    for sending in (
        sent(client, method, bomb, compression=grpc.Compression.Gzip),
        sent(client, method, gzip.compress(bomb)),
    ):
        code, reason, _ = await refused(sending)
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    assert await sent(client, method, question())


async def test_another_compression_is_refused_by_name(client: Client) -> None:
    code, _, message = await refused(sent(client, COMPLETE, question(5000), compression=grpc.Compression.Deflate))
    assert (code, "deflate" in message) == (grpc.StatusCode.UNIMPLEMENTED, True)


async def test_a_call_without_a_message_ends(client: Client, serve: Serve, mesh: FakeMesh) -> None:

    stub: Any = client.channel.stream_unary(COMPLETE)
    code, reason, _ = await refused(stub(iter(()), timeout=NET_SECONDS))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    client = await serve(default_timeout=0.2)
    stub = client.channel.stream_unary(COMPLETE)
    code, reason, _ = await refused(stub())
    assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert "autoglm_requests_in_progress 0.0" in (await client.http.get("/metrics")).text
    assert mesh.calls == 0


async def test_a_health_check_without_a_message_ends(shared: Client) -> None:
    stub: Any = shared.channel.stream_unary(CHECK)
    code, reason, _ = await refused(stub(iter(()), timeout=NET_SECONDS))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST_ERROR")


async def test_a_full_gateway_refuses_before_it_reads(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(max_concurrent_requests=1)
    stub: Any = client.channel.stream_unary(COMPLETE)
    silent = stub()
    await silent.initial_metadata()
    await eventually_async(lambda: running(client), "the slot is taken")
    code, reason, _ = await refused(sent(client, COMPLETE, GARBAGE))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED")
    silent.cancel()
    await eventually_async(lambda: idle(client), "the slot is free")
    assert await sent(client, COMPLETE, question())


async def logged(caplog: pytest.LogCaptureFixture) -> bool:
    return bool(lines(caplog))


async def running(client: Client) -> bool:
    return "autoglm_requests_in_progress 1.0" in (await client.http.get("/metrics")).text


async def idle(client: Client) -> bool:
    return "autoglm_requests_in_progress 0.0" in (await client.http.get("/metrics")).text
