"""The answers of POST /v1/responses, as /openapi.json describes them. Tests compare real answers with these models."""

from typing import Literal

from pydantic import BaseModel, Field

from autoglm.gateway.openai.chat.schema import ChosenTokenLogprob, CompletionTokensDetails
from autoglm.gateway.openai.errors import ErrorDetails, ErrorType, ResponseErrorCode
from autoglm.gateway.openai.responses.request import FunctionTool, ResponseToolChoice, TextFormat
from autoglm.gateway.openai.telemetry import Telemetry

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ReasoningText(BaseModel):
    """Reasoning of the model."""

    type: Literal["reasoning_text"]
    text: str


class OutputText(BaseModel):
    """Text of the model."""

    type: Literal["output_text"]
    text: str
    annotations: list[None] = Field(max_length=0)
    logprobs: list[ChosenTokenLogprob]


class OutputReasoning(BaseModel):
    """The item of the reasoning before an answer."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[None] = Field(max_length=0)
    content: list[ReasoningText]


class OutputMessage(BaseModel):
    """The item of an answer."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputFunctionCall(BaseModel):
    """The item of a function that the model calls."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


Output = OutputReasoning | OutputMessage | OutputFunctionCall


class InputTokensDetails(BaseModel):
    """Tokens of the prompt that were cached. Writes to the cache are not counted."""

    cached_tokens: int
    cache_write_tokens: Literal[0]


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class ResponseError(BaseModel):
    """Why a response failed: `code` is one of OpenAI's, `type` the error's own."""

    code: ResponseErrorCode
    message: str
    type: ErrorType
    param: str | None


class IncompleteDetails(BaseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ReasoningTaken(BaseModel):
    """The requested reasoning."""

    effort: str | None
    summary: None


class TextTaken(BaseModel):
    """The requested format."""

    format: TextFormat


class Response(BaseModel):
    """A whole answer, with the options of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[Output]
    usage: ResponseUsage | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: ReasoningTaken
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    background: Literal[False]
    temperature: float
    text: TextTaken
    tool_choice: ResponseToolChoice
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None
    autoglm: Telemetry | None = None


class ResponseEvent(BaseModel):
    """One event of a stream; its fields depend on its type. The last is `response.completed`, `response.incomplete`, or
    `response.failed` and then `error`."""

    type: str
    sequence_number: int
    response: Response | None = None
    output_index: int = 0
    item: Output | None = None
    item_id: str = ""
    content_index: int = 0
    part: ReasoningText | OutputText | None = None
    delta: str = ""
    text: str = ""
    arguments: str = ""
    logprobs: list[ChosenTokenLogprob] = []
    message: str = ""
    code: str = ""
    param: str | None = None
    error: ErrorDetails | None = None
