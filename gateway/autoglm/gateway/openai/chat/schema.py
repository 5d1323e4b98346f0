"""The answers of POST /v1/chat/completions, as /openapi.json describes them.

Answers are rendered as plain dicts, for speed; tests compare real answers with these models.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from autoglm.gateway.openai.telemetry import Telemetry

FinishReason = Literal["stop", "length", "tool_calls"]


class TokenLogprob(BaseModel):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """The chosen token, and the likeliest alternatives."""

    top_logprobs: list[TokenLogprob]


class ChoiceLogprobs(BaseModel):
    """One entry for each token, in order."""

    content: list[ChosenTokenLogprob]
    refusal: None


class CalledFunction(BaseModel):
    """The function to call, and its arguments as JSON text."""

    model_config = ConfigDict(title="FunctionCall-Output")

    name: str
    arguments: str


class FunctionToolCall(BaseModel):
    """A function that the model calls."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(BaseModel):
    """The answer; `reasoning_content` and `reasoning`, which are the same, are present only if the request set
    `return_reasoning`."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[FunctionToolCall] = []


class ChatCompletionChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class PromptTokensDetails(BaseModel):
    """Tokens of the prompt that were cached, or represent images and recordings."""

    cached_tokens: int
    image_tokens: int
    audio_tokens: int


class CompletionTokensDetails(BaseModel):
    """Tokens of the answer that are reasoning."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    service_tier: Literal["default"] = "default"
    usage: CompletionUsage
    autoglm: Telemetry


class FunctionDelta(BaseModel):
    """What a chunk adds to a call."""

    name: str = ""
    arguments: str


class ToolCallDelta(BaseModel):
    """The tool call that a chunk opens or continues."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class ChunkDelta(BaseModel):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []


class ChunkChoice(BaseModel):
    """The choice that a chunk continues."""

    index: int
    delta: ChunkDelta
    finish_reason: FinishReason | None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream; `[DONE]` follows the last. A stream that fails ends with an `error` event instead."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    service_tier: Literal["default"] = "default"
    usage: CompletionUsage | None = None
    autoglm: Telemetry | None = None
