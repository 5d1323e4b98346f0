"""Decoder inputs for one prompt, run by run, so that a prefix never changes.

Floating-point sums depend on the shapes in which they are computed. Every run is therefore computed in shapes that
depend only on the tokens before it, text in blocks of a fixed number of rows. The inputs of a prefix are then bit for
bit the same with and without what follows, and a cached prefix need not be computed again.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from autoglm.common.modalities import BY_KIND, MediaKind
from autoglm.fusion.positions import sequential_positions
from autoglm.fusion.prompt import Prompt, Run
from autoglm.fusion.protocol import Inputs

if TYPE_CHECKING:
    from autoglm.fusion.gcma.model import GcmaFusion

BLOCK = 16


@torch.inference_mode()
def fuse(model: "GcmaFusion", embed: nn.Embedding, prompt: Prompt, after: int = 0) -> Inputs:
    """Return the inputs of `prompt` from token `after` on; without media they are plain text embeddings."""
    length = len(prompt.token_ids)
    embeddings = embed(torch.tensor(prompt.token_ids, device=embed.weight.device))
    positions = sequential_positions(length)[:, after:].to(embeddings.device)
    if all(run.media is None for run in prompt.runs):
        return Inputs(embeddings[after:], positions, length)
    fuser = _Fuser(model, embeddings, after)
    fuser.read(prompt.runs)
    return Inputs(fuser.out[after:], positions, length, fuser.gates())


class _Fuser:
    """The state of one pass from left to right; inputs before `after` stay plain text embeddings."""

    def __init__(self, model: "GcmaFusion", embeddings: Tensor, after: int) -> None:
        self.model, self.plain, self.out, self.after = model, embeddings, embeddings.clone(), after
        weight = model.out.weight
        # Rows before the first token are zeros, so that `queries` always has a left context; rows of images are too.
        self.context = weight.new_zeros(embeddings.shape[0] + self.margin, model.config.width)
        self.sources: dict[MediaKind, list[Tensor]] = {}
        self.asked: dict[MediaKind, list[Tensor]] = {}

    @property
    def margin(self) -> int:
        return self.model.config.context - 1

    def read(self, runs: tuple[Run, ...]) -> None:
        """Fill `out`, run by run."""
        # Computed again: the block or the medium that contains `after`, and all of the asked text, for its gates.
        cut = (r.start for r in runs if r.asked or (r.media is not None and r.start < self.after < r.stop))
        first = min([self.after - BLOCK, *cut])
        for run in runs:
            if run.media is not None:
                self._media(run, run.media.kind)
            else:
                self._text(run, first)

    def gates(self) -> dict[MediaKind, float]:
        """Return the mean gate of each modality over the asked text."""
        return {kind: torch.cat(values).mean().item() for kind, values in self.asked.items()}

    def _media(self, run: Run, kind: MediaKind) -> None:
        assert run.media is not None
        index = torch.arange(run.stop - run.start, device=self.context.device)
        tokens = self.model.project_media(kind, run.media.tokens.to(self.context)[None], index)
        if BY_KIND[kind].spoken:
            self.context[run.start + self.margin : run.stop + self.margin] = tokens[0]
        if run.stop > self.after:
            queries = self.model.queries(tokens, self.context[None, run.start : run.stop + self.margin])
            delta = self.model.enrich(queries, self._visible(len(index), but=kind)).delta
            self.out[run.start : run.stop] = self.model.media_out(tokens, delta)[0]
        self.sources.setdefault(kind, []).append(tokens)

    def _text(self, run: Run, first: int) -> None:
        for start in range(run.start, run.stop, BLOCK):
            rows = min(BLOCK, run.stop - start)
            if start + rows + self.margin <= first:  # no query reads it
                continue
            plain = pad(self.plain[start : start + rows], (0, 0, 0, BLOCK - rows)).to(self.context.dtype)
            projected = self.model.project_text(plain)
            self.context[start + self.margin : start + self.margin + rows] = projected[:rows]
            if run.enriched and self.sources and (start + rows > self.after or run.asked):
                self._enrich_block(start, rows, plain, projected, run.asked)

    def _enrich_block(self, start: int, rows: int, plain: Tensor, projected: Tensor, asked: bool) -> None:
        window = torch.cat([self.context[start : start + self.margin], projected])
        queries = self.model.queries(projected[None], window[None])
        enriched = self.model.enrich(queries, self._visible(BLOCK))
        self.out[start : start + rows] = self.model.text_out(plain, enriched.delta[0])[:rows].to(self.out.dtype)
        if asked:
            for kind, gate in enriched.gates.items():
                self.asked.setdefault(kind, []).append(gate[0, :rows])

    def _visible(self, rows: int, but: MediaKind | None = None) -> dict[MediaKind, tuple[Tensor, Tensor]]:
        """Return every source so far, except the kind `but`: each of `rows` queries sees all of its tokens."""
        joined = {kind: torch.cat(items, dim=1) for kind, items in self.sources.items() if kind != but}
        return {kind: (s, s.new_ones(1, rows, s.shape[1], dtype=torch.bool)) for kind, s in joined.items()}
