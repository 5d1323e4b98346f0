"""Fusion for architectures whose decoder attends to media directly: media tokens replace their placeholders."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoglm.common.modalities import MediaKind
from autoglm.fusion.pool import unit_sum, windows
from autoglm.fusion.positions import multimodal_positions, sequential_positions
from autoglm.fusion.prompt import Media, Prompt
from autoglm.fusion.protocol import Inputs, all_inputs


@dataclass(frozen=True, slots=True)
class SpliceConfig:
    """Widths of a splice. `position_rows`: 1, or 3 for multimodal rope."""

    text_width: int
    media_widths: Mapping[MediaKind, int]
    position_rows: Literal[1, 3] = 1


class SpliceFusion(nn.Module):
    """Puts media tokens in the place of their placeholders, through a linear projector where their width differs from
    the text's. Text embeddings stay as they are, and there are no gates."""

    def __init__(self, config: SpliceConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text_width
        self.projectors = nn.ModuleDict(
            {kind: nn.Linear(width, text) for kind, width in config.media_widths.items() if width != text}
        )

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
        """The width of pooled vectors: the text's."""
        return self.config.text_width

    def inputs(self, embed: nn.Embedding, prompt: Prompt, after: int = 0) -> Inputs:
        """Return embeddings [T − after, text_width] and positions [position_rows, T − after] of `prompt`."""
        return all_inputs(self.chunked_inputs(embed, prompt, after))

    def chunked_inputs(self, embed: nn.Embedding, prompt: Prompt, after: int = 0) -> "SpliceInputs":
        """Return the same, computed as it is taken: a medium when its first token is."""
        return SpliceInputs(self, embed, prompt, after)

    @torch.inference_mode()
    def pool_text(self, embed: nn.Embedding, token_ids: Sequence[int]) -> Tensor:
        """Return the mean of the embeddings of a text, of length 1: float32 [text_width] on the CPU."""
        return unit_sum(embed(torch.tensor(ids, device=embed.weight.device)) for ids in windows(token_ids))

    @torch.inference_mode()
    def pool_media(self, media: Media) -> Tensor:
        """Return the mean of the tokens of a medium, of length 1: float32 [text_width] on the CPU."""
        return unit_sum([self.project(media, media.tokens)])

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors (bf16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        save_file({k: v.to(torch.bfloat16) for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read what `save_pretrained` wrote, ready for inference in `dtype`."""
        model = cls(SpliceConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.to(dtype).eval()

    def project(self, media: Media, like: Tensor) -> Tensor:
        """Return the tokens of a medium at the text's width [n, text_width], with the device and dtype of `like`."""
        if media.kind not in self.projectors:
            return media.tokens.to(like)
        projector = self.projectors[media.kind]
        projected: Tensor = projector(media.tokens.to(next(projector.parameters())))
        return projected.to(like)

    def positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """Return the rope positions [position_rows, T] of a prompt, and the next one."""
        if self.config.position_rows == 3:
            return multimodal_positions(prompt)
        tokens = len(prompt.token_ids)
        return sequential_positions(tokens), tokens


class SpliceInputs:
    """The inputs of a prompt from token `after` on, computed as they are taken; see ChunkedInputs."""

    num_tokens_to_read = 0  # no token depends on another

    @torch.inference_mode()
    def __init__(self, fusion: SpliceFusion, embed: nn.Embedding, prompt: Prompt, after: int) -> None:
        self._fusion, self._taken = fusion, after
        self._embeddings: Tensor = embed(torch.tensor(prompt.token_ids, dtype=torch.long, device=embed.weight.device))
        self._media = [run for run in prompt.runs if run.media is not None and run.stop > after]
        positions, self.next_position = fusion.positions(prompt)
        self.positions = positions[:, after:].to(self._embeddings.device)

    def read(self, tokens: int) -> None:
        """Do nothing."""

    @torch.inference_mode()
    def take(self, tokens: int) -> Tensor:
        """Return the embeddings [tokens, text_width] of the next tokens."""
        start, self._taken = self._taken, self._taken + tokens
        while self._media and self._media[0].start < self._taken:
            run = self._media.pop(0)
            assert run.media is not None
            self._embeddings[run.start : run.stop] = self._fusion.project(run.media, self._embeddings)
        return self._embeddings[start : self._taken]

    def gates(self) -> dict[MediaKind, float]:
        """Return none: there are no gates."""
        return {}
