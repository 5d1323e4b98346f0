"""LangChain, as people write it: the published snippet word for word, and what else langchain-openai does."""

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from ..asking import MODEL

SNIPPET = """\
from langchain_openai import ChatOpenAI
chat_model = ChatOpenAI(model="autoglm-phone-9b", temperature=0.5, base_url="http://localhost:8000/v1", api_key="EMPTY",
    extra_body={"enable_thinking": True, "return_reasoning": True}, streaming=True)
print(chat_model.invoke("你是谁?").content)   # introduces itself as AutoGLM-Phone
"""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IDENTITY = "I am AutoGLM-Phone, a phone assistant that sees the screen, hears speech and reads text."
TAP = '<think>游戏图标在屏幕左边。点击它。</think><answer>do(action="Tap", element=[210,570])'


def test_the_snippet_introduces_autoglm_phone(base_url: str) -> None:
    code = SNIPPET.replace("http://localhost:8000/v1", base_url)
    assert code != SNIPPET
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AutoGLM-Phone" in done.stdout
    assert "<think>" not in done.stdout


@pytest.fixture
def model(base_url: str) -> ChatOpenAI:
    options: Any = {"base_url": base_url, "api_key": "EMPTY", "max_retries": 0}
    return ChatOpenAI(model=MODEL, temperature=0, **options)


def test_an_answer_has_usage_and_a_reason_to_end(model: ChatOpenAI) -> None:
    answer = model.invoke([SystemMessage("You are a phone assistant."), HumanMessage("Introduce yourself")])
    assert answer.content == IDENTITY
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["input_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


def test_a_stream_adds_up_to_the_answer(model: ChatOpenAI) -> None:
    chunks = list(model.stream("Introduce yourself", stream_usage=True))
    assert len(chunks) > 5
    assert "".join(chunk.text for chunk in chunks) == IDENTITY
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


async def test_async_answers_streams_and_batches(model: ChatOpenAI) -> None:
    assert (await model.ainvoke("Introduce yourself")).content == IDENTITY
    assert "".join([chunk.text async for chunk in model.astream("Introduce yourself")]) == IDENTITY
    answers = await model.abatch(["Introduce yourself", "3 + 4 = ?"])
    assert answers[0].content == IDENTITY
    assert answers[1].content == "3+4=7"


class Verdict(BaseModel):
    """What is on the screen."""

    kind: Literal["home", "settings", "app"]
    app_count: int = Field(ge=0, le=30)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_structured_output_is_an_object(model: ChatOpenAI, way: str) -> None:
    """The nano bundle was never taught JSON: the grammar makes it an object, not the answer a true one."""
    structured = model.with_structured_output(Verdict, method="json_schema")
    question = [HumanMessage([{"type": "text", "text": "屏幕上有几个应用?"}, openai_image()])]
    verdict = structured.invoke(question) if way == "invoke" else list(structured.stream(question))[-1]
    assert isinstance(verdict, Verdict)


def openai_image() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded('home.png')}"}}


def encoded(name: str) -> str:
    return base64.b64encode((EXAMPLES / name).read_bytes()).decode()


OPENAI_BLOCKS = [
    openai_image(),
    {"type": "input_audio", "input_audio": {"data": encoded("instruction.wav"), "format": "wav"}},
]
STANDARD_BLOCKS = [
    {"type": "image", "base64": encoded("home.png"), "mime_type": "image/png"},
    {"type": "audio", "base64": encoded("instruction.wav"), "mime_type": "audio/wav"},
]


@pytest.mark.parametrize("blocks", [OPENAI_BLOCKS, STANDARD_BLOCKS], ids=["openai", "standard"])
def test_a_screenshot_and_a_spoken_order(model: ChatOpenAI, blocks: list[str | dict[str, Any]]) -> None:
    assert model.invoke([HumanMessage(blocks)]).content == TAP
