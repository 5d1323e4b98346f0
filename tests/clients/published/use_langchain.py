"""langchain-openai: ChatOpenAI on both APIs, and OpenAIEmbeddings."""

import base64
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

MODEL = "autoglm-phone-9b"


@pytest.fixture
def options(base_url: str) -> Any:
    return {"model": MODEL, "base_url": base_url, "api_key": "EMPTY", "max_retries": 0}


@pytest.fixture
def chat(options: Any) -> ChatOpenAI:
    return ChatOpenAI(temperature=0, max_completion_tokens=400, **options)


class Screen(BaseModel):
    """What a screen is."""

    kind: Literal["home", "settings", "app"]
    locked: bool


def block(kind: str, mime_type: str, file: Path) -> Any:
    return {"type": kind, "mime_type": mime_type, "base64": base64.b64encode(file.read_bytes()).decode()}


def test_chat(chat: ChatOpenAI) -> None:
    answer = chat.invoke("Introduce yourself")
    assert "AutoGLM-Phone" in answer.text
    assert answer.usage_metadata
    assert answer.response_metadata["finish_reason"] == "stop"


def test_stream(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream("Introduce yourself", stream_usage=True))
    assert len(chunks) > 5
    assert "AutoGLM-Phone" in reduce(add, chunks).text


def test_images(chat: ChatOpenAI, home: Path) -> None:
    parts = [block("image", "image/png", home), {"type": "text", "text": "Open the game"}]
    assert "do(action=" in chat.invoke([HumanMessage(parts)]).text


def test_audio(chat: ChatOpenAI, home: Path, spoken: Path) -> None:
    parts = [block("image", "image/png", home), block("audio", "audio/wav", spoken)]
    assert "do(action=" in chat.invoke([HumanMessage(parts)]).text


@pytest.mark.parametrize("responses", [False, True])
def test_tools(options: Any, responses: bool, tool: Any, is_forecast: Any) -> None:
    chat = ChatOpenAI(temperature=0, max_completion_tokens=400, use_responses_api=responses, **options)
    bound = chat.bind_tools([tool], tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage("How is the weather in Paris?")
    answer, streamed = bound.invoke([question]), reduce(add, bound.stream([question]))
    (call,), (same,) = answer.tool_calls, streamed.tool_calls
    assert is_forecast(call["args"])
    assert call["args"] == same["args"]
    result = ToolMessage("clear", tool_call_id=call["id"])
    assert chat.bind_tools([tool]).invoke([question, answer, result]).text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured(chat: ChatOpenAI, method: Any) -> None:
    structured = chat.with_structured_output(Screen, method=method)
    assert isinstance(structured.invoke("What is on the screen?"), Screen)
    assert isinstance(list(structured.stream("What is on the screen?"))[-1], Screen)


def test_responses(options: Any) -> None:
    chat = ChatOpenAI(temperature=0, max_completion_tokens=80, use_responses_api=True, **options)
    assert "AutoGLM-Phone" in chat.invoke("Introduce yourself").text
    assert "AutoGLM-Phone" in reduce(add, chat.stream("Introduce yourself")).text


def test_embeddings(options: Any) -> None:
    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **options)
    documents = embeddings.embed_documents(["Open the camera", "打开相机"])
    assert embeddings.embed_query("打开相机") == pytest.approx(documents[1])


def test_errors(options: Any, locked_url: str) -> None:
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(**options | {"model": "gpt-9"}).invoke("hi")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ChatOpenAI(temperature=9, **options).invoke("hi")
    with pytest.raises(openai.AuthenticationError):
        ChatOpenAI(**options | {"base_url": locked_url}).invoke("hi")
