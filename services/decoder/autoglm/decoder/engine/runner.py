"""The forward passes: part of a prompt into a slot, and one token for running sequences."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from autoglm.decoder.engine.graphs import Graphs, Room
from autoglm.decoder.engine.lora import Adapter
from autoglm.decoder.engine.models.glm import Glm, View
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.engine.slots import Slots
from autoglm.fusion.gcma.fuse import fuse
from autoglm.fusion.gcma.model import GcmaFusion


class Runner:
    """Owns the weights and the slots; knows nothing of scheduling. It reads up to `tokens` of a prompt at a time; the
    ids in `never` are never chosen."""

    def __init__(self, glm: Glm, fusion: GcmaFusion, slots: int, tokens: int, never: Rows[int] = ()) -> None:
        self.glm, self.fusion, self.context = glm, fusion, glm.context
        config, weight = glm.config, glm.head.weight
        self.device = weight.device
        shape = (slots, 2 * config.num_key_value_heads, self.context + 1, config.head_dim)
        self.slots = Slots(config.num_hidden_layers, shape, weight.dtype, self.device)
        self._banned = torch.zeros(config.vocab_size, dtype=torch.bool, device=self.device)
        self._banned[list(never)] = True
        room = Room(slots, tokens, self.context, config.hidden_size)
        on_gpu = self.device.type == "cuda"
        self._graphs = Graphs(self.step, self.piece, room, weight.dtype) if on_gpu else None

    @torch.inference_mode()
    def prepare(self, sequence: Sequence) -> None:
        """Set the inputs of all tokens that are not computed yet, and the gates of the prompt."""
        prompt, computed = sequence.request.prompt, sequence.num_computed_tokens
        fused = fuse(self.fusion, self.glm.embed, prompt, computed)
        sequence.gates = fused.gates
        generated = torch.tensor(sequence.output[:-1], dtype=torch.long, device=self.device)
        after = max(0, computed - len(prompt.token_ids))
        sequence.inputs = torch.cat([fused.embeddings, self.glm.embed(generated)[after:]])

    @torch.inference_mode()
    def prefill(self, sequence: Sequence, slot: int, tokens: int) -> Tensor:
        """Compute the next `tokens` of what `prepare` set in `slot`; returns logits [1, vocabulary] after them."""
        assert sequence.inputs is not None
        chunk, sequence.inputs = sequence.inputs[:tokens], sequence.inputs[tokens:]
        start = sequence.num_computed_tokens
        sequence.num_computed_tokens = end = start + tokens
        if self._graphs is not None and sequence.adapter is None:
            return self._graphs.piece(chunk, start, slot)
        positions = torch.arange(start, end, device=self.device)
        return self.piece(chunk, positions, slice(slot, slot + 1), end, [sequence.adapter])

    @torch.inference_mode()
    def decode(self, running: Rows[Sequence], first: int = 0) -> Tensor:
        """Compute each sequence's newest token (sequence i in slot `first` + i); returns logits [n, vocabulary], which
        are good until the next call.

        The sequences' counts of computed tokens stay as they are, so that a failed pass can be tried again.
        """
        tokens = [sequence.output[-1] for sequence in running]
        positions = [sequence.num_computed_tokens for sequence in running]
        adapters = [sequence.adapter for sequence in running]
        if self._graphs is not None and first == 0 and not any(adapters):
            return self._graphs.step(tokens, positions)
        inputs = torch.tensor([tokens, positions], device=self.device)
        return self.step(inputs, max(positions) + 1, first, adapters)

    def piece(
        self,
        embeddings: Tensor,
        positions: Tensor,
        slot: slice | Tensor,
        visible: int,
        adapters: Rows[Adapter | None] = (),
    ) -> Tensor:
        """Read `embeddings` [t, width] at `positions` [t] of one slot, which see the first `visible`; returns logits
        [1, vocabulary] behind the last. A token at position `context` disturbs no sequence."""
        return self._forward(embeddings[None], View(self.glm.turns, slot, positions[None], visible, adapters))

    def step(self, inputs: Tensor, visible: int, first: int = 0, adapters: Rows[Adapter | None] = ()) -> Tensor:
        """Read one token in each slot from `first` on: `inputs` [2, n] are tokens and positions, of which each sees
        the first `visible`. A row at position `context` disturbs no sequence."""
        tokens, positions = inputs
        slots = slice(first, first + len(tokens))
        view = View(self.glm.turns, slots, positions[:, None], visible, adapters)
        return self._forward(self.glm.embed(tokens)[:, None], view)

    def _forward(self, embeddings: Tensor, view: View) -> Tensor:
        logits: Tensor = self.glm(embeddings, view, self.slots.stores)
        return logits.masked_fill_(self._banned, float("-inf"))
