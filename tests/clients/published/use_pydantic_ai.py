"""Pydantic AI: agents on both APIs, with functions and output types, and its embedder."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, Embedder, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

MODEL = "autoglm-phone-9b"
SETTINGS = ModelSettings(temperature=0, max_tokens=400)
BOTH = pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])


class Screen(BaseModel):
    """What a screen is."""

    kind: Literal["home", "settings", "app"]
    locked: bool


@pytest.fixture
def provider(base_url: str) -> OpenAIProvider:
    return OpenAIProvider(base_url=base_url, api_key="EMPTY")


def test_chat(provider: OpenAIProvider) -> None:
    agent = Agent(OpenAIChatModel(MODEL, provider=provider), model_settings=SETTINGS)
    first = agent.run_sync("Introduce yourself")
    assert "AutoGLM-Phone" in first.output
    assert first.usage.output_tokens > 0
    assert agent.run_sync("3 + 4 = ?", message_history=first.all_messages()).output


def test_responses(provider: OpenAIProvider) -> None:
    agent = Agent(OpenAIResponsesModel(MODEL, provider=provider), model_settings=SETTINGS)
    first = agent.run_sync("Introduce yourself")
    assert "AutoGLM-Phone" in first.output
    assert agent.run_sync("3 + 4 = ?", message_history=first.all_messages()).output


@BOTH
def test_stream(provider: OpenAIProvider, kind: Any) -> None:
    agent = Agent(kind(MODEL, provider=provider), model_settings=SETTINGS)
    result = agent.run_stream_sync("Introduce yourself")
    pieces = list(result.stream_text(delta=True, debounce_by=None))
    assert len(pieces) > 5
    assert "AutoGLM-Phone" in "".join(pieces)


@BOTH
def test_images(provider: OpenAIProvider, kind: Any, home: Path) -> None:
    agent = Agent(kind(MODEL, provider=provider), model_settings=SETTINGS)
    asked: Any = ["Open the game", BinaryContent(home.read_bytes(), media_type="image/png")]
    assert "do(action=" in agent.run_sync(asked).output


def test_audio(provider: OpenAIProvider, home: Path, spoken: Path) -> None:
    agent = Agent(OpenAIChatModel(MODEL, provider=provider), model_settings=SETTINGS)
    asked = [
        BinaryContent(home.read_bytes(), media_type="image/png"),
        BinaryContent(spoken.read_bytes(), media_type="audio/wav"),
    ]
    assert "do(action=" in agent.run_sync(asked).output


@BOTH
def test_tools(provider: OpenAIProvider, kind: Any) -> None:
    """The model has to call the function first, and writes its answer after the result."""
    agent = Agent(kind(MODEL, provider=provider), model_settings=SETTINGS)
    asked: list[str] = []

    @agent.tool_plain
    def forecast(city: Literal["Paris", "北京"]) -> str:
        """Forecast the weather."""
        asked.append(city)
        return "clear"

    def settings(context: Any) -> ModelSettings:
        return ModelSettings(tool_choice="auto" if asked else ["forecast"])

    result = agent.run_sync("How is the weather in Paris?", model_settings=settings)
    assert len(asked) == 1
    assert result.output


@BOTH
@pytest.mark.parametrize("output", [ToolOutput, NativeOutput])
def test_structured(provider: OpenAIProvider, kind: Any, output: Any) -> None:
    agent: Any = Agent(kind(MODEL, provider=provider), output_type=output(Screen), model_settings=SETTINGS)
    assert isinstance(agent.run_sync("What is on the screen?").output, Screen)


def test_embeddings(provider: OpenAIProvider) -> None:
    embedder = Embedder(OpenAIEmbeddingModel(MODEL, provider=provider))
    documents = embedder.embed_documents_sync(["Open the camera", "打开相机"]).embeddings
    assert embedder.embed_query_sync("打开相机").embeddings[0] == pytest.approx(documents[1])


def test_errors(provider: OpenAIProvider, locked_url: str) -> None:
    with pytest.raises(ModelHTTPError) as unknown:
        Agent(OpenAIChatModel("gpt-9", provider=provider)).run_sync("hi")
    assert unknown.value.status_code == 404
    locked = OpenAIProvider(base_url=locked_url, api_key="wrong")
    with pytest.raises(ModelHTTPError) as refused:
        Agent(OpenAIResponsesModel(MODEL, provider=locked)).run_sync("hi")
    assert refused.value.status_code == 401
