"""Counts the values of a JSON document without building any: a document of megabytes can hold millions of them.

A parser would turn each into an object, with the interpreter locked until the last. Counting commas and brackets costs
a few milliseconds for each megabyte, and a piece at a time lets other threads run in between.
"""

import re
from collections.abc import Iterator

from pydantic_core import from_json

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.limits import MAX_VALUES

STEP = 64 * 1024  # bytes that are looked at in one go

_MARKS = (b",", b"[", b"{")  # each value but the first has one before it, or is one
_ESCAPES = re.compile(rb"\\*.?", re.DOTALL)


def check_values(body: bytes | bytearray) -> None:
    """Raise InvalidRequest, which names the field of the object where it is exceeded, if the document in `body` has
    more than MAX_VALUES values."""
    if not may_have_more_values(body, MAX_VALUES):
        return
    count = 0
    for end, outside in _outside_strings(body):
        count += sum(map(outside.count, _MARKS))
        if count > MAX_VALUES:
            param = _last_field(body[:end])
            message = f"{param or 'the body'} has too many values: a body may have {MAX_VALUES} in all"
            raise InvalidRequest(message, param=param, code="array_above_max_length")


def may_have_more_values(body: bytes | bytearray, most: int) -> bool:
    """Return whether the document in `body` has so many marks that it can have more than `most` values. Those within
    strings count too: media in base64 have none."""
    if len(body) <= 2 * most:
        return False
    count = 0
    for start in range(0, len(body), STEP):
        end = start + STEP
        # To find that there is none takes a tenth of the time of counting.
        count += sum(body.count(mark, start, end) for mark in _MARKS if body.find(mark, start, end) >= 0)
        if count > most:
            return True
    return False


def num_values(text: str) -> int:
    """Return how many values the JSON document in `text` has, or would have."""
    return sum(outside.count(mark) for _, outside in _outside_strings(text.encode()) for mark in _MARKS)


def _outside_strings(body: bytes | bytearray) -> Iterator[tuple[int, bytes | bytearray]]:
    """Yield the document without its strings, piece by piece, each with where it ends."""
    end, inside = 0, 0
    while end < len(body):
        start, end = end, min(end + STEP, len(body))
        if body[end - 1 : end] == b"\\":  # an escape sequence is not cut in two
            found = _ESCAPES.match(body, end)
            end = found.end() if found else end
        pieces = body[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield end, b"".join(pieces[inside::2])
        inside ^= (len(pieces) - 1) % 2


def _last_field(start: bytes | bytearray) -> str | None:
    """Return the field of the object that begins with `start` which is open at its end."""
    try:
        found = from_json(start, allow_partial=True)
    except ValueError:
        return None
    return next(reversed(found), None) if isinstance(found, dict) else None
