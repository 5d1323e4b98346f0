"""The forward passes: part of a prompt into a slot, and one token for running sequences."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from autoglm.decoder.engine.cache import Slots
from autoglm.decoder.engine.glm import Glm
from autoglm.decoder.engine.sequence import Sequence
from autoglm.fusion.fuse import fuse
from autoglm.fusion.model import FusionModel


class Runner:
    """Owns the weights and the slots; knows nothing of scheduling. The ids in `never` are never chosen."""

    def __init__(self, glm: Glm, fusion: FusionModel, slots: int, never: Rows[int] = ()) -> None:
        self.glm, self.fusion, self.context = glm, fusion, glm.context
        config, weight = glm.config, glm.head.weight
        self.device = weight.device
        shape = (slots, 2 * config.num_key_value_heads, self.context, config.head_dim)
        self.slots = Slots(config.num_hidden_layers, shape, weight.dtype, self.device)
        self._banned = torch.zeros(config.vocab_size, dtype=torch.bool, device=self.device)
        self._banned[list(never)] = True

    @torch.inference_mode()
    def prepare(self, sequence: Sequence) -> None:
        """Set the inputs of all that has to be read behind `sequence.length`, and the gates of the prompt."""
        fused = fuse(self.fusion, self.glm.embed, sequence.prompt, sequence.length)
        sequence.gates = fused.gates
        generated = torch.tensor(sequence.output[:-1], dtype=torch.long, device=self.device)
        behind = max(0, sequence.length - len(sequence.prompt.token_ids))
        sequence.inputs = torch.cat([fused.embeddings, self.glm.embed(generated)[behind:]])

    @torch.inference_mode()
    def read(self, sequence: Sequence, slot: int, tokens: int) -> Tensor:
        """Read the next `tokens` of what `prepare` set into `slot`; returns logits [1, vocabulary] behind them."""
        assert sequence.inputs is not None
        chunk, sequence.inputs = sequence.inputs[:tokens], sequence.inputs[tokens:]
        positions = torch.arange(sequence.length, sequence.length + tokens, device=self.device)[None]
        logits = self._forward(chunk[None], slice(slot, slot + 1), positions, [sequence])
        sequence.length += tokens
        return logits

    @torch.inference_mode()
    def decode(self, running: Rows[Sequence], first: int = 0) -> Tensor:
        """Read each sequence's newest token (sequence i in slot `first` + i); returns logits [n, vocabulary].

        The sequences' lengths stay as they are, so that a failed pass can be tried again.
        """
        tokens = torch.tensor([[sequence.output[-1]] for sequence in running], device=self.device)
        positions = torch.tensor([[sequence.length] for sequence in running], device=self.device)
        return self._forward(self.glm.embed(tokens), slice(first, first + len(running)), positions, running)

    def _forward(self, embeddings: Tensor, slots: slice, positions: Tensor, rows: Rows[Sequence]) -> Tensor:
        adapters = [sequence.adapter for sequence in rows]
        logits: Tensor = self.glm(embeddings, slots, positions, self.slots.stores, adapters)
        return logits.masked_fill_(self._banned, float("-inf"))
