"""autoglm.v1.VisionService: unpack, encode, pack."""

from functools import partial
from importlib.metadata import version
from typing import Self

import torch

from autoglm.common.bundle import Bundle, chosen_bundle
from autoglm.common.devices import chosen_device
from autoglm.common.encoder import EncoderServicer, StageMetrics
from autoglm.common.modalities import BY_KIND
from autoglm.common.server import Context
from autoglm.v1 import embedding_pb2, vision_pb2
from autoglm.vision.image import MAX_PIXELS, ImageError, ImageTooLarge
from autoglm.vision.models import load_vision_model
from autoglm.vision.models.protocol import ImageTokens, VisionModel
from autoglm.vision.settings import VisionSettings


class VisionServicer(EncoderServicer[torch.Tensor, ImageTokens]):
    """Encodes images."""

    modality, param = BY_KIND["image"], "image"
    unsupported, oversized = ImageError, ImageTooLarge

    def __init__(self, model: VisionModel, info: embedding_pb2.EncoderInfo, settings: VisionSettings) -> None:
        super().__init__(info, settings, self._preprocessed, model.encode)
        self._model = model

    @classmethod
    def load(cls, settings: VisionSettings) -> Self:
        """Open the vision part of the bundle and warm up; raises BundleError when the part is not whole."""
        bundle = Bundle.open(chosen_bundle(settings.bundle))
        model = load_vision_model(bundle.part("vision"), chosen_device(settings.device), settings.int8)
        info = embedding_pb2.EncoderInfo(
            revision=bundle.revision("vision") + ("-int8" if settings.int8 else ""),
            width=model.width,
            element_type=embedding_pb2.ELEMENT_TYPE_BFLOAT16,
            device=str(model.device),
            int8=settings.int8,
            max_pixels=MAX_PIXELS,
            bundle=bundle.name,
            version=version("autoglm-mesh"),
        )
        servicer = cls(model, info, settings)
        servicer.warm_up(settings.max_batch)
        return servicer

    def warm_up(self, max_batch: int) -> None:
        """Run every batch size that can occur once."""
        for size in range(1, max_batch + 1):
            self._model.encode([self._model.blank()] * size)

    async def encode(
        self, request: vision_pb2.VisionServiceEncodeRequest, context: Context, metrics: StageMetrics
    ) -> vision_pb2.VisionServiceEncodeResponse:
        """VisionService.Encode."""
        failed = vision_pb2.VisionServiceEncodeResponse()
        return await self._answer(request, context, failed, partial(self._encode, request.image, metrics))

    def describe(self) -> vision_pb2.VisionServiceDescribeResponse:
        """VisionService.Describe."""
        return vision_pb2.VisionServiceDescribeResponse(encoder=self._info)

    def _preprocessed(self, image: bytes) -> list[torch.Tensor]:
        """Return an image's pixels."""
        return [self._model.preprocess(image)]

    async def _encode(self, image: bytes, metrics: StageMetrics) -> vision_pb2.VisionServiceEncodeResponse:
        encoding = await self._run(image, metrics)
        (value,) = encoding.values
        embedding = self._embedding(image, value.tokens, grid=value.grid)
        return vision_pb2.VisionServiceEncodeResponse(embedding=embedding, times=encoding.times())
