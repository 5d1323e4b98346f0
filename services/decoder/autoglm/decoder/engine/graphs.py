"""Forward passes recorded as CUDA graphs: hundreds of kernels are launched at once, not one by one from Python.

A graph has fixed shapes, so there is one for each of some numbers of rows, of tokens and of visible indices. A pass
runs in the smallest that holds it; rows and tokens that are left over are computed at an index that no sequence has.
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

Decode = Callable[[Tensor, int], Tensor]  # see Runner.decode_step
Prefill = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]  # see Runner.prefill_chunk


def doublings(first: int, last: int) -> list[int]:
    """Return `first`, twice as much, and so on, and `last` in the end."""
    sizes = [min(first, last)]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes


def _least(sizes: Rows[int], need: int) -> int:
    return next(size for size in sizes if size >= need)


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """The largest passes that are recorded: sequences at a time, tokens in a chunk of a prompt, tokens of a sequence;
    `width` is that of the embeddings, `position_rows` how many rows of rope positions a prompt has."""

    sequences: int
    tokens: int
    context: int
    width: int
    position_rows: int = 1


class Graphs:
    """The graphs of `decode` and `prefill`, recorded when this is made, on the current device."""

    @torch.inference_mode()
    def __init__(self, decode: Decode, prefill: Prefill, sizes: GraphSizes, dtype: torch.dtype) -> None:
        started, self._spare = time.monotonic(), sizes.context
        self._sequences, self._tokens = doublings(1, sizes.sequences), doublings(FEWEST_TOKENS, sizes.tokens)
        self._visible = doublings(FEWEST_VISIBLE, sizes.context)
        self._inputs = torch.zeros(3, sizes.sequences, dtype=torch.long, device="cuda")
        self._embeddings = torch.zeros(sizes.tokens, sizes.width, dtype=dtype, device="cuda")
        self._positions = torch.zeros(sizes.position_rows, sizes.tokens, dtype=torch.long, device="cuda")
        self._indices = torch.full((sizes.tokens,), self._spare, device="cuda")
        self._slot = torch.zeros(1, dtype=torch.long, device="cuda")
        self._pool = torch.cuda.graph_pool_handle()  # one memory for all: no two run at a time
        # cuBLAS keeps a workspace for each stream: that of these graphs must be in their own memory.
        self._stream = torch.cuda.Stream()
        chunks = [(t, visible) for t in self._tokens for visible in self._visible if visible > t // 2]
        self._prefills = {
            (t, visible): self._record(partial(prefill, *self._chunk(t), visible)) for t, visible in reversed(chunks)
        }
        steps = [(n, visible) for n in self._sequences for visible in self._visible]
        self._decodes = {
            (n, visible): self._record(partial(decode, self._inputs[:, :n], visible)) for n, visible in reversed(steps)
        }
        count = len(self._prefills) + len(self._decodes)
        logger.info("recorded %d CUDA graphs in %.1f s", count, time.monotonic() - started)

    def _chunk(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._embeddings[-t:], self._positions[:, -t:], self._indices[-t:], self._slot

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

    def decode(self, tokens: Rows[int], indices: Rows[int], positions: Rows[int]) -> Tensor:
        """Return logits [n, vocabulary] for a token at an index and a rope position in each of the first n slots; the
        next call overwrites them."""
        n = _least(self._sequences, len(tokens))
        graph, logits = self._decodes[n, _least(self._visible, max(indices) + 1)]
        left = [0] * (n - len(tokens))
        spare = [self._spare] * len(left)
        self._inputs[:, :n].copy_(torch.tensor([[*tokens, *left], [*indices, *spare], [*positions, *left]]))
        graph.replay()
        return logits[: len(tokens)]

    def prefill(self, embeddings: Tensor, positions: Tensor, start: int, slot: int) -> Tensor:
        """Return logits [1, vocabulary] after a prompt's `embeddings` [t, width] with rope `positions` [P, t], from
        index `start` of `slot` on; the next call overwrites them."""
        tokens = len(embeddings)
        t = _least(self._tokens, tokens)
        graph, logits = self._prefills[t, _least(self._visible, start + tokens)]
        held, turned, indices, where = self._chunk(t)
        held[t - tokens :], turned[:, t - tokens :] = embeddings, positions
        indices.copy_(torch.tensor([*[self._spare] * (t - tokens), *range(start, start + tokens)]))
        where.fill_(slot)
        graph.replay()
        return logits
