"""What a conversation may contain, over Chat Completions, Responses and gRPC: turns that say nothing, calls that
another model wrote, media in results, and tool choices without tools."""

from typing import Any

import grpc
import pytest

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, CompleteResponse, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_NONE,
    TOOL_CHOICE_MODE_REQUIRED,
    TOOL_CHOICE_MODE_UNSPECIFIED,
    FunctionCall,
    ToolCall,
    ToolChoice,
)

from .conftest import Client, FakeMesh
from .samples import audio_part, image_part, png, wav
from .test_gateway_answers import field_of
from .test_gateway_parsing import error_of
from .test_gateway_response_tools import allowed, output
from .test_gateway_responses import AUDIO, DATA_URL, IMAGE, respond
from .test_gateway_tools import DEEP_TEXT, HI, offer


async def complete(client: Client, *messages: ChatMessage, **fields: Any) -> CompleteResponse:
    """Answer over gRPC."""
    chat = ChatRequest(messages=messages, **fields)
    response: CompleteResponse = await ChatServiceStub(client.channel).Complete(CompleteRequest(chat=chat))
    return response


def turns(mesh: FakeMesh) -> list[tuple[int, str, list[tuple[str, str, str]]]]:
    """Return the last conversation that reached the decoder: roles, what is said (* for a medium), and calls."""
    return [
        (
            turn.role,
            "".join("*" if part.HasField("media") else part.text for part in turn.parts),
            [(call.id, call.function.name, call.function.arguments) for call in turn.tool_calls],
        )
        for turn in mesh.decoder.generate.requests[-1].messages
    ]


