"""`autoglm eval real`: how a bundle fares on recordings of people and on photographs, which it was not trained on.

docs/real-media.md holds its tables, with what the figures mean.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from autoglm.common.bundle import Bundle
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.speech.model import SpeechModel, normalize
from autoglm.training.data.catalog import APPS, Language
from autoglm.training.data.screens import Screen, draw_screen
from autoglm.training.data.speech import Espeak, draw_voice, synthesize
from autoglm.training.data.tasks import Reply
from autoglm.training.document import weights
from autoglm.training.eval.answering import EvalModel, predict
from autoglm.training.eval.encoder_drift import EncoderDrift, encoder_drift
from autoglm.training.eval.media_files import SOURCES, Recording, photographs, recordings
from autoglm.training.eval.published import PublishedWhisper
from autoglm.training.progress import track
from autoglm.training.samples import Case, Turn
from autoglm.vision.models.mobilevit import MobileVit

SEED = 11
HEARERS = {  # the bundle hears the person, or espeak saying the same
    "person": "bundle, from the person",
    "espeak": "bundle, from espeak",
    "published": "published Whisper, from the person",
}
QUESTIONS = ("Which app is open?", "How many apps are on the screen?", "What is it?")
MARK = "<!-- `autoglm eval real --into` writes what follows. -->\n"
_plain = EnglishTextNormalizer({})  # Whisper's own: it writes "ten" as 10
_WORD = re.compile(r"[a-z]+|\d|[\u4e00-\u9fff]")


class Heard(TypedDict):
    """What was said, and what each of HEARERS made of it; the published Whisper knows no Mandarin."""

    source: str
    name: str
    language: Language
    said: str
    heard: dict[str, str]


class PictureAnswer(TypedDict):
    """What the bundle answers about a picture, and the question's mean image gate."""

    picture: str
    question: str
    answer: str
    gate: float


class RealMediaReport(TypedDict):
    """All of it; `revisions` names the bundle's weights, part by part."""

    revisions: dict[str, str]
    heard: list[Heard]
    encoder_drift: list[EncoderDrift]
    looks: list[PictureAnswer]


def examine(bundle: Bundle, media: Path) -> RealMediaReport:
    """Try the parts of `bundle` on what tools/real_media.sh put into `media`. Raises MediaError."""
    spoken, photos = recordings(media), photographs(media)
    twins = [_twin(recording, number) for number, recording in enumerate(spoken)]
    model = SpeechModel.from_pretrained(bundle.root / "speech")
    english = [number for number, recording in enumerate(spoken) if recording.language == "en"]
    return RealMediaReport(
        revisions={name: bundle.revision(name) for name in bundle.parts},
        heard=hear(model, spoken, twins),
        encoder_drift=encoder_drift(model, [spoken[n].samples for n in english], [twins[n] for n in english]),
        looks=look(bundle.root, photos),
    )


# --- recordings ------------------------------------------------------------------------------------


def _twin(recording: Recording, number: int) -> NDArray[np.float32]:
    """Return the same words from one of espeak's held-out voices, samples [n], as the training clips are made."""
    rng = np.random.default_rng((SEED, number))
    Espeak.fresh()
    return synthesize(recording.text, recording.language, draw_voice(recording.language, "heldout", rng), rng)


def hear(model: SpeechModel, spoken: Sequence[Recording], twins: Sequence[NDArray[np.float32]]) -> list[Heard]:
    """Return what is heard of every recording, and of `twins` [n] at 16 kHz: espeak saying the same."""
    published, rows = PublishedWhisper(), list[Heard]()
    for recording, twin in zip(track(spoken, "recordings", "clip"), twins, strict=True):
        heard = {"person": _transcript(model, recording.samples), "espeak": _transcript(model, twin)}
        if recording.language == "en":
            heard["published"] = published.transcribe(recording.samples)
        row = Heard(
            source=recording.source, name=recording.name, language=recording.language, said=recording.text, heard=heard
        )
        rows.append(row)
    return rows


def _transcript(model: SpeechModel, samples: NDArray[np.float32]) -> str:
    return model.encode([samples])[0].transcript


def word_errors(said: Sequence[str], heard: Sequence[str]) -> float:
    """Return the word error rate, without case and punctuation; every digit is a word, also in letters ("ten": 1 0)."""
    return float(jiwer.wer([_words(text) for text in said], [_words(text) for text in heard]))


def character_errors(said: Sequence[str], heard: Sequence[str]) -> float:
    """Return the character error rate, without case and punctuation; it knows no digits."""
    return float(jiwer.cer([normalize(text) for text in said], [normalize(text) for text in heard]))


def _words(text: str) -> str:
    return " ".join(_WORD.findall(_plain(text)))


