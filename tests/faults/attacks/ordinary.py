"""What clients send on any day, to compare hostile requests with."""

import itertools
from collections.abc import Iterator

from ...cases import screen_cases
from .sending import OK, Attack, Send, Servers, asking, user

SCREENS = 40  # that no cache has seen; an attack sends fewer


def question() -> Send:
    """A short question with an answer of up to 64 tokens."""
    return asking(messages=user("你是谁?"), max_tokens=64)


def screenshots() -> Send:
    """A question about another screenshot each time."""
    cases = screen_cases("open", "home", SCREENS, seed=900)
    asked = [asking(messages=user({"type": "text", "text": case.words}, case.image)) for case in cases]
    sends: Iterator[Send] = itertools.cycle(asked)

    def send(servers: Servers) -> str:
        return next(sends)(servers)

    return send


ORDINARY = (
    Attack("an ordinary question", question, frozenset({OK})),
    Attack("an ordinary screenshot", screenshots, frozenset({OK})),
)
