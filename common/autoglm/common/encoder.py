"""What the vision and the speech service share: media in, batched forward passes, embeddings out.

A medium is preprocessed in a pool of threads, and becomes one item or, if it is long, several. Their forward passes run
in batches with those of other requests. Every request keeps its deadline, and every error becomes one that clients may
see.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Generic, Protocol, TypeVar

import torch

from autoglm.common.batching import Batcher
from autoglm.common.deadlines import Deadline, Timed, seconds_to_duration
from autoglm.common.errors import Code, RequestTooLarge, UnsupportedMedia
from autoglm.common.memory import release_free_memory
from autoglm.common.modalities import MediaModality
from autoglm.common.priority import give_way
from autoglm.common.serve_settings import EncoderSettings
from autoglm.common.server import Context, fail
from autoglm.common.torch_tensors import from_torch
from autoglm.common.tracing import current_span
from autoglm.common.watchdog import Ask
from autoglm.v1.embedding_pb2 import Embedding, EncoderInfo, EncoderTimes

Item = TypeVar("Item")
Value = TypeVar("Value")
Response = TypeVar("Response")


class StageMetrics(Protocol):
    """Records the size of batches, and how long each stage of a request took."""

    def batched(self, size: int) -> None: ...

    def encoded(self, preprocess: float, queue: float, compute: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Encoding(Generic[Item, Value]):
    """One medium after its forward passes.

    `items` are its preprocessed form, each with its value; `preprocess`, `queue` and `compute` are seconds.
    """

    items: Sequence[Item]
    values: Sequence[Value]
    preprocess: float
    queue: float
    compute: float

    def times(self) -> EncoderTimes:
        """Return where the time went."""
        return EncoderTimes(
            queue=seconds_to_duration(self.queue),
            preprocess=seconds_to_duration(self.preprocess),
            compute=seconds_to_duration(self.compute),
        )


class EncoderServicer(Generic[Item, Value]):
    """The base of an encoder's servicer.

    A subclass names its modality, the request field (`param`) that errors blame, and the errors of `preprocess`:
    `oversized` for media over a limit, `unsupported` for other bytes that cannot be encoded. What it computes on a CPU
    gives way to a decoder that computes there too; its event loop does not.
    """

    modality: ClassVar[MediaModality]
    param: ClassVar[str]
    unsupported: ClassVar[type[Exception]]
    oversized: ClassVar[type[Exception]]

    def __init__(
        self,
        info: EncoderInfo,
        settings: EncoderSettings,
        preprocess: Callable[[bytes], Sequence[Item]],
        forward: Callable[[Sequence[Item]], Sequence[Value]],
    ) -> None:
        self._info = info
        self._preprocess = preprocess
        self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()), "preprocess", give_way)
        self._max_batch = settings.max_batch
        prepare = give_way if info.device == "cpu" else None
        self._batcher = Batcher(forward, limit=settings.max_batch, linger=settings.batch_wait_s, prepare=prepare)

    @property
    def threads(self) -> Mapping[str, Ask]:
        """What has to go on for requests to be answered, for the watchdog."""
        return {"preprocess": self._pool.submit, "forward": self._batcher.call}

    async def _answer(
        self, request: Timed, context: Context, failed: Response, work: Callable[[], Awaitable[Response]]
    ) -> Response:
        """Return what `work` returns before the request's timeout; else put the error on `context` and return
        `failed`."""
        try:
            async with asyncio.timeout(Deadline.of(request).remaining()):
                return await work()
        except Exception as error:
            fail(context, self._for_client(error))
            return failed

    async def _run(self, media: bytes, metrics: StageMetrics) -> Encoding[Item, Value]:
        """Preprocess and encode one file. At most a batch of its items waits at a time: others come in between."""
        started = time.monotonic()
        work = partial(copy_context().run, self._preprocess, media)
        items = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        preprocess, queue, compute, span = time.monotonic() - started, 0.0, 0.0, current_span()
        span.record("preprocess", started, started + preprocess, {"autoglm.items": len(items)})
        values: list[Value] = []
        for first in range(0, len(items), self._max_batch):
            group, submitted = items[first : first + self._max_batch], time.monotonic()
            batched = await asyncio.gather(*(self._batcher.submit(item) for item in group))
            values += [each.value for each in batched]
            waited, computed = max(each.queue for each in batched), max(each.compute for each in batched)
            queue, compute, begun = queue + waited, compute + computed, submitted + waited
            span.record("queue", submitted, begun)
            span.record("forward", begun, begun + computed, {"autoglm.batch.size": batched[0].size})
            metrics.batched(batched[0].size)
        if len(items) > self._max_batch:  # a long recording leaves much free memory behind
            await asyncio.get_running_loop().run_in_executor(self._pool, release_free_memory)
        metrics.encoded(preprocess, queue, compute)
        return Encoding(items, values, preprocess, queue, compute)

    def _embedding(
        self, media: bytes, tokens: torch.Tensor, transcript: str = "", grid: Sequence[int] = ()
    ) -> Embedding:
        """Return the embedding of a file whose `tokens` are [n, width]."""
        return Embedding(
            modality=self.modality.number,
            encoder_revision=self._info.revision,
            tokens=from_torch(tokens),
            media_sha256=hashlib.sha256(media).digest(),
            transcript=transcript,
            grid=grid,
        )

    def _for_client(self, error: Exception) -> Exception:
        if isinstance(error, self.oversized):
            return RequestTooLarge(str(error), param=self.param)
        if isinstance(error, self.unsupported):
            code: Code | None = "invalid_image_format" if self.param == "image" else None
            return UnsupportedMedia(str(error), param=self.param, code=code)
        return error
