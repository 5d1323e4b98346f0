"""autoglm.v1.SpeechService: unpack, call, pack."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from autoglm.common.batching import Batched, Batcher
from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import Deadline, seconds_to_duration
from autoglm.common.errors import InvalidRequest, RequestTooLarge, UnsupportedMedia
from autoglm.common.server import Context, fail
from autoglm.common.torch_tensors import from_torch
from autoglm.speech.audio import AudioError, AudioTooLong, decode
from autoglm.speech.model import MAX_SECONDS, SAMPLE_RATE, Encoded, SpeechModel
from autoglm.speech.settings import SpeechSettings
from autoglm.v1 import embedding_pb2, modality_pb2, speech_pb2

Samples = NDArray[np.float32]
Response = TypeVar("Response")


class Metrics(Protocol):
    """Where the servicer tells what a request took."""

    def encoded(self, preprocess: float, batched: Batched[Encoded]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Heard:
    """One recording after its pass; times in seconds."""

    batched: Batched[Encoded]
    preprocess: float
    duration: float


class SpeechServicer:
    """Encodes recordings: files are decoded in a pool of threads, forward passes are batched in one."""

    def __init__(self, model: SpeechModel, info: embedding_pb2.EncoderInfo, settings: SpeechSettings) -> None:
        self._model = model
        self._info = info
        self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()), thread_name_prefix="decode")
        self._batcher = Batcher(model.encode, limit=settings.max_batch, linger=settings.batch_wait_s)

    @classmethod
    def load(cls, settings: SpeechSettings) -> Self:
        """Open the speech part of the bundle and warm up; raises BundleError when the part is not whole."""
        bundle = Bundle.open(chosen_bundle(settings.bundle))
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = SpeechModel.from_pretrained(bundle.part("speech"))
        model.network.to(device)
        info = embedding_pb2.EncoderInfo(
            revision=bundle.revision("speech"),
            width=model.width,
            element_type=embedding_pb2.ELEMENT_TYPE_BFLOAT16,
            device=device,
            max_duration=Duration(seconds=MAX_SECONDS),
            bundle=bundle.name,
        )
        servicer = cls(model, info, settings)
        servicer.warm_up(settings.max_batch)
        return servicer

    def warm_up(self, max_batch: int) -> None:
        """Run every batch size once on a second of silence, and the longest recording."""
        second = np.zeros(SAMPLE_RATE, np.float32)
        for size in range(1, max_batch + 1):
            self._model.encode([second] * size)
        self._model.encode([np.zeros(MAX_SECONDS * SAMPLE_RATE, np.float32)])

    async def encode(
        self, request: speech_pb2.SpeechServiceEncodeRequest, context: Context, metrics: Metrics
    ) -> speech_pb2.SpeechServiceEncodeResponse:
        """SpeechService.Encode."""
        left = request.timeout if request.HasField("timeout") else None
        heard = await _answer(context, left, lambda: self._hear(request.audio, metrics))
        if heard is None:
            return speech_pb2.SpeechServiceEncodeResponse()
        return speech_pb2.SpeechServiceEncodeResponse(
            embedding=embedding_pb2.Embedding(
                modality=modality_pb2.MODALITY_AUDIO,
                encoder_revision=self._info.revision,
                tokens=from_torch(heard.batched.value.tokens.to(torch.bfloat16)),
                media_sha256=hashlib.sha256(request.audio).digest(),
                transcript=heard.batched.value.transcript,
            ),
            transcript=heard.batched.value.transcript,
            times=embedding_pb2.EncoderTimes(
                queue=seconds_to_duration(heard.batched.queue),
                preprocess=seconds_to_duration(heard.preprocess),
                compute=seconds_to_duration(heard.batched.compute),
            ),
        )

    async def transcribe(
        self, request: speech_pb2.SpeechServiceTranscribeRequest, context: Context, metrics: Metrics
    ) -> speech_pb2.SpeechServiceTranscribeResponse:
        """SpeechService.Transcribe."""
        left = request.timeout if request.HasField("timeout") else None
        heard = await _answer(context, left, lambda: self._understand(request.audio, metrics))
        if heard is None:
            return speech_pb2.SpeechServiceTranscribeResponse()
        return speech_pb2.SpeechServiceTranscribeResponse(
            text=heard.batched.value.transcript, duration=seconds_to_duration(heard.duration)
        )

    def describe(self) -> speech_pb2.SpeechServiceDescribeResponse:
        """SpeechService.Describe."""
        return speech_pb2.SpeechServiceDescribeResponse(encoder=self._info, transcribes=self._model.transcribes)

    async def check(self) -> None:
        """Return once the forward thread answers."""
        await self._batcher.check()

    async def _understand(self, audio: bytes, metrics: Metrics) -> _Heard:
        if not self._model.transcribes:
            raise InvalidRequest(
                f"bundle {self._info.bundle} hears but writes no transcripts: its speech part is an encoder without a"
                " CTC head; send the recording in a chat, or serve a bundle that transcribes"
            )
        return await self._hear(audio, metrics)

    async def _hear(self, audio: bytes, metrics: Metrics) -> _Heard:
        started = time.monotonic()
        samples: Samples = await asyncio.get_running_loop().run_in_executor(self._pool, decode, audio)
        preprocess = time.monotonic() - started
        batched = await self._batcher.submit(samples)
        metrics.encoded(preprocess, batched)
        return _Heard(batched, preprocess, len(samples) / SAMPLE_RATE)


async def _answer(context: Context, left: Duration | None, work: Callable[[], Awaitable[Response]]) -> Response | None:
    """Return what `work` returns in the time `left`, or put its error on `context` and return None."""
    try:
        async with asyncio.timeout(Deadline.of(left).remaining()):
            return await work()
    except Exception as error:
        fail(context, _for_client(error))
        return None


def _for_client(error: Exception) -> Exception:
    if isinstance(error, AudioTooLong):
        return RequestTooLarge(str(error), param="audio")
    if isinstance(error, AudioError):
        return UnsupportedMedia(str(error), param="audio")
    return error
