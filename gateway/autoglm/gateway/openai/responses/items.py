"""The input of POST /v1/responses as pydantic types, and how its items become the turns of a conversation.

docs/conversations.md says what becomes of each item and part of OpenAI's API.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, Tag
from pydantic_core import PydanticCustomError

from autoglm.gateway.conversation import ConversationMessage, MediaPart, TextPart
from autoglm.gateway.limits import MAX_PARTS
from autoglm.gateway.media.verify import at_url
from autoglm.gateway.openai.types import (
    ROLES,
    AudioContent,
    CustomCallParam,
    FunctionCallParam,
    RefusalContent,
    Strict,
    at_most,
    by_content,
    by_type,
    custom_call_of,
    json_text,
    recording,
    tool_call_of,
)
from autoglm.v1.generation_pb2 import ROLE_ASSISTANT, ROLE_TOOL, ROLE_USER
from autoglm.v1.modality_pb2 import MODALITY_IMAGE


def _refuse_file(value: str | None) -> None:
    if value is not None:
        raise PydanticCustomError("stored_file", "this server does not store files; send image_url")


FileId = Annotated[str | None, AfterValidator(_refuse_file), Field(description="Refused: nothing is stored.")]


class ResponseText(Strict):
    """Written text; the type is `output_text` in messages of the model."""

    type: Literal["input_text", "output_text"]
    text: str


class ResponseImage(Strict):
    """A picture by its URL: PNG, JPEG, WebP or GIF. The type is `computer_screenshot` in the output of a computer."""

    type: Literal["input_image", "computer_screenshot"]
    file_id: FileId = None
    image_url: str


ResponsePart = Annotated[
    Annotated[ResponseText, Tag("~input_text")]
    | Annotated[RefusalContent, Tag("~refusal")]
    | Annotated[ResponseImage, Tag("~input_image")]
    | Annotated[AudioContent, Tag("~input_audio")],
    by_type(("input_text", "output_text"), "refusal", ("input_image", "computer_screenshot"), "input_audio"),
]
ResponseContent = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[ResponsePart], at_most(MAX_PARTS), Tag("~parts")],
    by_content("parts"),
]


class ResponseMessage(Strict):
    """One turn of a conversation; it may say nothing."""

    type: Literal["message"] | None = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: ResponseContent | None = None

    def turn(self, param: str) -> ConversationMessage:
        """Return the turn at `param`; raises InvalidRequest for a malformed URL."""
        return ConversationMessage(ROLES[self.role], _parts(self.content, f"{param}.content"))


class EarlierCall(FunctionCallParam):
    """A function that the model called."""

    model_config = ConfigDict(title="EarlierCall")

    type: Literal["function_call"]
    call_id: str

    def turn(self, param: str) -> ConversationMessage:
        """Return the assistant's turn."""
        return ConversationMessage(ROLE_ASSISTANT, (), param, [tool_call_of(self.call_id, self)])


class EarlierCustomCall(CustomCallParam):
    """A custom tool that another model called."""

    type: Literal["custom_tool_call"]
    call_id: str

    def turn(self, param: str) -> ConversationMessage:
        """Return the assistant's turn."""
        return ConversationMessage(ROLE_ASSISTANT, (), param, [custom_call_of(self.call_id, self)])


class EarlierToolCall(Strict):
    """A tool of OpenAI's that another model called and the client ran: to this model, a function of that name."""

    type: Literal["computer_call", "local_shell_call", "shell_call", "apply_patch_call"]
    call_id: str
    action: dict[str, Any] | None = None
    actions: list[dict[str, Any]] | None = None
    operation: dict[str, Any] | None = None

    def turn(self, param: str) -> ConversationMessage:
        """Return the assistant's turn; raises InvalidRequest for an action that is nested too deeply."""
        given = {"action": self.action, "actions": self.actions, "operation": self.operation}
        arguments = json_text({name: value for name, value in given.items() if value is not None}, param)
        function = FunctionCallParam(name=self.type.removesuffix("_call"), arguments=arguments)
        return ConversationMessage(ROLE_ASSISTANT, (), param, [tool_call_of(self.call_id, function)])


