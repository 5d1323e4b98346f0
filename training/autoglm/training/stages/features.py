"""Stage 3: draw screens and speak clips, and keep what the trained encoders make of them.

The joint stage reads these features thousands of times, so the encoders run once. On disk a store is
a folder: tensors as safetensors, descriptions as JSON lines; a shard that is there is not made again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoglm.common.files import replacing
from autoglm.speech.model import SpeechModel
from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language, Split
from autoglm.training.data.screens import Element, ScreenKind, draw_screen
from autoglm.training.data.speech import draw_voice, room, synthesize
from autoglm.training.data.talk import TOPICS, draw_jumble
from autoglm.training.data.tasks import ACTIONS, Ask, Page
from autoglm.training.data.wording import SLOTS, TEMPLATES, Kind, as_heard, polite, templates, typed
from autoglm.training.precision import autocast
from autoglm.training.progress import bar
from autoglm.vision.models.mobilevit import MobileVit

TALK, WORDS, NOISE = "talk", "words", "noise"  # clips that ask for nothing on a screen
SHARD = 500
KINDS: tuple[ScreenKind, ...] = ("home", "settings", "dialog", "app")
KIND_SHARES = (0.5, 0.25, 0.1, 0.15)
TALK_SHARE, WORDS_SHARE, NOISE_SHARE = 0.1, 0.15, 0.05


@dataclass(frozen=True, slots=True)
class FeaturesConfig:
    """How many items are drawn, and with which seed."""

    screens: int
    clips: int
    seed: int


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What is said in a clip, and what the encoder heard.

    `intent` and `key` are those of an Ask, or TALK and a topic, WORDS for words in any order, NOISE for no words.
    """

    intent: str
    key: str
    language: Language
    text: str
    heard: str = ""

    @property
    def ask(self) -> Ask:
        """Return what the clip asks for."""
        return Ask(self.intent, self.key, self.language)


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Encoded screens (tokens [49, 320]) and clips (tokens [T, 1536]) of one split."""

    split: Split
    pages: list[Page]
    screens: list[Tensor]
    clip_infos: list[ClipInfo]
    clips: list[Tensor]

    @classmethod
    def make(cls, split: Split, folder: Path, vision: MobileVit, speech: SpeechModel, config: FeaturesConfig) -> Self:
        """Draw what `config` asks for, encode it, and keep it in `folder`; what is there already stays."""
        draw_screens, draw_clips = partial(_screens, vision, split), partial(_clips, speech, split)
        _shards(folder / "screens", config.screens, config.seed, draw_screens)
        _shards(folder / "clips", config.clips, config.seed, draw_clips)
        return cls.open(split, folder)

    @classmethod
    def open(cls, split: Split, folder: Path) -> Self:
        """Read what `make` kept in `folder`."""
        pages, screens = _read(folder / "screens")
        infos, clips = _read(folder / "clips")
        return cls(split, [_page(row) for row in pages], screens, [ClipInfo(**row) for row in infos], clips)


def run(config: FeaturesConfig, workdir: Path) -> None:
    """Fill `workdir`/features from its trained encoders."""
    vision = MobileVit.from_pretrained(workdir / "vision")
    speech = SpeechModel.from_pretrained(workdir / "speech")
    FeatureStore.make("train", workdir / "features", vision, speech, config)


Made = tuple[list[dict[str, Any]], list[Tensor]]


def _shards(folder: Path, total: int, seed: int, make: Callable[[int, np.random.Generator], Made]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, total, SHARD)
    with bar(folder.name, total, "item") as shown:
        for start in starts:
            path = folder / f"{start:06d}.safetensors"
            if not path.exists():
                rows, tensors = make(min(SHARD, total - start), np.random.default_rng((seed, start)))
                _write(path, rows, tensors)
            shown.update(min(SHARD, total - start))


def _write(path: Path, rows: list[dict[str, Any]], tensors: list[Tensor]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    shard = {"tokens": torch.cat(tensors).to(torch.bfloat16), "lengths": lengths}
    with replacing(path) as temporary:
        save_file(shard, temporary)


def _read(folder: Path) -> tuple[list[dict[str, Any]], list[Tensor]]:
    rows: list[dict[str, Any]] = []
    tensors: list[Tensor] = []
    for path in sorted(folder.glob("*.safetensors")):
        saved = load_file(path)
        tensors += saved["tokens"].split(saved["lengths"].tolist())
        rows += [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, tensors


def _screens(model: MobileVit, split: Split, n: int, rng: np.random.Generator) -> Made:
    drawn = [draw_screen(split, rng, KINDS[rng.choice(len(KINDS), p=KIND_SHARES)]) for _ in range(n)]
    rows = [{"kind": s.kind, "app": s.app, "elements": [asdict(e) for e in s.elements]} for s in drawn]
    tokens: list[Tensor] = []
    for start in range(0, n, 25):
        pixels = torch.stack([model.preprocessing.tensor(s.image) for s in drawn[start : start + 25]])
        with autocast("cpu"):
            tokens += model.features(pixels).float().unbind()
    return rows, tokens


def _page(row: dict[str, Any]) -> Page:
    elements = tuple(Element(**{**e, "box": tuple(e["box"])}) for e in row["elements"])
    return Page(row["kind"], row["app"], elements)


def _clips(model: SpeechModel, split: Split, n: int, rng: np.random.Generator) -> Made:
    infos = [_draw_clip(split, rng) for _ in range(n)]
    infos.sort(key=lambda info: len(info.text))  # alike lengths side by side: less padding
    rows, tokens = list[dict[str, Any]](), list[Tensor]()
    for start in range(0, n, 10):
        batch = infos[start : start + 10]
        spoken = [_sound(info, split, rng) for info in batch]
        for info, encoded in zip(batch, model.encode(spoken), strict=True):
            tokens.append(encoded.tokens.float())
            rows.append(asdict(replace(info, heard=encoded.transcript)))
    return rows, tokens


def _sound(info: ClipInfo, split: Split, rng: np.random.Generator) -> NDArray[np.float32]:
    if info.intent == NOISE:
        return room(rng)
    return synthesize(info.text, info.language, draw_voice(info.language, split, rng), rng)


def _draw_clip(split: Split, rng: np.random.Generator) -> ClipInfo:
    language, share = LANGUAGES[rng.integers(len(LANGUAGES))], rng.random()
    if share < NOISE_SHARE:
        return ClipInfo(NOISE, "", language, "")
    if share < NOISE_SHARE + WORDS_SHARE:
        return ClipInfo(WORDS, "", language, draw_jumble(language, rng))
    if share < NOISE_SHARE + WORDS_SHARE + TALK_SHARE:
        topic = list(TOPICS)[rng.integers(len(TOPICS))]
        return ClipInfo(TALK, topic, language, as_heard(TOPICS[topic][language].wording(split, rng)))
    weights = np.array([3.0 if SLOTS.get(intent) == "app" else 1.5 if intent in SLOTS else 0.7 for intent in TEMPLATES])
    weights[list(TEMPLATES).index("open")] = 9.0
    intent = list(TEMPLATES)[rng.choice(len(weights), p=weights / weights.sum())]
    pool = templates(intent, language, split)
    ask = Ask(intent, draw_key(intent, language, split, rng), language)
    kind: Kind = "command" if intent in ACTIONS else "question"
    wording = polite(pool[rng.integers(len(pool))], kind, language, split, rng)
    return ClipInfo(intent, ask.key, language, as_heard(wording.format(ask.filler)))


def draw_key(intent: str, language: Language, split: Split, rng: np.random.Generator) -> str:
    """Draw what may fill the slot of `intent`: a catalog key, a text to type, or nothing."""
    slot = SLOTS.get(intent)
    keys = {"app": list(APPS), "setting": list(SETTINGS), "text": list(typed(language, split))}.get(slot or "", [""])
    return keys[rng.integers(len(keys))]
