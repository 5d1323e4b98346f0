"""What the decoder needs from a fusion: the embeddings and rope positions of a prompt, and vectors of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from autoglm.common.modalities import MediaKind
from autoglm.fusion.prompt import Media, Prompt


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The decoder's inputs for the tokens of a prompt from one on.

    `embeddings` [t, text_width] and `positions` [P, t] (int64) are those of these t tokens; P is 1, or 3 for
    multimodal rope. The first generated token has `next_position` in every row, and each one after it one more.
    `gates`: the mean gate of each modality over the text of the last user message, where the fusion has gates.
    """

    embeddings: Tensor
    positions: Tensor
    next_position: int
    gates: dict[MediaKind, float] = field(default_factory=dict)


class ChunkedInputs(Protocol):
    """The inputs of a prompt, computed from left to right as they are taken, so that a long prompt is never more work
    at once than its caller asks for. `positions` and `next_position` are those of Inputs."""

    positions: Tensor
    next_position: int

    @property
    def num_tokens_to_read(self) -> int:
        """How many tokens have to be read before the first input is computed: media that later tokens look at."""

    def read(self, tokens: int) -> None:
        """Read about the next `tokens` of them."""

    def take(self, tokens: int) -> Tensor:
        """Return the embeddings [tokens, text_width] of the next tokens."""

    def gates(self) -> dict[MediaKind, float]:
        """Return the gates of Inputs, once all tokens are taken."""


def all_inputs(chunked: ChunkedInputs) -> Inputs:
    """Return all inputs at once."""
    embeddings = chunked.take(chunked.positions.shape[1])
    return Inputs(embeddings, chunked.positions, chunked.next_position, chunked.gates())


class Fusion(Protocol):
    """Turns prompts with media into the decoder's inputs.

    The inputs of a token must depend on the tokens up to it alone, bit for bit, or the prefix cache is wrong.
    """

    @property
    def media_widths(self) -> Mapping[MediaKind, int]:
        """The modalities that it takes, with the width of their encoder's tokens."""

    @property
    def text_width(self) -> int:
        """The width of the decoder's embeddings."""

    @property
    def width(self) -> int:
        """The width of the vectors of `pool_text` and `pool_media`."""

    def inputs(self, embed: nn.Embedding, prompt: Prompt, after: int = 0) -> Inputs:
        """Return the decoder's inputs for the tokens of `prompt` from number `after` on; none if it has no more."""

    def chunked_inputs(self, embed: nn.Embedding, prompt: Prompt, after: int = 0) -> ChunkedInputs:
        """Return the same, computed as it is taken."""

    def pool_text(self, embed: nn.Embedding, token_ids: Sequence[int]) -> Tensor:
        """Return the vector [width] of a text of one or more tokens: float32, on the CPU, of length 1."""

    def pool_media(self, media: Media) -> Tensor:
        """Return the vector [width] of an image or a recording: float32, on the CPU, of length 1."""
