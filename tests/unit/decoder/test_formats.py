"""What an answer has to look like, and how long it may be thought about, in the embedded engine."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue

import pytest

from autoglm.decoder.engine.cache import num_blocks
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.matchers import UnusableGrammar
from autoglm.decoder.engine.request import GrammarKind, GrammarSpec, Request, SamplingConfig, Thinking
from autoglm.fusion.compose import Composer
from autoglm.fusion.prompt import PromptMessage

from .engines import CONTEXT, GREEDY, LENGTHS, WIDE, Engines, Outputs, collect, prompts, submit


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory, composer: Composer) -> Grammars:
    path = tmp_path_factory.mktemp("grammars") / "tokenizer.json"
    composer.tokenizer.save(str(path))
    return Grammars(path, [mark(composer, "<|user|>")])


def mark(composer: Composer, text: str) -> int:
    """Return the id of one of the tokenizer's own tokens."""
    token_id = composer.tokenizer.token_to_id(text)
    assert token_id is not None
    return token_id


SCHEMA = {
    "type": "object",
    "properties": {"app": {"enum": ["Camera", "相机"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["app", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("kind", "given", "fits"),
    [
        ("json_schema", json.dumps(SCHEMA), lambda text: {*json.loads(text)} == {"app", "n"}),
        ("regex", r"[0-9]{3}-[a-f]+x", lambda text: re.fullmatch(r"[0-9]{3}-[a-f]+x", text)),
        ("choice", ('say "yes"', "不"), lambda text: text in ('say "yes"', "不")),
        ("grammar", 'start: "a" ("b" | "c")~2 "!"', lambda text: re.fullmatch("a[bc]{2}!", text)),
    ],
)
def test_an_answer_keeps_to_its_grammar_and_nobody_else_does(
    engines: Engines,
    composer: Composer,
    expected: list[list[int]],
    grammars: Grammars,
    kind: GrammarKind,
    given: str | tuple[str, ...],
    fits: Callable[[str], object],
) -> None:
    """Even where the cache is full and everybody is put back now and then."""
    engine = engines(replace(WIDE, num_blocks=num_blocks(CONTEXT)), [mark(composer, "<|user|>")], grammars)
    _, free = submit(engine, prompts(composer)[3], replace(GREEDY, max_tokens=LENGTHS[3]))
    for temperature in (0.0, 1.0):
        outputs: Outputs = SimpleQueue()
        sampling = SamplingConfig(temperature=temperature, seed=1, max_tokens=200)
        request = Request(prompts(composer)[1], sampling, CONTEXT, grammar=GrammarSpec(kind, given))
        engine.submit(request, outputs.put)
        tokens, end = collect(outputs)
        assert fits(composer.tokenizer.decode(tokens))
        assert end == "stop"
    assert collect(free)[0] == expected[3]


@pytest.mark.parametrize(
    ("kind", "given"),
    [("json_schema", "[1"), ("json_schema", '{"type": "nonsense"}'), ("regex", "[a"), ("grammar", "start: b")],
)
def test_what_is_no_grammar_is_unusable(grammars: Grammars, kind: GrammarKind, given: str) -> None:
    with pytest.raises(UnusableGrammar):
        grammars.make(GrammarSpec(kind, given))


@pytest.mark.parametrize("echoed", [True, False])
def test_reasoning_ends_with_its_budget_and_the_grammar_begins(
    engines: Engines, composer: Composer, grammars: Grammars, echoed: bool
) -> None:
    """Whether the template or the model itself opened it."""
    opens, closes, ends = (mark(composer, text) for text in ("<think>", "</think>", "<|user|>"))
    engine, prompt = (
        engines(stops=[ends], grammars=grammars),
        composer.compose([PromptMessage("user", ("Hi",))], True if echoed else None),
    )
    bias = {closes: -100.0} if echoed else {closes: -100.0, opens: 100.0}
    thinking = Thinking(opens, closes, inside=prompt.echo == "<think>", budget=7)
    outputs: Outputs = SimpleQueue()
    sampling = SamplingConfig(temperature=0, logit_bias=bias, max_tokens=60)
    grammar = GrammarSpec("choice", ("Camera",)) if echoed else None
    engine.submit(Request(prompt, sampling, CONTEXT, thinking=thinking, grammar=grammar), outputs.put)
    tokens, end = collect(outputs)
    start = 0 if echoed else 1
    assert tokens[:start] == [opens][:start]
    assert tokens.index(closes) == start + 7
    if echoed:
        assert (composer.tokenizer.decode(tokens[8:]), end) == ("Camera", "stop")
