"""The same fusion as fuse.py on a padded batch of prompts at once, with gradients, for training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from autoglm.common.modalities import BY_KIND, MEDIA_MODALITIES, MediaKind
from autoglm.fusion.gcma.model import Enriched, GcmaFusion
from autoglm.fusion.prompt import Prompt


@dataclass(frozen=True, slots=True)
class MediaBatch:
    """All items of one modality: `tokens` [B, S, width], their `index` within the item and their
    place `where` in the sequence, both [B, S]; padding has the place T, after every token."""

    tokens: Tensor
    index: Tensor
    where: Tensor

    def to(self, device: torch.device) -> "MediaBatch":
        """Return the same on `device`."""
        return MediaBatch(self.tokens.to(device), self.index.to(device), self.where.to(device))


@dataclass(frozen=True, slots=True)
class FusionBatch:
    """Prompts side by side: `enriched` [B, T] marks the text that takes from media."""

    enriched: Tensor
    media: Mapping[MediaKind, MediaBatch]

    def to(self, device: torch.device) -> "FusionBatch":
        """Return the same on `device`."""
        return FusionBatch(self.enriched.to(device), {kind: item.to(device) for kind, item in self.media.items()})


def collate(prompts: Sequence[Prompt], length: int) -> FusionBatch:
    """Return `prompts` padded at the end to `length` tokens."""
    enriched = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        for run in prompt.runs:
            enriched[row, run.start : run.stop] = run.enriched and run.media is None
    kinds = [row.kind for row in MEDIA_MODALITIES]
    return FusionBatch(enriched, {kind: _media(prompts, kind, length) for kind in kinds if _any(prompts, kind)})


def _any(prompts: Sequence[Prompt], kind: MediaKind) -> bool:
    return any(prompt.count(kind) for prompt in prompts)


def _media(prompts: Sequence[Prompt], kind: MediaKind, length: int) -> MediaBatch:
    rows = [[run for run in prompt.runs if run.media is not None and run.media.kind == kind] for prompt in prompts]
    size = max(sum(run.stop - run.start for run in runs) for runs in rows)
    width = next(run.media.tokens.shape[1] for runs in rows for run in runs if run.media is not None)
    tokens = torch.zeros(len(prompts), size, width)
    index = torch.zeros(len(prompts), size, dtype=torch.long)
    where = torch.full((len(prompts), size), length)
    for row, runs in enumerate(rows):
        filled = 0
        for run in runs:
            assert run.media is not None
            span = slice(filled, filled + run.stop - run.start)
            tokens[row, span] = run.media.tokens.float()
            index[row, span] = torch.arange(run.stop - run.start)
            where[row, span] = torch.arange(run.start, run.stop)
            filled = span.stop
    return MediaBatch(tokens, index, where)


@dataclass(frozen=True, slots=True)
class Additions:
    """What GCMA added, for the rows that see media only: `rows` [B, R] are their places in the
    sequence (T for padding), `enriched` is aligned with them."""

    rows: Tensor
    enriched: Enriched


def fuse_batch(model: GcmaFusion, embeddings: Tensor, batch: FusionBatch) -> tuple[Tensor, Additions | None]:
    """Return decoder inputs [B, T, text_width] for text `embeddings` of that shape, and what was added."""
    if not batch.media:
        return embeddings, None
    media = {kind: model.project_media(kind, item.tokens, item.index) for kind, item in batch.media.items()}
    context = common = model.project_text(embeddings)
    for kind, tokens in media.items():
        common = _place(common, tokens, batch.media[kind].where)
        context = _place(context, tokens if BY_KIND[kind].spoken else torch.zeros_like(tokens), batch.media[kind].where)
    additions = _additions(model, common, context, media, batch)
    delta = _place(torch.zeros_like(common), additions.enriched.delta, additions.rows)
    fused = model.text_out(embeddings, delta * batch.enriched[..., None])
    for kind, tokens in media.items():
        where = batch.media[kind].where
        fused = _place(fused, model.media_out(tokens, _take(delta, where)), where)
    return fused, additions


def _additions(
    model: GcmaFusion, common: Tensor, context: Tensor, media: Mapping[MediaKind, Tensor], batch: FusionBatch
) -> Additions:
    """Enrich the rows that take from media and see some; the others would take exactly zero."""
    length = common.shape[1]
    seen = {kind: _visible(batch.media[kind].where, length) for kind in media}
    takes = batch.enriched | torch.stack([_own(batch.media[kind].where, length) for kind in media]).any(0)
    wanted = takes & torch.stack([visible.any(-1) for visible in seen.values()]).any(0)
    places = torch.arange(length, device=wanted.device)
    most = max(1, int(wanted.sum(1).max()))
    rows = torch.where(wanted, places, length).sort(dim=1).values[:, :most]
    queries = _take(model.queries(common, pad(context, (0, 0, model.config.context - 1, 0))), rows)
    sources = {kind: (model.source(kind, media[kind]), _take(visible, rows)) for kind, visible in seen.items()}
    return Additions(rows, model.enrich(queries, sources))


def _take(sequence: Tensor, where: Tensor) -> Tensor:
    """Return the rows [B, S, d] of `sequence` [B, T, d] at the places `where` [B, S]; T gives any row."""
    index = where.clamp(max=sequence.shape[1] - 1)[..., None].expand(-1, -1, sequence.shape[-1])
    return sequence.gather(1, index)


def _place(sequence: Tensor, rows: Tensor, where: Tensor) -> Tensor:
    """Return `sequence` [B, T, d] with `rows` [B, S, d] at the places `where` [B, S]; T is nowhere."""
    roomy = pad(sequence, (0, 0, 0, 1))
    index = where[..., None].expand(-1, -1, sequence.shape[-1])
    return roomy.scatter(1, index, rows.to(sequence.dtype))[:, :-1]


def _own(where: Tensor, length: int) -> Tensor:
    """Return [B, T]: whether token t is one of the media tokens at the places `where` [B, S]."""
    empty = torch.zeros(where.shape[0], length + 1, dtype=torch.bool, device=where.device)
    return empty.scatter(1, where, True)[:, :-1]


def _visible(where: Tensor, length: int) -> Tensor:
    """Return [B, T, S]: whether token t comes after media token s and is not of the same modality."""
    before = where[:, None, :] < torch.arange(length, device=where.device)[None, :, None]
    return before & ~_own(where, length)[..., None]
