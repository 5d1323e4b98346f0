"""What llguidance makes of a format: a tokenizer, and a matcher that has not begun. Nothing here needs torch, so that a
small process can try a format before this one compiles it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from autoglm.decoder.engine.request import GrammarSpec

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

UNSPOKEN = "\ufdd0"  # no character: no format contains it
# As json.dumps writes it: a model that may add white space where it likes can go on with that for ever.
JSON_STYLE: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# With llguidance's own limits a mask of 128 000 tokens takes up to 7 ms of CPU for formats of agents, and 500 ms for a
# regular expression that is made for it. A state of the lexer takes 1–2 kB, in each answer.
LIMITS = LLParserLimits(step_lexer_fuel=100_000, max_lexer_states=50_000)
_NOTHING_FOLLOWS = "NoExtension"  # begins llguidance's message where no token can come next


class UnusableGrammar(ValueError):
    """A grammar cannot be made; the message is llguidance's and may quote the grammar."""


class EmptyGrammar(UnusableGrammar):
    """No text at all matches a grammar."""


def spelling(tokenizer: Path, stops: Sequence[int]) -> LLTokenizer:
    """Return a tokenizer that spells with others what an end token, such as </answer>, or a token that llguidance holds
    to be special would write: inside a format the first would end the answer, and the second is no text there."""
    read = json.loads(tokenizer.read_text(encoding="utf-8"))
    for token in read["added_tokens"]:
        if token["id"] in stops or token["special"] or _is_in_brackets(token["content"]):
            token |= {"special": True, "content": f"{UNSPOKEN}{token['id']}"}
    return LLTokenizer(json.dumps(read), eos_token=list(stops) or None)


def matcher_of(spec: GrammarSpec, tokenizer: LLTokenizer) -> LLMatcher:
    """Compile `spec`, with the mask of the first token; raises UnusableGrammar for what is not a grammar."""
    try:
        matcher = LLMatcher(tokenizer, _lark(spec), log_level=0, limits=LIMITS)
    except ValueError as error:
        raise UnusableGrammar(str(error)) from None
    if not matcher.is_error():
        matcher.compute_logit_bias()  # the matcher keeps it, and its copies have it too
    _check(matcher)
    return matcher


def begin(matcher: LLMatcher) -> None:
    """Go on to after the first token, if only one is possible: llguidance puts work off until then, and with it some
    errors. Raises UnusableGrammar for those."""
    possible = [token for token, allowed in enumerate(matcher.compute_logit_bias()) if allowed]
    if len(possible) == 1:
        matcher.consume_token(possible[0])
    _check(matcher)


def nothing_follows(error: str) -> bool:
    """Return whether llguidance's message says that no token can come next."""
    return error.startswith(_NOTHING_FOLLOWS)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        why = matcher.get_error()
        raise (EmptyGrammar if nothing_follows(why) else UnusableGrammar)(why)


def _is_in_brackets(content: str) -> bool:
    """Return whether llguidance holds an added token to be special for how it is written."""
    return content.startswith("<") and content.endswith(">")


def _lark(spec: GrammarSpec) -> str:
    kind, given = spec.kind, spec.given
    if not isinstance(given, str):  # a terminal: as a rule each text would be work for the parser, at every token
        return LLMatcher.grammar_from_lark("start: TEXT\nTEXT: " + " | ".join(json.dumps(text) for text in given))
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(given, overrides=JSON_STYLE)
    return LLMatcher.grammar_from_regex(given) if kind == "regex" else LLMatcher.grammar_from_lark(given)
