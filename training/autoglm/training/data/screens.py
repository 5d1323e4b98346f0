"""Draws phone screens: home screens, settings pages, dialogs and opened apps, with what is where.

The split is by layout parameters, never by shuffling. Every geometric quantity and every wallpaper
hue comes from `layout_unit`, whose values are cut into five bands: the first 80 % of each band belong
to "train", the last 20 % to "heldout". Phone sizes are disjoint too (`PHONES`). App, colour and state
are drawn uniformly in both.

Two elements never share a cell of a 7 x 7 grid over the screen, so that one feature of the vision
encoder's last map answers for at most one element.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from cvttf_NotoSansCJK_Regular import get_TTF_path  # type: ignore[import-untyped]
from PIL import Image, ImageDraw, ImageFont

from autoglm.training.data.catalog import APPS, COLOURS, LANGUAGES, SETTINGS, Language, Split
from autoglm.training.data.icons import glyph, tile

ScreenKind = Literal["home", "settings", "dialog", "app"]
ElementKind = Literal["icon", "switch", "button", "back", "input", "title"]
Rgb = tuple[int, int, int]
T = TypeVar("T")

SCREEN_KINDS: tuple[ScreenKind, ...] = ("home", "settings", "dialog", "app")
PHONES: dict[Split, tuple[tuple[int, int], ...]] = {
    "train": ((1080, 2400), (1080, 2340), (1170, 2532), (720, 1280), (1440, 3200), (1080, 1920)),
    "heldout": ((1080, 2280), (1284, 2778), (720, 1600)),
}
DRAWN_WIDTH = 320  # pixels; training screens are drawn small, they are squashed to 224 anyway
PITCH = 0.146  # of the screen's height: more than a seventh, so rows fall into different cells
BANDS, TRAIN_SHARE = 5, 0.8

TILE_RGB: dict[str, Rgb] = {
    "red": (222, 46, 42), "orange": (246, 134, 28), "yellow": (250, 210, 40), "green": (48, 176, 78),
    "blue": (40, 112, 236), "purple": (138, 66, 208), "pink": (246, 120, 184), "gray": (132, 138, 146),
}  # fmt: skip
WHITE, DARK = (255, 255, 255), (26, 26, 32)
ACCENTS: tuple[Rgb, ...] = ((26, 115, 232), (0, 150, 110), (230, 100, 30), (120, 70, 220))

_WORDS: dict[str, dict[Language, tuple[str, ...]]] = {
    "ok": {"zh": ("确定", "好"), "en": ("OK",)},
    "cancel": {"zh": ("取消",), "en": ("Cancel",)},
    "input": {"zh": ("请输入", "说点什么"), "en": ("Type here", "Say something")},
    "heading": {"zh": ("提示", "删除文件?", "是否允许?"), "en": ("Notice", "Delete file?", "Allow access?")},
    "line": {
        "zh": ("此操作无法撤销", "请确认是否继续", "今天的内容已更新", "点击查看更多", "最近使用"),
        "en": ("This cannot be undone", "Do you want to continue?", "Updated today", "See more", "Recently used"),
    },
}


@dataclass(frozen=True, slots=True)
class Element:
    """Something on a screen, with its catalog key and its box in thousandths of the screen.

    `name` is an app (icon, title of an opened app), a setting (switch, title of its row) or "ok",
    "cancel", "back", "input". `box` is left, top, right, bottom. `on` is set for switches.
    """

    kind: ElementKind
    name: str
    box: tuple[float, float, float, float]
    colour: str | None = None
    on: bool | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """Return x and y of the middle, in thousandths of the screen."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, slots=True)
class Screen:
    """A drawn screen; `app` is the opened app ("settings" on a settings page, none on home and dialogs)."""

    image: Image.Image
    kind: ScreenKind
    app: str | None
    elements: tuple[Element, ...]
    language: Language


