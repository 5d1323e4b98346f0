"""Gated cross-modal attention (GCMA) and the fusion around it.

Sizes of the nano bundle: common space d = 512, 8 heads; image tokens 49 × 320 (a 7 × 7 map), audio tokens
12.5 a second × 1536, decoder width 256.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoglm.common.modalities import MediaKind
from autoglm.fusion.gcma.attention import GCMA, KeysValues
from autoglm.fusion.gcma.fuse import GcmaInputs, fuse
from autoglm.fusion.pool import unit_sum, windows
from autoglm.fusion.prompt import Media, Prompt
from autoglm.fusion.protocol import Inputs


@dataclass(frozen=True, slots=True)
class GcmaConfig:
    """Sizes of the fusion. `media_widths` has the modalities that it takes, with the width of their tokens."""

    text_width: int
    media_widths: Mapping[MediaKind, int] = field(default_factory=lambda: {"image": 320, "audio": 1536})
    width: int = 512
    heads: int = 8
    image_grid: tuple[int, int] = (7, 7)
    max_audio_tokens: int = 384
    context: int = 32
    max_added: float = 1.0

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `config.json`."""
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(**{**raw, "image_grid": tuple(raw["image_grid"])})


@dataclass(frozen=True, slots=True)
class Enriched:
    """What GCMA adds to target tokens, before the projection to the decoder's width.

    `delta` [B, T, d]; `gates` modality → mean gate of each token [B, T]; `attention` modality → [B, heads, T, S].
    """

    delta: Tensor
    gates: dict[MediaKind, Tensor]
    attention: dict[MediaKind, Tensor]


