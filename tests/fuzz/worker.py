"""A service in a process of its own, which a case may kill: `python -m tests.fuzz.worker KIND SEED`.

It reads numbers of cases, one a line, and answers each with a line of JSON.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from random import Random

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from autoglm.common.errors import MeshError
from autoglm.gateway.conversation import Conversation, FieldPaths, check_sampling
from autoglm.gateway.schema_checks import check_format
from autoglm.gateway.tool_checks import with_usable_tools
from autoglm.v1.decoder_pb2 import DecoderServiceGenerateRequest
from autoglm.v1.speech_pb2 import SpeechServiceEncodeRequest, SpeechServiceTranscribeRequest
from autoglm.v1.vision_pb2 import VisionServiceEncodeRequest

from .formats import generate_request
from .media import picture, recording
from .tally import Result, of_status, of_type

SECONDS = 60  # the deadline of each request
SETTINGS = {"max_num_seqs": 1, "max_model_len": 1024, "kv_cache_memory_bytes": 2**28}
Send = Callable[[Random], Awaitable[Result]]


class CallContext:
    """What a service puts on the context of a call that fails."""

    def __init__(self) -> None:
        self.status: status_pb2.Status | None = None
        self.details = ""
        self.failed = False

    def set_code(self, code: grpc.StatusCode) -> None:
        self.failed = True

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None:
        (data,) = (value for name, value in metadata if name == "grpc-status-details-bin")
        assert isinstance(data, bytes)
        self.status = status_pb2.Status.FromString(data)

    def result(self) -> Result:
        """Return how the call ended."""
        return of_status(self.status, self.details) if self.failed else Result("OK")


class NoMetrics:
    """Metrics of an encoder that nobody reads."""

    def batched(self, size: int) -> None: ...

    def encoded(self, preprocess: float, queue: float, compute: float) -> None: ...


def formats() -> Send:
    """Return what sends a format to a decoder, if the gateway's checks let it through."""
    from autoglm.decoder.servicer import DecoderServicer
    from autoglm.decoder.settings import DecoderSettings

    servicer = DecoderServicer.load(DecoderSettings.model_validate(SETTINGS))

    async def send(draw: Random) -> Result:
        request, context = generate_request(draw), CallContext()
        try:
            _check(request)
        except MeshError as error:
            return of_type(error.type, error.message)
        request.timeout.CopyFrom(Duration(seconds=SECONDS))
        async for _ in servicer.generate(request, context):
            pass
        return context.result()

    return send


def pictures() -> Send:
    """Return what sends a picture to the vision service."""
    from autoglm.vision.servicer import VisionServicer
    from autoglm.vision.settings import VisionSettings

    servicer = VisionServicer.load(VisionSettings.model_validate({}))

    async def send(draw: Random) -> Result:
        request, context = VisionServiceEncodeRequest(image=picture(draw)), CallContext()
        await servicer.encode(request, context, NoMetrics())
        return context.result()

    return send


def recordings() -> Send:
    """Return what sends a recording to the speech service, to be embedded or to be written down."""
    from autoglm.speech.servicer import SpeechServicer
    from autoglm.speech.settings import SpeechSettings

    servicer = SpeechServicer.load(SpeechSettings.model_validate({}))

    async def send(draw: Random) -> Result:
        audio, context = recording(draw), CallContext()
        if draw.random() < 0.5:
            await servicer.encode(SpeechServiceEncodeRequest(audio=audio), context, NoMetrics())
        else:
            await servicer.transcribe(SpeechServiceTranscribeRequest(audio=audio), context, NoMetrics())
        return context.result()

    return send


KINDS: Mapping[str, Callable[[], Send]] = {
    "decoder: formats, schemas, tools": formats, "vision: pictures": pictures, "speech: recordings": recordings,
}  # fmt: skip


def _check(request: DecoderServiceGenerateRequest) -> None:
    """Raise what the gateway would, and replace the tools as it does."""
    conversation = Conversation(
        [], request.sampling, FieldPaths(messages="messages"), tools=request.tools, tool_choice=request.tool_choice
    )
    check_sampling(request.sampling)
    check_format(conversation)
    with_usable_tools(conversation)


async def _serve(send: Send, kind: str, seed: str) -> None:
    print(flush=True)  # ready
    while line := await asyncio.to_thread(sys.stdin.readline):
        started = time.process_time()  # other programs of the machine do not count
        result = await send(Random(f"{seed}/{kind}/{int(line)}"))
        print(json.dumps([result.outcome, result.said, time.process_time() - started]), flush=True)


def main(kind: str, seed: str) -> None:
    """Serve cases until the input ends."""
    logging.basicConfig(stream=sys.stderr)
    asyncio.run(_serve(KINDS[kind](), kind, seed))


if __name__ == "__main__":
    main(*sys.argv[1:])
