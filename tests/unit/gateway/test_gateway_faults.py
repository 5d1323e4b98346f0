"""Clients that leave, deadlines that pass, services that die, and too many requests."""

import asyncio
import logging
import signal
import sys
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from autoglm.client import AsyncClient, base
from autoglm.common.errors import InvalidRequest, UnsupportedMedia
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.modality_pb2 import MODALITY_TEXT

from ...relay import relaying
from ...waiting import NET_SECONDS, eventually_async, soon
from .conftest import BUNDLE, Client, Control, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav

HI = {"model": BUNDLE, "messages": [{"role": "user", "content": "hi"}]}
CHAT = ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])])


async def abandon(control: Control, task: asyncio.Task[Any]) -> None:
    """Cancel a client once its request has reached a service, and wait until the service has let go."""
    await soon(control.entered.wait())
    control.left.clear()
    task.cancel()
    await soon(control.left.wait())
    assert control.cancelled == 1
    await asyncio.gather(task, return_exceptions=True)


async def running_requests(client: Client) -> float:
    lines = (await client.http.get("/metrics")).text.splitlines()
    return float(next(line for line in lines if line.startswith("autoglm_requests_in_progress")).split()[1])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_stops_the_decoder(client: Client, mesh: FakeMesh, stream: bool) -> None:
    mesh.decoder.generate.hold.clear()
    await abandon(mesh.decoder.generate, asyncio.create_task(client.chat("hi", stream=stream)))
    assert await running_requests(client) == 0


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_cancelled_grpc_call_stops_the_decoder(client: Client, mesh: FakeMesh, streamed: bool) -> None:
    mesh.decoder.generate.hold.clear()
    stub = ChatServiceStub(client.channel)

    async def call() -> None:
        if streamed:
            [step async for step in stub.StreamComplete(StreamCompleteRequest(chat=CHAT))]
        else:
            await stub.Complete(CompleteRequest(chat=CHAT))

    await abandon(mesh.decoder.generate, asyncio.create_task(call()))
    assert await running_requests(client) == 0


async def test_a_grpc_client_that_leaves_unread_answers_is_counted(client: Client, mesh: FakeMesh) -> None:
    """The gateway is writing when such a client cancels, not waiting for the decoder."""
    mesh.decoder.pieces, mesh.decoder.after = ["x" * 2**20] * 64, 64
    stub = ChatServiceStub(client.channel)
    for cancelled in range(1, 4):
        call = stub.StreamComplete(StreamCompleteRequest(chat=CHAT))
        await call.read()
        call.cancel()

        async def counted(times: int = cancelled) -> bool:
            text = (await client.http.get("/metrics")).text
            return f'autoglm_requests_aborted_total{{api="grpc"}} {times}.0' in text

        await eventually_async(counted, "the metrics count who left")
        assert await running_requests(client) == 0


async def test_a_client_that_hangs_up_stops_the_encoder(client: Client, mesh: FakeMesh) -> None:
    mesh.vision.encode.hold.clear()
    await abandon(mesh.vision.encode, asyncio.create_task(client.chat([image_part(png())])))
    assert mesh.decoder.generate.requests == []


