"""Odd values, and damage to bytes and to JSON: what the other generators are made of.

Every generator takes a `random.Random`, its only source of chance, so that a case is the same in every run.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

TEXTS = (
    "", " ", "\x00", "\ufeff", "\u202e", "\u2028", "\ufdd0", "\uffff", "\U0010ffff", "😀", "e\u0301" * 20, "你好",
    "ﷺ" * 9, "<think>", "</think>", "</answer>", "<|endoftext|>", "<|user|>", "<tool_call>", "</tool_call>",
    "<|begin_of_image|>", "{{ 7 * 7 }}", "{% for x in y %}", "%s%n", "../../etc/passwd", "data:,", "data:;base64,é",
    "https://x:99999/a.png", "https://[::1", "file:///etc/passwd", "null", "NaN", "-1", "1e999", "\r\nx-a: b",
    "a" * 3000, "a " * 1500, "\\", '"',
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-38, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan, 1e308, 5e-324)
INTEGERS = (
    0, 1, -1, 2, 7, 127, 128, 255, 65_536, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**63 - 1, -(2**63),
    2**64 - 1,
)  # fmt: skip
JSON = (
    "null", "true", "0", "-1", "2147483648", "18446744073709551616", "1e999", "NaN", "1" * 5000, "-0.0", "0.1",
    '""', '"\\u0000"', '"\\ud800"', '"\\udc00x"', '"\U0001f600"', '"\ufeff"', '"https://media.test:x/"', '"data:,"',
    "[]", '"data:;base64,\u00e9"', "[null]", "[[]]", "{}", '{"": null}', '{"$ref": "#"}', '{"a": 1, "a": 2}',
    "[" * 2000, '"auto"',
)  # fmt: skip
MARK = "\ue000"


def text(draw: Random) -> str:
    """Return a text that is odd, or random characters of any kind but surrogates."""
    if draw.random() < 0.7:
        return draw.choice(TEXTS)
    points = (draw.choice((0x80, 0x800, 0xD800, 0x110000)) for _ in range(draw.randrange(20)))
    return "".join(chr(found) for found in map(draw.randrange, points) if not 0xD800 <= found < 0xE000)


def damaged(draw: Random, data: bytes) -> bytes:
    """Return `data` with up to three pieces of damage."""
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(_DAMAGES)(draw, data)
    return data


def mutated_json(draw: Random, whole: Any) -> bytes:
    """Return `whole` as JSON in which one value is another, and at times a byte too."""
    body = json.loads(json.dumps(whole))
    *way, last = draw.choice(list(_places(body)))
    inner = body
    for key in way:
        inner = inner[key]
    inner[last] = MARK
    odd = draw.choice(JSON) if draw.random() < 0.7 else json.dumps(text(draw))
    data = json.dumps(body, ensure_ascii=False).replace(f'"{MARK}"', odd).encode(errors="replace")
    return damaged(draw, data) if draw.random() < 0.15 else data


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside `value`."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from _places(each, (*at, key))


def _cut(draw: Random, data: bytes) -> bytes:
    return data[: _anywhere(draw, data)]


def _flipped(draw: Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 4, 32)) if found else 0):
        found[_anywhere(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(found)


def _overwritten(draw: Random, data: bytes) -> bytes:
    """Write an odd number somewhere: sizes, rates and counts are such."""
    at, size = _anywhere(draw, data), draw.choice((1, 2, 4, 8))
    number = draw.choice(INTEGERS) % (1 << 8 * size)
    return data[:at] + number.to_bytes(size, draw.choice(("little", "big"))) + data[at + size :]


def _spliced(draw: Random, data: bytes) -> bytes:
    """Copy a piece to another place."""
    start, at = _anywhere(draw, data), _anywhere(draw, data)
    return data[:at] + data[start : start + draw.choice((1, 8, 100, 1000))] + data[at + draw.choice((0, 8, 100)) :]


def _inserted(draw: Random, data: bytes) -> bytes:
    at = _anywhere(draw, data)
    return data[:at] + draw.choice((b"\x00" * 64, b"\xff" * 64, draw.randbytes(40))) + data[at:]


def _removed(draw: Random, data: bytes) -> bytes:
    at = _anywhere(draw, data)
    return data[:at] + data[at + draw.choice((1, 4, 64)) :]


def _anywhere(draw: Random, data: bytes) -> int:
    """Return a position, often near the start: that is where headers are."""
    if not data:
        return 0
    return min(draw.randrange(len(data)), draw.randrange(200) if draw.random() < 0.6 else len(data) - 1)


_DAMAGES: Sequence[Callable[[Random, bytes], bytes]] = (_cut, _flipped, _overwritten, _spliced, _inserted, _removed)
