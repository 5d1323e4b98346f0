"""What goes into an engine and what comes out of it, as plain data that can be pickled: the engine's core could run in
a process of its own."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal

from autoglm.common.modalities import MediaKind
from autoglm.common.tracing import RequestIds, current

if TYPE_CHECKING:  # the scheduler works without torch
    from autoglm.fusion.prompt import Prompt

GrammarKind = Literal["json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How tokens are chosen; the defaults are OpenAI's. `top_logprobs` None means no log probabilities."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Thinking:
    """How an answer reasons: between the tokens `opens` and `closes`, and whether it is `inside` already when it
    begins. After `budget` tokens of reasoning only `closes` can follow (None: no limit)."""

    opens: int
    closes: int
    inside: bool
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer has to match: a JSON Schema, a regular expression, one of several texts, or a Lark grammar.
    `param` is the field of the request that asks for it, which errors name."""

    kind: GrammarKind
    given: str | tuple[str, ...]
    param: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """The LoRA adapter that answers; `revision` tells it from any other, an earlier one of its name included."""

    name: str
    revision: str


_ids = count()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to answer it.

    `max_model_len` bounds prompt and answer together. `salt` keeps the cached prefixes of one tenant from every other.
    `grammar` is what the answer after the reasoning has to match. Backpressure: with `max_backlog` the engine pauses
    the request while so many of its outputs have not been acknowledged; None is a consumer that always keeps up.
    `arrival_time` is in monotonic seconds, which all processes of a machine share. `ids` are for the log.
    """

    prompt: "Prompt"
    sampling: SamplingConfig
    max_model_len: int
    salt: bytes = b""
    thinking: Thinking | None = None
    grammar: GrammarSpec | None = None
    adapter: AdapterRef | None = None
    max_backlog: int | None = None
    arrival_time: float = field(default_factory=time.monotonic)
    ids: RequestIds | None = field(default_factory=current)
    id: int = field(default_factory=_ids.__next__)

    @property
    def max_new_tokens(self) -> int:
        """Return the most tokens that the answer may have."""
        left, asked = self.max_model_len - len(self.prompt.token_ids), self.sampling.max_tokens
        return left if asked is None else min(left, asked)

    @property
    def cache_salt(self) -> bytes:
        """Return what the keys of its blocks begin with: tenants share no prefix, and neither do adapters."""
        return self.salt if self.adapter is None else self.salt + b"\0" + self.adapter.revision.encode()


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token and, if asked for, its log probability and the likeliest tokens, (token, log probability) each."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PrefillStats:
    """What happened up to a request's first token, which came at `ended` (monotonic seconds): seconds in the queue and
    in the prefill, tokens of the prompt found in the prefix cache, and mean gates of the asked text by modality."""

    ended: float
    queue: float
    prefill: float
    num_cached_tokens: int
    gates: Mapping[MediaKind, float]


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step adds to a request's answer. `finish` is set on the last output: "stop" (its end token is an output
    only with `include_stop_str_in_output`), "length", or the exception that ended this request alone; `prefill` is set
    on the first."""

    request_id: int
    token: ChosenToken | None = None
    finish: str | Exception | None = None
    prefill: PrefillStats | None = None
