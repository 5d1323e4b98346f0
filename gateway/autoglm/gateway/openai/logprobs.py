"""Log probabilities of generated tokens, as both APIs write them."""

from collections.abc import Sequence
from typing import Any

from autoglm.v1.generation_pb2 import LogprobEntry, TokenLogprob

LEAST_LOGPROB = -9999.0  # OpenAI's number for a probability of 0; JSON has no infinity


def rendered(entries: Sequence[LogprobEntry]) -> list[dict[str, Any]]:
    """Return each token with its log probability, and the likeliest ones at its place."""
    return [{**_token(entry.chosen), "top_logprobs": [_token(top) for top in entry.top]} for entry in entries]


def take(entries: list[LogprobEntry], text: str, begins: bool) -> list[LogprobEntry]:
    """Remove the entries of the tokens that `text` consists of from the front of `entries`, and return them.

    With `begins` nothing of the item came before, so that entries ahead of its first token, the marks around the
    reasoning, are removed too.
    """
    data = text.encode()
    end = start = _first(entries, data) if begins else 0
    size = 0
    while end < len(entries) and size < len(data):
        size += len(entries[end].chosen.token_bytes)
        end += 1
    taken = entries[start:end]
    del entries[:end]
    return taken


def _first(entries: Sequence[LogprobEntry], data: bytes) -> int:
    for number, entry in enumerate(entries):
        token = entry.chosen.token_bytes
        if token and (data.startswith(token) or token.startswith(data)):
            return number
    return 0


def _token(token: TokenLogprob) -> dict[str, Any]:
    logprob = max(token.logprob, LEAST_LOGPROB)
    return {"token": token.token, "logprob": logprob, "bytes": list(token.token_bytes)}
