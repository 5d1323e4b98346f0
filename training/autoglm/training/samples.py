"""Draws conversations with their true answers from a shelf of encoded screens and clips."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from autoglm.fusion.compose import Media, Message
from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language, Name
from autoglm.training.data.prompts import system_prompt
from autoglm.training.data.screens import ScreenKind
from autoglm.training.data.talk import TOPICS, draw_jumble, draw_sum
from autoglm.training.data.tasks import ACTIONS, Ask, Page, Reply, reply
from autoglm.training.data.wording import SLOTS, Kind, dictate, full_width, polite, templates
from autoglm.training.features import TALK, Shelf, draw_key

Source = Literal["text", "screen", "screen+speech", "speech"]
T = TypeVar("T")
Subject = tuple[str, tuple[str | Media, ...], Reply]
SHARES: dict[Source, float] = {"text": 0.12, "screen": 0.38, "screen+speech": 0.28, "speech": 0.22}
INTENT_WEIGHTS: dict[ScreenKind, dict[str, float]] = {  # on each kind of page, mostly what it is there for
    "home": {
        "open": 6.0, "colour": 5.0, "where": 3.0, "exists": 2.0, "count": 2.0, "which_app": 0.5,
        "turn_on": 0.4, "turn_off": 0.4, "back": 0.4, "type": 1.0,
    },
    "settings": {
        "switch_state": 4.0, "turn_on": 3.0, "turn_off": 3.0, "which_app": 1.0, "open": 1.5, "back": 0.5, "type": 0.5,
    },
    "dialog": {"confirm": 3.0, "cancel": 3.0, "open": 1.0, "back": 0.5, "type": 0.5},
    "app": {"which_app": 3.0, "open": 3.0, "type": 3.0, "back": 1.0, "turn_on": 0.5, "turn_off": 0.5},
}  # fmt: skip
TALK_WEIGHTS = {
    "sum": 1.0, "identity": 1.0, "abilities": 0.5, "greeting": 0.3, "thanks": 0.3, "goodbye": 0.2, "cannot": 0.7,
}  # fmt: skip
DISTRACTION_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Diet:
    """What is drawn: the share of each source, the probabilities of 0, 1, 2 … turns before the question (several
    questions on one screen cost training little more than one), and how often there is a system prompt."""

    shares: Mapping[Source, float]
    more_turns: tuple[float, ...] = (1.0,)
    system_share: float = 0.2


EXAM = Diet(SHARES)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user sends, and the reply that it deserves."""

    message: Message
    reply: Reply


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation: the last turn is the question, the turns before it were answered rightly.

    `page` is the number of the screen that stands at its beginning, on the shelf it was drawn from.
    """

    task: str
    source: Source
    language: Language
    turns: tuple[Turn, ...]
    page: int | None = None
    system: str | None = None
    thinking: bool | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return what a client would send."""
        messages = [Message("system", (self.system,))] if self.system else []
        for turn in self.turns:
            messages += [turn.message, Message("assistant", (turn.reply.text(None),))]
        return tuple(messages[:-1])

    @property
    def reply(self) -> Reply:
        """Return the reply to the question."""
        return self.turns[-1].reply

    @property
    def taps(self) -> bool:
        """Return whether the answer is a tap (an app that is open, for one, has a clue and no place)."""
        return self.reply.action and self.reply.place is not None

    @property
    def text(self) -> str:
        """Return the answer as the model should write it."""
        return self.reply.text(self.thinking)