class GcmaFusion(nn.Module):
    """Fusion with GCMA: projects text and media into one space and enriches each from the other modalities.

    A query also reads the text or speech of the `context` tokens that end with it (a causal depthwise convolution), so
    that a name of several tokens can act as one query. Positions depend on the modality: a modality vector, with row
    and column for images and time for audio; text has its order from the decoder. A token depends on earlier ones only.
    """

    def __init__(self, config: GcmaConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.text_in = nn.Sequential(nn.LayerNorm(config.text_width), nn.Linear(config.text_width, d))
        self.media_in = nn.ModuleDict(
            {kind: nn.Sequential(nn.LayerNorm(size), nn.Linear(size, d)) for kind, size in config.media_widths.items()}
        )
        self.text_kind = nn.Parameter(torch.zeros(d))
        self.media_kind = nn.ParameterDict({kind: nn.Parameter(torch.zeros(d)) for kind in config.media_widths})
        self.image_row = nn.Embedding(config.image_grid[0], d)
        self.image_column = nn.Embedding(config.image_grid[1], d)
        self.audio_time = nn.Embedding(config.max_audio_tokens, d)
        self.context = nn.Conv1d(d, d, config.context, groups=d)
        self.query_norm = nn.LayerNorm(d)
        self.source_norm = nn.LayerNorm(d)
        self.attend = nn.ModuleDict({kind: GCMA(d, config.heads) for kind in config.media_widths})
        self.media_norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, config.text_width, bias=False)

    @property
    def media_widths(self) -> Mapping[MediaKind, int]:
        """The modalities that it takes, with the width of their encoder's tokens."""
        return self.config.media_widths

    @property
    def text_width(self) -> int:
        """The width of the decoder's embeddings."""
        return self.config.text_width

    @property
    def width(self) -> int:
        """The width of the common space, and so of pooled vectors."""
        return self.config.width

    def inputs(self, embed: nn.Embedding, prompt: Prompt, after: int = 0) -> Inputs:
        """Return embeddings [T − after, text_width] and positions [1, T − after] of `prompt`, prefix-stable."""
        return fuse(self, embed, prompt, after)

    def chunked_inputs(self, embed: nn.Embedding, prompt: Prompt, after: int = 0) -> GcmaInputs:
        """Return the same, computed as it is taken."""
        return GcmaInputs(self, embed, prompt, after)

    @torch.inference_mode()
    def pool_text(self, embed: nn.Embedding, token_ids: Sequence[int]) -> Tensor:
        """Return the mean of a text's tokens in the common space, of length 1: float32 [d] on the CPU.

        Tokens are pooled before they attend to each other: the order of words makes no difference, nor does the rest of
        a conversation. docs/embeddings.md says what the vectors are good for.
        """
        blocks = (embed(torch.tensor(ids, device=embed.weight.device)) for ids in windows(token_ids))
        return unit_sum(self.project_text(block.to(self.text_kind)) for block in blocks)

    @torch.inference_mode()
    def pool_media(self, media: Media) -> Tensor:
        """Return the mean of a medium's tokens in the common space, of length 1: float32 [d] on the CPU."""
        tokens = media.tokens.to(self.text_kind)
        return unit_sum([self.project_media(media.kind, tokens, torch.arange(len(tokens), device=tokens.device))])

    def project_text(self, embeddings: Tensor) -> Tensor:
        """Bring decoder embeddings [..., text_width] into the common space [..., d]."""
        projected: Tensor = self.text_in(embeddings) + self.text_kind
        return projected

    def project_media(self, kind: MediaKind, tokens: Tensor, index: Tensor) -> Tensor:
        """Bring encoder tokens [..., width] into the common space; `index` [...] counts within the item.

        The times of a recording that is longer than `max_audio_tokens` start over.
        """
        projected: Tensor = self.media_in[kind](tokens) + self.media_kind[kind]
        if kind == "audio":
            return torch.add(projected, self.audio_time(index % self.config.max_audio_tokens))
        columns = self.config.image_grid[1]
        return projected.add(self.image_row(index // columns)).add(self.image_column(index % columns))

    def queries(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Return queries [B, T, d] of `tokens` [B, T, d], each with the text and speech up to it.

        `context` [B, context - 1 + T, d] has the same tokens and those before them, with zeros for images.
        """
        normed: Tensor = self.query_norm(tokens + self.context(context.transpose(1, 2)).transpose(1, 2))
        return normed

    def source(self, kind: MediaKind, tokens: Tensor) -> KeysValues:
        """Return the keys and values of media `tokens` [B, S, d]."""
        return self._attention(kind).project(self.source_norm(tokens))

    def enrich(self, queries: Tensor, sources: Mapping[MediaKind, tuple[KeysValues, Tensor]]) -> Enriched:
        """Let `queries` [B, T, d] read each source: modality → (keys and values, visible [B, T, S])."""
        delta, gates, attention = torch.zeros_like(queries), {}, {}
        for kind, (source, visible) in sources.items():
            added, gate, attention[kind] = self._attention(kind).attend(queries, source, visible)
            delta = delta + added
            gates[kind] = gate.mean(-1)
        return Enriched(delta, gates, attention)

    def _attention(self, kind: MediaKind) -> GCMA:
        attention = self.attend[kind]
        assert isinstance(attention, GCMA)
        return attention

    def text_out(self, embeddings: Tensor, delta: Tensor) -> Tensor:
        """Add what text tokens took from media, `delta` [..., d], to their decoder embeddings [..., text_width].

        A `delta` of zero changes nothing.
        The root mean square of what is added stays below `max_added`, so that the token's own embedding dominates.
        """
        added: Tensor = self.out(delta)
        size = added.float().square().mean(-1, keepdim=True)
        return torch.add(embeddings, added * torch.rsqrt(1 + size / self.config.max_added**2).to(added.dtype))

    def media_out(self, tokens: Tensor, delta: Tensor) -> Tensor:
        """Return media tokens at the decoder's width [..., text_width]."""
        projected: Tensor = self.out(self.media_norm(tokens + delta))
        return projected

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors (bf16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        save_file({k: v.to(torch.bfloat16) for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read what `save_pretrained` wrote, ready for inference in `dtype`."""
        model = cls(GcmaConfig.load(folder))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.to(dtype).eval()
