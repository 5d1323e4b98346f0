"""GLM as the engine runs it: the arithmetic of transformers' GlmForCausalLM in fewer, larger steps, over a cache of
its own.

Queries, keys and values come from one matrix product, rope (rotary position embedding) is one complex product, and a
key's queries attend as rows of one matrix, so that no key is ever repeated.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, rms_norm, scaled_dot_product_attention, silu
from transformers.models.glm.configuration_glm import GlmConfig
from transformers.models.glm.modeling_glm import GlmDecoderLayer, GlmForCausalLM, GlmRMSNorm

from autoglm.common.int8 import quantize_int8
from autoglm.decoder.engine.adapter_files import AdaptedMatrices
from autoglm.decoder.engine.cache import BLOCK_SIZE
from autoglm.decoder.engine.lora import Adapter

PACKED_FOR = 32  # rows that matrices are packed for; the order is the same for any number from 8 on
EXACT_ROWS = 32  # of answers that are continued together


class View:
    """What one forward pass writes and sees.

    Token i of row r has its keys and values at `indices` [n, t] of slot r of `slots` (a slice, or their numbers), and
    is turned by `rope` [n, t, 1, rotated / 2]. Its index in the cache and its rope position are two things. It sees
    what is up to its own index, and of that only the first `visible`.
    """

    def __init__(
        self,
        rope: Tensor,
        slots: slice | Tensor,
        indices: Tensor,
        visible: int,
        adapters: Sequence[Adapter | None] = (),
    ) -> None:
        self.rope, self.slots, self.indices, self.visible = rope, slots, indices, visible
        rows = torch.arange(slots.start, slots.stop, device=indices.device) if isinstance(slots, slice) else slots
        self.rows = rows[:, None]
        by_adapter: dict[Adapter, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                by_adapter.setdefault(adapter, []).append(row)
        self.adapters = list(by_adapter.items())
        self._hidden = torch.arange(visible, device=indices.device) > indices[..., None]
        self._masks: dict[int, Tensor] = {}

    def mask(self, group: int, dtype: torch.dtype) -> Tensor:
        """Return what to add to the scores of each row of queries, 0 or −∞: [n, 1, t · group, visible]."""
        if group not in self._masks:
            mask = torch.zeros_like(self._hidden, dtype=dtype).masked_fill_(self._hidden, float("-inf"))
            self._masks[group] = mask.repeat_interleave(group, dim=1)[:, None]
        return self._masks[group]


class Layer(nn.Module):
    """One decoder layer. `store` below is its cache [slots, 2 · kv_heads, context, head_dim], keys before values."""

    def __init__(self, layer: GlmDecoderLayer, number: int) -> None:
        super().__init__()
        self.number = number
        attention = layer.self_attn
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o, self.gate_up, self.down = attention.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.head_dim = attention.head_dim

    def forward(self, x: Tensor, store: Tensor, view: View) -> Tensor:
        """Return the layer's output [n, t, width] for `x` [n, t, width], and write keys and values to `store` where
        `view` says."""
        x = x + self._linear("o", self._attend(_normed(x, self.norm), store, view), view)
        gate, up = self._linear("gate_up", _normed(x, self.mlp_norm), view).chunk(2, dim=-1)
        return x + self._linear("down", up * silu(gate), view)

    def _linear(self, name: str, x: Tensor, view: View) -> Tensor:
        """Return one of the layer's matrices times `x`, and what the adapters of the rows add."""
        y: Tensor = getattr(self, name)(x)
        for adapter, rows in view.adapters:
            if factors := adapter.factors.get((self.number, name)):
                y[rows] += x[rows] @ factors[0] @ factors[1]
        return y

    def _attend(self, x: Tensor, store: Tensor, view: View) -> Tensor:
        n, t, _ = x.shape
        kv_heads = store.shape[1] // 2
        heads = self._linear("qkv", x, view).view(n, t, -1, self.head_dim)
        apply_rope(heads[:, :, :-kv_heads], view.rope)
        queries, new = heads[:, :, : -2 * kv_heads], heads[:, :, -2 * kv_heads :]
        store[view.rows, :, view.indices] = new
        past = store[view.slots, :, : view.visible]
        # The queries of one key head become rows side by side: [n, kv_heads, t · group, head_dim].
        group = queries.shape[2] // kv_heads
        rows = queries.view(n, t, kv_heads, group, -1).transpose(1, 2).reshape(n, kv_heads, t * group, -1)
        seen = scaled_dot_product_attention(rows, past[:, :kv_heads], past[:, kv_heads:], view.mask(group, rows.dtype))
        return seen.reshape(n, kv_heads, t, -1).transpose(1, 2).reshape(n, t, -1)