class Sampler:
    """Draws cases; everything follows from `seed`."""

    def __init__(self, shelf: Shelf, seed: int, diet: Diet = EXAM) -> None:
        self.shelf, self.diet = shelf, diet
        self.rng = np.random.default_rng(seed)
        self.by_ask: dict[tuple[str, str, Language], list[int]] = defaultdict(list)
        for number, info in enumerate(shelf.clip_infos):
            self.by_ask[info.intent, info.key, info.language].append(number)

    def draw(self, source: Source | None = None) -> Case:
        """Draw one case, from `source` or from all in their shares."""
        drawn = self._one_of(self.diet.shares) if source is None else source
        language = LANGUAGES[self.rng.integers(len(LANGUAGES))]
        on_screen = "screen" in drawn
        page = self._number(self.shelf.pages) if on_screen or self._chance(DISTRACTION_SHARE) else None
        before = int(self.rng.choice(len(self.diet.more_turns), p=self.diet.more_turns))
        others = {s: share for s, share in self.diet.shares.items() if page is not None or "screen" not in s}
        sources = [*(self._one_of(others) for _ in range(before)), drawn]
        subjects = [self._subject(each, language, page) for each in sources]
        turns = [Turn(Message("user", parts), answer) for _, parts, answer in subjects]
        if page is not None:
            image = Media("image", self.shelf.screens[page])
            turns[0] = replace(turns[0], message=Message("user", (image, *turns[0].message.parts)))
        task = subjects[-1][0] + ("+distraction" if page is not None and not on_screen else "")
        system = system_prompt(language, self.shelf.split, self.rng) if self._chance(self.diet.system_share) else None
        thinking = (None, None, None, True, False)[self.rng.integers(5)]
        return Case(task, drawn, language, tuple(turns), page, system, thinking)

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _number(self, items: Sequence[object]) -> int:
        return int(self.rng.integers(len(items)))

    def _one_of(self, weights: Mapping[T, float]) -> T:
        values = np.array(list(weights.values()))
        return list(weights)[self.rng.choice(len(values), p=values / values.sum())]

    def _subject(self, source: Source, language: Language, page: int | None) -> Subject:
        if source == "text":
            return self._talk(language)
        if source == "speech":
            return self._speech(language)
        assert page is not None
        return self._screen(language, self.shelf.pages[page], spoken=source == "screen+speech")

    def _talk(self, language: Language) -> Subject:
        """Something that needs no media."""
        task = self._one_of(TALK_WEIGHTS)
        if task == "sum":
            question, answer = draw_sum(language, self.shelf.split, self.rng)
            thought = "用户要我算数。" if language == "zh" else "The user wants a sum."
            return task, (self._vary(question, language),), Reply(thought, answer)
        topic = TOPICS[task][language]
        words = topic.wording(self.shelf.split, self.rng)
        if words.endswith("?") and task in ("identity", "abilities", "cannot"):
            words = polite(words, "question", language, self.shelf.split, self.rng)
        return task, (self._vary(words, language),), Reply(topic.thought, topic.answer)

    def _screen(self, language: Language, page: Page, spoken: bool) -> Subject:
        """A question or instruction about a screen."""
        while True:
            ask = self._draw_ask(page, language, spoken)
            answer = reply(page, ask)
            clips = self.by_ask[ask.intent, ask.key, language]
            if answer is not None and (clips or not spoken):
                break
        if spoken:
            return ask.intent, (Media("audio", self.shelf.clips[clips[self._number(clips)]]),), answer
        pool = templates(ask.intent, language, self.shelf.split)
        kind: Kind = "command" if ask.intent in ACTIONS else "question"
        wording = polite(pool[self._number(pool)], kind, language, self.shelf.split, self.rng)
        if ask.intent == "type":
            words = self._vary(wording, language).format(ask.filler)  # what is to be typed stays as it is
        else:
            words = self._vary(wording.format(ask.filler), language)
        if ask.intent in ACTIONS and self._chance(0.2):
            words += f'\n\n** Screen Info **\n\n{{"current_app": "{_app_name(page)}"}}'
        return ask.intent, (words,), answer

    def _draw_ask(self, page: Page, language: Language, spoken: bool) -> Ask:
        """Draw an ask that mostly concerns something on the page."""
        intent = self._one_of(INTENT_WEIGHTS[page.kind])
        names: dict[str, Name] = {"app": APPS, "setting": SETTINGS}.get(SLOTS.get(intent, ""), {})
        present = [element.name for element in page.elements if element.name in names]
        if present and self._chance(0.5 if intent == "exists" else 0.85):
            return Ask(intent, present[self._number(present)], language)
        if intent == "type" and not spoken and self.shelf.split == "train":
            return Ask(intent, draw_jumble(language, self.rng), language)  # to be copied, not known by heart
        return Ask(intent, draw_key(intent, language, self.shelf.split, self.rng), language)

    def _speech(self, language: Language) -> Subject:
        """Dictation, or a spoken question that needs no screen."""
        number = self._number(self.shelf.clips)
        while self.shelf.clip_infos[number].language != language:
            number = self._number(self.shelf.clips)
        info, audio = self.shelf.clip_infos[number], Media("audio", self.shelf.clips[number])
        if info.intent == TALK and self._chance(0.6):
            topic = TOPICS[info.key][language]
            return info.key, (audio,), Reply(topic.thought, topic.answer)
        orders = dictate(language, self.shelf.split)
        thought = "用户要我听写。" if language == "zh" else "The user wants a transcript."
        return "dictation", (audio, orders[self._number(orders)]), Reply(thought, info.text)

    def _vary(self, words: str, language: Language) -> str:
        """Return `words` as a hurried typist might write them."""
        if language == "en" and self._chance(0.2):
            words = words.lower()
        words = words.rstrip("?.!") if self._chance(0.2) else words
        return full_width(words) if language == "zh" and self._chance(0.5) else words


def _app_name(page: Page) -> str:
    return APPS[page.app].en if page.app else "System Home"
