"""What is asked about a screen, and the true answer, action and place for it.

An answer is made from the screen's elements alone, so text and speech share it. Points are given in
steps of ten thousandths: one per cent of the screen, finer than any element.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from autoglm.training.data.catalog import APPS, COLOURS, SETTINGS, Language, Name, region
from autoglm.training.data.screens import Element, ScreenKind

ACTIONS = frozenset({"open", "turn_on", "turn_off", "back", "confirm", "cancel", "type"})
Place = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Page:
    """What is on a screen, without its picture."""

    kind: ScreenKind
    app: str | None
    elements: tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """An intent of wording.TEMPLATES with what fills its slot: a catalog key, a text, or nothing."""

    intent: str
    key: str
    language: Language

    @property
    def filler(self) -> str:
        """Return the words that fill the slot."""
        name = APPS.get(self.key) or SETTINGS.get(self.key)
        return name[self.language] if name and self.intent != "type" else self.key


@dataclass(frozen=True, slots=True)
class Reply:
    """The thought, the answer (an action's call for instructions), and the box that it points at.

    `clue` is the box that tells what is at `place`, when `place` itself does not.
    """

    thought: str
    answer: str
    place: Place | None = None
    action: bool = False
    clue: Place | None = None

    @property
    def look(self) -> Place | None:
        """Return the box that shows what the question names."""
        return self.clue or self.place

    def text(self, thinking: bool | None) -> str:
        """Return what the model says; `thinking` is the request's enable_thinking."""
        answer = f"<answer>{self.answer}</answer>" if self.action else self.answer
        thinks = self.action if thinking is None else thinking
        return f"<think>{self.thought}</think>{answer}" if thinks else answer


def point(element: Element) -> tuple[int, int]:
    """Return the middle of an element in steps of ten, 0 to 990."""
    x, y = element.centre
    return min(990, round(x / 10) * 10), min(990, round(y / 10) * 10)


def reply(page: Page, ask: Ask) -> Reply | None:
    """Return the true reply to `ask` about `page`; None where the question makes no sense there."""
    return _REPLIES[ask.intent](page, ask)


def _say(ask: Ask, zh: str, en: str) -> str:
    return zh if ask.language == "zh" else en


def _find(page: Page, name: str, kind: str | None = None) -> Element | None:
    return next((e for e in page.elements if e.name == name and kind in (None, e.kind)), None)


def _title(page: Page, name: str) -> Place | None:
    """Return where an opened app, or the row of a switch, is named: all switches look alike."""
    title = _find(page, name, "title")
    return title.box if title else None


def _spot(element: Element) -> Name:
    return region(*(float(value) for value in point(element)))


def _tap(ask: Ask, element: Element, zh: str, en: str) -> Reply:
    """Return a tap on `element`, which is called `zh` or `en`."""
    spot, (x, y) = _spot(element), point(element)
    thought = _say(ask, f"{zh}在屏幕{spot.zh}。点击它。", f"{en} is at the {spot.en}. Tap it.")
    return Reply(thought, f'do(action="Tap", element=[{x},{y}])', element.box, action=True)


def _launch(ask: Ask, app: Name) -> Reply:
    thought = _say(ask, f"屏幕上没有{app.zh}。直接启动它。", f"{app.en} is not on the screen. Launch it.")
    return Reply(thought, f'do(action="Launch", app="{app[ask.language]}")', action=True)


def _finish(ask: Ask, zh: str, en: str) -> Reply:
    return Reply(_say(ask, f"{zh}。任务完成。", f"{en}. The task is done."),
                 f'finish(message="{_say(ask, zh, en)}")', action=True)  # fmt: skip


def _open(page: Page, ask: Ask) -> Reply:
    app = APPS[ask.key]
    if page.kind == "app" and page.app == ask.key:
        return replace(_finish(ask, f"{app.zh}已打开", f"{app.en} is open"), clue=_title(page, ask.key))
    icon = _find(page, ask.key, "icon")
    return _tap(ask, icon, f"{app.zh}图标", f"The {app.en} icon") if icon else _launch(ask, app)


def _colour(page: Page, ask: Ask) -> Reply | None:
    icon, app = _find(page, ask.key, "icon"), APPS[ask.key]
    if icon is None or icon.colour is None:
        return None
    colour = COLOURS[icon.colour]
    thought = _say(ask, f"{app.zh}图标在屏幕{_spot(icon).zh}。", f"The {app.en} icon is at the {_spot(icon).en}.")
    return Reply(thought, _say(ask, f"{app.zh}是{colour.zh}的。", f"{app.en} is {colour.en}."), icon.box)


def _where(page: Page, ask: Ask) -> Reply | None:
    if page.kind != "home":
        return None
    icon, app = _find(page, ask.key, "icon"), APPS[ask.key]
    if icon is None:
        return _absent(ask, app)
    spot = _spot(icon)
    thought = _say(ask, f"找到了{app.zh}图标。", f"I found the {app.en} icon.")
    return Reply(thought, _say(ask, f"{app.zh}在屏幕{spot.zh}。", f"{app.en} is at the {spot.en}."), icon.box)


def _absent(ask: Ask, app: Name) -> Reply:
    thought = _say(ask, f"没有找到{app.zh}图标。", f"I do not find the {app.en} icon.")
    return Reply(thought, _say(ask, f"屏幕上没有{app.zh}。", f"{app.en} is not on the screen."))


def _exists(page: Page, ask: Ask) -> Reply | None:
    if page.kind != "home":
        return None
    icon, app = _find(page, ask.key, "icon"), APPS[ask.key]
    if icon is None:
        thought, answer = _absent(ask, app).thought, _say(ask, f"没有{app.zh}。", f"No, there is no {app.en}.")
        return Reply(thought, answer)
    thought = _say(ask, f"找到了{app.zh}图标。", f"I found the {app.en} icon.")
    return Reply(thought, _say(ask, f"有{app.zh}。", f"Yes, there is {app.en}."), icon.box)


def _count(page: Page, ask: Ask) -> Reply | None:
    if page.kind != "home":
        return None
    n = sum(element.kind == "icon" for element in page.elements)
    thought = _say(ask, "数一数屏幕上的图标。", "Count the icons on the screen.")
    return Reply(thought, _say(ask, f"屏幕上有{n}个应用。", f"There are {n} apps."))


def _which_app(page: Page, ask: Ask) -> Reply | None:
    if page.kind == "dialog" or (page.kind == "app" and page.app is None):
        return None
    thought = _say(ask, "看看屏幕上是哪个页面。", "Look at which page is on the screen.")
    if page.kind == "home":
        return Reply(thought, _say(ask, "现在是主屏幕。", "This is the home screen."))
    open_app = page.app or "settings"
    app = APPS[open_app]
    answer = _say(ask, f"现在打开的是{app.zh}。", f"{app.en} is open.")
    return Reply(thought, answer, clue=_title(page, open_app))


def _switch_state(page: Page, ask: Ask) -> Reply | None:
    switch, setting = _find(page, ask.key, "switch"), SETTINGS[ask.key]
    if switch is None:
        return None
    thought = _say(ask, f"找到了{setting.zh}开关。", f"I found the {setting.en} switch.")
    zh, en = ("是打开的", "is on") if switch.on else ("是关闭的", "is off")
    answer = _say(ask, f"{setting.zh}{zh}。", f"{setting.en} {en}.")
    return Reply(thought, answer, switch.box, clue=_title(page, ask.key))


def _turn(on: bool) -> Callable[[Page, Ask], Reply]:
    def turn(page: Page, ask: Ask) -> Reply:
        switch, setting = _find(page, ask.key, "switch"), SETTINGS[ask.key]
        if switch is None:
            return _launch(ask, APPS["settings"])
        if switch.on == on:
            zh, en = ("已打开", "is on") if on else ("已关闭", "is off")
            done = _finish(ask, f"{setting.zh}{zh}", f"{setting.en} {en}")
            return replace(done, clue=_title(page, ask.key))
        tap = _tap(ask, switch, f"{setting.zh}开关", f"The {setting.en} switch")
        return replace(tap, clue=_title(page, ask.key))

    return turn


def _back(_page: Page, ask: Ask) -> Reply:
    return Reply(_say(ask, "返回上一页。", "Go back to the previous page."), 'do(action="Back")', action=True)


def _press(button: Literal["ok", "cancel"], zh: str, en: str) -> Callable[[Page, Ask], Reply | None]:
    def press(page: Page, ask: Ask) -> Reply | None:
        element = _find(page, button, "button")
        return _tap(ask, element, f"{zh}按钮", f"The {en} button") if element else None

    return press


def typing(ask: Ask) -> Reply:
    """Return the reply to an order to type, which is the same on every page."""
    thought = _say(ask, "用户要输入文字。", "The user wants to type text.")
    return Reply(thought, f'do(action="Type", text="{ask.key}")', action=True)


_REPLIES: dict[str, Callable[[Page, Ask], Reply | None]] = {
    "open": _open,
    "colour": _colour,
    "where": _where,
    "exists": _exists,
    "count": _count,
    "which_app": _which_app,
    "switch_state": _switch_state,
    "turn_on": _turn(True),
    "turn_off": _turn(False),
    "back": _back,
    "confirm": _press("ok", "确定", "OK"),
    "cancel": _press("cancel", "取消", "Cancel"),
    "type": lambda _page, ask: typing(ask),
}
