"""A quiet neighbour: it streams an answer and asks short questions, and notes when everything came."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import httpx

from ..asking import CHAT, MODEL
from ..waiting import NET_SECONDS, at_the_same_time
from .attacks.sending import http_outcome

PAUSE = 0.2  # seconds between short questions
# What the stream says is known beforehand: that way a token that is lost, doubled or changed shows.
TEXT = " ".join(map(str, range(1, 60)))


@dataclass(slots=True)
class Stay:
    """What a neighbour noticed: seconds between tokens, seconds of whole requests, and whatever went wrong."""

    gaps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A client that does nothing unusual."""

    http: httpx.Client

    def stream(self, stay: Stay) -> None:
        """Read one streamed answer, and note what came when."""
        text, arrivals = "", list[float]()
        try:
            with self.http.stream(
                "POST", CHAT, json=request(stream=True, structured_outputs={"regex": TEXT})
            ) as answer:
                for content in contents(answer):
                    arrivals.append(time.perf_counter())
                    text += content
        except (httpx.TransportError, ValueError) as error:
            stay.faults.append(f"the stream ends with {type(error).__name__} {error}")
        stay.gaps += [after - before for before, after in pairwise(arrivals)]
        if text != TEXT:
            stay.faults.append(f"{len(text)} of {len(TEXT)} characters came: …{text[-20:]}")

    def asking(self, stay: Stay) -> AbstractContextManager[None]:
        """Ask short questions, one after the other, inside the block."""
        return at_the_same_time(partial(self._ask, stay))

    def _ask(self, stay: Stay, ended: threading.Event) -> None:
        while not ended.wait(PAUSE):
            started = time.perf_counter()
            try:
                response = self.http.post(CHAT, json=request(max_tokens=4))
            except httpx.TransportError as error:
                stay.faults.append(f"a question is answered with {type(error).__name__} {error}")
                continue
            stay.whole.append(time.perf_counter() - started)
            if response.status_code != 200:
                stay.faults.append(f"a question is answered with {response.status_code} {response.text[:200]}")


def request(**fields: Any) -> dict[str, Any]:
    """Return the body of a request."""
    hi = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 1000}
    return hi | fields


def contents(answer: httpx.Response) -> Iterator[str]:
    """Yield the tokens of a stream; raises ValueError for an error, of the response or in the stream."""
    if answer.status_code != 200:
        answer.read()
        raise ValueError(f"{answer.status_code} {http_outcome(answer)}")
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ValueError(event["error"]["type"])
            yield from (choice["delta"]["content"] for choice in event["choices"] if choice["delta"].get("content"))


@contextmanager
def neighbour(http_url: str) -> Iterator[Neighbour]:
    """A neighbour at this gateway."""
    with httpx.Client(base_url=http_url, timeout=NET_SECONDS, trust_env=False) as http:
        yield Neighbour(http)


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of `values` is; 0 for none."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0
