"""What is left to prefill of a sequence, computed as it is taken."""

import torch
from torch import Tensor

from autoglm.common.modalities import MediaKind
from autoglm.fusion.protocol import ChunkedInputs


class PrefillInputs:
    """The rest of a prompt, and after it the `generated` tokens [g, width] that are computed again after a preemption;
    they have rope positions [P, g] from `first` on."""

    def __init__(self, prompt: ChunkedInputs, generated: Tensor, first: int) -> None:
        self._prompt, self._generated, self._taken = prompt, generated, 0
        self._left = prompt.positions.shape[1]  # of the prompt
        after = torch.arange(first, first + len(generated), device=prompt.positions.device)
        self._positions = torch.cat([prompt.positions, after.expand(len(prompt.positions), -1)], dim=1)

    @property
    def num_tokens_to_read(self) -> int:
        """How many tokens have to be read before the first can be taken; see ChunkedInputs."""
        return self._prompt.num_tokens_to_read

    def read(self, tokens: int) -> None:
        """Read about the next `tokens` of them."""
        self._prompt.read(tokens)

    def take(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return the embeddings [tokens, width] and rope positions [P, tokens] of the next tokens."""
        start, self._taken = self._taken, self._taken + tokens
        positions = self._positions[:, start : self._taken]
        of_prompt = min(tokens, self._left)
        self._left -= of_prompt
        embeddings = self._prompt.take(of_prompt)
        if more := tokens - of_prompt:
            embeddings = torch.cat([embeddings, self._generated[:more]])
            self._generated = self._generated[more:]
        return embeddings, positions

    def gates(self) -> dict[MediaKind, float]:
        """Return the gates of the prompt, once all of it is taken."""
        return self._prompt.gates()
