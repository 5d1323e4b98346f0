"""Tensors on the wire and at rest: little-endian raw bytes with shape, type and checksum."""

import math
import zlib
from collections.abc import Sequence

from autoglm.v1.embedding_pb2 import (
    ELEMENT_TYPE_BFLOAT16,
    ELEMENT_TYPE_FLOAT16,
    ELEMENT_TYPE_FLOAT32,
    ElementType,
    Tensor,
)

ELEMENT_SIZES: dict[int, int] = {ELEMENT_TYPE_BFLOAT16: 2, ELEMENT_TYPE_FLOAT16: 2, ELEMENT_TYPE_FLOAT32: 4}


class TensorError(ValueError):
    """The bytes do not match the type, shape or checksum of the tensor."""


def seal(data: bytes, shape: Sequence[int], element_type: ElementType.ValueType) -> Tensor:
    """Return `data` as a Tensor of `shape` (such as [tokens, width]) with its checksum.

    Raises TensorError when `data` does not fill `shape`.
    """
    tensor = Tensor(element_type=element_type, shape=shape, data=data, crc32=zlib.crc32(data))
    check(tensor)
    return tensor


def check(tensor: Tensor) -> None:
    """Raise TensorError unless type, shape [...], length and checksum of `tensor` agree."""
    size = ELEMENT_SIZES.get(tensor.element_type)
    if size is None:
        raise TensorError(f"unknown element type {tensor.element_type}")
    expected = math.prod(tensor.shape) * size
    if len(tensor.data) != expected:
        raise TensorError(f"shape {list(tensor.shape)} needs {expected} bytes, got {len(tensor.data)}")
    if zlib.crc32(tensor.data) != tensor.crc32:
        raise TensorError("checksum mismatch: the bytes were damaged in transit")
