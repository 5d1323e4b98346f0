"""One replica of each service in this process, and what a request to it takes."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

import grpc
import torch

from autoglm.bench.engine.model_under_test import SEED
from autoglm.bench.smoke.workloads import Messages, draw
from autoglm.bench.stages.media import media_of
from autoglm.common.errors import InternalError
from autoglm.common.modalities import ApplicationName
from autoglm.decoder.servicer import DecoderServicer
from autoglm.decoder.settings import DecoderSettings
from autoglm.speech.servicer import SpeechServicer
from autoglm.speech.settings import SpeechSettings
from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.generation_pb2 import ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_USER, SamplingParams
from autoglm.v1.speech_pb2 import SpeechServiceEncodeRequest
from autoglm.v1.vision_pb2 import VisionServiceEncodeRequest
from autoglm.vision.servicer import VisionServicer
from autoglm.vision.settings import VisionSettings

R = TypeVar("R")

DIFFERENT = 8  # requests, asked again and again: no service caches media, and the decoder's prefix cache is off
MAX_TOKENS = 32
ROLES = {"system": ROLE_SYSTEM, "user": ROLE_USER, "assistant": ROLE_ASSISTANT}


@dataclass(frozen=True, slots=True)
class Took:
    """The seconds until a request's first result and until its last; an embedding is both."""

    first: float
    last: float


Ask = Callable[[], Awaitable[Took]]


class BenchCaller:
    """The client and the metrics of a call. A call that fails ends the benchmark."""

    def batched(self, size: int) -> None: ...
    def encoded(self, preprocess: float, queue: float, compute: float) -> None: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None: ...

    def set_details(self, details: str) -> None:
        """Raise InternalError with the details of the call's error."""
        raise InternalError(details)


def vision() -> Ask:
    """Load the vision service of the chosen bundle, and return what encodes the next picture."""
    servicer = VisionServicer.load(VisionSettings.model_validate({}))
    return _encoding(servicer.encode, [VisionServiceEncodeRequest(image=picture) for picture in _files("screen")])


def speech() -> Ask:
    """Load the speech service of the chosen bundle, and return what encodes the next recording, of about 3 seconds."""
    servicer = SpeechServicer.load(SpeechSettings.model_validate({}))
    return _encoding(servicer.encode, [SpeechServiceEncodeRequest(audio=recording) for recording in _files("voice")])


def decoder() -> Ask:
    """Load the decoder of the chosen bundle, and return what answers the next text with up to MAX_TOKENS tokens."""
    servicer = DecoderServicer.load(DecoderSettings.model_validate({"enable_prefix_caching": False}))
    requests = cycle([_conversation(each) for each in draw("text", DIFFERENT, SEED, lambda: None)])

    async def ask() -> Took:
        started, first = time.monotonic(), 0.0
        async for _ in servicer.generate(next(requests), BenchCaller()):
            first = first or time.monotonic() - started
        return Took(first, time.monotonic() - started)

    return ask


LOADS: Mapping[ApplicationName, Callable[[], Ask]] = {"vision": vision, "speech": speech, "decoder": decoder}


def load(name: ApplicationName, threads: int) -> Ask:
    """Load a service as a replica with so many `threads`, and return what asks it; raises ToolsMissing, BundleError."""
    torch.set_num_threads(threads)
    return LOADS[name]()


def _encoding(encode: Callable[[R, BenchCaller, BenchCaller], Awaitable[object]], requests: Sequence[R]) -> Ask:
    following = cycle(requests)

    async def ask() -> Took:
        started = time.monotonic()
        await encode(next(following), BenchCaller(), BenchCaller())
        seconds = time.monotonic() - started
        return Took(seconds, seconds)

    return ask


def _files(workload: str) -> Sequence[bytes]:
    return [data for messages in draw(workload, DIFFERENT, SEED, lambda: None) for _, data in media_of(messages)]


def _conversation(messages: Messages) -> DecoderServiceGenerateRequest:
    return DecoderServiceGenerateRequest(
        messages=list(_turns(messages)), sampling=SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    )


def _turns(messages: Messages) -> Iterator[DecoderMessage]:
    for message in messages:
        yield DecoderMessage(role=ROLES[message["role"]], parts=[DecoderPart(text=message["content"])])
