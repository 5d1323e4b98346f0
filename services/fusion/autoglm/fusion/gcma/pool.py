"""One vector for one text, image or recording: the mean of its tokens in the space that the fusion brings all into.

Tokens stand there before they look at each other, so a text counts its words and not their order, and whatever else is
in a conversation changes nothing. docs/embeddings.md says what the vectors are good for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from autoglm.fusion.compose import Media
from autoglm.fusion.gcma.model import FusionModel

PIECE = 1024  # tokens brought over at a time, whatever a text's length


@torch.inference_mode()
def pool_text(model: FusionModel, embed: nn.Embedding, token_ids: Sequence[int]) -> Tensor:
    """Return the vector [d] of a text of one or more tokens, float32 on the CPU and of length 1."""
    total = model.text_kind.new_zeros(model.config.width, dtype=torch.float32)
    for start in range(0, len(token_ids), PIECE):
        piece = torch.tensor(token_ids[start : start + PIECE], device=embed.weight.device)
        total += model.project_text(embed(piece).to(model.text_kind)).float().sum(0)
    return normalize(total, dim=0).cpu()


@torch.inference_mode()
def pool_media(model: FusionModel, media: Media) -> Tensor:
    """Return the vector [d] of an image or a recording, float32 on the CPU and of length 1."""
    tokens = media.tokens.to(model.text_kind)
    index = torch.arange(len(tokens), device=tokens.device)
    return normalize(model.project_media(media.kind, tokens, index).float().sum(0), dim=0).cpu()
