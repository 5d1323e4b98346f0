"""What both servers answer, streamed and not, through published clients."""

import asyncio
import json
from typing import Any

import grpc
import openai
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from autoglm.common.bundle import ALIASES
from autoglm.common.errors import UpstreamUnavailable
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import FINISH_REASON_STOP, ROLE_USER, SamplingParams
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.model_pb2_grpc import ModelServiceStub
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav

ANSWER = "你好, AutoGLM 7"


def chat_request(*parts: ContentPart, **fields: Any) -> ChatRequest:
    message = ChatMessage(role=ROLE_USER, parts=parts or [ContentPart(text="hi")])
    return ChatRequest(messages=[message], sampling=SamplingParams(seed=7), **fields)


def events(body: str) -> list[str]:
    return [event.removeprefix("data: ") for event in body.split("\n\n") if event]


async def test_a_whole_answer(shared: Client) -> None:
    response = await shared.chat([image_part(png()), audio_part(wav()), {"type": "text", "text": "hi"}], seed=7)
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert "prefill;dur=20.0" in response.headers["server-timing"]
    assert (body["object"], body["model"]) == ("chat.completion", BUNDLE)
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 1, "image_tokens": 2, "audio_tokens": 0}
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert body["usage"]["total_tokens"] == 13
    stages = body["autoglm"]["stages"]
    assert (stages["queue"], stages["prefill"], stages["decode"]) == (1.0, 20.0, 30.0)
    assert stages["total"] > 0
    assert [stage["modality"] for stage in stages["media"]] == ["image", "audio"]
    assert body["autoglm"]["gates"] == {"image": 0.25}


async def test_a_streamed_answer(shared: Client) -> None:
    response = await shared.chat("hi", seed=7, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"]
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in parsed) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in parsed] == [None] * (len(parsed) - 1) + ["stop"]
    assert ["autoglm" in chunk for chunk in parsed] == [False] * (len(parsed) - 1) + [True]
    assert not any("usage" in chunk for chunk in parsed)


async def test_a_streamed_answer_with_usage(shared: Client) -> None:
    response = await shared.chat("hi", stream=True, stream_options={"include_usage": True})
    *chunks, last = [json.loads(event) for event in events(response.text)[:-1]]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    assert last["autoglm"] == chunks[-1]["autoglm"]


async def test_openai_python(shared: Client) -> None:
    client = openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="EMPTY", max_retries=0)
    messages: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    async with client:
        whole = await client.chat.completions.create(
            model="autoglm-phone-9b", messages=messages, seed=7, logprobs=True, top_logprobs=2
        )
        stream = await client.chat.completions.create(
            model=BUNDLE, messages=messages, seed=7, stream=True, extra_body={"return_reasoning": True}
        )
        deltas = [chunk.choices[0].delta async for chunk in stream]
        models = [model.id async for model in client.models.list()]
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].logprobs is not None
    tokens = whole.choices[0].logprobs.content
    assert tokens is not None
    assert (tokens[0].token, len(tokens[0].top_logprobs), bytes(tokens[0].bytes or ())) == ("你好", 2, "你好".encode())
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm"
    assert models == [BUNDLE, *ALIASES]


async def test_reasoning_comes_apart_only_when_asked_for(shared: Client) -> None:
    apart = (await shared.chat("hi", return_reasoning=True)).json()["choices"][0]["message"]
    inside = (await shared.chat("hi")).json()["choices"][0]["message"]
    assert apart["reasoning_content"] == "hm"
    assert "reasoning_content" not in inside


async def test_several_choices(shared: Client) -> None:
    body = (await shared.chat("hi", n=3, seed=5)).json()
    assert [choice["message"]["content"][-1] for choice in body["choices"]] == ["5", "6", "7"]
    assert body["usage"]["completion_tokens"] == 12
    response = await shared.chat("hi", n=3, seed=5, stream=True)
    chunks = [json.loads(event) for event in events(response.text)[:-1]]
    finished = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1, 2]
    assert ["autoglm" in chunk for chunk in chunks].count(True) == 1
    assert "autoglm" in chunks[-1]


