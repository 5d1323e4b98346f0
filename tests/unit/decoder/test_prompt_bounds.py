"""What cannot fit into the context is refused before it is parsed, templated or tokenized, and reading a prompt ends
with its deadline."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import orjson
import pytest

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import DeadlineExceeded, InvalidRequest
from autoglm.decoder import servicer
from autoglm.decoder.embed import Embedder
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.request_reader import read
from autoglm.decoder.servicer import DecoderServicer
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.compose import START_CHARACTERS
from autoglm.v1.decoder_pb2 import (
    DecoderMessage,
    DecoderPart,
    DecoderServiceEmbedRequest,
    DecoderServiceGenerateRequest,
)
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Function,
    FunctionCall,
    Tool,
    ToolCall,
)


@pytest.fixture(scope="module")
def model() -> Iterator[DecoderModel]:
    settings = DecoderSettings.model_validate({"device": "cpu", "max_num_seqs": 2})
    loaded = DecoderModel.load(Bundle.open(chosen_bundle()), settings)
    yield loaded
    loaded.engine.close()


def user(*texts: str) -> DecoderMessage:
    return DecoderMessage(role=ROLE_USER, parts=[DecoderPart(text=text) for text in texts])


def called(*calls: tuple[str, str]) -> list[DecoderMessage]:
    made = [ToolCall(function=FunctionCall(name=name, arguments=arguments)) for name, arguments in calls]
    results = [DecoderMessage(role=ROLE_TOOL, parts=[DecoderPart(text="ok")])] * len(calls)
    return [user("hi"), DecoderMessage(role=ROLE_ASSISTANT, tool_calls=made), *results]


def asking(messages: Sequence[DecoderMessage], *tools: Function) -> DecoderServiceGenerateRequest:
    return DecoderServiceGenerateRequest(messages=messages, tools=[Tool(function=tool) for tool in tools])


LONG, MANY = 200_000, 9000  # bytes and tokens, both more than the nano bundle's context can hold
SCHEMA = orjson.dumps({"type": "object", "properties": {f"p{i}": {"enum": ["x" * 90]} for i in range(1900)}}).decode()
DEEP = '{"a":' + "[" * (LONG // 2) + "]" * (LONG // 2) + "}"
TOO_LONG = {
    "a text": (asking([user("a" * LONG)]), "messages"),
    "a text of characters of several bytes": (asking([user("好" * (LONG // 3))]), "messages"),
    "white space": (asking([user(" \n" * (LONG // 2))]), "messages"),
    "several texts": (asking([user("a" * (LONG // 4))] * 5), "messages"),
    "several parts": (asking([user(*["1" * (LONG // 8)] * 9)]), "messages"),
    "a system prompt": (
        asking([DecoderMessage(role=ROLE_SYSTEM, parts=[DecoderPart(text="a" * LONG)]), user("hi")]),
        "messages",
    ),
    "the arguments of a call": (asking(called(("f", '{"x": "' + "a" * LONG + '"}'))), "messages"),
    "deep arguments of a call": (asking(called(("f", DEEP))), "messages"),
    "arguments that are no JSON": (asking(called(("f", "{" * LONG))), "messages"),
    "the name of a call": (asking(called(("f" * LONG, "{}"))), "messages"),
    "the description of a tool": (asking([user("hi")], Function(name="f", description="a" * LONG)), "tools"),
    "the parameters of a tool": (asking([user("hi")], Function(name="f", parameters=SCHEMA)), "tools"),
    "tools together": (
        asking([user("hi")], *(Function(name=f"f{i}", description="a" * (LONG // 90)) for i in range(128))),
        "tools",
    ),
    "tools and texts": (
        asking([user("a" * (LONG // 2))], Function(name="f", description="b" * (LONG // 2))),
        "messages",
    ),
    "tiny messages": (asking([user("a")] * MANY), "messages"),
    "tiny parts": (asking([user(*"a" * MANY)]), "messages"),
    "tiny calls": (asking(called(*[("f", "{}")] * MANY)), "messages"),
    "tiny arguments": (asking(called(("f", orjson.dumps({str(i): 0 for i in range(MANY)}).decode()))), "messages"),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_what_cannot_fit_is_not_tokenized(name: str, model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    request, param = TOO_LONG[name]
    monkeypatch.setattr(model.composer, "compose", lambda *_, **__: pytest.fail("the prompt was composed"))
    with pytest.raises(InvalidRequest) as caught:
        read(request, model, Deadline())
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)
    assert str(model.context) in caught.value.message


def watched(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each text is added that is tokenized."""
    encoded, encode = list[str](), model.composer.encode

    def watch(text: str) -> list[int]:
        encoded.append(text)
        return encode(text)

    monkeypatch.setattr(model.composer, "encode", watch)
    return encoded


