"""What ends an answer: </answer> after an action, as published phone agents expect, and when it is printed."""

import ast
import asyncio
import copy
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from streaming_phone_agent import parse_to_the_end, split
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from autoglm.common.bundle import default_bundle
from autoglm.decoder.detokenizer import StopStrings
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.request import GrammarSpec, Request, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.engine.vllm_engine import EndTokens
from autoglm.decoder.model import TokenIds
from autoglm.decoder.stream import ResponseBuilder, TokenQueue
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.prompt import PromptMessage
from autoglm.training.stages.fusion_decoder import MAX_NEW_TOKENS, FusionDecoder, save
from autoglm.training.stages.tokenizer import STOPS
from autoglm.v1 import decoder_pb2, generation_pb2

from .engines import CONTEXT, WIDE, Engines, collect

ACTIONS = [
    'do(action="Launch", app="微信")',
    'do(action="Tap", element=[210,570])',
    'do(action="Tap", element=[1,999], message="重要操作")',
    'do(action="Type", text="good night")',
    'do(action="Type_Name", text="李雷")',
    'do(action="Interact")',
    'do(action="Swipe", start=[500,800], end=[500,200])',
    'do(action="Note", message="True")',
    'do(action="Call_API", instruction="总结")',
    'do(action="Long Press", element=[30,40])',
    'do(action="Double Tap", element=[30,40])',
    'do(action="Take_over", message="请登录")',
    'do(action="Back")',
    'do(action="Home")',
    'do(action="Wait", duration="2 seconds")',
    'finish(message="已打开。")',
]
THOUGHT = "<think>想一想。</think><answer>"


class ScriptedRunner(Runner):
    """Computes as ever, and then makes one token certain: the next of `script`."""

    script: Rows[int] = ()

    def prefill(self, sequence: Sequence, slot: int, tokens: int) -> Tensor:
        super().prefill(sequence, slot, tokens)
        return self._certain([sequence])

    def decode(self, running: Rows[Sequence], first: int = 0) -> Tensor:
        super().decode(running, first)
        return self._certain(running)

    def _certain(self, sequences: Rows[Sequence]) -> Tensor:
        logits = torch.zeros(len(sequences), self.glm.config.vocab_size)
        for row, sequence in enumerate(sequences):
            logits[row, self.script[len(sequence.output)]] = 100.0
        return logits


class Writer:
    """Answers with the tokens of a text, whatever comes after its end."""

    def __init__(self, glm: Glm, assistant: FusionDecoder, composer: Composer) -> None:
        self.composer, self.runner = composer, ScriptedRunner(glm, assistant.fusion, 1, 48)
        stops = [id_of(composer, text) for text in STOPS]
        self.engine = EmbeddedEngine(EngineCore(self.runner, WIDE, stops))

    def write(self, text: str, **sampling: Any) -> list[decoder_pb2.DecoderServiceGenerateResponse]:
        """Return the messages of an answer in which the model would write `text` and go on."""
        ids = self.composer.tokenizer.encode(text, add_special_tokens=False).ids
        self.runner.script = [*ids, *ids]
        prompt = self.composer.compose([PromptMessage("user", ("Do it",))])
        config = SamplingConfig(temperature=0, top_logprobs=1, **sampling)

        async def messages() -> list[decoder_pb2.DecoderServiceGenerateResponse]:
            queue = TokenQueue(lambda read: None)
            self.engine.submit(Request(prompt, config, CONTEXT), queue.put)
            stops = StopStrings(config.stop, config.include_stop_str_in_output)
            return [each async for each in ResponseBuilder(self.composer, prompt, stops, False).messages(queue)]

        return asyncio.run(messages())


def id_of(composer: Composer, text: str) -> int:
    token_id = composer.tokenizer.token_to_id(text)
    assert token_id is not None
    return token_id


def text_of(messages: Rows[decoder_pb2.DecoderServiceGenerateResponse]) -> str:
    return "".join(message.text for message in messages)


@pytest.fixture(scope="module")
def writer(glm: Glm, assistant: FusionDecoder, composer: Composer) -> Iterator[Writer]:
    made = Writer(glm, assistant, composer)
    yield made
    made.engine.close()


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_one_python_expression_to_the_end(writer: Writer, action: str) -> None:
    messages = writer.write(f"{THOUGHT}{action}</answer>")
    assert text_of(messages) == THOUGHT + action
    assert split(text_of(messages)) == (THOUGHT, action)
    assert isinstance(ast.parse(split(text_of(messages))[1], mode="eval").body, ast.Call)
    assert messages[-1].finish.finish_reason == generation_pb2.FINISH_REASON_STOP


