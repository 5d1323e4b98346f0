"""LiteLLM's SDK, with its provider for any server of OpenAI's API: `openai/` before the model's name."""

from pathlib import Path
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel

MODEL = "openai/autoglm-phone-9b"
HELLO: Any = [{"role": "user", "content": "Introduce yourself"}]


class Screen(BaseModel):
    """What a screen is."""

    kind: Literal["home", "settings", "app"]
    locked: bool


@pytest.fixture
def options(base_url: str) -> Any:
    return {"model": MODEL, "api_base": base_url, "api_key": "EMPTY", "max_retries": 0}


@pytest.fixture
def asked(options: Any) -> Any:
    return options | {"temperature": 0, "max_tokens": 80}


def test_chat(asked: Any) -> None:
    answer = litellm.completion(messages=HELLO, **asked)
    assert "AutoGLM-Phone" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > answer.usage.prompt_tokens > 0


def test_chat_separates_reasoning(asked: Any) -> None:
    """`enable_thinking` and `return_reasoning` are no fields of OpenAI's, so they go through extra_body."""
    extra = {"enable_thinking": True, "return_reasoning": True}
    message = litellm.completion(messages=HELLO, extra_body=extra, **asked).choices[0].message
    assert message.reasoning_content
    assert "<think>" not in message.content


def test_stream(asked: Any) -> None:
    chunks = list(litellm.completion(messages=HELLO, stream=True, stream_options={"include_usage": True}, **asked))
    assert "AutoGLM-Phone" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(chunks) > 5
    whole = litellm.stream_chunk_builder(chunks, messages=HELLO)
    assert "AutoGLM-Phone" in whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0


def test_images(asked: Any, image: Any) -> None:
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "Open the game"}]}]
    assert "do(action=" in litellm.completion(messages=messages, **asked).choices[0].message.content


def test_audio(asked: Any, image: Any, audio: Any) -> None:
    messages = [{"role": "user", "content": [image, audio]}]
    assert "do(action=" in litellm.completion(messages=messages, **asked).choices[0].message.content


def test_tools(asked: Any, tool: Any, is_forecast: Any) -> None:
    call: Any = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
    message = litellm.completion(messages=HELLO, **asked | call).choices[0].message
    (made,) = message.tool_calls
    assert is_forecast(made.function.arguments)
    chunks = list(litellm.completion(messages=HELLO, stream=True, **asked | call))
    (same,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert same.function.arguments == made.function.arguments
    result = {"role": "tool", "tool_call_id": made.id, "content": "clear"}
    last = litellm.completion(messages=[*HELLO, message, result], tools=[tool], **asked)
    assert last.choices[0].message.content


def test_structured(asked: Any) -> None:
    answer = litellm.completion(messages=HELLO, response_format=Screen, **asked)
    assert Screen.model_validate_json(answer.choices[0].message.content)


def test_responses(options: Any) -> None:
    asked = options | {"input": "Introduce yourself", "temperature": 0, "max_output_tokens": 80}
    whole = litellm.responses(**asked)
    text = "".join(part.text for item in whole.output if item.type == "message" for part in item.content)
    assert "AutoGLM-Phone" in text
    events = list(litellm.responses(stream=True, **asked))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(options: Any, encoding: str) -> None:
    answer = litellm.embedding(input=["Open the camera", "打开相机"], encoding_format=encoding, **options)
    assert len(answer.data) == 2
    assert answer.usage.prompt_tokens > 0


def test_transcriptions(options: Any, spoken: Path) -> None:
    with spoken.open("rb") as file:
        text = litellm.transcription(file=file, **options).text
    with spoken.open("rb") as file:
        assert litellm.transcription(file=file, response_format="verbose_json", **options).text == text
    assert text


def test_errors(options: Any, locked_url: str) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=HELLO, **options | {"model": "openai/gpt-9"})
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=HELLO, temperature=9, **options)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=HELLO, **options | {"api_base": locked_url})
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "hi " * 20_000}], **options)