def result(call_id: str | None, content: Any = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def calls(*made: tuple[str, str, str | None], **fields: Any) -> dict[str, Any]:
    """Return a turn of the assistant that calls functions: (id, name, arguments)."""
    found = [{"id": i, "type": "function", "function": {"name": name, "arguments": text}} for i, name, text in made]
    return {"role": "assistant", **fields, "tool_calls": found}


def item(call_id: str, name: str, arguments: str | None) -> dict[str, Any]:
    """Return the item of a call in the Responses API."""
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def proto_calls(*made: tuple[str, str, str]) -> ChatMessage:
    return ChatMessage(
        role=ROLE_ASSISTANT,
        tool_calls=[
            ToolCall(id=call_id, function=FunctionCall(name=name, arguments=text)) for call_id, name, text in made
        ],
    )


def proto_result(call_id: str, *parts: ContentPart) -> ChatMessage:
    return ChatMessage(role=ROLE_TOOL, tool_call_id=call_id, parts=parts or [ContentPart(text="ok")])


EMPTY = ContentPart(text="")
CONTENTS: list[dict[str, Any]] = [{}, {"content": None}, {"content": ""}, {"content": []}]


async def test_every_role_may_say_nothing_in_chat(client: Client, mesh: FakeMesh) -> None:
    part = {"type": "text", "text": ""}
    for content in (*CONTENTS, {"content": [part]}, {"content": [part, part]}):
        given: list[Any] = [{"role": role, **content} for role in ("developer", "system", "user", "assistant")]
        given += [calls(("c", "f", "{}")), {**result("c"), "content": None, **content}]
        given += [{"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}, **content}]
        given += [{"role": "function", "name": "g", **content}]
        response = await client.chat("", messages=given)
        assert response.status_code == 200, response.text
        called = [ROLE_ASSISTANT, ROLE_TOOL]
        roles = [ROLE_SYSTEM, ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, *called, *called]
        assert [role for role, said, _ in turns(mesh) if said == ""] == roles


async def test_every_role_may_say_nothing_in_responses(client: Client, mesh: FakeMesh) -> None:
    part = {"type": "input_text", "text": ""}
    for said in (*CONTENTS, {"content": [part]}):
        given: list[Any] = [{"role": role, **said} for role in ("developer", "system", "user", "assistant")]
        got = {"output": said["content"]} if said else {}
        given += [{"role": "user"}, item("c", "f", "{}"), {"type": "function_call_output", "call_id": "c", **got}]
        response = await respond(client, given, instructions="")
        assert response.status_code == 200, response.text
        assert len([role for role, said, _ in turns(mesh) if said == ""]) == 7
    assert (await respond(client, "")).status_code == 200
    assert turns(mesh) == [(ROLE_USER, "", [])]


async def test_every_role_may_say_nothing_in_grpc(client: Client, mesh: FakeMesh) -> None:
    for parts in ([], [EMPTY], [EMPTY, EMPTY]):
        given = [ChatMessage(role=role, parts=parts) for role in (ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT)]
        called = proto_calls(("c", "f", "{}"))
        await complete(client, *given, called, ChatMessage(role=ROLE_TOOL, tool_call_id="c", parts=parts))
        assert [said for _, said, _ in turns(mesh)] == [""] * 5


async def test_what_an_answer_says_in_other_fields_is_said(client: Client, mesh: FakeMesh) -> None:
    spoken = {"id": "audio_1", "data": "", "expires_at": 5}
    given = [
        {"role": "assistant", "content": None, "refusal": "no", "reasoning_content": "hm", "annotations": []},
        {"role": "assistant", "content": [{"type": "text", "text": "a "}, {"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "audio": {**spoken, "transcript": "hello"}},
        {"role": "assistant", "content": "hello", "audio": spoken},
    ]
    assert (await client.chat("", messages=given)).status_code == 200
    assert [said for _, said, _ in turns(mesh)] == ["no", "a no", "hello", "hello"]
    refusal = {"type": "refusal", "refusal": "no"}
    answer = {"type": "message", "id": "msg_1", "status": "completed", "phase": "final_answer", "role": "assistant"}
    cited = {"type": "output_text", "text": "yes ", "annotations": [{"type": "url_citation"}], "logprobs": []}
    assert (await respond(client, [{**answer, "content": [cited, refusal]}])).status_code == 200
    assert turns(mesh) == [(ROLE_ASSISTANT, "yes no", [])]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "assistant", "audio": {"id": "audio_1"}}], "messages[0].audio"),
        ([{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}], "messages[0].content[0].type"),
        ([{"role": "function", "name": "f", "content": "5"}], "messages[0].name"),
        ([{"role": "user", "function_call": {"name": "f", "arguments": ""}}], "messages[0].tool_calls"),
        ([calls(("a", "f", "{}")), result("b")], "messages[1].tool_call_id"),
        ([calls(("a", "f", "{}")), result(None)], "messages[1].tool_call_id"),
        ([result("a"), calls(("a", "f", "{}"))], "messages[0].tool_call_id"),
        ([calls(("a", "f", "{}"), ("a", "f", "{}")), *[result("a")] * 3], "messages[3].tool_call_id"),
    ],
)
async def test_what_only_a_client_can_have_got_wrong(shared: Client, messages: list[Any], param: str) -> None:
    response = await shared.chat("", messages=messages)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


@pytest.mark.parametrize(
    ("items", "param", "why"),
    [
        ([HI, {"type": "item_reference", "id": "msg_1"}], "input[1].type", "send the item itself"),
        ([{"type": "compaction", "encrypted_content": "x"}, HI], "input[0].type", "send the earlier items"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}], "input[0].content[0].type", "pages"),
        ([item("a", "f", ""), output("a", [{"type": "input_file"}])], "input[1].output[0].type", "pages as images"),
        ([item("a", "f", ""), output("b")], "input[1].call_id", "earlier call"),
        ([item("a", "f", ""), {"type": "function_call_output", "output": ""}], "input[1].call_id", "earlier call"),
        (
            [{"type": "computer_call", "call_id": "a"}, {"type": "computer_call_output", "call_id": "a", "output": {
                "type": "computer_screenshot", "file_id": "file_1",
            }}],
            "input[1].output.file_id",
            "send image_url",
        ),
    ],
)  # fmt: skip
async def test_items_that_cannot_be_read(shared: Client, items: list[Any], param: str, why: str) -> None:
    error = error_of(await respond(shared, items))
    assert error["param"] == param
    assert why in error["message"]


WRITTEN = ["", " \n", "null", '{"a": "cut o', '{"a": 1}}', "[1]", "5", "plain", '{"a": NaN, "a": 2}', DEEP_TEXT]
NAMES = ["", "a b", "a.b/c", "名字", "f" * 200, "<|user|>"]


async def test_nothing_that_a_model_wrote_ends_a_conversation(client: Client, mesh: FakeMesh) -> None:
    for name, text in [*(("f", text) for text in WRITTEN), *((name, "{}") for name in NAMES)]:
        made, said = ("c", name, text), [HI, calls(("c", name, text)), result("c"), HI]
        assert (await client.chat("", messages=said)).status_code == 200
        assert turns(mesh)[1][2] == [made]
        assert (await respond(client, [HI, item(*made), output("c"), HI])).status_code == 200
        assert turns(mesh)[1][2] == [made]
        await complete(client, proto_calls(made), proto_result("c"))
        assert turns(mesh)[0][2] == [made]


async def test_arguments_may_be_left_out(client: Client, mesh: FakeMesh) -> None:
    without = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}
    assert (await client.chat("", messages=[without, calls(("d", "f", None))])).status_code == 200
    assert [made for *_, made in turns(mesh)] == [[("c", "f", "")], [("d", "f", "")]]
    assert (await respond(client, [item("c", "f", None)])).status_code == 200
    assert [made for *_, made in turns(mesh)] == [[("c", "f", "")]]


