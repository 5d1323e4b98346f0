"""What /metrics says: its formats, its series, and that nothing which clients send adds one."""

import asyncio
import logging
import re
import threading
from collections.abc import Collection, Mapping
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.samples import Sample

from autoglm.common.errors import UnsupportedMedia, UpstreamUnavailable
from autoglm.gateway.app import PUBLIC_SERVICES
from autoglm.gateway.metrics import CODES, METHODS, OTHER, GatewayMetrics
from autoglm.gateway.openai.app import ROUTES
from autoglm.gateway.openai.operations import Scrapes
from autoglm.gateway.redis_store import FAILURES_TO_OPEN
from autoglm.v1 import chat_pb2, embeddings_pb2, model_pb2, transcription_pb2
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import FINISH_REASON_LENGTH, ROLE_USER

from ...waiting import NET_SECONDS, eventually_async, soon, turns
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import image_part, png, wav
from .test_gateway_circuit_breaker import silent_server

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAYS_HI = chat_pb2.ChatMessage(role=ROLE_USER, parts=[chat_pb2.ContentPart(text="hi")])
CHAT = chat_pb2.ChatRequest(messages=[SAYS_HI])

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], Sample]


async def scrape(client: Client, accept: str = "") -> httpx.Response:
    return await client.http.get("/metrics", headers={"accept": accept} if accept else {})


async def series(client: Client) -> Series:
    """Return every sample by its name and labels, except for those of processes and Python."""
    samples = [sample for family in read_text((await scrape(client)).text) for sample in family.samples]
    own = [sample for sample in samples if sample.name.startswith("autoglm_")]
    return {(sample.name, frozenset(sample.labels.items())): sample for sample in own}


async def value(client: Client, name: str, **labels: str) -> float:
    """Return a sample; KeyError if there is none."""
    return (await series(client))[f"autoglm_{name}", frozenset(labels.items())].value


async def counted(client: Client, expected: float, name: str, **labels: str) -> None:
    """Wait until a sample has a value: a request is counted once it has ended, which its client may see earlier."""

    async def has_it() -> bool:
        return await value(client, name, **labels) == expected

    await eventually_async(has_it, f"{name}{labels} is {expected}")


