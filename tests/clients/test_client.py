"""The typed client before the real mesh."""

import base64
import re
from typing import Any

import numpy as np
import pytest

from autoglm.client import AsyncClient, Client, InvalidRequest, Message
from autoglm.training.data.speech import Espeak

from ..asking import MODEL
from ..cases import ScreenCase, screen_cases, spoken
from ..mesh import Mesh
from ..waiting import eventually


@pytest.fixture(scope="module")
def case() -> ScreenCase:
    return screen_cases("open", "home", 1, seed=61)[0]


def test_a_screenshot_is_sent_once(mesh: Mesh, case: ScreenCase) -> None:
    image = data(case.image)
    with Client(mesh.grpc_address) as client:
        first = client.chat(case.words, images=[image], temperature=0)
        again = client.chat(case.words, images=[image], temperature=0)
        with client.stream(case.words, images=[image], temperature=0) as stream:
            assert "".join(piece.text for piece in stream) == first.text
    assert first.text.endswith("])")
    assert (again.text, stream.answer.text) == (first.text, first.text)
    assert [answer.stages.media[0].cache for answer in (first, again, stream.answer)] == ["miss", "local", "local"]
    assert first.usage.image_tokens == again.usage.image_tokens > 0
    assert set(first.gates) == {"image"}
    whole, named = received(mesh, first.request_id), received(mesh, again.request_id)
    assert len(image) < whole < len(image) + 200
    assert named < 200


async def test_the_other_client_says_the_same(mesh: Mesh, case: ScreenCase) -> None:
    asking = Message("user", images=[data(case.image)], audio=[data(case.audio)])
    conversation = [Message("system", "你是一个手机助手。"), asking]
    asked: Any = {"model": MODEL, "temperature": 0, "return_reasoning": True, "top_logprobs": 2}
    async with AsyncClient(mesh.grpc_address) as client:
        whole = await client.chat(conversation, **asked)
        async with client.stream(conversation, **asked) as stream:
            pieces = [piece async for piece in stream]
        assert MODEL in [model.id for model in await client.models()]
    assert whole.reasoning
    assert "".join(piece.reasoning for piece in pieces) == whole.reasoning
    assert (stream.answer.text, stream.answer.finish_reason) == (whole.text, "stop")
    assert len(stream.answer.logprobs) == len(whole.logprobs) == whole.usage.completion_tokens
    assert all(token.top[0].logprob >= token.logprob and len(token.top) == 2 for token in whole.logprobs)


def test_what_was_said(mesh: Mesh) -> None:
    Espeak.fresh()
    recording = data(spoken("打开相机", "zh", np.random.default_rng(4)))
    with Client(mesh.grpc_address) as client:
        said = client.transcribe(recording)
    assert "相机" in said.text
    assert 0.3 < said.duration < 5


async def test_both_clients_embed_alike(mesh: Mesh, case: ScreenCase) -> None:
    image, words = data(case.image), ["打开相机", "Open the camera app"]
    with Client(mesh.grpc_address) as client:
        found = client.embed(words, images=[image])
        alone = client.embed(words[1])
    async with AsyncClient(mesh.grpc_address) as other:
        assert (await other.embed(words, images=[image])).vectors == found.vectors
    assert [len(vector) for vector in found.vectors] == [512] * 3
    assert found.prompt_tokens > alone.prompt_tokens > 0
    np.testing.assert_allclose(found.vectors[1], alone.vectors[0], atol=1e-6)


def test_what_is_wrong_is_named(mesh: Mesh) -> None:
    with Client(mesh.grpc_address) as client, pytest.raises(InvalidRequest) as caught:
        client.chat("hi", temperature=3)
    assert caught.value.param == "chat.sampling.temperature"
    assert received(mesh, caught.value.request_id or "") < 200


def data(part: dict[str, Any]) -> bytes:
    """Return the bytes of a part that is made for the HTTP API."""
    encoded = part["image_url"]["url"].partition(",")[2] if "image_url" in part else part["input_audio"]["data"]
    return base64.b64decode(encoded)


def received(mesh: Mesh, request_id: str) -> int:
    """Return the bytes that a request had by its line in the gateway's log, which is written after the answer."""

    def found() -> list[str]:
        return re.findall(rf" {request_id} .* in=(\d+) ", mesh.log.read_text(encoding="utf-8"))

    eventually(lambda: bool(found()), f"request {request_id} has a line in the log")
    (size,) = found()
    return int(size)
