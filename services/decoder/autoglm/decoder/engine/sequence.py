"""One request inside the engine: what it asks, where it stands, and how its answer gets out."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoglm.common.modalities import MediaKind
from autoglm.decoder.engine.grammar import Grammar
from autoglm.decoder.engine.lora import Adapter
from autoglm.fusion.prompt import Prompt

logger = logging.getLogger("autoglm.decoder")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; the defaults are OpenAI's. `top_logprobs` None means no log probabilities."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token with, if asked for, its log probability and its likeliest rivals, (token, log probability) each."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Why generation ended: "stop", "length", or an exception that ended this request alone."""

    reason: str | Exception


@dataclass(slots=True)
class Thinking:
    """Whether a sequence is inside its reasoning, between the tokens `opens` and `closes`, and how much of it may come:
    behind `budget` tokens only `closes` can follow (None: as much as it likes)."""

    opens: int
    closes: int
    inside: bool
    budget: int | None = None
    thoughts: int = 0

    @property
    def over(self) -> bool:
        """Whether the reasoning has to end with the next token."""
        return self.inside and self.budget is not None and self.thoughts >= self.budget

    def note(self, token: int, first: bool) -> None:
        """Go on behind `token`; only the first token of an answer can open the reasoning."""
        if self.inside and token != self.closes:
            self.thoughts += 1
        self.inside = (self.inside and token != self.closes) or (first and token == self.opens)


Sink = Callable[[Chosen | Finished], None]


def never() -> bool:
    """Be a consumer that always keeps up."""
    return False


@dataclass(slots=True, eq=False)
class Sequence:
    """A request from submit to finish. Owned by the engine's thread once submitted.

    `salt` keeps the cached prefixes of one tenant from every other; `full` tells that the consumer does not keep up;
    `grammar` is what the answer behind the reasoning has to look like.
    `length` counts the positions whose keys and values stand in the sequence's slot, `blocks` what it holds of the
    cache, `cached` the tokens of the prompt that came from the prefix cache. Times are monotonic seconds.
    """

    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    sink: Sink
    generator: torch.Generator
    salt: bytes = b""
    full: Callable[[], bool] = never
    thinking: Thinking | None = None
    grammar: Grammar | None = None
    adapter: Adapter | None = None
    output: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    inputs: Tensor | None = None
    length: int = 0
    blocks: int = 0
    cached: int = 0
    gates: dict[MediaKind, float] = field(default_factory=dict)
    counts: Tensor | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    aborted: bool = False

    @classmethod
    def start(
        cls,
        prompt: Prompt,
        sampling: Sampling,
        room: int,
        sink: Sink,
        salt: bytes = b"",
        full: Callable[[], bool] = never,
        thinking: Thinking | None = None,
        grammar: Grammar | None = None,
        adapter: Adapter | None = None,
    ) -> "Sequence":
        """Return a waiting sequence that may generate up to `room` tokens."""
        generator = torch.Generator()
        generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed % 2**63)
        most = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        return cls(prompt, sampling, most, sink, generator, salt, full, thinking, grammar, adapter)

    @property
    def origin(self) -> bytes:
        """Return what the keys of its blocks begin with: nothing is shared across tenants, or across adapters."""
        return self.salt if self.adapter is None else self.salt + b"\0" + self.adapter.revision.encode()

    def take(self, token: int) -> None:
        """Note that the model chose `token`."""
        self.first_token = self.first_token or time.monotonic()
        self.output.append(token)

    def tell(self, chosen: Chosen, stops: Collection[int]) -> str:
        """Pass the newest token on; returns why the answer is over with it ("stop" is said to nobody), or ""."""
        if chosen.token_id in stops:
            return "stop"
        self.sink(chosen)
        return "length" if len(self.output) >= self.max_tokens else ""

    def end(self, reason: str | Exception) -> None:
        """Tell the consumer why the answer is over; one that is gone harms nobody else."""
        try:
            self.sink(Finished(reason))
        except Exception:
            logger.exception("nobody takes the end of a sequence")

    @property
    def known(self) -> int:
        """Return how many tokens have to be read before the next one can be chosen: the prompt, and all that was
        generated but the newest, which the next pass reads."""
        return len(self.prompt.token_ids) + max(0, len(self.output) - 1)