def layout_unit(split: Split, rng: np.random.Generator) -> float:
    """Return a number in [0, 1) from the bands of `split`: 80 % of each fifth train, 20 % held out."""
    inside = rng.uniform(0, TRAIN_SHARE) if split == "train" else rng.uniform(TRAIN_SHARE, 1)
    return float((rng.integers(BANDS) + inside) / BANDS)


@dataclass(slots=True)
class Brush:
    """A canvas in pixels with the choices that hold for the whole screen, and the elements so far."""

    split: Split
    rng: np.random.Generator
    image: Image.Image
    language: Language
    dark: bool
    draw: ImageDraw.ImageDraw = field(init=False)
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.image)

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    @property
    def ink(self) -> Rgb:
        return (236, 236, 240) if self.dark else (30, 30, 36)

    @property
    def card(self) -> Rgb:
        return (48, 48, 56) if self.dark else (255, 255, 255)

    def layout(self, low: float, high: float) -> float:
        """Return a layout parameter between `low` and `high`, from the bands of the split."""
        return low + (high - low) * layout_unit(self.split, self.rng)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def words(self, key: str) -> str:
        return self.pick(_WORDS[key][self.language])

    def box(self, x: float, y: float, w: float, h: float, fill: Rgb | None, radius: float = 0.0,
            outline: Rgb | None = None, line: int = 0) -> None:  # fmt: skip
        """Draw a rounded rectangle of w x h pixels around the point (x, y)."""
        edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        self.draw.rounded_rectangle(edges, radius, fill=fill, outline=outline, width=line)

    def stamp(self, mask: Image.Image, x: float, y: float, colour: Rgb) -> None:
        """Paint `colour` through a mask whose middle comes to the point (x, y)."""
        self.image.paste(colour, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)

    def text(self, words: str, x: float, y: float, size: float, colour: Rgb, left: bool = False) -> None:
        """Write one line, centred on (x, y) or starting at x; `size` is the font's height in pixels."""
        mask = _text_mask(words, max(6, round(size)), self.language)
        self.stamp(mask, x + mask.width / 2 if left else x, y, colour)

    def add(self, kind: ElementKind, name: str, x: float, y: float, w: float, h: float,
            colour: str | None = None, on: bool | None = None) -> None:  # fmt: skip
        """Record an element of w x h pixels around (x, y)."""
        sx, sy = 1000 / self.width, 1000 / self.height
        box = ((x - w / 2) * sx, (y - h / 2) * sy, (x + w / 2) * sx, (y + h / 2) * sy)
        self.elements.append(Element(kind, name, box, colour, on))


def draw_screen(
    split: Split,
    rng: np.random.Generator,
    kind: ScreenKind | None = None,
    size: tuple[int, int] | None = None,
) -> Screen:
    """Draw a random screen: of any kind unless `kind` is given, of a phone of the split unless `size` is.

    `size` is width and height in pixels; the default is a phone's shape drawn `DRAWN_WIDTH` wide.
    """
    kind = kind or SCREEN_KINDS[int(rng.choice(4, p=(0.5, 0.2, 0.1, 0.2)))]
    width, height = size or _drawn_size(PHONES[split][int(rng.integers(len(PHONES[split])))])
    language = LANGUAGES[int(rng.integers(2))]
    dark = bool(rng.random() < 0.4)
    brush = Brush(split, rng, Image.new("RGB", (width, height)), language, dark)
    app = _PAINTERS[kind](brush)
    return Screen(brush.image, kind, app, tuple(brush.elements), language)


def _drawn_size(phone: tuple[int, int]) -> tuple[int, int]:
    return DRAWN_WIDTH, round(DRAWN_WIDTH * phone[1] / phone[0])


