"""Forward passes recorded as CUDA graphs: a GPU gets its hundreds of kernels at once, not one by one from Python.

A graph has fixed shapes, so there is one for each of some numbers of rows, of tokens and of visible positions. A pass
runs in the smallest that holds it; rows and tokens that are left over are computed at a position that no sequence has.
Figures: docs/adr/0010.
"""

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("autoglm.decoder")

FEWEST_TOKENS, FEWEST_VISIBLE = 32, 256

Step = Callable[[Tensor, int], Tensor]  # see Runner.step
Piece = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # see Runner.piece


def doublings(first: int, last: int) -> list[int]:
    """Return `first`, twice as much, and so on, and `last` in the end."""
    sizes = [min(first, last)]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes


def _least(sizes: Rows[int], need: int) -> int:
    return next(size for size in sizes if size >= need)


@dataclass(frozen=True, slots=True)
class Room:
    """The largest passes that are recorded: sequences at a time, prompt tokens in a piece, positions of a sequence;
    `width` is that of the embeddings."""

    sequences: int
    tokens: int
    context: int
    width: int


class Graphs:
    """The graphs of `step` and `piece`, recorded when this is made, on the current device."""

    @torch.inference_mode()
    def __init__(self, step: Step, piece: Piece, room: Room, dtype: torch.dtype) -> None:
        started, self._spare = time.monotonic(), room.context
        self._sequences, self._tokens = doublings(1, room.sequences), doublings(FEWEST_TOKENS, room.tokens)
        self._visible = doublings(FEWEST_VISIBLE, room.context)
        self._inputs = torch.zeros(2, room.sequences, dtype=torch.long, device="cuda")
        self._embeddings = torch.zeros(room.tokens, room.width, dtype=dtype, device="cuda")
        self._positions = torch.full((room.tokens,), self._spare, device="cuda")
        self._slot = torch.zeros(1, dtype=torch.long, device="cuda")
        self._pool = torch.cuda.graph_pool_handle()  # one memory for all: no two run at a time
        # cuBLAS keeps a workspace for each stream: that of these graphs must lie in their own memory.
        self._stream = torch.cuda.Stream()
        pieces = [(t, visible) for t in self._tokens for visible in self._visible if visible > t // 2]
        self._pieces = {
            (t, visible): self._record(partial(piece, *self._piece(t), visible)) for t, visible in reversed(pieces)
        }
        steps = [(n, visible) for n in self._sequences for visible in self._visible]
        self._steps = {
            (n, visible): self._record(partial(step, self._inputs[:, :n], visible)) for n, visible in reversed(steps)
        }
        count = len(self._pieces) + len(self._steps)
        logger.info("recorded %d CUDA graphs in %.1f s", count, time.monotonic() - started)

    def _piece(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._embeddings[-t:], self._positions[-t:], self._slot

    def _record(self, compute: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what libraries allocate at their first call must not be in the graph
            compute()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            logits = compute()
        return graph, logits

    def step(self, tokens: Rows[int], positions: Rows[int]) -> Tensor:
        """Return logits [n, vocabulary] for a token at a position in each of the first n slots; the next call
        overwrites them."""
        n = _least(self._sequences, len(tokens))
        graph, logits = self._steps[n, _least(self._visible, max(positions) + 1)]
        left = n - len(tokens)
        self._inputs[:, :n].copy_(torch.tensor([[*tokens, *[0] * left], [*positions, *[self._spare] * left]]))
        graph.replay()
        return logits[: len(tokens)]

    def piece(self, embeddings: Tensor, start: int, slot: int) -> Tensor:
        """Return logits [1, vocabulary] behind a prompt's `embeddings` [t, width] from position `start` of `slot` on;
        the next call overwrites them."""
        tokens = len(embeddings)
        t = _least(self._tokens, tokens)
        graph, logits = self._pieces[t, _least(self._visible, start + tokens)]
        held, positions, where = self._piece(t)
        held[t - tokens :] = embeddings
        positions.copy_(torch.tensor([*[self._spare] * (t - tokens), *range(start, start + tokens)]))
        where.fill_(slot)
        graph.replay()
        return logits
