"""The forward passes: a chunk of a prompt into a slot, and one token for running sequences."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from autoglm.decoder.engine.cache import BLOCK_SIZE
from autoglm.decoder.engine.graphs import Graphs, GraphSizes
from autoglm.decoder.engine.lora import Adapter
from autoglm.decoder.engine.models.glm import Glm, View
from autoglm.decoder.engine.prefill_inputs import PrefillInputs
from autoglm.decoder.engine.sequence import Sequence
from autoglm.decoder.engine.slots import Slots
from autoglm.fusion.protocol import Fusion

BLOCK_TOKENS = 4  # of a prompt, whose prefill takes about as long as to copy a cached block


class Runner:
    """Owns the weights and the slots; knows nothing of scheduling. It computes up to `max_num_batched_tokens` of a
    prompt at a time; the ids in `never` are never chosen."""

    def __init__(
        self, glm: Glm, fusion: Fusion, max_num_seqs: int, max_num_batched_tokens: int, never: Rows[int] = ()
    ) -> None:
        self.glm, self.fusion, self.context = glm, fusion, glm.context
        config, weight = glm.config, glm.head.weight
        self.device = weight.device
        shape = (max_num_seqs, 2 * config.num_key_value_heads, self.context + 1, config.head_dim)
        self.slots = Slots(config.num_hidden_layers, shape, weight.dtype, self.device)
        self._banned = torch.zeros(config.vocab_size, dtype=torch.bool, device=self.device)
        self._banned[list(never)] = True
        sizes = GraphSizes(max_num_seqs, max_num_batched_tokens, self.context, config.hidden_size, glm.position_rows)
        on_gpu = self.device.type == "cuda"
        self._graphs = Graphs(self.decode_step, self.prefill_chunk, sizes, weight.dtype) if on_gpu else None

    @torch.inference_mode()
    def prepare(self, sequence: Sequence) -> None:
        """Set the inputs of all tokens that are not computed yet, and where decoding goes on: the first generated token
        has the fusion's next position, and each one after it one more."""
        prompt, computed = sequence.request.prompt, sequence.num_computed_tokens
        inputs = self.fusion.chunked_inputs(self.glm.embed, prompt, computed)
        sequence.rope_delta = inputs.next_position - len(prompt.token_ids)
        known = max(0, computed - len(prompt.token_ids))  # of the generated tokens
        generated = torch.tensor(sequence.output[known:-1], dtype=torch.long, device=self.device)
        sequence.inputs = PrefillInputs(inputs, self.glm.embed(generated), inputs.next_position + known)
        self._count_to_read(sequence, sequence.inputs)

    def read(self, sequence: Sequence, tokens: int) -> None:
        """Read about `tokens` of what has to be read before a sequence is prefilled: first its cached blocks, each of
        which counts as BLOCK_TOKENS, then what its inputs depend on."""
        inputs, blocks = sequence.inputs, sequence.cached_blocks[: -(-tokens // BLOCK_TOKENS)]
        assert inputs is not None
        first = sequence.num_computed_tokens // BLOCK_SIZE - len(sequence.cached_blocks)
        self.slots.put(sequence.slot, blocks, first)
        del sequence.cached_blocks[: len(blocks)]
        inputs.read(tokens - BLOCK_TOKENS * len(blocks))
        self._count_to_read(sequence, inputs)

    def _count_to_read(self, sequence: Sequence, inputs: PrefillInputs) -> None:
        sequence.num_tokens_to_read = inputs.num_tokens_to_read + BLOCK_TOKENS * len(sequence.cached_blocks)

    def synchronize(self) -> None:
        """Wait until a GPU has computed everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def prefill(self, sequence: Sequence, slot: int, tokens: int) -> Tensor:
        """Compute the next `tokens` of what `prepare` set in `slot`; returns logits [1, vocabulary] after them."""
        inputs, start = sequence.inputs, sequence.num_computed_tokens
        assert inputs is not None
        embeddings, positions = inputs.take(tokens)
        sequence.num_computed_tokens = end = start + tokens
        if self._graphs is not None and sequence.adapter is None:
            return self._graphs.prefill(embeddings, positions, start, slot)
        indices = torch.arange(start, end, device=self.device)
        slots = slice(slot, slot + 1)
        return self.prefill_chunk(embeddings, positions, indices, slots, end, [sequence.adapter])

    @torch.inference_mode()
    def decode(self, running: Rows[Sequence], first: int = 0) -> Tensor:
        """Compute each sequence's newest token (sequence i in slot `first` + i); returns logits [n, vocabulary], which
        are good until the next call.

        The sequences' counts of computed tokens stay as they are, so that a failed pass can be tried again.
        """
        tokens = [sequence.output[-1] for sequence in running]
        indices = [sequence.num_computed_tokens for sequence in running]
        positions = [sequence.num_computed_tokens + sequence.rope_delta for sequence in running]
        adapters = [sequence.adapter for sequence in running]
        if self._graphs is not None and first == 0 and not any(adapters):
            return self._graphs.decode(tokens, indices, positions)
        inputs = torch.tensor([tokens, indices, positions], device=self.device)
        return self.decode_step(inputs, max(indices) + 1, first, adapters)

    def prefill_chunk(
        self,
        embeddings: Tensor,
        positions: Tensor,
        indices: Tensor,
        slot: slice | Tensor,
        visible: int,
        adapters: Rows[Adapter | None] = (),
    ) -> Tensor:
        """Compute `embeddings` [t, width] with rope `positions` [P, t] at `indices` [t] of one slot's cache, which see
        the first `visible`; returns logits [1, vocabulary] after the last. A token at index `context` disturbs no
        sequence."""
        view = View(self.glm.rope(positions[:, None]), slot, indices[None], visible, adapters)
        return self._forward(embeddings[None], view)

    def decode_step(self, inputs: Tensor, visible: int, first: int = 0, adapters: Rows[Adapter | None] = ()) -> Tensor:
        """Compute one token in each slot from `first` on: `inputs` [3, n] are token ids, indices in the cache and rope
        positions, and each token sees the first `visible` indices. A row at index `context` disturbs no sequence."""
        tokens, indices, positions = inputs
        slots = slice(first, first + len(tokens))
        view = View(self.glm.rope(positions[None, :, None]), slots, indices[:, None], visible, adapters)
        return self._forward(self.glm.embed(tokens)[:, None], view)

    def _forward(self, embeddings: Tensor, view: View) -> Tensor:
        logits: Tensor = self.glm(embeddings, view, self.slots.stores)
        return logits.masked_fill_(self._banned, float("-inf"))
