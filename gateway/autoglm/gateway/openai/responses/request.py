"""The body of POST /v1/responses as pydantic types, and how it becomes a Conversation.

The server stores nothing: it accepts `store` and answers false.
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
from autoglm.gateway.limits import MAX_MESSAGES, MAX_TOOLS
from autoglm.gateway.openai.chat.request import StructuredOutputs, structure, structure_path
from autoglm.gateway.openai.fields import RESPONSES_REFUSED
from autoglm.gateway.openai.options import AnswerOptions
from autoglm.gateway.openai.responses.items import ResponseItem, turns_of
from autoglm.gateway.openai.types import (
    BY_CHOICE,
    WHOLE,
    FunctionDefinition,
    FunctionName,
    Mode,
    Strict,
    at_most,
    bounded,
    by_content,
    by_type,
    restricted,
    schema_text,
    tool_choice_of,
    tools_of,
)
from autoglm.gateway.schema_checks import check_format
from autoglm.gateway.tool_checks import with_usable_tools
from autoglm.v1.generation_pb2 import ROLE_SYSTEM

PATHS = FieldPaths(messages="input", function="")
SCHEMA_PATH = "text.format.schema"


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
    tools: Annotated[list[FunctionChoice], at_most(MAX_TOOLS)] = Field(min_length=1)


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


Included = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponseRequest(AnswerOptions):
    """The body of POST /v1/responses."""

    refused = RESPONSES_REFUSED

    input: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[ResponseItem], at_most(MAX_MESSAGES), Tag("~parts")],
        by_content("items"),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, bounded("max_tokens"), WHOLE] = None
    text: TextOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: Annotated[list[FunctionTool], at_most(MAX_TOOLS)] | None = None
    tool_choice: ResponseToolChoice | None = None
    include: Annotated[list[Included], Field(fail_fast=True)] | None = Field(
        None, description="`message.output_text.logprobs`; the other values are without effect."
    )
    max_tool_calls: Annotated[int | None, WHOLE] = None

    @property
    def format(self) -> TextFormat:
        """The format that the answer must have."""
        return (self.text and self.text.format) or TextFormat(schema=None)

    def echo(self) -> dict[str, Any]:
        """Return the fields that a response repeats, without the input and its media."""
        choice, effort = self.tool_choice or "auto", self.reasoning.effort if self.reasoning else None
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": effort or self.reasoning_effort, "summary": None},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": self.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "user": self.user,
        }


def to_conversation(request: ResponseRequest, max_media: int) -> Conversation:
    """Return the conversation of `request`; raises InvalidRequest for what its types cannot rule out."""
    turns = turns_of(request.input)
    check_messages(turns, PATHS.messages, max_media)
    system = [ConversationMessage(ROLE_SYSTEM, [TextPart(request.instructions)])] if request.instructions else []
    choice = request.tool_choice
    conversation = Conversation(
        messages=[*system, *turns],
        sampling=request.sampling(request.max_output_tokens, _top_logprobs(request), _structure(request)),
        paths=replace(PATHS, structured_output=structure_path(request.structured_outputs, SCHEMA_PATH)),
        enable_thinking=request.enables_thinking,
        return_reasoning=request.returns_reasoning is not False,
        tools=tools_of(request.tools or (), PATHS.function),
        tool_choice=tool_choice_of(choice.mode if isinstance(choice, AllowedTools) else choice),
        parallel_tool_calls=request.parallel_tool_calls is not False,
    )
    check_format(conversation)
    conversation = with_usable_tools(conversation)
    if isinstance(choice, AllowedTools):
        return restricted(conversation, [tool.name for tool in choice.tools], "tool_choice.tools")
    return conversation


def _top_logprobs(request: ResponseRequest) -> int | None:
    """Return how many likely tokens to report with each token, None for no log probabilities."""
    included = "message.output_text.logprobs" in (request.include or ())
    return (request.top_logprobs or 0) if included else request.top_logprobs or None


def _structure(request: ResponseRequest) -> dict[str, Any]:
    wanted = request.format
    if request.structured_outputs is not None and wanted.type != "text":
        message = "structured_outputs and text.format exclude each other"
        raise InvalidRequest(message, param="structured_outputs")
    if request.structured_outputs is not None:
        return structure(None, request.structured_outputs)
    if wanted.type == "text":
        return {}
    if wanted.type == "json_schema" and wanted.schema_ is None:
        raise InvalidRequest(f"{SCHEMA_PATH} is missing", param=SCHEMA_PATH)
    schema = {"type": "object"} if wanted.schema_ is None else wanted.schema_
    return {"json_schema": schema_text(schema, SCHEMA_PATH), "json_schema_strict": wanted.strict}
