"""What both encoders get from their base: batching, the deadline, errors that blame a field, times, the grid."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from autoglm.common import tracing
from autoglm.common.encoder import EncoderServicer
from autoglm.common.errors import DeadlineExceeded, MeshError, RequestTooLarge, UnsupportedMedia, from_status
from autoglm.common.modalities import BY_KIND
from autoglm.common.serve_settings import EncoderSettings
from autoglm.common.torch_tensors import to_torch
from autoglm.v1.embedding_pb2 import EncoderInfo
from autoglm.v1.vision_pb2 import VisionServiceEncodeRequest, VisionServiceEncodeResponse

from ...otlp import traced
from ...waiting import NET_SECONDS, eventually


class UnreadableError(ValueError):
    pass


class TooLongError(UnreadableError):
    pass


def priority() -> int:
    """The niceness of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def preprocess(data: bytes) -> list[torch.Tensor]:
    if len(data) > 8:
        raise TooLongError("the word is too long")
    if not data.isalpha():
        raise UnreadableError("not a word")
    return [torch.tensor(list(syllable)) for syllable in (data[:3], data[3:6], data[6:]) if syllable]


class Words(EncoderServicer[torch.Tensor, torch.Tensor]):
    """Encodes words: a token for each letter. A long word has several items, of three letters."""

    modality, param = BY_KIND["image"], "image"
    unsupported, oversized = UnreadableError, TooLongError

    def __init__(self, device: str = "cpu") -> None:
        settings = EncoderSettings.model_validate({"max_batch": 2})
        super().__init__(EncoderInfo(revision="r1", device=device), settings, self.preprocess, self.forward)
        self.priorities, self.go_on = dict[str, int](), threading.Event()

    def preprocess(self, data: bytes) -> list[torch.Tensor]:
        """Split a word; one that is slow waits until it may go on."""
        self.priorities["preprocess"] = priority()
        if data == b"slow":
            assert self.go_on.wait(NET_SECONDS)
        return preprocess(data)

    def forward(self, items: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.priorities["forward"] = priority()
        return [item[:, None].float() for item in items]

    async def encode(self, word: bytes, context: "Told", seconds: float | None = None) -> VisionServiceEncodeResponse:
        request = VisionServiceEncodeRequest(image=word)
        if seconds is not None:
            request.timeout.CopyFrom(Duration(nanos=round(seconds * 1e9)))

        async def work() -> VisionServiceEncodeResponse:
            encoding = await self._run(word, context)
            embedding = self._embedding(word, torch.cat([*encoding.values]), grid=(1, len(word)))
            return VisionServiceEncodeResponse(embedding=embedding, times=encoding.times())

        return await self._answer(request, context, VisionServiceEncodeResponse(), work)


class Told:
    """A context and metrics that keep what they are told."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.error: MeshError | None = None
        self.stages, self.sizes = list[float](), list[int]()

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, metadata: list[tuple[str, Any]]) -> None:
        self.error = from_status(status_pb2.Status.FromString(metadata[0][1]))

    def batched(self, size: int) -> None:
        self.sizes.append(size)

    def encoded(self, preprocess: float, queue: float, compute: float) -> None:
        self.stages = [preprocess, queue, compute]


async def test_a_medium_becomes_an_embedding_with_its_times() -> None:
    told = Told()
    response = await Words().encode(b"abc", told)
    embedding = response.embedding
    assert to_torch(embedding.tokens).tolist() == [[97.0], [98.0], [99.0]]
    assert (embedding.modality, embedding.encoder_revision) == (BY_KIND["image"].number, "r1")
    assert (embedding.media_sha256, list(embedding.grid)) == (hashlib.sha256(b"abc").digest(), [1, 3])
    times = [getattr(response.times, stage).ToNanoseconds() / 1e9 for stage in ("preprocess", "queue", "compute")]
    assert times == pytest.approx(told.stages, abs=1e-8)
    assert told.error is None


async def test_a_long_medium_has_a_span_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with traced("vision", monkeypatch) as receiver:
        tracing.enter("r1", tracing.request_span("Encode", {}, {}))
        await Words().encode(b"abcdefgh", Told())
        tracing.current_span().end()
        eventually(lambda: len(receiver.spans) == 6, "all spans arrive")
    (root,) = [each for each in receiver.spans if each.name == "Encode"]
    below = [each for each in receiver.of(root.trace) if each is not root]
    assert [each.name for each in below] == ["preprocess", "queue", "forward", "queue", "forward"]
    sizes = [each.attributes["autoglm.batch.size"] for each in below if each.name == "forward"]
    assert (below[0].attributes["autoglm.items"], sizes) == (3, [2, 1])
    assert all(root.is_around(each) for each in below)


@pytest.mark.parametrize(
    ("word", "seconds", "kind", "message"),
    [
        (b"123", None, UnsupportedMedia, "not a word"),
        (b"abcdefghi", None, RequestTooLarge, "the word is too long"),
        (b"slow", 0.02, DeadlineExceeded, "the deadline passed"),
        (b"abc", 0, DeadlineExceeded, "the deadline passed"),
    ],
)
async def test_an_error_is_one_that_clients_may_see(
    word: bytes, seconds: float | None, kind: type[MeshError], message: str
) -> None:
    told, words = Told(), Words()
    assert await words.encode(word, told, seconds) == VisionServiceEncodeResponse()
    words.go_on.set()
    assert isinstance(told.error, kind)
    assert told.error.message.startswith(message)
    assert told.error.param == ("image" if seconds is None else None)


async def test_a_long_medium_takes_a_batch_at_a_time() -> None:
    told = Told()
    response = await Words().encode(b"abcdefgh", told)
    assert to_torch(response.embedding.tokens).flatten().tolist() == list(map(float, b"abcdefgh"))
    assert told.sizes == [2, 1]
    times = [getattr(response.times, stage).ToNanoseconds() / 1e9 for stage in ("preprocess", "queue", "compute")]
    assert times == pytest.approx(told.stages, abs=1e-8)


async def test_the_threads_of_an_encoder_answer() -> None:
    threads = Words().threads
    assert set(threads) == {"preprocess", "forward"}
    for ask in threads.values():
        answered = threading.Event()
        ask(answered.set)
        assert await asyncio.to_thread(answered.wait, NET_SECONDS)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
async def test_what_is_computed_on_a_cpu_gives_way_to_answers(device: str) -> None:
    """The passes of a GPU do not wait behind what others compute on the CPU."""
    words, usual = Words(device), priority()
    await words.encode(b"abc", Told())
    assert words.priorities["preprocess"] > usual
    assert (words.priorities["forward"] > usual) == (device == "cpu")
    assert priority() == usual
