"""Decoder inputs for one prompt, piece by piece, so that a prefix never changes.

Floating-point sums depend on the shapes in which they are computed. Every piece is therefore computed in shapes that
depend only on the tokens before it and on its own medium: text in blocks of a fixed number of rows, media in pieces
that begin with the medium. The inputs of a prefix are then bit for bit the same with and without what follows, and a
cached prefix need not be computed again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from autoglm.common.modalities import BY_KIND, MediaKind
from autoglm.fusion.gcma.attention import KeysValues
from autoglm.fusion.positions import sequential_positions
from autoglm.fusion.prompt import Media, Prompt, Run
from autoglm.fusion.protocol import Inputs, all_inputs

if TYPE_CHECKING:
    from autoglm.fusion.gcma.model import GcmaFusion

BLOCK = 16
MEDIA_PIECE = 64  # tokens of a medium at a time; a picture is one piece


def fuse(model: "GcmaFusion", embed: nn.Embedding, prompt: Prompt, after: int = 0) -> Inputs:
    """Return the inputs of `prompt` from token `after` on; without media they are plain text embeddings."""
    return all_inputs(GcmaInputs(model, embed, prompt, after))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens [start, stop) of a run, which are computed together."""

    run: Run
    start: int
    stop: int


def _pieces(runs: tuple[Run, ...]) -> Iterator[_Piece]:
    for run in runs:
        step = BLOCK if run.media is None else MEDIA_PIECE
        for start in range(run.start, run.stop, step):
            yield _Piece(run, start, min(start + step, run.stop))


class GcmaInputs:
    """The inputs of a prompt from token `after` on, computed as they are taken; see ChunkedInputs."""

    @torch.inference_mode()
    def __init__(self, model: "GcmaFusion", embed: nn.Embedding, prompt: Prompt, after: int = 0) -> None:
        self.next_position = length = len(prompt.token_ids)
        self._taken, self._embed = after, embed
        self._token_ids = torch.tensor(prompt.token_ids, device=embed.weight.device)
        self.positions = sequential_positions(length)[:, after:].to(embed.weight.device)
        media = [run for run in prompt.runs if run.media is not None]
        self._fuser = _Fuser(model, embed, self._token_ids, after, media) if media else None
        self._pieces = list(self._fuser.wanted(prompt.runs)) if self._fuser else []
        self._next = 0  # of the pieces
        self._num_first = sum(piece.stop <= after for piece in self._pieces)

    @property
    def num_tokens_to_read(self) -> int:
        """How many tokens have to be read before the first input is computed: media that later tokens look at."""
        return sum(piece.stop - piece.start for piece in self._pieces[self._next : self._num_first])

    @torch.inference_mode()
    def read(self, tokens: int) -> None:
        """Read the next `tokens` of them, and those that are computed with the last."""
        while tokens > 0 and self._next < self._num_first:
            tokens -= self._compute()

    @torch.inference_mode()
    def take(self, tokens: int) -> Tensor:
        """Return the embeddings [tokens, text_width] of the next tokens."""
        start, self._taken = self._taken, self._taken + tokens
        if self._fuser is None:
            plain: Tensor = self._embed(self._token_ids[start : self._taken])
            return plain
        while self._next < len(self._pieces) and self._pieces[self._next].start < self._taken:
            self._compute()
        return self._fuser.out[start : self._taken]

    def gates(self) -> dict[MediaKind, float]:
        """Return the mean gate of each modality over the asked text, once all tokens are taken."""
        return self._fuser.gates() if self._fuser else {}

    def _compute(self) -> int:
        """Compute the next piece, and return how many tokens it has."""
        assert self._fuser is not None
        piece = self._pieces[self._next]
        self._next += 1
        self._fuser.compute(piece)
        return piece.stop - piece.start


