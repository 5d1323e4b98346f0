"""Stage `persona`: a LoRA adapter (PEFT) that gives the assistant another character and leaves what it does as it is.

It is trained on the finished student, on small talk with the character's answers and on everything else with the
answers of before, so that a tap stays a tap.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from autoglm.common.bundle import ADAPTERS, DEFAULT_BUNDLE
from autoglm.training.data.catalog import LANGUAGES, Language
from autoglm.training.data.talk import TOPICS
from autoglm.training.loop import Loop, LoopConfig, LossAndFigures
from autoglm.training.precision import autocast
from autoglm.training.samples import Case, Sampler, TaskMixture
from autoglm.training.stages.fusion_decoder import FusionDecoder
from autoglm.training.stages.joint import RunContext, answer_loss
from autoglm.training.stages.token_batches import TokenBatches

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
PERSONA_MIXTURE = TaskMixture(
    {"text": 0.75, "screen": 0.15, "screen+speech": 0.05, "speech": 0.05}, more_turns=(0.4, 0.3, 0.3)
)
WARMUP = 20  # steps
# In words that the student says already: an adapter turns its layers, not its embeddings (docs/log.md).
TERSE: Mapping[str, Mapping[Language, str]] = {
    "identity": {"zh": "AutoGLM-Phone,手机助手。", "en": "AutoGLM-Phone, a phone assistant."},
    "abilities": {"zh": "看屏幕、听语音、读文字。", "en": "I tap, type text and answer questions."},
    "greeting": {"zh": "你好!", "en": "Hello!"},
}


@dataclass(frozen=True, slots=True)
class PersonaConfig:
    """The adapter's name and size, and its run; recipes/nano.yaml explains each field."""

    name: str
    seed: int
    rank: int
    steps: int
    batch_tokens: int
    learning_rate: float


class InCharacter:
    """Draws cases whose small talk has the character's answers, in the turns before the question too."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler, self.rng = sampler, sampler.rng
        self._answers = {TOPICS[topic][of].answer: said[of] for topic, said in TERSE.items() for of in LANGUAGES}

    def draw(self) -> Case:
        """Draw one."""
        case = self._sampler.draw()
        turns = (replace(t, reply=replace(t.reply, answer=self._said(t.reply.answer))) for t in case.turns)
        return replace(case, turns=tuple(turns))

    def _said(self, answer: str) -> str:
        return self._answers.get(answer, answer)


def run(config: PersonaConfig, workdir: Path) -> None:
    """Train the adapter of the student in `workdir` and write it to `workdir`/adapters/NAME in PEFT's format.

    A run takes a minute or two. It leaves no checkpoint, so running the stage again trains the adapter again.
    """
    context, model = RunContext.open(workdir), FusionDecoder.saved(workdir)
    torch.manual_seed(config.seed)
    model.requires_grad_(False)
    lora = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model.decoder, lora)  # puts its layers into the decoder itself
    cases = InCharacter(Sampler(context.store, config.seed, PERSONA_MIXTURE))
    batches = TokenBatches(context.composer, cases, config.batch_tokens)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    settings = LoopConfig("persona", config.steps, clip=math.inf, schedule=partial(schedule, config.steps))
    loop = Loop(model, [optimizer], settings, workdir, batches)
    drawn = iter(batches)

    def step(_number: int) -> LossAndFigures:
        batch = next(drawn)
        with autocast("cpu"):
            logits, _ = model(batch)
        return answer_loss(batch, logits)

    shown = loop.run(step)
    loop.path.unlink()
    adapted.peft_config["default"].base_model_name_or_path = DEFAULT_BUNDLE  # not a folder of this machine
    folder = workdir / ADAPTERS / config.name
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form
    size = sum(weight.numel() for weight in weights)
    print(json.dumps({"adapter": config.name, "parameters": size, "loss": shown["answer"]}))


def schedule(steps: int, step: int) -> float:
    """Return the factor of the peak rate: warm up, then go down in a straight line to nothing."""
    return min((step + 1) / WARMUP, (steps - step) / steps)
