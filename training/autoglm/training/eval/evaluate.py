"""What a bundle answers on held-out cases that are drawn fresh for any seed, each part as it is served.

Screens are drawn and sentences spoken anew, the bundle's encoders read them, and its decoder answers greedily.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Self, TypedDict

import numpy as np
from jiwer import cer, wer

from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.speech.model import SpeechModel, normalize
from autoglm.training.data.catalog import LANGUAGES, Language
from autoglm.training.eval.answering import EvalModel, Prediction, predict
from autoglm.training.samples import AGENT_MIXTURE, EVAL_MIXTURE, Case, Sampler
from autoglm.training.stages.features import NOISE, WORDS, FeaturesConfig, FeatureStore
from autoglm.vision.models.mobilevit import MobileVit

REPORT = "evaluation.json"


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """How many cases are drawn from each source, and with which seed."""

    seed: int
    limit: int


class TaskAccuracy(TypedDict):
    """Accuracy on one task from one source, both languages together and apart."""

    source: str
    task: str
    n: int
    accuracy: float
    zh: float | None
    en: float | None


class EvalReport(TypedDict):
    """The rows of the table, and figures that are not accuracies, name → value (FIGURES says what each is)."""

    seed: int
    limit: int
    rows: list[TaskAccuracy]
    figures: dict[str, float]


FIGURES = {
    "dictation_cer_zh": "dictation of sentences: character error rate, Chinese",
    "dictation_wer_en": "dictation of sentences: word error rate, English",
    "transcript_cer_zh": "the speech encoder's own transcript of sentences: character error rate, Chinese",
    "transcript_wer_en": "the speech encoder's own transcript of sentences: word error rate, English",
    "tap_distance": "taps: median distance from the element's middle, in thousandths of the screen",
    "text_without_fusion": "questions that need no media, alone (nothing is fused, the decoder is a plain GLM): right",
    "text_with_fusion": "the same with an unrelated picture (everything is fused): right",
    "unchanged_beside_a_picture": "text answers that an unrelated picture leaves unchanged",
    "unchanged_beside_noise": "text answers that a noisy recording without words leaves unchanged",
    "agent_steps": "an agent's second or third step, mostly with the older screenshots dropped: right",
    "gate_auc_image": "image gate tells a question about the screen from one with an unrelated picture (AUC)",
    "gate_auc_audio": "audio gate tells a spoken question from a written one with noise (AUC)",
}


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Held-out cases, drawn once: `cases` are judged by task; those without media come again with an unrelated
    picture and with noise; `steps` are an agent's."""

    config: EvalConfig
    store: FeatureStore
    cases: list[Case]
    pictures: list[Case]
    noises: list[Case]
    steps: list[Case]

    @classmethod
    def draw(cls, folder: Path, config: EvalConfig) -> Self:
        """Draw what `config` asks for; the encoders in `folder` see and hear it."""
        seed, limit = config.seed, config.limit
        vision = MobileVit.from_pretrained(folder / "vision")
        speech = SpeechModel.from_pretrained(folder / "speech")
        with tempfile.TemporaryDirectory() as scratch:
            store = FeatureStore.make("heldout", Path(scratch), vision, speech, FeaturesConfig(limit, limit, seed))
        sampler = Sampler(store, seed, EVAL_MIXTURE)
        cases = [sampler.draw(source) for source in EVAL_MIXTURE.shares for _ in range(limit)]
        alone = [case for case in cases if not case.media]
        pictures = [_distracted(case, Media("image", screen)) for case, screen in zip(alone, cycle(store.screens))]
        noises = [_distracted(case, noise) for case, noise in zip(alone, cycle(_noises(store)))]
        sampler.mixture = AGENT_MIXTURE
        steps = [sampler.draw() for _ in range(limit // 2)]
        return cls(config, store, cases, pictures, noises, steps)

    def judge(self, model: EvalModel) -> EvalReport:
        """Ask `model` every case."""
        parts = (self.cases, self.pictures, self.noises, self.steps)
        given = iter(predict(model, list(chain(*parts))))
        asked, seeing, hearing, stepped = (list(islice(given, len(part))) for part in parts)
        plain = [answer for answer in asked if not answer.case.media]
        figures = _dictation(asked) | _transcripts(self.store) | _taps(asked) | _gates(asked, seeing, hearing)
        figures["text_without_fusion"], figures["text_with_fusion"] = share_right(plain), share_right(seeing)
        figures["unchanged_beside_a_picture"] = _unchanged(plain, seeing)
        if hearing:  # a small set may have no noise
            figures["unchanged_beside_noise"] = _unchanged(plain, hearing)
        figures["agent_steps"] = share_right(stepped)
        rounded = {name: round(value, 4) for name, value in figures.items()}
        return EvalReport(seed=self.config.seed, limit=self.config.limit, rows=rows(asked), figures=rounded)


def evaluate(folder: Path, config: EvalConfig) -> EvalReport:
    """Ask the parts in `folder` the cases of `config`."""
    return EvalSet.draw(folder, config).judge(EvalModel.load(folder))


def share_right(given: Sequence[Prediction]) -> float:
    """Return how many of the answers are right, as a share."""
    return sum(answer.right for answer in given) / len(given)


def _noises(store: FeatureStore) -> list[Media]:
    return [
        Media("audio", clip, info.heard)
        for clip, info in zip(store.clips, store.clip_infos, strict=True)
        if info.intent == NOISE
    ]


def _distracted(case: Case, media: Media) -> Case:
    """Return a case of text alone with a picture or noise that has nothing to do with it."""
    first = case.turns[0]
    message = PromptMessage("user", (media, *first.message.parts))
    return replace(case, turns=(replace(first, message=message), *case.turns[1:]))


def rows(asked: Iterable[Prediction]) -> list[TaskAccuracy]:
    """Return how often each task was done right."""
    right: dict[tuple[str, str], dict[Language, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for given in asked:
        task = f"{given.case.task}: tap" if given.case.taps else given.case.task
        right[given.case.source, task][given.case.language].append(given.right)
    return [_row(source, task, by_language) for (source, task), by_language in sorted(right.items())]


def _row(source: str, task: str, by_language: dict[Language, list[bool]]) -> TaskAccuracy:
    every = [right for rights in by_language.values() for right in rights]
    zh, en = (_mean(by_language.get(language, [])) for language in LANGUAGES)
    return TaskAccuracy(source=source, task=task, n=len(every), accuracy=_mean(every) or 0.0, zh=zh, en=en)


def _mean(rights: list[bool]) -> float | None:
    return round(sum(rights) / len(rights), 3) if rights else None


def _dictation(asked: Sequence[Prediction]) -> dict[str, float]:
    said = [given for given in asked if given.case.task in ("dictation", "dictation+distraction")]
    pairs = [(given.case.language, given.case.reply.answer, given.final) for given in said]
    return _errors("dictation", pairs)


def _transcripts(store: FeatureStore) -> dict[str, float]:
    sentences = [info for info in store.clip_infos if info.intent not in (WORDS, NOISE)]
    return _errors("transcript", [(info.language, info.text, info.heard) for info in sentences])


def _errors(name: str, pairs: Sequence[tuple[Language, str, str]]) -> dict[str, float]:
    """Return error rates over what was said and what was written, without case and punctuation."""
    zh, en = (
        [(normalize(said), normalize(written)) for of, said, written in pairs if of == each] for each in LANGUAGES
    )
    return {f"{name}_cer_zh": cer(*map(list, zip(*zh, strict=True))),
            f"{name}_wer_en": wer(*map(list, zip(*en, strict=True)))}  # fmt: skip


def _taps(asked: Sequence[Prediction]) -> dict[str, float]:
    distances = []
    for given in asked:
        if given.case.taps and given.point is not None and (place := given.case.reply.place):
            middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
            distances.append(np.hypot(given.point[0] - middle[0], given.point[1] - middle[1]))
    return {"tap_distance": float(np.median(distances))}


def _unchanged(plain: Sequence[Prediction], distracted: Sequence[Prediction]) -> float:
    return sum(one.text == other.text for one, other in zip(plain, distracted, strict=True)) / len(plain)


def _gates(
    asked: Sequence[Prediction], seeing: Sequence[Prediction], hearing: Sequence[Prediction]
) -> dict[str, float]:
    looks = [given.gates["image"] for given in asked if given.case.source == "screen" and given.case.reply.look]
    listens = [given.gates["audio"] for given in asked if "speech" in given.case.source]
    areas = {"gate_auc_image": _auc(looks, [given.gates["image"] for given in seeing])}
    if hearing:
        areas["gate_auc_audio"] = _auc(listens, [given.gates["audio"] for given in hearing])
    return areas


def _auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Return the share of pairs in which the first is the larger, ties by half."""
    from scipy.stats import mannwhitneyu  # slow to import, and asked once

    return float(mannwhitneyu(higher, lower).statistic) / (len(higher) * len(lower))


def table(report: EvalReport) -> str:
    """Return the report as Markdown tables."""
    lines = ["| From | Task | n | right | zh | en |", "|---|---|---|---|---|---|"]
    for row in report["rows"]:
        figures = ("–" if value is None else f"{value:.2f}" for value in (row["accuracy"], row["zh"], row["en"]))
        lines.append(f"| {row['source']} | {row['task']} | {row['n']} | {' | '.join(figures)} |")
    lines += ["", "| Measure | value |", "|---|---|"]
    lines += [f"| {FIGURES[name]} | {value:.3g} |" for name, value in report["figures"].items()]
    return "\n".join(lines)


def write(report: EvalReport, path: Path) -> None:
    """Write the report as JSON."""
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
