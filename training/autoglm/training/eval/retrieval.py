"""`autoglm eval retrieval`: what the vectors of /v1/embeddings find among held-out screens, voices and wordings.

Counted is how often the nearest candidate is a right one. docs/embeddings.md holds its table, with what the rows mean.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoglm.common.bundle import Bundle
from autoglm.common.modalities import MediaKind
from autoglm.fusion.prompt import Media
from autoglm.speech.model import SpeechModel
from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language
from autoglm.training.data.screens import Screen, draw_screen
from autoglm.training.data.speech import Espeak, draw_voice, synthesize
from autoglm.training.data.tasks import Ask
from autoglm.training.data.wording import SLOTS, as_heard, templates
from autoglm.training.document import weights
from autoglm.training.eval.answering import EvalModel
from autoglm.training.progress import track
from autoglm.vision.models.mobilevit import MobileVit

SEED, COUNT = 11, 150
SMALLER, QUALITY, BATCH = 0.6, 50, 16
MARK = "<!-- `autoglm eval retrieval --into` writes what follows. -->\n"


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """How often the candidate that is nearest to a query is a right one, among how many, and by chance."""

    query: str
    candidate: str
    candidates: int
    first: float
    chance: float


class Vectors:
    """The parts of a bundle, and what they make of texts, screens and sound: one row each, of length 1."""

    def __init__(self, folder: Path) -> None:
        self._model = EvalModel.load(folder)
        self._vision = MobileVit.from_pretrained(folder / "vision")
        self._speech = SpeechModel.from_pretrained(folder / "speech")

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors [texts, d] of `texts`."""
        model = self._model
        return torch.stack([model.fusion.pool_text(model.glm.embed, model.composer.encode(text)) for text in texts])

    def screens(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the vectors [images, d] of `images`."""
        pixels = [self._vision.preprocessing.tensor(image) for image in images]
        batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        tokens = [self._vision.features(torch.stack(batch)) for batch in track(batches, "screens", "batch")]
        return self._media("image", torch.cat(tokens))

    def spoken(self, texts: Sequence[tuple[str, Language]], seed: int) -> tuple[Tensor, list[str]]:
        """Return the vectors [texts, d] and transcripts of `texts`, each said by a held-out voice of its own."""
        rng = np.random.default_rng(seed)
        Espeak.fresh()
        heard = []
        for text, language in track(texts, "recordings", "clip"):
            samples = synthesize(as_heard(text), language, draw_voice(language, "heldout", rng), rng)
            heard += self._speech.encode([samples])
        return self._media("audio", [each.tokens for each in heard]), [each.transcript for each in heard]

    def _media(self, kind: MediaKind, items: Sequence[Tensor] | Tensor) -> Tensor:
        return torch.stack([self._model.fusion.pool_media(Media(kind, tokens)) for tokens in items])


def measure(vectors: Vectors) -> list[RetrievalResult]:
    """Return every row."""
    return [*_screens(vectors), *_words(vectors)]


def _screens(vectors: Vectors) -> list[RetrievalResult]:
    rng = np.random.default_rng(SEED)
    drawn = [draw_screen("heldout", rng, "app") for _ in range(COUNT)]
    apps = [screen.app or "" for screen in drawn]
    found = vectors.screens([screen.image for screen in drawn])
    copies = vectors.screens([_copy(screen) for screen in drawn])
    names = sorted(set(apps))
    rows = [
        _result("a screen", "a copy of it, smaller and as JPEG", found, copies, torch.eye(COUNT, dtype=torch.bool)),
        _result("an app's screen", "another screen of the same app", found, found, _same(apps, apps), own=False),
    ]
    for language in LANGUAGES:
        written = vectors.texts([APPS[name][language] for name in names])
        what = {"en": "the app's name in English", "zh": "the app's name in Chinese"}[language]
        rows.append(_result("an app's screen", what, found, written, _same(apps, names)))
    return rows


def _copy(screen: Screen) -> Image.Image:
    file, (width, height) = io.BytesIO(), screen.image.size
    screen.image.resize((round(SMALLER * width), round(SMALLER * height))).save(file, "JPEG", quality=QUALITY)
    return Image.open(file).convert("RGB")


def _words(vectors: Vectors) -> list[RetrievalResult]:
    asks = _asks(np.random.default_rng(SEED))
    mine, other = ([_text(ask, number) for ask in asks] for number in (0, 1))
    foreign = [_text(Ask(ask.intent, ask.key, "en" if ask.language == "zh" else "zh"), 0) for ask in asks]
    text = vectors.texts([text for text, _ in mine])
    (first, heard), (second, _) = (vectors.spoken(mine, seed) for seed in (SEED, SEED + 1))
    same = torch.eye(len(asks), dtype=torch.bool)
    return [
        _result("a request in writing", "the same in other words", text, vectors.texts([t for t, _ in other]), same),
        _result(
            "a request in writing", "the same in the other language", text, vectors.texts([t for t, _ in foreign]), same
        ),
        _result("a recording", "the same words by another voice", first, second, same),
        _result("a recording", "what is said in it, in writing", first, text, same),
        _result("a recording's transcript", "what is said in it, in writing", vectors.texts(heard), text, same),
    ]


def _asks(rng: np.random.Generator) -> list[Ask]:
    keys = {"app": list(APPS), "setting": list(SETTINGS)}
    every = [
        Ask(intent, key, language)
        for intent, slot in SLOTS.items()
        for key in keys.get(slot, ())
        for language in LANGUAGES
    ]
    return [every[number] for number in rng.permutation(len(every))[:COUNT]]


def _text(ask: Ask, wording: int) -> tuple[str, Language]:
    return templates(ask.intent, ask.language, "heldout")[wording].format(ask.filler), ask.language


def _same(queries: Sequence[str], candidates: Sequence[str]) -> Tensor:
    return torch.tensor([[query == candidate for candidate in candidates] for query in queries])


def _result(
    query: str, candidate: str, queries: Tensor, candidates: Tensor, right: Tensor, own: bool = True
) -> RetrievalResult:
    """Return a row; `right` [queries, candidates] tells the right ones.

    Without `own`, nothing is its own candidate, and what has no other right one is not a query.
    """
    likeness = queries @ candidates.T
    if not own:
        itself = torch.eye(len(queries), dtype=torch.bool)
        likeness, right = likeness.masked_fill(itself, -2), right & ~itself
    asked = right.any(1)
    likeness, right = likeness[asked], right[asked]
    first = right.gather(1, likeness.argmax(1, keepdim=True)).float().mean().item()
    among = len(candidates) - (not own)
    return RetrievalResult(query, candidate, among, first, (right.sum(1) / among).mean().item())


def markdown(bundle: Bundle, rows: Sequence[RetrievalResult]) -> str:
    """Return the rows as a Markdown table."""
    revisions: dict[str, str] = {name: bundle.revision(name) for name in bundle.parts}
    lines = [
        weights(revisions),
        "",
        "| Query | Looked for | Among | Found first | By chance |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {row.query} | {row.candidate} | {row.candidates} | {row.first:.2f} | {row.chance:.2f} |")
    return "\n".join(lines) + "\n"
