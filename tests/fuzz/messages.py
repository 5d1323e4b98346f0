"""Protobuf messages with odd values in any field, made from their descriptors, and bytes that are no message."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from .values import FLOATS, INTEGERS, damaged, text

DEPTH = 5
_WHOLE = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}


def odd(draw: Random, message: Message, changes: int) -> Message:
    """Return `message` after it got odd values in so many places."""
    for _ in range(changes):
        _change(draw, message, DEPTH)
    return message


def on_the_wire(draw: Random, message: Message) -> bytes:
    """Return the bytes of `message`: as they are, with fields that it does not have, or damaged."""
    data = message.SerializeToString()
    match draw.randrange(8):
        case 0:
            return damaged(draw, data)
        case 1:
            return data + _unknown(draw)
        case 2:
            return data + data  # the last value counts, and lists get longer
    return data


def _change(draw: Random, message: Message, depth: int) -> None:
    """Change a field of `message`, or of a message inside."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    if not fields:
        return
    field = draw.choice(fields)
    if field.message_type and field.message_type.GetOptions().map_entry:
        _add_entry(draw, getattr(message, field.name), field.message_type)
    elif field.is_repeated:
        _change_list(draw, getattr(message, field.name), field, depth)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if draw.random() < 0.1:
            message.ClearField(field.name)
        elif depth:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _change(draw, inner, depth - 1)
    else:
        setattr(message, field.name, _scalar(draw, field))


def _change_list(draw: Random, values: Any, field: FieldDescriptor, depth: int) -> None:
    if values and draw.random() < 0.15:
        del values[draw.randrange(len(values)) :]
    elif field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        values.extend([_scalar(draw, field)] * draw.choice((1, 1, 2, 5, 300)))
    elif values and draw.random() < 0.6:
        _change(draw, draw.choice(values), depth - 1) if depth else None
    elif values and draw.random() < 0.3:
        values.extend([values[0]] * draw.choice((1, 5, 300)))
    else:
        _change(draw, values.add(), depth - 1) if depth else values.add()


def _add_entry(draw: Random, entries: Any, kind: Any) -> None:
    key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
    for _ in range(draw.choice((1, 1, 3, 400))):
        entries[_scalar(draw, key)] = _scalar(draw, value)


def _scalar(draw: Random, field: FieldDescriptor) -> Any:
    """Return an odd value of the field's type."""
    kind = field.cpp_type
    if kind in _WHOLE:
        return _whole(draw, *_WHOLE[kind])
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return draw.choice(
            (*(field.enum_type.values_by_number if field.enum_type else ()), -1, 99, 2**31 - 1, -(2**31))
        )
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        number = draw.choice(FLOATS)
        return math.inf if kind == FieldDescriptor.CPPTYPE_FLOAT and 3.4e38 < number < math.inf else number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw.choice((b"", b"\x00", draw.randbytes(32), draw.randbytes(31), bytes(32), text(draw).encode()))
    return text(draw)


def _whole(draw: Random, bits: int, signed: bool) -> int:
    number = draw.choice(INTEGERS) % (1 << bits)
    return number - (1 << bits) if signed and number >= 1 << bits - 1 else number


def _unknown(draw: Random) -> bytes:
    """Return fields with numbers that no message has, or without an end; groups in groups."""
    return draw.choice(
        (
            b"\xfa\x7f\x03abc",  # field 2047, bytes
            b"\xf8\xff\xff\xff\x0f\x01",  # the highest number that there is
            b"\x00\x00",  # field 0
            b"\x0b" * draw.choice((1, 50, 99, 101, 5000)),  # groups that begin
            b"\x0c",  # a group that ends
            b"\x0f",  # a type that is not there
            b"\x0a\xff\xff\xff\xff\x0f",  # a length beyond the end
            b"\x80" * 11,  # a number without an end
            draw.randbytes(20),
        )
    )
