"""OpenAI's Responses API, by openai-python as published: whole, streamed, and asynchronous."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from ..asking import MODEL
from ..cases import screen_cases


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        yield client


class Verdict(BaseModel):
    """A structured answer, too short to ramble in."""

    right: bool


def items(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts)}]


def test_a_screenshot_and_a_spoken_instruction(client: openai.OpenAI) -> None:
    """Each names an icon on a home screen; most points must be inside the right one."""
    right = 0
    for case in screen_cases("open", "home", 4, seed=11):
        image = {"type": "input_image", "detail": "auto", "image_url": case.image["image_url"]["url"]}
        response = client.responses.create(model=MODEL, input=items(image, case.audio), temperature=0)
        assert response.status == "completed"
        assert "<think>" not in response.output_text
        right += case.right(response.output_text)
    assert right >= 2


def test_a_second_turn_with_the_first_ones_items(client: openai.OpenAI) -> None:
    question: Any = {"role": "user", "content": "你是谁?"}
    first = client.responses.create(model=MODEL, input=[question], temperature=0, reasoning={"effort": "low"})
    assert [item.type for item in first.output] == ["reasoning", "message"]
    assert "AutoGLM-Phone" in first.output_text
    assert first.usage is not None
    assert first.usage.output_tokens_details.reasoning_tokens > 0
    earlier: list[Any] = [question, *first.output, {"role": "user", "content": "你好"}]
    second = client.responses.create(model=MODEL, input=earlier, temperature=0, metadata={"turn": "2"})
    assert second.output_text
    assert second.metadata == {"turn": "2"}


def test_a_stream_says_what_the_whole_response_says(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="你是谁?", temperature=0)
    with client.responses.stream(model=MODEL, input="你是谁?", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == final.output_text
    assert len(deltas) > 5
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("effort", ["none", "high"])
def test_log_probabilities_spell_the_text(client: openai.OpenAI, effort: Any) -> None:
    """They are of the message's tokens: not of the reasoning, of its marks, or of the end."""
    asked: dict[str, Any] = {"model": MODEL, "input": "你是谁?", "temperature": 0, "top_logprobs": 1}
    asked |= {"include": ["message.output_text.logprobs"], "reasoning": {"effort": effort}}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    message = whole.output[-1]
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    found = part.logprobs or []
    assert b"".join(bytes(each.bytes) for each in found).decode() == part.text != ""
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [each.token for event in deltas for each in event.logprobs] == [each.token for each in found]


def test_a_structured_response(client: openai.OpenAI) -> None:
    response = client.responses.parse(model=MODEL, input="你好", text_format=Verdict, temperature=0)
    assert isinstance(response.output_parsed, Verdict)


async def test_asynchronously_and_cut_short(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        response = await client.responses.create(
            model=MODEL, input="你是谁?", temperature=0, max_output_tokens=3, reasoning={"effort": "none"}
        )
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        stream = await client.responses.create(model=MODEL, input="你是谁?", temperature=0, stream=True)
        assert [event.type async for event in stream][-1] == "response.completed"


def test_errors_are_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
    assert raised.value.param == "previous_response_id"