class Glm(nn.Module):
    """The weights of a GlmForCausalLM, for inference only.

    There are `context` positions, and one more that no token of a sequence has. With `int8` the layers' matrices are
    stored and multiplied in 8 bits, on a CPU.
    """

    _rope: Tensor  # [context + 1, rotated / 2], complex: how far each pair of dimensions is turned at each position
    _rope_rows: Tensor | None  # [rotated / 2]: which of three rows of positions turns each pair; None for one row

    def __init__(self, source: GlmForCausalLM, context: int, int8: bool = False) -> None:
        super().__init__()
        self.config = source.config
        self.embed, self.head, self.norm = source.model.embed_tokens, source.lm_head, source.model.norm
        self.layers = nn.ModuleList(Layer(layer, number) for number, layer in enumerate(source.model.layers))
        rotary = source.model.rotary_emb
        angles = torch.outer(
            torch.arange(context + 1, dtype=torch.float32, device=rotary.inv_freq.device), rotary.inv_freq.float()
        )
        rope = torch.polar(torch.full_like(angles, rotary.attention_scaling), angles)
        self.register_buffer("_rope", rope, persistent=False)
        sections = source.config.rope_parameters.get("mrope_section")
        self.register_buffer("_rope_rows", _rope_rows(sections, rope.shape[1], rope.device), persistent=False)
        if int8:
            quantize_int8(self.layers)
        if _onednn(self.head.weight):
            _pack(self)

    @classmethod
    def from_pretrained(
        cls, folder: Path, dtype: torch.dtype, device: torch.device, context: int, int8: bool = False
    ) -> "Glm":
        """Read the weights of a GlmForCausalLM from a folder in Hugging Face's format."""
        source = GlmForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
        return cls(source, context, int8)

    @property
    def context(self) -> int:
        """Return how many tokens a sequence can have."""
        return len(self._rope) - 1

    @property
    def position_rows(self) -> int:
        """Return how many rows of positions rope takes for a prompt: 1, or 3 (multimodal rope)."""
        return 1 if self._rope_rows is None else 3

    def rope(self, positions: Tensor) -> Tensor:
        """Return how far tokens at `positions` [P, n, t] are turned: [n, t, 1, rotated / 2], complex.

        P is 1, or 3 for a decoder whose config has `mrope_section`: each of these sections of dimension pairs is turned
        by the positions of one row, in turns. Equal rows are turned as one.
        """
        if len(positions) == 1:
            return self._rope[positions[0]][:, :, None]
        if self._rope_rows is None:
            raise ValueError("the fusion gives three rows of positions, and the decoder's config has no mrope_section")
        pairs = torch.arange(self._rope.shape[1], device=positions.device)
        return self._rope[positions[self._rope_rows].permute(1, 2, 0), pairs][:, :, None]

    @property
    def block_bytes(self) -> int:
        """Return how many bytes the keys and values of a block have."""
        config = self.config
        heads = 2 * config.num_hidden_layers * config.num_key_value_heads
        return int(heads * config.head_dim * BLOCK_SIZE * self.head.weight.itemsize)

    def forward(self, embeddings: Tensor, view: View, stores: Sequence[Tensor]) -> Tensor:
        """Compute `embeddings` [n, t, width] where `view` says; returns logits [n, vocabulary], float32, of the token
        after the last one of each row."""
        x = embeddings.to(self.head.weight.dtype)
        for layer, store in zip(self.layers, stores, strict=True):
            x = layer(x, store, view)
        logits: Tensor = self.head(_normed(x[:, -1], self.norm))
        return logits.float()