class CallOutput(Strict):
    """What a function or a custom tool returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str | None = None
    output: ResponseContent | None = None

    def turn(self, param: str) -> ConversationMessage:
        """Return the tool's turn; raises InvalidRequest for a malformed URL."""
        parts = _parts(self.output, f"{param}.output")
        return ConversationMessage(ROLE_TOOL, parts, f"{param}.call_id", call_id=self.call_id or "")


class ComputerOutput(Strict):
    """What the screen shows after a computer call."""

    type: Literal["computer_call_output"]
    call_id: str
    output: ResponseImage

    def turn(self, param: str) -> ConversationMessage:
        """Return the tool's turn; raises InvalidRequest for a malformed URL."""
        parts = [_part(self.output, f"{param}.output")]
        return ConversationMessage(ROLE_TOOL, parts, f"{param}.call_id", call_id=self.call_id)


class ShellOutput(Strict):
    """What a shell or a patch printed. The id of a local shell's call may also be in `id`."""

    type: Literal["local_shell_call_output", "shell_call_output", "apply_patch_call_output"]
    call_id: str | None = None
    id: str | None = None
    output: str | list[dict[str, Any]] | None = None

    def turn(self, param: str) -> ConversationMessage:
        """Return the tool's turn; raises InvalidRequest for an output that is nested too deeply."""
        output = self.output or ""
        text = output if isinstance(output, str) else json_text(output, f"{param}.output")
        call_id = self.call_id or (self.id if self.type == "local_shell_call_output" else None)
        return ConversationMessage(ROLE_TOOL, [TextPart(text)], f"{param}.call_id", call_id=call_id or "")


Skipped = Literal[
    "reasoning",
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "tool_search_call",
    "tool_search_output",
    "program",
    "program_output",
]


class SkippedItem(Strict):
    """Reasoning, or what a server did with tools of its own. The model does not read it again; the answer that came
    after it says what was found."""

    type: Skipped

    def turn(self, param: str) -> None:
        """Return nothing."""


ResponseItem = Annotated[
    Annotated[ResponseMessage, Tag("~message")]
    | Annotated[EarlierCall, Tag("~function_call")]
    | Annotated[EarlierCustomCall, Tag("~custom_tool_call")]
    | Annotated[EarlierToolCall, Tag("~computer_call")]
    | Annotated[CallOutput, Tag("~function_call_output")]
    | Annotated[ComputerOutput, Tag("~computer_call_output")]
    | Annotated[ShellOutput, Tag("~shell_call_output")]
    | Annotated[SkippedItem, Tag("~reasoning")],
    by_type(
        "message",
        "function_call",
        "custom_tool_call",
        ("computer_call", "local_shell_call", "shell_call", "apply_patch_call"),
        ("function_call_output", "custom_tool_call_output"),
        "computer_call_output",
        ("shell_call_output", "local_shell_call_output", "apply_patch_call_output"),
        get_args(Skipped),
        default="message",
    ),
]


def turns_of(given: str | Sequence[ResponseItem]) -> list[ConversationMessage]:
    """Return the turns of a conversation; raises InvalidRequest for an item that cannot be one.

    The assistant's calls and the text around them are one turn.
    """
    if isinstance(given, str):
        return [ConversationMessage(ROLE_USER, [TextPart(given)])]
    turns: list[ConversationMessage] = []
    for i, item in enumerate(given):
        turn = item.turn(f"input[{i}]")
        if turn and turns and _are_one(turns[-1], turn):
            turns[-1] = replace(turn, parts=[*turns[-1].parts, *turn.parts], calls=[*turns[-1].calls, *turn.calls])
        elif turn:
            turns.append(turn)
    return turns


def _are_one(first: ConversationMessage, second: ConversationMessage) -> bool:
    return first.role == second.role == ROLE_ASSISTANT and bool(first.calls or second.calls)


def _parts(content: str | Sequence[ResponsePart] | None, param: str) -> list[TextPart | MediaPart]:
    if isinstance(content, str):
        return [TextPart(content)]
    return [_part(part, f"{param}[{i}]") for i, part in enumerate(content or ())]


def _part(part: ResponsePart, param: str) -> TextPart | MediaPart:
    if isinstance(part, ResponseText):
        return TextPart(part.text)
    if isinstance(part, RefusalContent):
        return TextPart(part.refusal)
    if isinstance(part, ResponseImage):
        return at_url(part.image_url, MODALITY_IMAGE, f"{param}.image_url")
    return recording(part, param)
