"""The forward passes: a prompt into a slot, and one token for every running sequence."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor
from transformers.models.glm.modeling_glm import GlmForCausalLM

from autoglm.decoder.engine.cache import SlotCache
from autoglm.decoder.engine.sequence import Sequence
from autoglm.fusion.fuse import fuse
from autoglm.fusion.model import FusionModel


class Runner:
    """Owns the weights and the cache; knows nothing of scheduling.

    `allowed` is how many ids the tokenizer has: the vocabulary's padding is never chosen, nor are
    the ids in `never`.
    """

    def __init__(
        self, decoder: GlmForCausalLM, fusion: FusionModel, slots: int, context: int, allowed: int, never: Rows[int]
    ) -> None:
        self.decoder, self.fusion, self.context = decoder, fusion, context
        config, weight = decoder.config, decoder.lm_head.weight
        self.device = weight.device
        shape = (slots, config.num_key_value_heads, context, config.head_dim)
        self.cache = SlotCache(config.num_hidden_layers, shape, weight.dtype, self.device)
        self._banned = torch.ones(config.vocab_size, dtype=torch.bool, device=self.device)
        self._banned[:allowed] = False
        self._banned[list(never)] = True

    @torch.inference_mode()
    def prefill(self, sequence: Sequence, slot: int) -> Tensor:
        """Fuse and read a prompt into `slot`; returns the logits [1, vocabulary] of the next token."""
        fused = fuse(self.fusion, self.decoder.model.embed_tokens, sequence.prompt)
        sequence.gates = fused.gates
        sequence.length = len(sequence.prompt.token_ids)
        positions = torch.arange(sequence.length, device=self.device)[None]
        return self._forward(fused.embeddings[None], slice(slot, slot + 1), positions)

    @torch.inference_mode()
    def decode(self, running: Rows[Sequence]) -> Tensor:
        """Read each sequence's newest token (sequence i in slot i); returns logits [n, vocabulary]."""
        tokens = torch.tensor([[sequence.output[-1]] for sequence in running], device=self.device)
        positions = torch.tensor([[sequence.length] for sequence in running], device=self.device)
        for sequence in running:
            sequence.length += 1
        return self._forward(self.decoder.model.embed_tokens(tokens), slice(0, len(running)), positions)

    def _forward(self, embeddings: Tensor, slots: slice, positions: Tensor) -> Tensor:
        self.cache.target(slots, positions)
        hidden = self.decoder.model(
            inputs_embeds=embeddings.to(self.decoder.lm_head.weight.dtype),
            attention_mask=self.cache.mask(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits: Tensor = self.decoder.lm_head(hidden)
        return logits.float().masked_fill_(self._banned, float("-inf"))
