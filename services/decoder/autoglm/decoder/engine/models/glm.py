"""GLM as the engine runs it: the arithmetic of transformers' GlmForCausalLM in fewer, larger steps, over a cache of
its own.

Queries, keys and values come from one matrix product, a rotation is one complex product, and a key's queries attend
as rows of one matrix, so that no key is ever repeated.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers.models.glm.modeling_glm import GlmDecoderLayer, GlmForCausalLM, GlmRMSNorm

from autoglm.common.int8 import quantize_int8
from autoglm.decoder.engine.lora import Adapter, Shapes
from autoglm.decoder.engine.prefix_keys import BLOCK

PACKED_FOR = 32  # rows that matrices are packed for; the order is the same for any number from 8 on


class View:
    """What one forward pass writes and sees: in each of `slots` (a slice, or their numbers), the keys and values of
    tokens at `positions` [n, t]. A token sees none behind it, and none behind the first `visible`.
    """

    def __init__(
        self,
        turns: Tensor,
        slots: slice | Tensor,
        positions: Tensor,
        visible: int,
        adapters: Sequence[Adapter | None] = (),
    ) -> None:
        self.slots, self.positions, self.visible = slots, positions, visible
        rows = torch.arange(slots.start, slots.stop, device=positions.device) if isinstance(slots, slice) else slots
        self.rows = rows[:, None]
        by_adapter: dict[Adapter, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                by_adapter.setdefault(adapter, []).append(row)
        self.adapters = list(by_adapter.items())
        self.turns = turns[positions][:, :, None]  # [n, t, 1, rotated / 2], complex
        self._hidden = torch.arange(visible, device=positions.device) > positions[..., None]
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
        """Return what follows `x` [n, t, width], whose keys and values go into `store` where `view` says."""
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
        _rotate(heads[:, :, :-kv_heads], view.turns)
        queries, new = heads[:, :, : -2 * kv_heads], heads[:, :, -2 * kv_heads :]
        store[view.rows, :, view.positions] = new
        past = store[view.slots, :, : view.visible]
        # The queries of one key head stand side by side as rows: [n, kv_heads, t · group, head_dim].
        group = queries.shape[2] // kv_heads
        rows = queries.view(n, t, kv_heads, group, -1).transpose(1, 2).reshape(n, kv_heads, t * group, -1)
        seen = scaled_dot_product_attention(rows, past[:, :kv_heads], past[:, kv_heads:], view.mask(group, rows.dtype))
        return seen.reshape(n, kv_heads, t, -1).transpose(1, 2).reshape(n, t, -1)


class Glm(nn.Module):
    """The weights of a GlmForCausalLM, in inference only, for `context` positions and one more, which no token of a
    sequence has; with `int8` the layers' matrices are held and multiplied in 8 bits, on a CPU."""

    turns: Tensor  # [context + 1, rotated / 2], complex: how far each pair is turned at each position

    def __init__(self, source: GlmForCausalLM, context: int, int8: bool = False) -> None:
        super().__init__()
        self.config = source.config
        self.embed, self.head, self.norm = source.model.embed_tokens, source.lm_head, source.model.norm
        self.layers = nn.ModuleList(Layer(layer, number) for number, layer in enumerate(source.model.layers))
        rotary = source.model.rotary_emb
        angles = torch.outer(
            torch.arange(context + 1, dtype=torch.float32, device=rotary.inv_freq.device), rotary.inv_freq.float()
        )
        turns = torch.polar(torch.full_like(angles, rotary.attention_scaling), angles)
        self.register_buffer("turns", turns, persistent=False)
        if int8:
            quantize_int8(self.layers)
        if _onednn(self.head.weight):
            _pack(self)

    @property
    def context(self) -> int:
        """Return how many positions a sequence has."""
        return len(self.turns) - 1

    @property
    def block_bytes(self) -> int:
        """Return how many bytes the keys and values of a block have."""
        config = self.config
        heads = 2 * config.num_hidden_layers * config.num_key_value_heads
        return int(heads * config.head_dim * BLOCK * self.head.weight.itemsize)

    def shapes(self) -> Shapes:
        """Return outputs and inputs of a layer's matrices, by transformers' names, in the order of the joined one."""
        config = self.config
        width, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
        queries, inner = config.num_attention_heads * config.head_dim, config.intermediate_size
        return {
            "q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, queries),
            "gate_up_proj": (2 * inner, width), "down_proj": (width, inner),
        }  # fmt: skip

    def forward(self, embeddings: Tensor, view: View, stores: Sequence[Tensor]) -> Tensor:
        """Read `embeddings` [n, t, width] where `view` says; returns logits [n, vocabulary], float32, of the token
        behind the last one of each row."""
        x = embeddings.to(self.head.weight.dtype)
        for layer, store in zip(self.layers, stores, strict=True):
            x = layer(x, store, view)
        logits: Tensor = self.head(_normed(x[:, -1], self.norm))
        return logits.float()


def _joined(parts: Iterable[nn.Linear]) -> nn.Linear:
    """Return one linear layer that computes what `parts` do, side by side."""
    weights, biases = zip(*((part.weight.detach(), part.bias) for part in parts), strict=True)
    weight = torch.cat(weights)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=biases[0] is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases[0] is not None:
        joined.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return joined


class PackedLinear(nn.Module):
    """A linear layer on a CPU whose matrix lies in oneDNN's own order: from two rows on up to three times as fast as
    torch's own. One row alone in float32 is faster by a matrix that lies input by input, which is held beside it: the
    figures are in docs/adr/0008. torch.compile packs matrices by the same operator."""

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
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def _onednn(weight: Tensor) -> bool:
    """Return whether oneDNN multiplies by such a weight here."""
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


def _rotate(heads: Tensor, turns: Tensor) -> None:
    """Turn the first dimensions of `heads` [n, t, heads, head_dim] in place, pair by pair, in float32."""
    part = heads[..., : 2 * turns.shape[-1]]
    pairs = torch.view_as_complex(part.float().reshape(*part.shape[:-1], -1, 2))
    part.copy_(torch.view_as_real(pairs * turns).flatten(-2))