async def test_results_follow_in_the_order_of_their_calls(client: Client, mesh: FakeMesh) -> None:
    first, second = (("a", "f", ""), ("b", "g", "")), (("b", "g", ""), ("a", "f", ""))
    said = [
        calls(*first), result("b", "2"), result("a", "1"), HI,
        calls(*second), result("a", "4"), {"role": "assistant", "content": "so"}, result("b", "3"),
        calls(("", "f", ""), ("", "f", "")), result("", "5"), result(None, "6"),
        calls(("c", "f", "")), HI,
    ]  # fmt: skip
    assert (await client.chat("", messages=said)).status_code == 200
    assert [text for role, text, _ in turns(mesh) if role == ROLE_TOOL] == ["1", "2", "4", "3", "5", "6"]
    await respond(client, [item(*first[0]), item(*first[1]), HI, output("b", "2"), output("a", "1")])
    assert [text for role, text, _ in turns(mesh) if role == ROLE_TOOL] == ["1", "2"]
    answers = [proto_result(call_id, ContentPart(text=call_id)) for call_id in "ba"]
    await complete(client, proto_calls(*first), *answers)
    assert [text for role, text, _ in turns(mesh) if role == ROLE_TOOL] == ["a", "b"]


async def test_calls_of_other_tools_are_calls_of_functions(client: Client, mesh: FakeMesh) -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "sql", "input": 'say "1"'}}
    old = [{"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}},
           {"role": "function", "name": "now", "content": "noon"}]  # fmt: skip
    given = [{"role": "assistant", "tool_calls": [custom]}, result("c"), *old]
    assert (await client.chat("", messages=given)).status_code == 200
    sql, _, now, _ = (made for *_, made in turns(mesh))
    assert (sql, now) == ([("c", "sql", '{"input":"say \\"1\\""}')], [("now", "now", "{}")])
    shell = {"type": "exec", "command": ["ls"], "env": {}}
    printed = [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    given = [
        {"type": "custom_tool_call", "call_id": "1", "name": "sql", "input": "select"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "5"}]},
        {"type": "local_shell_call", "id": "i", "call_id": "2", "action": shell, "status": "completed"},
        {"type": "local_shell_call_output", "id": "2", "output": "a"},
        {"type": "shell_call", "call_id": "3", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "3", "output": printed},
        {"type": "apply_patch_call", "call_id": "4", "operation": {"type": "delete_file", "path": "a"}},
        {"type": "apply_patch_call_output", "call_id": "4", "status": "completed"},
        {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "a"}, "status": "completed"},
        {"type": "mcp_call", "id": "mcp_1", "name": "f", "arguments": "{}", "server_label": "s", "output": "5"},
    ]
    response = await respond(client, given)
    assert response.status_code == 200, response.text
    assert [(said, [made[1:] for made in each]) for _, said, each in turns(mesh)] == [
        ("", [("sql", '{"input":"select"}')]),
        ("5", []),
        ("", [("local_shell", '{"action":{"type":"exec","command":["ls"],"env":{}}}')]),
        ("a", []),
        ("", [("shell", '{"action":{"commands":["ls"]}}')]),
        ('[{"stdout":"a","stderr":"","outcome":{"type":"exit","exit_code":0}}]', []),
        ("", [("apply_patch", '{"operation":{"type":"delete_file","path":"a"}}')]),
        ("", []),
    ]


async def test_media_in_messages_of_every_role(client: Client, mesh: FakeMesh) -> None:
    seen, heard = image_part(png()), audio_part(wav())
    seen["image_url"]["detail"] = "original"
    given = [{"role": role, "content": [seen, heard]} for role in ("system", "developer", "user")]
    given += [calls(("c", "f", "{}"), content=[seen]), result("c", [{"type": "text", "text": "look "}, seen, heard])]
    response = await client.chat("", messages=given)
    assert response.status_code == 200, response.text
    assert [said for _, said, _ in turns(mesh)] == ["**", "**", "**", "*", "look **"]
    assert len(response.json()["autoglm"]["stages"]["media"]) == 9
    image, audio = ContentPart(image=Media(data=png())), ContentPart(audio=Media(data=wav()))
    messages = [ChatMessage(role=role, parts=[image, audio]) for role in (ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT)]
    await complete(client, *messages, proto_calls(("c", "f", "{}")), proto_result("c", image, audio))
    assert [said for _, said, _ in turns(mesh)] == ["**", "**", "**", "", "**"]


