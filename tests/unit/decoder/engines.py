"""What the tests of the embedded engine share: engines over a small model, and ways to ask them."""

from collections.abc import Sequence as Rows
from dataclasses import replace
from queue import SimpleQueue

import torch
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.engine.cache import num_blocks
from autoglm.decoder.engine.core import EngineCore
from autoglm.decoder.engine.engine import EmbeddedEngine
from autoglm.decoder.engine.grammar import Grammars
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.request import PrefillStats, Request, RequestOutput, SamplingConfig
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.scheduler import EngineLimits
from autoglm.fusion.compose import Composer
from autoglm.fusion.gcma.fuse import fuse
from autoglm.fusion.prompt import Media, Prompt, PromptMessage
from autoglm.training.stages.fusion_decoder import FusionDecoder

SLOTS, CONTEXT = 3, 512
WIDE = EngineLimits(SLOTS, max_num_batched_tokens=48, num_blocks=SLOTS * num_blocks(CONTEXT))
Outputs = SimpleQueue[RequestOutput]
GREEDY = SamplingConfig(temperature=0)


class Engines:
    """Makes engines, and closes them."""

    def __init__(self, glm: Glm, assistant: FusionDecoder) -> None:
        self.glm, self.assistant, self.made = glm, assistant, list[EmbeddedEngine]()

    def __call__(
        self, limits: EngineLimits = WIDE, stops: Rows[int] = (), grammars: Grammars | None = None
    ) -> EmbeddedEngine:
        runner = Runner(self.glm, self.assistant.fusion, limits.max_num_seqs, limits.max_num_batched_tokens)
        core = EngineCore(runner, limits, stops, grammars.make) if grammars else EngineCore(runner, limits, stops)
        self.made.append(EmbeddedEngine(core))
        return self.made[-1]


def prompts(composer: Composer) -> list[Prompt]:
    torch.manual_seed(0)
    image, audio = Media("image", torch.randn(49, 320)), Media("audio", torch.randn(17, 1536))
    parts: list[tuple[str | Media, ...]] = [
        ("Hello",),
        (image, "Where is Camera?"),
        (audio,),
        ("你好" * 60,),
        (image, audio, "Which app is it?" * 9),
    ]
    return [composer.compose([PromptMessage("user", part)]) for part in parts]


def submit(
    engine: EmbeddedEngine, prompt: Prompt, sampling: SamplingConfig, salt: bytes = b""
) -> tuple[Request, Outputs]:
    outputs: Outputs = SimpleQueue()
    request = Request(prompt, sampling, CONTEXT, salt)
    engine.submit(request, outputs.put)
    return request, outputs


def answer_of(outputs: Outputs) -> list[RequestOutput]:
    """Return all outputs of a request, once it has ended."""
    said = [outputs.get(timeout=60)]
    while said[-1].finish is None:
        said.append(outputs.get(timeout=60))
    return said


def token_ids(said: Rows[RequestOutput]) -> list[int]:
    return [output.token.token_id for output in said if output.token is not None]


def collect(outputs: Outputs) -> tuple[list[int], str | Exception]:
    said = answer_of(outputs)
    finish = said[-1].finish
    assert finish is not None
    return token_ids(said), finish


def say(engine: EmbeddedEngine, prompt: Prompt, n: int, salt: bytes = b"") -> tuple[list[int], PrefillStats]:
    said = answer_of(submit(engine, prompt, replace(GREEDY, max_tokens=n), salt)[1])
    assert said[0].prefill is not None
    return token_ids(said), said[0].prefill


def theirs(assistant: FusionDecoder, prompt: Prompt, n: int) -> list[int]:
    """Return transformers' own greedy continuation of the fused prompt."""
    decoder: GlmForCausalLM = assistant.decoder
    fused = fuse(assistant.fusion, decoder.model.embed_tokens, prompt).embeddings[None]
    mask = torch.ones(fused.shape[:2], dtype=torch.long)
    out = decoder.generate(
        inputs_embeds=fused, attention_mask=mask, max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [int(token) for token in out[0]]


LENGTHS = (24, 5, 17, 90, 70)


def run_all(engine: EmbeddedEngine, composer: Composer) -> list[list[int]]:
    pending = [
        submit(engine, prompt, replace(GREEDY, max_tokens=n))[1]
        for prompt, n in zip(prompts(composer), LENGTHS, strict=True)
    ]
    return [collect(outputs)[0] for outputs in pending]