def _home(b: Brush) -> None:
    _wallpaper(b)
    _status_bar(b)
    columns, rows = int(b.rng.integers(3, 6)), int(b.rng.integers(3, 7))
    margin, top = b.layout(0.02, 0.07) * b.width, b.layout(0.045, 0.085)
    pitch_x = (b.width - 2 * margin) / columns
    pitch_y = max(PITCH, (0.98 - top) / rows * b.layout(0.75, 1.0))
    top += (0.98 - top - pitch_y * rows) * b.layout(0.0, 1.0)
    side = round(min(pitch_x * b.layout(0.62, 0.84), pitch_y * b.height * 0.66))
    shape = b.pick(("square", "squircle", "circle"))
    apps, cells = _placed_apps(b, columns * rows)
    if cells[-1] >= columns * (rows - 1) and b.chance(0.5):  # the last row becomes a dock
        y = (top + (rows - 0.56) * pitch_y) * b.height
        b.box(b.width / 2, y, b.width - margin, side * 1.25, _mix(b.card, (128, 128, 128), 0.35), side * 0.3)
    for app, cell in zip(apps, cells, strict=True):
        row, column = divmod(cell, columns)
        x, y = margin + (column + 0.5) * pitch_x, (top + (row + 0.44) * pitch_y) * b.height
        _app_icon(b, app, x, y, side, shape)
        b.text(APPS[app][b.language], x, y + side * 0.5 + b.width * 0.026, b.width * 0.034, b.ink)


def _placed_apps(b: Brush, cells: int) -> tuple[list[str], list[int]]:
    """Choose 4 to 20 distinct apps and their cells, with gaps now and then."""
    count = int(b.rng.integers(4, min(20, cells) + 1))
    apps = [list(APPS)[i] for i in b.rng.permutation(len(APPS))[:count]]
    where = b.rng.permutation(cells)[:count] if b.chance(0.4) else np.arange(count)
    return apps, sorted(int(cell) for cell in where)


def _app_icon(b: Brush, app: str, x: float, y: float, side: int, shape: str) -> None:
    colour = b.pick(list(COLOURS))
    b.stamp(tile(shape, side), x, y, shade(colour, b.rng))
    white = b.chance(0.3 if colour == "yellow" else 0.8)
    share = 0.62 if shape == "circle" else 0.72
    b.stamp(glyph(app, round(side * share)), x, y, WHITE if white else DARK)
    b.add("icon", app, x, y, side, side, colour)


def shade(colour: str, rng: np.random.Generator) -> Rgb:
    """Return a catalog colour as RGB, a little different each time."""
    red, green, blue = (int(np.clip(c + rng.integers(-12, 13), 0, 255)) for c in TILE_RGB[colour])
    return red, green, blue


def _settings(b: Brush) -> str:
    _page(b)
    header = b.layout(0.056, 0.074)
    _back(b, header)
    b.text(APPS["settings"][b.language], b.width * 0.17, header * b.height, b.width * 0.055, b.ink, left=True)
    b.add("title", "settings", b.width * 0.9, header * b.height, b.width * 0.1, b.width * 0.1)
    b.stamp(glyph("settings", round(b.width * 0.1)), b.width * 0.9, header * b.height, b.ink)
    rows = int(b.rng.integers(3, 7))
    pitch = b.layout(PITCH, max(PITCH, min(0.19, 0.88 / rows)))
    margin, accent = b.layout(0.03, 0.06) * b.width, b.pick(ACCENTS)
    boxed = b.chance(0.5)
    for row, index in enumerate(b.rng.permutation(len(SETTINGS))[:rows]):
        y = (header + 0.148 + row * pitch) * b.height
        _setting_row(b, list(SETTINGS)[index], y, margin, accent, boxed)
    return "settings"