def test_a_message_with_quotation_marks_is_read_to_its_end(writer: Writer) -> None:
    said = text_of(writer.write(f'{THOUGHT}finish(message="它说"好"了")</answer>'))
    assert parse_to_the_end(said).arguments == {"message": '它说"好"了'}


@pytest.mark.parametrize(
    ("ends", "sampling", "printed"),
    [
        ("</answer>", {}, ""),
        ("</answer>", {"include_stop_str_in_output": True}, "</answer>"),
        ("</answer>", {"include_stop_str_in_output": True, "stop": ("</answer>",)}, "</answer>"),
        ("</answer>", {"stop": ("</answer>",)}, ""),
        ("<|user|>", {"include_stop_str_in_output": True}, ""),
        ("<|observation|>", {}, ""),
        (" then", {"stop": (" then",)}, ""),
        (" then", {"include_stop_str_in_output": True, "stop": ("nor", " then")}, " then"),
    ],
)
def test_what_ends_an_answer_is_printed_when_it_is_asked_for_and_is_text(
    writer: Writer, ends: str, sampling: dict[str, Any], printed: str
) -> None:
    action = THOUGHT + ACTIONS[1]
    messages = writer.write(action + ends, **sampling)
    assert text_of(messages) == action + printed
    finish = messages[-1].finish
    entries = [entry.chosen.token for message in messages for entry in message.logprobs]
    assert finish.finish_reason == generation_pb2.FINISH_REASON_STOP
    assert finish.usage.completion_tokens == len(entries)
    seen = text_of(messages) + (ends if "stop" in sampling and not printed and ends != "</answer>" else "")
    assert "".join(entries) == seen


@pytest.mark.parametrize(
    ("spec", "whole"),
    [
        (GrammarSpec("choice", ("<answer>one</answer> and more",)), "<answer>one</answer> and more"),
        (GrammarSpec("regex", r"a</answer>[b]"), "a</answer>b"),
        (GrammarSpec("grammar", 'start: "<|user|> and <|image|></think>"'), "<|user|> and <|image|></think>"),
        (GrammarSpec("json_schema", '{"const": {"said": "</answer></answer>!"}}'), '{"said": "</answer></answer>!"}'),
    ],
)
def test_the_mark_is_text_inside_a_format(
    engines: Engines, composer: Composer, tmp_path: Path, spec: GrammarSpec, whole: str
) -> None:
    """The model has to spell it: its token would end the answer half way."""
    composer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    stops = [id_of(composer, text) for text in STOPS]
    engine = engines(stops=stops, grammars=Grammars(tmp_path / "tokenizer.json", stops))
    outputs: SimpleQueue[Any] = SimpleQueue()
    prompt = composer.compose([PromptMessage("user", ("Say it",))])
    engine.submit(Request(prompt, SamplingConfig(temperature=0, max_tokens=90), CONTEXT, grammar=spec), outputs.put)
    tokens, end = collect(outputs)
    assert end == "stop"
    assert composer.tokenizer.decode(tokens) == whole
    assert not set(stops) & set(tokens)


def test_vllm_may_not_end_a_format_with_a_token_that_is_text() -> None:
    """It takes </answer> for text there, and ends the answer all the same."""
    folder = default_bundle() / "decoder"
    token_ids = TokenIds.of(folder, AutoConfig.from_pretrained(folder).vocab_size, GCMA_LAYOUT)
    assert [token_ids.composer.tokenizer.id_to_token(stop) for stop in token_ids.text_stops] == ["</answer>"]
    ends = EndTokens(token_ids.stops, token_ids.text_stops, token_ids.never)
    assert ends.bias(has_format=True).keys() - ends.bias(has_format=False).keys() == set(token_ids.text_stops)
    assert TokenIds(token_ids.composer, token_ids.text_stops, ()).text_stops == []


def test_training_writes_what_ends_an_answer_and_its_limit(assistant: FusionDecoder, tmp_path: Path) -> None:
    save(copy.deepcopy(assistant), tmp_path)
    for folder in (tmp_path / "decoder", default_bundle() / "decoder"):
        composer = Composer(folder, GCMA_LAYOUT)
        stops = [id_of(composer, text) for text in STOPS]
        generation = GenerationConfig.from_pretrained(folder)
        assert generation.eos_token_id == AutoConfig.from_pretrained(folder).eos_token_id == stops
        assert generation.max_new_tokens == MAX_NEW_TOKENS
