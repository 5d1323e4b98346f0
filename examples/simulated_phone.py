"""A simulated phone: home screen, settings and apps, whose pages change with the actions.

The screens are of the kind that the bundle `autoglm-phone-nano` knows, with held-out lengths, places, hues and phone
sizes: none of them was in the training data. Needs the extra `autoglm-mesh[train]`.
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autoglm.training.data.catalog import APPS, LANGUAGES, Language
from autoglm.training.data.screens import ACCENTS, PHONES, Brush, Element, Screen, ScreenKind, draw_screen, switch

WIDTH, STRIP_HEIGHT, GAP = 360, 400, 8  # pixels
HOME, SETTINGS = "home", "settings"
PAGES = (HOME, *APPS)
INK, WHITE = (30, 30, 36), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class State:
    """What was done to a phone: the page in front, the switches that are on, and (app, text) of every filled field."""

    page: str
    on: frozenset[str]
    typed: frozenset[tuple[str, str]] = frozenset()


class SimulatedPhone:
    """A phone whose looks, apps and switches follow from `seed`; every app but the settings has a text field."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, len(PAGES)])
        self.language: Language = LANGUAGES[rng.integers(len(LANGUAGES))]
        width, height = PHONES["heldout"][rng.integers(len(PHONES["heldout"]))]
        self._seed, self._size = seed, (WIDTH, round(WIDTH * height / width))
        self._accent = ACCENTS[rng.integers(len(ACCENTS))]
        self._pages: dict[str, Screen] = {}
        self._seen: list[Image.Image] = []
        self.state = State(HOME, frozenset(each.name for each in self.page(SETTINGS).elements if each.on))

    @property
    def current_app(self) -> str:
        """English name of the app in front, "System Home" if none is."""
        return "System Home" if self.state.page == HOME else APPS[self.state.page].en

    def page(self, name: str) -> Screen:
        """Return a page as it is before anything is done to it."""
        if name not in self._pages:
            self._pages[name] = self._draw(name)
        return self._pages[name]

    def screenshot(self) -> bytes:
        """Return what is on the screen as PNG."""
        screen, typed = self.page(self.state.page), dict(self.state.typed).get(self.state.page)
        brush = Brush("heldout", np.random.default_rng(0), screen.image.copy(), self.language, dark=False)
        for element in screen.elements:
            if element.kind == "switch":
                self._paint_switch(brush, element)
            elif element.kind == "input" and typed:
                _paint_text(brush, element, typed)
        self._seen.append(brush.image)
        file = io.BytesIO()
        brush.image.save(file, "PNG")
        return file.getvalue()

    def do(self, action: str, arguments: dict[str, Any]) -> None:
        """Carry out an action; one that has no effect here changes nothing."""
        match action:
            case "Tap":
                self._tap(*arguments["element"])
            case "Launch":
                self._open(next((key for key, name in APPS.items() if arguments["app"] in (name.zh, name.en)), None))
            case "Type" if any(each.kind == "input" for each in self.page(self.state.page).elements):
                filled = dict(self.state.typed) | {self.state.page: arguments["text"]}
                self.state = replace(self.state, typed=frozenset(filled.items()))
            case "Back" | "Home":
                self._open(HOME)

    def save_strip(self, path: Path) -> None:
        """Write all screenshots that were taken and one of now, side by side, as a PNG file."""
        self.screenshot()
        shots = [shot.resize((shot.width * STRIP_HEIGHT // shot.height, STRIP_HEIGHT)) for shot in self._seen]
        step = shots[0].width + GAP
        strip = Image.new("RGB", (step * len(shots) - GAP, STRIP_HEIGHT), WHITE)
        for number, shot in enumerate(shots):
            strip.paste(shot, (step * number, 0))
        strip.quantize(128).save(path, "PNG", optimize=True)

    def _draw(self, name: str) -> Screen:
        """Draw until the page is `name`, in the phone's language."""
        rng = np.random.default_rng([self._seed, PAGES.index(name)])
        kind: ScreenKind = "home" if name == HOME else "settings" if name == SETTINGS else "app"
        while True:
            screen = draw_screen("heldout", rng, kind, self._size)
            fits = screen.language == self.language and screen.app == (None if name == HOME else name)
            if fits and (kind != "app" or any(each.kind == "input" for each in screen.elements)):
                return screen

    def _tap(self, x: int, y: int) -> None:
        for element in self.page(self.state.page).elements:
            left, top, right, bottom = element.box
            if left <= x <= right and top <= y <= bottom:
                if element.kind == "icon":
                    self._open(element.name)
                elif element.kind == "switch":
                    self.state = replace(self.state, on=self.state.on ^ {element.name})
                elif element.kind == "back":
                    self._open(HOME)

    def _open(self, page: str | None) -> None:
        if page is not None:
            self.state = replace(self.state, page=page)

    def _paint_switch(self, brush: Brush, element: Element) -> None:
        x, y, width, _ = _pixels(brush, element)
        switch(brush, x, y, width, element.name in self.state.on, self._accent)


def _paint_text(brush: Brush, element: Element, text: str) -> None:
    x, y, width, height = _pixels(brush, element)
    brush.box(x, y, width, height, WHITE, height * 0.4)
    brush.text(text, x - width / 2 + height * 0.4, y, brush.width * 0.042, INK, left=True)


def _pixels(brush: Brush, element: Element) -> tuple[float, float, float, float]:
    """Return x and y of the middle, width and height."""
    left, top, right, bottom = element.box
    x, y = element.centre
    across, down = brush.width / 1000, brush.height / 1000
    return x * across, y * down, (right - left) * across, (bottom - top) * down
