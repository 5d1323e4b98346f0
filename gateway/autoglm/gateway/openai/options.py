"""How to answer, in fields that chat and Responses share, so that neither drops what the other honours."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import LOGIT_BIAS, SAMPLING_RANGES, SEED, SEEDS
from autoglm.gateway.limits import (
    MAX_LABEL_LENGTH,
    MAX_LOGIT_BIASES,
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    MAX_STOP_LENGTH,
    MAX_STOPS,
)
from autoglm.gateway.openai.fields import Refused, refuse
from autoglm.gateway.openai.types import WHOLE, Strict, at_most, bounded, within
from autoglm.v1.generation_pb2 import SamplingParams

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS = "`none` switches the reasoning off, every other effort on."
Label = Annotated[str, Field(max_length=MAX_LABEL_LENGTH)]
Metadata = dict[
    Annotated[str, Field(max_length=MAX_METADATA_KEY)], Annotated[str, Field(max_length=MAX_METADATA_VALUE)]
]
Stops = Annotated[list[Annotated[str, Field(max_length=MAX_STOP_LENGTH)]], at_most(MAX_STOPS)]
LogitBias = Annotated[
    dict[Annotated[int, Field(strict=False, ge=0, lt=2**32)], Annotated[float, within(LOGIT_BIAS)]],
    Field(max_length=MAX_LOGIT_BIASES),
]
Budget = Annotated[int | None, bounded("max_thinking_tokens"), WHOLE]
V = TypeVar("V")


def _stops(value: object) -> object:
    """Return a string or a list of strings as a list; an empty string stops nothing."""
    given = [value] if isinstance(value, str) else value
    return [each for each in given if each != ""] if isinstance(given, list) else given


class TemplateOptions(Strict):
    """Arguments of the chat template."""

    enable_thinking: bool | None = None


class ThinkingOptions(Strict):
    """The vendor's switch, and Anthropic's."""

    type: Literal["enabled", "disabled"]
    budget_tokens: Budget = Field(None, description="Anthropic's name of max_thinking_tokens.")


class ReasoningOptions(Strict):
    """OpenAI's `reasoning` in Responses, and OpenRouter's in chat: with effort `none` the model answers at once, with
    any other effort it reasons first."""

    effort: Effort | None = Field(None, description=EFFORTS)
    enabled: bool | None = None
    max_tokens: Budget = Field(None, description="OpenRouter's name of max_thinking_tokens.")


class AnswerOptions(Strict):
    """What a request for an answer may hold in both APIs."""

    refused: ClassVar[Mapping[str, Refused]] = {}

    model: str
    temperature: Annotated[float | None, bounded("temperature")] = None
    top_p: Annotated[float | None, bounded("top_p")] = None
    top_k: Annotated[int | None, Field(ge=-1, le=SAMPLING_RANGES["top_k"].high), WHOLE] = Field(
        None, description="-1 and 0 mean all."
    )
    min_p: Annotated[float | None, bounded("min_p")] = None
    include_stop_str_in_output: bool | None = Field(None, description="Print what ends the answer, as in vLLM.")
    seed: Annotated[int | None, within(SEED), WHOLE] = Field(None, description="A signed 64-bit integer.")
    stop: Annotated[Stops | None, BeforeValidator(_stops, json_schema_input_type=str | Stops | None)] = None
    presence_penalty: Annotated[float | None, bounded("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, bounded("frequency_penalty")] = None
    repetition_penalty: Annotated[float | None, bounded("repetition_penalty")] = None
    logit_bias: LogitBias | None = Field(None, description="Added to the logits of token ids.")
    top_logprobs: Annotated[int | None, bounded("top_logprobs"), WHOLE] = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    thinking: ThinkingOptions | None = None
    reasoning: ReasoningOptions | None = None
    reasoning_effort: Effort | None = Field(None, description=EFFORTS)
    max_thinking_tokens: Budget = None
    thinking_token_budget: Budget = Field(None, description="vLLM's name of max_thinking_tokens.")
    return_reasoning: bool | None = Field(
        None, description="Whether the reasoning comes apart from the text: by default not in chat, but in Responses."
    )
    include_reasoning: bool | None = Field(None, description="vLLM's name of return_reasoning.")
    stream: bool | None = None
    metadata: Annotated[Metadata | None, Field(max_length=MAX_METADATA)] = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Label | None = None
    store: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: object) -> object:
        refuse(given, cls.refused)
        return given

    @property
    def enables_thinking(self) -> bool | None:
        """Whether the model reasons first, None where the request does not say; raises InvalidRequest for switches
        that contradict each other."""
        template, thinking, reasoning = self.chat_template_kwargs, self.thinking, self.reasoning
        return agreed(
            {
                "enable_thinking": self.enable_thinking,
                "chat_template_kwargs.enable_thinking": template.enable_thinking if template else None,
                "thinking.type": thinking.type == "enabled" if thinking else None,
                "reasoning_effort": _enables(self.reasoning_effort),
                "reasoning.effort": _enables(reasoning.effort if reasoning else None),
                "reasoning.enabled": reasoning.enabled if reasoning else None,
            }
        )

    @property
    def returns_reasoning(self) -> bool | None:
        """Whether the reasoning comes apart from the content, None where the request does not say; raises
        InvalidRequest."""
        return agreed({"return_reasoning": self.return_reasoning, "include_reasoning": self.include_reasoning})

    def sampling(
        self, max_tokens: int | None, top_logprobs: int | None, structure: Mapping[str, Any]
    ) -> SamplingParams:
        """Return how tokens are chosen; `structure` is the field that constrains the format, if any. Raises
        InvalidRequest."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            max_tokens=max_tokens,
            stop=self.stop or (),
            include_stop_str_in_output=bool(self.include_stop_str_in_output),
            seed=None if self.seed is None else self.seed % SEEDS,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            max_thinking_tokens=self._thinking_budget(),
            top_logprobs=top_logprobs,
            **structure,
        )

    def _thinking_budget(self) -> int | None:
        thinking, reasoning = self.thinking, self.reasoning
        return agreed(
            {
                "max_thinking_tokens": self.max_thinking_tokens,
                "thinking_token_budget": self.thinking_token_budget,
                "thinking.budget_tokens": thinking.budget_tokens if thinking else None,
                "reasoning.max_tokens": reasoning.max_tokens if reasoning else None,
            }
        )


def _enables(effort: Effort | None) -> bool | None:
    return None if effort is None else effort != "none"


def agreed(given: Mapping[str, V | None]) -> V | None:
    """Return the value that the fields in `given` have, None where none has one; raises InvalidRequest for two that
    contradict each other."""
    values = {path: value for path, value in given.items() if value is not None}
    for path, value in values.items():
        first, expected = next(iter(values.items()))
        if value != expected:
            raise InvalidRequest(f"{first} and {path} contradict each other", param=path)
    return next(iter(values.values()), None)
