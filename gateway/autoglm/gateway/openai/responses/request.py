"""The body of POST /v1/responses as pydantic types, and how it becomes a Conversation.

The server stores nothing: it accepts `store` and answers false, and refuses what needs stored responses.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import (
    Conversation,
    ConversationMessage,
    FieldPaths,
    TextPart,
    check_messages,
)
from autoglm.gateway.openai.responses.items import ResponseItem, turns_of
from autoglm.gateway.openai.types import (
    BY_CHOICE,
    FunctionDefinition,
    FunctionName,
    Mode,
    Strict,
    bounded,
    by_content,
    by_type,
    parse_json,
    schema_text,
    tool_choice_of,
    tools_of,
)
from autoglm.gateway.tool_checks import with_usable_tools
from autoglm.v1.generation_pb2 import ROLE_SYSTEM, SamplingParams

PATHS = FieldPaths(messages="input", function="")
REFUSED = {
    "previous_response_id": "this server does not store responses; send the earlier items in input",
    "conversation": "this server does not store conversations; send the earlier items in input",
    "prompt": "this server does not store prompts; send the text in instructions and input",
    "background": "this server does not answer in the background; use stream",
}


class FunctionTyped(Strict):
    """The type of a function. It is the last base of a class, so that its field is validated first."""

    type: Literal["function"]


class FunctionTool(FunctionDefinition, FunctionTyped):
    """A function that the model may call."""


class FunctionChoice(FunctionName, FunctionTyped):
    """One of `tools`."""


class AllowedTools(Strict):
    """The subset of `tools` that the model may call, or must call one of."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1)


ToolRule = Annotated[
    Annotated[FunctionChoice, Tag("~function")] | Annotated[AllowedTools, Tag("~allowed_tools")],
    by_type("function", "allowed_tools"),
]
ResponseToolChoice = Annotated[Annotated[Mode, Tag("~mode")] | Annotated[ToolRule, Tag("~named")], BY_CHOICE]


class TextFormat(Strict):
    """The format that the answer must have."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """OpenAI's `text`."""

    format: TextFormat | None = None


class ReasoningOptions(Strict):
    """OpenAI's `reasoning`: with `none` the model answers at once, with any other effort it reasons first."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponseRequest(Strict):
    """The body of POST /v1/responses."""

    model: str
    input: Annotated[Annotated[str, Tag("~text")] | Annotated[list[ResponseItem], Tag("~parts")], by_content("items")]
    instructions: str | None = None
    max_output_tokens: int | None = bounded("max_tokens")
    temperature: float | None = bounded("temperature")
    top_p: float | None = bounded("top_p")
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(None, max_length=16)
    stream: bool | None = None
    store: bool | None = Field(None, description="No effect: nothing is stored.")
    previous_response_id: str | None = Field(None, description="Refused: nothing is stored.")
    conversation: Any = Field(None, description="Refused: nothing is stored.")
    prompt: Any = Field(None, description="Refused: nothing is stored.")
    background: bool | None = Field(None, description="Refused when true.")

    @property
    def format(self) -> TextFormat:
        """The format that the answer must have."""
        return (self.text and self.text.format) or TextFormat(schema=None)

    def echo(self) -> dict[str, Any]:
        """Return the fields that a response repeats, without the input and its media."""
        choice = self.tool_choice or "auto"
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": {"effort": self.reasoning and self.reasoning.effort, "summary": None},
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": self.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_p": 1.0 if self.top_p is None else self.top_p,
        }


def parse(body: bytes | bytearray) -> ResponseRequest:
    """Parse a body; raises InvalidRequest naming the first field that is invalid or not supported."""
    request = parse_json(ResponseRequest, body)
    for name, why in REFUSED.items():
        if getattr(request, name):
            raise InvalidRequest(f"{name}: {why}", param=name, code="unsupported_parameter")
    return request


def to_conversation(request: ResponseRequest, max_media: int) -> Conversation:
    """Return the conversation of `request`; raises InvalidRequest for what its types cannot rule out."""
    turns = turns_of(request.input)
    check_messages(turns, PATHS.messages, max_media)
    system = [ConversationMessage(ROLE_SYSTEM, [TextPart(request.instructions)])] if request.instructions else []
    effort, choice = request.reasoning and request.reasoning.effort, request.tool_choice
    conversation = Conversation(
        messages=[*system, *turns],
        sampling=SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_output_tokens,
            **_structure(request.format),
        ),
        paths=PATHS,
        enable_thinking=None if effort is None else effort != "none",
        return_reasoning=True,
        tools=tools_of(request.tools or (), PATHS.function),
        tool_choice=tool_choice_of(choice.mode if isinstance(choice, AllowedTools) else choice),
        parallel_tool_calls=request.parallel_tool_calls is not False,
    )
    conversation = with_usable_tools(conversation)
    return _restricted(conversation, choice) if isinstance(choice, AllowedTools) else conversation


def _restricted(conversation: Conversation, allowed: AllowedTools) -> Conversation:
    names = {tool.name for tool in allowed.tools}
    tools = [tool for tool in conversation.tools if tool.function.name in names]
    if len(tools) < len(names):
        raise InvalidRequest("tool_choice.tools names a function that is not in tools", param="tool_choice.tools")
    return replace(conversation, tools=tools)


def _structure(wanted: TextFormat) -> dict[str, Any]:
    if wanted.type == "text":
        return {}
    if wanted.type == "json_schema" and wanted.schema_ is None:
        raise InvalidRequest("text.format.schema is missing", param="text.format.schema")
    schema = {"type": "object"} if wanted.schema_ is None else wanted.schema_
    return {"json_schema": schema_text(schema, "text.format.schema")}