def test_the_longest_tokens_in_a_row_are_not_refused_as_text(model: DecoderModel) -> None:
    tokenizer, count = model.composer.tokenizer, model.context - 100
    longest = max(tokenizer.get_vocab().values(), key=lambda token_id: len(tokenizer.decode([token_id])))
    request = asking([user(tokenizer.decode([longest] * count))])
    assert len(request.messages[0].parts[0].text.encode()) <= model.max_text_bytes
    found = read(request, model, Deadline())
    assert count <= len(found.prompt.token_ids) < model.context


def test_every_token_stands_for_at_most_the_longest(model: DecoderModel) -> None:
    tokenizer = model.composer.tokenizer
    texts = (tokenizer.decode([token_id], skip_special_tokens=False) for token_id in tokenizer.get_vocab().values())
    assert max(len(text.encode()) for text in texts) <= model.composer.longest


def test_of_a_long_text_only_the_start_is_tokenized(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = watched(model, monkeypatch)
    words = "a b " * (model.max_text_bytes // 4 - 10)
    with pytest.raises(InvalidRequest) as caught:
        read(asking([user("hi"), user(words)]), model, Deadline())
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert [len(text) for text in encoded] == [2, START_CHARACTERS[0] * model.context]
    assert len(words) > START_CHARACTERS[-1] * model.context


DENSE = "1 " * 60_000  # two tokens of each four characters
MUCH_TOO_LONG = {
    "a text": asking([user("hi"), user(DENSE)]),
    "the arguments of a call": asking(called(("f", orjson.dumps({"x": DENSE}).decode()))),
    "the description of a tool": asking([user("hi")], Function(name="f", description=DENSE)),
    "many calls": asking(called(*[("f", '{"a": 1, "b": 2, "c": "3"}')] * 1000)),
    "many texts": asking([user("1 2 3 4 5 6 7 8 9 " * 2)] * 3000),
}


@pytest.mark.parametrize("name", MUCH_TOO_LONG)
def test_tokenizing_ends_soon_after_the_context(
    name: str, model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = watched(model, monkeypatch)
    with pytest.raises(InvalidRequest) as caught:
        read(MUCH_TOO_LONG[name], model, Deadline())
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert sum(len(model.composer.encode(text)) for text in list(encoded)) <= 5 * model.context


def test_a_prompt_that_is_not_much_too_long_is_told_its_length(model: DecoderModel) -> None:
    count, told = model.context // 100 + 6, r"the messages have \d{4,5}; shorten them"
    with pytest.raises(InvalidRequest, match=told) as caught:
        read(asking([user("1" * 100)] * count), model, Deadline())
    assert caught.value.code == "context_length_exceeded"


def test_a_long_text_of_long_tokens_is_tokenized_in_full(model: DecoderModel) -> None:
    assert not model.composer.exceeds("a b " * 20, most=20)
    assert not model.composer.exceeds("congratulations " * 400, most=400)
    assert model.composer.exceeds("a b " * 4000, most=20)


class ExpiringAfter:
    """A deadline that passes once it has been asked for `checks` times."""

    def __init__(self, checks: int) -> None:
        self.checks = checks

    def remaining(self) -> float:
        self.checks -= 1
        if self.checks < 0:
            raise DeadlineExceeded("passed")
        return 1.0


@pytest.mark.parametrize("checks", range(5))
def test_a_prompt_is_left_where_its_deadline_passes(
    checks: int, model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = watched(model, monkeypatch)
    deadline: Any = ExpiringAfter(checks)
    with pytest.raises(DeadlineExceeded):
        read(asking([user("one"), user("two"), user("three"), user("four"), user("five")]), model, deadline)
    assert encoded == ["one", "two", "three", "four"][: max(0, checks - 1)]


def test_no_format_is_made_past_the_deadline(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asking([user("hi")])
    request.sampling.regex = "a+"
    monkeypatch.setattr("autoglm.decoder.formats.Formats.read", lambda *_: pytest.fail("a format was made"))
    deadline: Any = ExpiringAfter(2)  # once before the template, once before the only part
    with pytest.raises(DeadlineExceeded):
        read(request, model, deadline)


class RecordingContext:
    """The context of a call, which keeps the details of its error."""

    def __init__(self) -> None:
        self.code: Any = None

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.metadata = metadata


async def test_a_long_prompt_is_read_while_others_are_answered(
    model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, reached, release = DecoderServicer(model), threading.Event(), threading.Event()
    encode = model.composer.encode

    def slow(text: str) -> list[int]:
        if len(text) > servicer.OFF_LOOP_BYTES:
            reached.set()
            assert release.wait(60)
        return encode(text)

    monkeypatch.setattr(model.composer, "encode", slow)

    async def answer(text: str) -> int:
        request = asking([user(text)])
        request.sampling.max_tokens = 2
        context: Any = RecordingContext()
        return len([message async for message in service.generate(request, context)])

    long = asyncio.create_task(answer("open the settings " * 400))
    await asyncio.to_thread(reached.wait)
    assert await answer("hi")  # while the long one still waits
    assert not long.done()
    release.set()
    assert await long


async def test_what_takes_long_to_read_gives_way(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text and a format are read in threads of low priority, a short text in the event loop."""
    service, usual, seen = DecoderServicer(model), priority(), dict[int, int]()
    encode = model.composer.encode

    def watch(text: str) -> list[int]:
        seen[len(text)] = priority()
        return encode(text)

    monkeypatch.setattr(model.composer, "encode", watch)
    short, long, formatted = user("hi"), user("open the settings " * 400), user("yes?")
    for message in (short, long, formatted):
        request, context = asking([message]), RecordingContext()
        request.sampling.max_tokens = 2
        if message is formatted:
            request.sampling.regex = "yes|no"
        assert [response async for response in service.generate(request, cast(Any, context))]
    of_short, of_long, of_formatted = (seen[len(each.parts[0].text)] for each in (short, long, formatted))
    assert of_short == usual < of_long == of_formatted


def priority() -> int:
    """The niceness of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_python_code_holds_the_engine_up_for_less_than_a_token() -> None:
    usual = sys.getswitchinterval()
    try:
        settings = DecoderSettings.model_validate({"device": "cpu", "max_num_seqs": 2})
        DecoderServicer.load(settings).engine.close()
        assert sys.getswitchinterval() <= 0.001
    finally:
        sys.setswitchinterval(usual)


async def test_a_long_prompt_ends_with_its_deadline(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service, release = DecoderServicer(model), threading.Event()
    monkeypatch.setattr(model.composer, "encode", lambda _: [0] * release.wait(60))
    request = asking([user("open the settings " * 400)])
    request.timeout.FromMilliseconds(200)
    context: Any = RecordingContext()
    try:
        assert [message async for message in service.generate(request, context)] == []
    finally:
        release.set()
    assert context.code is not None
    assert b"DEADLINE_EXCEEDED" in dict(context.metadata)["grpc-status-details-bin"]


@pytest.mark.parametrize("text", ["a" * LONG, "好" * (LONG // 3), "\n" * LONG])
async def test_a_text_that_cannot_fit_is_not_embedded(
    text: str, model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.composer, "encode", lambda _: pytest.fail("the text was tokenized"))
    with pytest.raises(InvalidRequest) as caught:
        await Embedder(model).embed(DecoderServiceEmbedRequest(input=[DecoderPart(text=text)]))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[0]")


def test_the_gateway_is_told_how_long_a_text_can_be(model: DecoderModel) -> None:
    told = DecoderServicer(model).describe()
    assert told.max_text_bytes == model.max_text_bytes > told.context_length
