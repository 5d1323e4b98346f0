"""Formats that crash llguidance or keep it busy: their sender alone is told, and everybody else is answered."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import psutil
import pytest

from autoglm.common.bundle import Bundle, default_bundle
from autoglm.common.deadlines import Deadline
from autoglm.common.errors import DeadlineExceeded, InvalidRequest, RateLimited
from autoglm.decoder import trial_process, trials
from autoglm.decoder.engine import grammar
from autoglm.decoder.engine.grammar import COMPILED, Grammars
from autoglm.decoder.engine.matchers import spelling
from autoglm.decoder.engine.request import GrammarSpec, Request
from autoglm.decoder.formats import Formats
from autoglm.decoder.model import DecoderModel
from autoglm.decoder.servicer import DecoderServicer
from autoglm.decoder.settings import DecoderSettings
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import (
    ROLE_USER,
    TOOL_CHOICE_MODE_REQUIRED,
    Function,
    SamplingParams,
    TextChoice,
    Tool,
    ToolChoice,
)

from ...waiting import eventually
from .engines import CONTEXT, GREEDY, LENGTHS, WIDE, Engines, Outputs, collect, prompts, submit

MARKS = GCMA_LAYOUT.tool_call
PATH = default_bundle() / "decoder" / "tokenizer.json"
LONG = 5000  # links of a chain that no stack holds


class Unused:
    """A context on which no error may be set."""

    def set_code(self, code: object) -> None:
        raise AssertionError(code)

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, metadata: object) -> None: ...


@pytest.fixture(scope="module")
def formats() -> Formats:
    return Formats(PATH, [2585, 2604], MARKS, lambda: False)


def regex(text: str) -> DecoderServiceGenerateRequest:
    return DecoderServiceGenerateRequest(sampling=SamplingParams(regex=text))


def asked(schema: Any) -> SamplingParams:
    return SamplingParams(json_schema=json.dumps(schema))


def chained(link: Callable[[str], Any], names: int = LONG) -> SamplingParams:
    """Return a schema in which every definition leads to the next."""
    chain = {f"n{n}": link(f"#/$defs/n{n + 1}") for n in range(names)}
    return asked({"$ref": "#/$defs/n0", "$defs": {**chain, f"n{names}": {"type": "null"}}})


def nested(link: Callable[[Any], Any], depth: int) -> SamplingParams:
    schema: Any = {"type": "boolean"}
    for _ in range(depth):
        schema = link(schema)
    return asked(schema)


def ambiguous(rules: int) -> str:
    """Return rules of a grammar in which every text can be read in ever more ways; `many` is the first."""
    names = [f"m{n}" for n in range(rules)]
    return "\n".join([f"many: {' | '.join(names)}", *(f'{name}: many many | "q" | "r"' for name in names)])


def tools(count: int, properties: int) -> DecoderServiceGenerateRequest:
    kinds = ("string", "number", "boolean", "array")
    parameters = json.dumps({"properties": {f"argument_{n}": {"type": kinds[n % 4]} for n in range(properties)}})
    return DecoderServiceGenerateRequest(
        tools=[Tool(function=Function(name=f"function_{n}", parameters=parameters)) for n in range(count)],
        tool_choice=ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED),
    )


@contextmanager
def stopped(formats: Formats) -> Iterator[None]:
    """Let no new format be tried meanwhile, as if the trials took for ever."""
    os.killpg(formats.trials.pid, signal.SIGSTOP)  # the child that is ready for the next one, too
    try:
        yield
    finally:
        os.killpg(formats.trials.pid, signal.SIGCONT)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(
            grammar="\n".join(f'r{n}: "-" r{n + 1} | "."' for n in range(LONG)) + f'\nr{LONG}: "!"\nstart: r0'
        ),
        SamplingParams(grammar="start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(LONG)) + f'\nr{LONG}: "!"'),
        SamplingParams(grammar="start: R0\n" + "\n".join(f"R{n}: R{n + 1}" for n in range(LONG)) + f"\nR{LONG}: /!/"),
        SamplingParams(grammar=f'start: "q" many\n{ambiguous(400)}'),
        SamplingParams(grammar=f"start: {'(' * 60_000}/a/{')' * 60_000}"),
        SamplingParams(regex="((z{900}){900}){900}"),
        SamplingParams(regex="(.?[d-k]?)" * 3000),
        chained(lambda following: {"$ref": following}),
        chained(lambda following: {"properties": {"x": {"$ref": following}}}, 3000),
        chained(lambda following: {"type": "array", "items": {"$ref": following}}, 3000),
        chained(lambda following: {"anyOf": [{"$ref": following}, {"type": "null"}]}, 3000),
    ],
)
def test_what_takes_too_much_is_refused(formats: Formats, sampling: SamplingParams) -> None:
    trying = formats.trials.pid
    with pytest.raises((InvalidRequest, RateLimited)) as refused:  # the second on a machine too busy to find out
        formats.read(DecoderServiceGenerateRequest(sampling=sampling))
    assert refused.value.param == f"sampling.{sampling.WhichOneof('structured_output')}"
    assert formats.trials.pid == trying
    assert formats.read(regex("the next one"))


@pytest.mark.parametrize(
    "message",
    [
        DecoderServiceGenerateRequest(sampling=nested(lambda inner: {"type": "array", "items": inner}, 90)),
        DecoderServiceGenerateRequest(sampling=nested(lambda inner: {"properties": {"p": inner}}, 45)),
        DecoderServiceGenerateRequest(sampling=nested(lambda inner: {"allOf": [inner]}, 45)),
        DecoderServiceGenerateRequest(sampling=nested(lambda inner: {"anyOf": [inner, {"const": 1}]}, 45)),
        DecoderServiceGenerateRequest(sampling=chained(lambda following: {"$ref": following}, 100)),
        DecoderServiceGenerateRequest(sampling=asked({"enum": [f"value {n}" for n in range(1000)]})),
        DecoderServiceGenerateRequest(
            sampling=SamplingParams(choice=TextChoice(texts=[f"text {n}" for n in range(4096)]))
        ),
        tools(32, 10),
    ],
)
def test_what_is_large_and_takes_little_is_taken(formats: Formats, message: DecoderServiceGenerateRequest) -> None:
    assert formats.read(message) is not None


def test_many_choices_are_told_apart() -> None:
    """Texts that begin others, and as many as the parser alone could not hold."""
    texts = (*(f"{n}" for n in range(5000)), "12 and more")
    compiled = Grammars(PATH, [2585, 2604]).compiled(GrammarSpec("choice", texts))
    spell = spelling(PATH, [2585, 2604])
    for text, fits in (("12", True), ("1234", True), ("12 and more", True), ("12 and", False), ("5000", False)):
        matcher = compiled.matcher.deep_copy()
        assert (matcher.consume_tokens(spell.tokenize_str(text)) and matcher.is_accepting()) == fits, text


# --- what goes on meanwhile -----------------------------------------------------------------------------


def test_what_is_held_stays_compiled() -> None:
    """However many others come: the engine waits for no compilation."""
    grammars, first = Grammars(PATH, [2585, 2604]), GrammarSpec("regex", "first")
    held = grammars.compiled(first)
    for n in range(COMPILED + 1):
        grammars.compiled(GrammarSpec("regex", f"other {n}"))
    assert grammars.compiled(first) is held
    assert grammars.make(first)


def test_a_known_format_is_not_tried_again(formats: Formats) -> None:
    spec = formats.read(regex("known"))
    with stopped(formats):
        assert formats.read(regex("known")) is spec
        with pytest.raises(DeadlineExceeded):
            formats.read(regex("new"), Deadline.after(0.2))


async def test_an_answer_goes_on_while_a_format_is_tried() -> None:
    settings = DecoderSettings.model_validate({"device": "cpu", "max_num_seqs": 2})
    servicer = DecoderServicer(DecoderModel.load(Bundle.open(default_bundle()), settings))

    async def said(sampling: SamplingParams) -> str:
        turn = DecoderMessage(role=ROLE_USER, parts=[DecoderPart(text="hi")])
        request = DecoderServiceGenerateRequest(messages=[turn], sampling=sampling)
        return "".join([message.text async for message in servicer.generate(request, Unused())])

    known = SamplingParams(regex="known", max_tokens=8)
    assert await said(known) == "known"
    with stopped(servicer.model.formats):
        waits = asyncio.create_task(said(SamplingParams(regex="anew", max_tokens=8)))
        assert await said(SamplingParams(max_tokens=4))
        assert await said(known) == "known"
        assert not waits.done()
    assert await waits == "anew"
    servicer.engine.close()


def test_a_mask_that_takes_too_long_ends_its_answer_alone(
    engines: Engines,
    composer: Composer,
    expected: list[list[int]],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    composer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    end = composer.tokenizer.token_to_id("<|user|>")
    assert end is not None
    grammars = Grammars(tmp_path / "tokenizer.json", [end])
    formats = Formats(tmp_path / "tokenizer.json", [end], MARKS, lambda: grammars.is_busy)
    sampling = SamplingParams(grammar=f'start: ("q" | "r") ("q" | "r") many\n{ambiguous(250)}')
    message = DecoderServiceGenerateRequest(sampling=sampling)
    spec = formats.read(message)
    engine = engines(WIDE, [end], grammars)
    _, free = submit(engine, prompts(composer)[3], replace(GREEDY, max_tokens=LENGTHS[3]))
    outputs: Outputs = SimpleQueue()
    engine.submit(Request(prompts(composer)[1], replace(GREEDY, max_tokens=200), CONTEXT, grammar=spec), outputs.put)
    tokens, finish = collect(outputs)
    assert tokens
    assert isinstance(finish, InvalidRequest)
    assert finish.param == "sampling.grammar"
    assert collect(free)[0] == expected[3]
    monkeypatch.setattr(grammar, "MAX_SLOW", 0)  # as with that many masks at work
    with pytest.raises(RateLimited):
        formats.read(message)


def test_a_trial_ends_with_its_request(formats: Formats) -> None:
    with stopped(formats), pytest.raises(DeadlineExceeded):
        formats.read(regex("is not tried in time"), Deadline.after(0.2))


def test_only_so_many_are_tried_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "MAX_TRIALS", 0)  # as with that many under way
    with pytest.raises(RateLimited):
        Formats(PATH, [2585], MARKS, lambda: False).read(regex("one too many"), Deadline.after(0.0))


# --- the process that forks -----------------------------------------------------------------------------


def test_the_process_that_tries_is_started_again() -> None:
    formats = Formats(PATH, [2585], MARKS, lambda: False)
    assert formats.read(regex("before"))
    ended = formats.trials.pid
    os.kill(ended, signal.SIGKILL)
    assert formats.read(regex("after"))  # by the child that was ready, if there was one
    assert formats.read(regex("later"))
    assert formats.trials.pid != ended


def test_the_process_that_tries_ends_with_the_decoder() -> None:
    """Even if that is killed, and while a format is being tried."""
    program = (
        "import sys, threading; from pathlib import Path; from autoglm.decoder.formats import Formats\n"
        "from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest as Request\n"
        "from autoglm.v1.generation_pb2 import SamplingParams\n"
        "formats = Formats(Path(sys.argv[1]), [2585], ('<a>', '</a>'), lambda: False)\n"
        "formats.read(Request(sampling=SamplingParams(regex='a')))\n"
        "request = Request(sampling=SamplingParams(grammar=sys.argv[2]))\n"
        "threading.Thread(target=formats.read, args=[request]).start()\n"
        "print(formats.trials.pid, flush=True)"
    )
    slow = f'start: "q" many\n{ambiguous(400)}'
    with subprocess.Popen([sys.executable, "-c", program, str(PATH), slow], stdout=subprocess.PIPE) as decoder:
        assert decoder.stdout is not None
        process = psutil.Process(int(decoder.stdout.readline()))
        # One that tries, and one that is ready for the next.
        eventually(lambda: len(process.children()) > 1, "a format is being tried")
        children = process.children()
        decoder.kill()
    _, alive = psutil.wait_procs([process, *children], timeout=60)
    assert not alive


def test_a_format_is_not_told_as_too_complex_when_the_machine_is_busy(
    formats: Formats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_process, "SECONDS", 0.0)  # as if its time had passed before its CPU time
    with pytest.raises(RateLimited):
        formats.read(regex("((u{900}){900}){900}"))


def test_trials_give_way_to_answers(formats: Formats) -> None:
    """In a session of its own it would get as much of the CPU as the decoder, whatever its priority."""
    trying = formats.trials.pid
    eventually(psutil.Process(trying).children, "a child is ready")
    children = psutil.Process(trying).children()
    assert {os.getsid(trying), *(os.getsid(child.pid) for child in children)} == {os.getsid(0)}
    usual = psutil.Process().nice()
    assert all(process.nice() > usual for process in (psutil.Process(trying), *children))


def test_a_signal_at_the_terminal_is_not_for_trials(formats: Formats) -> None:
    assert os.getpgid(formats.trials.pid) == formats.trials.pid != os.getpgid(0)


def test_a_child_that_dies_before_its_trial_harms_none() -> None:
    formats = Formats(PATH, [2585], MARKS, lambda: False)
    assert formats.read(regex("before"))
    trying = psutil.Process(formats.trials.pid)
    eventually(trying.children, "a child is ready")
    trying.children()[-1].kill()
    assert formats.read(regex("after"))


def test_the_process_that_tries_is_small(formats: Formats) -> None:
    """It has llguidance and the tokenizer, and no torch."""
    assert formats.read(regex("it is up"))
    process = psutil.Process(formats.trials.pid)
    assert not [mapped.path for mapped in process.memory_maps() if "torch" in mapped.path]
    assert process.num_threads() == 1
