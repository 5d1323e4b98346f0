"""Draws icon sheets: a grid full of icons, setting glyphs and switches.

A sheet teaches the vision encoder up to 49 things at once where a real screen teaches about 8, so the
encoder sees sheets first. Nothing overlaps, and each thing stays within its cell.
"""

import numpy as np
from PIL import Image

from autoglm.training.data.catalog import APPS, COLOURS, LANGUAGES, SETTINGS
from autoglm.training.data.icons import glyph, tile
from autoglm.training.data.screens import (
    ACCENTS,
    DARK,
    DRAWN_WIDTH,
    WHITE,
    Brush,
    Screen,
    shade,
    switch,
)

CELLS = 7  # the vision encoder's last map has 7 x 7 cells
GRIDS, GRID_SHARES = (4, 5, 6, 7), (0.2, 0.2, 0.2, 0.4)


def draw_sheet(rng: np.random.Generator) -> Screen:
    """Draw a sheet, from square to as tall as a phone; its switches carry no setting's name (it is "").

    Coarse grids and square sheets show glyphs larger than a phone does, which is where learning starts.
    """
    height = round(DRAWN_WIDTH * rng.uniform(1.0, 2.3))
    image = Image.new("RGB", (DRAWN_WIDTH, height), tuple(int(c) for c in rng.integers(0, 256, 3)))
    brush = Brush("train", rng, image, LANGUAGES[0], bool(rng.random() < 0.5))
    grid = int(rng.choice(GRIDS, p=GRID_SHARES))
    for cell in range(grid * grid):
        row, column = divmod(cell, grid)
        _thing(brush, grid, (column + 0.5) / grid, (row + 0.5) / grid)
    return Screen(image, "home", None, tuple(brush.elements), brush.language)


def _thing(b: Brush, grid: int, x: float, y: float) -> None:
    """Draw one thing near the middle of its cell, (x, y) in [0, 1]."""
    side = round(b.width / grid * b.rng.uniform(0.62, 0.96))
    x, y = (x + _jitter(b, grid, side / b.width)) * b.width, (y + _jitter(b, grid, side / b.height)) * b.height
    lot = b.rng.random()
    if lot < 0.72:
        _tile(b, x, y, side)
    elif lot < 0.85:
        _bare(b, x, y, side)
    elif lot < 0.94:
        on = b.chance(0.5)
        switch(b, x, y, side, on, b.pick(ACCENTS))
        b.add("switch", "", x, y, side, side * 0.54, on=on)


def _jitter(b: Brush, grid: int, size: float) -> float:
    """Return a shift that keeps a thing of `size` in its cell and two things out of one cell of the map."""
    room = (1 / grid - size) / 2
    apart = room if grid == CELLS else (1 / grid - 1 / CELLS) / 2
    return min(room, apart) * float(b.rng.uniform(-1, 1))


def _tile(b: Brush, x: float, y: float, side: int) -> None:
    colour, white = b.pick(list(COLOURS)), b.chance(0.7)
    b.stamp(tile(b.pick(("square", "squircle", "circle")), side), x, y, shade(colour, b.rng))
    name = b.pick(list(APPS)) if b.chance(0.9) else b.pick(list(SETTINGS))
    b.stamp(glyph(name, round(side * b.rng.uniform(0.6, 0.78))), x, y, WHITE if white else DARK)
    b.add("icon", name, x, y, side, side, colour)


def _bare(b: Brush, x: float, y: float, side: int) -> None:
    """Draw a glyph straight on a plain ground, as settings pages and headers do."""
    name = b.pick([*SETTINGS, "back", "settings", b.pick(list(APPS))])
    b.box(x, y, side * 1.0, side * 1.0, b.card)
    b.stamp(glyph(name, round(side * b.rng.uniform(0.75, 0.95))), x, y, b.ink)
    b.add("title", name, x, y, side, side)