async def test_media_in_the_results_of_functions(client: Client, mesh: FakeMesh) -> None:
    click = {"type": "computer_call", "id": "cu_1", "call_id": "2", "status": "completed", "pending_safety_checks": [],
             "action": {"type": "click", "button": "left", "x": 1, "y": 2}}  # fmt: skip
    screens = [
        {"type": "computer_call_output", "call_id": call_id, "output": {"type": kind, "image_url": DATA_URL}}
        for call_id, kind in (("2", "computer_screenshot"), ("3", "input_image"))
    ]
    given = [
        HI,
        item("1", "screenshot", "{}"),
        output("1", [{"type": "input_text", "text": "here "}, {**IMAGE, "detail": "high"}, AUDIO]),
        click,
        screens[0],
        {"type": "computer_call", "call_id": "3", "actions": [{"type": "wait"}]},
        screens[1],
    ]
    response = await respond(client, given)
    assert response.status_code == 200, response.text
    assert turns(mesh) == [
        (ROLE_USER, "hi", []),
        (ROLE_ASSISTANT, "", [("1", "screenshot", "{}")]),
        (ROLE_TOOL, "here **", []),
        (ROLE_ASSISTANT, "", [("2", "computer", '{"action":{"type":"click","button":"left","x":1,"y":2}}')]),
        (ROLE_TOOL, "*", []),
        (ROLE_ASSISTANT, "", [("3", "computer", '{"actions":[{"type":"wait"}]}')]),
        (ROLE_TOOL, "*", []),
    ]


@pytest.mark.parametrize(
    ("url", "param"),
    [("data:image/png;base64,!", "output[0].image_url"), ("data:image/png;base64,", "output[0].image_url")],
)
async def test_a_medium_in_a_result_is_named(shared: Client, url: str, param: str) -> None:
    response = await respond(shared, [item("1", "f", ""), output("1", [{"type": "input_image", "image_url": url}])])
    assert (response.status_code // 100, error_of(response)["param"]) == (4, f"input[1].{param}")
    response = await shared.chat("", messages=[calls(("1", "f", "")), result("1", [image_part(b"no image")])])
    assert (response.status_code, error_of(response)["param"]) == (415, "messages[1].content[0].image_url.url")


TOOL: dict[str, Any] = {"name": "now"}
NO_TOOLS: list[dict[str, Any]] = [{}, {"tools": None}, {"tools": []}]
FREE: list[dict[str, Any]] = [{}, *({"tool_choice": choice} for choice in (None, "auto", "none"))]


async def test_a_choice_that_asks_for_no_call_needs_no_tools(client: Client, mesh: FakeMesh) -> None:
    for tools in [*NO_TOOLS, {"tools": [{"type": "function", "function": TOOL}]}]:
        for choice in FREE:
            for parallel in (None, True, False):
                fields = {**choice, "parallel_tool_calls": parallel}
                flat = {"tools": [{"type": "function", **TOOL}]} if tools.get("tools") else tools
                assert (await client.chat("hi", **fields, **tools)).status_code == 200
                assert (await respond(client, "hi", **fields, **flat)).status_code == 200
                usable = bool(tools.get("tools")) and choice.get("tool_choice") != "none"
                for request in mesh.decoder.generate.requests[-2:]:
                    assert bool(request.tools) == usable
                    assert request.HasField("tool_choice") == (usable and choice.get("tool_choice") == "auto")


async def test_a_choice_that_asks_for_no_call_needs_no_tools_in_grpc(client: Client, mesh: FakeMesh) -> None:
    hi = ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])
    for mode in (TOOL_CHOICE_MODE_UNSPECIFIED, TOOL_CHOICE_MODE_AUTO, TOOL_CHOICE_MODE_NONE):
        for tools in ([], [offer("now")]):
            await complete(client, hi, tools=tools, tool_choice=ToolChoice(mode=mode), parallel_tool_calls=False)
            usable = bool(tools) and mode != TOOL_CHOICE_MODE_NONE
            assert bool(mesh.decoder.generate.requests[-1].tools) == usable


async def test_a_choice_that_asks_for_a_call_needs_tools(shared: Client) -> None:
    named = [{"type": "function", "function": TOOL}, {"type": "function", **TOOL}]
    for tools in NO_TOOLS:
        for choices in (("required", "required"), named):
            for response in (
                await shared.chat("hi", **tools, tool_choice=choices[0]),
                await respond(shared, "hi", **tools, tool_choice=choices[1]),
                await respond(shared, "hi", **tools, tool_choice=allowed("required", "now")),
            ):
                assert (response.status_code, error_of(response)["param"]) == (400, "tool_choice")
    for choice in (ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED), ToolChoice(function="now")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await complete(shared, ChatMessage(role=ROLE_USER), tool_choice=choice)
        assert field_of(caught.value) == "chat.tool_choice"
