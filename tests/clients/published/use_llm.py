"""Simon Willison's `llm` command, with the mesh as one of its extra models."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("-o", "temperature", "0", "-o", "max_tokens", "80")


@pytest.fixture
def llm(tmp_path: Path, base_url: str, locked_url: str) -> Run:
    """Run the command, with settings and log of its own."""
    able = {"model_name": "autoglm-phone-9b", "api_base": base_url, "vision": True, "audio": True}
    able |= {"supports_schema": True, "supports_tools": True}
    models = [
        {"model_id": "phone", **able},
        {"model_id": "phone-responses", **able, "responses": True},
        {"model_id": "wrong-name", **able, "model_name": "gpt-9"},
        {"model_id": "locked", **able, "api_base": locked_url},
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"LLM_USER_PATH": str(tmp_path)}
        command = [sys.executable, "-m", "llm", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chat(llm: Run) -> None:
    asked = ("-m", "phone", "--no-stream", *SHORT)
    assert "AutoGLM-Phone" in said(llm("Introduce yourself", *asked))
    assert said(llm("3 + 4 = ?", "-c", *asked)).strip()


def test_stream(llm: Run) -> None:
    done = llm("Introduce yourself", "-m", "phone", "-u", *SHORT)
    assert "AutoGLM-Phone" in said(done)
    assert "output" in done.stderr  # the usage, which a stream gives only when it is asked for


def test_images(llm: Run, home: Path) -> None:
    assert "do(action=" in said(llm("Open the game", "-m", "phone", "-a", str(home), *SHORT))


def test_audio(llm: Run, home: Path, spoken: Path) -> None:
    attached = ("-a", str(home), "--at", str(spoken), "audio/wav")
    assert "do(action=" in said(llm("", "-m", "phone", *attached, *SHORT))


def test_tools(llm: Run) -> None:
    """The small bundle makes no call of its own accord: the offer is understood, and the answer is text."""
    functions = 'def forecast(city: str) -> str:\n    "Forecast the weather."\n    return "clear"\n'
    assert said(llm("How is the weather?", "-m", "phone", "--functions", functions, *SHORT)).strip()


@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_structured(llm: Run, stream: Any) -> None:
    answer = json.loads(said(llm("What is on the screen?", "-m", "phone", "--schema", "locked bool", *stream, *SHORT)))
    assert answer["locked"] in (True, False)


def test_responses(llm: Run) -> None:
    assert "AutoGLM-Phone" in said(llm("Introduce yourself", "-m", "phone-responses", "-o", "temperature", "0"))


def test_errors(llm: Run) -> None:
    for name, reason in (("wrong-name", "gpt-9"), ("locked", "401")):
        done = llm("hi", "-m", name, *SHORT)
        assert done.returncode == 1
        assert reason in done.stderr