def adapted_matrices(config: GlmConfig) -> AdaptedMatrices:
    """Return the layers of a GLM, and outputs and inputs of their matrices by transformers' names, in the order of the
    joined one."""
    width, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    queries, inner = config.num_attention_heads * config.head_dim, config.intermediate_size
    shapes = {
        "q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, queries),
        "gate_up_proj": (2 * inner, width), "down_proj": (width, inner),
    }  # fmt: skip
    return AdaptedMatrices(config.num_hidden_layers, shapes)


def _joined(parts: Iterable[nn.Linear]) -> nn.Linear:
    """Return one linear layer whose outputs are those of `parts`, one after another."""
    weights, biases = zip(*((part.weight.detach(), part.bias) for part in parts), strict=True)
    weight = torch.cat(weights)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=biases[0] is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases[0] is not None:
        joined.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return joined


class PackedLinear(nn.Module):
    """A linear layer on a CPU whose matrix has oneDNN's own memory layout, which makes two rows or more up to three
    times as fast as in torch's. One row alone in float32 is faster with a matrix in column-major order, which is kept
    as well; figures are in docs/adr/0008. torch.compile packs matrices with the same operator."""

    weight: Tensor
    by_inputs: Tensor | None
    bias: Tensor | None

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        matrix = source.weight.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), PACKED_FOR)
        by_inputs = matrix.t().contiguous().t() if matrix.dtype == torch.float32 else None
        self.register_buffer("weight", packed)
        self.register_buffer("by_inputs", by_inputs, persistent=False)
        self.register_buffer("bias", None if source.bias is None else source.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return the product [..., outputs]."""
        if self.by_inputs is not None and x.numel() == x.shape[-1]:
            return linear(x, self.by_inputs, self.bias)
        rows = x.numel() // x.shape[-1]
        flat = x.reshape(rows, -1)
        if missing := padded_rows(rows) - rows:
            flat = pad(flat, (0, 0, 0, missing))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self.weight, self.bias, "none", [], "")
        return y[:rows].view(*x.shape[:-1], -1)


def padded_rows(rows: int) -> int:
    """Return how many rows to multiply, so that there are few different numbers: oneDNN compiles a kernel for each, in
    a millisecond, and keeps a thousand of up to 1 MB. Of those above 32 there are eight up to each power of two."""
    step = 1 if rows <= EXACT_ROWS else 2 ** (rows.bit_length() - 4)
    return -(-rows // step) * step


def _onednn(weight: Tensor) -> bool:
    """Return whether oneDNN can multiply by such a weight on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)


def _normed(x: Tensor, norm: GlmRMSNorm) -> Tensor:
    return rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _rope_rows(sections: Sequence[int] | None, pairs: int, device: torch.device) -> Tensor | None:
    """Return the row of positions of each pair of dimensions, as `mrope_section` says: [pairs]."""
    if sections is None:
        return None
    if sum(sections) != pairs:
        raise ValueError(f"mrope_section {list(sections)} does not add up to the {pairs} pairs that are rotated")
    lengths = torch.tensor(sections, device=device)
    return (torch.arange(len(sections), device=device) % 3).repeat_interleave(lengths)


def apply_rope(heads: Tensor, rope: Tensor) -> None:
    """Turn the first dimensions of `heads` [n, t, heads, head_dim] in place, pair by pair, in float32; `rope` is
    [n, t, 1, rotated / 2], complex."""
    part = heads[..., : 2 * rope.shape[-1]]
    pairs = torch.view_as_complex(part.float().reshape(*part.shape[:-1], -1, 2))
    part.copy_(torch.view_as_real(pairs * rope).flatten(-2))