async def test_a_deadline_reaches_the_decoder_and_stops_it(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.hold.clear()
    response = await client.http.post("/v1/chat/completions", json=HI, headers={"x-request-timeout": "0.3"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    await soon(mesh.decoder.generate.left.wait())
    (left,) = mesh.decoder.generate.time_remaining
    assert left is not None
    assert left <= 0.31  # gRPC rounds up
    assert mesh.decoder.generate.requests[0].timeout.ToNanoseconds() <= 0.3e9


async def test_a_deadline_that_passes_in_a_stream_is_an_event(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.hold.clear()
    headers = {"x-request-timeout": "0.3"}
    response = await client.http.post("/v1/chat/completions", json={**HI, "stream": True}, headers=headers)
    assert response.text.rstrip().split("\n\n")[-1].startswith("event: error")
    assert "deadline_exceeded" in response.text


async def test_a_deadline_passes_in_an_encoder(client: Client, mesh: FakeMesh) -> None:
    mesh.vision.encode.hold.clear()
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": [image_part(png())]}]}
    response = await client.http.post("/v1/chat/completions", json=body, headers={"x-request-timeout": "0.3"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    await soon(mesh.vision.encode.left.wait())
    assert mesh.vision.encode.cancelled == 1


async def test_grpc_deadlines_are_honoured(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.hold.clear()
    stub = ChatServiceStub(client.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Complete(CompleteRequest(chat=CHAT), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await soon(mesh.decoder.generate.left.wait())


# Serve's own words for an application that is dead, missing, restarting or in pieces.
SERVE_CODES = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
]


async def test_a_dead_encoder_is_a_typed_503_and_text_goes_on(client: Client, mesh: FakeMesh) -> None:
    for code in SERVE_CODES:
        mesh.vision.encode.code = code
        response = await client.chat([image_part(png())])
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "modality_unavailable")
        assert "image" in error["message"]
        assert "actor" not in error["message"]
        assert response.headers["retry-after"]
        assert (await client.chat("hi")).status_code == 200
    mesh.vision.encode.code = None
    assert (await client.chat([image_part(png())])).status_code == 200


async def test_a_dead_decoder_is_a_typed_503(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.after = 0
    for code in SERVE_CODES:
        mesh.decoder.generate.code = code
        response = await client.chat("hi")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_unavailable")


@pytest.mark.parametrize("error", [InvalidRequest("the header is cut short"), UnsupportedMedia("no sound in it")])
async def test_what_an_encoder_objects_to_names_the_clients_field(client: Client, mesh: FakeMesh, error: Any) -> None:
    mesh.speech.encode.error = error
    response = await client.chat([{"type": "text", "text": "hi"}, audio_part(wav())])
    body = response.json()["error"]
    assert (response.status_code, body["message"]) == (error.http_status, error.message)
    assert body["param"] == "messages[0].content[1].input_audio.data"


async def test_what_the_decoder_objects_to_names_the_clients_field(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = InvalidRequest("too long", param="messages"), 0
    response = await client.chat("hi")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(client.channel).Complete(CompleteRequest(chat=CHAT))
    status, bad = rpc_status.from_call(caught.value), error_details_pb2.BadRequest()
    assert status is not None
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].field == "chat.messages"


async def test_an_overfull_service_is_a_429(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.code, mesh.decoder.after = grpc.StatusCode.RESOURCE_EXHAUSTED, 0
    response = await client.chat("hi")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


async def test_a_bundle_without_a_modality_says_so(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.modalities = [MODALITY_TEXT]
    stub = health_pb2_grpc.HealthStub(client.channel)
    await watch(stub, "autoglm.v1.image", health_pb2.HealthCheckResponse.NOT_SERVING)
    response = await client.chat([image_part(png())])
    assert (response.status_code, response.json()["error"]["code"]) == (503, "modality_unavailable")
    assert BUNDLE in response.json()["error"]["message"]
    assert "retry-after" not in response.headers


async def watch(stub: Any, service: str, status: int) -> None:
    """Wait until grpc.health.v1 says `status` of `service`."""

    async def wait() -> None:
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=service)):
            if answer.status == status:
                return

    await soon(wait())


async def test_health_follows_each_service(client: Client, mesh: FakeMesh) -> None:
    stub, seen = health_pb2_grpc.HealthStub(client.channel), health_pb2.HealthCheckResponse
    await watch(stub, "", seen.SERVING)
    await watch(stub, "autoglm.v1.image", seen.SERVING)
    mesh.vision.describe.code = grpc.StatusCode.UNAVAILABLE
    await watch(stub, "autoglm.v1.image", seen.NOT_SERVING)
    ready = await client.http.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["dependencies"] == {"decoder": "up", "vision": "down", "speech": "up", "redis": "off"}
    card = (await client.http.get("/v1/models/autoglm-phone-9b")).json()
    assert (card["bundle"], card["modalities"], card["max_model_len"]) == (BUNDLE, ["text", "audio"], 2048)
    assert (await client.chat([image_part(png())])).status_code == 503
    mesh.decoder.describe.code = grpc.StatusCode.UNAVAILABLE
    await watch(stub, "", seen.NOT_SERVING)
    assert (await client.http.get("/health/ready")).status_code == 503
    assert (await client.http.get("/health/live")).status_code == 200
    mesh.decoder.describe.code = mesh.vision.describe.code = None
    await watch(stub, "autoglm.v1.image", seen.SERVING)
    assert (await client.chat([image_part(png())])).status_code == 200


async def test_a_health_watcher_hears_on_when_another_leaves(client: Client, mesh: FakeMesh) -> None:
    stub, seen = health_pb2_grpc.HealthStub(client.channel), health_pb2.HealthCheckResponse
    await watch(stub, "autoglm.v1.image", seen.SERVING)
    stays = stub.Watch(health_pb2.HealthCheckRequest(service="autoglm.v1.image"))
    assert (await stays.read()).status == seen.SERVING
    leaves = stub.Watch(health_pb2.HealthCheckRequest(service="autoglm.v1.image"))
    assert (await leaves.read()).status == seen.SERVING
    leaves.cancel()
    assert await leaves.code() == grpc.StatusCode.CANCELLED
    mesh.vision.describe.code = grpc.StatusCode.UNAVAILABLE
    answer = await soon(stays.read())
    assert answer.status == seen.NOT_SERVING
    stays.cancel()


async def test_before_any_service_has_spoken(serve: Serve) -> None:
    client = await serve(serve_address="127.0.0.1:1")
    assert (await client.http.get("/health/ready")).status_code == 503
    for response in (await client.chat("hi"), await client.http.get("/v1/models")):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_unavailable")


async def test_reflection_lists_the_public_services(client: Client) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {"autoglm.v1.ChatService", "autoglm.v1.ModelService", "grpc.health.v1.Health"} <= names
    assert "autoglm.v1.DecoderService" not in names


async def test_a_client_may_ask_whether_the_connection_stands(
    serve: Serve, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six pings of one that waits: by gRPC's own rules the gateway would end the connection at the fifth."""
    gateway, options = await serve(), dict(base.OPTIONS)
    options["grpc.keepalive_time_ms"] //= 20
    monkeypatch.setattr(base, "OPTIONS", tuple(options.items()))
    mesh.decoder.generate.hold.clear()
    with relaying(gateway.grpc_port) as relay:
        async with AsyncClient(relay.address, max_retries=0) as asking:
            answer = asyncio.create_task(asking.chat("hi", timeout=NET_SECONDS))
            for _ in range(6):
                assert await asyncio.to_thread(relay.pings.acquire, timeout=NET_SECONDS)
            mesh.decoder.generate.hold.set()
            assert (await answer).text


async def test_a_body_of_100_megabytes(shared: Client) -> None:
    piece = b" " * (1024 * 1024)

    async def pieces() -> Any:
        for _ in range(100):
            yield piece

    response = await shared.http.post("/v1/chat/completions", content=pieces())
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert await running_requests(shared) == 0


async def test_a_fault_of_our_own_is_a_500_without_its_text(
    client: Client, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("autoglm.gateway.openai.chat.to_conversation", broken)
    response = await client.chat("hi")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert response.headers["x-request-id"]


async def test_the_log_holds_no_content(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "autoglm"):
        await client.chat([{"type": "text", "text": "a secret"}, image_part(png())])
        await client.http.get("/v1/secret")
    (line,) = [record.message for record in caplog.records if "/v1/chat/completions" in record.message]
    assert " 200 " in line
    assert "media=image:" in line
    assert not any("secret" in record.message for record in caplog.records)


async def test_metrics(client: Client) -> None:
    await client.chat([image_part(png())])
    await client.chat("hi", temperature=9)
    text = (await client.http.get("/metrics")).text
    for line in (
        'autoglm_request_success_total{finished_reason="stop"} 1.0',
        'autoglm_request_errors_total{code="invalid_request_error"} 1.0',
        'autoglm_embedding_cache_queries_total{modality="image",tier="local"} 1.0',
        'autoglm_gate_mean_count{modality="image"} 1.0',
        'autoglm_time_to_first_token_seconds_count{media="image",stream="false"} 1.0',
        "autoglm_inter_token_latency_seconds_count 4.0",
        'autoglm_e2e_request_latency_seconds_count{media="image",stream="false"} 1.0',
        "autoglm_requests_in_progress 0.0",
    ):
        assert line in text


async def test_the_pages(shared: Client) -> None:
    assert 'href="docs"' in (await shared.http.get("/")).text
    assert (await shared.http.get("/docs")).status_code == 200
    document = (await shared.http.get("/openapi.json")).json()
    assert "ChatMessage" in document["components"]["schemas"]


async def start_process(**variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "autoglm.gateway.app",
        env={"PATH": "", **{f"AUTOGLM_{name}": value for name, value in variables.items()}},
        stderr=asyncio.subprocess.PIPE,
    )


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if text in line:
            return line
    raise AssertionError(f"the process ended without saying {text!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_process(mesh: FakeMesh, number: signal.Signals) -> None:
    process = await start_process(HOST="127.0.0.1", HTTP_PORT="0", GRPC_PORT="0", SERVE_ADDRESS=mesh.address)
    line = await read_until(process, "Starting FastAPI server at http://127.0.0.1:")
    await read_until(process, "OpenAI-compatible endpoint enabled at /v1/chat/completions")
    mesh.decoder.generate.hold.clear()
    async with httpx.AsyncClient(trust_env=False) as http:
        url = line.split("at ")[-1].strip() + "/v1/chat/completions"
        answering = asyncio.create_task(http.post(url, json=HI, timeout=NET_SECONDS))
        await soon(mesh.decoder.generate.entered.wait())
        process.send_signal(number)
        await read_until(process, "stopping")
        mesh.decoder.generate.hold.set()
        assert (await answering).status_code == 200
    assert await soon(process.wait()) == 0


@pytest.mark.parametrize("name", ["HTTP_PORT", "GRPC_PORT"])
async def test_a_port_that_is_taken(shared: Client, name: str) -> None:
    taken = {"HTTP_PORT": shared.url.rsplit(":", 1)[1], "GRPC_PORT": str(shared.grpc_port)}[name]
    process = await start_process(**{"HOST": "127.0.0.1", "HTTP_PORT": "0", "GRPC_PORT": "0", name: taken})
    assert f"AUTOGLM_{name}" in await read_until(process, "cannot listen")
    assert await process.wait() == 1


@pytest.mark.parametrize(
    ("setting", "named"),
    [({"HTTP_PORT": "many"}, "AUTOGLM_HTTP_PORT"), ({"REDIS_URL": "localhost:6379"}, "AUTOGLM_REDIS_URL")],
)
async def test_a_setting_that_is_wrong(setting: dict[str, str], named: str) -> None:
    process = await start_process(**setting)
    assert named in await read_until(process, "invalid setting")
    assert await process.wait() == 1


async def test_the_gateway_needs_no_torch() -> None:
    heavy = ("torch", "transformers", "numpy", "ray", "scipy")
    code = f"import autoglm.gateway.app, sys; print([m for m in {heavy} if m in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0].decode().strip() == "[]"
