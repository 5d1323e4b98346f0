"""What an answer has to match, token by token: a JSON Schema, a regular expression, one of some texts, or a Lark
grammar. The automata are llguidance's."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from autoglm.common.errors import InternalError, InvalidRequest
from autoglm.decoder.engine.closed_objects import closed
from autoglm.decoder.engine.request import GrammarSpec

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

COMPILED = 32  # grammars kept ready
# As json.dumps writes it: a model that may add white space where it likes can go on with that for ever.
JSON_STYLE: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """How far one answer is in what it has to match."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def restrict(self, logits: Tensor) -> Tensor:
        """Return `logits` [vocabulary] with −∞ for what cannot follow; raises InternalError when nothing can."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._check()
        kept = logits[: len(allowed)].masked_fill(~allowed.to(logits.device), float("-inf"))
        return torch.cat([kept, torch.full_like(logits[len(allowed) :], float("-inf"))])

    def accept(self, token: int) -> None:
        """Go on to after `token`; raises InternalError if it is not allowed here."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InternalError(f"the answer's format cannot go on: {self._matcher.get_error()}")


class Grammars:
    """Makes the grammars of requests for one tokenizer; `stops` are the tokens that end an answer.

    Any thread may ask. The last ones are kept compiled, so that what the servicer has checked costs the engine nothing.
    """

    def __init__(self, tokenizer: Path, stops: Sequence[int]) -> None:
        self._tokenizer = LLTokenizer(tokenizer.read_text(encoding="utf-8"), eos_token=list(stops) or None)
        self._compiled: LRUCache[GrammarSpec, LLMatcher] = LRUCache(COMPILED)
        self._lock = threading.Lock()

    def make(self, spec: GrammarSpec) -> Grammar:
        """Return the grammar of an answer that has not begun; raises InvalidRequest for a `spec` that is not one."""
        with self._lock:
            if (matcher := self._compiled.get(spec)) is None:
                matcher = self._compiled[spec] = self._compile(spec)
            return Grammar(matcher.deep_copy())

    def _compile(self, spec: GrammarSpec) -> LLMatcher:
        kind = spec.kind
        try:
            matcher = LLMatcher(self._tokenizer, _lark(spec), log_level=0)
        except ValueError as error:
            raise InvalidRequest(f"the answer's {kind} cannot be read: {error}", param=kind) from None
        if matcher.is_error():
            raise InvalidRequest(f"the answer's {kind} cannot be used: {matcher.get_error()}", param=kind)
        return matcher


def _lark(spec: GrammarSpec) -> str:
    kind, given = spec.kind, spec.given
    if not isinstance(given, str):
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in given))
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(closed(given), overrides=JSON_STYLE)
    return LLMatcher.grammar_from_regex(given) if kind == "regex" else LLMatcher.grammar_from_lark(given)