def _setting_row(b: Brush, name: str, y: float, margin: float, accent: Rgb, boxed: bool) -> None:
    w = b.width
    b.box(w / 2, y, w - 2 * margin, min(w * 0.17, b.height * 0.085), b.card, w * 0.04)
    x, side = margin + w * 0.085, w * 0.12
    if boxed:
        b.stamp(tile("squircle", round(side)), x, y, shade(b.pick(list(COLOURS)), b.rng))
    mark = round(side * (0.72 if boxed else 0.9))
    b.stamp(glyph(name, mark), x, y, WHITE if boxed else b.ink)
    b.add("title", name, x, y, side, side)
    b.text(SETTINGS[name][b.language], x + side * 0.8, y, w * 0.045, b.ink, left=True)
    on = b.chance(0.5)
    x = w - margin - w * 0.1
    switch(b, x, y, w * 0.14, on, accent)
    b.add("switch", name, x, y, w * 0.14, w * 0.075, on=on)


def switch(b: Brush, x: float, y: float, width: float, on: bool, accent: Rgb) -> None:
    """Draw a switch `width` pixels wide: knob to the right on the accent colour when on."""
    height = width * 0.54
    b.box(x, y, width, height, accent if on else (150, 150, 156), height / 2)
    b.box(x + (width - height) / 2 * (1 if on else -1), y, height * 0.78, height * 0.78, WHITE, height * 0.39)


def _dialog(b: Brush) -> None:
    _page(b)
    _cards(b, 0.08, 0.97)
    b.image.paste(Image.blend(b.image, Image.new("RGB", b.image.size), b.layout(0.4, 0.65)))
    w, h = b.width * b.layout(0.78, 0.94), b.width * b.layout(0.44, 0.62)
    x, y = b.width / 2, b.height * b.layout(0.28, 0.78)
    b.box(x, y, w, h, b.card, b.width * 0.05)
    b.text(b.words("heading"), x, y - h * 0.36, b.width * 0.058, b.ink)
    for line in range(int(b.rng.integers(1, 4))):
        b.text(b.words("line"), x, y - h * 0.17 + line * b.width * 0.058, b.width * 0.04, _mix(b.ink, b.card, 0.3))
    names = ("cancel", "ok") if b.chance(0.65) else ("ok", "cancel")
    accent, gap = b.pick(ACCENTS), b.layout(0.22, 0.25) * w
    for name, side in zip(names, (-gap, gap), strict=True):
        _button(b, name, x + side, y + h * 0.34, w * 0.4, b.width * b.layout(0.105, 0.125), accent)


def _button(b: Brush, name: str, x: float, y: float, w: float, h: float, accent: Rgb) -> None:
    filled = name == "ok"
    line = max(1, round(b.width * 0.006))
    b.box(x, y, w, h, accent if filled else b.card, h * 0.4, None if filled else _mix(b.ink, b.card, 0.35), line)
    b.text(b.words(name), x, y, b.width * 0.045, WHITE if filled else b.ink)
    b.add("button", name, x, y, w, h)


def _app(b: Brush) -> str:
    _page(b)
    app, colour = b.pick(list(APPS)), b.pick(list(COLOURS))
    header = b.layout(0.2, 0.3)
    b.draw.rectangle((0, 0, b.width, header * b.height), shade(colour, b.rng))
    ink = DARK if colour == "yellow" or b.chance(0.15) else WHITE
    _back(b, b.layout(0.056, 0.074), ink)
    side = round(b.width * b.layout(0.16, 0.26))
    x, y = b.width * b.layout(0.25, 0.75), b.height * header * b.layout(0.45, 0.6)
    b.stamp(glyph(app, side), x, y, ink)
    b.add("title", app, x, y, side, side, colour)
    b.text(APPS[app][b.language], x, y + side * 0.5 + b.width * 0.05, b.width * 0.055, ink)
    low = b.chance(0.5)
    field_y = b.layout(0.88, 0.95) if low else header + b.layout(0.06, 0.1)
    if has_input := b.chance(0.5):
        _input(b, field_y)
    _cards(b, (field_y if has_input and not low else header) + 0.05, 0.84 if has_input and low else 0.97)
    return app


