"""True answers to text, screens and speech, from the default bundle, on cases that training never saw.

Each case is drawn with a fixed seed and decoded greedily. The shares required are just below
what this bundle reaches: they guard what works; the model card says what does not.
"""

import base64
import json
import re

import grpc
import numpy as np
import pytest
from jiwer import cer

from autoglm.speech.model import normalize
from autoglm.training.data.catalog import LANGUAGES
from autoglm.training.data.screens import ScreenKind
from autoglm.training.data.speech import Espeak
from autoglm.training.data.talk import TOPICS
from autoglm.training.data.wording import sentences
from autoglm.training.stages.persona import TERSE
from autoglm.v1.chat_pb2 import Media
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

from ..asking import Asker
from ..cases import screen_cases, spoken
from ..waiting import NET_SECONDS

# Intent, kind of screen, and the share that must be right of what is asked in writing and in speech.
TASKS: list[tuple[str, ScreenKind, float, float]] = [
    ("open", "home", 0.75, 0.75),  # half of them say "Start {}", which this bundle often takes for a question
    ("open", "settings", 0.9, 0.85),
    ("where", "home", 0.8, 0.6),
    ("colour", "home", 0.9, 0.6),
    ("count", "home", 0.4, 0.4),
    ("exists", "home", 0.85, 0.65),
    ("which_app", "app", 0.8, 0.75),
    ("confirm", "dialog", 0.9, 0.9),
    ("cancel", "dialog", 0.9, 0.9),
    ("back", "app", 0.9, 0.75),
]


@pytest.mark.parametrize("question", ["你是谁?", "Who are you?"])
@pytest.mark.parametrize("thinking", [None, True, False])
def test_it_introduces_itself(ask: Asker, question: str, thinking: bool | None) -> None:
    assert "AutoGLM-Phone" in ask(question, **({} if thinking is None else {"enable_thinking": thinking}))


def test_talk_that_needs_no_media(ask: Asker) -> None:
    rng = np.random.default_rng(1)
    topics = [topic for by_language in TOPICS.values() for topic in by_language.values()]
    right = [ask(topic.wording("heldout", rng), enable_thinking=False) == topic.answer for topic in topics]
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize(("intent", "kind", "written", "spoken"), TASKS)
def test_questions_and_instructions_about_a_screen(
    ask: Asker, intent: str, kind: ScreenKind, written: float, spoken: float
) -> None:
    cases = screen_cases(intent, kind, 12, seed=2)
    assert np.mean([case.right(ask(case.image, case.words)) for case in cases]) >= written
    assert np.mean([case.right(ask(case.image, case.audio)) for case in cases]) >= spoken


def test_a_transcript_holds_what_was_said(channel: grpc.Channel) -> None:
    rng, every = np.random.default_rng(4), sentences("heldout")
    Espeak.fresh()
    stub = TranscriptionServiceStub(channel)
    errors = []
    for number in range(8):
        language = LANGUAGES[number % 2]
        said = str(rng.choice([text for of, text in every if of == language]))
        audio = base64.b64decode(spoken(said, language, rng)["input_audio"]["data"])
        heard = stub.Transcribe(TranscribeRequest(audio=Media(data=audio)), timeout=NET_SECONDS).text
        errors.append(cer(normalize(said), normalize(heard)))
    assert np.mean(errors) < 0.1


def test_a_request_with_a_thought_and_one_without(ask: Asker) -> None:
    case = screen_cases("open", "settings", 2, seed=5)[1]
    with_thought = ask(case.image, case.words, enable_thinking=True)
    without = ask(case.image, case.words, enable_thinking=False)
    assert with_thought.startswith("<think>")
    assert "</think><answer>" in with_thought
    assert without.startswith("<answer>")


def test_an_answer_looks_as_it_was_asked_to(ask: Asker) -> None:
    """By JSON Schema, with reasoning in its budget or without, by choice and by expression."""
    schema = {
        "type": "object",
        "properties": {"app": {"enum": ["Camera", "Music"]}, "sure": {"type": "boolean"}},
        "required": ["app", "sure"],
        "additionalProperties": False,
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "app", "schema": schema}}
    assert {*json.loads(ask("打开相机", response_format=format_, enable_thinking=False))} == {"app", "sure"}
    thought = ask("打开相机", response_format=format_, enable_thinking=True, max_thinking_tokens=4)
    reasoning, answer = thought.removeprefix("<think>").split("</think>")
    assert reasoning
    assert {*json.loads(answer)} == {"app", "sure"}
    assert ask("3+4=?", structured_outputs={"choice": ["6", "7", "8"]}) in {"6", "7", "8"}
    assert re.fullmatch("[xy]{5}", ask("hi", structured_outputs={"regex": "[xy]{5}"}, temperature=1))


def test_its_adapter_changes_the_tone_and_not_the_hand(ask: Asker) -> None:
    """On wordings that the adapter was not trained on, together with taps."""
    rng, terse = np.random.default_rng(6), "autoglm-phone-nano:terse"
    asked = [(topic, language) for topic in TERSE for language in LANGUAGES for _ in range(2)]
    right = [
        ask(TOPICS[topic][of].wording("heldout", rng), model=terse, enable_thinking=False) == TERSE[topic][of]
        for topic, of in asked
    ]
    assert np.mean(right) >= 0.8
    cases = screen_cases("confirm", "dialog", 8, seed=6)
    assert np.mean([case.right(ask(case.image, case.words, model=terse)) for case in cases]) >= 0.75
