"""Conversion between torch tensors and messages; separate from tensors.py because the gateway has no torch."""

import torch

from autoglm.common.tensors import check, seal
from autoglm.v1.embedding_pb2 import (
    ELEMENT_TYPE_BFLOAT16,
    ELEMENT_TYPE_FLOAT16,
    ELEMENT_TYPE_FLOAT32,
    ElementType,
    Tensor,
)

_DTYPES: dict[ElementType.ValueType, torch.dtype] = {
    ELEMENT_TYPE_BFLOAT16: torch.bfloat16,
    ELEMENT_TYPE_FLOAT16: torch.float16,
    ELEMENT_TYPE_FLOAT32: torch.float32,
}
_ELEMENT_TYPES = {dtype: element_type for element_type, dtype in _DTYPES.items()}


def from_torch(tensor: torch.Tensor) -> Tensor:
    """Return `tensor` [...] (bf16, fp16 or fp32, any shape and device) as a sealed Tensor message."""
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return seal(data, tuple(tensor.shape), _ELEMENT_TYPES[tensor.dtype])


def to_torch(tensor: Tensor) -> torch.Tensor:
    """Return the message as a torch tensor [...] of its shape and dtype, on the CPU; raises TensorError if damaged."""
    check(tensor)
    flat = torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.element_type])
    return flat.reshape(tuple(tensor.shape))
