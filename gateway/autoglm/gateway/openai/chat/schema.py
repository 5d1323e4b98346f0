"""What the routes answer, as /openapi.json describes it; the Responses API's own are in `response_answers.py`.

Answers are rendered as plain dicts, for speed; the tests hold real ones against these models.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, WithJsonSchema

from autoglm.common.errors import MeshError

Modality = Literal["text", "image", "audio"]
FinishReason = Literal["stop", "length", "tool_calls"]
ErrorCode = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [kind.code for kind in MeshError.__subclasses__()]})
]


class ErrorDetails(BaseModel):
    """What went wrong; `param` is the path of the field to blame, if one is."""

    message: str
    type: ErrorCode
    param: str | None
    code: ErrorCode


class Error(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetails


class TokenLogprob(BaseModel):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """The token that was chosen, and its likeliest rivals."""

    top_logprobs: list[TokenLogprob]


class ChoiceLogprobs(BaseModel):
    """One entry a token, in order."""

    content: list[ChosenTokenLogprob]
    refusal: None


class FunctionCall(BaseModel):
    """What to call, and with what, as JSON."""

    name: str
    arguments: str


class FunctionToolCall(BaseModel):
    """A function that the model calls."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    """The answer; `reasoning_content` only where `return_reasoning` asked for it apart."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[FunctionToolCall] = []


class ChatCompletionChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class PromptTokensDetails(BaseModel):
    """Tokens of the prompt that were cached, or stand for images and recordings."""

    cached_tokens: int
    image_tokens: int
    audio_tokens: int


class CompletionTokensDetails(BaseModel):
    """Tokens of the answer that are reasoning."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class MediaTime(BaseModel):
    """Where the embedding of an image or a recording came from, and the milliseconds that took."""

    modality: Modality
    cache: Literal["miss", "local", "redis", "shared"] | None
    encode: float


class StageTimes(BaseModel):
    """Where the time went, in milliseconds."""

    queue: float
    fetch: float
    prefill: float
    decode: float
    total: float
    media: list[MediaTime]


class Telemetry(BaseModel):
    """What an answer took, and the mean gate of each modality, from 0 to 1."""

    stages: StageTimes
    gates: dict[Modality, float]


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: CompletionUsage
    autoglm: Telemetry


class FunctionDelta(BaseModel):
    """What a chunk adds to a call."""

    name: str = ""
    arguments: str


class ToolCallDelta(BaseModel):
    """The call that a chunk opens or goes on with."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class ChunkDelta(BaseModel):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = []


class ChunkChoice(BaseModel):
    """The answer that a chunk goes on with."""

    index: int
    delta: ChunkDelta
    finish_reason: FinishReason | None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream; behind the last comes `[DONE]`. A stream that fails ends with an `error` event instead."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    autoglm: Telemetry | None = None


class ModelLimits(BaseModel):
    """What a request may hold."""

    max_body_bytes: int
    max_media_bytes: int
    max_image_pixels: int
    max_media_parts: int
    max_choices: int


class Model(BaseModel):
    """A name that requests may use, and the bundle behind it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    bundle: str
    modalities: list[Modality]
    max_model_len: int
    limits: ModelLimits


class ModelList(BaseModel):
    """The names that requests may use."""

    object: Literal["list"]
    data: list[Model]


class AudioDuration(BaseModel):
    """The recording's length in seconds."""

    type: Literal["duration"]
    seconds: float


class TranscriptSegment(BaseModel):
    """A stretch of a recording, in seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]


class Transcription(BaseModel):
    """A transcript; what follows `usage` comes with `verbose_json` only."""

    text: str
    usage: AudioDuration
    task: Literal["transcribe"] = "transcribe"
    language: Literal["chinese", "english"] = "english"
    duration: float = 0.0
    segments: list[TranscriptSegment] = []


class TranscriptionEvent(BaseModel):
    """One event of a stream: `delta`, then `text` and `usage`; behind the last comes `[DONE]`."""

    type: Literal["transcript.text.delta", "transcript.text.done"]
    delta: str = ""
    text: str = ""
    usage: AudioDuration | None = None


class EmbeddingData(BaseModel):
    """A vector of length 1, as numbers or in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """One vector for each input, in order."""

    object: Literal["list"]
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage


class Liveness(BaseModel):
    """The process runs."""

    status: Literal["live"]


class Readiness(BaseModel):
    """Whether text can be answered, and how each dependency is."""

    status: Literal["ready", "unavailable"]
    dependencies: dict[str, Literal["up", "down", "off"]]
