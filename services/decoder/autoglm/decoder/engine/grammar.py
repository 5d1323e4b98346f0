"""What an answer has to match, token by token: a JSON Schema, a regular expression, one of some texts, or a Lark
grammar. The automata are llguidance's."""

import threading
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from cachetools import LRUCache
from llguidance import LLMatcher
from torch import Tensor

from autoglm.common.errors import InternalError, InvalidRequest, MeshError
from autoglm.decoder.engine.deep_stack import STACK, with_stack
from autoglm.decoder.engine.masks import MaskThread, SlowMask
from autoglm.decoder.engine.matchers import matcher_of, nothing_follows, spelling
from autoglm.decoder.engine.request import GrammarSpec

COMPILED = 32  # grammars kept ready
MAX_SLOW = 4  # masks that may be left behind before no more grammars of clients are taken
_NOT_ALLOWED = "doesn't satisfy the grammar"


class Grammar:
    """How far one answer is in what it has to match; `param` is the field of the request that asks for it, and `masks`
    computes its masks if they can take long."""

    def __init__(self, matcher: LLMatcher, masks: MaskThread | None = None, param: str | None = None) -> None:
        self._matcher, self._masks, self._param = matcher, masks, param

    def restrict(self, logits: Tensor) -> Tensor:
        """Return `logits` [vocabulary] with −∞ for what cannot follow; raises InvalidRequest when nothing can, or when
        llguidance's limits or the time for a mask do not suffice to find out."""
        try:
            mask = self._masks.compute(self._matcher) if self._masks else self._matcher.compute_logit_bias()
        except SlowMask:
            raise _too_complex(self._param) from None
        allowed = torch.frombuffer(bytearray(mask), dtype=torch.uint8).bool()
        self._check()
        kept = logits[: len(allowed)].masked_fill(~allowed.to(logits.device), float("-inf"))
        return torch.cat([kept, torch.full_like(logits[len(allowed) :], float("-inf"))])

    def accept(self, token: int) -> None:
        """Go on to after `token`. Raises InternalError if it is not allowed here, InvalidRequest when llguidance's
        limits do not suffice for what follows."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _stuck(self._matcher.get_error(), self._param)


class CompiledGrammar:
    """A grammar that any number of answers can begin with."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher


class Grammars:
    """Makes the grammars of requests for one tokenizer; `stops` are the tokens that end an answer.

    Any thread may ask. The last ones are kept compiled, and so is every one that somebody holds: the engine finds what
    the servicer has compiled, and waits for no compilation.
    """

    def __init__(self, tokenizer: Path, stops: Sequence[int]) -> None:
        self._tokenizer, self._masks = spelling(tokenizer, stops), MaskThread()
        self._recent: LRUCache[GrammarSpec, CompiledGrammar] = LRUCache(COMPILED)
        self._held: WeakValueDictionary[GrammarSpec, CompiledGrammar] = WeakValueDictionary()
        self._lock = threading.Lock()  # nobody compiles with it

    @property
    def is_busy(self) -> bool:
        """Whether so many masks have been left behind that only formats whose masks are known to be fast are taken."""
        return self._masks.num_left >= MAX_SLOW

    def make(self, spec: GrammarSpec) -> Grammar:
        """Return the grammar of an answer that has not begun; see `compiled` for what is raised."""
        may_be_ambiguous = spec.kind == "grammar"  # for all others the limits of llguidance suffice
        return Grammar(self.compiled(spec).matcher.deep_copy(), self._masks if may_be_ambiguous else None, spec.param)

    def compiled(self, spec: GrammarSpec) -> CompiledGrammar:
        """Return a grammar, which stays compiled as long as somebody holds it.

        Raises UnusableGrammar for a `spec` that is not one or that no answer can begin with. What a client asks for is
        tried elsewhere first: here it could end the process.
        """
        if (found := self._find(spec)) is None:
            # The stack is larger than that of the trial, so that what passed there does not crash here.
            found = CompiledGrammar(with_stack(2 * STACK, lambda: matcher_of(spec, self._tokenizer)))
            with self._lock:
                self._recent[spec] = self._held[spec] = found
        return found

    def _find(self, spec: GrammarSpec) -> CompiledGrammar | None:
        with self._lock:
            found = self._recent.get(spec) or self._held.get(spec)
            if found is not None:
                self._recent[spec] = found
            return found


def _stuck(error: str, param: str | None) -> MeshError:
    """Return the error for an answer that llguidance cannot go on with: its grammar was checked for the first token
    alone, so a dead end later in it is only found on the way there."""
    if _NOT_ALLOWED in error:
        return InternalError("the answer's format does not allow the token that was chosen")
    if nothing_follows(error):
        return _incomplete("nothing can follow what has been generated so far", param)
    return _too_complex(param)


def _too_complex(param: str | None) -> InvalidRequest:
    return _incomplete("it is too complex to be enforced further", param)


def _incomplete(why: str, param: str | None) -> InvalidRequest:
    return InvalidRequest(f"the answer cannot be completed in this format: {why}", param=param)
