"""The names that requests may call the model by."""

from urllib.parse import quote

import openai
import pytest
from pydantic import ValidationError

from autoglm.common.bundle import ALIASES
from autoglm.gateway.settings import Settings
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.model_pb2_grpc import ModelServiceStub

from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import wav

NAMES = "zai-org/AutoGLM-Phone-9B, phone:latest,gpt-4o , phone:latest"
SERVED = ["zai-org/AutoGLM-Phone-9B", "phone:latest", "gpt-4o"]


def peer(client: Client) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0)


async def answered_by(client: Client, name: str) -> str:
    """Return the model that an answer carries, which is the same in every API."""
    whole = await client.chat("hi", model=name)
    assert whole.status_code == 200, whole.text
    message = ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])
    called = await ChatServiceStub(client.channel).Complete(
        CompleteRequest(chat=ChatRequest(model=name, messages=[message]))
    )
    response = await peer(client).responses.create(model=name, input="hi")
    vector = await client.http.post("/v1/embeddings", json={"model": name.rpartition(":")[0] or name, "input": "hi"})
    transcript = await client.http.post("/v1/audio/transcriptions", data={"model": name}, files={"file": wav()})
    assert transcript.status_code == 200
    found = {whole.json()["model"], called.model, response.model}
    assert len(found) == 1
    assert vector.status_code in (200, 404)
    return str(found.pop())


async def test_every_bundle_answers_to_the_published_names(shared: Client) -> None:
    for name in ("", BUNDLE, *ALIASES):
        assert await answered_by(shared, name) == BUNDLE
    assert "autoglm-phone-9b-multilingual" in ALIASES


async def test_names_that_are_set_take_their_place(serve: Serve) -> None:
    client = await serve(served_model_names=NAMES)
    assert [model.id async for model in peer(client).models.list()] == SERVED
    cards = (await ModelServiceStub(client.channel).ListModels(ListModelsRequest())).models
    assert [(card.id, card.bundle) for card in cards] == [(name, BUNDLE) for name in SERVED]
    for name in ("", *SERVED):
        assert await answered_by(client, name) == SERVED[0]
    for name in (BUNDLE, *ALIASES, "ZAI-ORG/autoglm-phone-9b", "zai-org", "zai-org/AutoGLM-Phone-9B/", "phone"):
        refused = await client.chat("hi", model=name)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found"), name
        assert all(each in refused.json()["error"]["message"] for each in SERVED)


async def test_a_name_with_a_slash_has_a_page(serve: Serve) -> None:
    client = await serve(served_model_names=NAMES)
    for name in SERVED:
        for path in (name, quote(name, safe=""), f"{name}/"):
            for prefix in ("/v1/models/", "/models/"):
                found = await client.http.get(prefix + path)
                assert (found.status_code, found.json()["id"]) == (200, name), path
        assert (await peer(client).models.retrieve(name)).id == name
        assert (await client.http.head(f"/v1/models/{name}")).status_code == 200
    unknown = await client.http.get("/v1/models/zai-org/GLM-5")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_adapters_follow_each_name(serve: Serve, mesh: FakeMesh) -> None:
    mesh.decoder.adapters = ["polite"]
    client = await serve(served_model_names=NAMES)
    ids = [model.id async for model in peer(client).models.list()]
    assert ids == [each for name in SERVED for each in (name, f"{name}:polite")]
    for name in SERVED:
        answer = await client.chat("hi", model=f"{name}:polite")
        assert (answer.status_code, answer.json()["model"]) == (200, f"{SERVED[0]}:polite")
        assert mesh.decoder.generate.requests[-1].adapter == "polite"
    for name in ("phone:polite", "phone:latest:rude", "phone:latest:", ":polite"):
        assert (await client.chat("hi", model=name)).status_code == 404, name


@pytest.mark.parametrize("wrong", ["my model", "/phone", "phone/", "a//b", "a,/"])
def test_a_name_that_no_path_could_hold_is_refused_at_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="served_model_names"):
        Settings(served_model_names=wrong)