class _Fuser:
    """The state of one pass from left to right. What it allocates is filled piece by piece: to touch the memory for a
    long recording takes as long as many tokens do."""

    def __init__(
        self, model: "GcmaFusion", embed: nn.Embedding, token_ids: Tensor, after: int, media: list[Run]
    ) -> None:
        self.model, self.embed, self.token_ids, self.after = model, embed, token_ids, after
        self.out = embed.weight.new_empty(len(token_ids), embed.embedding_dim)
        # Rows before the first token are zeros, so that `queries` always has a left context; rows of images are too.
        self.context = model.out.weight.new_empty(len(token_ids) + self.margin, model.config.width)
        self.context[: self.margin] = 0
        kinds = dict.fromkeys(run.media.kind for run in media if run.media is not None)
        self.sources = {kind: _Sources(model, kind, media) for kind in kinds}
        self.asked: dict[MediaKind, list[Tensor]] = {}

    @property
    def margin(self) -> int:
        return self.model.config.context - 1

    def wanted(self, runs: tuple[Run, ...]) -> Iterator[_Piece]:
        """Yield the pieces that inputs from `after` on need: all media, and the text that is read with the queries."""
        # Computed again: the block or the medium that contains `after`, and all of the asked text, for its gates.
        cut = (r.start for r in runs if r.asked or (r.media is not None and r.start < self.after < r.stop))
        first = min([self.after - BLOCK, *cut])
        return (p for p in _pieces(runs) if p.run.media is not None or p.stop + self.margin > first)

    def compute(self, piece: _Piece) -> None:
        """Fill `out` for one piece, after all that are before it."""
        if piece.run.media is not None:
            self._media(piece, piece.run.media)
        else:
            self._text(piece)

    def gates(self) -> dict[MediaKind, float]:
        """Return the mean gate of each modality over the asked text."""
        return {kind: torch.cat(values).mean().item() for kind, values in self.asked.items()}

    def _media(self, piece: _Piece, media: Media) -> None:
        first, start, stop = piece.run.start, piece.start, piece.stop
        index = torch.arange(start - first, stop - first, device=self.context.device)
        given = media.tokens[start - first : stop - first].to(self.context)
        tokens = self.model.project_media(media.kind, given[None], index)
        self.context[start + self.margin : stop + self.margin] = tokens[0] if BY_KIND[media.kind].spoken else 0
        if stop > self.after:
            queries = self.model.queries(tokens, self.context[None, start : stop + self.margin])
            delta = self.model.enrich(queries, self._visible(len(index), but=media.kind)).delta
            self.out[start:stop] = self.model.media_out(tokens, delta)[0]
        self.sources[media.kind].add(tokens)

    def _text(self, piece: _Piece) -> None:
        start, rows = piece.start, piece.stop - piece.start
        self.out[start : piece.stop] = self.embed(self.token_ids[start : piece.stop])
        plain = pad(self.out[start : piece.stop], (0, 0, 0, BLOCK - rows)).to(self.context.dtype)
        projected = self.model.project_text(plain)
        self.context[start + self.margin : piece.stop + self.margin] = projected[:rows]
        if piece.run.enriched and (piece.stop > self.after or piece.run.asked) and self._visible(0):
            self._enrich_block(piece, plain, projected)

    def _enrich_block(self, piece: _Piece, plain: Tensor, projected: Tensor) -> None:
        start, rows = piece.start, piece.stop - piece.start
        window = torch.cat([self.context[start : start + self.margin], projected])
        queries = self.model.queries(projected[None], window[None])
        enriched = self.model.enrich(queries, self._visible(BLOCK))
        self.out[start : piece.stop] = self.model.text_out(plain, enriched.delta[0])[:rows].to(self.out.dtype)
        if piece.run.asked:
            for kind, gate in enriched.gates.items():
                self.asked.setdefault(kind, []).append(gate[0, :rows])

    def _visible(self, rows: int, but: MediaKind | None = None) -> dict[MediaKind, tuple[KeysValues, Tensor]]:
        """Return every source so far, except the kind `but`: each of `rows` queries sees all of its tokens."""
        return {kind: source.seen_by(rows) for kind, source in self.sources.items() if source.count and kind != but}


class _Sources:
    """Keys and values of all media of one kind so far. They are computed once, and not again for each block of text:
    with 64 pictures that would be most of the work."""

    def __init__(self, model: "GcmaFusion", kind: MediaKind, media: list[Run]) -> None:
        self._model, self._kind, self.count = model, kind, 0
        total = sum(run.stop - run.start for run in media if run.media is not None and run.media.kind == kind)
        self._keys, self._values = (model.out.weight.new_empty(1, total, model.config.width) for _ in range(2))

    def add(self, tokens: Tensor) -> None:
        """Add media tokens [1, n, d]."""
        first, self.count = self.count, self.count + tokens.shape[1]
        source = self._model.source(self._kind, tokens)
        self._keys[:, first : self.count], self._values[:, first : self.count] = source.keys, source.values

    def seen_by(self, rows: int) -> tuple[KeysValues, Tensor]:
        """Return keys and values, and that each of `rows` queries sees all of them: [1, rows, count]."""
        seen = KeysValues(self._keys[:, : self.count], self._values[:, : self.count])
        return seen, self._keys.new_ones(1, rows, self.count, dtype=torch.bool)
