"""The body of POST /v1/chat/completions as pydantic types, and how it becomes a Conversation."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import (
    LOGIT_BIAS,
    MAX_CHOICES,
    MAX_STOPS,
    SAMPLING_RANGES,
    Conversation,
    ConversationMessage,
    FieldPaths,
    MediaPart,
    TextPart,
    check_messages,
)
from autoglm.gateway.media.verify import at_url
from autoglm.gateway.openai.types import (
    BY_CHOICE,
    ROLES,
    AudioContent,
    FunctionCallParam,
    FunctionDefinition,
    FunctionName,
    Mode,
    Strict,
    bounded,
    by_content,
    by_type,
    recording,
    schema_text,
    tool_call_of,
    tool_choice_of,
    tools_of,
)
from autoglm.gateway.schema_checks import check_format
from autoglm.gateway.tool_checks import check_calls, with_usable_tools
from autoglm.v1.generation_pb2 import SamplingParams, TextChoice
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE

PATHS = FieldPaths(messages="messages")


class TextContent(Strict):
    """Written text."""

    type: Literal["text"]
    text: str


class MediaUrl(Strict):
    """The URL of an image or a recording: data:, or https: to a host that the server fetches from."""

    url: str


class ImageContent(Strict):
    """A picture: PNG, JPEG, WebP or GIF."""

    type: Literal["image_url"]
    image_url: MediaUrl


class AudioUrlContent(Strict):
    """A recording by its URL, as in vLLM: WAV, MP3, FLAC or Ogg."""

    type: Literal["audio_url"]
    audio_url: MediaUrl


Content = Annotated[
    Annotated[TextContent, Tag("~text")]
    | Annotated[ImageContent, Tag("~image_url")]
    | Annotated[AudioUrlContent, Tag("~audio_url")]
    | Annotated[AudioContent, Tag("~input_audio")],
    by_type("text", "image_url", "audio_url", "input_audio"),
]


class Tool(Strict):
    """Something that the model may use: a function."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedChoice(Strict):
    """The function that the model has to call."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[Annotated[Mode, Tag("~mode")] | Annotated[NamedChoice, Tag("~named")], BY_CHOICE]


class ToolCallParam(Strict):
    """A call that the assistant made."""

    model_config = ConfigDict(title="ToolCall")

    id: str
    type: Literal["function"]
    function: FunctionCallParam


class ChatMessage(Strict):
    """One turn of a conversation. Only an assistant message with tool calls may have no content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[Annotated[str, Tag("~text")] | Annotated[list[Content], Tag("~parts")], by_content("parts")] | None
    ) = None
    tool_calls: list[ToolCallParam] | None = None
    tool_call_id: str | None = None


class StreamOptions(Strict):
    """What a stream contains in addition to the answer."""

    include_usage: bool | None = None


class TemplateOptions(Strict):
    """Arguments of the chat template."""

    enable_thinking: bool | None = None


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
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(None, min_length=1)
    grammar: str | None = Field(None, description="A grammar in llguidance's dialect of Lark.")


class ChatCompletionRequest(Strict):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage] = Field(json_schema_extra={"minItems": 1})
    temperature: float | None = bounded("temperature")
    top_p: float | None = bounded("top_p")
    top_k: int | None = Field(None, ge=-1, le=SAMPLING_RANGES["top_k"].high, description="-1 and 0 mean all.")
    min_p: float | None = bounded("min_p")
    max_tokens: int | None = bounded("max_tokens")
    max_completion_tokens: int | None = bounded("max_tokens")
    include_stop_str_in_output: bool | None = Field(None, description="Print what ends the answer, as in vLLM.")
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str] | None
        ),
    ] = Field(None, max_length=MAX_STOPS)
    seed: int | None = bounded("seed")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = bounded("top_logprobs")
    presence_penalty: float | None = bounded("presence_penalty")
    frequency_penalty: float | None = bounded("frequency_penalty")
    repetition_penalty: float | None = bounded("repetition_penalty")
    logit_bias: (
        dict[
            Annotated[int, Field(strict=False, ge=0, lt=2**32)],
            Annotated[float, Field(ge=LOGIT_BIAS.low, le=LOGIT_BIAS.high)],
        ]
        | None
    ) = Field(None, description="Added to the logits of token ids.")
    max_thinking_tokens: int | None = bounded("max_thinking_tokens")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    return_reasoning: bool | None = None
    include_reasoning: bool | None = Field(None, description="An alias of return_reasoning.")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def to_conversation(request: ChatCompletionRequest, max_media: int) -> Conversation:
    """Return the conversation of `request`; raises InvalidRequest for what its types cannot rule out."""
    messages = [message(each, f"messages[{i}].content") for i, each in enumerate(request.messages)]
    check_messages(messages, PATHS.messages, max_media)
    check_calls(messages, PATHS.messages)
    template, choice = request.chat_template_kwargs, request.tool_choice
    thinking = request.enable_thinking
    conversation = Conversation(
        messages=messages,
        sampling=_sampling(request),
        paths=replace(PATHS, structured_output=_structure_path(request)),
        enable_thinking=template.enable_thinking if thinking is None and template else thinking,
        return_reasoning=bool(request.return_reasoning or request.include_reasoning),
        n=request.n or 1,
        tools=tools_of([tool.function for tool in request.tools or ()], PATHS.function),
        tool_choice=tool_choice_of(choice.function if isinstance(choice, NamedChoice) else choice),
        parallel_tool_calls=request.parallel_tool_calls is not False,
    )
    check_format(conversation)
    return with_usable_tools(conversation)


def message(given: ChatMessage, param: str) -> ConversationMessage:
    """Return a turn whose content is at `param`; raises InvalidRequest for a malformed URL."""
    content, calls = given.content, [tool_call_of(call.id, call.function) for call in given.tool_calls or ()]
    parts = (
        [TextPart(content)]
        if isinstance(content, str)
        else [_part(part, f"{param}[{i}]") for i, part in enumerate(content or ())]
    )
    return ConversationMessage(ROLES[given.role], parts, param, calls, given.tool_call_id or "")


def _part(part: TextContent | ImageContent | AudioUrlContent | AudioContent, param: str) -> TextPart | MediaPart:
    if isinstance(part, TextContent):
        return TextPart(part.text)
    if isinstance(part, ImageContent):
        return at_url(part.image_url.url, MODALITY_IMAGE, f"{param}.image_url.url")
    if isinstance(part, AudioUrlContent):
        return at_url(part.audio_url.url, MODALITY_AUDIO, f"{param}.audio_url.url")
    return recording(part, param)


def _sampling(request: ChatCompletionRequest) -> SamplingParams:
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs requires logprobs to be true", param="top_logprobs")
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=None if request.top_k is None else max(request.top_k, 0),
        max_tokens=most,
        stop=request.stop or (),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        seed=request.seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        min_p=request.min_p,
        logit_bias=request.logit_bias,
        max_thinking_tokens=request.max_thinking_tokens,
        **structure(request.response_format, request.structured_outputs),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
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
    text = schema_text(format_.schema_, "response_format.json_schema.schema")
    return {"json_schema": text, "json_schema_strict": format_.strict}


def _structure_path(request: ChatCompletionRequest) -> str:
    """Return the path of what `request` says of its answer's format."""
    if request.structured_outputs is None:
        return "response_format.json_schema.schema"
    (name,) = request.structured_outputs.model_dump(by_alias=True, exclude_none=True)
    return f"structured_outputs.{name}"