def _input(b: Brush, y: float) -> None:
    w, h = b.width * b.layout(0.8, 0.92), b.width * 0.12
    line = max(1, round(b.width * 0.006))
    b.box(b.width / 2, y * b.height, w, h, b.card, h * 0.4, _mix(b.ink, b.card, 0.3), line)
    left = (b.width - w) / 2 + h * 0.4
    b.text(b.words("input"), left, y * b.height, b.width * 0.042, _mix(b.ink, b.card, 0.5), left=True)
    b.add("input", "input", b.width / 2, y * b.height, w, h)


def _back(b: Brush, y: float, ink: Rgb | None = None) -> None:
    side = round(b.width * b.layout(0.085, 0.11))
    x = b.width * 0.075
    b.stamp(glyph("back", side), x, y * b.height, ink or b.ink)
    b.add("back", "back", x, y * b.height, side, side)


def _cards(b: Brush, top: float, bottom: float) -> None:
    """Fill the page between two heights with cards of content that means nothing."""
    pitch, margin = b.layout(0.09, 0.2), b.layout(0.03, 0.07) * b.width
    for y in np.arange(top, bottom - pitch, pitch):
        h = pitch * b.height
        middle = y * b.height + h / 2
        b.box(b.width / 2, middle, b.width - 2 * margin, h * 0.86, b.card, b.width * 0.03)
        grey = _mix(b.ink, b.card, 0.75)
        if b.chance(0.5):
            b.box(margin + h * 0.45, middle, h * 0.5, h * 0.5, _mix(grey, _hue(b, 0.5, 0.8), 0.5), h * 0.08)
        left = margin + h * 0.85
        b.text(b.words("line"), left, middle - h * 0.15, b.width * 0.04, _mix(b.ink, b.card, 0.2), left=True)
        b.box(left + b.width * 0.18, middle + h * 0.2, b.width * 0.36, h * 0.08, grey, h * 0.04)


def _page(b: Brush) -> None:
    tint = _hue(b, 0.08, 0.14 if b.dark else 0.95)
    b.draw.rectangle((0, 0, b.width, b.height), tint)
    _status_bar(b)


def _wallpaper(b: Brush) -> None:
    """Fill the screen with a gradient between four corner colours of neighbouring hues."""
    saturation, value = b.layout(0.1, 0.5), b.layout(0.12, 0.4) if b.dark else b.layout(0.72, 0.96)
    corners = np.array([_hue(b, saturation, value) for _ in range(2)], dtype=np.uint8)
    order = b.rng.integers(2, size=(2, 2))
    b.image.paste(Image.fromarray(corners[order]).resize(b.image.size, Image.Resampling.BILINEAR))


def _status_bar(b: Brush) -> None:
    y, size = b.width * 0.035, b.width * 0.034
    b.text(f"{b.rng.integers(24):02d}:{b.rng.integers(60):02d}", b.width * 0.05, y, size, b.ink, left=True)
    b.box(b.width * 0.92, y, size * 1.6, size * 0.8, b.ink, size * 0.2)
    b.box(b.width * 0.85, y, size * 0.7, size * 0.7, b.ink, size * 0.35)


def _hue(b: Brush, saturation: float, value: float) -> Rgb:
    red, green, blue = colorsys.hsv_to_rgb(b.layout(0, 1), saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def _mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@lru_cache(maxsize=4096)
def _text_mask(words: str, size: int, language: Language) -> Image.Image:
    font = _font(size, language if any(ord(c) > 127 for c in words) else "en")
    left, top, right, bottom = font.getbbox(words)
    mask = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(mask).text((-left, -top), words, fill=255, font=font)
    return mask


@lru_cache(maxsize=256)
def _font(size: int, language: Language) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if language == "zh":
        return ImageFont.truetype(get_TTF_path(), size)
    return ImageFont.load_default(size)


_PAINTERS = {"home": _home, "settings": _settings, "dialog": _dialog, "app": _app}
