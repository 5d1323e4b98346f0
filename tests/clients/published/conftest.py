"""What every client's tests send, and to whom: the mesh whose addresses ../test_published.py gives them."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def base_url() -> str:
    """The root of the OpenAI API."""
    return os.environ["MESH_URL"]


@pytest.fixture
def locked_url() -> str:
    """The root of the OpenAI API of a gateway that wants a key."""
    return os.environ["LOCKED_MESH_URL"]


@pytest.fixture
def home() -> Path:
    """A screenshot: a home screen with the icon of a game."""
    return EXAMPLES / "home.png"


@pytest.fixture
def spoken() -> Path:
    """A recording, WAV: the order to open the game."""
    return EXAMPLES / "instruction.wav"


@pytest.fixture
def image(home: Path) -> Any:
    """The screenshot as a part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(home)}"}}


@pytest.fixture
def audio(spoken: Path) -> Any:
    """The recording as a part of a message."""
    return {"type": "input_audio", "input_audio": {"data": _base64(spoken), "format": "wav"}}


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


@pytest.fixture
def tool() -> Any:
    """A function to call."""
    city = {"type": "string", "enum": ["Paris", "北京"]}
    days = {"type": "integer", "minimum": 1, "maximum": 9}
    parameters = {
        "type": "object",
        "properties": {"city": city, "days": days},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    function = {"name": "weather", "description": "Forecast the weather.", "parameters": parameters}
    return {"type": "function", "function": function}


@pytest.fixture
def is_forecast() -> Any:
    """Tell whether the arguments of a call, an object or its text, fit the function's parameters."""

    def fits(arguments: Any) -> bool:
        given = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
        return given.keys() == {"city", "days"} and given["city"] in ("Paris", "北京") and 1 <= given["days"] <= 9

    return fits
