"""The limit that a model's context sets to text, before and after it is tokenized."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoglm.common.errors import InvalidRequest
from autoglm.v1.generation_pb2 import Function, FunctionCall


def is_longer(texts: Iterable[str], most: int) -> bool:
    """Return whether `texts` have more than `most` bytes together. A text that is much too long is not encoded."""
    size = 0
    for text in texts:
        size += len(text) if len(text) > most else len(text.encode())
        if size > most:
            return True
    return False


@dataclass(frozen=True, slots=True)
class PromptText:
    """All that a client wrote into a prompt."""

    texts: Sequence[str]
    calls: Sequence[FunctionCall]
    tools: Sequence[Function]

    def check(self, context: int, most: int, messages: str, tools: str) -> None:
        """Raise InvalidRequest, for the field `messages` or `tools`, if this has more than `most` bytes, which cannot
        fit into `context` tokens."""
        offered = [text for each in self.tools for text in (each.name, each.description, each.parameters)]
        if is_longer(offered, most):
            raise context_exceeded(context, "the tools have more; send fewer", tools)
        called = [text for each in self.calls for text in (each.name, each.arguments)]
        if is_longer([*offered, *called, *self.texts], most):
            raise context_exceeded(context, "the messages have more; shorten them", messages)


def context_exceeded(context: int, why: str, param: str) -> InvalidRequest:
    """Return the error for the field `param`, of which `why` says how long it is and what to do."""
    return InvalidRequest(
        f"this model's maximum context length is {context} tokens, but {why}",
        param=param,
        code="context_length_exceeded",
    )
