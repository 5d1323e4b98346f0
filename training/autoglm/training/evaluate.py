"""Stage 5: held-out accuracy of the joint model, per source and task.

Answers are generated greedily from the shelf of held-out features; an answer is right when its text
is the expected one, a tap when its point lies inside the element's box.
"""

import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from tqdm import tqdm
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.engine.engine import Engine
from autoglm.decoder.engine.runner import Runner
from autoglm.decoder.engine.sequence import Chosen, Finished, Sampling, Sequence
from autoglm.fusion.compose import Composer
from autoglm.fusion.model import FusionModel
from autoglm.training.features import Shelf
from autoglm.training.samples import SHARES, Case, Sampler

_POINT = re.compile(r"element=\[(\d+),(\d+)\]")
LIMIT = 96


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """How many cases of each source, and their seed."""

    cases: int = 500
    seed: int = 11
    slots: int = 32


class Row(TypedDict):
    """Accuracy on one task from one source, both languages together and apart."""

    source: str
    task: str
    n: int
    accuracy: float
    zh: float | None
    en: float | None


def run(config: EvaluateConfig, workdir: Path) -> None:
    """Write `workdir`/evaluation.json and print its table."""
    rows = evaluate(config, workdir)
    (workdir / "evaluation.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


def evaluate(config: EvaluateConfig, workdir: Path) -> list[Row]:
    """Return accuracies on held-out cases drawn with the config's seed."""
    sampler = Sampler(Shelf.open(workdir / "features", "heldout"), config.seed)
    cases = [sampler.draw(source) for source in SHARES for _ in range(config.cases)]
    right: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for case, answer in zip(cases, answers(workdir, cases, config.slots), strict=True):
        right[case.source, _task(case)][case.language].append(correct(case, answer))
    return [_row(source, task, by_language) for (source, task), by_language in sorted(right.items())]


def _task(case: Case) -> str:
    """Return the row of a case: a tap that is due counts apart from launching, finishing and the rest."""
    return f"{case.task}: tap" if case.reply.action and case.reply.place is not None else case.task


def correct(case: Case, answer: str) -> bool:
    """Return whether `answer` does what `case` asks for."""
    if case.reply.action and (expected := _POINT.search(case.text)):
        point = _POINT.search(answer)
        return point is not None and expected is not None and _inside(case, int(point[1]), int(point[2]))
    final = case.text.rsplit("</think>", 1)[-1]
    return answer.rsplit("</think>", 1)[-1] == final


def _inside(case: Case, x: int, y: int) -> bool:
    assert case.reply.place is not None
    left, top, right, bottom = case.reply.place
    return left <= x <= right and top <= y <= bottom


def answers(workdir: Path, cases: list[Case], slots: int) -> list[str]:
    """Return the model's greedy answer to every case, in order."""
    composer = Composer(workdir / "decoder")
    decoder = GlmForCausalLM.from_pretrained(workdir / "decoder", dtype=torch.float32).eval()
    fusion = FusionModel.from_pretrained(workdir / "fusion")
    runner = Runner(decoder, fusion, slots, 2048, composer.tokenizer.get_vocab_size(), never=())
    engine = Engine(runner, slots, decoder.generation_config.eos_token_id)
    sinks = [_Answer() for _ in cases]
    for case, sink in zip(cases, sinks, strict=True):
        prompt = composer.compose(case.messages, case.thinking)
        engine.submit(Sequence.start(prompt, Sampling(temperature=0), LIMIT, sink))
    for sink in tqdm(sinks, desc="evaluate", unit="case", mininterval=1):
        sink.done.wait()
    engine.close()
    return [composer.tokenizer.decode(sink.tokens) for sink in sinks]


class _Answer:
    """Collects one answer from the engine's thread."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.done = threading.Event()

    def __call__(self, event: Chosen | Finished) -> None:
        if isinstance(event, Chosen):
            self.tokens.append(event.token_id)
            return
        if isinstance(event.reason, Exception):
            raise event.reason
        self.done.set()


def _row(source: str, task: str, by_language: dict[str, list[bool]]) -> Row:
    every = [right for rights in by_language.values() for right in rights]
    zh, en = (_mean(by_language.get(language, [])) for language in ("zh", "en"))
    return Row(source=source, task=task, n=len(every), accuracy=_mean(every) or 0.0, zh=zh, en=en)


def _mean(rights: list[bool]) -> float | None:
    return round(sum(rights) / len(rights), 3) if rights else None


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| From | Task | n | right | zh | en |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = ("–" if value is None else f"{value:.2f}" for value in (row["accuracy"], row["zh"], row["en"]))
        lines.append(f"| {row['source']} | {row['task']} | {row['n']} | {' | '.join(figures)} |")
    return "\n".join(lines)
