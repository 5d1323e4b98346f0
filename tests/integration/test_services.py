"""Vision, speech and decoder as the gateway meets them: through Ray Serve's ingress."""

import asyncio
import base64
import hashlib
import io
import math
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from google.protobuf.duration_pb2 import Duration
from PIL import Image

from autoglm.common.errors import MeshError, from_rpc_error
from autoglm.common.tensors import check
from autoglm.common.torch_tensors import to_torch
from autoglm.training.data.speech import Espeak
from autoglm.v1 import decoder_pb2, decoder_pb2_grpc, speech_pb2, speech_pb2_grpc, vision_pb2, vision_pb2_grpc
from autoglm.v1.embedding_pb2 import ELEMENT_TYPE_BFLOAT16, EncoderTimes
from autoglm.v1.generation_pb2 import ROLE_USER, SamplingParams
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE

from ..cases import spoken
from ..mesh import Mesh
from ..waiting import NET_SECONDS, eventually_async


def png(width: int = 360, height: int = 800, color: str = "red", mode: str = "RGB") -> bytes:
    """Return a PNG of one colour."""
    file = io.BytesIO()
    Image.new(mode, (width, height), color if mode == "RGB" else 0).save(file, "PNG")
    return file.getvalue()


def wav(seconds: float, rate: int = 16_000) -> bytes:
    """Return a WAV of a 440 Hz tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        tone = (round(9000 * math.sin(2 * math.pi * 440 * i / rate)) for i in range(round(seconds * rate)))
        writer.writeframes(b"".join(sample.to_bytes(2, "little", signed=True) for sample in tone))
    return file.getvalue()


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(mesh.serve_address) as opened:
        yield opened


Encode = Callable[..., Awaitable[vision_pb2.VisionServiceEncodeResponse]]
Hear = Callable[..., Awaitable[speech_pb2.SpeechServiceEncodeResponse]]


@pytest.fixture
def encode(mesh: Mesh, channel: grpc.aio.Channel) -> Encode:
    stub = vision_pb2_grpc.VisionServiceStub(channel)

    async def call(image: bytes, left: Duration | None = None) -> vision_pb2.VisionServiceEncodeResponse:
        request = vision_pb2.VisionServiceEncodeRequest(image=image, timeout=left)
        return await stub.Encode(request, metadata=mesh.to("vision"), timeout=NET_SECONDS)

    return call


@pytest.fixture
def hear(mesh: Mesh, channel: grpc.aio.Channel) -> Hear:
    stub = speech_pb2_grpc.SpeechServiceStub(channel)

    async def call(audio: bytes) -> speech_pb2.SpeechServiceEncodeResponse:
        request = speech_pb2.SpeechServiceEncodeRequest(audio=audio)
        return await stub.Encode(request, metadata=mesh.to("speech"), timeout=NET_SECONDS)

    return call


async def refused(call: Awaitable[object]) -> MeshError:
    """Await a call that must fail and return its typed error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def failure_of(call: Awaitable[object]) -> grpc.aio.AioRpcError | None:
    """Await a call and return how it failed, or None."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    return None


def tags(line: str) -> list[str]:
    """Return the labels of a line in Prometheus' text format."""
    return line[line.index("{") + 1 : line.index("}")].split(",")


def seconds(times: EncoderTimes) -> float:
    """Return the sum of the stages."""
    return sum(stage.ToNanoseconds() for stage in (times.queue, times.preprocess, times.compute)) / 1e9


async def test_an_image_becomes_sealed_tokens(encode: Encode) -> None:
    image = png()
    response = await encode(image)
    embedding = response.embedding
    assert embedding.modality == MODALITY_IMAGE
    assert embedding.media_sha256 == hashlib.sha256(image).digest()
    assert not embedding.encoder_revision.endswith("-int8")
    assert embedding.tokens.element_type == ELEMENT_TYPE_BFLOAT16
    assert list(embedding.tokens.shape) == [49, 320]
    check(embedding.tokens)
    assert 0 < seconds(response.times) < 60


async def test_batching_changes_nothing_but_the_time(encode: Encode) -> None:
    colors = ("red", "green", "blue", "white", "black", "yellow")
    alone = [to_torch((await encode(png(color=color))).embedding.tokens).float() for color in colors]
    together = await asyncio.gather(*(encode(png(color=color)) for color in colors))
    for single, response in zip(alone, together, strict=True):
        torch.testing.assert_close(to_torch(response.embedding.tokens).float(), single, rtol=0.05, atol=0.05)
    assert all(not torch.equal(alone[0], other) for other in alone[1:])


async def test_describe_tells_what_encode_sends(
    mesh: Mesh, channel: grpc.aio.Channel, encode: Encode, hear: Hear
) -> None:
    vision = vision_pb2_grpc.VisionServiceStub(channel)
    speech = speech_pb2_grpc.SpeechServiceStub(channel)
    seen = (await vision.Describe(vision_pb2.VisionServiceDescribeRequest(), metadata=mesh.to("vision"))).encoder
    heard = (await speech.Describe(speech_pb2.SpeechServiceDescribeRequest(), metadata=mesh.to("speech"))).encoder
    image, audio = (await encode(png())).embedding, (await hear(wav(1))).embedding
    assert (seen.revision, seen.width) == (image.encoder_revision, image.tokens.shape[1])
    assert (heard.revision, heard.width) == (audio.encoder_revision, audio.tokens.shape[1])
    assert not seen.int8
    assert seen.max_pixels == 40_000_000
    assert heard.max_duration.seconds == 600


