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

from autoglm.common.errors import InternalError, InvalidRequest, MeshError
from autoglm.decoder.engine.request import GrammarSpec

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

COMPILED = 32  # grammars kept ready
UNSPOKEN = "\ufdd0"  # no character: no format contains it
# As json.dumps writes it: a model that may add white space where it likes can go on with that for ever.
_NOTHING_FOLLOWS = "NoExtension"  # begins llguidance's message where no token can come next
_NOT_ALLOWED = "doesn't satisfy the grammar"
JSON_STYLE: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class UnusableGrammar(ValueError):
    """A grammar cannot be made; the message is llguidance's and may quote the grammar."""


class EmptyGrammar(UnusableGrammar):
    """No text at all matches a grammar."""


class Grammar:
    """How far one answer is in what it has to match; `param` is the field of the request that asks for it."""

    def __init__(self, matcher: LLMatcher, param: str | None = None) -> None:
        self._matcher, self._param = matcher, param

    def restrict(self, logits: Tensor) -> Tensor:
        """Return `logits` [vocabulary] with −∞ for what cannot follow; raises InvalidRequest when nothing can, or when
        llguidance's limits do not suffice to find out."""
        allowed = _allowed(self._matcher)
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


class Grammars:
    """Makes the grammars of requests for one tokenizer; `stops` are the tokens that end an answer.

    Any thread may ask. The last ones are kept compiled, so that what the servicer has checked costs the engine nothing.
    """

    def __init__(self, tokenizer: Path, stops: Sequence[int]) -> None:
        self._tokenizer = _spelling(tokenizer, stops)
        self._compiled: LRUCache[GrammarSpec, LLMatcher] = LRUCache(COMPILED)
        self._lock = threading.Lock()

    def make(self, spec: GrammarSpec) -> Grammar:
        """Return the grammar of an answer that has not begun; raises UnusableGrammar for a `spec` that is not one or
        that no answer can begin with."""
        with self._lock:
            if (matcher := self._compiled.get(spec)) is None:
                matcher = self._compiled[spec] = self._compile(spec)
            return Grammar(matcher.deep_copy(), spec.param)

    def takes(self, spec: GrammarSpec) -> bool:
        """Return whether `spec` is one that a grammar can be made of."""
        try:
            self.make(spec)
        except UnusableGrammar:
            return False
        return True

    def _compile(self, spec: GrammarSpec) -> LLMatcher:
        try:
            matcher = LLMatcher(self._tokenizer, _lark(spec), log_level=0)
        except ValueError as error:
            raise UnusableGrammar(str(error)) from None
        begun = matcher if matcher.is_error() else _begun(matcher)
        if begun.is_error():
            why = begun.get_error()
            raise (EmptyGrammar if why.startswith(_NOTHING_FOLLOWS) else UnusableGrammar)(why)
        return matcher


def _begun(matcher: LLMatcher) -> LLMatcher:
    """Return a copy of `matcher` after its first token, if only one is possible: llguidance puts most of the work off
    until then, and with it most errors."""
    begun = matcher.deep_copy()
    possible = _allowed(begun).nonzero().flatten().tolist()
    if len(possible) == 1:
        begun.consume_token(possible[0])
    return begun


def _allowed(matcher: LLMatcher) -> Tensor:
    """Return whether each token [vocabulary] can come next."""
    return torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8).bool()


def _stuck(error: str, param: str | None) -> MeshError:
    """Return the error for an answer that llguidance cannot go on with: its grammar was checked for the first token
    alone, so a dead end later in it is only found on the way there."""
    if _NOT_ALLOWED in error:
        return InternalError("the answer's format does not allow the token that was chosen")
    if error.startswith(_NOTHING_FOLLOWS):
        why = "nothing can follow what has been generated so far"
    else:
        why = "it is too complex to be enforced further"
    return InvalidRequest(f"the answer cannot be completed in this format: {why}", param=param)


def _spelling(tokenizer: Path, stops: Sequence[int]) -> LLTokenizer:
    """Return a tokenizer that spells with others what an end token, such as </answer>, or a token that llguidance holds
    to be special would write: inside a format the first would end the answer, and the second is no text there."""
    text = tokenizer.read_text(encoding="utf-8")
    ends = list(stops) or None
    known, read = LLTokenizer(text, eos_token=ends), json.loads(text)
    for token in read["added_tokens"]:
        if token["id"] in stops or known.is_special_token(token["id"]):
            token |= {"special": True, "content": f"{UNSPOKEN}{token['id']}"}
    return LLTokenizer(json.dumps(read), eos_token=ends)


def _lark(spec: GrammarSpec) -> str:
    kind, given = spec.kind, spec.given
    if not isinstance(given, str):
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in given))
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(given, overrides=JSON_STYLE)
    return LLMatcher.grammar_from_regex(given) if kind == "regex" else LLMatcher.grammar_from_lark(given)
