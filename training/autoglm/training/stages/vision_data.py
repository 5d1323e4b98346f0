"""Batches for the vision stage: drawn pictures as bytes, with what is where as plain rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from autoglm.training.data.catalog import APPS, COLOURS, SETTINGS, Split
from autoglm.training.data.screens import SCREEN_KINDS, Element, Screen, draw_screen
from autoglm.training.data.sheets import draw_sheet
from autoglm.vision.models.mobilevit import Preprocessing

NAMES: tuple[str, ...] = (*APPS, *SETTINGS, "ok", "cancel", "back", "input")
BACKGROUND = len(NAMES)
IGNORE = -100
MAX_COUNT = 20
_COLOURS, _APPS = tuple(COLOURS), tuple(APPS)


@dataclass(frozen=True, slots=True)
class ScreenBatch:
    """B pictures and their N elements.

    images uint8 [B, 3, 224, 224]; index int64 [N], the picture of each element; centre float32 [N, 2], x and
    y in [0, 1); name, colour, on int64 [N]; kind, app, count int64 [B]. `IGNORE` where nothing is known.
    """

    images: Tensor
    index: Tensor
    centre: Tensor
    name: Tensor
    colour: Tensor
    on: Tensor
    kind: Tensor
    app: Tensor
    count: Tensor


def collate(screens: list[Screen], whole: bool = True) -> ScreenBatch:
    """Turn screens into a batch; without `whole` the answers about the whole page are left out (sheets)."""
    squash = Preprocessing().squash
    images = np.stack([np.asarray(squash(screen.image)) for screen in screens])
    elements = [(i, e) for i, screen in enumerate(screens) for e in _with_state(screen)]
    pages = [_page(screen) if whole else (IGNORE,) * 3 for screen in screens]
    kind, app, count = torch.tensor(pages).unbind(1)
    name, colour, on = torch.tensor([_labels(e) for _, e in elements]).unbind(1)
    return ScreenBatch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        index=torch.tensor([i for i, _ in elements]),
        centre=torch.tensor([e.centre for _, e in elements], dtype=torch.float32) / 1000,
        name=name, colour=colour, on=on, kind=kind, app=app, count=count,
    )  # fmt: skip


def _with_state(screen: Screen) -> list[Element]:
    """Return the elements; the title of a switch's row tells the switch's state too.

    A switch is found by its title, and all switches look alike.
    """
    states = {e.name: e.on for e in screen.elements if e.kind == "switch"}
    return [replace(e, on=states[e.name]) if e.kind == "title" and e.name in states else e for e in screen.elements]


def _labels(element: Element) -> tuple[int, int, int]:
    return (
        NAMES.index(element.name) if element.name else IGNORE,
        _COLOURS.index(element.colour) if element.colour else IGNORE,
        IGNORE if element.on is None else int(element.on),
    )


def _page(screen: Screen) -> tuple[int, int, int]:
    """Return kind, opened app (len(APPS) for none) and number of icons."""
    app = _APPS.index(screen.app) if screen.app else len(APPS)
    return SCREEN_KINDS.index(screen.kind), app, sum(e.kind == "icon" for e in screen.elements)


class Pictures(IterableDataset[ScreenBatch]):
    """Batches from step `start` to `steps`: sheets first, then screens; the same for every run of a seed."""

    def __init__(self, seed: int, batch: int, start: int, steps: int, sheet_steps: int) -> None:
        self.seed, self.batch = seed, batch
        self.start, self.steps, self.sheet_steps = start, steps, sheet_steps

    def __iter__(self) -> Iterator[ScreenBatch]:
        for step in range(self.start, self.steps):
            rng = np.random.default_rng((self.seed, step))
            sheets = step < self.sheet_steps
            screens = [draw_sheet(rng) if sheets else draw_screen("train", rng) for _ in range(self.batch)]
            yield collate(screens, whole=not sheets)


def screens_of(split: Split, seed: int, count: int) -> list[Screen]:
    """Draw `count` screens of a split; of all kinds in turn."""
    rng = np.random.default_rng((seed, 1))
    return [draw_screen(split, rng, SCREEN_KINDS[i % len(SCREEN_KINDS)]) for i in range(count)]
