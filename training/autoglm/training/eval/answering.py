"""Asks a bundle's decoder many held-out cases at once, and judges its answers.

An answer is right when its text is the expected one, a tap when its point lies inside the element's box. The mark that
ends an action is no part of it: the decoder stops there.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.common.modalities import MediaKind
from autoglm.decoder.engine.cache import num_blocks
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.request import Request, RequestOutput, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.scheduler import EngineLimits
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.layout import GCMA_LAYOUT
from autoglm.fusion.gcma.model import GcmaFusion
from autoglm.training.progress import track
from autoglm.training.samples import Case

MAX_TOKENS, CONTEXT, SLOTS, STEP_TOKENS = 96, 2048, 32, 1024
_POINT = re.compile(r"element=\[(\d+),(\d+)\]")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer to a case, and its mean gate over the question's text for each modality that it saw."""

    case: Case
    text: str
    gates: dict[MediaKind, float]

    @property
    def final(self) -> str:
        """Return the answer after the thought."""
        return _final(self.text)

    @property
    def right(self) -> bool:
        """Return whether the answer does what the case asks for."""
        place, point = self.case.reply.place, self.point
        if not self.case.taps or place is None:
            return self.final == _final(self.case.text)
        return point is not None and place[0] <= point[0] <= place[2] and place[1] <= point[1] <= place[3]

    @property
    def point(self) -> tuple[int, int] | None:
        """Return where the answer taps."""
        match = _POINT.search(self.text)
        return (int(match[1]), int(match[2])) if match else None


def _final(text: str) -> str:
    return text.rsplit("</think>", 1)[-1].removesuffix("</answer>")


@dataclass(frozen=True, slots=True)
class EvalModel:
    """A decoder with its fusion, tokenizer and template, loaded in float32 as on a CPU that serves them."""

    composer: Composer
    glm: Glm
    fusion: GcmaFusion
    stops: Sequence[int]

    @classmethod
    def load(cls, folder: Path, int8: bool = False) -> Self:
        """Open `folder`/decoder and `folder`/fusion; with `int8` the linear layers between embedding and head are
        held and multiplied as 8-bit integers, as the vision encoder's are."""
        source = GlmForCausalLM.from_pretrained(folder / "decoder", dtype=torch.float32, local_files_only=True).eval()
        glm = Glm(source, CONTEXT, int8)
        fusion = GcmaFusion.from_pretrained(folder / "fusion")
        return cls(Composer(folder / "decoder", GCMA_LAYOUT), glm, fusion, source.generation_config.eos_token_id)

    def runner(self, slots: int) -> Runner:
        """Return the engine's forward passes over `slots` conversations at once."""
        never = range(self.composer.vocabulary, self.glm.config.vocab_size)
        return Runner(self.glm, self.fusion, slots, STEP_TOKENS, never)


def predict(model: EvalModel, cases: Sequence[Case]) -> list[Prediction]:
    """Return the greedy answer of `model` to every case, in order."""
    composer = model.composer
    limits = EngineLimits(SLOTS, STEP_TOKENS, SLOTS * num_blocks(CONTEXT))
    engine = EmbeddedEngine(EngineCore(model.runner(SLOTS), limits, model.stops))
    sinks, greedy = [_TokenSink() for _ in cases], SamplingConfig(temperature=0, max_tokens=MAX_TOKENS)
    for case, sink in zip(cases, sinks, strict=True):
        engine.submit(Request(composer.compose(case.messages, case.thinking), greedy, CONTEXT), sink)
    for sink in track(sinks, "answers", "case"):
        sink.wait()
    engine.close()
    return [
        Prediction(case, composer.tokenizer.decode(sink.tokens), sink.gates)
        for case, sink in zip(cases, sinks, strict=True)
    ]


class _TokenSink:
    """Collects one answer from the engine's thread."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.gates: dict[MediaKind, float] = {}
        self._end: str | Exception = ""
        self._done = threading.Event()

    def __call__(self, output: RequestOutput) -> None:
        if output.prefill is not None:
            self.gates = dict(output.prefill.gates)
        if output.token is not None:
            self.tokens.append(output.token.token_id)
        if output.finish is not None:
            self._end = output.finish
            self._done.set()

    def wait(self) -> None:
        """Wait for the end; raises what ended the request, if anything did."""
        self._done.wait()
        if isinstance(self._end, Exception):
            raise self._end