# --- photographs -----------------------------------------------------------------------------------


def look(folder: Path, photos: Mapping[str, bytes]) -> list[PictureAnswer]:
    """Ask the parts in `folder` the QUESTIONS about each photograph and about drawn screens."""
    vision = MobileVit.from_pretrained(folder / "vision")
    rng = np.random.default_rng(SEED)
    drawn = [draw_screen("heldout", rng, kind) for kind in ("app", "home")]
    pictures = {f"photograph: {name}": vision.preprocess(data) for name, data in photos.items()}
    pictures |= {f"drawn: {_title(screen)}": vision.preprocessing.tensor(screen.image) for screen in drawn}
    tokens = vision.features(torch.stack(list(pictures.values())))
    asked = [
        (name, picture, question) for name, picture in zip(pictures, tokens, strict=True) for question in QUESTIONS
    ]
    given = predict(EvalModel.load(folder), [_case(picture, question) for _, picture, question in asked])
    return [
        PictureAnswer(picture=name, question=question, answer=answer.text, gate=answer.gates["image"])
        for (name, _, question), answer in zip(asked, given, strict=True)
    ]


def _title(screen: Screen) -> str:
    if screen.app is not None:
        return f"the app {APPS[screen.app].en}"
    return f"a home screen with {sum(element.kind == 'icon' for element in screen.elements)} apps"


def _case(picture: Tensor, question: str) -> Case:
    turn = Turn(PromptMessage("user", (Media("image", picture), question)), Reply("", ""))
    return Case(task="which_app", source="screen", language="en", turns=(turn,))


# --- Markdown --------------------------------------------------------------------------------------


def markdown(report: RealMediaReport) -> str:
    """Return the report as Markdown tables."""
    sections = (
        weights(report["revisions"]),
        _rates(report["heard"]),
        _drift(report["encoder_drift"]),
        _looks(report["looks"]),
    )
    return "\n\n".join((*sections, _transcripts(report["heard"]))) + "\n"


def _rates(heard: Sequence[Heard]) -> str:
    lines = ["## Errors in all", "", f"| Said | n | {' | '.join(HEARERS.values())} |", "|---|---|---|---|---|"]
    groups = {what: [row for row in heard if row["source"] == key] for key, what in SOURCES.items()}
    groups["**all English**"] = [row for row in heard if row["language"] == "en"]
    for what, rows in groups.items():
        cells = (f"{_right(rows, hearer)}{_rate(rows, hearer)}" for hearer in HEARERS)
        lines.append(f"| {what} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _right(rows: Sequence[Heard], hearer: str) -> str:
    """Return how many recordings `hearer` has wholly right."""
    pairs = [(row["said"], row["heard"][hearer]) for row in rows if hearer in row["heard"]]
    return f"{sum(_words(said) == _words(written) for said, written in pairs)} right, " if pairs else ""


def _rate(rows: Sequence[Heard], hearer: str) -> str:
    """Return the word error rate of `hearer`, and the bundle's character error rate in brackets."""
    if hearer not in rows[0]["heard"]:
        return "–"
    said, written = [row["said"] for row in rows], [row["heard"][hearer] for row in rows]
    words = f"{word_errors(said, written):.2f}" if rows[0]["language"] == "en" else ""
    return words if hearer == "published" else f"{words} ({character_errors(said, written):.2f})".lstrip()


def _drift(rows: Sequence[EncoderDrift]) -> str:
    lines = ["## What is left of the published encoder", "", "| After layer | people | espeak | never trained |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        lines.append(f"| {row['layer']} | {row['person']:.2f} | {row['espeak']:.2f} | {row['untrained']:.2f} |")
    return "\n".join(lines)


def _looks(looks: Sequence[PictureAnswer]) -> str:
    lines = ["## Photographs", "", f"| Picture | {' | '.join(QUESTIONS)} |", f"|---{'|---' * len(QUESTIONS)}|"]
    for picture in dict.fromkeys(row["picture"] for row in looks):
        cells = [f"{_code(row['answer'])} {row['gate']:.3f}" for row in looks if row["picture"] == picture]
        lines.append(f"| {picture} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _transcripts(heard: Sequence[Heard]) -> str:
    lines = ["## Every recording", "", f"| Said | {' | '.join(HEARERS.values())} |", "|---|---|---|---|"]
    for row in heard:
        cells = (f"{_code(row['heard'].get(hearer, ''))} {_rate([row], hearer)}" for hearer in HEARERS)
        lines.append(f"| {row['said']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    """Return `text` unchanged, for a table's cell."""
    return "`" + " ".join(text.split()).replace("|", "\\|").replace("`", "'") + "`" if text else ""
