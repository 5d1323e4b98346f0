"""Counts the fields of a protobuf message without building any: two bytes can stand for an empty message, of which the
parser makes an object of a hundred."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.limits import MAX_VALUES

_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_MAX_VARINT = 10  # bytes

Descriptor = Any  # the DESCRIPTOR of a message, whose class depends on how protobuf is built


class _Inner(NamedTuple):
    """A field whose values are messages."""

    name: str
    repeated: bool
    kind: Descriptor


def check_fields(data: bytes, kind: Descriptor) -> None:
    """Raise InvalidRequest, which names the first repeated field around them, if `data`, a message of `kind`, has more
    than MAX_VALUES fields in itself and the messages in it; DecodeError if it is malformed."""
    if len(data) <= 2 * MAX_VALUES:  # a field has at least two bytes
        return
    count, waiting = 0, [(0, len(data), kind, "", False)]
    while waiting:
        at, end, message, path, repeated = waiting.pop()
        fields = _messages_in(message)
        while at < end:
            tag, at = _varint(data, at, end)
            start, at = _value(data, at, end, tag & 7)
            field = fields.get(tag >> 3)
            here = path if repeated or field is None else f"{path}.{field.name}".removeprefix(".")
            count += 1
            if count > MAX_VALUES:
                text = f"{here or 'the message'} has too many fields: a message may have {MAX_VALUES} in all"
                raise InvalidRequest(text, param=here or None, code="array_above_max_length")
            if field is not None and start < at and tag & 7 == _BYTES:
                waiting.append((at, end, message, path, repeated))
                waiting.append((start, at, field.kind, here, repeated or field.repeated))
                break


@cache
def _messages_in(kind: Descriptor) -> Mapping[int, _Inner]:
    """Return the fields of a message whose values are messages, by number."""
    inner = ((field, field.message_type) for field in kind.fields)
    return {field.number: _Inner(field.name, field.is_repeated, each) for field, each in inner if each is not None}


def _value(data: bytes, at: int, end: int, wire_type: int) -> tuple[int, int]:
    """Return where the value of a field begins and ends, whose encoding begins at `at`."""
    length = 0
    if wire_type == _BYTES:
        length, at = _varint(data, at, end)
    elif wire_type == _VARINT:
        return at, _varint(data, at, end)[1]
    elif wire_type in (_FIXED64, _FIXED32):
        length = 8 if wire_type == _FIXED64 else 4
    elif wire_type not in (_START_GROUP, _END_GROUP):  # of unknown fields; what is between counts as if outside
        raise DecodeError("there is no such wire type")
    if at + length > end:
        raise DecodeError("a field is cut off")
    return at, at + length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends."""
    if at < end and (byte := data[at]) < 0x80:
        return byte, at + 1
    value = 0
    for number in range(min(_MAX_VARINT, end - at)):
        byte = data[at + number]
        value |= (byte & 0x7F) << (7 * number)
        if byte < 0x80:
            return value, at + number + 1
    raise DecodeError("a number is cut off")
