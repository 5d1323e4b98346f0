"""The body of POST /v1/chat/completions as pydantic types, and how it becomes a Conversation."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from autoglm.common.errors import InvalidRequest
from autoglm.common.format_sizes import MAX_CHOICE_TEXTS
from autoglm.gateway.conversation import (
    Conversation,
    FieldPaths,
    check_choices,
    check_messages,
)
from autoglm.gateway.limits import MAX_CHOICES, MAX_MESSAGES, MAX_TOOLS
from autoglm.gateway.openai.chat.messages import ChatMessage, message
from autoglm.gateway.openai.fields import CHAT_REFUSED
from autoglm.gateway.openai.options import AnswerOptions
from autoglm.gateway.openai.types import (
    BY_CHOICE,
    WHOLE,
    FunctionDefinition,
    FunctionName,
    Mode,
    Strict,
    at_most,
    bounded,
    by_type,
    restricted,
    schema_text,
    tool_choice_of,
    tools_of,
)
from autoglm.gateway.schema_checks import check_format
from autoglm.gateway.tool_checks import with_usable_tools
from autoglm.v1.generation_pb2 import SamplingParams, TextChoice

PATHS = FieldPaths(messages="messages")
SCHEMA_PATH = "response_format.json_schema.schema"


class Tool(Strict):
    """Something that the model may use: a function."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedChoice(Strict):
    """The function that the model has to call."""

    type: Literal["function"]
    function: FunctionName

    @property
    def rule(self) -> FunctionName:
        """What the model has to do."""
        return self.function


class AllowedToolSet(Strict):
    """The subset of `tools` that the model may call, or must call one of."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], at_most(MAX_TOOLS)] = Field(min_length=1)


class AllowedToolChoice(Strict):
    """A choice among some of `tools`."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolSet

    @property
    def rule(self) -> str:
        """What the model has to do."""
        return self.allowed_tools.mode


ToolRule = Annotated[
    Annotated[NamedChoice, Tag("~function")] | Annotated[AllowedToolChoice, Tag("~allowed_tools")],
    by_type("function", "allowed_tools"),
]
ToolChoice = Annotated[Annotated[Mode, Tag("~mode")] | Annotated[ToolRule, Tag("~named")], BY_CHOICE]


class StreamOptions(Strict):
    """What a stream contains in addition to the answer."""

    include_usage: bool | None = None


class JsonSchema(Strict):
    """The schema of `response_format`, as OpenAI wraps it."""

    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool | None = Field(default=None, description="Refuse a schema that cannot be enforced in full.")


class ResponseFormat(Strict):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


BY_SCHEMA = Discriminator(
    lambda value: "~text" if isinstance(value, str) else "~object" if isinstance(value, dict) else None,
    custom_error_type="schema_kind",
    custom_error_message="Input should be an object or a string",
)


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: exactly one of its fields."""

    json_: Annotated[Annotated[dict[str, Any], Tag("~object")] | Annotated[str, Tag("~text")], BY_SCHEMA] | None = (
        Field(None, alias="json", description="A JSON Schema, or one as text.")
    )
    regex: str | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], at_most(MAX_CHOICE_TEXTS)] | None = Field(
        None, min_length=1
    )
    grammar: str | None = Field(None, description="A grammar in llguidance's dialect of Lark.")


class ChatCompletionRequest(AnswerOptions):
    """The body of POST /v1/chat/completions."""

    refused = CHAT_REFUSED

    messages: Annotated[list[ChatMessage], at_most(MAX_MESSAGES)] = Field(json_schema_extra={"minItems": 1})
    max_tokens: Annotated[int | None, bounded("max_tokens"), WHOLE] = None
    max_completion_tokens: Annotated[int | None, bounded("max_tokens"), WHOLE] = Field(
        None, description="The newer name of max_tokens, which it overrides."
    )
    n: Annotated[int | None, Field(json_schema_extra={"minimum": 1, "maximum": MAX_CHOICES}), WHOLE] = Field(
        None, description=f"From 1 to {MAX_CHOICES}."
    )
    logprobs: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: Annotated[list[Tool], at_most(MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def to_conversation(request: ChatCompletionRequest, max_media: int) -> Conversation:
    """Return the conversation of `request`; raises InvalidRequest for what its types cannot rule out."""
    messages = [message(each, f"messages[{i}]") for i, each in enumerate(request.messages)]
    check_messages(messages, PATHS.messages, max_media)
    n = 1 if request.n is None else request.n
    check_choices(n, "n")
    choice = request.tool_choice
    conversation = Conversation(
        messages=messages,
        sampling=_sampling(request),
        paths=replace(PATHS, structured_output=structure_path(request.structured_outputs, SCHEMA_PATH)),
        enable_thinking=request.enables_thinking,
        return_reasoning=bool(request.returns_reasoning),
        n=n,
        tools=tools_of([tool.function for tool in request.tools or ()], PATHS.function),
        tool_choice=tool_choice_of(choice if isinstance(choice, str | None) else choice.rule),
        parallel_tool_calls=request.parallel_tool_calls is not False,
    )
    check_format(conversation)
    conversation = with_usable_tools(conversation)
    if isinstance(choice, AllowedToolChoice):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return restricted(conversation, names, "tool_choice.allowed_tools.tools")
    return conversation


def _sampling(request: ChatCompletionRequest) -> SamplingParams:
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs requires logprobs to be true", param="top_logprobs")
    return request.sampling(
        max_tokens=request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        structure=structure(request.response_format, request.structured_outputs),
    )


def structure(wanted: ResponseFormat | None, given: StructuredOutputs | None) -> dict[str, Any]:
    """Return the field of SamplingParams that constrains the answer's format, if any."""
    if given is not None:
        fields = given.model_dump(exclude_none=True)
        if len(fields) != 1 or wanted is not None:
            raise InvalidRequest(
                "structured_outputs takes exactly one of json, regex, choice and grammar, without a response_format",
                param="structured_outputs",
            )
        ((name, value),) = fields.items()
        if name == "json_":
            return {"json_schema": value if isinstance(value, str) else schema_text(value, "structured_outputs.json")}
        return {name: TextChoice(texts=value) if name == "choice" else value}
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_schema" and wanted.json_schema is None:
        raise InvalidRequest("response_format.json_schema is missing", param="response_format.json_schema")
    format_ = wanted.json_schema or JsonSchema()
    text = schema_text(format_.schema_, SCHEMA_PATH)
    return {"json_schema": text, "json_schema_strict": format_.strict}


def structure_path(given: StructuredOutputs | None, otherwise: str) -> str:
    """Return the path of what a request says of its answer's format; `otherwise` is that of OpenAI's field."""
    if given is None:
        return otherwise
    (name,) = given.model_dump(by_alias=True, exclude_none=True)
    return f"structured_outputs.{name}"
