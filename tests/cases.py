"""Held-out screens, sentences and voices: what training never draws."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoglm.bench.smoke.workloads import wav
from autoglm.cli.api import audio_bytes_part, image_bytes_part
from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language
from autoglm.training.data.screens import PHONES, Screen, ScreenKind, draw_screen
from autoglm.training.data.speech import SAMPLE_RATE, Espeak, draw_voice, synthesize
from autoglm.training.data.tasks import Ask, Page, Reply, reply
from autoglm.training.data.wording import SLOTS, templates

from .asking import tap

PHONE = PHONES["heldout"][0]


@dataclass(frozen=True, slots=True)
class ScreenCase:
    """A screen, what is asked about it in writing and in speech, and the true reply."""

    image: dict[str, Any]
    words: str
    audio: dict[str, Any]
    reply: Reply
    language: Language

    def right(self, answer: str) -> bool:
        """Return whether `answer` does what is asked: the true text, or a tap inside the element's box."""
        if self.reply.action and self.reply.place is not None:
            point = tap(answer)
            left, top, right, bottom = self.reply.place
            return point is not None and left <= point[0] <= right and top <= point[1] <= bottom
        return answer.rsplit("</think>", 1)[-1] == self.reply.text(False).removesuffix("</answer>")


def screen_cases(intent: str, kind: ScreenKind, count: int, seed: int) -> Sequence[ScreenCase]:
    """Return `count` cases of an intent, Chinese and English by turns, about what is on the screen where it can be."""
    rng = np.random.default_rng([seed, count])
    Espeak.fresh()
    cases: list[ScreenCase] = []
    while len(cases) < count:
        screen, language = draw_screen("heldout", rng, kind, PHONE), LANGUAGES[len(cases) % 2]
        ask = Ask(intent, _key(intent, screen, rng), language)
        true = reply(Page(screen.kind, screen.app, screen.elements), ask)
        if true is not None:
            words = templates(intent, language, "heldout")[0].format(ask.filler)
            cases.append(ScreenCase(png_part(screen), words, spoken(words, language, rng), true, language))
    return cases


def _key(intent: str, screen: Screen, rng: np.random.Generator) -> str:
    """Return what fills the slot: something that is on the screen if there is any, else anything of its kind."""
    slot = SLOTS.get(intent, "")
    kind, every = {"app": ("icon", list(APPS)), "setting": ("switch", list(SETTINGS))}.get(slot, ("", [""]))
    names = [element.name for element in screen.elements if element.kind == kind] or every
    return names[rng.integers(len(names))]


def png_part(screen: Screen) -> dict[str, Any]:
    """Return a screen as a client sends a screenshot."""
    file = io.BytesIO()
    screen.image.save(file, "PNG", compress_level=1)
    return image_bytes_part(file.getvalue())


def spoken(text: str, language: Language, rng: np.random.Generator) -> dict[str, Any]:
    """Return `text` said by a held-out voice, as a client sends a recording."""
    samples = synthesize(text, language, draw_voice(language, "heldout", rng), rng)
    return audio_bytes_part(wav(samples, SAMPLE_RATE))


def save(part: dict[str, Any], folder: Path) -> Path:
    """Write an image or a recording to a file in `folder`."""
    if part["type"] == "image_url":
        path, data = folder / "image.png", part["image_url"]["url"].partition(",")[2]
    else:
        path, data = folder / "audio.wav", part["input_audio"]["data"]
    path.write_bytes(base64.b64decode(data))
    return path
