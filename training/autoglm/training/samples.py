"""Draws conversations with their true answers from a shelf of encoded screens and clips."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from autoglm.fusion.compose import Media, Message
from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language, Name
from autoglm.training.data.talk import SYSTEM_PROMPTS, TOPICS, draw_sum
from autoglm.training.data.tasks import ACTIONS, Ask, Page, Place, Reply, reply
from autoglm.training.data.wording import SLOTS, TEMPLATES, templates
from autoglm.training.features import TALK, ClipInfo, Shelf, draw_key

Source = Literal["text", "screen", "screen+speech", "speech"]
SHARES: dict[Source, float] = {"text": 0.14, "screen": 0.46, "screen+speech": 0.26, "speech": 0.14}
INTENT_WEIGHTS = {"open": 8.0, "colour": 3.0, "where": 3.0, "exists": 2.0, "switch_state": 2.0, "count": 1.5}
DICTATE: dict[Language, tuple[str, ...]] = {
    "zh": ("转写这段语音。", "听写", "这段语音说了什么?", "请把语音转成文字。"),
    "en": ("Transcribe this recording.", "Transcribe", "What is said here?", "Write down what you hear."),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation, the answer it deserves, and for screen cases the box that decides it."""

    task: str
    source: Source
    language: Language
    messages: tuple[Message, ...]
    thinking: bool | None
    reply: Reply

    @property
    def place(self) -> Place | None:
        """Return the box that the answer is about."""
        return self.reply.place

    @property
    def text(self) -> str:
        """Return the answer as the model should write it."""
        return self.reply.text(self.thinking)


