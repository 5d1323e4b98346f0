"""openai-python, as published: screenshots and speech, streamed and not, reasoning apart."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from ..asking import MODEL, caches
from ..cases import screen_cases


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        yield client


def user(*content: Any) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": list(content)}]


def test_a_screenshot_and_a_spoken_instruction(client: openai.OpenAI) -> None:
    """Each names an icon on a home screen; most points must be inside the right one."""
    right = 0
    for case in screen_cases("open", "home", 6, seed=11):
        messages = user(case.image, case.audio)
        first = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        answer = first.choices[0].message.content or ""
        assert answer.startswith("<think>")
        assert "</think><answer>do(action=" in answer
        assert answer.endswith("])")
        right += case.right(answer)
        assert caches(first.model_dump()) == ["miss", "miss"]
        assert first.usage is not None
        assert first.usage.prompt_tokens_details is not None
        assert first.usage.prompt_tokens_details.audio_tokens

        again = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        assert again.choices[0].message.content == answer
        assert set(caches(again.model_dump())) <= {"local", "redis"}
    assert right >= 4


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    case = screen_cases("open", "home", 2, seed=12)[1]
    messages = user(case.image, {"type": "text", "text": case.words})
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert sum(map(bool, deltas)) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == (whole.usage and whole.usage.completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_comes_apart_when_asked_for(client: openai.OpenAI, stream: bool) -> None:
    messages, extra = user({"type": "text", "text": "你是谁?"}), {"enable_thinking": True, "return_reasoning": True}
    content = reasoning = ""
    if stream:
        for chunk in client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, stream=True, extra_body=extra
        ):
            for choice in chunk.choices:
                content += choice.delta.content or ""
                reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
    else:
        answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, extra_body=extra)
        content = answer.choices[0].message.content or ""
        reasoning = (answer.choices[0].message.model_extra or {})["reasoning_content"]
    assert "AutoGLM-Phone" in content
    assert reasoning
    assert "<think>" not in content + reasoning
    assert "</think>" not in content + reasoning


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    card = client.models.retrieve(MODEL).model_dump()
    assert set(card["modalities"]) == {"text", "image", "audio"}


def test_errors_are_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=[])
    assert raised.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=user({"type": "text", "text": "hi"}))