async def test_choices_run_side_by_side(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.hold.clear()
    answering = asyncio.create_task(client.chat("hi", n=3))
    while len(mesh.decoder.generate.requests) < 3:
        await mesh.decoder.generate.entered.wait()
        mesh.decoder.generate.entered.clear()
    mesh.decoder.generate.hold.set()
    assert len((await answering).json()["choices"]) == 3


async def test_grpc_gives_the_same_answer_as_http(shared: Client) -> None:
    image = ContentPart(image=Media(data=png()))
    asked = chat_request(image, ContentPart(text="hi"), return_reasoning=True)
    stub = ChatServiceStub(shared.channel)
    http = (
        await shared.chat([image_part(png()), {"type": "text", "text": "hi"}], seed=7, return_reasoning=True)
    ).json()
    whole = await stub.Complete(CompleteRequest(chat=asked), metadata=(("x-request-id", "mine"),))
    steps = [step async for step in stub.StreamComplete(StreamCompleteRequest(chat=asked))]
    message = http["choices"][0]["message"]
    assert (whole.id, whole.model) == ("mine", BUNDLE)
    assert whole.choices[0].text == "".join(step.delta.text for step in steps) == message["content"] == ANSWER
    assert whole.choices[0].reasoning == message["reasoning_content"]
    assert whole.choices[0].finish_reason == steps[-1].delta.finish_reason == FINISH_REASON_STOP
    assert whole.summary.usage.prompt_tokens == http["usage"]["prompt_tokens"]
    assert whole.summary.stages.prefill == Duration(nanos=20_000_000)
    assert [step.HasField("summary") for step in steps] == [False] * (len(steps) - 1) + [True]


async def test_grpc_models_and_transcripts(shared: Client) -> None:
    models = await ModelServiceStub(shared.channel).ListModels(ListModelsRequest())
    assert [card.id for card in models.models] == [BUNDLE, *ALIASES]
    assert (models.models[1].bundle, models.models[1].context_length) == (BUNDLE, 2048)
    transcription = TranscriptionServiceStub(shared.channel)
    said = await transcription.Transcribe(TranscribeRequest(audio=Media(data=wav())))
    assert (said.text, said.duration.ToMilliseconds()) == ("打开设置", 2000)
    assert [(each.text, each.start.ToMilliseconds()) for each in said.segments] == [("打开设置", 500)]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (ChatRequest(), "chat.messages"),
        (ChatRequest(messages=[ChatMessage(parts=[ContentPart(text="x")])]), "chat.messages[0].role"),
        (ChatRequest(messages=[ChatMessage(role=99, parts=[ContentPart(text="x")])]), "chat.messages[0].role"),  # type: ignore[arg-type]
        (chat_request(ContentPart()), "chat.messages[0].parts[0]"),
        (chat_request(ContentPart(image=Media())), "chat.messages[0].parts[0].image"),
        (chat_request(ContentPart(image=Media(data=b"x"))), "chat.messages[0].parts[0].image.data"),
        (chat_request(ContentPart(audio=Media(url="https://a"))), "chat.messages[0].parts[0].audio.url"),
        (chat_request(n=9), "chat.n"),
        (chat_request(model="gpt-5"), "chat.model"),
    ],
)
async def test_grpc_names_the_wrong_field(shared: Client, asked: ChatRequest, field: str) -> None:
    stub = ChatServiceStub(shared.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Complete(CompleteRequest(chat=asked))
    assert field_of(caught.value) == field


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 3), ("temperature", float("nan")), ("top_p", 2), ("top_logprobs", 21)]
)
async def test_grpc_checks_sampling_as_http_does(shared: Client, name: str, value: float) -> None:
    stub = ChatServiceStub(shared.channel)
    asked = chat_request()
    setattr(asked.sampling, name, value)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Complete(CompleteRequest(chat=asked))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(caught.value) == f"chat.sampling.{name}"


async def test_an_error_after_the_first_byte_is_an_event(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error = UpstreamUnavailable("the engine stopped")
    mesh.decoder.after = 2
    response = await client.chat("hi", stream=True)
    last = response.text.rstrip().split("\n\n")[-1]
    assert response.status_code == 200
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.removeprefix("event: error\ndata: "))["error"]["code"] == "upstream_unavailable"
    assert "[DONE]" not in response.text
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0) as peer:
        stream = await peer.chat.completions.create(
            model=BUNDLE, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="the engine stopped"):
            [chunk async for chunk in stream]


async def test_an_error_before_the_first_byte_has_its_status(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = UpstreamUnavailable("the engine stopped"), 0
    response = await client.chat("hi", stream=True)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"]["code"] == "upstream_unavailable"


async def test_grpc_errors_carry_details(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error = UpstreamUnavailable("the engine stopped")
    stub = ChatServiceStub(client.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [step async for step in stub.StreamComplete(StreamCompleteRequest(chat=chat_request()))]
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the engine stopped")
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, retry.retry_delay.seconds) == ("UPSTREAM_UNAVAILABLE", 2)


async def test_a_decoder_that_stops_early_is_no_answer(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.finishes = False
    response = await client.chat("hi")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_unavailable")


async def test_ids_and_traces_go_all_the_way(client: Client, mesh: FakeMesh) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x-request-id": "mine", "traceparent": trace}
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": [image_part(png())]}]}
    response = await client.http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.headers["x-request-id"] == "mine"
    for control, application in ((mesh.decoder.generate, "decoder"), (mesh.vision.encode, "vision")):
        (metadata,) = control.metadata
        assert (metadata["application"], metadata["x-request-id"], metadata["traceparent"]) == (
            application,
            "mine",
            trace,
        )
    assert mesh.decoder.generate.requests[0].request_id == "mine"


@pytest.mark.parametrize("sent", ["a b", "", "x" * 129, "é"])
async def test_an_unusable_id_is_replaced(shared: Client, sent: str) -> None:
    response = await shared.http.get("/health/live", headers={b"x-request-id": sent.encode("latin-1")})
    assert response.headers["x-request-id"] not in ("", sent)


async def test_keys(serve: Serve) -> None:
    client = await serve(api_keys="k1, k2")
    good, bad = {"authorization": "Bearer k2"}, {"authorization": "Bearer EMPTY"}
    assert (await client.http.get("/v1/models", headers=good)).status_code == 200
    assert (await client.http.get("/v1/models", headers=bad)).status_code == 401
    refused = await client.chat("hi")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await client.http.get("/health/live")).status_code == 200
    stub = ModelServiceStub(client.channel)
    assert await stub.ListModels(ListModelsRequest(), metadata=tuple(good.items()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModels(ListModelsRequest(), metadata=tuple(bad.items()))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def field_of(error: grpc.aio.AioRpcError) -> str:
    status, bad = rpc_status.from_call(error), error_details_pb2.BadRequest()
    assert status is not None
    assert any(detail.Unpack(bad) for detail in status.details)
    return str(bad.field_violations[0].field)
