"""The state of one request inside an engine."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoglm.common.modalities import MediaKind
from autoglm.decoder.engine.request import ChosenToken, PrefillStats, Request, RequestOutput, Thinking

if TYPE_CHECKING:  # the scheduler works without torch
    import torch
    from torch import Tensor

    from autoglm.decoder.engine.grammar import Grammar
    from autoglm.decoder.engine.lora import Adapter
    from autoglm.decoder.engine.prefill_inputs import PrefillInputs


@dataclass(slots=True)
class ThinkingState:
    """How far an answer's reasoning is: whether it is inside it, and how many tokens it has."""

    thinking: Thinking
    inside: bool
    num_tokens: int = 0

    @property
    def must_close(self) -> bool:
        """Return whether the next token has to end the reasoning."""
        budget = self.thinking.budget
        return self.inside and budget is not None and self.num_tokens >= budget

    def advance(self, token: int, first: bool) -> None:
        """Go on to after `token`; only the first token of an answer can open the reasoning."""
        closes = token == self.thinking.closes
        if self.inside and not closes:
            self.num_tokens += 1
        self.inside = (self.inside and not closes) or (first and token == self.thinking.opens)


@dataclass(slots=True, eq=False)
class Sequence:
    """A request from its submission to its end, owned by one engine.

    `output` holds the generated token ids and `keys` the prefix cache's key of each whole block. `num_computed_tokens`
    counts the indices whose keys and values are in `slot`, its slot while it has one, `num_blocks` what it has reserved
    in the cache, `num_cached_tokens` the tokens of the prompt that came from the prefix cache, or that it held when the
    request arrived. `num_tokens_to_read` is what has to be read before the next token can be computed: earlier media,
    and `cached_blocks`, which are not in the slot yet though they count as computed. The rope position of a generated
    token is its index plus `rope_delta`, which is not 0 where media have rows and columns of positions. `num_outputs`
    have gone to the consumer, `num_acknowledged` of them were read. Times are monotonic seconds, 0 before they are
    known.

    The fields from `gates` on belong to the core and the sampler, which set them when the sequence is prefilled.
    """

    request: Request
    output: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    num_computed_tokens: int = 0
    slot: int = 0
    num_blocks: int = 0
    num_cached_tokens: int = 0
    num_tokens_to_read: int = 0
    rope_delta: int = 0
    num_outputs: int = 0
    num_acknowledged: int = 0
    started: float = 0.0
    first_token: float = 0.0
    max_new_tokens: int = field(init=False)
    thinking: ThinkingState | None = field(init=False)
    gates: dict[MediaKind, float] = field(default_factory=dict)
    cached_blocks: "list[Tensor]" = field(default_factory=list)
    inputs: "PrefillInputs | None" = None
    grammar: "Grammar | None" = None
    adapter: "Adapter | None" = None
    generator: "torch.Generator | None" = None
    counts: "Tensor | None" = None

    def __post_init__(self) -> None:
        """Read from the request what every token needs."""
        thinking = self.request.thinking
        self.max_new_tokens = self.request.max_new_tokens
        self.thinking = None if thinking is None else ThinkingState(thinking, thinking.inside)

    @property
    def num_tokens(self) -> int:
        """Return how many tokens have to be computed before the next one can be chosen: the prompt, and all that was
        generated except for the newest token, which the next decode step computes."""
        return len(self.request.prompt.token_ids) + max(0, len(self.output) - 1)

    @property
    def num_tokens_to_prefill(self) -> int:
        """Return how many tokens are left to read and prefill: until it begins, those that the prefix cache did not
        hold."""
        return self.num_tokens_to_read + self.num_tokens - (self.num_computed_tokens or self.num_cached_tokens)

    @property
    def is_backlogged(self) -> bool:
        """Return whether the consumer is too far behind for more tokens."""
        limit = self.request.max_backlog
        return limit is not None and self._backlog >= limit

    @property
    def has_caught_up(self) -> bool:
        """Return whether the consumer has read so much that it is worth while to go on: half of its backlog, as what
        goes on may have to be computed again."""
        return self._backlog <= (self.request.max_backlog or 0) // 2

    @property
    def _backlog(self) -> int:
        return self.num_outputs - self.num_acknowledged

    def append_token(self, token: int) -> None:
        """Add a token that the model chose."""
        self.first_token = self.first_token or time.monotonic()
        self.output.append(token)

    def finish_reason(self, stops: Collection[int]) -> str | None:
        """Return why the answer is over with its newest token, or None; `stops` are the tokens that end it."""
        if self.output[-1] in stops:
            return "stop"
        return "length" if len(self.output) >= self.max_new_tokens else None

    def output_of(self, token: ChosenToken | None, finish: str | Exception | None = None) -> RequestOutput:
        """Return the next output, which tells the consumer of `token` and of the end; see RequestOutput."""
        first = self.num_outputs == 0
        self.num_outputs += 1
        return RequestOutput(self.request.id, token, finish, self._prefill_stats() if first else None)

    def shows(self, finish: str | None) -> bool:
        """Return whether the consumer sees the newest token: one that ends the answer only if the request says so."""
        return finish != "stop" or self.request.sampling.include_stop_str_in_output

    def _prefill_stats(self) -> PrefillStats:
        ended = self.first_token or time.monotonic()
        started = self.started or ended
        queue = started - self.request.arrival_time
        return PrefillStats(ended, queue, ended - started, self.num_cached_tokens, self.gates)
