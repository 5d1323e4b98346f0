"""autoglm.v1.VisionService: unpack, call, pack."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, Self

import torch

from autoglm.common.batching import Batched, Batcher
from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.deadlines import Deadline, seconds_to_duration
from autoglm.common.errors import RequestTooLarge, UnsupportedMedia
from autoglm.common.server import Context, fail
from autoglm.common.torch_tensors import from_torch
from autoglm.v1 import embedding_pb2, modality_pb2, vision_pb2
from autoglm.vision.models.mobilevit import MAX_PIXELS, ImageError, ImageTooLarge, VisionModel
from autoglm.vision.settings import VisionSettings


class Metrics(Protocol):
    """Where the servicer tells what a request took."""

    def encoded(self, preprocess: float, batched: Batched[torch.Tensor]) -> None: ...


class VisionServicer:
    """Encodes images: files are prepared in a pool of threads, forward passes are batched in one."""

    def __init__(self, model: VisionModel, info: embedding_pb2.EncoderInfo, settings: VisionSettings) -> None:
        self._model = model
        self._info = info
        self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()), thread_name_prefix="preprocess")
        self._batcher = Batcher(self._forward, limit=settings.max_batch, linger=settings.batch_wait_s)

    @classmethod
    def load(cls, settings: VisionSettings) -> Self:
        """Open the vision part of the bundle and warm up; raises BundleError when the part is not whole."""
        bundle = Bundle.open(chosen_bundle(settings.bundle))
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = VisionModel.from_pretrained(bundle.part("vision"), device=device, int8=settings.int8)
        info = embedding_pb2.EncoderInfo(
            revision=bundle.revision("vision") + ("-int8" if settings.int8 else ""),
            width=model.width,
            element_type=embedding_pb2.ELEMENT_TYPE_BFLOAT16,
            device=str(model.device),
            int8=settings.int8,
            max_pixels=MAX_PIXELS,
            bundle=bundle.name,
        )
        servicer = cls(model, info, settings)
        servicer.warm_up(settings.max_batch)
        return servicer

    def warm_up(self, max_batch: int) -> None:
        """Run every batch size that will be served once."""
        side = self._model.preprocessing.side
        for size in range(1, max_batch + 1):
            self._forward([torch.zeros(3, side, side)] * size)

    async def encode(
        self, request: vision_pb2.VisionServiceEncodeRequest, context: Context, metrics: Metrics
    ) -> vision_pb2.VisionServiceEncodeResponse:
        """VisionService.Encode."""
        try:
            deadline = Deadline.of(request.timeout if request.HasField("timeout") else None)
            async with asyncio.timeout(deadline.remaining()):
                return await self._encode(request.image, metrics)
        except Exception as error:
            fail(context, _for_client(error))
            return vision_pb2.VisionServiceEncodeResponse()

    def describe(self) -> vision_pb2.VisionServiceDescribeResponse:
        """VisionService.Describe."""
        return vision_pb2.VisionServiceDescribeResponse(encoder=self._info)

    async def check(self) -> None:
        """Return once the forward thread answers."""
        await self._batcher.check()

    async def _encode(self, image: bytes, metrics: Metrics) -> vision_pb2.VisionServiceEncodeResponse:
        started = time.monotonic()
        pixels = await asyncio.get_running_loop().run_in_executor(self._pool, self._model.preprocess, image)
        preprocess = time.monotonic() - started
        batched = await self._batcher.submit(pixels)
        metrics.encoded(preprocess, batched)
        return vision_pb2.VisionServiceEncodeResponse(
            embedding=embedding_pb2.Embedding(
                modality=modality_pb2.MODALITY_IMAGE,
                encoder_revision=self._info.revision,
                tokens=from_torch(batched.value),
                media_sha256=hashlib.sha256(image).digest(),
            ),
            times=embedding_pb2.EncoderTimes(
                queue=seconds_to_duration(batched.queue),
                preprocess=seconds_to_duration(preprocess),
                compute=seconds_to_duration(batched.compute),
            ),
        )

    def _forward(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return one tensor [tokens, width] in bfloat16 for each image [3, side, side]."""
        return list(self._model.encode(torch.stack(list(images))).to(torch.bfloat16).cpu())


def _for_client(error: Exception) -> Exception:
    if isinstance(error, ImageTooLarge):
        return RequestTooLarge(str(error), param="image")
    if isinstance(error, ImageError):
        return UnsupportedMedia(str(error), param="image")
    return error
