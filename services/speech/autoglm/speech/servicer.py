"""autoglm.v1.SpeechService: unpack, encode, pack."""

from functools import partial
from typing import Self

import numpy as np
import torch
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import seconds_to_duration
from autoglm.common.devices import chosen_device
from autoglm.common.encoder import EncoderServicer, StageMetrics
from autoglm.common.errors import InvalidRequest
from autoglm.common.modalities import BY_KIND
from autoglm.common.server import Context
from autoglm.speech.audio import AudioError, AudioTooLong, decode
from autoglm.speech.model import MAX_SECONDS, SAMPLE_RATE, Encoded, SpeechModel
from autoglm.speech.settings import SpeechSettings
from autoglm.v1 import embedding_pb2, speech_pb2

Samples = NDArray[np.float32]


class SpeechServicer(EncoderServicer[Samples, Encoded]):
    """Encodes and transcribes recordings."""

    modality, param = BY_KIND["audio"], "audio"
    unsupported, oversized = AudioError, AudioTooLong

    def __init__(self, model: SpeechModel, info: embedding_pb2.EncoderInfo, settings: SpeechSettings) -> None:
        super().__init__(info, settings, decode, model.encode)
        self._model = model

    @classmethod
    def load(cls, settings: SpeechSettings) -> Self:
        """Open the speech part of the bundle and warm up; raises BundleError when the part is not whole."""
        bundle = Bundle.open(chosen_bundle(settings.bundle))
        device = chosen_device(settings.device)
        model = SpeechModel.from_pretrained(bundle.part("speech"))
        model.network.to(device)
        info = embedding_pb2.EncoderInfo(
            revision=bundle.revision("speech"),
            width=model.width,
            element_type=embedding_pb2.ELEMENT_TYPE_BFLOAT16,
            device=str(device),
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
        self, request: speech_pb2.SpeechServiceEncodeRequest, context: Context, metrics: StageMetrics
    ) -> speech_pb2.SpeechServiceEncodeResponse:
        """SpeechService.Encode."""
        failed = speech_pb2.SpeechServiceEncodeResponse()
        return await self._answer(request, context, failed, partial(self._encode, request.audio, metrics))

    async def transcribe(
        self, request: speech_pb2.SpeechServiceTranscribeRequest, context: Context, metrics: StageMetrics
    ) -> speech_pb2.SpeechServiceTranscribeResponse:
        """SpeechService.Transcribe."""
        failed = speech_pb2.SpeechServiceTranscribeResponse()
        return await self._answer(request, context, failed, partial(self._transcribe, request.audio, metrics))

    def describe(self) -> speech_pb2.SpeechServiceDescribeResponse:
        """SpeechService.Describe."""
        return speech_pb2.SpeechServiceDescribeResponse(encoder=self._info, transcribes=self._model.transcribes)

    async def _encode(self, audio: bytes, metrics: StageMetrics) -> speech_pb2.SpeechServiceEncodeResponse:
        encoding = await self._run(audio, metrics)
        value = encoding.batched.value
        embedding = self._embedding(audio, value.tokens.to(torch.bfloat16), transcript=value.transcript)
        return speech_pb2.SpeechServiceEncodeResponse(
            embedding=embedding, transcript=value.transcript, times=encoding.times()
        )

    async def _transcribe(self, audio: bytes, metrics: StageMetrics) -> speech_pb2.SpeechServiceTranscribeResponse:
        if not self._model.transcribes:
            raise InvalidRequest(
                f"bundle {self._info.bundle} writes no transcripts: its speech part is an encoder without a CTC head;"
                " send the recording in a chat, or serve a bundle that transcribes"
            )
        encoding = await self._run(audio, metrics)
        return speech_pb2.SpeechServiceTranscribeResponse(
            text=encoding.batched.value.transcript, duration=seconds_to_duration(len(encoding.item) / SAMPLE_RATE)
        )
