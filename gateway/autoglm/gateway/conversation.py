"""What both doors make of a request; from here on nobody knows whether it was JSON or protobuf.

Every piece remembers `param`, the path of the client's field that it came from, so that whoever
finds fault with it can name the field.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import InvalidRequest
from autoglm.v1.generation_pb2 import ROLE_TOOL, ROLE_USER, Role, SamplingParams, Tool, ToolCall, ToolChoice
from autoglm.v1.modality_pb2 import Modality

MAX_CHOICES = 8
MAX_STOPS = 4


@dataclass(frozen=True, slots=True)
class Range:
    """The values a number may take: from `low` (itself excluded when `open_low`) to `high`."""

    low: float
    high: float
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.open_low else 'from'} {self.low:g} to {self.high:g}"


# The comments of SamplingParams in generation.proto say what each means.
SAMPLING_RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, open_low=True),
    "top_k": Range(0, 2**31 - 1),
    "max_tokens": Range(1, 2**31 - 1),
    "seed": Range(0, 2**63 - 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, 10, open_low=True),
    "top_logprobs": Range(0, 20),
    "min_p": Range(0, 1),
    "max_thinking_tokens": Range(0, 2**31 - 1),
}
LOGIT_BIAS = Range(-100, 100)


@dataclass(frozen=True, slots=True)
class TextPart:
    """Written text."""

    text: str


@dataclass(slots=True)
class MediaPart:
    """An image or a recording as it came: bytes, their base64 as text, or only their SHA-256. Not yet verified.

    With a `url`, `source` is empty until it has been fetched from there.
    """

    modality: Modality.ValueType
    source: bytes | str
    param: str
    sha256: bytes = b""
    url: str = ""

    def release(self) -> None:
        """Forget the content, which is embedded by now: an answer may take minutes, and holds only what it needs."""
        self.source = b""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `calls` are functions that the assistant called, `call_id` names the call that a result is of."""

    role: Role.ValueType
    parts: Sequence[TextPart | MediaPart]
    param: str
    calls: Sequence[ToolCall] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and how to go on with it."""

    messages: Sequence[Message]
    sampling: SamplingParams
    enable_thinking: bool | None = None
    return_reasoning: bool = False
    n: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    adapter: str = ""  # of the bundle, to answer with
    prefix: str = ""  # of the path of every field of the client's request
    source: str = "messages"  # the path of the field that holds the messages
    function: str = ".function"  # the path from a tool to its function

    @property
    def media(self) -> list[MediaPart]:
        """The images and recordings, in order."""
        return [part for message in self.messages for part in message.parts if isinstance(part, MediaPart)]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What vectors are wanted of, each by itself. `param` is the field to blame for a text that came alone; vectors
    shall have `dimensions` elements, if that is said."""

    parts: Sequence[TextPart | MediaPart]
    param: str
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who shares a cache and limits. `id`, a hash, tells tenants apart; `name` is for the log; 0 is no limit."""

    name: str = "-"
    id: str = ""
    requests_per_minute: int = 0
    max_concurrent_requests: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """Requests that a tenant may send in a minute, what is left of them, and the seconds until one more is."""

    limit: int
    remaining: int
    reset: float


@dataclass(slots=True)
class Call:
    """One request on its way through: who asks, until when, and what its log line will say."""

    request_id: str
    deadline: Deadline = field(default_factory=Deadline)
    tenant: Tenant = Tenant()
    allowance: Allowance | None = None
    traceparent: str | None = None
    started: float = field(default_factory=time.monotonic)
    received: int = 0
    media: list[str] = field(default_factory=list)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What follows the request into the services."""
        trace = () if self.traceparent is None else (("traceparent", self.traceparent),)
        return (("x-request-id", self.request_id), *trace)


def check_messages(messages: Sequence[Message], param: str, max_media: int) -> None:
    """Raise InvalidRequest unless `messages` is a conversation that can be answered."""
    if not messages:
        raise InvalidRequest(f"{param} must hold at least one message", param=param)
    for message in messages:
        _check_message(message)
    if sum(isinstance(part, MediaPart) for message in messages for part in message.parts) > max_media:
        raise InvalidRequest(f"{param} holds more than {max_media} images and recordings", param=param)


def _check_message(message: Message) -> None:
    speaks = any(isinstance(part, MediaPart) or part.text for part in message.parts)
    if not (speaks or message.calls or message.role == ROLE_TOOL):
        raise InvalidRequest(f"{message.param} must not be empty", param=message.param)
    if message.role == ROLE_USER:
        return
    for part in message.parts:
        if isinstance(part, MediaPart):
            raise InvalidRequest("images and recordings belong in messages of the user", param=part.param)


def check_sampling(sampling: SamplingParams, prefix: str = "") -> None:
    """Raise InvalidRequest for the first field of `sampling` that is out of range; `prefix` leads its path."""
    given = {field.name: value for field, value in sampling.ListFields()}
    for name, allowed in SAMPLING_RANGES.items():
        if name in given and not (math.isfinite(given[name]) and given[name] in allowed):
            raise InvalidRequest(f"{prefix}{name} must be {allowed}", param=prefix + name)
    if not all(math.isfinite(bias) and bias in LOGIT_BIAS for bias in sampling.logit_bias.values()):
        raise InvalidRequest(f"{prefix}logit_bias must be {LOGIT_BIAS}", param=prefix + "logit_bias")
    if sampling.HasField("choice") and not (sampling.choice.texts and all(sampling.choice.texts)):
        raise InvalidRequest(f"{prefix}choice needs texts, none empty", param=prefix + "choice")
    if len(sampling.stop) > MAX_STOPS or not all(sampling.stop):
        raise InvalidRequest(f"{prefix}stop takes at most {MAX_STOPS} strings, none empty", param=prefix + "stop")
