"""What an answer has to look like, token by token: a JSON Schema, a regular expression, one of some texts, or a Lark
grammar. The automata are llguidance's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from autoglm.common.errors import InternalError, InvalidRequest

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

Kind = Literal["json_schema", "regex", "choice", "grammar"]
# As json.dumps writes it: a model that may add white space where it likes can go on with that for ever.
JSON_STYLE: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """Where one answer stands in what it has to look like: `given`, as it was asked for."""

    def __init__(self, kind: Kind, given: str | Sequence[str], matcher: LLMatcher) -> None:
        self.kind, self.given, self._matcher = kind, given, matcher

    def restrict(self, logits: Tensor) -> Tensor:
        """Return `logits` [vocabulary] with −∞ for what cannot follow; raises InternalError when nothing can."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._check()
        kept = logits[: len(allowed)].masked_fill(~allowed.to(logits.device), float("-inf"))
        return torch.cat([kept, torch.full_like(logits[len(allowed) :], float("-inf"))])

    def accept(self, token: int) -> None:
        """Go on behind `token`; raises InternalError where it cannot stand."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InternalError(f"the answer's format cannot go on: {self._matcher.get_error()}")


class Grammars:
    """Makes the grammars of requests for one tokenizer; `stops` are the tokens that end an answer."""

    def __init__(self, tokenizer: Path, stops: Sequence[int]) -> None:
        self._tokenizer = LLTokenizer(tokenizer.read_text(encoding="utf-8"), eos_token=list(stops) or None)

    def make(self, kind: Kind, given: str | Sequence[str]) -> Grammar:
        """Return the grammar of `given`: the texts of a choice, else the schema, expression or grammar itself.

        Raises InvalidRequest for what is not one.
        """
        try:
            matcher = LLMatcher(self._tokenizer, _lark(kind, given), log_level=0)
        except ValueError as error:
            raise InvalidRequest(f"the answer's {kind} cannot be read: {error}", param=kind) from None
        if matcher.is_error():
            raise InvalidRequest(f"the answer's {kind} cannot be used: {matcher.get_error()}", param=kind)
        return Grammar(kind, given, matcher)


def _lark(kind: Kind, given: str | Sequence[str]) -> str:
    if isinstance(given, str):
        if kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(given, overrides=JSON_STYLE)
        return LLMatcher.grammar_from_regex(given) if kind == "regex" else LLMatcher.grammar_from_lark(given)
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in given))
