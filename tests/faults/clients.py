"""Clients that ask while something fails, and keep count of what they see."""

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
import httpx
import numpy as np

from autoglm.bench.smoke.workloads import wav
from autoglm.cli.api import audio_bytes_part
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER, SamplingParams

from ..asking import CHAT
from ..mesh import Mesh
from ..waiting import NET_SECONDS, at_the_same_time
from .attacks.media import small_picture
from .attacks.sending import LATE, OK, grpc_outcome, http_outcome, user
from .neighbour import contents, request

PAUSE = 0.25  # seconds between two requests of a client
TIMEOUT = 5.0  # that each request sets
STREAM_TIMEOUT = 30.0
IN_A_ROW = 8
NO_CONNECTION, CUT_OFF = "no connection", "cut off"
SOCKET = re.compile(r"Socket closed|recvmsg|Connection reset|Broken pipe|GOAWAY|RST_STREAM")
LONG = " ".join(map(str, range(1, 120)))  # a stream of some seconds

Question = Callable[[], str]  # asks once, and returns what its client sees


class Watcher:
    """Asks again and again from a thread of its own."""

    def __init__(self, question: Question) -> None:
        self._question, self._started = question, time.monotonic()
        self.seen: Counter[str] = Counter()
        self.in_a_row, self.last_failure = 0, 0.0

    @contextmanager
    def watching(self) -> Iterator["Watcher"]:
        """Ask inside the block; times count from its start."""
        self._started = time.monotonic()
        with at_the_same_time(self._watch):
            yield self

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(PAUSE):
            outcome = self._question()
            self.seen[outcome] += 1
            self.in_a_row = self.in_a_row + 1 if outcome == OK else 0
            if outcome != OK:
                self.last_failure = time.monotonic() - self._started


def over_http(mesh: Mesh, kind: str) -> Question:
    """Ask over HTTP, each time on a connection of its own."""
    drawn = np.random.default_rng()

    def ask() -> str:
        body = request(max_tokens=4, messages=user(*question(kind, drawn)))
        headers = {"x-request-timeout": str(TIMEOUT)}
        try:
            response = httpx.post(
                mesh.http_url + CHAT, json=body, headers=headers, timeout=2 * TIMEOUT, trust_env=False
            )
        except httpx.TransportError as error:
            return http_words(error)
        outcome = http_outcome(response)
        if outcome == OK or "untyped" in outcome:
            return outcome
        comes_back = response.status_code != 503 or int(response.headers.get("retry-after", 0)) > 0
        return f"{response.status_code} {outcome}" + ("" if comes_back else ", no Retry-After")

    return ask


def question(kind: str, drawn: np.random.Generator) -> list[Any]:
    """Return the content of a message: text, or media that no cache has seen."""
    if kind == "text":
        return ["hi"]
    if kind == "image":
        return [small_picture(drawn)]
    return [audio_bytes_part(wav(drawn.normal(0, 0.1, 8000).astype(np.float32), 16000))]


def chat(**sampling: Any) -> ChatRequest:
    """Return a request of gRPC."""
    said = ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])
    return ChatRequest(messages=[said], sampling=SamplingParams(temperature=0, **sampling))


def over_grpc(mesh: Mesh) -> Question:
    """Ask for text over gRPC, each time on a connection of its own."""

    def ask() -> str:
        with grpc.insecure_channel(mesh.grpc_address) as channel:
            try:
                ChatServiceStub(channel).Complete(CompleteRequest(chat=chat(max_tokens=4)), timeout=TIMEOUT)
            except grpc.RpcError as error:
                return grpc_words(error)
        return OK

    return ask


def http_words(error: httpx.TransportError) -> str:
    """Return how a connection of HTTP failed."""
    if isinstance(error, httpx.TimeoutException):
        return LATE
    return NO_CONNECTION if isinstance(error, httpx.ConnectError) else CUT_OFF


def grpc_words(error: grpc.RpcError) -> str:
    """Return the code of an error and its reason if it has one, or how the connection failed."""
    outcome, call = grpc_outcome(error), cast(grpc.Call, error)
    if outcome in ("untyped UNAVAILABLE", "untyped CANCELLED"):  # which the client itself says, too
        details = call.details() or ""
        return NO_CONNECTION if "connect" in details else CUT_OFF if SOCKET.search(details) else outcome
    return outcome if outcome == LATE or "untyped" in outcome else f"{call.code().name} {outcome}"


class Streams:
    """Answers that run while something fails: two over HTTP and one over gRPC."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.ends: Counter[str] = Counter()
        self._running = threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=self._run, args=(each,)) for each in (self._http, self._http, self._grpc)
        ]

    def start(self) -> None:
        """Return when all of them have their first token, or have failed."""
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._running.acquire(timeout=NET_SECONDS)

    def join(self) -> None:
        """Wait for their ends."""
        for thread in self._threads:
            thread.join()

    def _run(self, stream: Callable[[], str]) -> None:
        self.ends[stream()] += 1
        self._running.release()

    def _http(self) -> str:
        asked = request(stream=True, max_tokens=2000, structured_outputs={"regex": LONG})
        try:
            with httpx.stream(
                "POST", self._mesh.http_url + CHAT, json=asked, timeout=STREAM_TIMEOUT, trust_env=False
            ) as answer:
                return self._told("".join(self._first(contents(answer))))
        except httpx.TransportError as error:
            return http_words(error)
        except ValueError as error:
            return f"event: error, {error}"

    def _grpc(self) -> str:
        with grpc.insecure_channel(self._mesh.grpc_address) as channel:
            asked = StreamCompleteRequest(chat=chat(max_tokens=2000, regex=LONG))
            steps = ChatServiceStub(channel).StreamComplete(asked, timeout=STREAM_TIMEOUT)
            try:
                return self._told("".join(self._first(step.delta.text for step in steps)))
            except grpc.RpcError as error:
                return grpc_words(error)

    def _first(self, texts: Iterator[str]) -> Iterator[str]:
        first = list(itertools.islice(texts, 1))
        self._running.release()
        yield from itertools.chain(first, texts)

    @staticmethod
    def _told(text: str) -> str:
        return "whole" if text == LONG else "ends early without an error"