async def test_openmetrics_is_served_to_those_who_ask_for_it(shared: Client) -> None:
    response = await scrape(shared, OPENMETRICS)
    assert response.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert response.text.endswith("# EOF\n")
    assert {family.name for family in read_openmetrics(response.text)} >= {"autoglm_requests", "autoglm_build"}


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/plain", "text/plain;version=x.y", "application/json", ",;=,;;q=", "a" * 5000, "*/*;" * 500],
)
async def test_everyone_else_gets_the_text_format(shared: Client, accept: str) -> None:
    response = await scrape(shared, accept)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert list(read_text(response.text))


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x.y", "Application/OpenMetrics-Text;;=,"])
async def test_a_version_that_is_none_is_the_first(shared: Client, accept: str) -> None:
    assert list(read_openmetrics((await scrape(shared, accept)).text))


async def test_no_series_tells_when_another_was_created(client: Client) -> None:
    await client.chat("hi")
    for accept in ("", OPENMETRICS):
        assert "_created" not in (await scrape(client, accept)).text


async def test_the_process_is_among_the_metrics(shared: Client) -> None:
    text = (await scrape(shared)).text
    for name in ("process_cpu_seconds_total", "process_open_fds", "python_info", "python_gc_collections_total"):
        assert re.search(rf"^{name}\b", text, re.MULTILINE)


def test_methods_are_those_that_are_served() -> None:
    models = {"/v1/models", "/v1/models/{model}"}
    assert set(METHODS["http"]) == {OTHER, *models, *(route.path for route in ROUTES)}
    files = (chat_pb2, embeddings_pb2, model_pb2, transcription_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    assert {service.full_name for service in services} == set(PUBLIC_SERVICES)
    methods = {f"{service.name}/{method.name}" for service in services for method in service.methods}
    assert set(METHODS["grpc"]) == {OTHER, *methods}


def test_latencies_reach_to_the_longest_deadline() -> None:
    metrics = GatewayMetrics()
    for histogram in ("time_to_first_token", "e2e_request_latency", "request_decode_time", "media_fetch"):
        name = f"autoglm_{histogram}_seconds"
        (family,) = [family for family in metrics.registry.collect() if family.name == name]
        limits = [float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels]
        assert sorted(set(limits))[-2:] == [3600, float("inf")]


async def hostile(client: Client) -> Collection[int | grpc.StatusCode]:
    """Send requests full of names that nobody chose here; return how they ended."""
    ended = list[int | grpc.StatusCode]()
    for number in range(5):
        name, body = f'x{number}\n{{}}"', {"messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": f"Bearer {number}", "x-request-id": f"id-{number}", "user-agent": f"agent/{number}"}
        requests: list[tuple[str, str, Any]] = [
            ("POST", "/v1/chat/completions", body | {"model": name}),
            ("POST", "/v1/responses", {"model": name, "input": "hi", "stream": True}),
            ("POST", f"/v1/chat/{number}", body),
            ("GET", f"/v1/models/{number}", None),
            (f"VERB{number}", "/v1/models", None),
            ("DELETE", f"/{number}/metrics", None),
            ("POST", "/v1/chat/completions", {"model": BUNDLE, "stream": number}),
        ]
        for method, path, content in requests:
            response = await client.http.request(method, path, json=content, headers=headers)
            ended.append(response.status_code)
        for service in (f"autoglm.v1.Service{number}", "autoglm.v1.ChatService", "grpc.health.v1.Health"):
            method = f"/{service}/Method{number}"
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=(("x-request-id", f"id-{number}"),))
            ended.append(caught.value.code())
    return ended


async def test_nothing_that_clients_send_becomes_a_series(serve: Serve, mesh: FakeMesh) -> None:
    mesh.decoder.adapters = ["tap"]
    client = await serve()

    async def is_described() -> bool:
        return len([name for name, _ in await series(client) if name == "autoglm_build_info"]) == 4

    await eventually_async(is_described, "every application says what it is")
    before = set(await series(client))
    good = [
        await client.chat([image_part(png())], stream=True),
        await client.chat("hi", model=f"{BUNDLE}:tap"),
        await client.chat("hi", user="a name", metadata={"key": "value"}),
        await client.http.post("/v1/embeddings", json={"model": BUNDLE, "input": ["hi", "there"]}),
        await client.http.post("/v1/audio/transcriptions", files={"file": wav()}, data={"model": BUNDLE}),
    ]
    assert {response.status_code for response in good} == {200}
    ended = await hostile(client)
    assert {400, 404, grpc.StatusCode.UNIMPLEMENTED} <= set(ended)
    added = [dict(labels) for _, labels in set(await series(client)) - before]
    # Nobody had asked before: the tenant's counters begin with its first request.
    assert len([labels for labels in added if labels.get("tenant") == "anonymous"]) <= 4
    others = [labels for labels in added if "tenant" not in labels]
    assert all(labels["method"] == OTHER and labels["code"] in CODES[labels["api"]] for labels in others)
    assert len(before) < 800


async def test_every_counter_is_there_before_its_first_event(serve: Serve, valkey: str) -> None:
    found = await series(await serve(redis_url=valkey))
    zero = {(name, *sorted(dict(labels).values())) for (name, labels), sample in found.items() if sample.value == 0}
    assert {
        ("autoglm_requests_total", "/v1/responses", "503", "http"),
        ("autoglm_requests_total", "ChatService/Complete", "INTERNAL", "grpc"),
        ("autoglm_requests_aborted_total", "http"),
        ("autoglm_request_errors_total", "upstream_unavailable"),
        ("autoglm_request_success_total", "tool_calls"),
        ("autoglm_requests_rejected_total", "-", "connections"),
        ("autoglm_embedding_cache_hits_total", "audio", "redis"),
        ("autoglm_media_encode_seconds_count", "image", "shared"),
        ("autoglm_time_to_first_token_seconds_count", "image+audio", "true"),
        ("autoglm_redis_errors_total", "timeout"),
        ("autoglm_embedding_cache_evictions_total",),
        ("autoglm_usage_tokens_total", "cached"),
    } <= zero


async def test_without_a_redis_no_series_is_about_one(serve: Serve, valkey: str) -> None:
    """Otherwise `autoglm_redis_up` would be 0 there, as if it were down."""

    async def about_redis(**settings: str) -> set[str]:
        found = await series(await serve(**settings))
        return {name for name, labels in found if "redis" in name or "redis" in dict(labels).values()}

    assert await about_redis() == set()
    assert await about_redis(redis_url=valkey) >= {"autoglm_redis_up", "autoglm_embedding_cache_queries_total"}


async def test_requests_are_counted_by_how_they_ended(
    client: Client, mesh: FakeMesh, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "autoglm.gateway.access")
    chat = {"api": "http", "method": "/v1/chat/completions"}
    await client.chat("hi")
    await client.chat("hi", temperature=9)
    mesh.decoder.generate.error, mesh.decoder.after = UpstreamUnavailable("gone"), 0
    await client.chat("hi")
    mesh.decoder.after = 1
    streamed = await client.chat("hi", stream=True)
    assert (streamed.status_code, '"upstream_unavailable"' in streamed.text) == (200, True)
    await counted(client, 1, "requests_total", **chat, code="200")
    await counted(client, 1, "requests_total", **chat, code="400")
    await counted(client, 2, "requests_total", **chat, code="503")
    await eventually_async(lambda: _logged(caplog, ["200", "400", "503", "503"]), "the log has the same codes")
    with pytest.raises(grpc.aio.AioRpcError):
        await ChatServiceStub(client.channel).Complete(chat_pb2.CompleteRequest(chat=CHAT))
    await counted(client, 1, "requests_total", api="grpc", method="ChatService/Complete", code="UNAVAILABLE")
    await client.http.get("/nowhere")
    await counted(client, 1, "requests_total", api="http", method="other", code="404")


async def _logged(caplog: pytest.LogCaptureFixture, codes: list[str]) -> bool:
    return [record.getMessage().split()[2] for record in caplog.records] == codes


async def test_who_leaves_is_no_success(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.hold.clear()
    asking = asyncio.create_task(client.chat("hi", stream=True))
    await soon(mesh.decoder.generate.entered.wait())
    asking.cancel()
    await counted(client, 1, "requests_aborted_total", api="http")
    await counted(client, 1, "requests_total", api="http", method="/v1/chat/completions", code="499")
    mesh.decoder.generate.hold.set()
    assert {dict(labels)["finished_reason"] for name, labels in await series(client) if "success" in name} == {
        "stop",
        "length",
        "tool_calls",
    }


async def test_answers_are_told_apart_by_stream_and_media(client: Client) -> None:
    await client.chat([image_part(png())], stream=True)
    async for _ in ChatServiceStub(client.channel).StreamComplete(chat_pb2.StreamCompleteRequest(chat=CHAT)):
        pass
    for media in ("image", "none"):
        for name in ("time_to_first_token", "e2e_request_latency"):
            assert await value(client, f"{name}_seconds_count", media=media, stream="true") == 1
            assert await value(client, f"{name}_seconds_count", media=media, stream="false") == 0


async def test_the_stages_and_tokens_of_an_answer(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.finish_reason = FINISH_REASON_LENGTH
    await client.chat([image_part(png())])
    found = {stage: await value(client, f"request_{stage}_time_seconds_sum") for stage in ("queue", "decode")}
    assert found == {"queue": 0.001, "decode": 0.03}
    assert await value(client, "request_inference_time_seconds_sum") == pytest.approx(0.05)
    assert await value(client, "request_time_per_output_token_seconds_sum") == 0.01
    kinds = ("prompt", "image", "audio", "cached", "generated", "reasoning")
    assert [await value(client, "usage_tokens_total", kind=kind) for kind in kinds] == [9, 2, 0, 1, 4, 1]
    assert await value(client, "request_prompt_tokens_sum") == 9
    assert await value(client, "request_generation_tokens_sum") == 4
    assert await value(client, "request_success_total", finished_reason="length") == 1


async def test_embeddings_by_where_they_came_from(client: Client) -> None:
    for _ in range(2):
        await client.chat([image_part(png())])
    for outcome in ("miss", "local"):
        assert await value(client, "media_encode_seconds_count", modality="image", cache=outcome) == 1


@pytest.mark.parametrize(("flags", "found"), [("01", {TRACE}), ("00", set())])
async def test_an_exemplar_leads_to_the_trace_of_a_slow_answer(client: Client, flags: str, found: set[str]) -> None:
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": [image_part(png())]}]}
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-{flags}"}
    assert (await client.http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
    samples = [s for family in read_openmetrics((await scrape(client, OPENMETRICS)).text) for s in family.samples]
    with_one = {sample.name: sample.exemplar.labels["trace_id"] for sample in samples if sample.exemplar}
    assert set(with_one.values()) == found
    names = ("time_to_first_token", "e2e_request_latency", "media_encode")
    assert set(with_one) == {f"autoglm_{name}_seconds_bucket" for name in names if found}


async def test_which_services_are_up_and_what_they_are(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve()
    await counted(client, 1, "upstream_up", application="decoder")
    mesh.vision.describe.error = UpstreamUnavailable("gone")
    mesh.serve.applications.remove("speech")
    await counted(client, 0, "upstream_up", application="vision")

    async def is_left_out() -> bool:
        return not any(("application", "speech") in labels for _, labels in await series(client))

    await eventually_async(is_left_out, "what is not deployed is not down")
    described = [dict(labels) for name, labels in await series(client) if name == "autoglm_build_info"]
    by_application = {labels.pop("application"): labels for labels in described}
    assert by_application["gateway"].keys() == {"version"}
    assert by_application["decoder"] == {
        "version": "1.2.3",
        "bundle": BUNDLE,
        "revision": "d1",
        "device": "cpu",
        "engine": "embedded",
    }
    assert by_application["vision"]["revision"] == "r1"


async def test_how_full_the_cache_of_this_process_is(serve: Serve) -> None:
    client = await serve(cache_bytes=200)
    for colour in ("red", "blue", "green", "yellow"):
        await client.chat([image_part(png(colour=colour))])
    size, entries = await value(client, "embedding_cache_bytes"), await value(client, "embedding_cache_entries")
    assert 0 < size <= 200
    assert entries == 4 - await value(client, "embedding_cache_evictions_total")


async def test_what_fails_in_redis(serve: Serve) -> None:
    async with silent_server() as (url, _):
        client = await serve(redis_url=url, redis_timeout=0.05, redis_backoff=60)
        await client.chat([image_part(png())])
        await counted(client, 1, "redis_breaker_open")
        assert await value(client, "redis_errors_total", reason="timeout") >= FAILURES_TO_OPEN
    assert await value(client, "embedding_cache_lookup_seconds_count") >= 1


async def test_bytes_in_progress_are_given_back(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.hold.clear()
    asking = asyncio.create_task(client.chat("x" * 5000))
    await soon(mesh.decoder.generate.entered.wait())
    assert await value(client, "bytes_in_progress") > 5000
    assert await value(client, "requests_in_progress") == 1
    mesh.decoder.generate.hold.set()
    await asking
    await counted(client, 0, "bytes_in_progress")


async def test_who_asks_while_a_text_is_made_shares_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, begun, go_on, rendered = GatewayMetrics(), threading.Event(), threading.Event(), list[bool]()

    def slow(as_openmetrics: bool) -> bytes:
        begun.set()
        go_on.wait(NET_SECONDS)
        rendered.append(as_openmetrics)
        return str(len(rendered)).encode()

    monkeypatch.setattr(metrics, "render", slow)
    scrapes = Scrapes(metrics)
    first = asyncio.create_task(scrapes.text(False))
    await asyncio.to_thread(begun.wait, NET_SECONDS)
    later = [asyncio.create_task(scrapes.text(False)) for _ in range(20)]
    later[7].cancel()
    await turns(3)
    go_on.set()
    assert (await first, rendered[0]) == (b"1", False)
    assert set(await asyncio.gather(*later[8:])) == {b"2"}


async def test_a_medium_that_is_refused_is_an_error_of_its_type(client: Client, mesh: FakeMesh) -> None:
    mesh.vision.encode.error = UnsupportedMedia("not a picture", param="image")
    await client.chat([image_part(png())])
    assert await value(client, "request_errors_total", code="unsupported_media") == 1


async def test_a_call_that_grpc_sends_again_says_so(client: Client, mesh: FakeMesh) -> None:
    """By this metadata the replicas count them; see serve_metrics.RETRIED."""
    decoder = mesh.decoder.generate
    decoder.code, mesh.decoder.after = grpc.StatusCode.UNAVAILABLE, 0
    asking = asyncio.create_task(client.chat("hi"))

    async def again() -> bool:
        return len(decoder.requests) > 1

    await eventually_async(again, "the call is sent again")
    decoder.code = None
    assert (await asking).status_code == 200
    assert ["grpc-previous-rpc-attempts" in metadata for metadata in decoder.metadata][:2] == [False, True]
