"""autoglm.v1.SpeechService: unpack, encode, pack."""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Self

import numpy as np
import torch
from google.protobuf.duration_pb2 import Duration

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import seconds_to_duration
from autoglm.common.devices import chosen_device
from autoglm.common.encoder import EncoderServicer, Encoding, StageMetrics
from autoglm.common.errors import InvalidRequest
from autoglm.common.modalities import BY_KIND
from autoglm.common.server import Context
from autoglm.speech.audio import AudioError, AudioTooLong, decode
from autoglm.speech.cut import SOUND_SECONDS, AudioPiece, audible, cut
from autoglm.speech.model import SAMPLE_RATE, Encoded, SpeechModel
from autoglm.speech.settings import SpeechSettings
from autoglm.speech.transcript import SpokenSegment, text_of
from autoglm.v1 import embedding_pb2, speech_pb2, transcript_pb2

Heard = Encoding[AudioPiece, Encoded]


class SpeechServicer(EncoderServicer[AudioPiece, Encoded]):
    """Encodes and transcribes recordings."""

    modality, param = BY_KIND["audio"], "audio"
    unsupported, oversized = AudioError, AudioTooLong

    def __init__(self, model: SpeechModel, info: embedding_pb2.EncoderInfo, settings: SpeechSettings) -> None:
        super().__init__(info, settings, self._pieces, self._forward)
        self._model, self._max_seconds = model, settings.max_audio_seconds

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
            max_duration=Duration(seconds=settings.max_audio_seconds),
            bundle=bundle.name,
            version=version("autoglm-mesh"),
        )
        servicer = cls(model, info, settings)
        servicer.warm_up(settings.max_batch)
        return servicer

    def warm_up(self, max_batch: int) -> None:
        """Run every batch size once on a second of silence, and the largest batch of the longest pieces."""
        second = np.zeros(SAMPLE_RATE, np.float32)
        for size in range(1, max_batch + 1):
            self._model.encode([second] * size)
        self._model.encode([np.zeros(self._model.piece_seconds * SAMPLE_RATE, np.float32)] * max_batch)

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
        heard = await self._run(audio, metrics)
        tokens, transcript = _tokens(heard), text_of(_segments(heard))
        embedding = self._embedding(audio, tokens.to(torch.bfloat16), transcript=transcript)
        return speech_pb2.SpeechServiceEncodeResponse(embedding=embedding, transcript=transcript, times=heard.times())

    async def _transcribe(self, audio: bytes, metrics: StageMetrics) -> speech_pb2.SpeechServiceTranscribeResponse:
        if not self._model.transcribes:
            raise InvalidRequest(
                f"bundle {self._info.bundle} writes no transcripts: its speech part is an encoder without a CTC head;"
                " send the recording in a chat, or serve a bundle that transcribes"
            )
        heard = await self._run(audio, metrics)
        segments = _segments(heard)
        return speech_pb2.SpeechServiceTranscribeResponse(
            text=text_of(segments),
            duration=seconds_to_duration(sum(len(piece.samples) for piece in heard.items) / SAMPLE_RATE),
            segments=[_packed(segment) for segment in segments],
            audio_tokens=len(_tokens(heard)),
        )

    def _pieces(self, audio: bytes) -> list[AudioPiece]:
        return cut(decode(audio, self._max_seconds), self._model.piece_seconds * SAMPLE_RATE)

    def _forward(self, pieces: Sequence[AudioPiece]) -> list[Encoded]:
        return self._model.encode([piece.samples for piece in pieces])


def _tokens(heard: Heard) -> torch.Tensor:
    """Return the tokens [n, width] of a recording."""
    return torch.cat([encoded.tokens for encoded in heard.values])


def _segments(heard: Heard) -> list[SpokenSegment]:
    """Return what is said in a recording, with times from its start."""
    return [
        said.of_piece(piece.start / SAMPLE_RATE, len(piece.samples) / SAMPLE_RATE)
        for piece, encoded in zip(heard.items, heard.values, strict=True)
        for segment in encoded.segments
        if (said := segment.where(audible(piece.samples).tolist(), SOUND_SECONDS))
    ]


def _packed(segment: SpokenSegment) -> transcript_pb2.TranscriptSegment:
    return transcript_pb2.TranscriptSegment(
        text=segment.text,
        start=seconds_to_duration(segment.start),
        end=seconds_to_duration(segment.end),
        words=[
            transcript_pb2.TranscriptWord(
                text=word.text, start=seconds_to_duration(word.start), end=seconds_to_duration(word.end)
            )
            for word in segment.words()
        ],
        tokens=[
            transcript_pb2.TranscriptToken(id=token.id, text=token.text, logprob=token.logprob)
            for token in segment.tokens
        ],
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
    )
