"""LlamaIndex: OpenAILike with text, images, recordings, functions and structured answers, and OpenAILikeEmbedding."""

from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from llama_index.core.base.llms.types import AudioBlock, ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

MODEL = "autoglm-phone-9b"
HELLO = [ChatMessage("Introduce yourself")]


class Screen(BaseModel):
    """What a screen is."""

    kind: Literal["home", "settings", "app"]
    locked: bool


def model(base_url: str, **more: Any) -> OpenAILike:
    asked = {"model": MODEL, "api_key": "EMPTY", "temperature": 0, "max_tokens": 400, "max_retries": 0}
    return OpenAILike(api_base=base_url, is_chat_model=True, is_function_calling_model=True, **asked | more)


@pytest.fixture
def llm(base_url: str) -> OpenAILike:
    return model(base_url)


def test_chat(llm: OpenAILike) -> None:
    assert "AutoGLM-Phone" in (llm.chat(HELLO).message.content or "")
    assert "AutoGLM-Phone" in llm.complete("Introduce yourself").text


def test_stream(llm: OpenAILike) -> None:
    steps = list(llm.stream_chat(HELLO))
    assert len(steps) > 5
    assert "AutoGLM-Phone" in (steps[-1].message.content or "")
    assert "".join(step.delta or "" for step in steps) == steps[-1].message.content


def test_images(llm: OpenAILike, home: Path) -> None:
    blocks = [ImageBlock(path=home), TextBlock(text="Open the game")]
    assert "do(action=" in (llm.chat([ChatMessage(blocks=blocks)]).message.content or "")


def test_audio(llm: OpenAILike, home: Path, spoken: Path) -> None:
    blocks = [ImageBlock(path=home), AudioBlock(path=spoken, format="wav")]
    assert "do(action=" in (llm.chat([ChatMessage(blocks=blocks)]).message.content or "")


def forecast(city: Literal["Paris", "北京"]) -> str:
    """Forecast the weather."""
    return f"clear in {city}"


def test_tools(llm: OpenAILike) -> None:
    tool = FunctionTool.from_defaults(forecast)
    asked: Any = {"user_msg": "How is the weather in Paris?", "tool_required": True}
    answer = llm.chat_with_tools([tool], **asked)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_kwargs["city"] in ("Paris", "北京")
    (same,) = llm.get_tool_calls_from_response(list(llm.stream_chat_with_tools([tool], **asked))[-1])
    assert same.tool_kwargs == call.tool_kwargs
    assert llm.predict_and_call([tool], **asked).response.startswith("clear in ")


@pytest.mark.parametrize("by_format", [False, True])
def test_structured(base_url: str, by_format: bool) -> None:
    llm = model(base_url, should_use_structured_outputs=by_format).as_structured_llm(Screen)
    assert isinstance(llm.chat(HELLO).raw, Screen)


def test_embeddings(base_url: str) -> None:
    embedding = OpenAILikeEmbedding(MODEL, api_base=base_url, api_key="EMPTY", max_retries=0)
    documents = embedding.get_text_embedding_batch(["Open the camera", "打开相机"])
    assert embedding.get_query_embedding("打开相机") == pytest.approx(documents[1])


def test_errors(base_url: str, locked_url: str) -> None:
    with pytest.raises(openai.NotFoundError):
        model(base_url, model="gpt-9").chat(HELLO)
    with pytest.raises(openai.BadRequestError, match="top_p"):
        model(base_url, additional_kwargs={"top_p": 9}).chat(HELLO)
    with pytest.raises(openai.AuthenticationError):
        model(locked_url).chat(HELLO)
