"""Calls and results of earlier turns in the prompt: whatever a model wrote, and media where the result is."""

import json

import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm.common.bundle import chosen_bundle
from autoglm.decoder.tools import ToolCalls, written
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.prompt import Media, PromptMessage, ToolCall
from autoglm.v1 import generation_pb2

from .test_tools import FUNCTIONS, MARKS, prompt, wrote

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(scope="module")
def nano() -> Composer:
    return Composer(chosen_bundle() / "decoder", GCMA_LAYOUT)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        (" \n", {}),
        ("null", {}),
        ("{", {}),
        ('{"city": "Par', {"city": "Par"}),
        ('{"days": 3, "cit', {"days": "3"}),
        ('{"at": {"x": [1, {"y": "z', {"at": '{"x": [1, {"y": "z"}]}'}),
        ('{"a": NaN, "b": -Infinity, "c": 1e999}', {"a": "NaN", "b": "-Infinity", "c": "Infinity"}),
        ('{"a": 1, "a": 2}', {"a": "2"}),
        ('{"": null, "</arg_key>": true}', {"": "null", "</arg_key>": "true"}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('["Paris"]', {"arguments": '["Paris"]'}),
        ('"Paris"', {"arguments": '"Paris"'}),
        ("Paris", {"arguments": "Paris"}),
        ("{'city': 'Paris'}", {"arguments": "{'city': 'Paris'}"}),
        ('{"a": 1}{"b": 2}', {"arguments": '{"a": 1}{"b": 2}'}),
        ('{"a": "\\ud800"}', {"arguments": '{"a": "\\ud800"}'}),
        ('{"a":' * 300, {"arguments": '{"a":' * 300}),
    ],
)
def test_an_earlier_call_is_written_whatever_a_model_wrote(
    nano: Composer, text: str, arguments: dict[str, str]
) -> None:
    call = generation_pb2.ToolCall(function=generation_pb2.FunctionCall(name="f g", arguments=text))
    assert written(call) == ToolCall("f g", arguments)
    turn = prompt(nano, [PromptMessage("assistant", (), (written(call),))])
    pairs = (f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in arguments.items())
    assert turn == f"[gMASK]<sop><|assistant|>\n<tool_call>f g\n{''.join(pairs)}</tool_call><|assistant|>\n"


@given(
    st.text() | st.text('{}[]":,\\ud8 a1.-eN\n') | st.builds(json.dumps, st.dictionaries(st.text(), JSON)),
    st.integers(0, 60),
)
@settings(deadline=None)
def test_an_earlier_call_can_always_be_written(text: str, cut: int) -> None:
    for arguments in (text, text[:cut]):
        function = generation_pb2.FunctionCall(name="f", arguments=arguments)
        for key, value in written(generation_pb2.ToolCall(function=function)).arguments.items():
            assert f"{key}{value}".encode()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("days", "1e999"),
        ("days", "-0.10"),
        ("days", "1" * 4400),
        ("more", "2026-11-28"),
        ("more", "[1e400]"),
        ("more", "[" * 250 + "]" * 250),
        ("more", "[" * 200 + "]" * 200),
    ],
)
def test_what_the_model_calls_survives_its_next_turn(key: str, value: str) -> None:
    (call,) = ToolCalls(FUNCTIONS, False, MARKS).feed(wrote("weather", ("city", "Paris"), (key, value)))[1]
    assert orjson.loads(call.function.arguments)["city"] == "Paris"
    again = written(call)
    assert again.arguments.keys() == {"city", key}
    (same,) = ToolCalls(FUNCTIONS, False, MARKS).feed(wrote("weather", *again.arguments.items()))[1]
    assert same.function == call.function


def test_media_in_a_result_are_in_the_place_of_the_result(nano: Composer) -> None:
    image, sound = Media("image", torch.zeros(49, 320)), Media("audio", torch.zeros(3, 1536), "open it")
    turns = [
        PromptMessage("user", ("look",)),
        PromptMessage("assistant", (), (ToolCall("screenshot", {}), ToolCall("listen", {}))),
        PromptMessage("tool", ("here", image)),
        PromptMessage("tool", (sound,)),
    ]
    seen = "<|begin_of_image|>" + "<|image|>" * 49 + "<|end_of_image|>"
    heard = "<|begin_of_audio|>" + "<|audio|>" * 3 + "open it<|end_of_audio|>"
    assert prompt(nano, turns).partition("<|observation|>")[2] == (
        f"\n<tool_response>\n{seen}here\n</tool_response>\n<tool_response>\n{heard}\n</tool_response><|assistant|>\n"
    )