async def test_speech_lasts_as_long_as_it_lasts(hear: Hear) -> None:
    response = await hear(wav(2))
    assert response.embedding.modality == MODALITY_AUDIO
    assert list(response.embedding.tokens.shape) == [25, 1536]
    check(response.embedding.tokens)
    assert list((await hear(wav(4))).embedding.tokens.shape) == [50, 1536]


async def test_transcribe_tells_the_length(mesh: Mesh, channel: grpc.aio.Channel) -> None:
    stub = speech_pb2_grpc.SpeechServiceStub(channel)
    response = await stub.Transcribe(
        speech_pb2.SpeechServiceTranscribeRequest(audio=wav(1.5)), metadata=mesh.to("speech")
    )
    assert response.duration.ToMilliseconds() == 1500


async def test_the_decoder_reads_the_transcript_behind_a_recording(
    mesh: Mesh, channel: grpc.aio.Channel, hear: Hear
) -> None:
    Espeak.fresh()
    said = spoken("打开游戏", "zh", np.random.default_rng(3))["input_audio"]["data"]
    embedding = (await hear(base64.b64decode(said))).embedding
    assert embedding.transcript == "打开游戏"
    decoder = decoder_pb2_grpc.DecoderServiceStub(channel)
    lengths = []
    for transcript in (embedding.transcript, ""):
        embedding.transcript = transcript
        message = decoder_pb2.DecoderMessage(role=ROLE_USER, parts=[decoder_pb2.DecoderPart(media=embedding)])
        request = decoder_pb2.DecoderServiceGenerateRequest(messages=[message], sampling=SamplingParams(max_tokens=1))
        responses = decoder.Generate(request, metadata=mesh.to("decoder"), timeout=NET_SECONDS)
        last = [response async for response in responses][-1]
        lengths.append(last.finish.usage.prompt_tokens)
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize("token", [None, "", "Bearer ", "Bearer other"])
async def test_no_method_answers_a_caller_without_the_token(channel: grpc.aio.Channel, token: str | None) -> None:
    for descriptor in (vision_pb2.DESCRIPTOR, speech_pb2.DESCRIPTOR, decoder_pb2.DESCRIPTOR):
        (service,) = descriptor.services_by_name.values()
        application = service.name.removesuffix("Service").lower()
        metadata = [("application", application)] + ([] if token is None else [("authorization", token)])
        for method in service.methods:
            ask: Any = channel.unary_stream(f"/{service.full_name}/{method.name}", bytes, bytes)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [answer async for answer in ask(b"", metadata=metadata, timeout=NET_SECONDS)]
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, (application, method.name)
            assert from_rpc_error(caught.value).type == "authentication_error"


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (b"", "unsupported_media"),
        (b"not an image", "unsupported_media"),
        (png()[:200], "unsupported_media"),
        (png(20_000, 20_000, mode="1"), "request_too_large"),
    ],
    ids=["empty", "text", "truncated", "bomb"],
)
async def test_a_bad_image_is_a_typed_error(encode: Encode, image: bytes, code: str) -> None:
    error = await refused(encode(image))
    assert (error.type, error.param) == (code, "image")


@pytest.mark.parametrize(
    ("audio", "code"),
    [
        (b"", "unsupported_media"),
        (b"not audio", "unsupported_media"),
        (wav(1)[:44], "unsupported_media"),
        (wav(601, 4_000), "request_too_large"),
    ],
    ids=["empty", "text", "header", "long"],
)
async def test_a_bad_recording_is_a_typed_error(hear: Hear, audio: bytes, code: str) -> None:
    error = await refused(hear(audio))
    assert (error.code, error.param) == (code, "audio")


async def test_a_passed_deadline_is_a_typed_error(encode: Encode) -> None:
    assert (await refused(encode(png(), Duration(nanos=1)))).code == "deadline_exceeded"


async def test_each_replica_counts_its_work(mesh: Mesh, encode: Encode, hear: Hear) -> None:
    await encode(png())
    await hear(wav(1))
    line = next(line for line in mesh.lines() if "Service metrics at " in line)
    async with httpx.AsyncClient(timeout=NET_SECONDS, trust_env=False) as http:

        async def figures() -> str:
            return (await http.get(line.split(" at ")[1])).text

        async def both_count() -> bool:
            counted = [
                name
                for name in (await figures()).splitlines()
                if name.startswith("ray_autoglm_encoder_batch_size_count")
            ]
            return {'application="vision"', 'application="speech"'} <= {tag for name in counted for tag in tags(name)}

        await eventually_async(both_count, "both replicas have counted a batch")
        text = await figures()
    assert "ray_autoglm_encoder_requests_in_progress" in text
    assert 'stage="compute"' in text


async def test_a_killed_replica_refuses_with_a_type_and_comes_back(mesh: Mesh, encode: Encode, hear: Hear) -> None:
    await encode(png())
    mesh.replica("vision").kill()
    seen = set()

    async def answers() -> bool:
        failure = await failure_of(encode(png()))
        if failure is not None:
            seen.add((failure.code(), from_rpc_error(failure).type))
            await hear(wav(0.5))
        return failure is None

    await eventually_async(answers, "the replica is back")
    assert {status for status, _ in seen} == {grpc.StatusCode.UNAVAILABLE}
    assert "modality_unavailable" in {code for _, code in seen}
