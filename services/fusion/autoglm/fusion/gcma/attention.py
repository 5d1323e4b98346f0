"""Gated cross-modal attention (GCMA): the formula alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values [B, S, d] of the tokens of one modality."""

    keys: Tensor
    values: Tensor


class GCMA(nn.Module):
    """Gated cross-modal attention: σ(W_g·[Q; K; V]) ⊗ softmax(QKᵀ/√d)·V.

    Q comes from the target, K and V from a source of another length, so the gate of a query reads its own attended
    summaries: with A = softmax(QKᵀ/√d) its input is [Q; A·K; A·V]. For one key A = 1, and this is exactly the formula.
    With h heads, Q, K and V are split into h slices of d/h that attend separately; the gate reads them joined again.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(3 * width, width)

    def forward(self, target: Tensor, source: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from `target` [B, T, d] to `source` [B, S, d] where `visible` [B, T, S] is true.

        Returns what each target token takes from the source [B, T, d], its gate [B, T, d] and the attention
        [B, heads, T, S]. A token that sees no source takes exactly zero.
        """
        return self.attend(target, self.project(source), visible)

    def project(self, source: Tensor) -> KeysValues:
        """Return the keys and values of `source` [B, S, d]."""
        return KeysValues(self.key(source), self.value(source))

    def attend(self, target: Tensor, source: KeysValues, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to the keys and values of a source; see `forward`."""
        q, k, v = self.query(target), source.keys, source.values
        scores = self._split(q) @ self._split(k).transpose(-1, -2) / math.sqrt(q.shape[-1] / self.heads)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
        sees = visible.any(-1)
        attention = scores.masked_fill(~sees[:, None, :, None], 0.0).softmax(-1).to(v.dtype)
        attended_k, attended_v = self._join(attention @ self._split(k)), self._join(attention @ self._split(v))
        gate = torch.sigmoid(self.gate(torch.cat([q, attended_k, attended_v], dim=-1)))
        return gate * attended_v * sees[..., None], gate, attention

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)
