"""Instructor: validated objects by function calls, by JSON Schema and by free JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import instructor
import openai
import pytest
from instructor import Mode
from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException
from instructor.processing.multimodal import Audio, Image
from pydantic import BaseModel

MODEL = "autoglm-phone-9b"
HELLO: Any = [{"role": "user", "content": "What is on the screen?"}]
ASKED: Any = {"model": MODEL, "temperature": 0, "max_tokens": 400, "max_retries": 0}


class Screen(BaseModel):
    """What a screen is."""

    kind: Literal["home", "settings", "app"]
    locked: bool


class Note(BaseModel):
    """Any JSON object: the small bundle was not taught to follow a schema that is only written in the prompt."""

    kind: Any = None


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        yield client


def test_tools(client: openai.OpenAI) -> None:
    made = instructor.from_openai(client, mode=Mode.TOOLS)
    assert isinstance(made.create(response_model=Screen, messages=HELLO, **ASKED), Screen)


def test_structured(client: openai.OpenAI) -> None:
    made = instructor.from_openai(client, mode=Mode.JSON_SCHEMA)
    assert isinstance(made.create(response_model=Screen, messages=HELLO, **ASKED), Screen)


def test_structured_by_free_json(client: openai.OpenAI) -> None:
    """Without a schema to follow, the small bundle may not come to an end: what it wrote is an object all the same."""
    made = instructor.from_openai(client, mode=Mode.JSON)
    try:
        assert isinstance(made.create(response_model=Note, messages=HELLO, **ASKED), Note)
    except IncompleteOutputException as cut:
        (choice,) = cut.last_completion.choices
        assert choice.message.content.lstrip().startswith("{")


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_stream(client: openai.OpenAI, mode: Mode) -> None:
    made = instructor.from_openai(client, mode=mode)
    steps = list(made.create_partial(response_model=Screen, messages=HELLO, **ASKED))
    assert steps[-1].kind in ("home", "settings", "app")
    assert steps[-1].locked in (True, False)


def test_responses(client: openai.OpenAI) -> None:
    made = instructor.from_openai(client, mode=Mode.RESPONSES_TOOLS)
    asked = {"model": MODEL, "temperature": 0, "max_output_tokens": 400, "max_retries": 0}
    assert isinstance(made.create(response_model=Screen, messages=HELLO, **asked), Screen)


def test_images(client: openai.OpenAI, home: Path) -> None:
    made = instructor.from_openai(client, mode=Mode.JSON_SCHEMA)
    asked: Any = [{"role": "user", "content": ["What is on the screen?", Image.from_path(home)]}]
    assert isinstance(made.create(response_model=Screen, messages=asked, **ASKED), Screen)


def test_audio(client: openai.OpenAI, spoken: Path) -> None:
    made = instructor.from_openai(client, mode=Mode.TOOLS)
    asked: Any = [{"role": "user", "content": [Audio.from_path(spoken)]}]
    assert isinstance(made.create(response_model=Screen, messages=asked, **ASKED), Screen)


def test_errors(client: openai.OpenAI, locked_url: str) -> None:
    made = instructor.from_openai(client)
    with pytest.raises(InstructorRetryException, match="gpt-9"):
        made.create(response_model=Screen, messages=HELLO, **ASKED | {"model": "gpt-9"})
    locked = instructor.from_openai(openai.OpenAI(base_url=locked_url, api_key="wrong", max_retries=0))
    with pytest.raises(InstructorRetryException, match="401"):
        locked.create(response_model=Screen, messages=HELLO, **ASKED)
