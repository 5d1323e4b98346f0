"""What both servers make of a request. From here on nothing depends on whether it was JSON or protobuf.

Every piece keeps `param`, the path of the client's field that it came from, so that an error can name the field.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoglm.common.context_length import PromptText, context_exceeded, is_longer
from autoglm.common.errors import InvalidRequest
from autoglm.common.format_sizes import MAX_CHOICE_TEXTS
from autoglm.gateway.limits import (
    MAX_CHOICES,
    MAX_LOGIT_BIASES,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    check_count,
    check_length,
)
from autoglm.v1.generation_pb2 import Role, SamplingParams, Tool, ToolCall, ToolChoice
from autoglm.v1.modality_pb2 import Modality

# Paths in the decoder's request.
_SAMPLING = "sampling."
_STRUCTURE = re.compile(r"sampling\.(json_schema|regex|choice|grammar)")
_FUNCTION = re.compile(r"tools\[(\d+)\]\.function")


@dataclass(frozen=True, slots=True)
class Range:
    """The values a number may take: from `low` (itself excluded when `open_low`) to `high`."""

    low: float
    high: float
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.open_low:
            return f"greater than {self.low} and at most {self.high}"
        return f"between {self.low} and {self.high}"


# The comments of SamplingParams in generation.proto say what each means.
SAMPLING_RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1),
    "top_k": Range(0, 2**31 - 1),
    "max_tokens": Range(1, 2**31 - 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, 10, open_low=True),
    "top_logprobs": Range(0, 20),
    "min_p": Range(0, 1),
    "max_thinking_tokens": Range(0, 2**31 - 1),
}
LOGIT_BIAS = Range(-100, 100)
SEED = Range(-(2**63), 2**63 - 1)  # OpenAI's; in protobuf a seed is its two's complement, so each of those is valid
SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class TextPart:
    """Written text."""

    text: str


@dataclass(slots=True)
class MediaPart:
    """An image or a recording as received: bytes, or only a SHA-256. Not yet verified.

    With a `url`, `source` is empty until the file has been fetched.
    """

    modality: Modality.ValueType
    source: bytes
    param: str
    sha256: bytes = b""
    url: str = ""

    def release(self) -> None:
        """Drop the content once it is embedded: an answer can take minutes and does not need it."""
        self.source = b""


@dataclass(frozen=True, slots=True)
class ConversationMessage:
    """One turn, which may say nothing. `calls` are the functions that the assistant called; a tool's result names its
    call in `call_id`. `param` is the path of the field with either."""

    role: Role.ValueType
    parts: Sequence[TextPart | MediaPart]
    param: str = ""
    calls: Sequence[ToolCall] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """How the fields that an error can name are spelled in one API.

    `messages` is the path of the field with the messages, `root` leads the path of every other field, `sampling` that
    of one that says how tokens are chosen, and `function` leads from a tool to its function. `structured_output` is the
    path of what a request says of its answer's format, where that is not a field of SamplingParams, and `offered` has
    the numbers of the tools that may be called, where not all may.
    """

    messages: str
    root: str = ""
    sampling: str = ""
    function: str = ".function"
    structured_output: str = ""
    offered: tuple[int, ...] | None = None

    def tool(self, number: int) -> str:
        """Return the path of a tool's function."""
        return f"{self.root}tools[{number}]{self.function}"

    def blamed(self, param: str | None) -> str:
        """Return the client's field for `param`, the decoder's: the messages when it names none."""
        if param is None or param.startswith("messages"):
            return self.messages
        if self.structured_output and (structure := _STRUCTURE.match(param)):
            return self.structured_output + param[structure.end() :]
        if function := _FUNCTION.match(param):
            number = int(function[1])
            return self.tool(number if self.offered is None else self.offered[number]) + param[function.end() :]
        if param.startswith(_SAMPLING):
            return self.sampling + param.removeprefix(_SAMPLING)
        return self.root + param


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and how to go on with it. `paths` is how its API names the fields."""

    messages: Sequence[ConversationMessage]
    sampling: SamplingParams
    paths: FieldPaths
    enable_thinking: bool | None = None
    return_reasoning: bool = False
    n: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True

    @property
    def media(self) -> list[MediaPart]:
        """The images and recordings, in order."""
        return [part for message in self.messages for part in message.parts if isinstance(part, MediaPart)]


@dataclass(frozen=True, slots=True)
class EmbeddingInputs:
    """The parts to embed, each into a vector of its own. `param` is the field to blame for a text that came alone;
    `dimensions` is the number of elements that the client expects, if it says so."""

    parts: Sequence[TextPart | MediaPart]
    param: str
    dimensions: int | None = None


def check_messages(messages: Sequence[ConversationMessage], param: str, max_media: int) -> None:
    """Raise InvalidRequest unless `messages` is a conversation that can be answered."""
    if not messages:
        raise InvalidRequest(f"{param} must contain at least one message", param=param)
    check_count(len(messages), MAX_MESSAGES, "messages", param)
    check_count(sum(len(each.parts) + len(each.calls) for each in messages), MAX_PARTS, "parts and calls", param)
    if sum(isinstance(part, MediaPart) for message in messages for part in message.parts) > max_media:
        raise InvalidRequest(f"{param} contains more than {max_media} images and recordings", param=param)


def check_text(conversation: Conversation, context: int, most: int) -> None:
    """Raise InvalidRequest if the text of `conversation` has more than `most` bytes, which cannot fit into `context`
    tokens."""
    parts = [part for message in conversation.messages for part in message.parts]
    text = PromptText(
        texts=[part.text for part in parts if isinstance(part, TextPart)],
        calls=[call.function for message in conversation.messages for call in message.calls],
        tools=[tool.function for tool in conversation.tools],
    )
    paths = conversation.paths
    text.check(context, most, paths.messages, f"{paths.root}tools")


def check_input(inputs: EmbeddingInputs, context: int, most: int) -> None:
    """Raise InvalidRequest for the first text of `inputs` with more than `most` bytes, which cannot fit into `context`
    tokens."""
    for number, part in enumerate(inputs.parts):
        if isinstance(part, TextPart) and is_longer([part.text], most):
            param = inputs.param if len(inputs.parts) == 1 else f"input[{number}]"
            raise context_exceeded(context, "the text has more; shorten it", param)


def check_choices(n: int, param: str) -> None:
    """Raise InvalidRequest unless a request may have `n` choices."""
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidRequest(
            f"{param} must be between 1 and {MAX_CHOICES}, because all choices are generated at the same time; send "
            "several requests for more",
            param=param,
        )


def check_sampling(sampling: SamplingParams, prefix: str = "") -> None:
    """Raise InvalidRequest for the first field of `sampling` that is out of range; `prefix` leads its path."""
    check_count(len(sampling.logit_bias), MAX_LOGIT_BIASES, "tokens", f"{prefix}logit_bias")
    check_count(len(sampling.choice.texts), MAX_CHOICE_TEXTS, "texts", f"{prefix}choice")
    check_count(len(sampling.stop), MAX_STOPS, "strings", f"{prefix}stop")
    for number, stop in enumerate(sampling.stop):
        check_length(stop, MAX_STOP_LENGTH, f"{prefix}stop[{number}]")
    given = {field.name: value for field, value in sampling.ListFields()}
    for name, allowed in SAMPLING_RANGES.items():
        if name in given and not (math.isfinite(given[name]) and given[name] in allowed):
            raise InvalidRequest(f"{prefix}{name} must be {allowed}", param=prefix + name)
    if not all(math.isfinite(bias) and bias in LOGIT_BIAS for bias in sampling.logit_bias.values()):
        raise InvalidRequest(f"{prefix}logit_bias must be {LOGIT_BIAS}", param=prefix + "logit_bias")
    if sampling.HasField("choice") and not (sampling.choice.texts and all(sampling.choice.texts)):
        raise InvalidRequest(f"{prefix}choice needs at least one text, and no empty ones", param=prefix + "choice")
    if not all(sampling.stop):
        raise InvalidRequest(f"{prefix}stop takes no empty strings", param=prefix + "stop")
