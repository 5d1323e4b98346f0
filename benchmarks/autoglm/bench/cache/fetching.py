"""Whether an embedding is fetched from Redis sooner than it is encoded: both, in turns, for media of several sizes."""

import io
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from PIL import Image

from autoglm.bench.smoke.workloads import wav
from autoglm.common.modalities import MODALITY_NAMES
from autoglm.gateway.media.cache import Key, RedisTier
from autoglm.speech.servicer import SpeechServicer
from autoglm.speech.settings import SpeechSettings
from autoglm.training.measured import Figure
from autoglm.v1.embedding_pb2 import Embedding
from autoglm.v1.speech_pb2 import SpeechServiceEncodeRequest
from autoglm.v1.vision_pb2 import VisionServiceEncodeRequest
from autoglm.vision.servicer import VisionServicer
from autoglm.vision.settings import VisionSettings

SCREEN = (1080, 2400)  # pixels
SECONDS = (1, 5, 30)  # of recordings
SAMPLE_RATE = 16000
TIMEOUT = Duration(seconds=600)

Encode = Callable[[], Awaitable[Embedding]]


@dataclass(frozen=True, slots=True)
class FetchComparison:
    """One medium: milliseconds to encode it and to fetch its embedding of so many bytes, and how many times longer the
    former takes."""

    modality: str
    medium: str
    bytes: int
    encode: Figure
    fetch: Figure
    ratio: Figure

    @property
    def slowest_link(self) -> float:
        """Mbit/s of a network over which fetching would take as long as encoding."""
        return self.bytes * 8 / 1000 / max(self.encode.median - self.fetch.median, 1e-9)


class Nobody:
    """The client and the metrics of a call that cannot fail."""

    def batched(self, size: int) -> None: ...
    def encoded(self, preprocess: float, queue: float, compute: float) -> None: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None: ...


async def compare(tier: RedisTier, rounds: int, tell: Callable[[str, int, int], None]) -> list[FetchComparison]:
    """Measure each medium, with the encoders of the bundle in this process; `tell` is told of each before it."""
    found, media = list[FetchComparison](), _media()
    for medium, encode in media.items():
        tell(medium, len(found), len(media))
        found.append(await _compare(medium, encode, tier, rounds))
    return found


async def _compare(medium: str, encode: Encode, tier: RedisTier, rounds: int) -> FetchComparison:
    embedding = await encode()
    key = Key(
        "bench", embedding.modality, embedding.encoder_revision, embedding.tokens.element_type, embedding.media_sha256
    )
    await tier.put(key, embedding)
    encoded, fetched = list[float](), list[float]()
    for number in range(rounds + 1):  # one that warms up
        both = ((encoded, encode), (fetched, lambda: tier.get(key)))
        for times, work in both if number % 2 else reversed(both):
            started = time.perf_counter()
            assert await work() is not None
            times.append((time.perf_counter() - started) * 1000)
    ratios = [one / other for one, other in zip(encoded[1:], fetched[1:], strict=True)]
    figures = [Figure.of(times) for times in (encoded[1:], fetched[1:], ratios)]
    return FetchComparison(MODALITY_NAMES[embedding.modality], medium, embedding.ByteSize(), *figures)


def _media() -> dict[str, Encode]:
    vision = VisionServicer.load(VisionSettings.model_validate({}))
    speech = SpeechServicer.load(SpeechSettings.model_validate({}))

    def seen(data: bytes) -> Encode:
        request = VisionServiceEncodeRequest(image=data, timeout=TIMEOUT)

        async def encode() -> Embedding:
            return (await vision.encode(request, Nobody(), Nobody())).embedding

        return encode

    def heard(data: bytes) -> Encode:
        request = SpeechServiceEncodeRequest(audio=data, timeout=TIMEOUT)

        async def encode() -> Embedding:
            return (await speech.encode(request, Nobody(), Nobody())).embedding

        return encode

    media = {f"screenshot of {SCREEN[0]} × {SCREEN[1]}": seen(_screenshot())}
    return media | {f"recording of {seconds} s": heard(_recording(seconds)) for seconds in SECONDS}


def _screenshot() -> bytes:
    """Return a picture in PNG, whose noise is coarse as that of a screen."""
    blocks = np.random.default_rng(0).integers(0, 256, (SCREEN[1] // 40, SCREEN[0] // 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize(SCREEN, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _recording(seconds: int) -> bytes:
    return wav(np.random.default_rng(0).uniform(-0.1, 0.1, seconds * SAMPLE_RATE).astype(np.float32), SAMPLE_RATE)
