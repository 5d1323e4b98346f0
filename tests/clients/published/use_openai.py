"""openai-python, with strict validation: an answer that does not fit its published types fails the call."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

MODEL = "autoglm-phone-9b"
HELLO: Any = [{"role": "user", "content": "Introduce yourself"}]
ASKED: Any = {"model": MODEL, "temperature": 0, "max_tokens": 80}
RESPOND: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 80}
THINKING: Any = {"enable_thinking": True, "return_reasoning": True}


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with strict(base_url) as client:
        yield client


def strict(base_url: str, key: str = "EMPTY") -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, _strict_response_validation=True)


class Screen(BaseModel):
    """What a screen is."""

    kind: Literal["home", "settings", "app"]
    locked: bool


def question(*parts: Any) -> Any:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Open the game"}]}]


@pytest.mark.parametrize("extra", [{}, {"n": 2, "logprobs": True, "top_logprobs": 2}, {"extra_body": THINKING}])
def test_chat(client: openai.OpenAI, extra: Any) -> None:
    answer = client.chat.completions.create(messages=HELLO, **ASKED, **extra)
    assert len(answer.choices) == extra.get("n", 1)
    for choice in answer.choices:
        assert "AutoGLM-Phone" in (choice.message.content or "")
        assert choice.finish_reason == "stop"
        assert bool(choice.logprobs) == bool(extra.get("logprobs"))
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("extra", [{}, {"n": 2, "logprobs": True, "top_logprobs": 2}, {"extra_body": THINKING}])
def test_stream(client: openai.OpenAI, extra: Any) -> None:
    usage: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(messages=HELLO, stream=True, stream_options=usage, **ASKED, **extra))
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == 0]
    assert "AutoGLM-Phone" in "".join(choice.delta.content or "" for choice in choices)
    assert choices[-1].finish_reason == "stop"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 0


def test_images(client: openai.OpenAI, image: Any) -> None:
    assert "do(action=" in (
        client.chat.completions.create(messages=question(image), **ASKED).choices[0].message.content or ""
    )


def test_audio(client: openai.OpenAI, image: Any, audio: Any) -> None:
    messages: Any = [{"role": "user", "content": [image, audio]}]
    whole = client.chat.completions.create(messages=messages, **ASKED).choices[0].message.content or ""
    assert "do(action=" in whole
    chunks = client.chat.completions.create(messages=messages, stream=True, **ASKED)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole


def test_tools(client: openai.OpenAI, tool: Any, is_forecast: Any) -> None:
    asked = ASKED | {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
    message = client.chat.completions.create(messages=HELLO, **asked).choices[0].message
    with client.chat.completions.stream(messages=HELLO, **asked) as stream:
        streamed = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls or []
    (same,) = streamed.tool_calls or []
    assert call.type == "function"
    assert is_forecast(call.function.arguments)
    assert call.function.arguments == same.function.arguments
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "clear"}
    history: Any = [*HELLO, message.model_dump(exclude_none=True), result]
    last = client.chat.completions.create(messages=history, tools=[tool], **ASKED).choices[0]
    assert last.message.content


def test_structured(client: openai.OpenAI, image: Any) -> None:
    parsed = client.chat.completions.parse(messages=question(image), response_format=Screen, **ASKED)
    assert parsed.choices[0].message.parsed
    with client.chat.completions.stream(messages=question(image), response_format=Screen, **ASKED) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_structured_json(client: openai.OpenAI) -> None:
    """Free JSON: the model was not taught to end it, so it is read by the schema of any object."""
    choice = client.chat.completions.create(
        messages=HELLO, response_format={"type": "json_object"}, **ASKED
    ).choices[0]  # fmt: skip
    assert (choice.message.content or "").lstrip().startswith("{")


@pytest.mark.parametrize(
    "extra",
    [{}, {"reasoning": {"effort": "low"}}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}],
)
def test_responses(client: openai.OpenAI, extra: Any) -> None:
    whole = client.responses.create(input="Introduce yourself", **RESPOND, **extra)
    assert "AutoGLM-Phone" in whole.output_text
    assert whole.usage
    events = list(client.responses.create(input="Introduce yourself", stream=True, **RESPOND, **extra))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    history: Any = [*HELLO, *whole.output, {"role": "user", "content": "3 + 4 = ?"}]
    assert client.responses.create(input=history, **RESPOND).output_text


def test_responses_read_images(client: openai.OpenAI, image: Any) -> None:
    part = {"type": "input_image", "detail": "auto", "image_url": image["image_url"]["url"]}
    asked: Any = [{"role": "user", "content": [part, {"type": "input_text", "text": "Open the game"}]}]
    assert "do(action=" in client.responses.create(input=asked, **RESPOND).output_text


def test_responses_call_tools(client: openai.OpenAI, tool: Any, is_forecast: Any) -> None:
    flat: Any = {"type": "function", "strict": True, **tool["function"]}
    choice = {"type": "function", "name": "weather"}
    asked: Any = RESPOND | {"tools": [flat], "tool_choice": choice, "max_output_tokens": 400}
    with client.responses.stream(input=HELLO, **asked) as stream:
        streamed = stream.get_final_response()
    whole = client.responses.create(input=HELLO, **asked)
    (call,), (same,) = whole.output, streamed.output
    assert call.type == same.type == "function_call"
    assert is_forecast(call.arguments)
    assert call.arguments == same.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "clear"}
    history: Any = [*HELLO, call, result]
    assert client.responses.create(input=history, tools=[flat], **RESPOND).output_text


def test_responses_are_structured(client: openai.OpenAI) -> None:
    assert client.responses.parse(input=HELLO, text_format=Screen, **RESPOND).output_parsed


def test_embeddings(client: openai.OpenAI, base_url: str) -> None:
    """Strict validation knows numbers only: openai-python unpacks base64, its own default, after it has validated."""
    texts = ["Open the camera", "打开相机"]
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as lenient:
        packed = lenient.embeddings.create(model=MODEL, input=texts)
        raw = lenient.embeddings.create(model=MODEL, input="hi", encoding_format="base64").data[0].embedding
    assert [row.embedding for row in packed.data] == [row.embedding for row in plain.data]
    assert isinstance(raw, str)


def test_transcriptions(client: openai.OpenAI, spoken: Path) -> None:
    transcribe: Any = partial(client.audio.transcriptions.create, model=MODEL, file=spoken)
    text = transcribe().text
    assert text
    whole = transcribe(response_format="verbose_json", timestamp_granularities=["segment"])
    assert (whole.text, whole.segments[0].text) == (text, text)
    assert transcribe(response_format="text").strip() == text
    assert text in transcribe(response_format="srt")
    assert transcribe(response_format="vtt").startswith("WEBVTT")
    events = list(transcribe(stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == text


def test_models(client: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(messages=HELLO, **ASKED | {"model": "gpt-9"})
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(messages=[{"role": "user", "content": "hi " * 20_000}], **ASKED)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(messages=HELLO, **ASKED | {"temperature": 9})
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as stored:
        client.responses.create(input=HELLO, previous_response_id="resp_1", **RESPOND)
    assert stored.value.param == "previous_response_id"


def test_errors_of_a_wrong_key(locked_url: str) -> None:
    with strict(locked_url) as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(messages=HELLO, **ASKED)
    with strict(locked_url, "secret") as client:
        assert client.chat.completions.create(messages=HELLO, **ASKED).choices
