"""What the tests of the embedded engine share: engines over a small model, and ways to ask them."""

from collections.abc import Sequence as Rows
from dataclasses import replace
from queue import SimpleQueue

import torch
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.engine.cache import blocks
from autoglm.decoder.engine.embedded import EmbeddedEngine, Limits
from autoglm.decoder.engine.models.glm import Glm
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sequence import Chosen, Finished, Sampling, Sequence
from autoglm.fusion.compose import Composer, Media, Message, Prompt
from autoglm.fusion.gcma.fuse import fuse
from autoglm.training.stages.fusion_decoder import FusionDecoder

SLOTS, CONTEXT = 3, 512
WIDE = Limits(SLOTS, step_tokens=48, blocks=SLOTS * blocks(CONTEXT))
Events = SimpleQueue[Chosen | Finished]
GREEDY = Sampling(temperature=0)


class Engines:
    """Makes engines, and closes them."""

    def __init__(self, glm: Glm, assistant: FusionDecoder) -> None:
        self.glm, self.assistant, self.made = glm, assistant, list[EmbeddedEngine]()

    def __call__(self, limits: Limits = WIDE, stops: Rows[int] = ()) -> EmbeddedEngine:
        runner = Runner(self.glm, self.assistant.fusion, limits.sequences, limits.step_tokens)
        self.made.append(EmbeddedEngine(runner, limits, stops))
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
    return [composer.compose([Message("user", part)]) for part in parts]


def submit(engine: EmbeddedEngine, prompt: Prompt, sampling: Sampling, salt: bytes = b"") -> tuple[Sequence, Events]:
    events: Events = SimpleQueue()
    sequence = Sequence.start(prompt, sampling, CONTEXT - len(prompt.token_ids), events.put, salt)
    engine.submit(sequence)
    return sequence, events


def collect(events: Events) -> tuple[list[int], Finished]:
    tokens = []
    while isinstance(event := events.get(timeout=60), Chosen):
        tokens.append(event.token_id)
    return tokens, event


def say(engine: EmbeddedEngine, prompt: Prompt, n: int, salt: bytes = b"") -> tuple[list[int], Sequence]:
    sequence, events = submit(engine, prompt, replace(GREEDY, max_tokens=n), salt)
    return collect(events)[0], sequence


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
    return [collect(events)[0] for events in pending]
