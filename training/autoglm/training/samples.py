"""Draws conversations with their true answers from a store of encoded screens and clips."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from autoglm.common.modalities import MediaKind
from autoglm.fusion.prompt import Media, PromptMessage
from autoglm.training.data.catalog import APPS, LANGUAGES, SETTINGS, Language, Name
from autoglm.training.data.prompts import system_prompt
from autoglm.training.data.screens import ScreenKind
from autoglm.training.data.talk import TOPICS, draw_jumble, draw_repeat, draw_sum
from autoglm.training.data.tasks import ACTIONS, Ask, Page, Reply, reply, typing
from autoglm.training.data.wording import SLOTS, Kind, dictate, full_width, polite, templates
from autoglm.training.stages.features import NOISE, TALK, WORDS, FeatureStore, draw_key

Source = Literal["text", "screen", "screen+speech", "speech"]
T = TypeVar("T")
Subject = tuple[str, tuple[str | Media, ...], Reply]
SHARES: dict[Source, float] = {"text": 0.22, "screen": 0.4, "screen+speech": 0.22, "speech": 0.16}
INTENT_WEIGHTS: dict[ScreenKind, dict[str, float]] = {  # on each kind of page, mostly what it is there for
    "home": {
        "open": 6.0, "colour": 4.0, "where": 3.0, "exists": 3.0, "count": 4.0, "which_app": 0.5,
        "turn_on": 0.4, "turn_off": 0.4, "back": 0.4, "type": 1.0,
    },
    "settings": {
        "switch_state": 4.0, "turn_on": 3.0, "turn_off": 3.0, "which_app": 1.0, "open": 1.5, "back": 0.5, "type": 0.5,
    },
    "dialog": {"confirm": 3.0, "cancel": 3.0, "open": 1.0, "back": 0.5, "type": 0.5},
    "app": {"which_app": 3.0, "open": 3.0, "type": 3.0, "back": 1.0, "turn_on": 0.5, "turn_off": 0.5},
}  # fmt: skip
BLIND = frozenset({"back", "type"})  # what is done without a look at the screen
TALK_WEIGHTS = {
    "sum": 1.6, "identity": 1.0, "abilities": 0.5, "greeting": 0.3, "thanks": 0.3, "goodbye": 0.2, "cannot": 0.7,
    "repeat": 1.2, "type": 1.0,
}  # fmt: skip
DISTRACTION_SHARE, NOISE_SHARE = 0.3, 0.1  # of the questions that need no picture, or no recording


@dataclass(frozen=True, slots=True)
class TaskMixture:
    """The tasks that a sampler draws: the share of each source, the probabilities of 0, 1, 2 … turns before the
    question (several questions on one screen cost training little more than one), how often every turn has a screenshot
    of its own, and how often there is a system prompt."""

    shares: Mapping[Source, float]
    more_turns: tuple[float, ...] = (1.0,)
    steps_share: float = 0.0
    system_share: float = 0.2


EVAL_MIXTURE = TaskMixture(SHARES)
AGENT_MIXTURE = TaskMixture({"screen": 0.7, "screen+speech": 0.3}, more_turns=(0.0, 0.5, 0.5), steps_share=1.0)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user sends, and the reply that it deserves.

    `needs` are the media that tell the reply, `image` the number of the picture that it looks at. Agents drop
    old screenshots to save tokens: with `shown` false nothing in the conversation tells the reply any more.
    """

    message: PromptMessage
    reply: Reply
    needs: frozenset[MediaKind] = frozenset()
    image: int = 0
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation: the last turn is the question, the turns before it were answered rightly."""

    task: str
    source: Source
    language: Language
    turns: tuple[Turn, ...]
    system: str | None = None
    thinking: bool | None = None

    @property
    def messages(self) -> tuple[PromptMessage, ...]:
        """Return what a client would send."""
        messages = [PromptMessage("system", (self.system,))] if self.system else []
        for turn in self.turns:
            messages += [turn.message, PromptMessage("assistant", (turn.reply.text(None),))]
        return tuple(messages[:-1])

    @property
    def reply(self) -> Reply:
        """Return the reply to the question."""
        return self.turns[-1].reply

    @property
    def media(self) -> list[Media]:
        """Return every picture and recording of the conversation."""
        return [part for turn in self.turns for part in turn.message.parts if isinstance(part, Media)]

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

    def __init__(self, store: FeatureStore, seed: int, mixture: TaskMixture = EVAL_MIXTURE) -> None:
        self.store, self.mixture = store, mixture
        self.rng = np.random.default_rng(seed)
        self.by_ask: dict[tuple[str, str, Language], list[int]] = defaultdict(list)
        for number, info in enumerate(store.clip_infos):
            self.by_ask[info.intent, info.key, info.language].append(number)
        self.noises = [number for number, info in enumerate(store.clip_infos) if info.intent == NOISE]

    def draw(self, source: Source | None = None) -> Case:
        """Draw one case, from `source` or from all in their shares."""
        drawn = self._one_of(self.mixture.shares) if source is None else source
        language = LANGUAGES[self.rng.integers(len(LANGUAGES))]
        before = int(self.rng.choice(len(self.mixture.more_turns), p=self.mixture.more_turns))
        if before and "screen" in drawn and self._chance(self.mixture.steps_share):
            task, turns = self._steps(drawn, language, before)
        else:
            task, turns = self._questions(drawn, language, before)
        system = (
            system_prompt(language, self.store.split, self.rng) if self._chance(self.mixture.system_share) else None
        )
        thinking = (None, None, None, True, False)[self.rng.integers(5)]
        return Case(task, drawn, language, tuple(turns), system, thinking)

    def _questions(self, source: Source, language: Language, before: int) -> tuple[str, list[Turn]]:
        """Several questions about one screen, or about none, perhaps with an unrelated picture or noise."""
        page = self._number(self.store.pages) if "screen" in source or self._chance(DISTRACTION_SHARE) else None
        others = {s: share for s, share in self.mixture.shares.items() if page is not None or "screen" not in s}
        sources = [*(self._one_of(others) for _ in range(before)), source]
        media = [Media("image", self.store.screens[page])] if page is not None else []
        if "speech" not in source and self.noises and self._chance(NOISE_SHARE):
            media.append(self._clip(self.noises[self._number(self.noises)]))
        distracted, turns = bool(media), list[Turn]()
        for each in sources:
            task, parts, answer = self._subject(each, language, page)
            turns.append(Turn(PromptMessage("user", (*media, *parts)), answer, _needs(each, task)))
            media = []
        return task + ("+distraction" if distracted and "screen" not in source else ""), turns

    def _steps(self, source: Source, language: Language, before: int) -> tuple[str, list[Turn]]:
        """An agent's steps, each with a screenshot of its own; mostly the old ones are dropped."""
        dropped, turns = self._chance(0.7), list[Turn]()
        for number in range(before + 1):
            page = self._number(self.store.pages)
            task, parts, answer = self._subject(source, language, page)
            shown = number == before or not dropped
            media = (Media("image", self.store.screens[page]),) if shown else ()
            image = 0 if dropped else number
            turns.append(Turn(PromptMessage("user", (*media, *parts)), answer, _needs(source, task), image, shown))
        return task, turns

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
        return self._screen(language, self.store.pages[page], spoken=source == "screen+speech")

    def _talk(self, language: Language) -> Subject:
        """Something that needs no media."""
        task = self._one_of(TALK_WEIGHTS)
        if task == "sum":
            question, answer = draw_sum(language, self.store.split, self.rng)
            thought = "用户要我算数。" if language == "zh" else "The user wants a sum."
            return task, (self._vary(question, language),), Reply(thought, answer)
        if task == "repeat":
            text = self._text(language)
            thought = "用户要我重复一句话。" if language == "zh" else "The user wants me to repeat something."
            return task, (draw_repeat(language, text, self.store.split, self.rng),), Reply(thought, text)
        if task == "type":
            ask = Ask("type", self._text(language), language)
            return task, (self._words(ask),), typing(ask)
        topic = TOPICS[task][language]
        words = topic.wording(self.store.split, self.rng)
        if words.endswith("?") and task in ("identity", "abilities", "cannot"):
            words = polite(words, "question", language, self.store.split, self.rng)
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
            return ask.intent, (self._clip(clips[self._number(clips)]),), answer
        words = self._words(ask)
        if ask.intent in ACTIONS and self._chance(0.2):
            words += f'\n\n** Screen Info **\n\n{{"current_app": "{_app_name(page)}"}}'
        return ask.intent, (words,), answer

    def _words(self, ask: Ask) -> str:
        """Put `ask` in words."""
        pool = templates(ask.intent, ask.language, self.store.split)
        kind: Kind = "command" if ask.intent in ACTIONS else "question"
        wording = polite(pool[self._number(pool)], kind, ask.language, self.store.split, self.rng)
        if ask.intent == "type":
            return self._vary(wording, ask.language).format(ask.filler)  # what is to be typed stays as it is
        return self._vary(wording.format(ask.filler), ask.language)

    def _text(self, language: Language) -> str:
        """Draw a text to copy: in training any words, lest it be known by heart."""
        if self.store.split == "train":
            return draw_jumble(language, self.rng)
        return draw_key("type", language, self.store.split, self.rng)

    def _draw_ask(self, page: Page, language: Language, spoken: bool) -> Ask:
        """Draw an ask that mostly concerns something on the page."""
        intent = self._one_of(INTENT_WEIGHTS[page.kind])
        names: dict[str, Name] = {"app": APPS, "setting": SETTINGS}.get(SLOTS.get(intent, ""), {})
        present = [element.name for element in page.elements if element.name in names]
        if present and self._chance(0.5 if intent == "exists" else 0.85):
            return Ask(intent, present[self._number(present)], language)
        if intent == "type" and not spoken:
            return Ask(intent, self._text(language), language)
        return Ask(intent, draw_key(intent, language, self.store.split, self.rng), language)

    def _speech(self, language: Language) -> Subject:
        """Dictation, or a spoken question that needs no screen."""
        number = self._number(self.store.clips)
        while self.store.clip_infos[number].language != language or self.store.clip_infos[number].intent == NOISE:
            number = self._number(self.store.clips)
        info, audio = self.store.clip_infos[number], self._clip(number)
        if info.intent == TALK and self._chance(0.6):
            topic = TOPICS[info.key][language]
            return info.key, (audio,), Reply(topic.thought, topic.answer)
        orders = dictate(language, self.store.split)
        thought = "用户要我听写。" if language == "zh" else "The user wants a transcript."
        task = "dictation: loose words" if info.intent == WORDS else "dictation"
        return task, (audio, orders[self._number(orders)]), Reply(thought, info.text)

    def _clip(self, number: int) -> Media:
        return Media("audio", self.store.clips[number], self.store.clip_infos[number].heard)

    def _vary(self, words: str, language: Language) -> str:
        """Return `words` as a hurried typist might write them."""
        if language == "en" and self._chance(0.2):
            words = words.lower()
        words = words.rstrip("?.!") if self._chance(0.2) else words
        return full_width(words) if language == "zh" and self._chance(0.5) else words


def _app_name(page: Page) -> str:
    return APPS[page.app].en if page.app else "System Home"


def _needs(source: Source, task: str) -> frozenset[MediaKind]:
    kinds: set[MediaKind] = set()
    if "screen" in source and task not in BLIND:
        kinds.add("image")
    if "speech" in source:
        kinds.add("audio")
    return frozenset(kinds)
