"""Glyphs of apps, settings and controls, drawn by code and cached as alpha masks.

Every glyph is a function on a `Pen` over the unit square. Shapes are bold and coarse on purpose: the
encoder sees a phone screen squashed to 224 x 224, where a glyph is about 20 x 10 pixels.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from PIL import Image, ImageDraw

MASTER = 256
Point = tuple[float, float]
INK, CUT = 255, 0


class Pen:
    """Draws on an 8-bit mask in coordinates of the unit square; `CUT` erases what `INK` drew."""

    def __init__(self, size: int = MASTER) -> None:
        self.mask = Image.new("L", (size, size), CUT)
        self._draw = ImageDraw.Draw(self.mask)
        self._size = size

    def _scale(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._size, y * self._size) for x, y in points]

    def box(self, left: float, top: float, right: float, bottom: float, radius: float = 0.06, ink: int = INK) -> None:
        """Fill a rounded rectangle."""
        self._draw.rounded_rectangle(self._scale([(left, top), (right, bottom)]), radius * self._size, fill=ink)

    def disc(self, x: float, y: float, radius: float, ink: int = INK) -> None:
        """Fill a circle."""
        self._draw.ellipse(self._scale([(x - radius, y - radius), (x + radius, y + radius)]), fill=ink)

    def ring(self, x: float, y: float, radius: float, width: float) -> None:
        """Draw a circle of outer `radius` whose line is `width` thick."""
        self.disc(x, y, radius)
        self.disc(x, y, radius - width, CUT)

    def polygon(self, *points: Point, ink: int = INK) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._scale(points), fill=ink)

    def line(self, *points: Point, width: float = 0.1, ink: int = INK) -> None:
        """Draw a polyline with round ends and joints."""
        self._draw.line(self._scale(points), fill=ink, width=int(width * self._size), joint="curve")
        for x, y in points:
            self.disc(x, y, width / 2, ink)

    def arc(self, x: float, y: float, radius: float, start: float, end: float, width: float = 0.1) -> None:
        """Draw an arc, clockwise from `start` to `end` degrees; zero is three o'clock."""
        box = self._scale([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.arc((*box[0], *box[1]), start, end, fill=INK, width=int(width * self._size))


def _camera(p: Pen) -> None:
    p.box(0.02, 0.24, 0.98, 0.9, 0.1)
    p.box(0.32, 0.1, 0.68, 0.4)
    p.disc(0.5, 0.57, 0.24, CUT)
    p.disc(0.5, 0.57, 0.13)


def _gallery(p: Pen) -> None:
    p.box(0.02, 0.08, 0.98, 0.92, 0.1)
    p.box(0.12, 0.18, 0.88, 0.82, 0.02, CUT)
    p.polygon((0.14, 0.82), (0.42, 0.36), (0.6, 0.62), (0.7, 0.5), (0.86, 0.82))
    p.disc(0.7, 0.32, 0.1)


def _music(p: Pen) -> None:
    p.disc(0.22, 0.8, 0.19)
    p.disc(0.78, 0.7, 0.19)
    p.polygon((0.29, 0.16), (0.97, 0.02), (0.97, 0.24), (0.29, 0.38))
    p.box(0.29, 0.2, 0.41, 0.82, 0.02)
    p.box(0.85, 0.1, 0.97, 0.72, 0.02)


def _maps(p: Pen) -> None:
    p.disc(0.5, 0.36, 0.35)
    p.polygon((0.19, 0.52), (0.81, 0.52), (0.5, 1.0))
    p.disc(0.5, 0.36, 0.15, CUT)


def _mail(p: Pen) -> None:
    p.box(0.0, 0.14, 1.0, 0.86, 0.08)
    p.line((0.03, 0.2), (0.5, 0.58), (0.97, 0.2), width=0.1, ink=CUT)


def _calendar(p: Pen) -> None:
    p.box(0.08, 0.1, 0.92, 0.96, 0.08)
    p.box(0.24, 0.0, 0.34, 0.2, 0.03)
    p.box(0.66, 0.0, 0.76, 0.2, 0.03)
    p.box(0.18, 0.36, 0.82, 0.86, 0.02, CUT)
    p.box(0.52, 0.56, 0.76, 0.8, 0.02)


def _clock(p: Pen) -> None:
    p.disc(0.5, 0.5, 0.5)
    p.line((0.5, 0.16), (0.5, 0.52), (0.76, 0.66), width=0.12, ink=CUT)


def _calculator(p: Pen) -> None:
    p.box(0.4, 0.02, 0.6, 0.66, 0.02)
    p.box(0.1, 0.24, 0.9, 0.44, 0.02)
    p.box(0.1, 0.78, 0.9, 0.98, 0.02)


def _weather(p: Pen) -> None:
    p.disc(0.7, 0.3, 0.24)
    for end in ((0.7, 0.0), (0.98, 0.3), (0.46, 0.06), (0.92, 0.06), (0.92, 0.54)):
        p.line((0.7, 0.3), end, width=0.06)
    p.disc(0.4, 0.58, 0.34, CUT)
    p.disc(0.4, 0.6, 0.26)
    p.disc(0.2, 0.74, 0.2)
    p.box(0.1, 0.64, 0.9, 0.94, 0.15)


def _settings(p: Pen) -> None:
    for start, end in (((0.5, 0.04), (0.5, 0.96)), ((0.04, 0.5), (0.96, 0.5))):
        p.line(start, end, width=0.2)
    for start, end in (((0.18, 0.18), (0.82, 0.82)), ((0.18, 0.82), (0.82, 0.18))):
        p.line(start, end, width=0.2)
    p.disc(0.5, 0.5, 0.36)
    p.disc(0.5, 0.5, 0.18, CUT)


def _phone(p: Pen) -> None:
    p.line((0.2, 0.22), (0.3, 0.5), (0.5, 0.7), (0.78, 0.8), width=0.2)
    p.line((0.16, 0.14), (0.32, 0.3), width=0.26)
    p.line((0.7, 0.68), (0.86, 0.84), width=0.26)


def _messages(p: Pen) -> None:
    p.box(0.0, 0.06, 1.0, 0.74, 0.3)
    p.polygon((0.16, 0.6), (0.5, 0.7), (0.12, 0.98))
    for x in (0.26, 0.5, 0.74):
        p.disc(x, 0.4, 0.08, CUT)


def _browser(p: Pen) -> None:
    p.ring(0.5, 0.5, 0.5, 0.1)
    p.box(0.02, 0.44, 0.98, 0.56, 0)
    p.box(0.44, 0.02, 0.56, 0.98, 0)
    p.arc(0.02, 0.5, 0.4, -60, 60, 0.08)
    p.arc(0.98, 0.5, 0.4, 120, 240, 0.08)


def _notes(p: Pen) -> None:
    p.box(0.14, 0.0, 0.86, 1.0, 0.06)
    for y in (0.22, 0.46, 0.7):
        p.box(0.26, y, 0.74, y + 0.1, 0, CUT)


def _files(p: Pen) -> None:
    p.box(0.0, 0.1, 0.46, 0.5, 0.08)
    p.box(0.0, 0.24, 1.0, 0.92, 0.08)
    p.box(0.0, 0.36, 1.0, 0.42, 0, CUT)


def _contacts(p: Pen) -> None:
    p.disc(0.5, 0.26, 0.25)
    p.disc(0.5, 1.0, 0.44)
    p.box(0.0, 0.98, 1.0, 1.0, 0, CUT)


def _video(p: Pen) -> None:
    p.polygon((0.14, 0.02), (0.98, 0.5), (0.14, 0.98))


def _store(p: Pen) -> None:
    p.arc(0.5, 0.3, 0.28, 180, 360, 0.1)
    p.polygon((0.1, 0.32), (0.9, 0.32), (1.0, 1.0), (0.0, 1.0))
    p.disc(0.32, 0.5, 0.07, CUT)
    p.disc(0.68, 0.5, 0.07, CUT)


def _health(p: Pen) -> None:
    p.disc(0.26, 0.32, 0.26)
    p.disc(0.74, 0.32, 0.26)
    p.polygon((0.03, 0.43), (0.26, 0.2), (0.5, 0.28), (0.74, 0.2), (0.97, 0.43), (0.5, 0.98))


def _wallet(p: Pen) -> None:
    p.box(0.0, 0.12, 1.0, 0.9, 0.12)
    p.box(0.5, 0.36, 1.0, 0.68, 0.1, CUT)
    p.box(0.64, 0.42, 0.94, 0.62, 0.08)


def _recorder(p: Pen) -> None:
    p.box(0.34, 0.0, 0.66, 0.6, 0.16)
    p.arc(0.5, 0.42, 0.36, 0, 180, 0.1)
    p.box(0.44, 0.74, 0.56, 0.96, 0)
    p.box(0.24, 0.88, 0.76, 1.0, 0.04)


def _books(p: Pen) -> None:
    p.polygon((0.0, 0.1), (0.46, 0.28), (0.46, 0.94), (0.0, 0.76))
    p.polygon((1.0, 0.1), (0.54, 0.28), (0.54, 0.94), (1.0, 0.76))


def _games(p: Pen) -> None:
    p.box(0.0, 0.22, 1.0, 0.72, 0.24)
    p.disc(0.18, 0.7, 0.18)
    p.disc(0.82, 0.7, 0.18)
    p.box(0.22, 0.3, 0.32, 0.6, 0, CUT)
    p.box(0.12, 0.4, 0.42, 0.5, 0, CUT)
    p.disc(0.74, 0.45, 0.12, CUT)


def _compass(p: Pen) -> None:
    p.ring(0.5, 0.5, 0.5, 0.09)
    p.polygon((0.8, 0.2), (0.6, 0.6), (0.4, 0.4))
    p.polygon((0.2, 0.8), (0.54, 0.56), (0.44, 0.46))


def _wifi(p: Pen) -> None:
    p.disc(0.5, 0.84, 0.13)
    for radius in (0.4, 0.68):
        p.arc(0.5, 0.84, radius, 222, 318, 0.14)


def _bluetooth(p: Pen) -> None:
    p.line((0.24, 0.28), (0.76, 0.72), (0.5, 0.94), (0.5, 0.06), (0.76, 0.28), (0.24, 0.72), width=0.11)


def _airplane(p: Pen) -> None:
    p.line((0.5, 0.08), (0.5, 0.9), width=0.17)
    p.polygon((0.5, 0.3), (1.0, 0.62), (1.0, 0.74), (0.5, 0.6), (0.0, 0.74), (0.0, 0.62))
    p.polygon((0.5, 0.76), (0.74, 0.98), (0.26, 0.98))


def _dark(p: Pen) -> None:
    p.disc(0.46, 0.5, 0.46)
    p.disc(0.68, 0.36, 0.38, CUT)


def _location(p: Pen) -> None:
    p.line((0.5, 0.05), (0.5, 0.95), width=0.1)
    p.line((0.05, 0.5), (0.95, 0.5), width=0.1)
    p.ring(0.5, 0.5, 0.34, 0.1)
    p.disc(0.5, 0.5, 0.14)


def _hotspot(p: Pen) -> None:
    p.disc(0.5, 0.5, 0.14)
    for radius in (0.3, 0.5):
        p.arc(0.5, 0.5, radius, -50, 50, 0.11)
        p.arc(0.5, 0.5, radius, 130, 230, 0.11)


def _dnd(p: Pen) -> None:
    p.disc(0.5, 0.5, 0.5)
    p.box(0.18, 0.4, 0.82, 0.6, 0.04, CUT)


def _rotation(p: Pen) -> None:
    p.arc(0.5, 0.54, 0.42, -20, 270, 0.14)
    p.polygon((0.48, 0.0), (0.82, 0.2), (0.48, 0.42))


def _back(p: Pen) -> None:
    p.line((0.5, 0.1), (0.1, 0.5), (0.5, 0.9), width=0.16)
    p.line((0.1, 0.5), (0.95, 0.5), width=0.16)


GLYPHS: dict[str, Callable[[Pen], None]] = {
    "camera": _camera, "gallery": _gallery, "music": _music, "maps": _maps, "mail": _mail,
    "calendar": _calendar, "clock": _clock, "calculator": _calculator, "weather": _weather,
    "settings": _settings, "phone": _phone, "messages": _messages, "browser": _browser,
    "notes": _notes, "files": _files, "contacts": _contacts, "video": _video, "store": _store,
    "health": _health, "wallet": _wallet, "recorder": _recorder, "books": _books, "games": _games,
    "compass": _compass, "wifi": _wifi, "bluetooth": _bluetooth, "airplane": _airplane, "dark": _dark,
    "location": _location, "hotspot": _hotspot, "dnd": _dnd, "rotation": _rotation, "back": _back,
}  # fmt: skip


@cache
def _master(name: str) -> Image.Image:
    pen = Pen()
    GLYPHS[name](pen)
    return pen.mask


@lru_cache(maxsize=8192)
def glyph(name: str, size: int) -> Image.Image:
    """Return the alpha mask ("L", size x size pixels) of a catalog app, a setting or "back"."""
    return _master(name).resize((size, size), Image.Resampling.BOX)


@lru_cache(maxsize=4096)
def tile(shape: str, size: int) -> Image.Image:
    """Return the mask of an icon's background: "square" (rounded), "squircle" or "circle"."""
    radius = {"square": 0.16, "squircle": 0.3, "circle": 0.5}[shape]
    pen = Pen(size * 4)
    pen.box(0.0, 0.0, 1.0 - 1 / (4 * size), 1.0 - 1 / (4 * size), radius)
    return pen.mask.resize((size, size), Image.Resampling.BOX)
