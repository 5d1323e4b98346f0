"""How well the vision encoder sees held-out screens, through its training heads."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from autoglm.training.data.screens import Screen
from autoglm.training.stages.vision_data import IGNORE, ScreenBatch, collate
from autoglm.training.stages.vision_heads import Seen, Student

Hits = Iterable[tuple[str, Tensor]]


@torch.inference_mode()
def evaluate(student: Student, screens: list[Screen], batch_size: int = 32) -> dict[str, float]:
    """Return the share of right answers per question, over all screens; `offset_error` is in thousandths."""
    student.eval()
    scores: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(screens), batch_size):
        batch = collate(screens[start : start + batch_size])
        seen = student(batch.images.float() / 255)
        for question, right in (*_dense_hits(seen, batch), *_page_hits(seen, batch)):
            scores[question].extend(right.float().tolist())
    student.train()
    return {question: round(float(np.mean(values)), 4) for question, values in sorted(scores.items())}


def _dense_hits(seen: Seen, batch: ScreenBatch) -> Hits:
    dense = seen.maps[0]
    cells = dense.cells(batch)
    yield "identity", dense.name[cells].argmax(-1) == batch.name
    for question, logits, target in (("colour", dense.colour, batch.colour), ("switch", dense.on, batch.on)):
        known = target != IGNORE
        yield question, (logits[cells].argmax(-1) == target)[known]
    yield "localisation", _localised(dense.name, cells, batch.name)
    side = dense.name.shape[1]
    error = (dense.offset[cells] + 0.5 - (batch.centre * side).frac()) / side
    yield "offset_error", error.norm(dim=-1) * 1000


def _localised(name: Tensor, cells: tuple[Tensor, Tensor, Tensor], wanted: Tensor) -> Tensor:
    """Whether the strongest cell for each element's name is one that carries that name."""
    index, row, column = cells
    side = name.shape[1]
    best = name.log_softmax(-1)[index, :, :, :].flatten(1, 2).gather(2, wanted[:, None, None].expand(-1, side**2, 1))
    found = best.squeeze(-1).argmax(-1)
    truth = torch.full((len(name), side * side), -1)
    truth[index, row * side + column] = wanted
    return truth[index, found] == wanted


def _page_hits(seen: Seen, batch: ScreenBatch) -> Hits:
    yield "page_kind", seen.kind.argmax(-1) == batch.kind
    opened = batch.app < seen.app.shape[-1] - 1
    yield "opened_app", (seen.app.argmax(-1) == batch.app)[opened]
    home = batch.count > 0
    yield "count", (seen.count.argmax(-1) == batch.count)[home]