class Sampler:
    """Draws cases; everything follows from `seed`."""

    def __init__(self, shelf: Shelf, seed: int) -> None:
        self.shelf = shelf
        self.rng = np.random.default_rng(seed)
        self.by_intent: dict[str, list[int]] = defaultdict(list)
        for number, info in enumerate(shelf.clip_infos):
            self.by_intent[info.intent].append(number)
            self.by_intent[f"{info.intent}/{info.key}"].append(number)

    def draw(self, source: Source | None = None) -> Case:
        """Draw one case, from `source` or from all in their shares."""
        sources = list(SHARES)
        drawn: Source = source or sources[self.rng.choice(len(sources), p=list(SHARES.values()))]
        case = {"text": self._talk, "screen": self._screen, "speech": self._speech}.get(drawn, self._spoken)()
        case = replace(case, thinking=(None, None, None, True, False)[self.rng.integers(5)])
        return self._with_history(self._with_system(case))

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _language(self) -> Language:
        return LANGUAGES[self.rng.integers(len(LANGUAGES))]

    def _image(self, number: int) -> Media:
        return Media("image", self.shelf.screens[number])

    def _audio(self, number: int) -> Media:
        return Media("audio", self.shelf.clips[number])

    def _draw_talk(self, language: Language) -> tuple[str, str, Reply]:
        """Return topic, wording and reply of something that needs no media."""
        if self._chance(0.25):
            question, answer = draw_sum(language, self.shelf.split, self.rng)
            thought = "用户要我算数。" if language == "zh" else "The user wants a sum."
            return "sum", question, Reply(thought, answer)
        name = list(TOPICS)[self.rng.choice(len(TOPICS), p=(0.34, 0.18, 0.12, 0.1, 0.08, 0.18))]
        topic = TOPICS[name][language]
        return name, topic.wording(self.shelf.split, self.rng), Reply(topic.thought, topic.answer)

    def _talk(self) -> Case:
        """A question that needs no media, sometimes beside a picture that has nothing to do with it."""
        language = self._language()
        task, question, answer = self._draw_talk(language)
        parts: tuple[str | Media, ...] = (self._vary(question, language),)
        if self._chance(0.35):
            parts = (self._image(int(self.rng.integers(len(self.shelf.screens)))), *parts)
            task += "+distraction"
        return Case(task, "text", language, (Message("user", parts),), None, answer)

    def _screen(self) -> Case:
        """A written question or instruction about a screen."""
        number, page, ask, answer = self._ask_screen()
        pool = templates(ask.intent, ask.language, self.shelf.split)
        words = self._vary(pool[self.rng.integers(len(pool))].format(ask.filler), ask.language)
        if ask.intent in ACTIONS and self._chance(0.2):
            words += f'\n\n** Screen Info **\n\n{{"current_app": "{_app_name(page)}"}}'
        message = Message("user", (self._image(number), words))
        return Case(ask.intent, "screen", ask.language, (message,), None, answer)

    def _ask_screen(self) -> tuple[int, Page, Ask, Reply]:
        while True:
            number = int(self.rng.integers(len(self.shelf.pages)))
            page = self.shelf.pages[number]
            ask = self._draw_ask(page)
            answer = reply(page, ask)
            if answer is not None:
                return number, page, ask, answer

    def _draw_ask(self, page: Page) -> Ask:
        """Draw an ask that mostly concerns something on the page."""
        weights = np.array([INTENT_WEIGHTS.get(intent, 1.0) for intent in TEMPLATES])
        intent = list(TEMPLATES)[self.rng.choice(len(weights), p=weights / weights.sum())]
        language = self._language()
        names: dict[str, Name] = {"app": APPS, "setting": SETTINGS}.get(SLOTS.get(intent, ""), {})
        present = [element.name for element in page.elements if element.name in names]
        share = 0.5 if intent == "exists" else 0.85
        if present and self._chance(share):
            return Ask(intent, present[self.rng.integers(len(present))], language)
        return Ask(intent, draw_key(intent, language, self.rng), language)

    def _spoken(self) -> Case:
        """A screen with a spoken question or instruction."""
        while True:
            number, _page, ask, answer = self._ask_screen()
            clips = self.by_intent.get(f"{ask.intent}/{ask.key}", [])
            clips = [clip for clip in clips if self.shelf.clip_infos[clip].language == ask.language]
            if clips:
                message = Message("user", (self._image(number), self._audio(clips[self.rng.integers(len(clips))])))
                return Case(ask.intent, "screen+speech", ask.language, (message,), None, answer)

    def _speech(self) -> Case:
        """Dictation, or a spoken question that needs no screen."""
        number = int(self.rng.integers(len(self.shelf.clips)))
        info = self.shelf.clip_infos[number]
        if info.intent.startswith(TALK) and self._chance(0.6):
            topic = TOPICS[info.key][info.language]
            message = Message("user", (self._audio(number),))
            return Case(info.key, "speech", info.language, (message,), None, Reply(topic.thought, topic.answer))
        return self._dictation(number, info)

    def _dictation(self, number: int, info: ClipInfo) -> Case:
        orders = DICTATE[self._language()]
        message = Message("user", (self._audio(number), orders[self.rng.integers(len(orders))]))
        thought = "用户要我听写。" if info.language == "zh" else "The user wants a transcript."
        return Case("dictation", "speech", info.language, (message,), None, Reply(thought, info.text))

    def _vary(self, words: str, language: Language) -> str:
        """Return `words` as a hurried typist might write them."""
        if language == "en" and self._chance(0.2):
            words = words.lower()
        return words.rstrip("?.!") if self._chance(0.2) else words

    def _with_system(self, case: Case) -> Case:
        if self._chance(0.65):
            return case
        prompts = SYSTEM_PROMPTS[case.language]
        prompt = prompts[self.rng.integers(len(prompts))]
        return replace(case, messages=(Message("system", (prompt,)), *case.messages))

    def _with_history(self, case: Case) -> Case:
        """Put an earlier exchange before the question, now and then."""
        if not self._chance(0.12):
            return case
        _, question, answer = self._draw_talk(case.language)
        past = (Message("user", (question,)), Message("assistant", (answer.text(case.thinking),)))
        at = next(i for i, message in enumerate(case.messages) if message.role == "user")
        return replace(case, messages=(*case.messages[:at], *past, *case.messages[at:]))


def _app_name(page: Page) -> str:
    return APPS[page.app].en if page.app else "System Home"
